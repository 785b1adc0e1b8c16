"""Llama-like decoders: RMSNorm, SwiGLU, grouped queries, and rotary embeddings in three ways."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from .attention_parts import attend, causal_mask, merge_heads, split_heads

ROTARY_BASE = 10_000.0


class Buffer(nnx.Variable):
    """An array that belongs to the network and is not trained."""


def angles(length: int, num_pairs: int) -> jax.Array:
    """[T, d/2]: by how much each pair of a head's dimensions turns at each position."""
    frequencies = ROTARY_BASE ** -(jnp.arange(num_pairs) / num_pairs)
    return jnp.arange(length)[:, None] * frequencies[None]


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + d/2) of [N, T, heads, d] by tables [T, d/2]."""
    cos, sin = cos[None, :, None], sin[None, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class HalfTables(nnx.Module):
    """Rotary embedding from buffers [T, d/2]."""

    def __init__(self, max_length: int, head_dim: int) -> None:
        table = angles(max_length, head_dim // 2)
        self.cos, self.sin = Buffer(jnp.cos(table)), Buffer(jnp.sin(table))

    def __call__(self, x: jax.Array) -> jax.Array:
        return turn(x, self.cos[: x.shape[1]], self.sin[: x.shape[1]])


class WholeTables(nnx.Module):
    """Rotary embedding from buffers [T, d], each angle twice."""

    def __init__(self, max_length: int, head_dim: int) -> None:
        table = jnp.tile(angles(max_length, head_dim // 2), (1, 2))
        self.cos, self.sin = Buffer(jnp.cos(table)), Buffer(jnp.sin(table))

    def __call__(self, x: jax.Array) -> jax.Array:
        cos, sin = (table[: x.shape[1]][None, :, None] for table in (self.cos, self.sin))
        first, second = jnp.split(x, 2, axis=-1)
        return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


class ComputedAngles(nnx.Module):
    """Rotary embedding whose angles are computed at every call: they depend on the place within a head."""

    def __init__(self, max_length: int, head_dim: int) -> None:
        del max_length, head_dim

    def __call__(self, x: jax.Array) -> jax.Array:
        table = angles(x.shape[1], x.shape[-1] // 2)
        return turn(x, jnp.cos(table), jnp.sin(table))


class GroupedQueryAttention(nnx.Module):
    """Causal self-attention in which several query heads share one head of keys and values."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, *, rngs: nnx.Rngs) -> None:
        kv_width = width // num_heads * num_kv_heads
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, kv_width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, kv_width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads

    def __call__(self, x: jax.Array, rotary: Callable[[jax.Array], jax.Array]) -> jax.Array:
        n, length, _ = x.shape
        query = rotary(split_heads(self.query(x), self.num_heads))
        key = rotary(split_heads(self.key(x), self.num_kv_heads))
        value = split_heads(self.value(x), self.num_kv_heads)
        query = query.reshape(n, length, self.num_kv_heads, self.num_heads // self.num_kv_heads, -1)
        logits = jnp.einsum("nqgrd,nkgd->ngrqk", query, key) / math.sqrt(query.shape[-1])
        logits = jnp.where(causal_mask(length)[None], logits, jnp.finfo(logits.dtype).min)
        y = jnp.einsum("ngrqk,nkgd->nqgrd", jax.nn.softmax(logits, axis=-1), value)
        return self.out(merge_heads(y))


class RepeatedHeads(GroupedQueryAttention):
    """The same, with the heads of keys and values repeated, so that there are as many as of queries."""

    def __call__(self, x: jax.Array, rotary: Callable[[jax.Array], jax.Array]) -> jax.Array:
        query = rotary(split_heads(self.query(x), self.num_heads))
        key = rotary(split_heads(self.key(x), self.num_kv_heads))
        value = split_heads(self.value(x), self.num_kv_heads)
        key, value = (jnp.repeat(each, self.num_heads // self.num_kv_heads, axis=2) for each in (key, value))
        return self.out(merge_heads(attend(query, key, value, mask=causal_mask(x.shape[1]))))


class SwiGLU(nnx.Module):
    """A dense layer gated by another."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nnx.Module):
    """Attention and SwiGLU, each normalised before and added after."""

    def __init__(
        self,
        width: int,
        hidden: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        attention: Callable[..., nnx.Module] = GroupedQueryAttention,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = attention(width, num_heads, num_kv_heads, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.mlp = SwiGLU(width, hidden, rngs=rngs)

    def __call__(self, x: jax.Array, rotary: Callable[[jax.Array], jax.Array]) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
    """Llama (Touvron et al., 2023): all layers share one rotary embedding, the logits have a layer of their own."""

    def __init__(
        self,
        *,
        vocabulary: int,
        max_length: int,
        width: int,
        hidden: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int,
        rotary: Callable[[int, int], nnx.Module] = HalfTables,
        attention: Callable[..., nnx.Module] = GroupedQueryAttention,
        rngs: nnx.Rngs,
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.rotary = rotary(max_length, width // num_heads)
        self.blocks = nnx.List(
            LlamaBlock(width, hidden, num_heads, num_kv_heads, attention=attention, rngs=rngs)
            for _ in range(depth)
        )
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, self.rotary)
        return self.head(self.norm(x))
