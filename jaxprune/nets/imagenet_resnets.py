"""Residual networks for large images: a stem that quarters the image, and four stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import check_input, check_sizes, check_widths
from jaxprune.nets.residual_blocks import BasicBlock, Bottleneck, ConvNorm

BASIC_DEPTHS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
)
"""Basic blocks in each stage, by depth."""

BOTTLENECK_DEPTHS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
)
"""Bottlenecks in each stage, by depth."""

_LAYERS = ("stem", "stage1", "stage2", "stage3", "stage4")
_EXPANSION = 4


class ImageNetResNet(nnx.Module):
    """Images [N, H, W, C] to logits: stem, four stages of basic blocks or bottlenecks, mean over positions, output.

    The layout is that of the usual pretrained weights ("v1.5"): strides on the 3x3 convolution of a bottleneck, as
    much padding on either side, projections where sizes change.

    Args:
      rngs: random streams for the parameters.
      depth: 10, 18 or 34 for basic blocks; 14, 26, 50, 101 or 152 for bottlenecks, with four times the stage's width
        out.
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
        c_in, *stages = check_widths("ImageNetResNet", widths, _LAYERS)
        self.pools = stem == "7x7"
        smallest = 32 if self.pools else 8
        self.image_shape = check_sizes("ImageNetResNet", image_shape, num_classes, smallest=smallest)
        channels = self.image_shape[-1]
        self.stem = (
            ConvNorm(channels, c_in, 7, rngs, strides=2) if self.pools else ConvNorm(channels, c_in, 3, rngs)
        )
        blocks: list[BasicBlock | Bottleneck] = []
        for stage, (width, count) in enumerate(zip(stages, counts, strict=True)):
            c_out = width if depth in BASIC_DEPTHS else _EXPANSION * width
            for number in range(count):
                strides = 2 if stage > 0 and number == 0 else 1
                blocks.append(
                    BasicBlock(c_in, c_out, strides, rngs)
                    if depth in BASIC_DEPTHS
                    else Bottleneck(c_in, width, c_out, strides, rngs)
                )
                c_in = c_out
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, num_classes] logits of images [N, H, W, C]."""
        check_input("ImageNetResNet", x, self.image_shape)
        x = jax.nn.relu(self.stem(x))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, axis=(1, 2)))
