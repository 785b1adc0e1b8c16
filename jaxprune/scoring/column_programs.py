"""Values that are no scalars, computed for a few classes and channels of one layer at a time and dropped again.

A *column* is some classes and channels of a layer, so many that the largest value in play stays small enough for the
cache and the budget. What several formulas share is computed once per column; only scalars are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, cast

import jax.numpy as jnp
import numpy as np

from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression, operand
from jaxprune.scoring.analysis import View, lanes_of, moment_answer
from jaxprune.scoring.kernels import (
    ELEMENTWISE,
    TINY_ENTRIES,
    Spec,
    cut_plane,
    cut_table,
    elementwise_kernel,
    finite_kernel,
    lane_kernel,
    pair_statistics,
    row_statistics,
    rows_kernel,
    slice_kernel,
)
from jaxprune.scoring.lanes import split_params
from jaxprune.scoring.layers import Layer
from jaxprune.scoring.twins import SetAnswer, set_answer, twin_of
from jaxprune.types import Array

Kind = Literal["value", "finite"]


class Item(NamedTuple):
    """What is wanted of every class and channel: a scalar, or whether all entries of a value are finite."""

    kind: Kind
    node: Expression
    view: View


class Piece(NamedTuple):
    """An item's values, flat, for some classes and channels of a layer."""

    item: Item
    layer: Layer
    first_class: int
    num_classes: int
    first_channel: int
    num_channels: int
    values: Array


class Place(NamedTuple):
    """Where a column lies."""

    layer: Layer
    classes: Classes
    on_device: tuple[Array, Array, Array]
    """First class, first channel, first lane."""


class Classes(NamedTuple):
    """Some classes, one after the other."""

    first: int
    number: int


class Planes(Protocol):
    """Where columns read scalars."""

    num_classes: int

    def plane(self, node: Expression, view: View) -> Array:
        """Flat [K, lanes] values of a scalar."""


class Extent(NamedTuple):
    """How many classes and channels a column has."""

    num_classes: int
    num_channels: int


class _Step(NamedTuple):
    run: Callable[..., object]
    """From the place and the inputs' values to a value."""
    inputs: tuple[int, ...]
    has_classes: bool
    has_channels: bool

    def is_new(self, is_first_class: bool, is_first_channel: bool) -> bool:
        """Whether a column needs the value again, given what changed since the last one."""
        return (is_first_class and (is_first_channel or self.has_channels)) or (
            not is_first_class and self.has_classes
        )


class ColumnProgram:
    """The steps that compute some items, in order, every shared value once.

    Args:
      layer: one of those with the signature that the program is for.
      extent: of a column.
      planes: scalars that the items read; they must be known.
    """

    def __init__(self, layer: Layer, extent: Extent, planes: Planes) -> None:
        self.layer, self.extent, self.planes = layer, extent, planes
        self._steps: list[_Step] = []
        self._slots: dict[object, int] = {}
        self._specs: dict[tuple[Expression, View], Spec] = {}
        self._outputs: list[tuple[Item, int, Spec, str]] = []

    def add(self, item: Item) -> None:
        """Takes up one more item."""
        answer = set_answer(item.node) if item.kind == "value" else None
        if answer is not None:
            slot = self._statistics(answer, item.view)
            spec = Spec(self.planes.num_classes, self.extent.num_channels, ())
            self._outputs.append((item, slot, spec, answer.name))
            return
        is_scalar = item.node.type == ()  # what the column sums up to, not what it reads
        slot = (self._operator if is_scalar else self.value)(item.node, item.view)
        spec = self.spec(item.node, item.view)
        if item.kind == "finite":
            slot = self._finite(item.node, item.view, slot)
            spec = Spec(spec.classes, spec.channels, ())
        self._outputs.append((item, slot, spec, ""))

    def run(self, layer: Layer, with_classes: bool) -> list[Piece]:
        """All columns of a layer, class by class or for no class in particular."""
        extent = self.extent
        users: dict[int, list[int]] = {}
        for index, step in enumerate(self._steps):
            for slot in step.inputs:
                users.setdefault(slot, []).append(index)
        outputs = {slot for _, slot, _, _ in self._outputs}
        dropped_after: dict[int, list[int]] = {}
        for slot, own in users.items():
            if slot not in outputs and all(self._is_remade(slot, user, with_classes) for user in own):
                dropped_after.setdefault(own[-1], []).append(slot)
        has_channels = any(step.has_channels for step in self._steps)
        classes = range(0, self.planes.num_classes, extent.num_classes) if with_classes else range(1)
        values: list[object] = [None] * len(self._steps)
        pieces: list[Piece] = []
        for channel in range(0, layer.num_channels if has_channels else 1, extent.num_channels):
            for first_class in classes:
                place = _place(layer, Classes(first_class, extent.num_classes), channel)
                for index, step in enumerate(self._steps):
                    if not step.is_new(first_class == 0, channel == 0):
                        continue
                    values[index] = step.run(place, *(values[slot] for slot in step.inputs))
                    for slot in dropped_after.get(index, ()):
                        values[slot] = None
                for item, slot, spec, name in self._outputs:
                    step = self._steps[slot]
                    if step.is_new(first_class == 0, channel == 0):
                        found = values[slot][name] if name else values[slot]  # type: ignore[index]
                        pieces.append(
                            Piece(item, layer, first_class, spec.classes, channel, spec.channels, found)  # type: ignore[arg-type]
                        )
        return pieces

    def _is_remade(self, slot: int, user: int, with_classes: bool) -> bool:
        """Whether a value is made anew whenever one that reads it is."""
        made, used = self._steps[slot], self._steps[user]
        same_classes = not with_classes or made.has_classes or not used.has_classes
        return same_classes and (made.has_channels or not used.has_channels)

    def spec(self, node: Expression, view: View) -> Spec:
        """The static side of a node's value in a column."""
        if (node, view) not in self._specs:
            self._specs[node, view] = self._make_spec(node, view)
        return self._specs[node, view]

    def _make_spec(self, node: Expression, view: View) -> Spec:
        lanes = lanes_of(node)
        is_masked = _is_masked(node)  # the same for all classes, which look at different rows
        return Spec(
            self.extent.num_classes if lanes.per_class and not is_masked else 1,
            self.extent.num_channels if lanes.channel else 1,
            self.layer.shape(node.type, view),
        )

    def value(self, node: Expression, view: View) -> int:
        """The slot of a node's value."""
        key = ("value", node, view)
        if key not in self._slots:
            self._slots[key] = self._make(node, view)
        return self._slots[key]

    def _make(self, node: Expression, view: View) -> int:
        if node.type == ():
            return self._scalar(node, view)
        answer = moment_answer(node)
        if answer is not None:
            return self._table(lambda layer: layer.statistics(view)[answer], node, view)
        if node.is_operand:
            return self._operand(node, view)
        from_sets = set_answer(node)
        if from_sets is not None:
            return self._from_sets(from_sets, node, view)
        twin = twin_of(node)
        if twin is not None and twin is not node:
            return self._rows_of(twin, node, view)
        return self._operator(node, view)

    def _operator(self, node: Expression, view: View) -> int:
        inputs = tuple(self.value(child, view) for child in node.children)
        spec = self.spec(node, view)
        specs = tuple(self.spec(child, view) for child in node.children)
        if node.operator in ELEMENTWISE and all(own == spec for own in specs):
            flat = elementwise_kernel(node.operator, spec.entries <= TINY_ENTRIES)
            return self._step(lambda place, *values: flat(*values), inputs, node)
        if node.operator == "slice":
            cut = slice_kernel(specs[0], spec.shape[-1])
            axis = node.type[-1]
            return self._step(lambda place, value: cut(value, place.layer.start(axis, view)), inputs, node)
        static, traced = split_params(node)
        numbers = tuple(np.asarray(number, self.layer.operands.dtype) for number in traced)
        kernel = lane_kernel(cast(Hashable, OPERATORS[node.operator].implement), static, specs, spec.shape)
        types = [child.type for child in node.children]

        def run(place: Place, *values: Array) -> Array:
            sizes = tuple(place.layer.sizes(type, view, *place.classes) for type in types)
            return kernel(values, sizes, numbers)

        return self._step(run, inputs, node)

    def _rows_of(self, twin: Expression, node: Expression, view: View) -> int:
        """A value without class turn but for its rows: what it shares with other classes is computed once."""
        if _is_masked(node):
            return self.value(twin, view)
        axes = tuple(i for i, axis in enumerate(node.type) if axis == "N")
        rows = (self.layer.samples.rows,) * len(axes)
        kernel = rows_kernel(self.spec(twin, view), axes, self.extent.num_classes)

        def run(place: Place, value: Array) -> Array:
            return kernel(value, rows, place.on_device[0])

        return self._step(run, (self.value(twin, view),), node)

    def _scalar(self, node: Expression, view: View) -> int:
        plane, spec, num_all = self.planes.plane(node, view), self.spec(node, view), self.planes.num_classes
        classes, channels = spec.classes, spec.channels

        def run(place: Place) -> Array:
            first_class, _, lane = place.on_device
            return cut_plane(plane, first_class, lane, num_all, classes, channels)

        return self._step(run, (), node)

    def _table(self, table: Callable[[Layer], Array | None], node: Expression, view: View) -> int:
        spec = self.spec(node, view)

        def run(place: Place) -> Array:
            found = table(place.layer)
            assert found is not None  # functions whose operands are missing have been refused
            first_class = place.on_device[0] if found.shape[0] > 1 else _int(0)
            first_channel = place.on_device[1] if found.shape[1] > 1 else _int(0)
            return cut_table(found, first_class, first_channel, spec.classes, spec.channels)

        return self._step(run, (), node)

    def _operand(self, node: Expression, view: View) -> int:
        if node.name in ("P", "Q"):
            return self._rows_of(operand("X"), node, view)
        return self._table(lambda layer: layer.table(node.name, view), node, view)

    def _statistics(self, answer: SetAnswer, view: View) -> int:
        key = ("statistics", answer.twin, view)
        if key not in self._slots:
            samples, spec = self.layer.samples, self.spec(answer.twin, view)
            inputs = (self.value(answer.twin, view),)
            is_pair, type = answer.is_pair, answer.twin.type
            if len(type) == 1:  # one number per row is rows of one position
                spec = Spec(spec.classes, spec.channels, (*spec.shape, 1))

            def run(place: Place, value: Array) -> Mapping[str, Array]:
                if is_pair:
                    return pair_statistics(value, samples.belongs, spec)
                num_rows, *others = place.layer.sizes(type, view, *place.classes)
                num_positions = others[0] if others else _int(1)[None]
                return row_statistics(value, samples.belongs, num_rows, num_positions, spec)

            self._slots[key] = self._step(run, inputs, answer.twin)
        return self._slots[key]

    def _from_sets(self, answer: SetAnswer, node: Expression, view: View) -> int:
        spec = self.spec(node, view)

        def run(place: Place, statistics: dict[str, Array]) -> Array:
            table = statistics[answer.name]
            first_class = place.on_device[0] if table.shape[0] > 1 else _int(0)
            return cut_table(table, first_class, _int(0), spec.classes, spec.channels)

        return self._step(run, (self._statistics(answer, view),), node)

    def _finite(self, node: Expression, view: View, slot: int) -> int:
        key = ("finite", node, view)
        if key not in self._slots:
            kernel = finite_kernel(self.spec(node, view))

            def run(place: Place, value: Array) -> Array:
                return kernel(value, place.layer.sizes(node.type, view, *place.classes))

            self._slots[key] = self._step(run, (slot,), node)
        return self._slots[key]

    def _step(self, run: Callable[..., object], inputs: Sequence[int], node: Expression) -> int:
        """Appends a step; its value varies with classes and channels as the node's does."""
        lanes = lanes_of(node)
        self._steps.append(_Step(run, tuple(inputs), lanes.per_class, lanes.channel))
        return len(self._steps) - 1


@lru_cache(maxsize=1 << 16)
def _is_masked(node: Expression) -> bool:
    """Whether a value is its twin, of which each class looks at the rows of the others."""
    twin = twin_of(node)
    return twin is not None and twin is not node and "N" not in node.type


def _place(layer: Layer, classes: Classes, first_channel: int) -> Place:
    lane = layer.lane + first_channel
    return Place(layer, classes, (_int(classes.first), _int(first_channel), _int(lane)))


@lru_cache(maxsize=1 << 16)
def _int(number: int) -> Array:
    """A whole number on the device, moved there once."""
    return jnp.asarray(number, jnp.int32)
