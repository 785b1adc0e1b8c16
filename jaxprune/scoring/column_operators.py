"""How each operator of the language becomes steps of a column program: few kernels, in many geometries."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import cast

import numpy as np

from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View
from jaxprune.scoring.column_contractions import geometric_median, inverse, matmul, rbf
from jaxprune.scoring.column_places import Place, contiguous
from jaxprune.scoring.column_programs import ColumnProgram
from jaxprune.scoring.column_values import (
    Value,
    argument_of,
    binary_of,
    part_of,
    spread_of,
    sum_of,
    unary_of,
    value_of,
)
from jaxprune.scoring.kernels import BINARY, UNARY, Spec, choose
from jaxprune.scoring.lane_kernels import lane_kernel
from jaxprune.scoring.lanes import split_params
from jaxprune.types import Array

_WHOLE_AXES = frozenset({"NX", "NQ", "D"})
"""Products and distances between these axes are what real metrics are made of: they have kernels of their own."""


def lower(program: ColumnProgram, node: Expression, view: View) -> int:
    """The slot of an operator's value, in the buffer that `program.spec` of the node says."""
    build = _BUILDERS.get(node.operator or "")
    if build is None:
        return _general(program, node, view)
    return build(program, node, view)


def all_finite(program: ColumnProgram, node: Expression, view: View, slot: int) -> int:
    """The slot of a number for each class and channel that is finite where all entries of a value are."""
    spec = program.spec(node, view)
    gone = unary_of(program, "vanish", slot, node)
    return sum_of(Value(program, gone, node, node.type, spec), node, view)


def _elementwise(program: ColumnProgram, node: Expression, view: View) -> int:
    operator = node.operator
    target = program.spec(node, view)
    values = [value_of(program, child, view) for child in node.children]
    if len(values) == 1:
        return unary_of(program, operator, values[0].over(target).slot, node)
    return binary_of(operator, values[0], values[1], target)


def _reduction(program: ColumnProgram, node: Expression, view: View) -> int:
    value = argument_of(program, node, view)
    if node.operator == "sum":
        return sum_of(value, node, view)
    if node.operator == "count":
        return _count(value, node, view)
    found = part_of(program, spread_of(value, view, value.spec.row), int(node.operator != "mean"), node)
    return unary_of(program, "sqrt", found, node) if node.operator == "std" else found


def _count(value: Value, node: Expression, view: View) -> int:
    program, nothing = value.program, np.zeros(value.spec.length, bool)
    one = np.asarray(1, program.dtype)
    ones = program.step(lambda place, values: choose(program.mesh, nothing, values, one), (value.slot,), node)
    return sum_of(Value(program, ones, node, value.type, value.spec), node, view)


def _product(program: ColumnProgram, node: Expression, view: View) -> int:
    value = argument_of(program, node, view)
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
        slot, length, row = binary_of("*", parts[0], parts[1], half), half.length, row // 2
    return slot


def _constant(number: int) -> Callable[[Place], int]:
    return lambda place: number


def _mean_samples(program: ColumnProgram, node: Expression, view: View) -> int:
    value = argument_of(program, node, view).transposed()
    return part_of(program, spread_of(value, view, value.spec.shape[1]), 0, node)


def _transpose(program: ColumnProgram, node: Expression, view: View) -> int:
    return value_of(program, node.children[0], view).transposed().slot


def _slice(program: ColumnProgram, node: Expression, view: View) -> int:
    value, target, axis = value_of(program, node.children[0], view), program.spec(node, view), node.type[-1]
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
    left, right = (value_of(program, child, view) for child in node.children)
    return binary_of("*", left.over(target, (1, 0)), right, target)


def _trace(program: ColumnProgram, node: Expression, view: View) -> int:
    value = argument_of(program, node, view)
    size = value.spec.shape[0]
    diagonal = value.over(value.spec._replace(shape=(size,)), (size + 1,))
    diagonal.type = value.type[:1]
    return sum_of(diagonal, node, view)


def _inner(program: ColumnProgram, node: Expression, view: View) -> int:
    left, right = (value_of(program, child, view) for child in node.children)
    target = program.spec(node, view)._replace(shape=left.spec.shape)
    product = binary_of("*", left, right, target)
    return sum_of(Value(program, product, node, left.type, target), node, view)


def _general(program: ColumnProgram, node: Expression, view: View) -> int:
    """An operator that a user has registered: its own implementation, compiled for each shape."""
    values = [value_of(program, child, view) for child in node.children]
    static, traced = split_params(node)
    numbers = tuple(np.asarray(number, program.dtype) for number in traced)
    implement = cast(Hashable, OPERATORS[node.operator].implement)
    kernel = lane_kernel(
        implement, static, tuple(value.spec for value in values), program.spec(node, view).shape
    )
    types = [child.type for child in node.children]

    def run(place: Place, *arrays: Array) -> Array:
        sizes = tuple(
            place.layer.axis_masks(type, view, value.spec, place.first_class)
            for type, value in zip(types, values, strict=True)
        )
        return kernel(program.mesh, arrays, sizes, numbers)

    entries = program.spec(node, view).length
    slots = tuple(value.slot for value in values)
    return program.step(run, slots, node, entries=entries, scratch=2 * entries)


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
    "matmul": matmul,
    "inverse": inverse,
    "rbf": rbf,
    "geometric_median": geometric_median,
}
