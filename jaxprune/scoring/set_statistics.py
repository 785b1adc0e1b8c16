"""Statistics of the rows of all classes at once, from one pass over a value that has no class of its own.

Written once for NumPy and JAX. Rows are sorted by class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import cast

import jax
import numpy as np

from jaxprune.language.axes import Type
from jaxprune.observation.moments import SETS, Moments, SetMoments, set_moments
from jaxprune.scoring.analysis import STATISTICS
from jaxprune.types import Array, Namespace

_NAMES = dict.fromkeys(f"{operator}({name})" for operator in STATISTICS for name in SETS)


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
        """Axis -> [K, size] rows, those of small classes filled up with the class's first one."""
        self.is_real: dict[str, np.ndarray | None] = {}
        """Axis -> [K, size] whether they are no filling; None where none is."""
        for axis, is_own in (("N", True), ("NQ", False)):
            rows = [
                np.flatnonzero((self.class_ids == k) == is_own).astype(np.int32)
                for k in range(len(class_counts))
            ]
            size = max(map(len, rows))
            self.index[axis] = np.stack(
                [np.concatenate([r, np.full(size - len(r), r[0], np.int32)]) for r in rows]
            )
            is_real = np.stack([np.arange(size) < len(r) for r in rows])
            self.is_real[axis] = None if is_real.all() else is_real

    def belongs(self, dtype: np.dtype) -> np.ndarray:
        """[K, n] 1 where a row is of a class."""
        if dtype not in self._belongs:
            self._belongs[dtype] = (self.class_ids[None] == np.arange(len(self.counts))[:, None]).astype(
                dtype
            )
        return self._belongs[dtype]

    def masks(self, type: Type) -> tuple[np.ndarray | None, ...]:
        """The mask of each axis of a value, [1, K, 1, size]."""
        found = []
        for axis in type:
            own = self.is_real.get(axis)
            found.append(None if own is None else own[None, :, None])
        return tuple(found)

    def select(self, xp: Namespace, value: Array, type: Type) -> Array:
        """[M, K, C, *axes] the rows of each class of a [M, 1, C, *axes] value on all rows.

        Args:
          xp: `numpy` or `jax.numpy`.
          value: on all rows.
          type: of the result: axes `N` and `NQ` are those whose rows are selected.
        """
        selected = [number for number, axis in enumerate(type) if axis in self.index]
        first, *others = selected
        one_class = value[:, 0]
        axis = 2 + first
        if self.is_balanced and type[first] == "N":  # a view, where the array library has such
            split = one_class.reshape(
                *one_class.shape[:axis], len(self.counts), -1, *one_class.shape[axis + 1 :]
            )
        else:
            split = xp.take(one_class, self.index[type[first]], axis=axis)
        found = xp.moveaxis(split, axis, 1)
        for number in others:
            rows = self.index[type[number]]
            shape = [1, len(rows), 1, *(1,) * len(type)]
            shape[3 + number] = rows.shape[1]
            found = xp.take_along_axis(found, xp.asarray(rows.reshape(shape)), axis=3 + number)
        return found


@lru_cache(maxsize=64)
def class_rows(class_counts: tuple[int, ...]) -> ClassRows:
    """The rows of a sample with these numbers of rows of each class."""
    return ClassRows(class_counts)


class SetStatistics(Mapping[str, Array]):
    """`mean(P)`, `var(Q)`, `mean_samples(X)` and so on, each computed when it is first asked for.

    Values are [M, K or 1, C], of `mean_samples` [M, K or 1, C, D].

    Args:
      xp: `numpy` or `jax.numpy`.
      moments: of classes, with a leading member axis; for their `m2` stands what `spread` gives.
      spread: computes `m2`, which means do not need.
      is_position: [..., 1, D, 1] which positions are real, as in `SetMoments`.
    """

    def __init__(
        self, xp: Namespace, moments: Moments, spread: Callable[[], Array], is_position: Array | None = None
    ) -> None:
        self._xp, self._moments, self._is_position = xp, moments, is_position
        self._spread: Callable[[], Array] | None = spread
        self._sets: dict[tuple[str, bool], SetMoments] = {}
        self._found: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in _NAMES:
            raise KeyError(name)
        if name not in self._found:
            operator, of = name[:-1].split("(")
            self._found[name] = self._compute(operator, of)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def _compute(self, operator: str, of: str) -> Array:
        if operator == "mean":
            return self._set(of).entry_mean
        if operator == "var":
            return self._set(of, has_spread=True).entry_variance
        if operator == "std":
            return self._xp.sqrt(self[f"var({of})"])
        if operator == "sum":
            return self[f"mean({of})"] * self[f"count({of})"]
        own = self._set(of)
        if operator == "mean_samples":
            return self._xp.swapaxes(own.mean, -1, -2)
        shape = (*own.offset.shape[:-2], own.offset.shape[-1])
        return self._xp.broadcast_to(own.num_entries[..., None], shape)

    def _set(self, name: str, *, has_spread: bool = False) -> SetMoments:
        spread = self._spread
        if has_spread and spread is not None:  # of several threads each may compute the same
            self._moments = self._moments._replace(m2=cast(jax.Array, spread()))
            self._spread = None
        key = (name, has_spread)
        if key not in self._sets:
            self._sets[key] = set_moments(self._moments, name, self._is_position, has_spread=has_spread)
        return self._sets[key]


def row_statistics(
    xp: Namespace, value: Array, rows: ClassRows, positions: Array | None = None
) -> SetStatistics:
    """The statistics of the rows of all classes of a value.

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
    rest = _less_by_class(by_row, first, rows)
    shift = _product(xp, belongs, rest) / counts[None, None, :, None]

    def spread() -> Array:
        deviations = _less_by_class(rest, shift, rows)
        return xp.moveaxis(_product(xp, belongs, deviations * deviations), 1, -1)

    pivot, offset = xp.swapaxes(first[:, :, 0], -1, -2), xp.moveaxis(first - first[:, :, :1] + shift, 1, -1)
    moments = Moments(counts, pivot, offset, m2=offset, active=counts)  # nobody reads the last two
    return SetStatistics(xp, moments, spread, None if positions is None else positions[:, 0, ..., None])


def _less_by_class(by_row: Array, by_class: Array, rows: ClassRows) -> Array:
    """[M, C, n, D] rows less a [M, C, K, D] value of each one's class."""
    if not rows.is_balanced:
        return by_row - by_class[:, :, rows.class_ids]
    split = by_row.reshape(*by_class.shape[:3], -1, by_class.shape[3])
    return (split - by_class[..., None, :]).reshape(by_row.shape)


def pair_statistics(xp: Namespace, value: Array, rows: ClassRows) -> dict[str, Array]:
    """`sum(P,Q)`, `mean(P,X)` and so on of a value [M, 1, C, n, n] on all pairs of rows.

    Returns:
      Name -> [M, K or 1, C].
    """
    dtype = np.dtype(value.dtype)
    belongs = rows.belongs(dtype)
    sets = {"X": np.ones((1, len(rows.class_ids)), dtype), "P": belongs, "Q": 1 - belongs}
    pairs = value[:, 0]
    # Relative to one pair: of kernels near 1, say, only what tells them apart is added up. What is not finite must not
    # reach sets that do not hold it.
    is_finite = xp.isfinite(pairs)
    pivot = xp.where(is_finite[..., :1, :1], pairs[..., :1, :1], 0)
    shifted = xp.where(is_finite, pairs - pivot, 0)
    missing = (~is_finite).astype(dtype)
    found = {}
    for first, own in sets.items():
        sums = _product(xp, xp.asarray(own), shifted)  # [M, C, K or 1, n]
        gaps = _product(xp, xp.asarray(own), missing)
        for second, other in sets.items():
            total = xp.moveaxis((sums * other[None, None]).sum(axis=-1), 1, 2)
            has_gap = xp.moveaxis((gaps * other[None, None]).sum(axis=-1), 1, 2) > 0
            total = xp.where(has_gap, xp.nan, total)
            number = (own.sum(axis=1) * other.sum(axis=1))[None, :, None]
            found[f"sum({first},{second})"] = pivot[:, None, :, 0, 0] * number + total
            found[f"mean({first},{second})"] = pivot[:, None, :, 0, 0] + total / number
    return found


def _product(xp: Namespace, left: Array, right: Array) -> Array:
    return xp.matmul(left, right) if xp is np else xp.matmul(left, right, precision="highest")
