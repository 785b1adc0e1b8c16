"""Networks from images to images: U-Nets, super-resolution, an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from .entry import Entry
from .layers import conv, images, run_all

MakeNorm = Callable[[int, nnx.Rngs], nnx.Module]


def batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.BatchNorm(channels, rngs=rngs)


def group_norm_of(num_groups: int) -> MakeNorm:
    """Makes group normalisations with that many groups."""
    return lambda channels, rngs: nnx.GroupNorm(channels, num_groups=num_groups, rngs=rngs)


class DoubleConv(nnx.Module):
    """3x3 convolution, norm, ReLU, twice."""

    def __init__(self, c_in: int, c_out: int, make_norm: MakeNorm, rngs: nnx.Rngs) -> None:
        self.conv1 = conv(c_in, c_out, 3, rngs)
        self.norm1 = make_norm(c_out, rngs)
        self.conv2 = conv(c_out, c_out, 3, rngs)
        self.norm2 = make_norm(c_out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(x)))


class UNet(nnx.Module):
    """Ronneberger et al. 2015, padded: down by pooling, up by transposed convolution, joined across."""

    def __init__(
        self, rngs: nnx.Rngs, widths: Sequence[int], make_norm: MakeNorm, num_classes: int = 1
    ) -> None:
        inputs = (3, *widths[:-1])
        self.down = nnx.List(
            [DoubleConv(c_in, c_out, make_norm, rngs) for c_in, c_out in zip(inputs, widths, strict=True)]
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nnx.List(
            [nnx.ConvTranspose(deep, flat, (2, 2), strides=(2, 2), rngs=rngs) for deep, flat in pairs]
        )
        self.joined = nnx.List([DoubleConv(2 * flat, flat, make_norm, rngs) for _, flat in pairs])
        self.output = conv(widths[0], num_classes, 1, rngs, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        skipped = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nnx.max_pool(x, (2, 2), strides=(2, 2)))
            skipped.append(x)
        for up, block, skip in zip(self.up, self.joined, skipped[-2::-1], strict=True):
            x = block(jnp.concatenate([skip, up(x)], axis=-1))
        return self.output(x)


class ResidualPair(nnx.Module):
    """Two 3x3 convolutions without norm, plus the input."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.conv1 = conv(channels, channels, 3, rngs, bias=True)
        self.conv2 = conv(channels, channels, 3, rngs, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv2(nnx.relu(self.conv1(x)))


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """[N, factor H, factor W, C] from [N, H, W, factor^2 C], channels of one pixel side by side."""
    n, height, width, _ = x.shape
    x = x.reshape(n, height, width, factor, factor, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, factor * height, factor * width, -1)


class SuperResolution(nnx.Module):
    """Lim et al. 2017, the baseline without mean shift: residual pairs, a long shortcut, pixel shuffle inside."""

    def __init__(self, rngs: nnx.Rngs, channels: int, count: int, factor: int = 2) -> None:
        self.head = conv(3, channels, 3, rngs, bias=True)
        self.pairs = nnx.List([ResidualPair(channels, rngs) for _ in range(count)])
        self.tail = conv(channels, channels, 3, rngs, bias=True)
        self.expand = conv(channels, factor * factor * channels, 3, rngs, bias=True)
        self.output = conv(channels, 3, 3, rngs, bias=True)
        self.factor = factor

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.head(x)
        x = x + self.tail(run_all(self.pairs, x))
        return self.output(pixel_shuffle(self.expand(x), self.factor))


class Autoencoder(nnx.Module):
    """Strided convolutions down to a flat code, and transposed ones back; codes are pruned, pixels are not."""

    def __init__(self, rngs: nnx.Rngs, widths: Sequence[int], code: int, side: int) -> None:
        inputs = (3, *widths[:-1])
        self.down = nnx.List(
            [
                conv(c_in, c_out, 3, rngs, strides=2, bias=True)
                for c_in, c_out in zip(inputs, widths, strict=True)
            ]
        )
        self.side = side // 2 ** len(widths)
        self.encode = nnx.Linear(self.side**2 * widths[-1], code, rngs=rngs)
        self.decode = nnx.Linear(code, self.side**2 * widths[-1], rngs=rngs)
        outputs = (*widths[-2::-1], 3)
        self.up = nnx.List(
            [
                nnx.ConvTranspose(c_in, c_out, (4, 4), strides=(2, 2), rngs=rngs)
                for c_in, c_out in zip(widths[::-1], outputs, strict=True)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.down:
            x = nnx.relu(layer(x))
        x = nnx.relu(self.encode(x.reshape(x.shape[0], -1)))
        x = self.decode(x).reshape(x.shape[0], self.side, self.side, -1)
        for layer in self.up:
            x = layer(nnx.relu(x))
        return nnx.sigmoid(x)


UNET_WIDTHS = (64, 128, 256, 512, 1024)

ENTRIES = (
    Entry(
        "unet_batch_norm",
        lambda rngs: UNet(rngs, (8, 12, 16), batch_norm),
        lambda rngs: UNet(rngs, UNET_WIDTHS, batch_norm),
        images(16),
        images(256),
        31_037_633,
        "concatenation across, transposed convolutions",
    ),
    Entry(
        "unet_group_norm",
        lambda rngs: UNet(rngs, (8, 12, 16), group_norm_of(4)),
        lambda rngs: UNet(rngs, UNET_WIDTHS, group_norm_of(32)),
        images(16),
        images(256),
        31_037_633,
        "as with batch norm, normalised over groups of channels",
    ),
    Entry(
        "super_resolution",
        lambda rngs: SuperResolution(rngs, 8, 2),
        lambda rngs: SuperResolution(rngs, 64, 16),
        images(8),
        images(48),
        1_369_859,
        "EDSR baseline x2; pixel shuffle between convolutions, no norm",
    ),
    Entry(
        "autoencoder",
        lambda rngs: Autoencoder(rngs, (8, 12), 10, 16),
        lambda rngs: Autoencoder(rngs, (32, 64, 128), 256, 64),
        images(16),
        images(64),
        None,
        "flat code: a dense layer's outputs become positions and channels again",
    ),
)
