"""Networks for small devices: depthwise convolutions, squeeze-excite, fire modules, channel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .entry import Entry
from .layers import (
    Activation,
    ConvNorm,
    SqueezeExcite,
    conv,
    divisible,
    halving_max_pool,
    identity,
    images,
    mean_over_positions,
    run_all,
)


class MobileNetV1(nnx.Module):
    """Howard et al. 2017: a depthwise and a 1x1 convolution in turns."""

    def __init__(
        self, rngs: nnx.Rngs, stem: int, stages: Sequence[tuple[int, int]], num_classes: int
    ) -> None:
        self.stem = ConvNorm(3, stem, 3, rngs, strides=2, activation=nnx.relu6)
        layers, c_in = [], stem
        for c_out, strides in stages:
            layers.append(ConvNorm(c_in, c_in, 3, rngs, strides=strides, groups=c_in, activation=nnx.relu6))
            layers.append(ConvNorm(c_in, c_out, 1, rngs, activation=nnx.relu6))
            c_in = c_out
        self.layers = nnx.List(layers)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(mean_over_positions(run_all(self.layers, self.stem(x))))


class Inverted(NamedTuple):
    """Settings of one inverted residual block; `squeezed` 0 leaves squeeze-excite out."""

    size: int
    inner: int
    c_out: int
    squeezed: int
    activation: Activation
    strides: int


class InvertedBlock(nnx.Module):
    """1x1 convolution, depthwise convolution, squeeze-excite, 1x1 convolution, plus the input where it fits."""

    def __init__(
        self, c_in: int, block: Inverted, excite: tuple[Activation, Activation], rngs: nnx.Rngs
    ) -> None:
        size, inner, c_out, squeezed, activation, strides = block
        self.expand = ConvNorm(c_in, inner, 1, rngs, activation=activation) if inner != c_in else None
        self.depthwise = ConvNorm(
            inner, inner, size, rngs, strides=strides, groups=inner, activation=activation
        )
        self.excite = (
            SqueezeExcite(inner, squeezed, rngs, activation=excite[0], gate=excite[1]) if squeezed else None
        )
        self.project = ConvNorm(inner, c_out, 1, rngs, activation=identity)
        self.adds = strides == 1 and c_in == c_out

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.depthwise(x if self.expand is None else self.expand(x))
        y = self.project(y if self.excite is None else self.excite(y))
        return x + y if self.adds else y


class InvertedNet(nnx.Module):
    """Inverted residual blocks between a stem and a head; a hidden dense layer where `hidden` is not 0."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        stem: int,
        blocks: Sequence[Inverted],
        head: int,
        hidden: int,
        num_classes: int,
        *,
        activation: Activation,
        excite: tuple[Activation, Activation],
    ) -> None:
        self.stem = ConvNorm(3, stem, 3, rngs, strides=2, activation=activation)
        made, c_in = [], stem
        for block in blocks:
            made.append(InvertedBlock(c_in, block, excite, rngs))
            c_in = block.c_out
        self.blocks = nnx.List(made)
        self.head = ConvNorm(c_in, head, 1, rngs, activation=activation)
        self.hidden = nnx.Linear(head, hidden, rngs=rngs) if hidden else None
        self.output = nnx.Linear(hidden or head, num_classes, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = mean_over_positions(self.head(run_all(self.blocks, self.stem(x))))
        return self.output(x if self.hidden is None else self.activation(self.hidden(x)))


def mobilenet_v3(
    rngs: nnx.Rngs, stem: int, rows: Sequence[tuple], head: int, hidden: int, num_classes: int
) -> InvertedNet:
    """Howard et al. 2019; a row is (kernel size, inner and outer width, squeeze-excite, hard swish, strides)."""
    blocks = [
        Inverted(
            size, inner, c_out, divisible(inner // 4) if squeezes else 0, nnx.hard_swish if hard else nnx.relu, step
        )
        for size, inner, c_out, squeezes, hard, step in rows
    ]  # fmt: skip
    excite = (nnx.relu, nnx.hard_sigmoid)
    return InvertedNet(
        rngs, stem, blocks, head, hidden, num_classes, activation=nnx.hard_swish, excite=excite
    )


V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
V3_SMALL = (
    (3, 8, 8, False, False, 1),
    (3, 16, 12, False, False, 2),
    (5, 24, 12, True, False, 1),
    (5, 24, 16, True, True, 2),
    (3, 24, 16, False, True, 1),
)


def efficientnet(
    rngs: nnx.Rngs, stem: int, rows: Sequence[tuple[int, ...]], head: int, num_classes: int, *, lite: bool
) -> InvertedNet:
    """Tan and Le 2019; a row is (expansion, kernel size, strides, width, number of blocks)."""
    activation = nnx.relu6 if lite else nnx.silu
    blocks, c_in = [], stem
    for expansion, size, strides, c_out, count in rows:
        for number in range(count):
            squeezed = 0 if lite else max(1, c_in // 4)
            step = strides if number == 0 else 1
            blocks.append(Inverted(size, expansion * c_in, c_out, squeezed, activation, step))
            c_in = c_out
    excite = (nnx.silu, nnx.sigmoid)
    return InvertedNet(rngs, stem, blocks, head, 0, num_classes, activation=activation, excite=excite)


B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
B0_SMALL = ((1, 3, 1, 8, 1), (3, 3, 2, 12, 2), (3, 5, 1, 16, 1))


class Fire(nnx.Module):
    """A 1x1 convolution that squeezes, then a 1x1 and a 3x3 convolution side by side."""

    def __init__(self, c_in: int, squeezed: int, expanded: int, rngs: nnx.Rngs) -> None:
        self.squeeze = conv(c_in, squeezed, 1, rngs, bias=True)
        self.expand1 = conv(squeezed, expanded, 1, rngs, bias=True)
        self.expand3 = conv(squeezed, expanded, 3, rngs, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.squeeze(x))
        return jnp.concatenate([nnx.relu(self.expand1(x)), nnx.relu(self.expand3(x))], axis=-1)


class SqueezeNet(nnx.Module):
    """Iandola et al. 2016, version 1.1: fire modules, pooling before some, and classes from a 1x1 convolution."""

    def __init__(
        self, rngs: nnx.Rngs, stem: int, rows: Sequence[tuple[int, int, bool]], num_classes: int
    ) -> None:
        self.stem = conv(3, stem, 3, rngs, strides=2, bias=True)
        fires, c_in = [], stem
        for squeezed, expanded, _ in rows:
            fires.append(Fire(c_in, squeezed, expanded, rngs))
            c_in = 2 * expanded
        self.fires = nnx.List(fires)
        self.pooled = tuple(pooled for *_, pooled in rows)
        self.output = conv(c_in, num_classes, 1, rngs, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        for fire, pooled in zip(self.fires, self.pooled, strict=True):
            x = fire(halving_max_pool(x) if pooled else x)
        return mean_over_positions(nnx.relu(self.output(x)))


def shuffle(x: jax.Array) -> jax.Array:
    """Channels of the two halves in turns."""
    x = x.reshape(*x.shape[:-1], 2, -1)
    return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], -1)


class ShuffleUnit(nnx.Module):
    """Half of the channels pass by, or all go two ways where the image is halved; then the halves are shuffled."""

    def __init__(self, c_in: int, c_out: int, strides: int, rngs: nnx.Rngs) -> None:
        half = c_out // 2
        self.splits = strides == 1
        enters = half if self.splits else c_in
        self.main = nnx.List(
            [
                ConvNorm(enters, half, 1, rngs),
                ConvNorm(half, half, 3, rngs, strides=strides, groups=half, activation=identity),
                ConvNorm(half, half, 1, rngs),
            ]
        )
        side = (
            []
            if self.splits
            else [
                ConvNorm(c_in, c_in, 3, rngs, strides=strides, groups=c_in, activation=identity),
                ConvNorm(c_in, half, 1, rngs),
            ]
        )
        self.side = nnx.List(side)

    def __call__(self, x: jax.Array) -> jax.Array:
        passing, entering = jnp.split(x, 2, axis=-1) if self.splits else (x, x)
        return shuffle(jnp.concatenate([run_all(self.side, passing), run_all(self.main, entering)], axis=-1))


class ShuffleNetV2(nnx.Module):
    """Ma et al. 2018: split, depthwise convolution, concatenation, shuffle."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        stem: int,
        widths: Sequence[int],
        counts: Sequence[int],
        head: int,
        num_classes: int,
    ) -> None:
        self.stem = ConvNorm(3, stem, 3, rngs, strides=2)
        units, c_in = [], stem
        for c_out, count in zip(widths, counts, strict=True):
            for number in range(count):
                units.append(ShuffleUnit(c_in, c_out, 2 if number == 0 else 1, rngs))
                c_in = c_out
        self.units = nnx.List(units)
        self.head = ConvNorm(c_in, head, 1, rngs)
        self.output = nnx.Linear(head, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = run_all(self.units, halving_max_pool(self.stem(x)))
        return self.output(mean_over_positions(self.head(x)))


V1_STAGES = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
FIRES = (
    (16, 64, True),
    (16, 64, False),
    (32, 128, True),
    (32, 128, False),
    (48, 192, True),
    (48, 192, False),
    (64, 256, False),
    (64, 256, False),
)

ENTRIES = (
    Entry(
        "mobilenet_v1",
        lambda rngs: MobileNetV1(rngs, 8, ((12, 1), (16, 2), (16, 1)), 10),
        lambda rngs: MobileNetV1(rngs, 32, V1_STAGES, 1000),
        images(16),
        images(224),
        4_231_976,
        "depthwise convolutions in a chain",
    ),
    Entry(
        "mobilenet_v3",
        lambda rngs: mobilenet_v3(rngs, 8, V3_SMALL, 24, 16, 10),
        lambda rngs: mobilenet_v3(rngs, 16, V3_LARGE, 960, 1280, 1000),
        images(16),
        images(224),
        5_483_032,
        "large; squeeze-excite with hard gates, hidden dense layer",
    ),
    Entry(
        "efficientnet_b0",
        lambda rngs: efficientnet(rngs, 8, B0_SMALL, 24, 10, lite=False),
        lambda rngs: efficientnet(rngs, 32, B0, 1280, 1000, lite=False),
        images(16),
        images(224),
        5_288_548,
        "squeeze-excite as wide as the block's input asks",
    ),
    Entry(
        "efficientnet_lite0",
        lambda rngs: efficientnet(rngs, 8, B0_SMALL, 24, 10, lite=True),
        lambda rngs: efficientnet(rngs, 32, B0, 1280, 1000, lite=True),
        images(16),
        images(224),
        4_652_008,
        "no squeeze-excite, ReLU6",
    ),
    Entry(
        "squeezenet",
        lambda rngs: SqueezeNet(rngs, 8, ((4, 8, True), (6, 8, False), (6, 12, True)), 10),
        lambda rngs: SqueezeNet(rngs, 64, FIRES, 1000),
        images(16),
        images(224),
        1_235_496,
        "1.1; concatenation, no norm, classes from a convolution",
    ),
    Entry(
        "shufflenet_v2",
        lambda rngs: ShuffleNetV2(rngs, 8, (16, 24), (3, 2), 32, 10),
        lambda rngs: ShuffleNetV2(rngs, 24, (116, 232, 464), (4, 8, 4), 1024, 1000),
        images(16),
        images(224),
        2_278_604,
        "x1.0; split in halves, concatenation, channel shuffle",
    ),
)
