"""Operands as values: [M, K or 1, C or 1, *axes of their type] arrays, of NumPy or JAX, in their true shapes.

M counts members side by side: layers of equal shapes, or stacked networks.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import cast, get_args

import jax
import numpy as np

from jaxprune.language.axes import Type, slice_bounds, slice_range
from jaxprune.language.vocabulary import OPERANDS, Operand
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.moments import Moments
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import View
from jaxprune.scoring.set_statistics import SetStatistics
from jaxprune.types import Array, Namespace


def moment_values(xp: Namespace, members: Sequence[Operands], view: View) -> Mapping[str, Array]:
    """Class sizes and all moments of members: `N`, `mean(P)`, `mean_samples(X)` and so on."""
    moments = stacked_moments(xp, members, view)
    total = moments.count.sum(axis=-1, keepdims=True)
    sizes = {"N": moments.count, "NQ": total - moments.count, "NX": total}
    statistics = SetStatistics(xp, moments, lambda: moments.m2)
    return ChainMap(
        {name: size[..., None] for name, size in sizes.items()}, cast(dict[str, Array], statistics)
    )


def operand_value(xp: Namespace, members: Sequence[Operands], name: str) -> Array | None:
    """The value of an operand that is no moment, on all rows, of members of equal shapes; None where they have none."""
    if OPERANDS[name].read is not None:
        return registered_value(xp, members, name)
    found = [_channels_last(one, name) for one in members]
    if found[0] is None:
        return None
    stacked = _stack(xp, found)
    return stacked[:, None, None] if name == "W" else xp.moveaxis(stacked, -1, 1)[:, None]


def _channels_last(operands: Operands, name: str) -> Array | None:
    """[..., C] what a layer has of a built-in operand."""
    gradients = operands.gradients or Gradients()
    return {
        "WI": operands.filters,
        "W": operands.bank,
        "WO": operands.outgoing,
        "GW": gradients.weights,
        "X": operands.samples,
        "GX": gradients.samples,
        "gamma": operands.gamma,
        "beta": operands.beta,
    }[name]


def registered_value(xp: Namespace, members: Sequence[Operands], name: str) -> Array | None:
    """The value of a registered operand, read member by member, or None where the layer has none.

    Raises:
      ValueError: if its array has not the shape its type promises.
    """
    record, found = OPERANDS[name], []
    assert record.read is not None
    for one in members:
        value = record.read(one)
        if value is None:
            return None
        batch = 2 if record.per_class else 1
        wanted = (one.num_channels, one.num_classes)[:batch]
        shape = np.shape(value)
        if (
            len(shape) != batch + len(record.type)
            or shape[:batch] != wanted
            or not _suits(shape[batch:], record, one)
        ):
            axes = ", ".join(("C", "K")[:batch] + record.type)
            raise ValueError(
                f"operand {name} must be read as [{axes}] with {one.num_channels} channels, "
                f"got shape {shape}. Check what its `read` returns."
            )
        found.append(xp.asarray(value, dtype=one.dtype))
    joined = _stack(xp, found)
    return xp.swapaxes(joined, 1, 2) if record.per_class else joined[:, None]


def _suits(shape: tuple[int, ...], record: Operand, operands: Operands) -> bool:
    """Whether axes have the sizes that the type of a registered operand promises, in one of the views."""
    sizes = (axis_sizes(operands, view) for view in get_args(View))
    return any(shape == value_shape(record.type, own) for own in sizes)


def stacked_moments(xp: Namespace, members: Sequence[Operands], view: View) -> Moments:
    """The moments of members of equal shapes with a leading member axis."""
    own = [one.moments if view == "full" else one.sample_moments for one in members]
    return jax.tree.map(lambda *leaves: _stack(xp, leaves), *own)


def _stack(xp: Namespace, arrays: Sequence[Array | None]) -> Array:
    """Joined along a new leading axis; of one array nothing is copied."""
    return (
        xp.asarray(arrays[0])[None] if len(arrays) == 1 else xp.stack([xp.asarray(each) for each in arrays])
    )


def axis_sizes(operands: Operands, view: View) -> dict[str, int]:
    """The size of every axis of one layer, with `K` classes and `C` channels of the layer."""
    moments = operands.moments if view == "full" else operands.sample_moments
    counts = operands.class_counts
    sizes = {
        "D": moments.pivot.shape[-2],
        "NX": sum(counts),
        "N": max(counts),
        "NQ": sum(counts) - min(counts),
    }
    sizes |= {"F": operands.filters.shape[-2], "C": operands.bank.shape[-1], "K": len(counts)}
    return sizes | {"O": 0 if operands.outgoing is None else operands.outgoing.shape[-2]}


def value_shape(type: Type, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a value for one channel and one class.

    Example:
      >>> value_shape(("N", "D[0:4]"), {"N": 5, "D": 16})
      (5, 8)
    """
    return tuple(_axis_size(axis, sizes) for axis in type)


def _axis_size(axis: str, sizes: Mapping[str, int]) -> int:
    part = slice_range(axis)
    if part is None:
        return sizes[axis]
    start, stop = slice_bounds(sizes["D"], *part)
    return stop - start
