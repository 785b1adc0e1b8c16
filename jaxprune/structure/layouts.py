"""Which channels sit where in an array, and the cuts that follow: gathers for slimming, zero masks for masking.

A layout is plain data, so everything here works on NumPy arrays, on JAX arrays and, where only values of indices are
traced and their number is known, inside `jax.jit` and `jax.vmap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.types import Array


class Field(NamedTuple):
    """The channels of one group along one axis of an array."""

    group: str
    """Name of the group."""
    channels: np.ndarray
    """int32 [axis length]: which channel of the group sits at each index, -1 where none of it does."""


Fields: TypeAlias = tuple[Field, ...]
"""The groups along one axis. An index stays iff, for every field, its channel is -1 or kept."""

Layout: TypeAlias = tuple[Fields, ...]
"""Per axis of an array its fields; `()` for an axis that is never cut."""

Term: TypeAlias = tuple[int, tuple[tuple[str, int], ...]]
"""(multiplicity, (group, size) ...): indices of an axis where each combination of channels sits equally often."""


def axis_keep(fields: Sequence[Field], length: int, kept: Mapping[str, Array]) -> Array:
    """True at the indices of an axis that stay; groups that `kept` leaves out stay whole.

    Args:
      fields: the groups along the axis.
      length: its length.
      kept: group -> kept channels, NumPy or traced.

    Returns:
      [length] bool, NumPy unless an index is traced.

    Example:
      >>> flattened = (Field("conv", np.array([0, 1, 0, 1])),)  # [h=2, c=2]
      >>> axis_keep(flattened, 4, {"conv": np.array([1])})
      array([False,  True, False,  True])
    """
    stays: Array = np.ones(length, bool)
    for group, channels in fields:
        if group in kept and length:
            stays = (
                stays & _kept_table(kept[group], int(channels.max()) + 1)[channels]
            )  # -1 reads the last entry
    return stays


def gather(array: Array, layout: Layout, kept: Mapping[str, Array]) -> Array:
    """The array without the indices that are not kept.

    Args:
      array: NumPy or JAX array of the layout's shape.
      layout: per axis its fields.
      kept: group -> sorted kept channels; groups left out stay whole. Traced channels are fine where their number
        decides the number of indices (see `count_kept`).

    Returns:
      The smaller array; `array` itself if no group of the layout is in `kept`.

    Raises:
      ValueError: if channels are traced and their number alone does not decide the new shape.

    Example:
      >>> rows = jnp.arange(6.0)[:, None]  # [h=3, c=2] flattened: channel 1 sits at 1, 3, 5
      >>> gather(rows, ((Field("conv", np.array([0, 1, 0, 1, 0, 1])),), ()), {"conv": np.array([1])})[:, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    for axis, fields in enumerate(layout):
        if not any(field.group in kept for field in fields):
            continue
        index = _positions(fields, array.shape[axis], kept)
        if isinstance(array, np.ndarray) and isinstance(index, np.ndarray):  # on the host nothing compiles
            array = np.take(array, index, axis=axis)
        else:
            array = jnp.take(array, index, axis, mode="clip", unique_indices=True, indices_are_sorted=True)
    return array


def keep_mask(layout: Layout, shape: Sequence[int], kept: Mapping[str, Array]) -> Array:
    """True where an entry belongs to kept channels only; NumPy unless an index is traced.

    Example:
      >>> keep_mask(((Field("conv", np.arange(3)),),), (3,), {"conv": np.array([0, 2])})
      array([ True, False,  True])
    """
    stays: Array = np.ones(tuple(shape), bool)
    for axis, fields in enumerate(layout):
        if any(field.group in kept for field in fields):
            line = axis_keep(fields, shape[axis], kept)
            stays = stays & line.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return stays


def count_kept(fields: Sequence[Field], length: int, counts: Mapping[str, int]) -> int:
    """How many indices of an axis stay when so many channels of each group do.

    Args:
      fields: the groups along the axis; what was found out about them is remembered by identity.
      length: the axis's length.
      counts: group -> kept channels; groups left out stay whole.

    Raises:
      ValueError: if counts do not decide it, because some channels sit at more indices than others.

    Example:
      >>> joined = (Field("a", np.array([0, 1, 2, -1, -1])), Field("b", np.array([-1, -1, -1, 0, 1])))
      >>> count_kept(joined, 5, {"a": 2, "b": 1})
      3
    """
    return sum(
        times * prod(counts.get(group, size) for group, size in groups)
        for times, groups in axis_terms(fields, length)
    )


def axis_terms(fields: Sequence[Field], length: int) -> tuple[Term, ...]:
    """The sum of products of kept counts that says how many indices of an axis stay; see `count_kept`.

    Example:
      >>> axis_terms((Field("conv", np.array([0, 1, 0, 1, -1])),), 5)
      ((1, ()), (2, (('conv', 2),)))
    """
    return _terms(_Same(tuple(fields), length)) if fields else ((length, ()),)


class _Same:
    """Fields as a key of a cache: equal only to the very same arrays, which it keeps alive."""

    __slots__ = ("fields", "identity", "length")

    def __init__(self, fields: Fields, length: int) -> None:
        self.fields, self.length = fields, length
        self.identity = (length, *((group, id(channels)) for group, channels in fields))

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.identity == other.identity


@lru_cache(maxsize=4096)
def _terms(key: _Same) -> tuple[Term, ...]:
    if not key.length:
        return ()
    columns = _columns(key.fields)
    sizes = [int(channels.max()) + 1 for _, channels in columns]
    present = np.zeros(key.length, np.int64)
    for number, (_, channels) in enumerate(columns):
        present |= (channels >= 0).astype(np.int64) << number
    terms: list[Term] = []
    for pattern in np.unique(present).tolist():
        chosen = [number for number in range(len(columns)) if pattern >> number & 1]
        positions = np.flatnonzero(present == pattern)
        groups = tuple((columns[number].group, sizes[number]) for number in chosen)
        combinations = np.zeros(len(positions), np.int64)
        for number in chosen:
            combinations = combinations * sizes[number] + columns[number].channels[positions]
        total = prod(size for _, size in groups)
        times = len(positions) // total
        if not times or (np.bincount(combinations, minlength=total) != times).any():
            raise ValueError(
                "needs channels that sit equally often on an axis, so that their number decides how many indices "
                f"stay, but on an axis of {key.length} those of {' x '.join(name for name, _ in groups)} "
                f"({' x '.join(str(size) for _, size in groups)}) share {len(positions)} indices unevenly. "
                "Give which channels are kept, as NumPy indices outside of jit, instead of how many."
            )
        terms.append((times, groups))
    return tuple(terms)


def _columns(fields: Fields) -> list[Field]:
    """Fields of one group put together where they do not contradict each other."""
    columns: list[Field] = []
    for group, channels in fields:
        if (channels < 0).all():
            continue
        for number, (name, known) in enumerate(columns):
            if name == group and ((known < 0) | (channels < 0) | (known == channels)).all():
                columns[number] = Field(group, np.maximum(known, channels))
                break
        else:
            columns.append(Field(group, channels))
    return columns


def _positions(fields: Fields, length: int, kept: Mapping[str, Array]) -> Array:
    stays = axis_keep(fields, length, kept)
    if isinstance(stays, np.ndarray):
        return np.flatnonzero(stays)
    counts = {field.group: kept[field.group].shape[0] for field in fields if field.group in kept}
    return jnp.nonzero(stays, size=count_kept(fields, length, counts))[0]


def _kept_table(index: Array, size: int) -> Array:
    """[size + 1] bool: is a channel kept? The last entry, which -1 reads, is True."""
    if isinstance(index, jax.core.Tracer):
        return jnp.zeros(size + 1, bool).at[index].set(True, mode="drop").at[size].set(True)
    index = np.asarray(index)
    table = np.zeros(size + 1, bool)
    table[index[index < size]] = True
    table[size] = True
    return table
