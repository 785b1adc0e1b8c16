"""Arrays at the place where a channel is read, brought into the shapes that scoring knows: channels last."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning.groups import Site
from jaxprune.types import Array


def channels_last(value: jax.Array, site: Site) -> jax.Array:
    """The activations of a site (or their gradient) as [N, *space, C], at least float32.

    Args:
      value: the value that enters the site's first consumer, in the network's own order of axes.
      site: where that is.
    """
    kinds = [kind for kind, _ in site.value_layout]
    order = [
        position
        for wanted in ("batch", "position", "channel")
        for position, kind in enumerate(kinds)
        if kind == wanted
    ]
    value = value.reshape([size for _, size in site.value_layout]).transpose(order)
    num_batch = kinds.count("batch")
    value = value.reshape((-1, *value.shape[num_batch:]))
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def filter_columns(kernel: Array, site: Site) -> jax.Array:
    """A producing kernel (or its gradient) as [F, C]: one column per channel."""
    moved = jnp.moveaxis(kernel, site.axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def flat_positions(features: jax.Array) -> jax.Array:
    """[N, *space, C] as [N, D, C].

    Example:
      >>> flat_positions(jnp.ones((2, 4, 4, 3))).shape, flat_positions(jnp.ones((2, 3))).shape
      ((2, 16, 3), (2, 1, 3))
    """
    return features.reshape(features.shape[0], -1, features.shape[-1])


def pool_positions(
    features: jax.Array, max_positions: int, reduce: Callable[..., jax.Array] = jnp.mean
) -> jax.Array:
    """[N, *space, C] averaged over equal windows until at most `max_positions` positions are left.

    Windows have the same length along every axis; those at the far edge may hold fewer positions.

    Args:
      features: activations, or with `reduce=jnp.sum` gradients with respect to them: moving all positions of a window
        together changes the loss by the sum of their gradients.
      max_positions: how many positions may be left.
      reduce: what makes one number of a window; `jnp.mean` or `jnp.sum`.

    Example:
      >>> pool_positions(jnp.arange(4.0)[None, :, None], 2)[0, :, 0]
      Array([0.5, 2.5], dtype=float32)
      >>> pool_positions(jnp.arange(4.0)[None, :, None], 2, jnp.sum)[0, :, 0]
      Array([1., 5.], dtype=float32)
    """
    space = features.shape[1:-1]
    window = 1
    while np.prod([ceil(length / window) for length in space], initial=1) > max_positions:
        window += 1
    if window == 1:
        return features
    for axis, length in enumerate(space, start=1):
        starts = range(0, length, window)
        parts = [
            reduce(jax.lax.slice_in_dim(features, start, min(start + window, length), axis=axis), axis=axis)
            for start in starts
        ]
        features = jnp.stack(parts, axis=axis)
    return features
