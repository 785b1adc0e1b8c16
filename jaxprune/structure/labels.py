"""A label for every index of every axis of every array, with a union-find that says which are one and the same.

Labels that an operation ties together are united; labels that may not be cut carry a reason. All operations work on
whole integer arrays, so that a layer of a thousand channels costs about as much as one of ten.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

FREE = -1
"""No label: zeros and other fill that may go with whatever it meets."""
_FIRST_FIXED = -2
"""Numbers from here down stand for an index that stays, each for one reason."""


class Labels:
    """Which labels are equal, and which may not be cut.

    Args:
      count: of labels, 0 .. count - 1.

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
        self._why = np.zeros(count, np.int32)  # 1 + number of the reason, 0 for none
        self._numbers: dict[str, int] = {}
        self._reasons: list[str] = []

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> np.ndarray:
        """So many new labels."""
        first = len(self._parent)
        found = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, found])
        self._why = np.concatenate([self._why, np.zeros(count, np.int32)])
        return found

    def fixed(self, reason: str) -> int:
        """What stands at an index that stays for this reason."""
        return _FIRST_FIXED - self._number(reason)

    def _number(self, reason: str) -> int:
        if reason not in self._numbers:
            self._numbers[reason] = len(self._reasons)
            self._reasons.append(reason)
        return self._numbers[reason]

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The representatives of labels, of the same shape; what is no label stays."""
        if (labels < 0).any():
            return np.where(labels < 0, labels, self._roots(np.maximum(labels, 0)))
        return self._roots(labels)

    def _roots(self, labels: np.ndarray) -> np.ndarray:
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def unite(self, left: np.ndarray, right: np.ndarray) -> bool:
        """Says that labels at equal places are the same; what meets a fixed index is frozen, what meets fill is not.

        Returns:
          Whether two labels that were not known to be the same are now.
        """
        if left is right:
            return False
        left, right = left.reshape(-1), right.reshape(-1)
        if min(left.min(initial=0), right.min(initial=0)) < 0:
            self._meet_fixed(left, right)
            self._meet_fixed(right, left)
            known = (left >= 0) & (right >= 0)
            left, right = left[known], right[known]
        a, b = self._roots(left), self._roots(right)
        if np.array_equal(a, b):
            return False
        while True:
            least = np.minimum(a, b)
            np.minimum.at(self._parent, a, least)
            np.minimum.at(self._parent, b, least)
            a, b = self._roots(a), self._roots(b)
            if np.array_equal(a, b):
                self._parent[left] = a  # shorter ways for the next time
                self._parent[right] = b
                return True

    def _meet_fixed(self, labels: np.ndarray, others: np.ndarray) -> None:
        met = (labels >= 0) & (others <= _FIRST_FIXED)
        for number in np.unique(others[met]):
            self.freeze(labels[met & (others == number)], self._reasons[_FIRST_FIXED - number])

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Forbids cutting these; the first reason given is kept."""
        own = labels[labels >= 0]
        own = own[self._why[own] == 0]
        if own.size:
            self._why[own] = 1 + self._number(reason)

    def freeze_each(self, reasons: Mapping[int, str]) -> None:
        """Forbids cutting these labels, each for its reason."""
        by_reason: dict[str, list[int]] = {}
        for label, reason in reasons.items():
            by_reason.setdefault(reason, []).append(label)
        for reason, labels in by_reason.items():
            self.freeze(np.asarray(labels), reason)

    def reason_by_root(self) -> dict[int, str]:
        """Representatives of all frozen labels, with the earliest reason."""
        frozen = np.flatnonzero(self._why)
        frozen = frozen[np.argsort(self._why[frozen], kind="stable")]
        first = np.unique(self._roots(frozen), return_index=True)[1]
        earliest = np.sort(first)
        whys = (self._why[frozen[earliest]] - 1).tolist()
        found = self._roots(frozen[earliest]).tolist()
        return {root: self._reasons[why] for root, why in zip(found, whys, strict=True)}


def distinct(values: np.ndarray) -> np.ndarray:
    """What `numpy.unique` gives, several times faster on labels, which mostly rise already.

    Example:
      >>> distinct(np.array([[3, 1], [3, 2]])).tolist()
      [1, 2, 3]
    """
    ordered = np.sort(values, axis=None, kind="stable")
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if ordered.size else ordered
