"""Operands as arrays [M, K or 1, C or 1, *axes of their type], of one layer or of several of equal shape side by side.

M counts members: layers of equal shape, or stacked networks. K counts classes and C channels; either axis has size 1
where all classes or channels have the same value. Arrays are NumPy's or JAX's, in their true shapes.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import jax
import numpy as np

from jaxprune.language.axes import Type, slice_bounds, slice_range
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.moments import Moments
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import CLASS_SIZES, View
from jaxprune.scoring.graph import Node
from jaxprune.scoring.set_statistics import BlockedStatistics, ClassRows, SetStatistics, class_rows
from jaxprune.types import Array, Namespace

_LARGE_BYTES = 1 << 23
"""Layers whose means of classes take more than this are not copied to stand side by side."""


@dataclass(frozen=True)
class LayerBatchShape:
    """What is known of a batch of layers without their arrays; equal for networks of equal shapes."""

    start: int
    """Number of the first channel among those of all batches."""
    num_members: int
    num_channels: int
    """Of each member."""
    class_counts: tuple[int, ...]
    full: tuple[tuple[str, int], ...]
    """(axis, size) pairs where functions read all calibration examples."""
    sample: tuple[tuple[str, int], ...]
    """The same where they read the sample."""

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_counts)

    @property
    def width(self) -> int:
        """Channels of all members together."""
        return self.num_members * self.num_channels

    @property
    def rows(self) -> ClassRows:
        """Which rows of the sample belong to which class."""
        return class_rows(self.class_counts)

    def axes(self, type: Type, view: View) -> tuple[int, ...]:
        """Returns the true sizes of the axes of a type.

        Args:
          type: of a value.
          view: where the value reads activations.
        """
        return value_shape(type, dict(self.full if view == "full" else self.sample))

    def entries(self, node: Node) -> int:
        """Counts the entries of a node's value for one member, class and channel."""
        return math.prod(self.axes(node.type, node.view))


class LayerBatch:
    """Layers of equal shape side by side, or stacked networks, and the values of their operands in NumPy.

    Args:
      shape: of the batch.
      members: operands, none of them stacked.
    """

    def __init__(self, shape: LayerBatchShape, members: tuple[Operands, ...]) -> None:
        self.shape, self.dtype = shape, members[0].dtype
        self._members = members
        self._leaves: dict[Hashable, np.ndarray] = {}
        self._moments: dict[View, Mapping[str, Array]] = {}

    def leaf(self, node: Node) -> np.ndarray:
        """Returns [M, K or 1, C or 1, *axes] the value of a node without inputs, contiguous and cached."""
        if node.kind == "literal":
            return np.full((1, 1, 1), node.key[0].value, self.dtype)
        is_moment = node.kind == "moment" or node.name in CLASS_SIZES
        key = (node.view, node.name) if is_moment else node.name
        if key not in self._leaves:
            if is_moment and node.view not in self._moments:
                self._moments[node.view] = moment_values(np, self._members, node.view)
            moments = self._moments[node.view] if is_moment else {}
            with jax.enable_x64(self.dtype == np.float64):  # a thread does not know what its caller enabled
                value = moments[node.name] if is_moment else operand_value(np, self._members, node.name)
            assert value is not None  # functions whose operands are missing have been refused
            self._leaves[key] = np.ascontiguousarray(value)
        return self._leaves[key]


def batch_layers(
    layers: Sequence[Operands], max_channels: int | None = None
) -> tuple[list[tuple[LayerBatchShape, tuple[Operands, ...]]], list[list[int]], int]:
    """Sorts all members of all layers into batches of equal shapes.

    Args:
      layers: operands, stacked or not.
      max_channels: of a batch, unless a single layer has more; None means any number. With it, layers of large moments
        stand alone.

    Returns:
      (shape and members of each batch, for each layer the number of the first channel of each of its members, the
      number of channels).
    """
    by_shape: dict[Hashable, list[tuple[int, Operands]]] = {}
    for number, layer in enumerate(layers):
        for member in layer.members():
            by_shape.setdefault(_signature(member), []).append((number, member))
    batches: list[tuple[LayerBatchShape, tuple[Operands, ...]]] = []
    starts: list[list[int]] = [[] for _ in layers]
    channel = 0
    for members in by_shape.values():
        first = members[0][1]
        sizes = [tuple(axis_sizes(first, view).items()) for view in get_args(View)]
        at_once = len(members) if max_channels is None else max(1, max_channels // first.num_channels)
        if max_channels is not None and first.moments.offset.nbytes > _LARGE_BYTES:
            at_once = 1
        for begin in range(0, len(members), at_once):
            part = members[begin : begin + at_once]
            shape = LayerBatchShape(channel, len(part), first.num_channels, first.class_counts, *sizes)
            batches.append((shape, tuple(member for _, member in part)))
            for number, member in part:
                starts[number].append(channel)
                channel += member.num_channels
    return batches, starts, channel


def moment_values(xp: Namespace, members: Sequence[Operands], view: View) -> Mapping[str, Array]:
    """Returns class sizes and moments by name: `N`, `mean(P)`, `mean_samples(X)` and so on, each computed when read.

    Args:
      xp: `numpy` or `jax.numpy`.
      members: operands of equal shapes.
      view: whether the moments are those of all examples or of the sample.
    """
    own = [moments_of(member, view) for member in members]
    return moments_by_name(xp, jax.tree.map(lambda *leaves: _stack(xp, leaves), *own))


def moments_of(operands: Operands, view: View) -> Moments:
    """Returns the moments of all examples, or of the sample.

    Args:
      operands: of one layer.
      view: which examples count.
    """
    return operands.moments if view == "full" else operands.sample_moments


def moments_by_name(xp: Namespace, moments: Moments) -> Mapping[str, Array]:
    """Does what `moment_values` does, from moments with a leading member axis.

    Args:
      xp: `numpy` or `jax.numpy`.
      moments: of members of equal shapes.
    """
    total = moments.count.sum(axis=-1, keepdims=True)
    sizes = {"N": moments.count, "NQ": total - moments.count, "NX": total}
    statistics = BlockedStatistics(moments) if xp is np else SetStatistics(xp, moments, lambda: moments.m2)
    return ChainMap(
        {name: size[..., None] for name, size in sizes.items()}, cast(dict[str, Array], statistics)
    )


def operand_value(xp: Namespace, members: Sequence[Operands], name: str) -> Array | None:
    """Returns the value of an operand that is not a moment, on all rows, or None where the layers do not have it.

    Args:
      xp: `numpy` or `jax.numpy`.
      members: operands of equal shapes.
      name: of the operand.

    Returns:
      [M, K or 1, C or 1, *axes].

    Raises:
      ValueError: if a registered operand has not the shape its type promises.
    """
    if OPERANDS[name].read is not None:
        return _registered_value(xp, members, name)
    arrays = []
    for member in members:
        gradients = member.gradients or Gradients()
        by_name = {
            "WI": member.filters,
            "W": member.bank,
            "WO": member.outgoing,
            "GW": gradients.weights,
            "X": member.samples,
            "GX": gradients.samples,
            "gamma": member.gamma,
            "beta": member.beta,
        }
        arrays.append(by_name[name])  # [..., C]
    if arrays[0] is None:
        return None
    stacked = _stack(xp, arrays)
    return stacked[:, None, None] if name == "W" else xp.moveaxis(stacked, -1, 1)[:, None]


def _registered_value(xp: Namespace, members: Sequence[Operands], name: str) -> Array | None:
    """Reads a registered operand member by member."""
    operand, values = OPERANDS[name], []
    assert operand.read is not None
    for member in members:
        value = operand.read(member)
        if value is None:
            return None
        num_batch_axes = 2 if operand.per_class else 1
        batch_axes = (member.num_channels, member.num_classes)[:num_batch_axes]
        promised = [
            (*batch_axes, *value_shape(operand.type, axis_sizes(member, view))) for view in get_args(View)
        ]
        if np.shape(value) not in promised:
            axes = ", ".join(("C", "K")[:num_batch_axes] + operand.type)
            raise ValueError(
                f"operand {name} must be read as [{axes}] with {member.num_channels} channels, "
                f"got shape {np.shape(value)}. Check what its `read` returns."
            )
        values.append(xp.asarray(value, dtype=member.dtype))
    stacked = _stack(xp, values)
    return xp.swapaxes(stacked, 1, 2) if operand.per_class else stacked[:, None]


def axis_sizes(operands: Operands, view: View) -> dict[str, int]:
    """Returns the size of every axis of one layer, with `K` classes and `C` channels of the layer.

    Args:
      operands: of one layer, stacked or not.
      view: which examples count.
    """
    moments = operands.moments if view == "full" else operands.sample_moments
    counts = operands.class_counts
    return {
        "D": moments.pivot.shape[-2],
        "NX": sum(counts),
        "N": max(counts),
        "NQ": sum(counts) - min(counts),
        "F": operands.filters.shape[-2],
        "C": operands.bank.shape[-1],
        "K": len(counts),
        "O": 0 if operands.outgoing is None else operands.outgoing.shape[-2],
    }


def value_shape(type: Type, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape of a value for one channel and one class.

    Args:
      type: of the value.
      sizes: of the axes, as `axis_sizes` returns them.

    Example:
      >>> value_shape(("N", "D[0:4]"), {"N": 5, "D": 16})
      (5, 8)
    """
    shape = []
    for axis in type:
        part = slice_range(axis)
        start, stop = (0, sizes[axis]) if part is None else slice_bounds(sizes["D"], *part)
        shape.append(stop - start)
    return tuple(shape)


def _stack(xp: Namespace, arrays: Sequence[Array | None]) -> Array:
    """Joins arrays along a new leading axis; a single array is not copied."""
    if len(arrays) == 1:
        return xp.asarray(arrays[0])[None]
    return xp.stack([xp.asarray(array) for array in arrays])


def _signature(operands: Operands) -> Hashable:
    """Returns what is equal for operands that can stand side by side."""
    optional = (operands.outgoing, operands.gamma, operands.beta, *(operands.gradients or Gradients()))
    return (
        operands.class_counts,
        operands.num_channels,
        operands.sample_is_full,
        *(array is None for array in optional),
        *sorted(operands.extras),
        *(tuple(axis_sizes(operands, view).items()) for view in get_args(View)),
    )
