"""Residual networks: for small images with three stages, and for large ones with four after a quartering stem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import (
    batch_norm,
    check_input,
    check_sizes,
    check_widths,
    convolution,
    strided_convolution,
)

Shortcut = Literal["A", "B"]
"""Shortcut where sizes change: "A" subsamples and pads channels with zeros, "B" is a 1x1 convolution and a norm."""

BASIC_DEPTHS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
)
"""Depth -> number of basic blocks in each stage."""

BOTTLENECK_DEPTHS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
)
"""Depth -> number of bottlenecks in each stage."""

_STAGES = ("stage1", "stage2", "stage3")
_IMAGENET_LAYERS = ("stem", "stage1", "stage2", "stage3", "stage4")
_EXPANSION = 4
"""Channels that a bottleneck puts out for each channel inside."""


class CifarResNet(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, three stages of basic blocks, mean over positions, output.

    A depth of 6n + 2 (20, 32, 44, 56, 110) has n blocks in each stage. At the beginning of a stage the shortcut
    subsamples and pads channels with zeros ("A", as in the paper) or projects ("B").

    Args:
      rngs: random streams for the parameters.
      depth: number of layers with weights on the main path, 6n + 2 with n >= 1.
      shortcut: "A" for zero-padded shortcuts without parameters, "B" for projections.
      widths: channels of the three stages, each >= 1; for "A" no stage has fewer channels than the one before.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 4x4.

    Raises:
      ValueError: if the depth, the shortcut, a width, the number of widths, the image shape or the number of classes
        does not fit, or if the network is called on a batch of another shape.

    Example:
      >>> nnx.eval_shape(lambda: CifarResNet(nnx.Rngs(0), depth=8)(jnp.zeros((2, 32, 32, 3)))).shape
      (2, 10)

    Source:
      He et al. 2016, Deep Residual Learning for Image Recognition, sec. 4.2.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        depth: int = 56,
        shortcut: Shortcut = "A",
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        image_shape: Sequence[int] = (32, 32, 3),
    ) -> None:
        count = _blocks_per_stage("CifarResNet", depth, layers_per_block=2)
        widths = check_widths("CifarResNet", widths, _STAGES)
        self.image_shape = check_sizes("CifarResNet", image_shape, num_classes, smallest=4)
        if shortcut not in ("A", "B"):
            raise ValueError(
                f'CifarResNet needs shortcut "A" (zero-padded) or "B" (projection), got {shortcut!r}.'
            )
        if shortcut == "A" and list(widths) != sorted(widths):
            raise ValueError(
                f"CifarResNet with zero-padded shortcuts needs widths that do not fall, got {widths}. "
                'Order them, or project with shortcut="B".'
            )
        self.stem = ConvNorm(self.image_shape[-1], widths[0], 3, rngs)
        blocks, c_in = [], widths[0]
        for c_out, strides in _block_sizes(widths, (count,) * 3):
            blocks.append(BasicBlock(c_in, c_out, strides, rngs, shortcut=shortcut))
            c_in = c_out
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("CifarResNet", x, self.image_shape)
        x = jax.nn.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, axis=(1, 2)))


class PreActResNet(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, three stages of pre-activation bottlenecks, mean, output.

    A depth of 9n + 2 has n bottlenecks in each stage; 164 is n = 18. A bottleneck of width w has w channels inside
    and puts out 4w; a norm and ReLU follow the last one. The first shortcut of each stage projects.

    Args:
      rngs: random streams for the parameters.
      depth: number of layers with weights on the main path, 9n + 2 with n >= 1.
      widths: channels inside the bottlenecks of the three stages, each >= 1; the first convolution has as many as
        the first stage.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 4x4.

    Raises:
      ValueError: if the depth, a width, the number of widths, the image shape or the number of classes does not fit,
        or if the network is called on a batch of another shape.

    Example:
      >>> nnx.eval_shape(lambda: PreActResNet(nnx.Rngs(0), depth=11)(jnp.zeros((2, 32, 32, 3)))).shape
      (2, 10)

    Source:
      He et al. 2016, Identity Mappings in Deep Residual Networks, sec. 4.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        depth: int = 164,
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        image_shape: Sequence[int] = (32, 32, 3),
    ) -> None:
        count = _blocks_per_stage("PreActResNet", depth, layers_per_block=3)
        widths = check_widths("PreActResNet", widths, _STAGES)
        self.image_shape = check_sizes("PreActResNet", image_shape, num_classes, smallest=4)
        self.stem = strided_convolution(self.image_shape[-1], widths[0], 3, 1, rngs)
        blocks, c_in = [], widths[0]
        for c_inner, strides in _block_sizes(widths, (count,) * 3):
            blocks.append(PreActBottleneck(c_in, c_inner, _EXPANSION * c_inner, strides, rngs))
            c_in = _EXPANSION * c_inner
        self.blocks = nnx.List(blocks)
        self.norm = batch_norm(c_in, rngs)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("PreActResNet", x, self.image_shape)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(jax.nn.relu(self.norm(x)), axis=(1, 2)))


class ImageNetResNet(nnx.Module):
    """Images [N, H, W, C] to logits: stem, four stages of basic blocks or bottlenecks, mean over positions, output.

    The form is that of the usual pretrained weights ("v1.5"): strides on the 3x3 convolution of a bottleneck, equal
    padding on both sides, projections where sizes change.

    Args:
      rngs: random streams for the parameters.
      depth: 10, 18 or 34 for basic blocks; 14, 26, 50, 101 or 152 for bottlenecks, which put out four times the
        stage's width.
      stem: "7x7" for a convolution and pooling that quarter the image, "3x3" for one convolution that keeps the
        size, as is usual for 32x32 images.
      widths: channels of the stem and (inside the blocks) of the four stages, each >= 1.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 32x32, with the "3x3" stem 8x8.

    Raises:
      ValueError: if the depth, the stem, a width, the number of widths, the image shape or the number of classes does
        not fit, or if the network is called on a batch of another shape.

    Example:
      >>> nnx.eval_shape(lambda: ImageNetResNet(nnx.Rngs(0), depth=14)(jnp.zeros((2, 224, 224, 3)))).shape
      (2, 1000)

    Source:
      He et al. 2016, Deep Residual Learning for Image Recognition, table 1.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        depth: int = 50,
        stem: Literal["7x7", "3x3"] = "7x7",
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        num_classes: int = 1000,
        image_shape: Sequence[int] = (224, 224, 3),
    ) -> None:
        counts = {**BASIC_DEPTHS, **BOTTLENECK_DEPTHS}.get(depth)
        if counts is None:
            raise ValueError(
                f"ImageNetResNet needs a depth of {', '.join(map(str, BASIC_DEPTHS))} (basic blocks) or "
                f"{', '.join(map(str, BOTTLENECK_DEPTHS))} (bottlenecks), got {depth!r}."
            )
        if stem not in ("7x7", "3x3"):
            raise ValueError(f'ImageNetResNet needs stem "7x7" or "3x3", got {stem!r}.')
        c_in, *stages = check_widths("ImageNetResNet", widths, _IMAGENET_LAYERS)
        self.pools = stem == "7x7"
        smallest = 32 if self.pools else 8
        self.image_shape = check_sizes("ImageNetResNet", image_shape, num_classes, smallest=smallest)
        channels = self.image_shape[-1]
        self.stem = (
            ConvNorm(channels, c_in, 7, rngs, strides=2) if self.pools else ConvNorm(channels, c_in, 3, rngs)
        )
        blocks: list[BasicBlock | Bottleneck] = []
        for width, strides in _block_sizes(stages, counts):
            if depth in BASIC_DEPTHS:
                blocks.append(BasicBlock(c_in, width, strides, rngs))
                c_in = width
            else:
                blocks.append(Bottleneck(c_in, width, _EXPANSION * width, strides, rngs))
                c_in = _EXPANSION * width
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("ImageNetResNet", x, self.image_shape)
        x = jax.nn.relu(self.stem(x))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, axis=(1, 2)))


class ConvNorm(nnx.Module):
    """A convolution without bias and the batch normalisation after it, [N, H, W, c_in] to [N, H', W', c_out].

    Padding is equal on both sides, or "SAME", which pads a strided convolution more at the end.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        rngs: nnx.Rngs,
        *,
        strides: int = 1,
        groups: int = 1,
        padding: Literal["equal", "SAME"] = "equal",
        epsilon: float = 1e-5,
        momentum: float = 0.9,
    ) -> None:
        zeros = size // 2 if padding == "equal" else padding
        self.conv = convolution(
            c_in, c_out, size, zeros, rngs, strides=strides, groups=groups, use_bias=False
        )
        self.norm = batch_norm(c_out, rngs, epsilon=epsilon, momentum=momentum)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves and normalises `x`."""
        return self.norm(self.conv(x))


def pad_channels(x: jax.Array, c_out: int) -> jax.Array:
    """Pads channels with zeros on both sides, with one more at the end if their number is odd.

    Args:
      x: [N, H, W, C].
      c_out: number of channels to reach, >= C.

    Returns:
      [N, H, W, c_out].

    Example:
      >>> pad_channels(jnp.ones((1, 1, 1, 2)), 5).ravel().tolist()
      [0.0, 1.0, 1.0, 0.0, 0.0]
    """
    missing = c_out - x.shape[-1]
    before = missing // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, missing - before)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, the first of them with the strides, plus the shortcut; a ReLU follows the sum.

    Source:
      He et al. 2016, Deep Residual Learning for Image Recognition, figure 2.
    """

    def __init__(
        self, c_in: int, c_out: int, strides: int, rngs: nnx.Rngs, *, shortcut: Shortcut = "B"
    ) -> None:
        self.first = ConvNorm(c_in, c_out, 3, rngs, strides=strides)
        self.second = ConvNorm(c_out, c_out, 3, rngs)
        self.strides = strides
        is_projected = shortcut == "B" and (strides != 1 or c_in != c_out)
        self.projection = ConvNorm(c_in, c_out, 1, rngs, strides=strides) if is_projected else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, c_in] to [N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = self.second(jax.nn.relu(self.first(x)))
        if self.projection is not None:
            return jax.nn.relu(y + self.projection(x))
        # Widths are read from the arrays, so the sum still fits after channels were pruned.
        x = x[:, :: self.strides, :: self.strides]
        return jax.nn.relu(y + (x if x.shape == y.shape else pad_channels(x, y.shape[-1])))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the strides) and 1x1 convolution plus the shortcut, projected where needed; ReLU after the sum.

    Source:
      He et al. 2016, figure 5, with the strides on the 3x3 convolution, as is usual since.
    """

    def __init__(self, c_in: int, c_inner: int, c_out: int, strides: int, rngs: nnx.Rngs) -> None:
        self.reduce = ConvNorm(c_in, c_inner, 1, rngs)
        self.middle = ConvNorm(c_inner, c_inner, 3, rngs, strides=strides)
        self.expand = ConvNorm(c_inner, c_out, 1, rngs)
        is_projected = strides != 1 or c_in != c_out
        self.projection = ConvNorm(c_in, c_out, 1, rngs, strides=strides) if is_projected else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, c_in] to [N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = jax.nn.relu(self.middle(jax.nn.relu(self.reduce(x))))
        return jax.nn.relu(self.expand(y) + (x if self.projection is None else self.projection(x)))


class PreActBottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each after a norm and ReLU, plus the shortcut; nothing follows the sum.

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
        is_projected = strides != 1 or c_in != c_out
        self.projection = strided_convolution(c_in, c_out, 1, strides, rngs) if is_projected else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, c_in] to [N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = jax.nn.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(y)
        y = self.conv2(jax.nn.relu(self.norm2(self.conv1(y))))
        return shortcut + self.conv3(jax.nn.relu(self.norm3(y)))


def _block_sizes(widths: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int]]:
    """(width, strides) of each block; all stages but the first begin with strides of 2, which halve the image."""
    return [
        (width, 2 if stage > 0 and number == 0 else 1)
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True))
        for number in range(count)
    ]


def _blocks_per_stage(owner: str, depth: int, *, layers_per_block: int) -> int:
    """The whole number n >= 1 for which a network of three stages has depth 3 * layers_per_block * n + 2."""
    multiple = 3 * layers_per_block
    count = (depth - 2) // multiple if type(depth) is int else 0
    if count < 1 or depth != multiple * count + 2:
        depths = ", ".join(str(multiple * n + 2) for n in (1, 2, 3))
        raise ValueError(f"{owner} needs a depth of {multiple}n + 2 ({depths}, ...), got {depth!r}.")
    return count
