"""How products, distances, inverses and the medoid become steps of a column program."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View
from jaxprune.scoring.column_places import Place, contiguous
from jaxprune.scoring.column_programs import ColumnProgram
from jaxprune.scoring.column_values import Value, argument_of, binary_of, sum_of, unary_of, value_of
from jaxprune.scoring.contractions import (
    Contraction,
    contraction_numbers,
    inverses,
    tiled,
    tiles_of,
    whole_distance,
    whole_product,
)
from jaxprune.scoring.host_kernels import product
from jaxprune.scoring.kernels import Spec, bucket, first_least, runs_on_host, source_length
from jaxprune.types import Array

TILED = frozenset({"matmul", "rbf", "geometric_median"})
"""Operators whose results may come as tiles."""
_WHOLE_AXES = frozenset({"NX", "NQ", "D"})
"""Products and distances between these axes are what real metrics are made of: they have kernels of their own."""


def tiled_entries(shape: tuple[int, ...]) -> int:
    """The entries of a value of this shape when it comes as tiles.

    Example:
      >>> tiled_entries((256, 128)), tiled_entries((2, 128)), tiled_entries((7,))
      (32768, 1024, 7)
    """
    if len(shape) < 2:
        return math.prod(shape)
    edge, down, across = tiles_of(*shape)
    return down * across * edge * edge


def matmul(program: ColumnProgram, node: Expression, view: View) -> int:
    """Products of matrices; with a vector, products of entries that are summed."""
    left, right = (value_of(program, child, view) for child in node.children)
    if runs_on_host(program.mesh):
        return _product_on_host(left, right, node, view)
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
    product = binary_of("*", matrix, vector, wide)
    return sum_of(Value(program, product, node, matrix.type, wide), node, view, row=wide.shape[1])


def _product_on_host(left: Value, right: Value, node: Expression, view: View) -> int:
    """Whole matrices, a vector as one of a single row or column, by the machine's own library."""
    program, target = left.program, left.program.spec(node, view)
    middle, lanes = left.spec.shape[-1], (target.classes, target.channels)
    rows = left.spec.shape[0] if len(left.type) == 2 else 1
    columns = right.spec.shape[1] if len(right.type) == 2 else 1
    first, second, found = (
        (left.spec.classes, left.spec.channels, rows, middle),
        (right.spec.classes, right.spec.channels, middle, columns),
        (*lanes, rows, columns),
    )
    summed, vector = left.type[-1:], Spec(*lanes, (middle,))

    def run(place: Place, one: Array, other: Array) -> Array:
        result = np.zeros(target.length, program.dtype)
        mask = place.layer.mask(summed, view, vector, place.first_class)
        product(
            np.asarray(one)[: left.spec.entries].reshape(first),
            np.asarray(other)[: right.spec.entries].reshape(second),
            mask,
            result[: target.entries].reshape(found),
        )
        return result

    scratch = left.spec.length + right.spec.length
    return program.step(run, (left.slot, right.slot), node, entries=target.length, scratch=scratch)


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
            lambda place, one, other: kernel(
                program.mesh, one, other, real(place, lanes.length), number, shape
            ),
            (first.slot, second.slot),
            node,
            entries=Spec(number, 1, (rows, columns)).length,
            scratch=first.spec.length + second.spec.length,
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

    slot = program.step(run, (left.slot, right.slot), node, entries=length, scratch=3 * length)
    low_rows, low_columns = min(rows, edge), min(columns, edge)
    sizes = (classes * channels, rows // low_rows, low_rows, columns // low_columns, low_columns)
    strides = (down * across * tile, across * tile, edge, tile, 1)
    target = Spec(lanes.classes, lanes.channels, (shape[0], columns))
    moved = program.moved(slot, node, length, target, strides, sizes=sizes)
    return Value(program, moved, node, node.type, target)


def inverse(program: ColumnProgram, node: Expression, view: View) -> int:
    """Inverses of matrices with a ridge."""
    value, target = argument_of(program, node, view), program.spec(node, view)
    size, axis = target.shape[0], node.type[0]
    lanes = Spec(target.classes, target.channels, (size,))
    number = np.int32(target.classes * target.channels)
    length = source_length(target.length)

    def run(place: Place, values: Array) -> Array:
        grown = program.grown(values, target.length, length)
        mask = place.layer.mask((axis,), view, lanes, place.first_class, length=length)
        return inverses(program.mesh, grown, mask.is_real, number, size)

    slot = program.step(run, (value.slot,), node, entries=length, scratch=3 * length)
    return program.moved(slot, node, length, target, contiguous(target))


def _distance(program: ColumnProgram, node: Expression, view: View) -> Value:
    left, right = (value_of(program, node.children[index], view) for index in (0, -1))
    key = ("distance", left.slot, right.slot, program.spec(node, view))
    slot = program.once(key, lambda: _contract("distance", left, right, node, view).slot)
    return Value(program, slot, node, node.type, program.spec(node, view))


def rbf(program: ColumnProgram, node: Expression, view: View) -> int:
    """Kernels of all widths from the same squared distances."""
    return unary_of(
        program, "gauss", _distance(program, node, view).slot, node, 1 / (2 * node.params[0] ** 2)
    )


def geometric_median(program: ColumnProgram, node: Expression, view: View) -> int:
    """The column with the least sum of distances, as a sum over columns of which only that one counts."""
    bank = value_of(program, node.children[0], view)
    columns = bank.transposed()
    size, mesh = bank.spec.shape[1], program.mesh
    squares = _contract_columns(columns, node, view)
    distances = Value(
        program, unary_of(program, "sqrt", squares.slot, node), node, (bank.type[1],) * 2, squares.spec
    )
    totals = sum_of(distances, node, view, row=size)
    by_column = Spec(bank.spec.classes, bank.spec.channels, (size,))

    def run(place: Place, found: Array) -> Array:
        mask = place.layer.mask(bank.type[1:], view, by_column, place.first_class)
        return first_least(mesh, found, mask.is_real, size)

    chosen = Value(program, program.step(run, (totals,), node), node, bank.type[1:], by_column)
    entries = binary_of("*", bank, chosen, bank.spec)
    return sum_of(Value(program, entries, node, bank.type, bank.spec), node, view, row=size)


def _contract_columns(columns: Value, node: Expression, view: View) -> Value:
    size, entries = columns.spec.shape
    lanes = Spec(columns.spec.classes, columns.spec.channels, (entries,))
    axis = columns.type[1]

    def real(place: Place, length: int) -> Array:
        return place.layer.mask((axis,), view, lanes, place.first_class, length=length).is_real

    return _tiles("distance", columns, columns, node, lanes, (size, entries, size), real)
