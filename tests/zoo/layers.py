"""Layers that several networks of the zoo share. All widths are read from arrays when a network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]


def images(side: int, channels: int = 3, count: int = 2) -> jax.ShapeDtypeStruct:
    """Shape of a batch of square images, [N, H, W, C]."""
    return jax.ShapeDtypeStruct((count, side, side, channels), jnp.float32)


def identity(x: jax.Array) -> jax.Array:
    """The input."""
    return x


def conv(
    c_in: int,
    c_out: int,
    size: int | Sequence[int],
    rngs: nnx.Rngs,
    *,
    strides: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nnx.Conv:
    """A two-dimensional convolution that pads as much on either side."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    padding = tuple((side // 2, side // 2) for side in sizes)
    return nnx.Conv(
        c_in, c_out, sizes, strides=strides, padding=padding, feature_group_count=groups, use_bias=bias, rngs=rngs
    )  # fmt: skip


class ConvNorm(nnx.Module):
    """Convolution, batch normalisation, activation."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int | Sequence[int],
        rngs: nnx.Rngs,
        *,
        strides: int = 1,
        groups: int = 1,
        activation: Activation = nnx.relu,
    ) -> None:
        self.conv = conv(c_in, c_out, size, rngs, strides=strides, groups=groups)
        self.norm = nnx.BatchNorm(c_out, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.norm(self.conv(x)))


class SqueezeExcite(nnx.Module):
    """Each channel times a gate computed from the means of all channels."""

    def __init__(
        self,
        channels: int,
        squeezed: int,
        rngs: nnx.Rngs,
        *,
        activation: Activation = nnx.relu,
        gate: Activation = nnx.sigmoid,
    ) -> None:
        self.squeeze = conv(channels, squeezed, 1, rngs, bias=True)
        self.excite = conv(squeezed, channels, 1, rngs, bias=True)
        self.activation = activation
        self.gate = gate

    def __call__(self, x: jax.Array) -> jax.Array:
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        return x * self.gate(self.excite(self.activation(self.squeeze(means))))


def halving_max_pool(x: jax.Array) -> jax.Array:
    """The maximum of 3x3 windows at strides of 2."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def mean_over_positions(x: jax.Array) -> jax.Array:
    """[N, C] from [N, ..., C]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor, never less than nine tenths of the width."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


def run_all(layers: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
    """One layer after the other."""
    for layer in layers:
        x = layer(x)
    return x
