"""Transformers over tokens [N, T]: GPT with its projections fused or apart, and a BERT-like encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from .attention_parts import MLP, attend, causal_mask, exact_gelu, merge_heads, split_heads
from .llama import angles, turn


class FusedAttention(nnx.Module):
    """Causal self-attention whose one projection is split in three."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = (split_heads(part, self.num_heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(merge_heads(attend(query, key, value, mask=causal_mask(x.shape[1]))))


class SeparateAttention(nnx.Module):
    """Causal self-attention with three projections."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value = (nnx.Linear(width, width, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = (
            split_heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value)
        )
        return self.out(merge_heads(attend(query, key, value, mask=causal_mask(x.shape[1]))))


class RemembersHeadDim(nnx.Module):
    """Causal self-attention that keeps the dimension of a head as a number: slim must name `head_dim`."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value = (nnx.Linear(width, width, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.num_heads = num_heads
        self.head_dim = width // num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        y = attend(query, key, value, mask=causal_mask(x.shape[1]))
        return self.out(y.reshape(*x.shape[:2], self.num_heads * self.head_dim))


class PartialRotary(SeparateAttention):
    """Causal self-attention in which the first half of each head of queries and keys turns, as in GPT-NeoX."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(width, num_heads, rngs=rngs)
        self.num_turned = width // num_heads // 2

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key = (self.turned(split_heads(layer(x), self.num_heads)) for layer in (self.query, self.key))
        value = split_heads(self.value(x), self.num_heads)
        return self.out(merge_heads(attend(query, key, value, mask=causal_mask(x.shape[1]))))

    def turned(self, x: jax.Array) -> jax.Array:
        """Turns `num_turned` places of each head, and passes on the others."""
        table = angles(x.shape[1], self.num_turned // 2)
        first = turn(x[..., : self.num_turned], jnp.cos(table), jnp.sin(table))
        return jnp.concatenate([first, x[..., self.num_turned :]], axis=-1)


class ReadsHeadDim(SeparateAttention):
    """Causal self-attention that reads the dimension of a head from the kernel that mixes the heads."""

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], self.num_heads, self.out.kernel.shape[0] // self.num_heads)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        return self.out(merge_heads(attend(query, key, value, mask=causal_mask(x.shape[1]))))


@dataclasses.dataclass
class AttentionConfig:
    """Sizes of attention."""

    width: int
    num_heads: int


class ConfiguredAttention(nnx.Module):
    """Causal self-attention that keeps its sizes in a configuration object, and divides one by the other."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.config = AttentionConfig(width, num_heads)
        self.query, self.key, self.value = (nnx.Linear(width, width, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(width, width, rngs=rngs)

    @property
    def num_heads(self) -> int:
        """How many heads there are."""
        return self.config.num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], self.num_heads, self.config.width // self.num_heads)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        return self.out(merge_heads(attend(query, key, value, mask=causal_mask(x.shape[1]))))


class Block(nnx.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(
        self, width: int, num_heads: int, *, attention: Callable[..., nnx.Module], rngs: nnx.Rngs
    ) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = attention(width, num_heads, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nnx.Module):
    """GPT-2 (Radford et al., 2019): learned positions, and the token table read again for the logits."""

    def __init__(
        self,
        *,
        vocabulary: int,
        max_length: int,
        width: int,
        depth: int,
        num_heads: int,
        attention: Callable[..., nnx.Module] = FusedAttention,
        rngs: nnx.Rngs,
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(max_length, width, rngs=rngs)
        self.blocks = nnx.List(Block(width, num_heads, attention=attention, rngs=rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])[None])
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))


class PostNormBlock(nnx.Module):
    """Flax's attention and an MLP, each added and then normalised."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(num_heads, width, decode=False, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, activation=exact_gelu, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.mlp_norm(x + self.mlp(x))


class Bert(nnx.Module):
    """BERT (Devlin et al., 2019) with a classifier on the pooled first token; token 0 is padding."""

    def __init__(
        self,
        *,
        vocabulary: int,
        max_length: int,
        width: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(max_length, width, rngs=rngs)
        self.segments = nnx.Embed(2, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.blocks = nnx.List(PostNormBlock(width, num_heads, rngs=rngs) for _ in range(depth))
        self.pooler = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        places = jnp.arange(tokens.shape[1])[None]
        x = self.norm(self.tokens(tokens) + self.positions(places) + self.segments(jnp.zeros_like(tokens)))
        mask = (tokens > 0)[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(jnp.tanh(self.pooler(x[:, 0])))


class TiedEmbeddings(nnx.Module):
    """A token table, residual MLPs, and the same table for the logits: the plainest tied network."""

    def __init__(self, *, vocabulary: int, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.blocks = nnx.List(MLP(width, 4 * width, rngs=rngs) for _ in range(depth))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.tokens.attend(x)
