"""Arrays at the place where a channel is read, brought into the shapes that scoring knows: channels last."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
