"""Every kernel that any formula of the language can ask for on some layers, so that they can be compiled at once.

Buffers are powers of two, gathered from powers of four; rows of reductions are powers of two. So the table is finite,
holds for every population, and for the same network after pruning, which only makes buffers shorter. Operators and
operands that a user registers may add to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.scoring.analysis import View
from jaxprune.scoring.column_contractions import tiled_entries
from jaxprune.scoring.contractions import (
    TILES,
    Contraction,
    contraction_numbers,
    inverses,
    tiled,
    whole_distance,
    whole_product,
)
from jaxprune.scoring.kernels import (
    MOST_OVER,
    SMALLEST_BUFFER,
    Gather,
    RowMask,
    binary,
    binary_over,
    bucket,
    buffer_length,
    choose,
    first_least,
    grow,
    make_geometry,
    rearrange,
    source_length,
    spread_rows,
    sum_rows,
    unary,
)
from jaxprune.scoring.layers import Layer
from jaxprune.scoring.set_statistics import (
    SMALLEST_MOMENTS,
    class_moments,
    pair_statistics,
    set_moments,
    set_statistics,
)
from jaxprune.types import Array

Call = Callable[[], Any]


class KernelTable:
    """The kernels for some layers.

    Args:
      layers: of one dtype and number of classes.
      num_lanes: of planes.
      column_entries: of the largest value in a column of several channels.
      most_entries: of the largest value of one channel that is not refused.
      compiled_only: leave out those that need no compiling, as NumPy stands in for them.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        num_lanes: int,
        column_entries: int,
        most_entries: int,
        *,
        compiled_only: bool = False,
    ) -> None:
        self._compiled_only = compiled_only
        first = layers[0]
        self._layers, self._mesh, self._dtype = layers, first.mesh, first.members[0].dtype
        self._num_classes = first.samples.num_classes
        self._column_entries = bucket(column_entries)
        self._rows = max(layer.samples.padded["NX"] for layer in layers)
        longest = SMALLEST_BUFFER
        for layer in layers:
            own = _axis_sizes(layer)
            pairs = (pair for pair in product(own, own) if own[pair[0]] * own[pair[1]] <= most_entries)
            largest = max(tiled_entries(pair) for pair in pairs)
            whole = bucket(self._num_classes * layer.width) * largest  # a column of everything
            longest = max(longest, largest, min(whole, self._column_entries))
        self._lengths = _powers(SMALLEST_BUFFER, longest)
        planes = source_length(self._num_classes * num_lanes)
        positions = [layer.width * layer.shape(("D",), view)[0] for layer in layers for view in _VIEWS]
        self._moments = _powers(SMALLEST_MOMENTS, max(positions))
        tables = [self._num_classes * self._moments[-1]]
        tables += [
            layer.width * math.prod(layer.shape(type, "sample"))
            for layer in layers
            for type in (("NX", "D"), ("F",), ("O",))
        ]
        longest = source_length(max(*tables, *self._lengths, planes))
        self._sources = _powers(SMALLEST_BUFFER, longest, factor=4)

    def __iter__(self) -> Iterator[Call]:
        """Calls that compile one kernel each."""
        if not self._compiled_only:
            yield from self._arithmetic()
            yield from self._movements()
            yield from self._reductions()
        yield from self._statistics()
        yield from self._contractions()

    def _arithmetic(self) -> Iterator[Call]:
        factor = np.zeros((), self._dtype)
        for length in self._lengths:
            yield partial(self._each, length)
            yield partial(self._choose, length, factor)
            for source in self._sources:
                if source <= MOST_OVER:
                    yield from (partial(self._over, length, source, gather) for gather in _GATHERS)

    def _each(self, length: int) -> object:
        zero, factor, own = np.int32(0), np.zeros((), self._dtype), self._buffer(length)
        return binary(self._mesh, zero, own, own), unary(self._mesh, zero, factor, own)

    def _choose(self, length: int, number: np.ndarray) -> Array:
        return choose(self._mesh, self._flags(length), self._buffer(length), number)

    def _over(self, length: int, source: int, gather: Gather) -> Array:
        zero, values = np.int32(0), self._buffer(length)
        return binary_over(self._mesh, zero, values, self._buffer(source), self._geometry(), gather)

    def _movements(self) -> Iterator[Call]:
        for source, length in product(self._sources, self._lengths):
            yield from (partial(self._move, source, length, gather) for gather in _GATHERS)
        for length in _powers(SMALLEST_BUFFER, self._sources[-1]):
            for source in self._sources:
                if length < source:
                    yield partial(self._grow, length, source)
        for moments in self._moments:
            for length in (moments, self._num_classes * moments):
                yield partial(self._grow, length, source_length(length))

    def _move(self, source: int, length: int, gather: Gather) -> Array:
        return rearrange(self._mesh, self._buffer(source), self._geometry(), length, gather)

    def _grow(self, length: int, wanted: int) -> Array:
        return grow(self._mesh, self._buffer(length), wanted)

    def _reductions(self) -> Iterator[Call]:
        columns = max(layer.shape(("C",), "full")[0] for layer in self._layers)
        for length in self._lengths:
            for row in _powers(1, length):
                yield partial(self._reduce, length, row)
                yield partial(self._spread, length, row)
                if row <= columns:
                    yield partial(self._first, length, row)

    def _reduce(self, length: int, row: int) -> Array:
        return sum_rows(self._mesh, self._buffer(length), self._mask(length, row), row)

    def _spread(self, length: int, row: int) -> Array:
        return spread_rows(self._mesh, self._buffer(length), self._mask(length, row), row)

    def _mask(self, length: int, row: int) -> RowMask:
        first, number = np.zeros(length // row, np.int32), np.ones(length // row, self._dtype)
        return RowMask(self._flags(length), self._shared(first), self._shared(number))

    def _first(self, length: int, row: int) -> Array:
        return first_least(self._mesh, self._buffer(length), self._flags(length), row)

    def _statistics(self) -> Iterator[Call]:
        rows, positions = self._rows, set(self._moments) | set(_powers(1, self._lengths[-1] // self._rows))
        moments = _powers(SMALLEST_MOMENTS, max(*self._moments, self._lengths[-1] // rows))
        for length in self._lengths:
            if length >= rows:
                yield partial(self._class_moments, length)
            if length >= rows * rows:
                yield partial(self._pairs, length)
        for number in moments:
            yield partial(self._set_moments, number)
        known = {size for layer in self._layers for view in _VIEWS for size in layer.shape(("D",), view)}
        for number, size in product(moments, sorted(positions | known)):
            from_rows = size <= max(1, self._lengths[-1] // rows) and number <= max(
                SMALLEST_MOMENTS, self._lengths[-1] // rows
            )
            if size <= number and (from_rows or size in known):
                yield partial(self._set_statistics, number, size)

    def _class_moments(self, length: int) -> object:
        return class_moments(self._mesh, self._buffer(length), self._layers[0].belongs)

    def _pairs(self, length: int) -> object:
        return pair_statistics(self._mesh, self._buffer(length), self._layers[0].belongs)

    def _set_moments(self, number: int) -> object:
        by_class = self._buffer(number, self._num_classes)
        return set_moments(self._mesh, self._buffer(number), by_class, by_class, self._layers[0].class_sizes)

    def _set_statistics(self, number: int, positions: int) -> object:
        sets = 1 + 2 * self._num_classes
        parts = [self._buffer(number, sets)] * 3
        counts = self._buffer(sets)
        flags = self._flags(buffer_length(positions))
        return set_statistics(self._mesh, *parts, counts, flags, positions)

    def _contractions(self) -> Iterator[Call]:
        kinds: tuple[Contraction, ...] = ("distance",) if self._compiled_only else get_args(Contraction)
        for length, edge, kind in product(self._sources, TILES, kinds):
            if length <= source_length(self._lengths[-1]):
                yield partial(self._tile, length, edge, kind)
        for length in self._sources:
            for size in _powers(1, max(size for layer in self._layers for size in _axis_sizes(layer))):
                if size * size <= length <= source_length(self._lengths[-1]):
                    yield partial(self._invert, length, size)
        shapes: dict[tuple[int, tuple[int, int, int]], None] = {}
        for layer, view in product(self._layers, _VIEWS):
            axes = {self._rows, layer.shape(("D",), view)[0]}
            most_lanes = bucket(self._num_classes * layer.width)
            for rows, middle, columns in product(axes, axes, axes):
                largest = max(rows * middle, middle * columns, rows * columns)
                for lanes in _powers(1, max(1, min(most_lanes, self._column_entries // largest))):
                    shapes[lanes, (rows, middle, columns)] = None
        for lanes, shape in shapes:
            if not self._compiled_only:
                yield partial(self._whole, lanes, shape, whole_product)
            yield partial(self._whole, lanes, shape, whole_distance)

    def _tile(self, length: int, edge: int, kind: Contraction) -> Array:
        numbers = contraction_numbers(0, 1, (edge, 1, edge), (0, 0), (0, 0))
        own = self._buffer(length)
        return tiled(self._mesh, own, own, self._flags(length), numbers, kind, edge, length)

    def _invert(self, length: int, size: int) -> Array:
        return inverses(self._mesh, self._buffer(length), self._flags(length), np.int32(0), size)

    def _whole(self, lanes: int, shape: tuple[int, int, int], kernel: Callable[..., Array]) -> Array:
        rows, middle, columns = shape
        left = self._buffer(buffer_length(lanes * rows * middle))
        right = self._buffer(buffer_length(lanes * middle * columns))
        return kernel(self._mesh, left, right, self._flags(buffer_length(lanes * middle)), lanes, shape)

    def _geometry(self) -> Array:
        geometry = make_geometry((1,), (1,))
        return geometry if self._mesh is None else np.tile(np.asarray(geometry), (self._mesh.size, 1))

    def _flags(self, length: int) -> Array:
        return self._shared(np.zeros(length, bool))

    def _buffer(self, length: int, rows: int = 0) -> Array:
        shape = (rows, length) if rows else (length,)
        if self._mesh is None:
            return jax.device_put(np.zeros(shape, self._dtype))  # compiles nothing itself
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        return jax.device_put(np.zeros((self._mesh.size, *shape), self._dtype), sharding)

    def _shared(self, array: np.ndarray) -> Array:
        return (
            jax.device_put(array)
            if self._mesh is None
            else jax.device_put(array, NamedSharding(self._mesh, PartitionSpec()))
        )


_GATHERS: tuple[Gather, ...] = get_args(Gather)
_VIEWS: tuple[View, ...] = get_args(View)


def _axis_sizes(layer: Layer) -> dict[int, int]:
    """Padded size -> least true size of the axes of a layer."""
    found: dict[int, int] = {}
    for view, axis in product(_VIEWS, ("NX", "N", "F", "O", "C", "D")):
        size = int(np.max(layer.true_size(axis, view)))
        padded = layer.shape((axis,), view)[0]
        found[padded] = min(size, found.get(padded, size))
    return found


def _powers(first: int, last: int, factor: int = 2) -> list[int]:
    found = [first]
    while found[-1] < last:
        found.append(found[-1] * factor)
    return found
