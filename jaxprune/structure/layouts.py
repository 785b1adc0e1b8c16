"""Layouts: which channels of which groups lie where in an array, and how arrays are cut or masked accordingly.

Slimming gathers the indices that stay (`gather`), masking zeroes the others (`keep_mask`), and the sizes of a slim
network follow from numbers of kept channels alone (`count_kept`). Layouts are plain data. All functions work on NumPy
and JAX arrays, and inside `jax.jit` and `jax.vmap`, where the numbers of the kept channels are traced but how many
there are is known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    """int32 [axis length]: which channel of the group lies at each index, -1 where none does."""


Fields: TypeAlias = tuple[Field, ...]
"""All fields of one axis. An index stays if and only if the channel of every field there is -1 or kept."""

Layout: TypeAlias = tuple[Fields, ...]
"""The fields of each axis of an array; `()` for an axis that is never cut."""

Term: TypeAlias = tuple[int, tuple[tuple[str, int], ...]]
"""(times, ((group, size), ...)): each combination of channels of these groups lies at so many indices of an axis."""


def axis_keep(fields: Sequence[Field], length: int, kept: Mapping[str, Array]) -> Array:
    """Returns which indices of an axis stay.

    Args:
      fields: the fields of the axis.
      length: its length.
      kept: group -> kept channels, NumPy or traced; groups left out stay whole.

    Returns:
      [length] bool, NumPy unless channels are traced.

    Example:
      >>> flattened = (Field("conv", np.array([0, 1, 0, 1])),)  # [h=2, c=2]
      >>> axis_keep(flattened, 4, {"conv": np.array([1])})
      array([False,  True, False,  True])
    """
    is_kept: Array = np.ones(length, bool)
    for group, channels in fields:
        if group in kept and length:
            channel_is_kept = _kept_table(kept[group], int(channels.max()) + 1)
            is_kept = is_kept & channel_is_kept[channels]  # -1 reads the last entry, which is True
    return is_kept


def gather(array: Array, layout: Layout, kept: Mapping[str, Array]) -> Array:
    """Returns an array without the indices of channels that are not kept.

    Args:
      array: NumPy or JAX array of the layout's shape.
      layout: the fields of each axis.
      kept: group -> sorted kept channels; groups left out stay whole. They may be traced if how many there are decides
        the new shape (see `count_kept`).

    Returns:
      The smaller array; `array` itself if no group of the layout is in `kept`.

    Raises:
      ValueError: if channels are traced and how many there are does not decide the new shape.

    Example:
      >>> rows = jnp.arange(6.0)[:, None]  # [h=3, c=2] flattened: channel 1 lies at 1, 3, 5
      >>> gather(rows, ((Field("conv", np.array([0, 1, 0, 1, 0, 1])),), ()), {"conv": np.array([1])})[:, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    for axis, fields in enumerate(layout):
        if not any(field.group in kept for field in fields):
            continue
        length = array.shape[axis]
        is_kept = axis_keep(fields, length, kept)
        if isinstance(is_kept, np.ndarray):
            index: Array = np.flatnonzero(is_kept)
        else:
            counts = {field.group: kept[field.group].shape[0] for field in fields if field.group in kept}
            index = jnp.nonzero(is_kept, size=count_kept(fields, length, counts))[0]
        if isinstance(array, np.ndarray) and isinstance(index, np.ndarray):  # NumPy compiles nothing
            array = np.take(array, index, axis=axis)
        else:
            array = jnp.take(array, index, axis, mode="clip", unique_indices=True, indices_are_sorted=True)
    return array


def keep_mask(layout: Layout, shape: Sequence[int], kept: Mapping[str, Array]) -> Array:
    """Returns which entries of an array stay.

    Args:
      layout: the fields of each axis.
      shape: shape of the array.
      kept: group -> kept channels, NumPy or traced; groups left out stay whole.

    Returns:
      bool of the given shape, NumPy unless channels are traced.

    Example:
      >>> keep_mask(((Field("conv", np.arange(3)),),), (3,), {"conv": np.array([0, 2])})
      array([ True, False,  True])
    """
    is_kept: Array = np.ones(tuple(shape), bool)
    for axis, fields in enumerate(layout):
        if any(field.group in kept for field in fields):
            along_axis = [-1 if other == axis else 1 for other in range(len(shape))]
            is_kept = is_kept & axis_keep(fields, shape[axis], kept).reshape(along_axis)
    return is_kept


def count_kept(fields: Sequence[Field], length: int, counts: Mapping[str, int]) -> int:
    """Returns how many indices of an axis stay, from how many channels of each group are kept.

    Args:
      fields: the fields of the axis. Results for the same arrays are cached.
      length: the axis's length.
      counts: group -> number of kept channels; groups left out stay whole.

    Returns:
      The number of indices.

    Raises:
      ValueError: if it depends on which channels are kept, because some lie at more indices than others.

    Example:
      >>> joined = (Field("a", np.array([0, 1, 2, -1, -1])), Field("b", np.array([-1, -1, -1, 0, 1])))
      >>> count_kept(joined, 5, {"a": 2, "b": 1})
      3
    """
    return sum(
        times * prod(counts.get(group, size) for group, size in groups)
        for times, groups in axis_terms(fields, length)
    )


def holds_any(axes: Iterable[Fields], among: Collection[str] | None) -> bool:
    """Tells whether channels of one of some groups lie on any of these axes; None stands for all groups and for none.

    Example:
      >>> layout = ((), (Field("conv", np.arange(3)),))
      >>> holds_any(layout, {"conv"}), holds_any(layout, {"dense"}), holds_any(layout, None)
      (True, False, True)
    """
    return among is None or any(field.group in among for fields in axes for field in fields)


def axis_terms(fields: Sequence[Field], length: int) -> tuple[Term, ...]:
    """Returns the number of indices that stay as a sum of products of numbers of kept channels.

    Args:
      fields: the fields of the axis.
      length: its length.

    Returns:
      One term for each set of groups that share indices; see `Term` and `count_kept`.

    Raises:
      ValueError: as `count_kept` does.

    Example:
      >>> axis_terms((Field("conv", np.array([0, 1, 0, 1, -1])),), 5)
      ((1, ()), (2, (('conv', 2),)))
    """
    return _cached_terms(_FieldsKey(tuple(fields), length)) if fields else ((length, ()),)


class _FieldsKey:
    """The fields of an axis as the key of a cache: equal only to a key with the same array objects, kept alive here."""

    __slots__ = ("fields", "identity", "length")

    def __init__(self, fields: Fields, length: int) -> None:
        self.fields, self.length = fields, length
        self.identity = (length, *((group, id(channels)) for group, channels in fields))

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FieldsKey) and self.identity == other.identity


@lru_cache(maxsize=4096)
def _cached_terms(key: _FieldsKey) -> tuple[Term, ...]:
    if not key.length:
        return ()
    fields = _joined_fields(key.fields)
    sizes = [int(channels.max()) + 1 for _, channels in fields]
    present = np.zeros(key.length, np.int64)  # bit i of an index says whether a channel of field i lies there
    for bit, (_, channels) in enumerate(fields):
        present |= (channels >= 0).astype(np.int64) << bit
    terms: list[Term] = []
    for pattern in np.unique(present).tolist():
        chosen = [number for number in range(len(fields)) if pattern >> number & 1]
        indices = np.flatnonzero(present == pattern)
        groups = tuple((fields[number].group, sizes[number]) for number in chosen)
        combinations = np.zeros(len(indices), np.int64)
        for number in chosen:
            combinations = combinations * sizes[number] + fields[number].channels[indices]
        num_combinations = prod(size for _, size in groups)
        times = len(indices) // num_combinations
        if not times or (np.bincount(combinations, minlength=num_combinations) != times).any():
            raise ValueError(
                "needs channels that sit equally often on an axis, so that their number decides how many indices "
                f"stay, but on an axis of {key.length} those of {' x '.join(name for name, _ in groups)} "
                f"({' x '.join(str(size) for _, size in groups)}) share {len(indices)} indices unevenly. "
                "Give which channels are kept, as NumPy indices outside of jit, instead of how many."
            )
        terms.append((times, groups))
    return tuple(terms)


def _joined_fields(fields: Fields) -> list[Field]:
    """The fields of an axis, with those of one group joined unless they disagree about an index."""
    joined: list[Field] = []
    for group, channels in fields:
        if (channels < 0).all():
            continue
        for number, (name, others) in enumerate(joined):
            if name == group and ((others < 0) | (channels < 0) | (others == channels)).all():
                joined[number] = Field(group, np.maximum(others, channels))
                break
        else:
            joined.append(Field(group, channels))
    return joined


def _kept_table(kept: Array, size: int) -> Array:
    """[size + 1] bool: whether each channel is kept; the last entry, which channel -1 reads, is True."""
    if isinstance(kept, jax.core.Tracer):
        return jnp.zeros(size + 1, bool).at[kept].set(True, mode="drop").at[size].set(True)
    kept = np.asarray(kept)
    table = np.zeros(size + 1, bool)
    table[kept[kept < size]] = True
    table[size] = True
    return table
