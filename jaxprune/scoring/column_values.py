"""Values in a column, and the few steps that all operators are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import jax
import numpy as np

from jaxprune.language.axes import Type
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View
from jaxprune.scoring.column_places import Place, contiguous
from jaxprune.scoring.column_programs import ColumnProgram
from jaxprune.scoring.kernels import (
    BINARY,
    BLOCK,
    HELPERS,
    MOST_OVER,
    OVER,
    UNARY,
    Gather,
    Spec,
    binary,
    binary_over,
    buffer_length,
    gather_of,
    make_geometry,
    source_length,
    spread_rows,
    sum_rows,
    unary,
)
from jaxprune.types import Array


@cache
def _number(name: str, names: tuple[str, ...]) -> Array:
    """The place of an operator among others, where kernels read it."""
    number = np.asarray(names.index(name), np.int32)
    return number if jax.default_backend() == "cpu" else jax.device_put(number)


class Value:
    """A value in a column: its slot, made when it is first asked for, what it varies with, its axes and its buffer."""

    def __init__(
        self,
        program: ColumnProgram,
        slot: int | Callable[[], int],
        node: Expression,
        type: Type,
        spec: Spec,
        plane: Array | None = None,
    ) -> None:
        self.program, self.node, self.type, self.spec, self.plane = program, node, type, spec, plane
        self._slot = slot

    @property
    def slot(self) -> int:
        """Where a column finds it."""
        if not isinstance(self._slot, int):
            self._slot = self._slot()
        return self._slot

    def over(self, target: Spec, axes: tuple[int, ...] | None = None) -> Value:
        """Repeated to a target's classes, channels and axes.

        Args:
          target: what is wanted.
          axes: strides of the target's axes, by default those of the value's own, aligned at the last one.
        """
        strides, program = self.strides(target, axes), self.program
        slot = program.once(
            ("over", self.slot, target, strides),
            lambda: program.moved(self.slot, self.node, self.spec.length, target, strides),
        )
        return Value(program, slot, self.node, self.type, target)

    def strides(self, target: Spec, axes: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Of a target's classes, channels and axes in the value's buffer."""
        classes, channels, *own = contiguous(self.spec)
        rest = (0,) * (len(target.shape) - len(own)) + tuple(own) if axes is None else axes
        return (classes, channels, *rest)

    def transposed(self) -> Value:
        """(a, b) -> (b, a)."""
        rows, columns = self.spec.shape
        found = self.over(self.spec._replace(shape=(columns, rows)), (1, columns))
        found.type = self.type[::-1]
        return found


def value_of(program: ColumnProgram, node: Expression, view: View) -> Value:
    """A node's value; that of a scalar is read from its plane where it is needed."""
    plane = program.planes.source(node, view) if node.type == () else None
    return Value(
        program, partial(program.value, node, view), node, node.type, program.spec(node, view), plane
    )


def argument_of(program: ColumnProgram, node: Expression, view: View) -> Value:
    """The first argument for all classes and channels of the node: classes may look at different rows of one value."""
    value, target = value_of(program, node.children[0], view), program.spec(node, view)
    return value.over(Spec(target.classes, target.channels, value.spec.shape))


def binary_of(name: str, left: Value, right: Value, target: Spec) -> int:
    """Two values, each repeated to the target as far as it must be."""
    program, mesh = left.program, left.program.mesh
    part = next((side for side in (right, left) if side.spec != target), None)
    whole = left if part is right else right
    if part is None or source_length(part.spec.length) > MOST_OVER:
        number, sides = _number(name, BINARY), (left.over(target), right.over(target))
        return program.step(
            lambda place, first, second: binary(mesh, number, first, second),
            tuple(side.slot for side in sides),
            left.node,
            right.node,
        )
    is_swapped = part is left and name in "-/"
    over = _number(f"{name} swapped" if is_swapped else name, OVER)
    if part.plane is not None and part.plane.shape[-1] <= MOST_OVER:
        plane, spec = part.plane, part.spec
        gather: Gather = "repeat" if math.prod(target.shape) >= BLOCK else "entry"

        def run_plane(place: Place, values: Array) -> Array:
            numbers = program.lanes_of_plane(place, spec, target)
            return binary_over(mesh, over, values, plane, numbers, gather)

        return program.step(run_plane, (whole.over(target).slot,), left.node, right.node)
    numbers = program.by_shard(make_geometry(_digits(target), part.strides(target)))
    length, way = part.spec.length, gather_of(_digits(target), part.strides(target))

    def run(place: Place, values: Array, source: Array) -> Array:
        return binary_over(mesh, over, values, program.grown(source, length), numbers, way)

    inputs = (whole.over(target).slot, part.slot)
    return program.step(run, inputs, left.node, right.node, scratch=program.growth(length))


def _digits(spec: Spec) -> tuple[int, ...]:
    return (spec.classes, spec.channels, *spec.shape)


def unary_of(program: ColumnProgram, name: str, slot: int, node: Expression, factor: float = 0.0) -> int:
    """A function of each entry."""
    number, mesh, scale = _number(name, UNARY + HELPERS), program.mesh, np.asarray(factor, program.dtype)
    return program.step(lambda place, values: unary(mesh, number, scale, values), (slot,), node)


def sum_of(value: Value, node: Expression, view: View, row: int | None = None) -> int:
    """Sums over the last entries of each class and channel, by default over all of them."""
    program, spec, type, length = value.program, value.spec, value.type, row or value.spec.row

    def run(place: Place, values: Array) -> Array:
        mask = place.layer.mask(type, view, spec, place.first_class, row=length)
        return sum_rows(program.mesh, values, mask, length)

    entries, scratch = buffer_length(spec.length // length), _mask_entries(spec.length, length)
    return program.step(run, (value.slot,), value.node, node, entries=entries, scratch=scratch)


def _mask_entries(length: int, row: int) -> int:
    """What a `RowMask` takes, in entries of four bytes."""
    return length // 4 + 2 * (length // row)


def spread_of(value: Value, view: View, row: int) -> int:
    """The slot of (mean, variance) of rows of so many entries."""
    program, spec, type = value.program, value.spec, value.type

    def run(place: Place, values: Array) -> tuple[Array, Array]:
        mask = place.layer.mask(type, view, spec, place.first_class, row=row)
        return spread_rows(program.mesh, values, mask, row)

    entries, scratch = 2 * buffer_length(spec.length // row), _mask_entries(spec.length, row)
    return program.once(
        ("spread", value.slot, row),
        lambda: program.step(run, (value.slot,), value.node, entries=entries, scratch=scratch),
    )


def part_of(program: ColumnProgram, slot: int, index: int, node: Expression) -> int:
    """The slot of one of several values that a step gives."""
    return program.step(lambda place, found: found[index], (slot,), node)
