"""Residual networks: wide, with groups, and from designed spaces."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from .entry import Entry
from .layers import (
    ConvNorm,
    SqueezeExcite,
    conv,
    halving_max_pool,
    identity,
    images,
    mean_over_positions,
    run_all,
)


class WideBlock(nnx.Module):
    """Norm, ReLU, 3x3 convolution, twice, plus the input, projected where sizes change."""

    def __init__(self, c_in: int, c_out: int, strides: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.BatchNorm(c_in, rngs=rngs)
        self.conv1 = conv(c_in, c_out, 3, rngs, strides=strides)
        self.norm2 = nnx.BatchNorm(c_out, rngs=rngs)
        self.conv2 = conv(c_out, c_out, 3, rngs)
        self.projection = (
            conv(c_in, c_out, 1, rngs, strides=strides) if (c_in, 1) != (c_out, strides) else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(y)
        return shortcut + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


class WideResNet(nnx.Module):
    """Zagoruyko and Komodakis 2016: pre-activation blocks, few and wide."""

    def __init__(
        self, rngs: nnx.Rngs, stem: int, widths: Sequence[int], count: int, num_classes: int = 10
    ) -> None:
        self.stem = conv(3, stem, 3, rngs)
        blocks, c_in = [], stem
        for stage, c_out in enumerate(widths):
            for number in range(count):
                blocks.append(WideBlock(c_in, c_out, 2 if stage > 0 and number == 0 else 1, rngs))
                c_in = c_out
        self.blocks = nnx.List(blocks)
        self.norm = nnx.BatchNorm(c_in, rngs=rngs)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = run_all(self.blocks, self.stem(x))
        return self.output(mean_over_positions(nnx.relu(self.norm(x))))


class GroupedBottleneck(nnx.Module):
    """1x1, grouped 3x3 and 1x1 convolution plus the shortcut, with squeeze-excite where asked for."""

    def __init__(
        self, c_in: int, c_inner: int, c_out: int, strides: int, groups: int, squeezed: int, rngs: nnx.Rngs
    ) -> None:
        self.reduce = ConvNorm(c_in, c_inner, 1, rngs)
        self.grouped = ConvNorm(c_inner, c_inner, 3, rngs, strides=strides, groups=groups)
        self.excite = SqueezeExcite(c_inner, squeezed, rngs) if squeezed else None
        self.expand = ConvNorm(c_inner, c_out, 1, rngs, activation=identity)
        self.projection = (
            ConvNorm(c_in, c_out, 1, rngs, strides=strides, activation=identity)
            if (c_in, 1) != (c_out, strides)
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.grouped(self.reduce(x))
        y = y if self.excite is None else self.excite(y)
        return nnx.relu(self.expand(y) + (x if self.projection is None else self.projection(x)))


class ResNeXt(nnx.Module):
    """Xie et al. 2017: bottlenecks whose 3x3 convolution works in groups."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        stem: int,
        inner: Sequence[int],
        outer: Sequence[int],
        counts: Sequence[int],
        groups: int,
        num_classes: int,
    ) -> None:
        self.stem = ConvNorm(3, stem, 7, rngs, strides=2)
        blocks, c_in = [], stem
        for stage, count in enumerate(counts):
            for number in range(count):
                strides = 2 if stage > 0 and number == 0 else 1
                blocks.append(GroupedBottleneck(c_in, inner[stage], outer[stage], strides, groups, 0, rngs))
                c_in = outer[stage]
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = run_all(self.blocks, halving_max_pool(self.stem(x)))
        return self.output(mean_over_positions(x))


class RegNet(nnx.Module):
    """Radosavovic et al. 2020: bottlenecks without bottleneck, groups of a fixed width; Y has squeeze-excite."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        stem: int,
        widths: Sequence[int],
        counts: Sequence[int],
        group_width: int,
        squeeze: float,
        num_classes: int,
    ) -> None:
        self.stem = ConvNorm(3, stem, 3, rngs, strides=2)
        blocks, c_in = [], stem
        for c_out, count in zip(widths, counts, strict=True):
            for number in range(count):
                groups, squeezed = c_out // group_width, round(squeeze * c_in)
                blocks.append(
                    GroupedBottleneck(c_in, c_out, c_out, 2 if number == 0 else 1, groups, squeezed, rngs)
                )
                c_in = c_out
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(mean_over_positions(run_all(self.blocks, self.stem(x))))


ENTRIES = (
    Entry(
        "wide_resnet",
        lambda rngs: WideResNet(rngs, 8, (12, 12, 16), 2),
        lambda rngs: WideResNet(rngs, 16, (160, 320, 640), 4),
        images(16),
        images(32),
        36_479_194,
        "28-10; pre-activation, projections without norm",
    ),
    Entry(
        "resnext50",
        lambda rngs: ResNeXt(rngs, 8, (8, 8, 12, 12), (12, 16, 16, 24), (2, 1, 2, 1), 4, 10),
        lambda rngs: ResNeXt(rngs, 64, (128, 256, 512, 1024), (256, 512, 1024, 2048), (3, 4, 6, 3), 32, 1000),
        images(32),
        images(224),
        25_028_904,
        "32x4d; grouped convolutions",
    ),
    Entry(
        "regnet_x",
        lambda rngs: RegNet(rngs, 8, (8, 12, 16, 20), (1, 2, 1, 2), 4, 0.0, 10),
        lambda rngs: RegNet(rngs, 32, (32, 64, 160, 400), (1, 2, 7, 12), 16, 0.0, 1000),
        images(32),
        images(224),
        5_495_976,
        "400MF; groups of a fixed width, so that their number differs from stage to stage",
    ),
    Entry(
        "regnet_y",
        lambda rngs: RegNet(rngs, 8, (8, 12, 16, 20), (1, 2, 1, 2), 4, 0.25, 10),
        lambda rngs: RegNet(rngs, 32, (48, 104, 208, 440), (1, 3, 6, 6), 8, 0.25, 1000),
        images(32),
        images(224),
        4_344_144,
        "400MF; as X with squeeze-excite",
    ),
)
