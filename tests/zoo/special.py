"""One structure each: one and three spatial axes, shared layers, remat, squeeze-excite, gated halves."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from .entry import Entry
from .layers import ConvNorm, SqueezeExcite, conv, identity, images, mean_over_positions, run_all


class TemporalBlock(nnx.Module):
    """Two dilated convolutions along one axis, plus the input, projected where widths change."""

    def __init__(self, c_in: int, c_out: int, dilation: int, rngs: nnx.Rngs) -> None:
        def along(channels: int) -> nnx.Conv:
            return nnx.Conv(channels, c_out, (3,), padding="CAUSAL", kernel_dilation=dilation, rngs=rngs)

        self.conv1, self.conv2 = along(c_in), along(c_out)
        self.norm1, self.norm2 = nnx.BatchNorm(c_out, rngs=rngs), nnx.BatchNorm(c_out, rngs=rngs)
        self.projection = nnx.Conv(c_in, c_out, (1,), rngs=rngs) if c_in != c_out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.projection is None else self.projection(x)))


class ConvNet1d(nnx.Module):
    """Bai et al. 2018, a temporal convolutional network: [N, L, C] to logits."""

    def __init__(self, rngs: nnx.Rngs, c_in: int, widths: Sequence[int], num_classes: int = 10) -> None:
        blocks = []
        for level, c_out in enumerate(widths):
            blocks.append(TemporalBlock(c_in, c_out, 2**level, rngs))
            c_in = c_out
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(run_all(self.blocks, x), (2,), strides=(2,))
        return self.output(mean_over_positions(x))


class ConvNet3d(nnx.Module):
    """Volumes [N, D, H, W, C] to logits, in the manner of Tran et al. 2015."""

    def __init__(self, rngs: nnx.Rngs, widths: Sequence[int], hidden: int, num_classes: int = 10) -> None:
        inputs = (3, *widths[:-1])
        pairs = list(zip(inputs, widths, strict=True))
        self.convs = nnx.List([nnx.Conv(c_in, c_out, (3, 3, 3), rngs=rngs) for c_in, c_out in pairs])
        self.norms = nnx.List([nnx.BatchNorm(c_out, rngs=rngs) for c_out in widths])
        self.dense = nnx.Linear(widths[-1], hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(layer(x))), (2, 2, 2), strides=(2, 2, 2))
        return self.output(nnx.relu(self.dense(mean_over_positions(x))))


class SharedLayers(nnx.Module):
    """One convolution applied twice, each time with a norm of its own, and one head for two sizes of image."""

    def __init__(self, rngs: nnx.Rngs, channels: int, num_classes: int = 10) -> None:
        self.stem = ConvNorm(3, channels, 3, rngs)
        self.shared = conv(channels, channels, 3, rngs, bias=True)
        self.norms = nnx.List([nnx.BatchNorm(channels, rngs=rngs) for _ in range(2)])
        self.head = conv(channels, channels // 2, 1, rngs, bias=True)
        self.output = nnx.Linear(channels // 2, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for norm in self.norms:
            x = nnx.relu(norm(self.shared(x)))
        small = nnx.max_pool(x, (2, 2), strides=(2, 2))
        features = [mean_over_positions(nnx.relu(self.head(each))) for each in (x, small)]
        return self.output(features[0] + features[1])


class RematBlock(nnx.Module):
    """A residual block whose inner values are computed again in the backward pass."""

    def __init__(self, channels: int, inner: int, rngs: nnx.Rngs) -> None:
        self.first = ConvNorm(channels, inner, 3, rngs)
        self.second = ConvNorm(inner, channels, 3, rngs, activation=identity)

    @nnx.remat
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x + self.second(self.first(x)))


class RematNet(nnx.Module):
    """Residual blocks under `nnx.remat`."""

    def __init__(self, rngs: nnx.Rngs, channels: int, inner: int, count: int, num_classes: int = 10) -> None:
        self.stem = ConvNorm(3, channels, 3, rngs, strides=2)
        self.blocks = nnx.List([RematBlock(channels, inner, rngs) for _ in range(count)])
        self.output = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(mean_over_positions(run_all(self.blocks, self.stem(x))))


class SqueezeExciteBlock(nnx.Module):
    """A basic residual block, its second convolution gated by squeeze-excite."""

    def __init__(self, c_in: int, c_out: int, strides: int, reduction: int, rngs: nnx.Rngs) -> None:
        self.first = ConvNorm(c_in, c_out, 3, rngs, strides=strides)
        self.second = ConvNorm(c_out, c_out, 3, rngs, activation=identity)
        self.excite = SqueezeExcite(c_out, c_out // reduction, rngs)
        projects = (c_in, 1) != (c_out, strides)
        self.projection = (
            ConvNorm(c_in, c_out, 1, rngs, strides=strides, activation=identity) if projects else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.excite(self.second(self.first(x)))
        return nnx.relu(y + (x if self.projection is None else self.projection(x)))


class SqueezeExciteNet(nnx.Module):
    """Hu et al. 2018, for small images."""

    def __init__(
        self, rngs: nnx.Rngs, widths: Sequence[int], count: int, reduction: int, num_classes: int = 10
    ) -> None:
        self.stem = ConvNorm(3, widths[0], 3, rngs)
        blocks, c_in = [], widths[0]
        for stage, c_out in enumerate(widths):
            for number in range(count):
                strides = 2 if stage > 0 and number == 0 else 1
                blocks.append(SqueezeExciteBlock(c_in, c_out, strides, reduction, rngs))
                c_in = c_out
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(mean_over_positions(run_all(self.blocks, self.stem(x))))


class GatedBlock(nnx.Module):
    """A convolution to twice the channels, whose second half gates the first; norm, plus the input."""

    def __init__(self, channels: int, inner: int, rngs: nnx.Rngs) -> None:
        self.double = conv(channels, 2 * inner, 3, rngs, bias=True)
        self.norm = nnx.BatchNorm(inner, rngs=rngs)
        self.project = conv(inner, channels, 1, rngs, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        values, gates = jnp.split(self.double(x), 2, axis=-1)
        return x + self.project(self.norm(values * nnx.sigmoid(gates)))


class GatedConvNet(nnx.Module):
    """Dauphin et al. 2017, for images: gated linear units in residual blocks."""

    def __init__(self, rngs: nnx.Rngs, channels: int, inner: int, count: int, num_classes: int = 10) -> None:
        self.stem = conv(3, 2 * channels, 3, rngs, bias=True)
        self.blocks = nnx.List([GatedBlock(channels, inner, rngs) for _ in range(count)])
        self.output = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(mean_over_positions(run_all(self.blocks, nnx.glu(self.stem(x)))))


ENTRIES = (
    Entry(
        "conv_1d",
        lambda rngs: ConvNet1d(rngs, 3, (8, 8, 12)),
        lambda rngs: ConvNet1d(rngs, 1, (25,) * 8),
        jax.ShapeDtypeStruct((2, 16, 3), jnp.float32),
        jax.ShapeDtypeStruct((2, 784, 1), jnp.float32),
        None,
        "one spatial axis, causal and dilated",
    ),
    Entry(
        "conv_3d",
        lambda rngs: ConvNet3d(rngs, (8, 12), 16),
        lambda rngs: ConvNet3d(rngs, (64, 128, 256, 512), 4096),
        jax.ShapeDtypeStruct((2, 4, 8, 8, 3), jnp.float32),
        jax.ShapeDtypeStruct((2, 16, 112, 112, 3), jnp.float32),
        None,
        "three spatial axes",
    ),
    Entry(
        "shared_layers",
        lambda rngs: SharedLayers(rngs, 8),
        lambda rngs: SharedLayers(rngs, 256),
        images(8),
        images(32),
        None,
        "one convolution at two depths, so that its inputs and outputs fall together",
    ),
    Entry(
        "remat",
        lambda rngs: RematNet(rngs, 8, 12, 2),
        lambda rngs: RematNet(rngs, 128, 256, 8),
        images(8),
        images(32),
        None,
        "blocks under nnx.remat",
    ),
    Entry(
        "squeeze_excite",
        lambda rngs: SqueezeExciteNet(rngs, (8, 12), 2, 4),
        lambda rngs: SqueezeExciteNet(rngs, (64, 128, 256, 512), 2, 16),
        images(8),
        images(32),
        None,
        "gates from the means of all channels",
    ),
    Entry(
        "gated_conv",
        lambda rngs: GatedConvNet(rngs, 8, 12, 2),
        lambda rngs: GatedConvNet(rngs, 128, 256, 8),
        images(8),
        images(32),
        None,
        "channels in two halves that fall in pairs; once by jnp.split, once by nnx.glu",
    ),
)
