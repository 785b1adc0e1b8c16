"""How each operator of the language becomes steps of a column program: few kernels, in many geometries."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import cast

import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import Type
from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View
from jaxprune.scoring.column_programs import ColumnProgram, Place, contiguous
from jaxprune.scoring.contractions import (
    Contraction,
    contraction_numbers,
    inverses,
    tiled,
    tiles_of,
    whole_distance,
    whole_product,
)
from jaxprune.scoring.kernels import (
    BINARY,
    HELPERS,
    MOST_OVER,
    OVER,
    UNARY,
    Spec,
    binary,
    binary_over,
    bucket,
    choose,
    first_least,
    make_geometry,
    source_length,
    spread_rows,
    sum_rows,
    unary,
)
from jaxprune.scoring.lane_kernels import lane_kernel
from jaxprune.scoring.lanes import split_params
from jaxprune.types import Array



@cache
def _number(name: str, names: tuple[str, ...]) -> Array:
    """The place of an operator among others, on the device."""
    return jnp.asarray(names.index(name), jnp.int32)


_WHOLE_AXES = frozenset({"NX", "NQ", "D"})
"""Products and distances between these axes are what real metrics are made of: they have kernels of their own."""


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


def lower(program: ColumnProgram, node: Expression, view: View) -> int:
    """The slot of an operator's value, in the buffer that `program.spec` of the node says."""
    build = _BUILDERS.get(node.operator or "")
    if build is None:
        return _general(program, node, view)
    return build(program, node, view)


def all_finite(program: ColumnProgram, node: Expression, view: View, slot: int) -> int:
    """The slot of a number for each class and channel that is finite where all entries of a value are."""
    spec = program.spec(node, view)
    gone = _unary(program, "vanish", slot, node)
    return _sum(Value(program, gone, node, node.type, spec), node, view)


def _value(program: ColumnProgram, node: Expression, view: View) -> Value:
    plane = program.planes.source(node, view) if node.type == () else None
    return Value(
        program, partial(program.value, node, view), node, node.type, program.spec(node, view), plane
    )


def _argument(program: ColumnProgram, node: Expression, view: View) -> Value:
    """The first argument for all classes and channels of the node: classes may look at different rows of one value."""
    value, target = _value(program, node.children[0], view), program.spec(node, view)
    return value.over(Spec(target.classes, target.channels, value.spec.shape))


def _binary(name: str, left: Value, right: Value, target: Spec) -> int:
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

        def run_plane(place: Place, values: Array) -> Array:
            return binary_over(mesh, over, values, plane, program.lanes_of_plane(place, spec, target))

        return program.step(run_plane, (whole.over(target).slot,), left.node, right.node)
    numbers = program.by_shard(make_geometry(_digits(target), part.strides(target)))
    length = part.spec.length

    def run(place: Place, values: Array, source: Array) -> Array:
        return binary_over(mesh, over, values, program.grown(source, length), numbers)

    return program.step(run, (whole.over(target).slot, part.slot), left.node, right.node)


def _digits(spec: Spec) -> tuple[int, ...]:
    return (spec.classes, spec.channels, *spec.shape)


def _unary(program: ColumnProgram, name: str, slot: int, node: Expression, factor: float = 0.0) -> int:
    number, mesh, scale = _number(name, UNARY + HELPERS), program.mesh, np.asarray(factor, program.dtype)
    return program.step(lambda place, values: unary(mesh, number, scale, values), (slot,), node)


def _elementwise(program: ColumnProgram, node: Expression, view: View) -> int:
    operator = cast(str, node.operator)
    target = program.spec(node, view)
    values = [_value(program, child, view) for child in node.children]
    if len(values) == 1:
        return _unary(program, operator, values[0].over(target).slot, node)
    return _binary(operator, *values, target)


def _sum(value: Value, node: Expression, view: View, row: int | None = None) -> int:
    """Sums over the last entries of each class and channel, by default over all of them."""
    program, spec, type, length = value.program, value.spec, value.type, row or value.spec.row

    def run(place: Place, values: Array) -> Array:
        mask = place.layer.mask(type, view, spec, place.first_class)
        return sum_rows(program.mesh, values, mask.is_real, length)

    return program.step(run, (value.slot,), value.node, node)


def _spread(value: Value, view: View, row: int) -> int:
    program, spec, type = value.program, value.spec, value.type

    def run(place: Place, values: Array) -> tuple[Array, Array]:
        mask = place.layer.mask(type, view, spec, place.first_class, row=row)
        return spread_rows(program.mesh, values, mask, row)

    return program.once(("spread", value.slot, row), lambda: program.step(run, (value.slot,), value.node))


def _pick(program: ColumnProgram, slot: int, index: int, node: Expression) -> int:
    return program.step(lambda place, found: found[index], (slot,), node)


def _reduction(program: ColumnProgram, node: Expression, view: View) -> int:
    value = _argument(program, node, view)
    if node.operator == "sum":
        return _sum(value, node, view)
    if node.operator == "count":
        return _count(value, node, view)
    found = _pick(program, _spread(value, view, value.spec.row), int(node.operator != "mean"), node)
    return _unary(program, "sqrt", found, node) if node.operator == "std" else found


def _count(value: Value, node: Expression, view: View) -> int:
    program, nothing = value.program, np.zeros(value.spec.length, bool)
    one = np.asarray(1, program.dtype)
    ones = program.step(lambda place, values: choose(program.mesh, nothing, values, one), (value.slot,), node)
    return _sum(Value(program, ones, node, value.type, value.spec), node, view)


def _product(program: ColumnProgram, node: Expression, view: View) -> int:
    value = _argument(program, node, view)
    type, spec, one = value.type, value.spec, np.asarray(1, program.dtype)

    def run(place: Place, values: Array) -> Array:
        mask = place.layer.mask(type, view, spec, place.first_class)
        return choose(program.mesh, mask.is_real, values, one)

    slot, length, row = program.step(run, (value.slot,), value.node), spec.length, spec.row
    while row > 1:  # one half times the other
        half = Spec(spec.classes, spec.channels, (row // 2,))
        strides = (spec.channels * row, row, 1)
        low = program.moved(slot, value.node, length, half, strides)
        high = program.moved(slot, value.node, length, half, strides, offset=_constant(row // 2))
        parts = [Value(program, part, value.node, (), half) for part in (low, high)]
        slot, length, row = _binary("*", *parts, half), half.length, row // 2
    return slot


def _constant(number: int) -> Callable[[Place], int]:
    return lambda place: number


def _mean_samples(program: ColumnProgram, node: Expression, view: View) -> int:
    value = _argument(program, node, view).transposed()
    return _pick(program, _spread(value, view, value.spec.shape[1]), 0, node)


def _transpose(program: ColumnProgram, node: Expression, view: View) -> int:
    return _value(program, node.children[0], view).transposed().slot


def _slice(program: ColumnProgram, node: Expression, view: View) -> int:
    value, target, axis = _value(program, node.children[0], view), program.spec(node, view), node.type[-1]
    return program.moved(
        value.slot,
        node,
        value.spec.length,
        target,
        contiguous(value.spec),
        offset=lambda place: place.layer.start(axis, view),
    )


def _outer(program: ColumnProgram, node: Expression, view: View) -> int:
    target = program.spec(node, view)
    left, right = (_value(program, child, view) for child in node.children)
    return _binary("*", left.over(target, (1, 0)), right, target)


def _trace(program: ColumnProgram, node: Expression, view: View) -> int:
    value = _argument(program, node, view)
    size = value.spec.shape[0]
    diagonal = value.over(value.spec._replace(shape=(size,)), (size + 1,))
    diagonal.type = value.type[:1]
    return _sum(diagonal, node, view)


def _inner(program: ColumnProgram, node: Expression, view: View) -> int:
    left, right = (_value(program, child, view) for child in node.children)
    target = program.spec(node, view)._replace(shape=left.spec.shape)
    product = _binary("*", left, right, target)
    return _sum(Value(program, product, node, left.type, target), node, view)


def _matmul(program: ColumnProgram, node: Expression, view: View) -> int:
    left, right = (_value(program, child, view) for child in node.children)
    target = program.spec(node, view)
    if len(left.type) == len(right.type) == 2:
        return _contract("product", left, right, node, view).slot
    is_left = len(left.type) == 2
    matrix, vector = (left, right) if is_left else (right, left)
    if _is_shared(matrix.spec, target):  # one product for all classes and channels
        rows = vector.over(vector.spec._replace(shape=(1, *vector.spec.shape)))
        rows.type = ("", *vector.type)
        return _contract("product", rows, matrix.transposed() if is_left else matrix, node, view).slot
    matrix = matrix if is_left else matrix.transposed()
    wide = target._replace(shape=matrix.spec.shape)
    product = _binary("*", matrix, vector, wide)
    return _sum(Value(program, product, node, matrix.type, wide), node, view, row=wide.shape[1])


def _is_shared(spec: Spec, target: Spec) -> bool:
    return spec.classes == spec.channels == 1 and target.classes * target.channels > 1


def _contract(kind: Contraction, left: Value, right: Value, node: Expression, view: View) -> Value:
    """(a, b) with (b, c), or for distances with (c, b), to (a, c)."""
    program, target = left.program, left.program.spec(node, view)
    rows, middle = left.spec.shape
    columns = right.spec.shape[1 if kind == "product" else 0]
    shape, axis = (rows, middle, columns), left.type[1]
    lanes = Spec(target.classes, target.channels, (middle,))
    axes = {*left.type, *right.type}

    def real(place: Place, length: int) -> Array:
        return place.layer.mask((axis,), view, lanes, place.first_class, length=length).is_real

    if axes <= _WHOLE_AXES:
        first, second = (
            side.over(Spec(target.classes, target.channels, side.spec.shape)) for side in (left, right)
        )
        kernel = whole_product if kind == "product" else whole_distance
        number = bucket(target.classes * target.channels)
        slot = program.step(
            lambda place, one, other: kernel(program.mesh, one, other, real(place, lanes.length), number, shape),
            (first.slot, second.slot),
            node,
        )
        return Value(program, slot, node, node.type, Spec(target.classes, target.channels, (rows, columns)))
    return _tiles(kind, left, right, node, lanes, shape, real)


def _tiles(
    kind: Contraction,
    left: Value,
    right: Value,
    node: Expression,
    lanes: Spec,
    shape: tuple[int, int, int],
    real: Callable[[Place, int], Array],
) -> Value:
    program = left.program
    rows, middle, columns = shape
    classes, channels = lanes.classes, lanes.channels
    is_folded = _is_shared(right.spec, lanes) and "N" not in left.type and "NQ" not in left.type
    numbers = contraction_numbers(
        classes, channels, shape, contiguous(left.spec)[:2], contiguous(right.spec)[:2]
    )
    if is_folded:  # rows of all classes and channels, one below the other, with one and the same matrix
        first = left.over(Spec(classes, channels, left.spec.shape))
        rows *= bucket(classes * channels)
        numbers = contraction_numbers(1, 1, (rows, middle, columns), (0, 0), (0, 0))
        left, classes, channels = first, 1, 1
    edge, down, across = tiles_of(rows, columns)
    tile = edge * edge
    entries = classes * channels * down * across * tile
    length = source_length(max(entries, left.spec.length, right.spec.length))

    def run(place: Place, one: Array, other: Array) -> Array:
        one = program.grown(one, left.spec.length, length)
        other = program.grown(other, right.spec.length, length)
        return tiled(program.mesh, one, other, real(place, length), numbers, kind, edge, length)

    slot = program.step(run, (left.slot, right.slot), node)
    low_rows, low_columns = min(rows, edge), min(columns, edge)
    sizes = (classes * channels, rows // low_rows, low_rows, columns // low_columns, low_columns)
    strides = (down * across * tile, across * tile, edge, tile, 1)
    target = Spec(lanes.classes, lanes.channels, (shape[0], columns))
    moved = program.moved(slot, node, length, target, strides, sizes=sizes)
    return Value(program, moved, node, node.type, target)


def _inverse(program: ColumnProgram, node: Expression, view: View) -> int:
    value, target = _argument(program, node, view), program.spec(node, view)
    size, axis = target.shape[0], node.type[0]
    lanes = Spec(target.classes, target.channels, (size,))
    number = np.int32(target.classes * target.channels)
    length = source_length(target.length)

    def run(place: Place, values: Array) -> Array:
        grown = program.grown(values, target.length, length)
        mask = place.layer.mask((axis,), view, lanes, place.first_class, length=length)
        return inverses(program.mesh, grown, mask.is_real, number, size)

    slot = program.step(run, (value.slot,), node)
    return program.moved(slot, node, length, target, contiguous(target))


def _distance(program: ColumnProgram, node: Expression, view: View) -> Value:
    left, right = (_value(program, node.children[index], view) for index in (0, -1))
    key = ("distance", left.slot, right.slot, program.spec(node, view))
    slot = program.once(key, lambda: _contract("distance", left, right, node, view).slot)
    return Value(program, slot, node, node.type, program.spec(node, view))


def _rbf(program: ColumnProgram, node: Expression, view: View) -> int:
    return _unary(program, "gauss", _distance(program, node, view).slot, node, 1 / (2 * node.params[0] ** 2))


def _geometric_median(program: ColumnProgram, node: Expression, view: View) -> int:
    bank = _value(program, node.children[0], view)
    columns = bank.transposed()
    size, mesh = bank.spec.shape[1], program.mesh
    squares = _contract_columns(columns, node, view)
    distances = Value(
        program, _unary(program, "sqrt", squares.slot, node), node, (bank.type[1],) * 2, squares.spec
    )
    totals = _sum(distances, node, view, row=size)
    by_column = Spec(bank.spec.classes, bank.spec.channels, (size,))

    def run(place: Place, found: Array) -> Array:
        mask = place.layer.mask(bank.type[1:], view, by_column, place.first_class)
        return first_least(mesh, found, mask.is_real, size)

    chosen = Value(program, program.step(run, (totals,), node), node, bank.type[1:], by_column)
    entries = _binary("*", bank, chosen, bank.spec)
    return _sum(Value(program, entries, node, bank.type, bank.spec), node, view, row=size)


def _contract_columns(columns: Value, node: Expression, view: View) -> Value:
    program, (size, entries) = columns.program, columns.spec.shape
    lanes = Spec(columns.spec.classes, columns.spec.channels, (entries,))
    axis = columns.type[1]

    def real(place: Place, length: int) -> Array:
        return place.layer.mask((axis,), view, lanes, place.first_class, length=length).is_real

    return _tiles("distance", columns, columns, node, lanes, (size, entries, size), real)


def _general(program: ColumnProgram, node: Expression, view: View) -> int:
    """An operator that a user has registered: its own implementation, compiled for each shape."""
    values = [_value(program, child, view) for child in node.children]
    static, traced = split_params(node)
    numbers = tuple(np.asarray(number, program.dtype) for number in traced)
    implement = cast(Hashable, OPERATORS[cast(str, node.operator)].implement)
    kernel = lane_kernel(implement, static, tuple(value.spec for value in values), program.spec(node, view).shape)
    types = [child.type for child in node.children]

    def run(place: Place, *arrays: Array) -> Array:
        sizes = tuple(
            place.layer.axis_masks(type, view, value.spec, place.first_class)
            for type, value in zip(types, values, strict=True)
        )
        return kernel(program.mesh, arrays, sizes, numbers)

    return program.step(run, tuple(value.slot for value in values), node)


_BUILDERS: dict[str, Callable[[ColumnProgram, Expression, View], int]] = {
    **dict.fromkeys((*BINARY, *UNARY), _elementwise),
    **dict.fromkeys(("sum", "mean", "var", "std", "count"), _reduction),
    "product": _product,
    "mean_samples": _mean_samples,
    "transpose": _transpose,
    "slice": _slice,
    "outer": _outer,
    "trace": _trace,
    "inner": _inner,
    "matmul": _matmul,
    "inverse": _inverse,
    "rbf": _rbf,
    "geometric_median": _geometric_median,
}
