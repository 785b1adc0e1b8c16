"""Values that are no scalars, computed for a few classes and channels of one layer at a time and dropped again.

A *column* is some classes and channels of a layer, so many that the largest value in play stays small enough for the
cache and the budget. What several formulas share is computed once per column; only scalars are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from jaxprune.language.tree import Expression, operand
from jaxprune.scoring.analysis import View, lanes_of, moment_answer
from jaxprune.scoring.column_places import Extent, Item, Piece, Place, Planes, Span, contiguous, is_contiguous
from jaxprune.scoring.kernels import Spec, gather_of, grow, make_geometry, rearrange, runs_on_host
from jaxprune.scoring.kernels import source_length as of_source
from jaxprune.scoring.layers import Layer, Table
from jaxprune.scoring.set_statistics import (
    SMALLEST_MOMENTS,
    class_moments,
    pair_statistics,
    set_moments,
    set_statistics,
)
from jaxprune.scoring.twins import SetAnswer, set_answer, twin_of
from jaxprune.types import Array


class _Step(NamedTuple):
    run: Callable[..., Any]
    """From the place and the inputs' values to a value."""
    inputs: tuple[int, ...]
    has_classes: bool
    has_channels: bool
    entries: int
    """Of its value."""
    scratch: int
    """Entries that it needs besides while it runs."""

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
      lower: from (program, node, view) to the slot of an operator's value.
    """

    def __init__(
        self,
        layer: Layer,
        extent: Extent,
        planes: Planes,
        lower: Callable[[ColumnProgram, Expression, View], int],
    ) -> None:
        self.layer, self.extent, self.planes, self._lower = layer, extent, planes, lower
        self.mesh = planes.mesh
        self._steps: list[_Step] = []
        self._slots: dict[object, int] = {}
        self._outputs: list[tuple[Item, int, Spec, str]] = []

    def add(self, item: Item, finite: Callable[[ColumnProgram, Expression, View, int], int]) -> None:
        """Takes up one more item; `finite` makes the slot that tells whether all entries of a value are."""
        answer = set_answer(item.node) if item.kind == "value" else None
        if answer is not None:
            slot = self._statistics(answer, item.view)
            spec = Spec(self.planes.num_classes, self.extent.num_channels, ())
            self._outputs.append((item, slot, spec, answer.name))
            return
        is_scalar = item.node.type == ()  # what the column sums up to, not what it reads
        slot = self._lower(self, item.node, item.view) if is_scalar else self.value(item.node, item.view)
        spec = self.spec(item.node, item.view)
        if item.kind == "finite":
            slot = finite(self, item.node, item.view, slot)
        self._outputs.append((item, slot, Spec(spec.classes, spec.channels, ()), ""))

    def drop(self) -> None:
        """Lets go of the planes that the steps read, now rather than at the next garbage collection."""
        self._steps.clear()
        self._slots.clear()

    def peak_entries(self, with_classes: bool) -> int:
        """The most entries that are held at once while a column is computed."""
        dropped_after = self._dropped_after(with_classes)
        held = peak = 0
        for index, step in enumerate(self._steps):
            held += step.entries
            peak = max(peak, held + step.scratch)
            held -= sum(self._steps[slot].entries for slot in dropped_after.get(index, ()))
        return peak

    def run(
        self, layer: Layer, with_classes: bool, store: Callable[[list[Piece]], None], piece_bytes: int
    ) -> None:
        """All columns of a layer, class by class or for no class in particular.

        Args:
          layer: with the signature of the program's.
          with_classes: whether columns go class by class.
          store: takes over pieces whenever they hold more than `piece_bytes`, and at the end.
          piece_bytes: see there.
        """
        dropped_after = self._dropped_after(with_classes)
        classes = range(0, self.planes.num_classes, self.extent.num_classes) if with_classes else range(1)
        has_channels = any(step.has_channels for step in self._steps)
        pieces: list[Piece] = []
        held = 0
        for member, (start, number) in enumerate(self._ranges(layer)):
            values: list[Any] = [None] * len(self._steps)
            stop = start + (number if has_channels else 1)
            for channel in range(start, stop, self.extent.num_channels):
                for first_class in classes:
                    place = Place(layer, member, first_class, channel)
                    is_first = (first_class == 0, channel == start)
                    for index, step in enumerate(self._steps):
                        if not step.is_new(*is_first):
                            continue
                        values[index] = None
                        values[index] = step.run(place, *(values[slot] for slot in step.inputs))
                        for slot in dropped_after.get(index, ()):
                            values[slot] = None
                    for item, slot, spec, name in self._outputs:
                        step = self._steps[slot]
                        if step.is_new(*is_first):
                            found = values[slot][name] if name else values[slot]
                            shown = Span(channel, min(spec.channels, start + number - channel))
                            span = shown if step.has_channels else Span(start, number)
                            pieces.append(Piece(item, layer, first_class, spec, span, bool(name), found))
                            held += found.nbytes
                    if held > piece_bytes:
                        store(pieces)
                        pieces, held = [], 0
        store(pieces)

    def _ranges(self, layer: Layer) -> list[Span]:
        """Channels to run through: of each member, where columns read its bank."""
        if not self.extent.has_bank or layer.mesh is not None:
            return [Span(0, layer.shard_channels)]
        widths = [one.num_channels for one in layer.members]
        starts = [sum(widths[:index]) for index in range(len(widths))]
        return [Span(start, width) for start, width in zip(starts, widths, strict=True)]

    def _dropped_after(self, with_classes: bool) -> dict[int, list[int]]:
        """Step -> slots that nobody reads after it."""
        users: dict[int, list[int]] = {}
        for index, step in enumerate(self._steps):
            for slot in step.inputs:
                users.setdefault(slot, []).append(index)
        outputs = {slot for _, slot, _, _ in self._outputs}
        dropped: dict[int, list[int]] = {}
        for slot, own in users.items():
            if slot not in outputs and all(self._is_remade(slot, user, with_classes) for user in own):
                dropped.setdefault(own[-1], []).append(slot)
        return dropped

    def _is_remade(self, slot: int, user: int, with_classes: bool) -> bool:
        """Whether a value is made anew whenever one that reads it is."""
        made, used = self._steps[slot], self._steps[user]
        same_classes = not with_classes or made.has_classes or not used.has_classes
        return same_classes and (made.has_channels or not used.has_channels)

    @property
    def dtype(self) -> np.dtype:
        """Of all values."""
        return self.layer.members[0].dtype

    def spec(self, node: Expression, view: View) -> Spec:
        """The static side of a node's value in a column."""
        lanes = lanes_of(node)
        is_masked = _is_masked(node)  # the same for all classes, which look at different rows
        return Spec(
            self.extent.num_classes if lanes.per_class and not is_masked else 1,
            self.extent.num_channels if lanes.channel else 1,
            self.layer.shape(node.type, view),
        )

    def value(self, node: Expression, view: View) -> int:
        """The slot of a node's value."""
        return self.once(("value", node, view), lambda: self._make(node, view))

    def once(self, key: object, make: Callable[[], int]) -> int:
        """The slot of what a key stands for, made when it is first asked for."""
        if key not in self._slots:
            self._slots[key] = make()
        return self._slots[key]

    def step(
        self,
        run: Callable[..., Any],
        inputs: Sequence[int],
        *nodes: Expression,
        entries: int | None = None,
        scratch: int = 0,
    ) -> int:
        """Appends a step; its value varies with classes and channels as that of any of the nodes does.

        Args:
          run, inputs: see `_Step`.
          nodes: what the value varies with.
          entries: of the value, by default as many as the largest input has.
          scratch: entries that the step needs besides.
        """
        if entries is None:
            entries = max((self._steps[slot].entries for slot in inputs), default=0)
        lanes = [lanes_of(node) for node in nodes]
        has_classes = any(own.per_class for own in lanes)
        has_channels = any(own.channel for own in lanes)
        self._steps.append(_Step(run, tuple(inputs), has_classes, has_channels, entries, scratch))
        return len(self._steps) - 1

    def moved(
        self,
        slot: int,
        node: Expression,
        length: int,
        target: Spec,
        strides: tuple[int, ...],
        *,
        sizes: tuple[int, ...] | None = None,
        offset: Callable[[Place], int] | None = None,
    ) -> int:
        """The slot of a buffer gathered from another one.

        Args:
          slot: where from, a buffer of `length`.
          node: what the value varies with.
          target: what is wanted.
          strides: of the digits of a place in the result, slowest first; by default classes, channels and axes.
          sizes, offset: see `make_geometry`; what depends on the place is a function of it.
        """
        digits = (target.classes, target.channels, *target.shape) if sizes is None else sizes
        if offset is None and length == target.length and is_contiguous(digits, strides):
            return slot

        def run(place: Place, source: Array) -> Array:
            start = 0 if offset is None else offset(place)
            numbers = self.by_shard(make_geometry(digits, strides, start))
            gather = gather_of(digits, strides, start)
            return rearrange(self.mesh, self.grown(source, length), numbers, target.length, gather)

        scratch = self.growth(length) + target.length  # places may be laid out too
        return self.step(run, (slot,), node, entries=target.length, scratch=scratch)

    def growth(self, length: int) -> int:
        """Entries of the copy that `grown` makes."""
        return 0 if of_source(length) == length else of_source(length)

    def grown(self, values: Array, length: int, wanted: int = 0) -> Array:
        """A buffer long enough to gather from, or of the length that is wanted."""
        if not wanted and runs_on_host(self.mesh):
            return values  # NumPy gathers from any
        wanted = wanted or of_source(length)
        return values if wanted == length else grow(self.mesh, values, wanted)

    def by_shard(self, geometry: Array, lane_step: int = 0) -> Array:
        """Geometry for every shard; what reads planes starts at lanes of its own."""
        if self.mesh is None:
            return geometry
        found = np.tile(np.asarray(geometry), (self.mesh.size, 1))
        found[:, 0] += lane_step * np.arange(self.mesh.size, dtype=np.int32)
        return found

    def _make(self, node: Expression, view: View) -> int:
        if node.type == ():
            return self._scalar(node, view)
        answer = moment_answer(node)
        if answer is not None:
            return self._table(lambda place: place.layer.position_means(answer, view), node, view)
        if node.is_operand:
            return self._operand(node, view)
        from_sets = set_answer(node)
        if from_sets is not None:
            return self._from_sets(from_sets, node, view)
        twin = twin_of(node)
        if twin is not None and twin is not node:
            return self._rows_of(twin, node, view)
        return self._lower(self, node, view)

    def _operand(self, node: Expression, view: View) -> int:
        if node.name in ("P", "Q"):
            return self._rows_of(operand("X"), node, view)
        if node.name == "W":
            return self._table(lambda place: place.layer.bank(place.member), node, view)
        return self._table(lambda place: place.layer.table(node.name, view), node, view)

    def _table(self, table: Callable[[Place], Table | None], node: Expression, view: View) -> int:
        spec = self.spec(node, view)
        strides = contiguous(spec)[2:]

        def run(place: Place) -> Array:
            found = table(place)
            assert found is not None  # functions whose operands are missing have been refused
            offset = place.first_class * found.class_stride + place.first_channel * found.channel_stride
            found_strides = (found.class_stride, found.channel_stride, *strides)
            laid = (spec.classes, spec.channels, *spec.shape), found_strides, offset
            numbers = self.by_shard(make_geometry(*laid))
            return rearrange(self.mesh, found.values, numbers, spec.length, gather_of(*laid))

        return self.step(run, (), node, entries=spec.length, scratch=spec.length)

    def _scalar(self, node: Expression, view: View) -> int:
        plane, spec = self.planes.source(node, view), self.spec(node, view)

        def run(place: Place) -> Array:
            return rearrange(self.mesh, plane, self.lanes_of_plane(place, spec, spec), spec.length, "entry")

        return self.step(run, (), node, entries=spec.length, scratch=spec.length)

    def lanes_of_plane(self, place: Place, spec: Spec, target: Spec) -> Array:
        """Geometry of a scalar of these classes and channels, repeated to a target, in its plane."""
        num_lanes = self.planes.num_lanes
        offset = place.first_class * num_lanes + place.layer.lane + place.first_channel
        strides = (num_lanes if spec.classes > 1 else 0, int(spec.channels > 1), *(0,) * len(target.shape))
        geometry = make_geometry((target.classes, target.channels, *target.shape), strides, offset)
        return self.by_shard(geometry, place.layer.shard_channels)

    def _rows_of(self, twin: Expression, node: Expression, view: View) -> int:
        """A value without class turn but for its rows: what it shares with other classes is computed once."""
        slot, source, target = self.value(twin, view), self.spec(twin, view), self.spec(node, view)
        if _is_masked(node):
            return slot
        _, channels, *axes = contiguous(source)
        stride = sum(own for own, axis in zip(axes, node.type, strict=True) if axis == "N")
        first_rows, row = self.layer.samples.starts, self.layer.samples.class_stride

        def offset(place: Place) -> int:
            return stride * int(first_rows[place.first_class])

        strides = (stride * row if target.classes > 1 else 0, channels, *axes)
        return self.moved(slot, node, source.length, target, strides, offset=offset)

    def _statistics(self, answer: SetAnswer, view: View) -> int:
        return self.once(("statistics", answer.twin, view), lambda: self._make_statistics(answer, view))

    def _make_statistics(self, answer: SetAnswer, view: View) -> int:
        twin, mesh = answer.twin, self.mesh
        slot, source = self.value(twin, view), self.spec(twin, view)
        if answer.is_pair:
            return self.step(
                lambda place, value: pair_statistics(mesh, value, place.layer.belongs),
                (slot,),
                twin,
                scratch=source.length,
            )
        num_rows, positions = (*source.shape, 1)[:2]  # one number per row is rows of one position
        channels = source.length // (num_rows * positions)  # as many as fill the buffer
        by_row = Spec(1, 1, (num_rows, channels, positions))
        strides = (positions, num_rows * positions, 1)
        laid = self.moved(slot, twin, source.length, by_row, strides, sizes=by_row.shape)
        axis = twin.type[1:] or ("D",)
        is_one = len(twin.type) == 1

        def run(place: Place, value: Array) -> Mapping[str, Array]:
            layer = place.layer
            found = set_moments(mesh, *class_moments(mesh, value, layer.belongs), layer.class_sizes)
            mask = layer.mask(() if is_one else axis, view, Spec(1, 1, () if is_one else (positions,)), 0)
            return set_statistics(mesh, *found, mask.is_real, positions)

        num_sets = 1 + 2 * self.planes.num_classes
        own = num_sets * max(SMALLEST_MOMENTS, source.length // num_rows)
        return self.step(run, (laid,), twin, entries=6 * own, scratch=6 * own + 2 * source.length)

    def _from_sets(self, answer: SetAnswer, node: Expression, view: View) -> int:
        source, target = self.spec(answer.twin, view), self.spec(node, view)
        statistics = self._statistics(answer, view)
        stride = max(SMALLEST_MOMENTS, source.length // source.shape[0])
        num_sets = self.planes.num_classes
        named = self.step(
            lambda place, found: found[answer.name], (statistics,), answer.twin, entries=num_sets * stride
        )
        strides = (stride, *contiguous(target)[1:])
        return self.moved(
            named,
            node,
            num_sets * stride,
            target,
            strides,
            offset=lambda place: place.first_class * stride,
        )


@lru_cache(maxsize=1 << 16)
def _is_masked(node: Expression) -> bool:
    """Whether a value is its twin, of which each class looks at the rows of the others."""
    twin = twin_of(node)
    return twin is not None and twin is not node and "N" not in node.type
