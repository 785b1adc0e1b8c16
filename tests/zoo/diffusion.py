"""A small U-Net with group normalisation and self-attention over positions, as diffusion models have it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .attention_parts import attend, merge_heads, split_heads


def convolution(c_in: int, c_out: int, rngs: nnx.Rngs, *, size: int = 3, stride: int = 1) -> nnx.Conv:
    """A square convolution with padding."""
    return nnx.Conv(c_in, c_out, (size, size), (stride, stride), padding="SAME", rngs=rngs)


class ResidualBlock(nnx.Module):
    """Two normalised convolutions; the shortcut is projected where the width changes."""

    def __init__(self, c_in: int, c_out: int, num_groups: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.GroupNorm(c_in, num_groups=num_groups, rngs=rngs)
        self.conv1 = convolution(c_in, c_out, rngs)
        self.norm2 = nnx.GroupNorm(c_out, num_groups=num_groups, rngs=rngs)
        self.conv2 = convolution(c_out, c_out, rngs)
        self.shortcut = convolution(c_in, c_out, rngs, size=1) if c_in != c_out else nnx.identity

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(nnx.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(nnx.silu(self.norm2(y)))


class AttentionBlock(nnx.Module):
    """Self-attention in which every position of the map sees every other."""

    def __init__(self, width: int, num_heads: int, num_groups: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.GroupNorm(width, num_groups=num_groups, rngs=rngs)
        self.query, self.key, self.value = (convolution(width, width, rngs, size=1) for _ in range(3))
        self.out = convolution(width, width, rngs, size=1)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, _ = x.shape
        y = self.norm(x)
        query, key, value = (
            split_heads(layer(y).reshape(n, height * width, -1), self.num_heads)
            for layer in (self.query, self.key, self.value)
        )
        y = merge_heads(attend(query, key, value)).reshape(n, height, width, -1)
        return x + self.out(y)


class DiffusionUNet(nnx.Module):
    """One level down and one up, with attention at the bottom and a concatenated skip: an image to an image."""

    def __init__(self, *, channels: int, width: int, num_heads: int, num_groups: int, rngs: nnx.Rngs) -> None:
        self.stem = convolution(channels, width, rngs)
        self.encode = ResidualBlock(width, width, num_groups, rngs=rngs)
        self.down = convolution(width, 2 * width, rngs, stride=2)
        self.bottom = ResidualBlock(2 * width, 2 * width, num_groups, rngs=rngs)
        self.attention = AttentionBlock(2 * width, num_heads, num_groups, rngs=rngs)
        self.up = convolution(2 * width, width, rngs)
        self.decode = ResidualBlock(2 * width, width, num_groups, rngs=rngs)
        self.norm = nnx.GroupNorm(width, num_groups=num_groups, rngs=rngs)
        self.head = convolution(width, channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        skip = self.encode(self.stem(x))
        y = self.attention(self.bottom(self.down(skip)))
        y = self.up(jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2))
        y = self.decode(jnp.concatenate([y, skip], axis=-1))
        return self.head(nnx.silu(self.norm(y)))
