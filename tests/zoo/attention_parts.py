"""What the transformers share: heads, dot-product attention, causal masks, and the plain MLP.

Code here follows the shapes of arrays: a number of heads may be remembered, a width may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[N, T, heads * d] to [N, T, heads, d]."""
    return x.reshape(*x.shape[:2], num_heads, -1)


def merge_heads(x: jax.Array) -> jax.Array:
    """[N, T, heads, d] to [N, T, heads * d]."""
    return x.reshape(*x.shape[:2], -1)


def causal_mask(length: int) -> jax.Array:
    """[1, 1, T, T] booleans: which keys (last axis) a query may see."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of [N, T, heads, d] arrays; `mask` and `bias` broadcast to [N, heads, T, T]."""
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(query.shape[-1])
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits, axis=-1), value)


class MLP(nnx.Module):
    """Two dense layers with a GELU between."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.gelu,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as vision transformers have it."""
    return nnx.gelu(x, approximate=False)
