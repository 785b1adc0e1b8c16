"""Activation maps as lists of positions, and fewer of them by averaging over windows."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np


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
