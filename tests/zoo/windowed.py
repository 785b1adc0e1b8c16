"""A vision transformer whose windows and heads are merged into the batch (Kirillov et al., Segment Anything, 2023)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from .attention_parts import MLP, exact_gelu
from .swin import from_windows, to_windows


class MergedAttention(nnx.Module):
    """Self-attention of [N, T, C], with all heads of all examples along one axis."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value = (nnx.Linear(width, width, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        n, length, _ = x.shape

        def heads(layer: nnx.Linear) -> jax.Array:
            parts = layer(x).reshape(n, length, self.num_heads, -1).swapaxes(1, 2)
            return parts.reshape(n * self.num_heads, length, parts.shape[-1])

        query, key, value = heads(self.query), heads(self.key), heads(self.value)
        weights = jax.nn.softmax(query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1]), axis=-1)
        y = (weights @ value).reshape(n, self.num_heads, length, -1).swapaxes(1, 2)
        return self.out(y.reshape(n, length, -1))


class WindowBlock(nnx.Module):
    """Attention in windows of a map, or all over it, and an MLP."""

    def __init__(self, width: int, num_heads: int, window: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = MergedAttention(width, num_heads, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, activation=exact_gelu, rngs=rngs)
        self.window = window

    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, _ = x.shape
        windows = self.attention(to_windows(self.attention_norm(x), self.window))
        x = x + from_windows(windows, self.window, height, width)
        return x + self.mlp(self.mlp_norm(x))


class WindowedViT(nnx.Module):
    """Blocks of windows on a map of patches, the last of them of the whole map; a classifier on the mean."""

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        depth: int,
        num_heads: int,
        window: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.patches = nnx.Conv(3, width, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        windows = [window] * (depth - 1) + [image // patch]
        self.blocks = nnx.List(WindowBlock(width, num_heads, each, rngs=rngs) for each in windows)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x)
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))
