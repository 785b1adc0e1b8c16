"""Layers of equal shapes side by side, as the evaluators read them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import jax
import numpy as np

from jaxprune.language.axes import Type
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import CLASS_SIZES, View
from jaxprune.scoring.graph import Node
from jaxprune.scoring.leaves import axis_sizes, moment_values, operand_value, value_shape
from jaxprune.scoring.set_statistics import ClassRows, class_rows
from jaxprune.types import Array


@dataclass(frozen=True)
class LayerBatchShape:
    """What is known of a group of layers without its arrays; equal for networks that are alike."""

    start: int
    """Number of the first channel among those of all groups."""
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
        """K."""
        return len(self.class_counts)

    @property
    def width(self) -> int:
        """Channels of all members together."""
        return self.num_members * self.num_channels

    @property
    def rows(self) -> ClassRows:
        """Which rows of the sample are of which class."""
        return class_rows(self.class_counts)

    def axes(self, type: Type, view: View) -> tuple[int, ...]:
        """The true sizes of the axes of a type."""
        sizes = dict(self.full if view == "full" else self.sample)
        return value_shape(type, sizes)

    def entries(self, step: Node) -> int:
        """Of a step's value for one member, class and channel."""
        return math.prod(self.axes(step.type, step.view))


class LayerBatch:
    """Members of equal shapes, one layer, several alike, or stacked networks, and their values in NumPy.

    Args:
      shape: of the group.
      members: operands, none of them stacked.
    """

    def __init__(self, shape: LayerBatchShape, members: tuple[Operands, ...]) -> None:
        self.shape, self.dtype = shape, members[0].dtype
        self._members = members
        self._found: dict[Hashable, np.ndarray] = {}
        self._moments: dict[View, Mapping[str, Array]] = {}

    def leaf(self, step: Node) -> np.ndarray:
        """[M, K or 1, C or 1, *axes] the value of a step without inputs."""
        if step.kind == "literal":
            return np.full((1, 1, 1), step.key[0].value, self.dtype)
        if step.kind == "moment" or step.name in CLASS_SIZES:
            if step.view not in self._moments:
                self._moments[step.view] = moment_values(np, self._members, step.view)
            return self._contiguous((step.view, step.name), self._moments[step.view][step.name])
        if step.name not in self._found:
            with jax.enable_x64(self.dtype == np.float64):  # a thread does not know what its caller enabled
                value = operand_value(np, self._members, step.name)
            assert value is not None  # functions whose operands are missing have been refused
            return self._contiguous(step.name, value)
        return self._found[step.name]

    def _contiguous(self, key: Hashable, value: Array) -> np.ndarray:
        if key not in self._found:
            self._found[key] = np.ascontiguousarray(value)
        return self._found[key]


def batch_layers(
    layers: Sequence[Operands], most_channels: int | None = None
) -> tuple[list[tuple[LayerBatchShape, tuple[Operands, ...]]], list[list[int]], int]:
    """All members of all layers in groups of equal shapes.

    Args:
      layers: operands, stacked or not.
      most_channels: of a group, unless one layer alone has more; None means any number.

    Returns:
      (shape and members of each group, for each layer the number of the first channel of each of its members, the
      number of channels).
    """
    alike: dict[Hashable, list[tuple[int, Operands]]] = {}
    for number, one in enumerate(layers):
        for member in one.members():
            alike.setdefault(_signature(member), []).append((number, member))
    groups: list[tuple[LayerBatchShape, tuple[Operands, ...]]] = []
    starts: list[list[int]] = [[] for _ in layers]
    channel = 0
    for own in alike.values():
        first = own[0][1]
        sizes = [tuple(axis_sizes(first, view).items()) for view in get_args(View)]
        at_once = len(own) if most_channels is None else max(1, most_channels // first.num_channels)
        for begin in range(0, len(own), at_once):
            part = own[begin : begin + at_once]
            shape = LayerBatchShape(channel, len(part), first.num_channels, first.class_counts, *sizes)
            groups.append((shape, tuple(one for _, one in part)))
            for number, one in part:
                starts[number].append(channel)
                channel += one.num_channels
    return groups, starts, channel


def _signature(one: Operands) -> Hashable:
    """Equal for operands that can stand side by side."""
    gradients = one.gradients
    present = [one.outgoing is None, one.gamma is None, one.beta is None, *sorted(one.extras)]
    present += [None] if gradients is None else [each is None for each in gradients]
    sizes = [*axis_sizes(one, "full").items(), *axis_sizes(one, "sample").items()]
    return (one.class_counts, one.num_channels, one.sample_is_full, *present, *sizes)
