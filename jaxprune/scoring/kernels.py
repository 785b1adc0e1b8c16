"""The engine's compiled kernels: few, of padded shapes, shared by all formulas, layers and networks.

Values travel as flat arrays of [classes, channels, *padded axes]. An elementwise kernel needs to know no more than
their length; any other kernel is an operator's own one-channel implementation, laid over lanes, with the true sizes
as traced masks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.operators import OPERATORS, Implementation, Params
from jaxprune.scoring.lanes import apply_lanes
from jaxprune.scoring.moments import HIGHEST, Moments, SetMoments, class_sets
from jaxprune.scoring.programs import quick_jit
from jaxprune.types import Array

ELEMENTWISE = frozenset({"+", "-", "*", "/", "abs", "square", "sqrt"})
_ZERO = np.int32(0)
TINY_ENTRIES = 4096
"""Up to this many entries a kernel is compiled without optimisation."""

Sizes = tuple[Array, ...]
"""Which entries are real, per axis: how many come first, [1] or [classes], or booleans [classes, length]."""
Kernel = Callable[..., jax.Array]


class Spec(NamedTuple):
    """The static side of a flat value."""

    classes: int
    channels: int
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Its length."""
        length = self.classes * self.channels
        for size in self.shape:
            length *= size
        return length


@cache
def elementwise_kernel(operator: str, is_tiny: bool) -> Kernel:
    """`+ - * / abs square sqrt` of flat values of equal length."""
    implement = OPERATORS[operator].implement

    def run(*arrays: jax.Array) -> jax.Array:
        return implement(*arrays)

    return quick_jit(run, is_tiny=is_tiny)


@cache
def lane_kernel(
    implement: Hashable, params: Params, specs: tuple[Spec, ...], out_shape: tuple[int, ...]
) -> Kernel:
    """An operator over all lanes of values with these specs.

    The kernel takes flat values, their true sizes (per value and axis, [1] or [classes]) and traced parameters, and
    gives a flat value of the most lanes that any of them has.
    """

    def run(arrays: tuple[jax.Array, ...], sizes: tuple[Sizes, ...], traced: tuple[Array, ...]) -> jax.Array:
        values = [_unflatten(array, spec) for array, spec in zip(arrays, specs, strict=True)]
        masks = tuple(
            tuple(_mask(size, length) for size, length in zip(own, spec.shape, strict=True))
            for own, spec in zip(sizes, specs, strict=True)
        )
        result = apply_lanes(cast(Implementation, implement), values, masks, params or cast(Params, traced))
        padding = [(0, 0)] * 3 + [
            (0, size - found) for size, found in zip(out_shape, result.shape[3:], strict=True)
        ]
        return jnp.pad(result, padding).reshape(-1)

    return quick_jit(run, is_tiny=max(spec.entries for spec in specs) <= TINY_ENTRIES)


@cache
def slice_kernel(spec: Spec, out_positions: int) -> Kernel:
    """`slice`: positions from a traced first one, on the last axis."""

    def run(array: jax.Array, start: Array) -> jax.Array:
        values = _unflatten(array, spec)
        return jnp.take(values, start + jnp.arange(out_positions), axis=-1, mode="clip").reshape(-1)

    return quick_jit(run)


@cache
def finite_kernel(spec: Spec) -> Kernel:
    """Whether all real entries are finite, per class and channel: flat booleans."""

    def run(array: jax.Array, sizes: Sizes) -> jax.Array:
        finite = jnp.isfinite(_unflatten(array, spec))
        rank = len(spec.shape)
        for axis, (size, length) in enumerate(zip(sizes, spec.shape, strict=True)):
            others = tuple(3 + other for other in range(rank) if other != axis)
            finite = finite | ~jnp.expand_dims(_mask(size, length), others)
        return jnp.all(finite, axis=tuple(range(3, 3 + rank))).reshape(-1)

    return quick_jit(run)


@partial(quick_jit, static_argnums=(3, 4))
def cut_table(
    table: Array, first_class: Array, first_channel: Array, num_classes: int, num_channels: int
) -> jax.Array:
    """Some classes and channels of a [K or 1, C or 1, *axes] table, flat."""
    start = (first_class, first_channel, *(_ZERO,) * (table.ndim - 2))
    return jax.lax.dynamic_slice(table, start, (num_classes, num_channels, *table.shape[2:])).reshape(-1)


@cache
def rows_kernel(spec: Spec, axes: tuple[int, ...], num_classes: int) -> Kernel:
    """Keeps some rows, other ones for each class, of a value without class turn.

    The kernel takes the flat value, per axis in `axes` the [K, padded] row numbers, and the first class.
    """

    def run(array: jax.Array, rows: tuple[Array, ...], first_class: Array) -> jax.Array:
        values = _unflatten(array, spec)[0, 0]
        wanted = [
            jax.lax.dynamic_slice(own, (first_class, _ZERO), (num_classes, own.shape[1])) for own in rows
        ]

        def one_class(*own: jax.Array) -> jax.Array:
            kept = values
            for axis, index in zip(axes, own, strict=True):
                kept = jnp.take(kept, index, axis=1 + axis)
            return kept

        return jax.vmap(one_class)(*wanted).reshape(-1)

    return quick_jit(run)


@partial(quick_jit, static_argnums=(3, 4, 5))
def cut_plane(
    plane: Array, first_class: Array, lane: Array, num_all_classes: int, num_classes: int, num_channels: int
) -> jax.Array:
    """Some classes and channels of a flat [K, lanes] plane of scalars."""
    lanes = plane.reshape(num_all_classes, -1)
    return jax.lax.dynamic_slice(lanes, (first_class, lane), (num_classes, num_channels)).reshape(-1)


@partial(quick_jit, static_argnums=(1,))
def mean_over_classes(plane: Array, num_classes: int) -> jax.Array:
    """[lanes] means of a flat [K, lanes] plane."""
    return jnp.mean(plane.reshape(num_classes, -1), axis=0)


@quick_jit
def moment_statistics(moments: Moments, num_positions: Array) -> dict[str, jax.Array]:
    """Every moment of `X`, `P` and `Q` from padded [K, D, C] moments, of which `num_positions` positions are real."""
    return _statistics(moments, num_positions)


@partial(quick_jit, static_argnums=(4,))
def row_statistics(
    rows: Array, belongs: Array, num_rows: Array, num_positions: Array, spec: Spec
) -> dict[str, jax.Array]:
    """Every moment, over all rows, those of each class and those of the other classes, of a value without class turn.

    Args:
      rows: flat [1, C, rows, D] values.
      belongs: [K, rows] 1 where a row is of a class, 0 elsewhere and in the padding.
      num_rows, num_positions: true sizes, [1].
      spec: of `rows`.

    Returns:
      `mean(P)` and so on [K or 1, C], `mean_samples(P)` [K or 1, C, D].
    """
    channels, (length, positions) = spec.channels, spec.shape
    values = jnp.swapaxes(_unflatten(rows, spec)[0, 0], 0, 1)  # [rows, C, D]
    is_row = _mask(num_rows, length)[0, 0, 0][:, None, None]
    is_position = _mask(num_positions, positions)[0, 0, 0][None, None]
    pivot = jnp.where(is_position, values[:1], 0)
    delta = jnp.where(is_row & is_position, values - pivot, 0).reshape(length, -1)
    count = jnp.sum(belongs, axis=1)
    by_class = partial(jnp.matmul, precision=HIGHEST)  # two large products, whatever the number of classes
    # Relative to the class's first row, as in `add_examples`; a product with a one-hot matrix copies exactly.
    first = delta[jnp.argmax(belongs, axis=1)]
    rest = jnp.where(is_row[:, 0], delta - by_class(belongs.T, first), 0)
    offset = first + by_class(belongs, rest) / count[:, None]
    m2 = by_class(belongs, jnp.square(delta - by_class(belongs.T, offset)))

    def as_moments(found: jax.Array) -> jax.Array:
        return jnp.swapaxes(found.reshape(-1, channels, positions), 1, 2)

    unused = jnp.zeros((len(count), channels), values.dtype)
    moments = Moments(count, as_moments(pivot)[0], as_moments(offset), as_moments(m2), unused)
    return _statistics(moments, num_positions)


@partial(quick_jit, static_argnums=(2,))
def pair_statistics(pairs: Array, belongs: Array, spec: Spec) -> dict[str, jax.Array]:
    """Sums and means, over pairs of row sets, of a value for every pair of rows that has no class turn.

    Args:
      pairs: flat [1, C, rows, rows] values.
      belongs: [K, rows] 1 where a row is of a class, 0 elsewhere and in the padding.
      spec: of `pairs`.

    Returns:
      `sum(P,Q)`, `mean(P,Q)` and so on for all pairs of `X P Q`, [K or 1, C].
    """
    values = _unflatten(pairs, spec)[0, 0]
    is_real = jnp.sum(belongs, axis=0) > 0
    values = jnp.where(is_real[None, :, None] & is_real[None, None], values, 0)
    blocks = jnp.einsum(
        "kn,cnm,lm->klc", belongs, values, belongs, precision=HIGHEST, optimize=[(0, 1), (0, 1)]
    )
    count = jnp.sum(belongs, axis=1)
    eye = jnp.eye(len(belongs), dtype=values.dtype)
    members = {"X": jnp.ones((1, len(belongs)), values.dtype), "P": eye, "Q": 1 - eye}
    found = {}
    for first, own in members.items():
        rows = jnp.einsum("sk,klc->slc", own, blocks, precision=HIGHEST)
        for second, other in members.items():
            total = jnp.sum(rows * other[:, :, None], axis=1)
            number = (own @ count) * (other @ count)
            found[f"sum({first},{second})"] = total
            found[f"mean({first},{second})"] = total / number[:, None]
    return found


def _statistics(moments: Moments, num_positions: Array) -> dict[str, jax.Array]:
    is_position = _mask(num_positions, moments.pivot.shape[0])[0, 0, 0]
    found: dict[str, jax.Array] = {}
    for name, one in class_sets(moments).items():
        mean, variance = _entry_moments(one, is_position, num_positions[0])
        count = jnp.broadcast_to((one.num_examples * num_positions[0])[:, None], variance.shape)
        values = {"mean_samples": jnp.swapaxes(one.mean, 1, 2), "mean": mean, "var": variance}
        values |= {"std": jnp.sqrt(variance), "sum": mean * count, "count": count}
        found |= {f"{operator}({name})": value for operator, value in values.items()}
    return found


def _entry_moments(
    one: SetMoments, is_position: jax.Array, num_positions: Array
) -> tuple[jax.Array, jax.Array]:
    """[L, C] mean and variance over all examples and real positions; no large mean enters a square."""
    real = is_position[None, :, None]
    shifted = jnp.where(real, one.shifted, 0)
    centre = jnp.sum(shifted, axis=1) / num_positions
    between = jnp.sum(jnp.where(real, jnp.square(shifted - centre[:, None]), 0), axis=1) / num_positions
    within = jnp.sum(jnp.where(real, one.m2, 0), axis=1) / num_positions / one.num_examples[:, None]
    mean, lost = one.exact_mean
    return mean[:, 0] + (lost[:, 0] + centre), within + between


def _unflatten(array: Array, spec: Spec) -> jax.Array:
    """[1, classes, channels, *shape]."""
    return jnp.reshape(array, (1, spec.classes, spec.channels, *spec.shape))


def _mask(size: Array, length: int) -> jax.Array:
    """[1, classes or 1, 1, length] booleans: True for the first `size` entries, or what `size` itself says."""
    if size.dtype == bool:
        return jnp.asarray(size)[None, :, None]
    return (jnp.arange(length)[None] < jnp.reshape(size, (-1, 1)))[None, :, None]
