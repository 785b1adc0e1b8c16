"""Networks that join channels (DenseNet, Inception), and ConvNeXt with its norms over channels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from .entry import Entry
from .layers import ConvNorm, conv, halving_max_pool, images, mean_over_positions, run_all


class DenseLayer(nnx.Module):
    """The input joined by `growth` new channels: norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution."""

    def __init__(self, c_in: int, inner: int, growth: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.BatchNorm(c_in, rngs=rngs)
        self.conv1 = conv(c_in, inner, 1, rngs)
        self.norm2 = nnx.BatchNorm(inner, rngs=rngs)
        self.conv2 = conv(inner, growth, 3, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(nnx.relu(self.norm1(x)))
        return jnp.concatenate([x, self.conv2(nnx.relu(self.norm2(y)))], axis=-1)


class Transition(nnx.Module):
    """Norm, ReLU, 1x1 convolution, and the mean of 2x2 windows."""

    def __init__(self, c_in: int, c_out: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(c_in, rngs=rngs)
        self.conv = conv(c_in, c_out, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.avg_pool(self.conv(nnx.relu(self.norm(x))), (2, 2), strides=(2, 2))


class DenseNet(nnx.Module):
    """Huang et al. 2017: every layer reads all layers before it."""

    def __init__(
        self, rngs: nnx.Rngs, stem: int, growth: int, counts: Sequence[int], num_classes: int
    ) -> None:
        self.stem = ConvNorm(3, stem, 7, rngs, strides=2)
        layers, channels = [], stem
        for stage, count in enumerate(counts):
            if stage > 0:
                layers.append(Transition(channels, channels // 2, rngs))
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, 4 * growth, growth, rngs))
                channels += growth
        self.layers = nnx.List(layers)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.output = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = run_all(self.layers, halving_max_pool(self.stem(x)))
        return self.output(mean_over_positions(nnx.relu(self.norm(x))))


class Branches(nnx.Module):
    """Chains of convolutions side by side, joined; one of them after pooling. A chain may end in a fork."""

    def __init__(
        self,
        chains: Sequence[Sequence[nnx.Module]],
        forks: Sequence[Sequence[nnx.Module]],
        pooled: Sequence[nnx.Module],
        strides: int = 1,
    ) -> None:
        self.chains = nnx.List([nnx.List(list(chain)) for chain in chains])
        self.forks = nnx.List([nnx.List(list(fork)) for fork in forks])
        self.pooled = nnx.List(list(pooled))
        self.strides = strides

    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = [run_all(chain, x) for chain in self.chains]
        for number, fork in enumerate(self.forks, start=len(outputs) - len(self.forks)):
            outputs[number] = jnp.concatenate([branch(outputs[number]) for branch in fork], axis=-1)
        if self.strides == 2:
            pooled = halving_max_pool(x)
        else:
            pooled = nnx.avg_pool(x, (3, 3), padding="SAME")
        return jnp.concatenate([*outputs, run_all(self.pooled, pooled)], axis=-1)


def inception_a(c_in: int, w: int, pooled: int, rngs: nnx.Rngs) -> Branches:
    """Branches of 1x1; 1x1, 5x5; 1x1, 3x3, 3x3; pooling, 1x1."""
    one = [ConvNorm(c_in, w, 1, rngs)]
    five = [ConvNorm(c_in, 3 * w // 4, 1, rngs), ConvNorm(3 * w // 4, w, 5, rngs)]
    three = [
        ConvNorm(c_in, w, 1, rngs),
        ConvNorm(w, 3 * w // 2, 3, rngs),
        ConvNorm(3 * w // 2, 3 * w // 2, 3, rngs),
    ]
    return Branches([one, five, three], [], [ConvNorm(c_in, pooled, 1, rngs)])


def inception_b(c_in: int, w: int, rngs: nnx.Rngs) -> Branches:
    """Halves the image: 3x3; 1x1, 3x3, 3x3; and the pooled input itself."""
    three = [ConvNorm(c_in, 6 * w, 3, rngs, strides=2)]
    double = [
        ConvNorm(c_in, w, 1, rngs),
        ConvNorm(w, 3 * w // 2, 3, rngs),
        ConvNorm(3 * w // 2, 3 * w // 2, 3, rngs, strides=2),
    ]
    return Branches([three, double], [], [], strides=2)


def inception_c(c_in: int, inner: int, w: int, rngs: nnx.Rngs) -> Branches:
    """Kernels of 1x7 and 7x1."""
    seven = [
        ConvNorm(c_in, inner, 1, rngs),
        ConvNorm(inner, inner, (1, 7), rngs),
        ConvNorm(inner, w, (7, 1), rngs),
    ]
    double = [
        ConvNorm(c_in, inner, 1, rngs),
        ConvNorm(inner, inner, (7, 1), rngs),
        ConvNorm(inner, inner, (1, 7), rngs),
        ConvNorm(inner, inner, (7, 1), rngs),
        ConvNorm(inner, w, (1, 7), rngs),
    ]
    return Branches([[ConvNorm(c_in, w, 1, rngs)], seven, double], [], [ConvNorm(c_in, w, 1, rngs)])


def inception_e(c_in: int, w: int, rngs: nnx.Rngs) -> Branches:
    """Two chains that fork into 1x3 and 3x1."""

    def fork() -> list[ConvNorm]:
        return [ConvNorm(2 * w, 2 * w, (1, 3), rngs), ConvNorm(2 * w, 2 * w, (3, 1), rngs)]

    one = [ConvNorm(c_in, 5 * w // 3, 1, rngs)]
    single = [ConvNorm(c_in, 2 * w, 1, rngs)]
    double = [ConvNorm(c_in, 7 * w // 3, 1, rngs), ConvNorm(7 * w // 3, 2 * w, 3, rngs)]
    return Branches([one, single, double], [fork(), fork()], [ConvNorm(c_in, w, 1, rngs)])


class Inception(nnx.Module):
    """Szegedy et al. 2016: one block of each kind of Inception-v3, from its 192 channels on."""

    def __init__(self, rngs: nnx.Rngs, c_in: int, w: int, inner: int, last: int, num_classes: int) -> None:
        outer = 3 * w
        self.a = inception_a(c_in, w, w // 2, rngs)
        after_a = 2 * w + 3 * w // 2 + w // 2
        after_b = 6 * w + 3 * w // 2 + after_a
        self.b = inception_b(after_a, w, rngs)
        self.c = inception_c(after_b, inner, outer, rngs)
        self.e = inception_e(4 * outer, last, rngs)
        self.output = nnx.Linear(5 * last // 3 + 9 * last, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(mean_over_positions(self.e(self.c(self.b(self.a(x))))))


class ConvNeXtBlock(nnx.Module):
    """Depthwise 7x7 convolution, LayerNorm, two dense layers with GELU, a learned scale, plus the input."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.depthwise = conv(channels, channels, 7, rngs, groups=channels, bias=True)
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.dense1 = nnx.Linear(channels, 4 * channels, rngs=rngs)
        self.dense2 = nnx.Linear(4 * channels, channels, rngs=rngs)
        self.scale = nnx.Param(jnp.full((channels,), 1e-6))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.dense2(nnx.gelu(self.dense1(self.norm(self.depthwise(x))), approximate=False))
        return x + self.scale[None, None, None, :] * y


class ConvNeXt(nnx.Module):
    """Liu et al. 2022."""

    def __init__(
        self, rngs: nnx.Rngs, widths: Sequence[int], counts: Sequence[int], num_classes: int
    ) -> None:
        self.stem = nnx.Conv(3, widths[0], (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.stem_norm = nnx.LayerNorm(widths[0], rngs=rngs)
        layers: list[nnx.Module] = []
        for stage, (channels, count) in enumerate(zip(widths, counts, strict=True)):
            if stage > 0:
                layers.append(nnx.LayerNorm(widths[stage - 1], rngs=rngs))
                layers.append(
                    nnx.Conv(widths[stage - 1], channels, (2, 2), strides=2, padding="VALID", rngs=rngs)
                )
            layers += [ConvNeXtBlock(channels, rngs) for _ in range(count)]
        self.layers = nnx.List(layers)
        self.norm = nnx.LayerNorm(widths[-1], rngs=rngs)
        self.output = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = run_all(self.layers, self.stem_norm(self.stem(x)))
        return self.output(self.norm(mean_over_positions(x)))


ENTRIES = (
    Entry(
        "densenet121",
        lambda rngs: DenseNet(rngs, 8, 4, (2, 3), 10),
        lambda rngs: DenseNet(rngs, 64, 32, (6, 12, 24, 16), 1000),
        images(16),
        images(224),
        7_978_856,
        "every layer reads the concatenation of all before it",
    ),
    Entry(
        "inception",
        lambda rngs: Inception(rngs, 6, 8, 8, 6, 10),
        lambda rngs: Inception(rngs, 192, 64, 128, 192, 1000),
        images(8, 6),
        images(35, 192),
        None,
        "branches and concatenation, 1x7 and 7x1 kernels, forks, the pooled input among the branches",
    ),
    Entry(
        "convnext_t",
        lambda rngs: ConvNeXt(rngs, (8, 12), (2, 1), 10),
        lambda rngs: ConvNeXt(rngs, (96, 192, 384, 768), (3, 3, 9, 3), 1000),
        images(16),
        images(224),
        28_589_128,
        "LayerNorm over channels, depthwise convolutions, layer scale",
    ),
)
