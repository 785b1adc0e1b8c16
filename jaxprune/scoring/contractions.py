"""Kernels that contract: matrix products, squared distances between rows, and inverses.

Products and distances of the shapes that real metrics use, between examples and positions, have kernels of their
own. All others go tile by tile through kernels that know nothing but the length of their buffers, so that no formula,
however odd, compiles anything new.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.matrices import ridge_inverse, squared_distances
from jaxprune.scoring.kernels import Kernel, bucket
from jaxprune.scoring.moments import HIGHEST
from jaxprune.types import Array

Contraction = Literal["product", "distance"]
TILES = (8, 64)
"""Edges of tiles: the large one, unless a side of the result is much smaller."""
_MIDDLE = 64
_COORDINATES = 8
INVERSE_ENTRIES = 1 << 12
"""So many entries are inverted at once, on a CPU one matrix after the other anyway."""


def _whole_product(
    left: Array, right: Array, is_real: Array, lanes: int, shape: tuple[int, int, int]
) -> jax.Array:
    rows, middle, columns = shape
    real = is_real[: lanes * middle].reshape(lanes, middle)
    first = left[: lanes * rows * middle].reshape(lanes, rows, middle)
    second = right[: lanes * middle * columns].reshape(lanes, middle, columns)
    first = jnp.where(real[:, None], first, 0)
    second = jnp.where(real[..., None], second, 0)
    return _in_buffer(jnp.matmul(first, second, precision=HIGHEST))


whole_product = Kernel(_whole_product, shared=(2,), static=2)
"""(left, right, [lanes, middle] booleans, lanes, (rows, middle, columns)) -> products of whole matrices."""


def _whole_distance(
    left: Array, right: Array, is_real: Array, lanes: int, shape: tuple[int, int, int]
) -> jax.Array:
    rows, middle, columns = shape
    real = is_real[: lanes * middle].reshape(lanes, 1, middle)
    first = jnp.where(real, left[: lanes * rows * middle].reshape(lanes, rows, middle), 0)
    second = jnp.where(real, right[: lanes * middle * columns].reshape(lanes, columns, middle), 0)
    return _in_buffer(jax.vmap(squared_distances)(first, second))


whole_distance = Kernel(_whole_distance, shared=(2,), static=2)
"""The same with rows of `right` [columns, middle] -> squared distances between all pairs of rows."""


def tiles_of(rows: int, columns: int) -> tuple[int, int, int]:
    """The edge of a tile, and how many tiles there are along rows and columns.

    Example:
      >>> tiles_of(256, 128), tiles_of(4, 512)
      ((64, 4, 2), (8, 1, 64))
    """
    edge = TILES[1] if min(rows, columns) >= 16 else TILES[0]
    return edge, -(-rows // edge), -(-columns // edge)


def _tiled(
    left: Array, right: Array, is_real: Array, numbers: Array, kind: Contraction, edge: int, length: int
) -> jax.Array:
    classes, channels, rows, middle, columns = (numbers[i] for i in range(5))
    tile_rows, tile_columns = -(-rows // edge), -(-columns // edge)
    num_tiles = tile_rows * tile_columns
    along, across = jnp.arange(edge, dtype=jnp.int32), jnp.arange(_MIDDLE, dtype=jnp.int32)

    def fill(tile: jax.Array, result: jax.Array) -> jax.Array:
        lane, rest = tile // num_tiles, tile % num_tiles
        of_class, channel = lane // channels, lane % channels
        left_start = of_class * numbers[5] + channel * numbers[6]
        right_start = of_class * numbers[7] + channel * numbers[8]
        own_rows = rest // tile_columns * edge + along
        own_columns = rest % tile_columns * edge + along

        def add(part: jax.Array, total: jax.Array) -> jax.Array:
            inner = part * _MIDDLE + across
            real = jnp.take(is_real, lane * middle + inner, mode="clip") & (inner < middle)
            first = jnp.take(left, left_start + own_rows[:, None] * middle + inner[None], mode="clip")
            index = (
                inner[:, None] * columns + own_columns[None]
                if kind == "product"
                else own_columns[None] * middle + inner[:, None]
            )
            second = jnp.take(right, right_start + index, mode="clip")
            first, second = jnp.where(real[None], first, 0), jnp.where(real[:, None], second, 0)
            if kind == "product":
                return total + jnp.matmul(first, second, precision=HIGHEST)
            return _add_squares(first, second, total)

        zeros = jnp.zeros((edge, edge), left.dtype)
        found = jax.lax.fori_loop(0, -(-middle // _MIDDLE), add, zeros)
        return jax.lax.dynamic_update_slice(result, found.reshape(-1), (tile * edge * edge,))

    return jax.lax.fori_loop(0, classes * channels * num_tiles, fill, jnp.zeros(length, left.dtype))


def _add_squares(left: jax.Array, right: jax.Array, total: jax.Array) -> jax.Array:
    lefts = left.T.reshape(-1, _COORDINATES, left.shape[0])
    rights = right.reshape(-1, _COORDINATES, right.shape[1])

    def add(index: jax.Array, found: jax.Array) -> jax.Array:
        first, second = lefts[index], rights[index]
        squares = [jnp.square(first[i][:, None] - second[i][None]) for i in range(_COORDINATES)]
        return found + sum(squares[1:], start=squares[0])

    return jax.lax.fori_loop(0, lefts.shape[0], add, total)


tiled = Kernel(_tiled, shared=(2, 3), static=3)
"""(left, right, [lanes, middle] booleans, numbers, kind, edge, length of the result) -> tiles, lane after lane.

Numbers are classes, channels, rows, middle, columns, and the strides of classes and channels in left and right.
"""


def inverse_group(size: int) -> int:
    """How many matrices are inverted at once.

    Example:
      >>> inverse_group(64), inverse_group(16)
      (1, 16)
    """
    return max(1, INVERSE_ENTRIES // size**2)


def _inverses(matrices: Array, is_real: Array, lanes: Array, size: int) -> jax.Array:
    group = inverse_group(size)
    entries = group * size * size

    def invert(index: jax.Array, result: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_slice(result, (index * entries,), (entries,)).reshape(group, size, size)
        real = jax.lax.dynamic_slice(is_real, (index * group * size,), (group * size,)).reshape(group, size)
        found = jax.vmap(ridge_inverse)(own, real)
        return jax.lax.dynamic_update_slice(result, found.reshape(-1), (index * entries,))

    return jax.lax.fori_loop(0, -(-lanes // group), invert, matrices)


inverses = Kernel(_inverses, shared=(1, 2), static=1)
"""([lanes, size, size] buffer, [lanes, size] booleans, lanes, size) -> each (A + 1e-4 I)^-1, group after group."""


def _in_buffer(values: jax.Array) -> jax.Array:
    flat = values.reshape(-1)
    return jnp.pad(flat, (0, max(0, bucket(len(flat), 1 << 12) - len(flat))))


def contraction_numbers(
    classes: int,
    channels: int,
    shape: tuple[int, int, int],
    left_strides: tuple[int, ...],
    right_strides: tuple[int, ...],
) -> np.ndarray:
    """The numbers that `tiled` takes."""
    return np.asarray([classes, channels, *shape, *left_strides, *right_strides], np.int32)
