"""The engine's simplest kernels on a CPU: NumPy on the same flat buffers.

There XLA gains nothing from one operator at a time: measured on 2 busy CPU cores, a call of the smallest kernel takes
200 us of CPU time. NumPy has less to set up, skips padding, reads what is repeated without an index for each entry, and
needs no compiling. On accelerators and meshes the compiled kernels run (see `kernels.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxprune.types import Array

if TYPE_CHECKING:
    from jaxprune.scoring.kernels import RowMask

_ARITHMETIC: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    np.add,
    np.subtract,
    np.multiply,
    np.divide,
    lambda values, part: np.subtract(part, values),
    lambda values, part: np.divide(part, values),
)
_UNARY: tuple[Callable[[np.ndarray, Array], np.ndarray], ...] = (
    lambda values, _: np.abs(values),
    lambda values, _: np.square(values),
    lambda values, _: np.sqrt(values),
    lambda values, _: values * 0,
    lambda values, factor: np.exp(values * -np.asarray(factor)),
)


_PART, _LONG = 1024, 8192
"""Rows up to the second length are summed up by `einsum`, measured 1.5 to 4 times as fast as `sum`; so many entries at
once as the first, because it adds one after the other and would lose digits."""


def binary(operator: Array, left: Array, right: Array) -> np.ndarray:
    """Entry by entry."""
    return _ARITHMETIC[int(operator)](np.asarray(left), np.asarray(right))


def unary(operator: Array, factor: Array, values: Array) -> np.ndarray:
    """Entry by entry."""
    return _UNARY[int(operator)](np.asarray(values), factor)


def choose(is_real: Array, values: Array, other: Array) -> np.ndarray:
    """Values, and a number where they are not real."""
    return np.where(np.asarray(is_real), np.asarray(values), other)


def rearrange(source: Array, numbers: Array, length: int, _gather: str) -> np.ndarray:
    """What a geometry tells to gather: no copy where it lies side by side."""
    return _gathered(np.asarray(source), numbers, length).reshape(-1)


def binary_over(operator: Array, values: Array, source: Array, numbers: Array, _gather: str) -> np.ndarray:
    """Values with what is gathered, which is never written down."""
    whole = np.asarray(values)
    part = _gathered(np.asarray(source), numbers, len(whole))
    return _ARITHMETIC[int(operator)](whole.reshape(part.shape), part).reshape(-1)


def grow(values: Array, length: int) -> np.ndarray:
    """A longer buffer."""
    flat = np.asarray(values).reshape(-1)
    if len(flat) == length:
        return flat
    found = np.zeros(length, flat.dtype)
    found[: len(flat)] = flat
    return found


def sum_rows(values: Array, mask: RowMask, row: int, *, smallest: int) -> np.ndarray:
    """The sum of each row."""
    rows = _real_rows(np.asarray(values), mask, row)
    found = np.zeros(max(smallest, len(rows)), rows.dtype)
    found[: len(rows)] = _row_sums(rows)
    return found


def spread_rows(values: Array, mask: RowMask, row: int, *, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each row; of equal entries the variance is 0."""
    rows = np.asarray(values).reshape(-1, row)
    count, prefix = np.asarray(mask.number), mask.prefix
    is_real = None if prefix else np.asarray(mask.is_real).reshape(-1, row)
    first = None if prefix else np.asarray(mask.first)[:, None]
    start = rows[:, :1] if first is None else np.take_along_axis(rows, first, axis=1)
    deviation = rows[:, :prefix] - start if is_real is None else np.where(is_real, rows - start, 0)
    centre = _row_sums(deviation) / count
    deviation -= centre[:, None]
    if is_real is not None:
        deviation *= is_real
    length = max(smallest, len(rows))
    mean, variance = np.zeros(length, rows.dtype), np.zeros(length, rows.dtype)
    mean[: len(rows)] = start[:, 0] + centre
    variance[: len(rows)] = _row_sums(deviation, deviation) / count
    return mean, variance


def product(left: np.ndarray, right: np.ndarray, mask: RowMask, found: np.ndarray) -> None:
    """Products of matrices [classes, channels, a, b] and [classes, channels, b, c], either of them there once for all.

    Args:
      left, right: the matrices; classes and channels are 1 where they are shared.
      mask: [classes, channels, b] what is real of the axis that is summed over.
      found: [classes, channels, a, c] where the result goes.
    """
    if mask.prefix:
        left, right = left[..., : mask.prefix], right[..., : mask.prefix, :]
    else:
        lanes, middle = found.shape[:2], left.shape[-1]
        real = np.asarray(mask.is_real)[: math.prod(lanes) * middle].reshape(*lanes, middle)
        left = np.where(real[:, :, None], left, 0)
        right = np.where(real[..., None], right, 0)
    classes, _, rows, columns = found.shape
    if right.shape[:2] == (1, 1) and left.shape[:2] == found.shape[:2]:
        np.matmul(left.reshape(-1, left.shape[-1]), right[0, 0], out=found.reshape(-1, columns))
    elif left.shape[:2] == (1, 1) and columns == 1 and right.shape[:2] == found.shape[:2]:
        by_lane = right.reshape(-1, right.shape[2])
        np.matmul(by_lane, left[0, 0].T, out=found.reshape(-1, rows))
    elif left.shape[0] == 1 < classes and columns == 1:
        # one matrix of a channel with the vectors of all classes
        found[..., 0] = np.moveaxis(np.matmul(left[0], np.moveaxis(right[..., 0], 0, -1)), -1, 0)
    else:
        np.matmul(left, right, out=found)


def first_least(values: Array, is_real: Array, row: int) -> np.ndarray:
    """1 at the first least real entry of each row, 0 elsewhere."""
    flat = np.asarray(values)
    rows = np.where(np.asarray(is_real), flat, np.inf).reshape(-1, row)
    return (np.arange(row)[None] == rows.argmin(axis=1)[:, None]).astype(flat.dtype).reshape(-1)


def _row_sums(*factors: np.ndarray) -> np.ndarray:
    """Sums along the last axis of one array or a product; equal rows have equal sums wherever they stand."""
    length = factors[0].shape[1]
    if length > _LONG:
        return np.asarray(reduce(np.multiply, factors).sum(axis=1))
    terms = ",".join(["ij"] * len(factors)) + "->i"
    if length <= _PART:
        return np.asarray(np.einsum(terms, *factors))
    parts = [
        np.einsum(terms, *(each[:, start : start + _PART] for each in factors))
        for start in range(0, length, _PART)
    ]
    return np.asarray(sum(parts[1:], start=parts[0]))


def _real_rows(values: np.ndarray, mask: RowMask, row: int) -> np.ndarray:
    """Rows without padding where it stands at the end of each, else with zeros for it."""
    if mask.prefix:
        return values.reshape(-1, row)[:, : mask.prefix]
    return np.where(np.asarray(mask.is_real), values, 0).reshape(-1, row)


def _gathered(source: np.ndarray, numbers: Array, length: int) -> np.ndarray:
    """A view of the source, a digit of a place for each axis; a copy where places go beyond it, as padding does."""
    offset, *rest = np.asarray(numbers).tolist()
    layout = _layout(tuple(rest), length)
    if layout.is_short or offset + layout.last >= len(source):
        return _clipped(source, offset, layout, length)
    step = source.itemsize
    steps = [stride * step for stride in layout.strides]
    view = np.ndarray(layout.sizes, source.dtype, np.ascontiguousarray(source), offset * step, steps)
    view.flags.writeable = False
    return view


class _Layout(NamedTuple):
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    last: int
    """The last place, from the first one on."""
    is_short: bool
    """Whether the digits make more places than are wanted."""


@lru_cache(maxsize=1 << 14)
def _layout(numbers: tuple[int, ...], length: int) -> _Layout:
    """The digits that a geometry tells of, but for its offset."""
    shifts, strides = (*numbers[:4], 0), numbers[4:]
    sizes = [max(1, length >> shifts[0])]
    sizes += [1 << (before - after) for before, after in zip(shifts[:-1], shifts[1:], strict=True)]
    kept = [own for own in zip(sizes, strides, strict=True) if own[0] > 1] or [(1, 1)]
    last = sum((size - 1) * stride for size, stride in kept)
    return _Layout(
        tuple(size for size, _ in kept), tuple(stride for _, stride in kept), last, 1 << shifts[0] > length
    )


def _clipped(source: np.ndarray, offset: int, layout: _Layout, length: int) -> np.ndarray:
    places = np.full((), offset)
    for size, stride in zip(layout.sizes, layout.strides, strict=True):
        places = places[..., None] + np.arange(size) * stride
    return np.take(source, places.reshape(-1)[:length], mode="clip")
