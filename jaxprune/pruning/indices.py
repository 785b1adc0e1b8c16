"""Kept indices applied to arrays: gathers for slimming and zero masks for masking, both along factored axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning.groups import Layout, Structure
from jaxprune.types import Array, Kept

KeptIndices = Mapping[str, Sequence[int] | Array] | Kept
"""Group name -> kept indices, as a mapping or as the pairs of `types.Kept`; indices may be traced arrays."""


def index_arrays(structure: Structure, kept: KeptIndices) -> dict[str, Array]:
    """Kept indices as integer arrays, checked against the groups as far as their values are known.

    Returns:
      Group name -> [kept] int32; groups that `kept` leaves out are left out here too: they stay whole.

    Raises:
      ValueError: for unknown groups, no index at all, or indices out of order or range. Traced indices are not
        looked at.
    """
    pairs: Iterable[tuple[str, Sequence[int] | Array]] = kept.items() if isinstance(kept, Mapping) else kept
    result: dict[str, Array] = {}
    problems: list[str] = []
    for name, values in pairs:
        group = structure.groups.get(name)
        if group is None:
            problems.append(f"no group is called {name!r} (groups: {', '.join(structure.groups)})")
            continue
        if isinstance(values, jax.core.Tracer):
            result[name] = values
            continue
        index = np.asarray(values, np.int32)
        if index.ndim != 1 or not 1 <= index.size <= group.size:
            problems.append(f"{name} needs between 1 and {group.size} kept indices, got shape {index.shape}")
        elif (np.diff(index) <= 0).any() or index[0] < 0 or index[-1] >= group.size:
            problems.append(
                f"{name} needs rising indices between 0 and {group.size - 1}, got {index.tolist()}"
            )
        result[name] = index
    if problems:
        raise ValueError(f"needs kept indices that fit the network's groups: {'; '.join(problems)}.")
    return result


def gather(array: Array, layout: Layout, kept: Mapping[str, Array]) -> Array:
    """The array without the channels that are not kept; `layout` names the factors of each axis.

    Example:
      >>> rows = jnp.arange(6.0)[:, None]  # [h=3, c=2] flattened: channel 1 sits at 1, 3, 5
      >>> gather(rows, (((None, 3), ("conv", 2)), ()), {"conv": np.array([1])})[:, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    factors = [factor for axis in layout for factor in axis]
    if not any(name in kept for name, _ in factors):
        return array
    array = array.reshape([size for _, size in factors])
    for position, (name, _) in enumerate(factors):
        if name is not None and name in kept:
            if isinstance(array, np.ndarray):  # plain NumPy on the host compiles nothing
                array = np.take(array, np.asarray(kept[name]), axis=position)
            else:
                array = jnp.take(array, kept[name], axis=position)
    sizes = iter(array.shape)
    return array.reshape([prod(next(sizes) for _ in axis) for axis in layout])


def keep_mask(layout: Layout, kept: Mapping[str, Array]) -> Array:
    """True where an entry belongs to kept channels only, of the array's shape; NumPy unless an index is traced.

    Example:
      >>> keep_mask(((("conv", 3),),), {"conv": np.array([0, 2])})
      array([ True, False,  True])
    """
    factors = [factor for axis in layout for factor in axis]
    mask: Array = np.ones([size for _, size in factors], bool)
    for position, (name, size) in enumerate(factors):
        if name is not None and name in kept:
            line = _line(kept[name], size)
            mask = mask & line.reshape([size if axis == position else 1 for axis in range(len(factors))])
    return mask.reshape([prod(size for _, size in axis) for axis in layout])


def _line(index: Array, size: int) -> Array:
    if isinstance(index, np.ndarray):
        line = np.zeros(size, bool)
        line[index] = True
        return line
    return jnp.zeros(size, bool).at[index].set(True)
