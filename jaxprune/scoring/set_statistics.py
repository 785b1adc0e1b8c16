"""Statistics of the rows of every class at once, from one pass over a value that does not depend on the class.

One implementation serves NumPy and JAX. Rows are sorted by class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import cast

import jax
import numpy as np

from jaxprune.language.axes import Type
from jaxprune.observation.moments import SETS, Moments, SetMoments, set_moments
from jaxprune.scoring.analysis import STATISTICS
from jaxprune.types import Array, Namespace

_NAMES = dict.fromkeys(f"{operator}({name})" for operator in STATISTICS for name in SETS)
_LARGE_BYTES = 1 << 26
"""Means of classes that take more than this are handled in blocks of channels."""
_BLOCK_BYTES = 1 << 24
"""Memory for the means of classes in a block; about ten times that is needed at once."""


class ClassRows:
    """Which rows of a sample that is sorted by class belong to which class.

    Args:
      class_counts: number of rows of each class.

    Example:
      >>> rows = ClassRows((2, 1))
      >>> rows.index["N"].tolist(), rows.is_real["N"].tolist()
      ([[0, 1], [2, 2]], [[True, True], [True, False]])
      >>> rows.is_real["NQ"] is None, ClassRows((2, 2)).is_real["N"] is None
      (False, True)
    """

    def __init__(self, class_counts: tuple[int, ...]) -> None:
        self.counts = np.asarray(class_counts)
        # int32 indices mean the same to JAX with and without x64
        self.class_ids = np.repeat(np.arange(len(class_counts), dtype=np.int32), class_counts)
        self.starts = np.concatenate([[0], np.cumsum(class_counts)[:-1]]).astype(np.int32)
        self.is_balanced = len(set(class_counts)) == 1
        self._belongs: dict[np.dtype, np.ndarray] = {}
        self.index: dict[str, np.ndarray] = {}
        """Axis -> [K, size] rows; small classes are filled up with their first row."""
        self.is_real: dict[str, np.ndarray | None] = {}
        """Axis -> [K, size] False for rows that only fill up; None if there are none."""
        for axis, is_class in (("N", True), ("NQ", False)):
            rows = [
                np.flatnonzero((self.class_ids == k) == is_class).astype(np.int32)
                for k in range(len(class_counts))
            ]
            size = max(map(len, rows))
            self.index[axis] = np.stack([np.concatenate([r, np.repeat(r[:1], size - len(r))]) for r in rows])
            is_real = np.stack([np.arange(size) < len(r) for r in rows])
            self.is_real[axis] = None if is_real.all() else is_real

    def belongs(self, dtype: np.dtype) -> np.ndarray:
        """Returns [K, n] 1 where a row belongs to a class, else 0."""
        if dtype not in self._belongs:
            is_of_class = self.class_ids[None] == np.arange(len(self.counts))[:, None]
            self._belongs[dtype] = is_of_class.astype(dtype)
        return self._belongs[dtype]

    def masks(self, type: Type) -> tuple[np.ndarray | None, ...]:
        """Returns for each axis of a type which rows are real, [1, K, 1, size], or None where all are."""
        real = [self.is_real.get(axis) for axis in type]
        return tuple(None if is_real is None else is_real[None, :, None] for is_real in real)

    def select(self, xp: Namespace, value: Array, type: Type) -> Array:
        """Selects the rows of each class from a value on all rows.

        Args:
          xp: `numpy` or `jax.numpy`.
          value: [M, 1, C, *axes] with all rows.
          type: of the result; its axes `N` and `NQ` are those whose rows are selected.

        Returns:
          [M, K, C, *axes].
        """
        selected = [number for number, axis in enumerate(type) if axis in self.index]
        first, *others = selected
        one_class = value[:, 0]
        axis = 2 + first
        if self.is_balanced and type[first] == "N":  # a view, where the array library has views
            split = one_class.reshape(
                *one_class.shape[:axis], len(self.counts), -1, *one_class.shape[axis + 1 :]
            )
        else:
            split = xp.take(one_class, self.index[type[first]], axis=axis)
        result = xp.moveaxis(split, axis, 1)
        for number in others:
            rows = self.index[type[number]]
            shape = [1, len(rows), 1, *(1,) * len(type)]
            shape[3 + number] = rows.shape[1]
            result = xp.take_along_axis(result, xp.asarray(rows.reshape(shape)), axis=3 + number)
        return result


class_rows = lru_cache(maxsize=64)(ClassRows)
"""The rows of a sample with these numbers of rows of each class, cached."""


class SetStatistics(Mapping[str, Array]):
    """`mean(P)`, `var(Q)`, `mean_samples(X)` and so on, each computed when it is first read.

    Values are [M, K or 1, C]; those of `mean_samples` are [M, K or 1, C, D].

    Args:
      xp: `numpy` or `jax.numpy`.
      moments: of classes, with a leading member axis; their `m2` is not read.
      spread: computes their `m2`, which means do not need.
      is_position: [..., 1, D, 1] which positions are real, as in `SetMoments`.
    """

    def __init__(
        self, xp: Namespace, moments: Moments, spread: Callable[[], Array], is_position: Array | None = None
    ) -> None:
        self._xp, self._moments, self._is_position = xp, moments, is_position
        self._spread: Callable[[], Array] | None = spread
        self._sets: dict[tuple[str, bool], SetMoments] = {}
        self._values: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in _NAMES:
            raise KeyError(name)
        if name not in self._values:
            operator, of = name[:-1].split("(")
            self._values[name] = self._compute(operator, of)
        return self._values[name]

    def _compute(self, operator: str, of: str) -> Array:
        """Computes a statistic of one of the sets."""
        if operator == "std":
            return self._xp.sqrt(self[f"var({of})"])
        if operator == "sum":
            return self[f"mean({of})"] * self[f"count({of})"]
        key = (of, operator == "var" or (of, True) in self._sets)
        if operator == "var" and self._spread is not None:  # several threads may each compute the same
            self._moments = self._moments._replace(m2=cast(jax.Array, self._spread()))
            self._spread = None
        if key not in self._sets:
            self._sets[key] = set_moments(self._moments, of, self._is_position, has_spread=operator == "var")
        moments = self._sets[key]
        if operator == "mean":
            return moments.entry_mean
        if operator == "var":
            return moments.entry_variance
        if operator == "mean_samples":
            return self._xp.swapaxes(moments.mean, -1, -2)
        shape = (*moments.offset.shape[:-2], moments.offset.shape[-1])
        return self._xp.broadcast_to(moments.num_entries[..., None], shape)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


class BlockedStatistics(Mapping[str, Array]):
    """The same in NumPy of moments that may be large: in blocks of channels, keeping only what has no axis D.

    The moments of the other classes take as much memory as those of the classes, and their sums several times that.

    Args:
      moments: of classes, with a leading member axis.
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._values: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in _NAMES:
            raise KeyError(name)
        if name in self._values:
            return self._values[name]
        operator, of = name[:-1].split("(")
        if operator == "mean_samples":
            return self._join([name], axis=-2)[0]
        # what is asked for one of them is soon asked for the others, so they are computed from one sum
        names = [f"{each}({of})" for each in ("var", "std", "mean", "sum", "count")]
        self._values |= dict(zip(names, self._join(names), strict=True))
        return self._values[name]

    def _join(self, names: Sequence[str], axis: int = -1) -> list[np.ndarray]:
        """Computes some statistics block by block."""
        count, *rest = self._moments
        entries, num_channels = rest[1], rest[1].shape[-1]
        size = entries.nbytes
        block = num_channels if size <= _LARGE_BYTES else max(8, num_channels * _BLOCK_BYTES // size)
        parts = []
        for start in range(0, num_channels, block):
            part = Moments(count, *(array[..., start : start + block] for array in rest))
            statistics = SetStatistics(np, part, partial(getattr, part, "m2"))
            parts.append([np.asarray(statistics[name]) for name in names])
        return [own[0] if len(own) == 1 else np.concatenate(own, axis) for own in zip(*parts, strict=True)]

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


def row_statistics(
    xp: Namespace, value: Array, rows: ClassRows, positions: Array | None = None
) -> SetStatistics:
    """Returns the statistics of the rows of every class of a value.

    Args:
      xp: `numpy` or `jax.numpy`.
      value: [M, 1, C, n, positions] or [M, 1, C, n].
      rows: the classes of the n rows.
      positions: [1, 1, 1, positions] which ones are real, the first among them; None means all.

    Example:
      >>> value = np.array([1.0, 3.0, 6.0]).reshape(1, 1, 1, 3)
      >>> row_statistics(np, value, ClassRows((2, 1)))["mean(Q)"].ravel().tolist()
      [6.0, 2.0]
    """
    by_row = (value if value.ndim == 5 else value[..., None])[:, 0]  # [M, C, n, D]
    belongs = xp.asarray(rows.belongs(np.dtype(by_row.dtype)))
    counts = xp.asarray(rows.counts.astype(by_row.dtype))
    # Relative to the class's first row, as in `add_examples`, so that a class of equal rows is exact.
    first = by_row[:, :, rows.starts]
    rest = _subtract_by_class(by_row, first, rows)
    shift = _matmul(xp, belongs, rest) / counts[None, None, :, None]

    def spread() -> Array:
        deviations = _subtract_by_class(rest, shift, rows)
        return xp.moveaxis(_matmul(xp, belongs, deviations * deviations), 1, -1)

    pivot, offset = xp.swapaxes(first[:, :, 0], -1, -2), xp.moveaxis(first - first[:, :, :1] + shift, 1, -1)
    moments = Moments(counts, pivot, offset, m2=offset, active=counts)  # nobody reads the last two
    return SetStatistics(xp, moments, spread, None if positions is None else positions[:, 0, ..., None])


def pair_statistics(xp: Namespace, value: Array, rows: ClassRows) -> dict[str, Array]:
    """Returns `sum(P,Q)`, `mean(P,X)` and so on of a value on all pairs of rows.

    Args:
      xp: `numpy` or `jax.numpy`.
      value: [M, 1, C, n, n].
      rows: the classes of the n rows.

    Returns:
      Name -> [M, K or 1, C].
    """
    dtype = np.dtype(value.dtype)
    belongs = rows.belongs(dtype)
    sets = {"X": np.ones((1, len(rows.class_ids)), dtype), "P": belongs, "Q": 1 - belongs}
    pairs = value[:, 0]
    # Relative to one pair: of kernels near 1, for example, only the differences are added up. Entries that are not
    # finite must not affect sets that do not hold them.
    is_finite = xp.isfinite(pairs)
    pivot = xp.where(is_finite[..., :1, :1], pairs[..., :1, :1], 0)
    shifted = xp.where(is_finite, pairs - pivot, 0)
    missing = (~is_finite).astype(dtype)
    statistics = {}
    for first, members in sets.items():
        sums = _matmul(xp, xp.asarray(members), shifted)  # [M, C, K or 1, n]
        gaps = _matmul(xp, xp.asarray(members), missing)
        for second, others in sets.items():
            total = xp.moveaxis((sums * others[None, None]).sum(axis=-1), 1, 2)
            has_gap = xp.moveaxis((gaps * others[None, None]).sum(axis=-1), 1, 2) > 0
            total = xp.where(has_gap, xp.nan, total)
            number = (members.sum(axis=1) * others.sum(axis=1))[None, :, None]
            statistics[f"sum({first},{second})"] = pivot[:, None, :, 0, 0] * number + total
            statistics[f"mean({first},{second})"] = pivot[:, None, :, 0, 0] + total / number
    return statistics


def _subtract_by_class(by_row: Array, by_class: Array, rows: ClassRows) -> Array:
    """Subtracts from each of [M, C, n, D] rows the value [M, C, K, D] of its class."""
    if not rows.is_balanced:
        return by_row - by_class[:, :, rows.class_ids]
    split = by_row.reshape(*by_class.shape[:3], -1, by_class.shape[3])
    return (split - by_class[..., None, :]).reshape(by_row.shape)


def _matmul(xp: Namespace, left: Array, right: Array) -> Array:
    return xp.matmul(left, right) if xp is np else xp.matmul(left, right, precision="highest")
