"""Labels, the numbers that stand for channels while a network is traced, and which of them are the same channel.

Before the trace, every index of every axis of every array gets a label of its own. Whenever an operation brings two
indices together (an addition, a matrix product), their labels are united: the two indices can only be removed
together. Labels that must not be removed are frozen, with a reason. At the end each set of united labels is one
channel. `Labels` is the union-find that holds all this; it works on whole integer arrays, so that a layer of a
thousand channels takes about as long as one of ten.

Where an axis has no label, one of two kinds of negative numbers stands in place of it: `FREE` at indices that may be
removed together with whatever they meet (zeros from a padding), and a marker from `Labels.fixed_marker` at indices
that must stay (the batch axis, an array built into the code).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

FREE = -1
"""Stands at an index that has no label and may be removed with whatever it meets."""
_FIRST_MARKER = -2
"""Numbers from here down mark indices that must stay; each number stands for one reason."""


class Labels:
    """A union-find over labels, with the reasons why some of them must not be removed.

    Args:
      count: number of labels at the start; they are 0 to count - 1.

    Example:
      >>> labels = Labels(4)
      >>> labels.unite(np.array([0, 1]), np.array([2, 3]))
      True
      >>> labels.find(np.array([0, 1, 2, 3])).tolist()
      [0, 1, 0, 1]
      >>> labels.freeze(np.array([3]), "output")
      >>> labels.reason_by_root()
      {1: 'output'}
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)
        self._reason_of = np.zeros(
            count, np.int32
        )  # 1 + index into _reasons, 0 for a label that is not frozen
        self._index_of: dict[str, int] = {}
        self._reasons: list[str] = []
        self._is_lenient = False
        self._unites = True

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, count: int) -> np.ndarray:
        """Creates `count` new labels and returns them, [count]."""
        first = len(self._parent)
        new_labels = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new_labels])
        self._reason_of = np.concatenate([self._reason_of, np.zeros(count, np.int32)])
        return new_labels

    def fixed_marker(self, reason: str) -> int:
        """Returns the negative number that marks indices without a label which must stay for this reason."""
        return FREE if self._is_lenient else _FIRST_MARKER - self._index(reason)

    @contextmanager
    def lenient(self, *, unites: bool) -> Iterator[None]:
        """Until the context ends, `freeze` does nothing and `fixed_marker` is `FREE`; markers that exist still freeze.

        Args:
          unites: whether `unite` does anything.
        """
        before = self._is_lenient, self._unites
        self._is_lenient, self._unites = True, unites
        try:
            yield
        finally:
            self._is_lenient, self._unites = before

    def _index(self, reason: str) -> int:
        if reason not in self._index_of:
            self._index_of[reason] = len(self._reasons)
            self._reasons.append(reason)
        return self._index_of[reason]

    def find(self, labels: np.ndarray) -> np.ndarray:
        """Finds the root of every label: the smallest label that it is united with.

        Args:
          labels: labels, `FREE` and markers, of any shape.

        Returns:
          The roots, of the same shape; `FREE` and markers are unchanged.
        """
        if (labels < 0).any():
            return np.where(labels < 0, labels, self._roots(np.maximum(labels, 0)))
        return self._roots(labels)

    def _roots(self, labels: np.ndarray) -> np.ndarray:
        roots = self._parent[labels]
        while True:
            parents = self._parent[roots]
            if (parents == roots).all():  # half the time of `array_equal`, in what runs most often
                return roots
            roots = parents

    def unite(self, left: np.ndarray, right: np.ndarray) -> bool:
        """Unites each label of one array with the label at the same position of the other.

        A label that meets a marker is frozen with the marker's reason; one that meets `FREE` is left as it is.

        Args:
          left: labels, `FREE` and markers, of any shape.
          right: as many.

        Returns:
          Whether any two labels are united now that were not before.
        """
        if left is right or not self._unites:
            return False
        left, right = left.reshape(-1), right.reshape(-1)
        if min(left.min(initial=0), right.min(initial=0)) < 0:
            self._freeze_at_markers(left, right)
            self._freeze_at_markers(right, left)
            are_labels = (left >= 0) & (right >= 0)
            left, right = left[are_labels], right[are_labels]
        left_roots, right_roots = self._roots(left), self._roots(right)
        if np.array_equal(left_roots, right_roots):
            return False
        while True:
            lower = np.minimum(left_roots, right_roots)
            np.minimum.at(self._parent, left_roots, lower)
            np.minimum.at(self._parent, right_roots, lower)
            left_roots, right_roots = self._roots(left), self._roots(right)
            if np.array_equal(left_roots, right_roots):
                self._parent[left] = left_roots  # shortens the paths that later calls follow
                self._parent[right] = right_roots
                return True

    def _freeze_at_markers(self, labels: np.ndarray, others: np.ndarray) -> None:
        meets_marker = (labels >= 0) & (others <= _FIRST_MARKER)
        for marker in np.unique(others[meets_marker]):
            self._freeze(labels[meets_marker & (others == marker)], self._reasons[_FIRST_MARKER - marker])

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Forbids removing some labels, which also forbids removing everything united with them.

        Args:
          labels: labels, of any shape; `FREE` and markers among them are ignored.
          reason: why; a label that is frozen already keeps the reason that it has.
        """
        if not self._is_lenient:
            self._freeze(labels, reason)

    def _freeze(self, labels: np.ndarray, reason: str) -> None:
        labels = labels[labels >= 0]
        labels = labels[self._reason_of[labels] == 0]
        if labels.size:
            self._reason_of[labels] = 1 + self._index(reason)

    def freeze_each(self, reasons: Mapping[int, str]) -> None:
        """Freezes every label of a dictionary, label -> reason."""
        by_reason: dict[str, list[int]] = {}
        for label, reason in reasons.items():
            by_reason.setdefault(reason, []).append(label)
        for reason, labels in by_reason.items():
            self.freeze(np.asarray(labels), reason)

    def reason_by_root(self) -> dict[int, str]:
        """Returns the root of every frozen label with the reason that was given first among all united with it."""
        frozen = np.flatnonzero(self._reason_of)
        frozen = frozen[np.argsort(self._reason_of[frozen], kind="stable")]
        earliest = frozen[np.sort(np.unique(self._roots(frozen), return_index=True)[1])]
        roots, reasons = self._roots(earliest).tolist(), (self._reason_of[earliest] - 1).tolist()
        return {root: self._reasons[index] for root, index in zip(roots, reasons, strict=True)}


def distinct(values: np.ndarray) -> np.ndarray:
    """Returns the distinct values in rising order, as `numpy.unique` does.

    It is several times faster on labels, because most arrays of them are sorted already.

    Example:
      >>> distinct(np.array([[3, 1], [3, 2]])).tolist()
      [1, 2, 3]
    """
    ordered = np.sort(values, axis=None, kind="stable")
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if ordered.size else ordered
