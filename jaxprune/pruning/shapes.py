"""Arrays at the places where channels are made and read, brought into the shapes that scoring knows: channels last."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning.sites import Place, Site
from jaxprune.types import Array


def channels_last(value: jax.Array, site: Site) -> jax.Array:
    """The activations of a site (or their gradient) as [N, *space, C], at least float32.

    Args:
      value: the value that enters the site's first consumer, in the network's own order of axes; where that is in a
        loop, one for each turn, along leading axes.
      site: where that is.
    """
    turns = len(site.turns)
    moved = jnp.moveaxis(value, site.batch_axis + turns, 0)
    axes = [axis + turns + (axis < site.batch_axis) for axis in site.seen.axes]
    found = _channels_behind(moved, axes, site.seen.positions)
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def channel_columns(array: Array, place: Place) -> jax.Array:
    """A kernel (or its gradient) as [F, C]: the entries of each channel, one column per channel."""
    found = _channels_behind(jnp.asarray(array), list(place.axes), place.positions)
    return found.reshape(math.prod(found.shape[:-1]), found.shape[-1])


def filter_columns(kernel: Array, site: Site) -> jax.Array:
    """A producing kernel (or its gradient) as [F, C]: one column per channel."""
    return channel_columns(kernel, site.made)


def _channels_behind(array: jax.Array, axes: list[int], positions: np.ndarray) -> jax.Array:
    """[..., C]: channels behind everything else; where each has several places, these stay at the first of the axes.

    Args:
      array: of any shape.
      axes: that hold the channels, rising; their flat index is what `positions` count.
      positions: [C, m] places of each channel.
    """
    first = axes[0]
    joined = jnp.moveaxis(array, axes, range(first, first + len(axes)))
    shape = joined.shape
    joined = joined.reshape((*shape[:first], -1, *shape[first + len(axes) :]))
    count, each = positions.shape
    is_whole = (
        each == 1 and count == joined.shape[first] and bool((positions[:, 0] == np.arange(count)).all())
    )
    if not is_whole:
        joined = jnp.take(joined, positions.T.reshape(-1), axis=first)
    apart = joined.reshape((*joined.shape[:first], each, count, *joined.shape[first + 1 :]))
    found = jnp.moveaxis(apart, first + 1, -1)
    return found[(slice(None),) * first + (0,)] if each == 1 else found
