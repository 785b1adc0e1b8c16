"""Swin transformer (Liu et al., 2021): attention in windows that shift, and patches that merge."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .attention_parts import MLP, attend, exact_gelu, merge_heads, split_heads


def to_windows(x: jax.Array, window: int) -> jax.Array:
    """[N, H, W, C] to [N * windows, window * window, C]."""
    n, height, width, _ = x.shape
    x = x.reshape(n, height // window, window, width // window, window, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, x.shape[-1])


def from_windows(x: jax.Array, window: int, height: int, width: int) -> jax.Array:
    """The inverse of `to_windows`."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


def relative_index(window: int) -> np.ndarray:
    """[window**2, window**2] rows of the bias table, by the offset between two positions."""
    rows, columns = np.indices((window, window)).reshape(2, -1)
    row_offset = rows[:, None] - rows[None] + window - 1
    return row_offset * (2 * window - 1) + columns[:, None] - columns[None] + window - 1


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """[windows, window**2, window**2]: which positions of a shifted window were neighbours before the shift."""
    bands = [
        np.searchsorted([size - window, size - shift], np.arange(size), "right") for size in (height, width)
    ]
    region = 3 * bands[0][:, None] + bands[1][None]
    region = region.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3)
    region = region.reshape(-1, window * window)
    return region[:, :, None] == region[:, None]


class WindowAttention(nnx.Module):
    """Self-attention within each window, with a bias by relative position."""

    def __init__(self, width: int, num_heads: int, window: int, *, rngs: nnx.Rngs) -> None:
        table_shape = ((2 * window - 1) ** 2, num_heads)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.bias_table = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), table_shape, jnp.float32))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.num_heads = num_heads
        self.window = window

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        query, key, value = (split_heads(part, self.num_heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        bias = self.bias_table[...][relative_index(self.window)].transpose(2, 0, 1)[None]
        return self.out(merge_heads(attend(query, key, value, mask=mask, bias=bias)))


class SwinBlock(nnx.Module):
    """Window attention, shifted or not, and an MLP."""

    def __init__(self, width: int, num_heads: int, window: int, shift: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = WindowAttention(width, num_heads, window, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, activation=exact_gelu, rngs=rngs)
        self.window = window
        self.shift = shift

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self._attend(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))

    def _attend(self, x: jax.Array) -> jax.Array:
        n, height, width, _ = x.shape
        mask = None
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
            mask = jnp.tile(shift_mask(height, width, self.window, self.shift), (n, 1, 1))[:, None]
        x = self.attention(to_windows(x, self.window), mask)
        x = from_windows(x, self.window, height, width)
        return jnp.roll(x, (self.shift, self.shift), axis=(1, 2)) if self.shift else x


class PatchMerging(nnx.Module):
    """Four neighbours become one position of twice the width."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(4 * width, rngs=rngs)
        self.reduction = nnx.Linear(4 * width, 2 * width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class Swin(nnx.Module):
    """Stages of blocks; every second block shifts its windows, where there is more than one."""

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = nnx.Conv(3, width, (patch, patch), (patch, patch), padding="VALID", rngs=rngs)
        self.stem_norm = nnx.LayerNorm(width, rngs=rngs)
        side = image // patch
        layers: list[nnx.Module] = []
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            if stage:
                layers.append(PatchMerging(width, rngs=rngs))
                width, side = 2 * width, side // 2
            shift = window // 2 if side > window else 0
            layers += [SwinBlock(width, heads, window, shift * (i % 2), rngs=rngs) for i in range(depth)]
        self.layers = nnx.List(layers)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem_norm(self.stem(x))
        for layer in self.layers:
            x = layer(x)
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))
