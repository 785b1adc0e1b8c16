"""Kernels for statistics of `X`, `P` and `Q`: all sets of rows at once from class moments, never class by class.

A value without class turn is taken apart by two products with class membership, whatever the number of classes; what
the calibration set left as moments enters at the second step.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxprune.scoring.kernels import Kernel
from jaxprune.scoring.moments import HIGHEST, SetMoments
from jaxprune.types import Array

SMALLEST_MOMENTS = 1 << 10
"""Class moments are kept for at least so many positions of channels."""
SETS = ("X", "P", "Q")


def _class_moments(rows: Array, belongs: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    num_rows = belongs.shape[1]
    values = rows.reshape(num_rows, -1)
    is_row = (jnp.sum(belongs, axis=0) > 0)[:, None]
    pivot = values[0]
    delta = jnp.where(is_row, values - pivot[None], 0)
    by_class = partial(jnp.matmul, precision=HIGHEST)
    # Relative to the class's first row, as in `add_examples`; a product with a one-hot matrix copies exactly.
    first = delta[jnp.argmax(belongs, axis=1)]
    rest = jnp.where(is_row, delta - by_class(belongs.T, first), 0)
    offset = first + by_class(belongs, rest) / jnp.sum(belongs, axis=1)[:, None]
    m2 = by_class(belongs, jnp.square(delta - by_class(belongs.T, offset)))
    padding = max(0, SMALLEST_MOMENTS - values.shape[1])
    return (
        jnp.pad(pivot, (0, padding)),
        jnp.pad(offset, ((0, 0), (0, padding))),
        jnp.pad(m2, ((0, 0), (0, padding))),
    )


class_moments = Kernel(_class_moments, shared=(1,))
"""([rows, positions of channels] buffer, [K, rows] membership) -> pivot [m], offset and m2 [K, m] (see `Moments`)."""


def _set_moments(
    pivot: Array, offset: Array, m2: Array, count: Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    num_classes = len(count)
    own = jnp.eye(num_classes, dtype=count.dtype)
    weights = (
        jnp.concatenate([jnp.ones((1, num_classes), count.dtype), own, 1 - own]) * count[None]
    )  # [sets, K]
    number = jnp.sum(weights, axis=1)
    first = jnp.argmax(weights > 0, axis=1)
    start = offset[first]  # of one class of each set: classes of equal means add nothing

    def add_means(index: Array, total: jax.Array) -> jax.Array:
        return total + weights[:, index][:, None] * (offset[index][None] - start)

    zeros = jnp.zeros_like(start)
    centre = start + jax.lax.fori_loop(0, num_classes, add_means, zeros) / number[:, None]

    def add_squares(index: Array, total: jax.Array) -> jax.Array:
        weight = weights[:, index][:, None]
        spread = weight * jnp.square(offset[index][None] - centre)
        return total + spread + jnp.where(weight > 0, m2[index][None], 0)

    squares = jax.lax.fori_loop(0, num_classes, add_squares, zeros)
    one = SetMoments(number, jnp.asarray(pivot)[None], centre[:, None], squares[:, None])
    mean, lost = one.exact_mean
    return mean[:, 0], lost[:, 0], squares / number[:, None], number


set_moments = Kernel(_set_moments, shared=(3,))
"""(pivot, offset, m2, [K] examples) -> for `X`, each `P` and each `Q`, [1 + 2 K, m] mean, what it lost in rounding and
variance at each position, and the number of examples."""


def _set_statistics(
    mean: Array, lost: Array, spread: Array, number: Array, is_position: Array, positions: int
) -> dict[str, jax.Array]:
    num_sets = mean.shape[0]
    means, losses, spreads = (
        jnp.reshape(given, (num_sets, -1, positions)) for given in (mean, lost, spread)
    )  # [sets, channels, positions]
    is_position = is_position[:positions]
    num_positions = jnp.sum(is_position, dtype=mean.dtype)
    # Relative to the first position: no large mean enters a square.
    shifted = jnp.where(is_position[None, None], (means - means[..., :1]) + (losses - losses[..., :1]), 0)
    centre = jnp.sum(shifted, axis=2) / num_positions
    deviation = jnp.where(is_position[None, None], shifted - centre[..., None], 0)
    between = jnp.sum(jnp.square(deviation), axis=2)
    within = jnp.sum(jnp.where(is_position[None, None], spreads, 0), axis=2)
    entry_mean = means[..., 0] + (losses[..., 0] + centre)
    variance = (between + within) / num_positions
    count = jnp.broadcast_to((number * num_positions)[:, None], variance.shape)
    values = {
        "mean": entry_mean,
        "var": variance,
        "std": jnp.sqrt(variance),
        "sum": entry_mean * count,
        "count": count,
        "mean_samples": jnp.asarray(mean),
    }
    num_classes = (num_sets - 1) // 2
    rows = {"X": slice(0, 1), "P": slice(1, 1 + num_classes), "Q": slice(1 + num_classes, None)}
    return {
        f"{operator}({name})": value[rows[name]].reshape(-1)
        for operator, value in values.items()
        for name in SETS
    }


set_statistics = Kernel(_set_statistics, shared=(4,), static=1)
"""(what `set_moments` gives, booleans that start with those of the positions, positions) -> `mean(P)` and so on, flat
[K or 1, channels], and `mean_samples(P)`, flat [K or 1, m]."""


def _pair_statistics(pairs: Array, belongs: Array) -> dict[str, jax.Array]:
    num_rows = belongs.shape[1]
    values = jnp.reshape(pairs, (-1, num_rows, num_rows))
    is_real = jnp.sum(belongs, axis=0) > 0
    # Relative to one pair: of kernels near 1, say, only what tells them apart is added up.
    pivot = values[:, 0, 0]
    values = jnp.where(is_real[None, :, None] & is_real[None, None], values - pivot[:, None, None], 0)
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
            number = ((own @ count) * (other @ count))[:, None]
            found[f"sum({first},{second})"] = (pivot[None] * number + total).reshape(-1)
            found[f"mean({first},{second})"] = (pivot[None] + total / number).reshape(-1)
    return found


pair_statistics = Kernel(_pair_statistics, shared=(1,))
"""([channels, rows, rows] buffer, [K, rows] membership) -> `sum(P,Q)`, `mean(P,Q)` and so on for all pairs of `X P Q`,
flat [K or 1, channels]."""
