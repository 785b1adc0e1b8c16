"""The engine's compiled kernels on flat buffers: a closed table, whatever formulas come.

A value of some classes and channels is a flat buffer: [classes, channels, *padded axes], followed by anything up to a
power of two. So a kernel needs to know little more than the length of its buffers: arithmetic is a switch over
operators, every movement of data (broadcasting, transposing, slicing, choosing rows of a class) is one gather with
traced strides, and reductions know the length of a row. What is real and what is padding is told by masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxprune.scoring import host_kernels as host
from jaxprune.scoring.programs import quick_jit
from jaxprune.types import Array

BINARY = ("+", "-", "*", "/")
UNARY = ("abs", "square", "sqrt")
HELPERS = ("vanish", "gauss")
"""Of one value too, but no operators of the language: `vanish` is 0 where a value is finite, else NaN; `gauss` is
exp(-factor * value)."""
SMALLEST_BUFFER = 1 << 12
"""Buffers are at least that long: shorter ones would save no time and need kernels of their own."""


def bucket(size: int, smallest: int = 1) -> int:
    """The power of two that a size is padded to.

    Example:
      >>> bucket(1), bucket(9), bucket(3, smallest=16)
      (1, 16, 16)
    """
    return max(smallest, 1 << (size - 1).bit_length())


def buffer_length(entries: int) -> int:
    """The length of the buffer that holds so many entries.

    Example:
      >>> buffer_length(10), buffer_length(5000)
      (4096, 8192)
    """
    return bucket(entries, SMALLEST_BUFFER)


def source_length(length: int) -> int:
    """The length, a power of four, of a buffer that data is gathered from.

    Example:
      >>> source_length(4096), source_length(8192)
      (4096, 16384)
    """
    exponent = (buffer_length(length) - 1).bit_length()
    return 1 << (exponent + exponent % 2)


class Spec(NamedTuple):
    """The static side of a value in a buffer."""

    classes: int
    channels: int
    shape: tuple[int, ...]

    @property
    def row(self) -> int:
        """Entries of one class and channel."""
        entries = 1
        for size in self.shape:
            entries *= size
        return entries

    @property
    def entries(self) -> int:
        """Entries in all."""
        return self.classes * self.channels * self.row

    @property
    def length(self) -> int:
        """The length of its buffer."""
        return buffer_length(self.entries)


class RowMask(NamedTuple):
    """Which entries of rows are real."""

    is_real: Array
    """[buffer] booleans, False behind the last row."""
    first: Array
    """[rows] the place in its row of a real entry."""
    number: Array
    """[rows] how many are real."""
    prefix: int | None = None
    """On the host: how many of each row, if they are the first ones of all rows."""


@cache
def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


def runs_on_host(mesh: Mesh | None) -> bool:
    """Whether the simplest kernels are NumPy's: on one CPU (see `host_kernels.py`)."""
    return mesh is None and _is_cpu()


class Kernel:
    """A function of flat buffers, compiled once for each set of buffer lengths.

    On a mesh every argument but the shared ones has a leading axis of shards, and each device works on its own.

    Args:
      function: of buffers, then shared arguments, then static ones.
      shared: numbers of the arguments that are the same for all shards.
      static: how many of the last arguments are static.
      on_host: the same for NumPy arrays, to be run instead on a CPU.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        shared: Sequence[int] = (),
        static: int = 0,
        on_host: Callable[..., Any] | None = None,
    ) -> None:
        self._on_host = on_host
        self.function, self._shared, self._num_static = function, frozenset(shared), static
        num_arguments = function.__code__.co_argcount
        statics = tuple(range(num_arguments - static, num_arguments))
        self._plain = quick_jit(function, static_argnums=statics)
        self._sharded = lru_cache(maxsize=None)(self._make_sharded)

    def __call__(self, mesh: Mesh | None, *arguments: Any) -> Any:  # noqa: ANN401
        """Runs it."""
        if self._on_host is not None and runs_on_host(mesh):
            return self._on_host(*arguments)
        if mesh is None:
            return self._plain(*arguments)
        split = len(arguments) - self._num_static
        return self._sharded(mesh, arguments[split:])(*arguments[:split])

    def _make_sharded(self, mesh: Mesh, statics: tuple[Any, ...]) -> Callable[..., object]:
        num_arrays = self.function.__code__.co_argcount - self._num_static
        axis = PartitionSpec(mesh.axis_names)

        def of_shard(*arrays: Array) -> object:
            own = [
                array if number in self._shared else jax.tree.map(lambda leaf: leaf[0], array)
                for number, array in enumerate(arrays)
            ]
            return jax.tree.map(lambda leaf: leaf[None], self.function(*own, *statics))

        specs = tuple(PartitionSpec() if number in self._shared else axis for number in range(num_arrays))
        mapped = jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=axis, check_vma=False)
        return quick_jit(mapped)


def _binary(operator: Array, left: Array, right: Array) -> jax.Array:
    return jax.lax.switch(operator, [jnp.add, jnp.subtract, jnp.multiply, jnp.divide], left, right)


binary = Kernel(_binary, shared=(0,), on_host=host.binary)
"""(number in `BINARY`, left, right) -> entry by entry."""


def _unary(operator: Array, factor: Array, values: Array) -> jax.Array:
    branches = [
        jnp.abs,
        jnp.square,
        jnp.sqrt,
        lambda given: given * 0,
        lambda given: jnp.exp(-factor * given),
    ]
    return jax.lax.switch(operator, branches, values)


unary = Kernel(_unary, shared=(0, 1), on_host=host.unary)
"""(number in `UNARY + HELPERS`, factor, values) -> entry by entry."""


def _choose(is_real: Array, values: Array, other: Array) -> jax.Array:
    return jnp.where(is_real, values, other)


choose = Kernel(_choose, shared=(0, 2), on_host=host.choose)
"""(booleans, values, number) -> values, and the number where they are not real."""


@lru_cache(maxsize=1 << 16)
def make_geometry(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Array:
    """Where each entry of a buffer comes from: digits of its place, slowest first, each with a stride.

    Args:
      sizes: of at most five digits; all but the slowest are powers of two.
      strides: of the digits in the source.
      offset: of the first entry in the source.

    Returns:
      [10] the offset, four shifts that part a place into digits, and the strides.

    Example:
      >>> make_geometry((3, 4, 2), (8, 1, 4)).tolist()
      [0, 3, 1, 0, 0, 8, 1, 4, 0, 0]
    """
    lengths = [*sizes, *(1,) * (5 - len(sizes))]
    shifts = [sum((size - 1).bit_length() for size in lengths[digit + 1 :]) for digit in range(4)]
    numbers = np.asarray([offset, *shifts, *strides, *(0,) * (5 - len(strides))], np.int32)
    return numbers if _is_cpu() else jax.device_put(numbers)


Gather = Literal["entry", "repeat", "run"]
"""How a buffer is gathered: entry by entry, or so many at a time, which are all the same or lie side by side."""
BLOCK = 16


@lru_cache(maxsize=1 << 16)
def gather_of(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Gather:
    """The fastest way to gather what `make_geometry` of the same arguments says.

    Example:
      >>> gather_of((3, 4, 32), (4, 1, 0)), gather_of((3, 4, 32), (128, 32, 1)), gather_of((4, 8), (1, 4))
      ('repeat', 'run', 'entry')
    """
    same = side_by_side = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride:
            break
        same *= size
    if same >= BLOCK:
        return "repeat"
    for number, (size, stride) in enumerate(zip(reversed(sizes), reversed(strides), strict=True)):
        if side_by_side >= BLOCK:
            rest = strides[: len(strides) - number]
            return "run" if all(part % BLOCK == 0 for part in (*rest, offset)) else "entry"
        if size > 1 and stride != side_by_side:
            return "entry"
        side_by_side *= size
    return "run" if side_by_side >= BLOCK and offset % BLOCK == 0 else "entry"


def _places(numbers: Array, length: int, step: int = 1) -> jax.Array:
    place = jnp.arange(length, dtype=jnp.int32) * step
    shifts, strides = numbers[1:5], numbers[5:]
    index = numbers[0] + (place >> shifts[0]) * strides[0]
    for digit in range(1, 4):
        rest = place & ((1 << shifts[digit - 1]) - 1)
        index += (rest >> shifts[digit]) * strides[digit]
    return index + (place & ((1 << shifts[3]) - 1)) * strides[4]


def _rearrange(source: Array, numbers: Array, length: int, gather: Gather) -> jax.Array:
    if gather == "entry":
        return jnp.take(source, _places(numbers, length), mode="clip")
    places = _places(numbers, length // BLOCK, BLOCK)
    if gather == "repeat":
        found = jnp.take(source, places, mode="clip")
        return jnp.broadcast_to(found[:, None], (length // BLOCK, BLOCK)).reshape(length)
    blocks = jnp.asarray(source).reshape(-1, BLOCK)
    return jnp.take(blocks, places // BLOCK, axis=0, mode="clip").reshape(length)


rearrange = Kernel(_rearrange, static=2, on_host=host.rearrange)
"""(source, numbers of a geometry, length, how to gather) -> a buffer gathered from the source."""


def _binary_over(
    operator: Array, values: jax.Array, source: Array, numbers: Array, gather: Gather
) -> jax.Array:
    def branch(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[Array, Array], jax.Array]:
        # The gather stands inside the branches, so that it is fused with what follows.
        return lambda whole, part: function(
            jnp.asarray(whole), _rearrange(part, numbers, whole.shape[0], gather)
        )

    return jax.lax.switch(operator, [branch(function) for function in _ARITHMETIC], values, source)


_ARITHMETIC: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...] = (
    jnp.add,
    jnp.subtract,
    jnp.multiply,
    jnp.divide,
    lambda right, left: left - right,
    lambda right, left: left / right,
)
OVER = (*BINARY, "- swapped", "/ swapped")
binary_over = Kernel(_binary_over, shared=(0,), static=1, on_host=host.binary_over)
"""(number in `OVER`, values, source, numbers of a geometry, how to gather) -> values with what is gathered."""
MOST_OVER = 1 << 16
"""Sources up to that length are gathered within `binary_over`."""


def _grow(values: Array, length: int) -> jax.Array:
    flat = values.reshape(-1)
    return jnp.pad(flat, (0, length - len(flat)))


grow = Kernel(_grow, static=1, on_host=host.grow)
"""(values, length) -> a longer buffer."""


def _sum_rows(values: Array, mask: RowMask, row: int) -> jax.Array:
    found = jnp.sum(jnp.where(mask.is_real, values, 0).reshape(-1, row), axis=1)
    return _grow(found, buffer_length(len(found)))


sum_rows = Kernel(_sum_rows, shared=(1,), static=1, on_host=partial(host.sum_rows, smallest=SMALLEST_BUFFER))
"""(values, `RowMask`, entries of a row) -> the sum of each row."""


def _spread_rows(values: Array, mask: RowMask, row: int) -> tuple[jax.Array, jax.Array]:
    rows, is_real = values.reshape(-1, row), mask.is_real.reshape(-1, row)
    # Relative to a real entry: a constant is exact, and what is left to add up is small (see `reductions`).
    first = jnp.take_along_axis(rows, mask.first[:, None], axis=1)
    count = mask.number[:, None]
    centre = first + jnp.sum(jnp.where(is_real, rows - first, 0), axis=1, keepdims=True) / count
    deviation = jnp.where(is_real, rows - centre, 0)
    mean = (centre + jnp.sum(deviation, axis=1, keepdims=True) / count)[:, 0]
    variance = jnp.sum(jnp.square(deviation), axis=1) / mask.number
    length = buffer_length(len(mean))
    return _grow(mean, length), _grow(variance, length)


spread_rows = Kernel(
    _spread_rows, shared=(1,), static=1, on_host=partial(host.spread_rows, smallest=SMALLEST_BUFFER)
)
"""(values, `RowMask`, entries of a row) -> mean and variance of each row."""


def _first_least(values: Array, is_real: Array, row: int) -> jax.Array:
    rows = jnp.where(is_real, values, jnp.inf).reshape(-1, row)
    return (jnp.arange(row)[None] == jnp.argmin(rows, axis=1)[:, None]).astype(values.dtype).reshape(-1)


first_least = Kernel(_first_least, shared=(1,), static=1, on_host=host.first_least)
"""(values, booleans, entries of a row) -> 1 at the first least real entry of each row, 0 elsewhere."""
