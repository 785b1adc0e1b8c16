"""The blocks of residual networks: two or three convolutions, and a shortcut past them."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import batch_norm, strided_convolution

Shortcut = Literal["A", "B"]
"""Where sizes change: "A" subsamples and pads channels with zeros, "B" projects by a 1x1 convolution and norm."""


class ConvNorm(nnx.Module):
    """A convolution without bias and the batch normalisation after it, [N, H, W, c_in] to [N, H', W', c_out]."""

    def __init__(
        self, c_in: int, c_out: int, size: int, rngs: nnx.Rngs, *, strides: int = 1, groups: int = 1
    ) -> None:
        self.conv = strided_convolution(c_in, c_out, size, strides, rngs, groups=groups)
        self.norm = batch_norm(c_out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The normalised convolution."""
        return self.norm(self.conv(x))


def pad_channels(x: jax.Array, c_out: int) -> jax.Array:
    """[N, H, W, c_out]: zeros before and after the channels of `x`, one more after where their number is odd.

    Example:
      >>> pad_channels(jnp.ones((1, 1, 1, 2)), 5).ravel().tolist()
      [0.0, 1.0, 1.0, 0.0, 0.0]
    """
    missing = c_out - x.shape[-1]
    before = missing // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, missing - before)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, the first with the strides, plus the shortcut; ReLU after the sum.

    Source:
      He et al. 2016, Deep Residual Learning for Image Recognition, figure 2.
    """

    def __init__(
        self, c_in: int, c_out: int, strides: int, rngs: nnx.Rngs, *, shortcut: Shortcut = "B"
    ) -> None:
        self.first = ConvNorm(c_in, c_out, 3, rngs, strides=strides)
        self.second = ConvNorm(c_out, c_out, 3, rngs)
        self.strides = strides
        projects = shortcut == "B" and (strides != 1 or c_in != c_out)
        self.projection = ConvNorm(c_in, c_out, 1, rngs, strides=strides) if projects else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = self.second(jax.nn.relu(self.first(x)))
        if self.projection is not None:
            return jax.nn.relu(y + self.projection(x))
        # Widths come from the arrays, so the sum still fits after channels were cut away.
        x = x[:, :: self.strides, :: self.strides]
        return jax.nn.relu(y + (x if x.shape == y.shape else pad_channels(x, y.shape[-1])))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the strides) and 1x1 convolution plus a projected shortcut; ReLU after the sum.

    Source:
      He et al. 2016, figure 5, with the strides on the 3x3 convolution, as is usual since.
    """

    def __init__(self, c_in: int, c_inner: int, c_out: int, strides: int, rngs: nnx.Rngs) -> None:
        self.reduce = ConvNorm(c_in, c_inner, 1, rngs)
        self.middle = ConvNorm(c_inner, c_inner, 3, rngs, strides=strides)
        self.expand = ConvNorm(c_inner, c_out, 1, rngs)
        projects = strides != 1 or c_in != c_out
        self.projection = ConvNorm(c_in, c_out, 1, rngs, strides=strides) if projects else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = jax.nn.relu(self.middle(jax.nn.relu(self.reduce(x))))
        return jax.nn.relu(self.expand(y) + (x if self.projection is None else self.projection(x)))


class PreActBottleneck(nnx.Module):
    """Norm and ReLU before each of the 1x1, 3x3 and 1x1 convolutions; the sum is left as it is.

    Source:
      He et al. 2016, Identity Mappings in Deep Residual Networks, figure 4 (e).
    """

    def __init__(self, c_in: int, c_inner: int, c_out: int, strides: int, rngs: nnx.Rngs) -> None:
        self.norm1 = batch_norm(c_in, rngs)
        self.conv1 = strided_convolution(c_in, c_inner, 1, 1, rngs)
        self.norm2 = batch_norm(c_inner, rngs)
        self.conv2 = strided_convolution(c_inner, c_inner, 3, strides, rngs)
        self.norm3 = batch_norm(c_inner, rngs)
        self.conv3 = strided_convolution(c_inner, c_out, 1, 1, rngs)
        projects = strides != 1 or c_in != c_out
        self.projection = strided_convolution(c_in, c_out, 1, strides, rngs) if projects else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = jax.nn.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(y)
        y = self.conv2(jax.nn.relu(self.norm2(self.conv1(y))))
        return shortcut + self.conv3(jax.nn.relu(self.norm3(y)))
