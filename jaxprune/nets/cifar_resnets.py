"""Residual networks for small images: three stages, the second and third at half the size of the one before."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import batch_norm, check_input, check_sizes, check_widths, strided_convolution
from jaxprune.nets.residual_blocks import BasicBlock, ConvNorm, PreActBottleneck, Shortcut

_STAGES = ("stage1", "stage2", "stage3")
_EXPANSION = 4


class CifarResNet(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, three stages of basic blocks, mean over positions, output.

    Depth 6n + 2 means n blocks in each stage: 20, 32, 44, 56, 110. Where a stage begins, the shortcut subsamples
    and pads channels with zeros ("A", as in the paper) or projects ("B").

    Args:
      rngs: random streams for the parameters.
      depth: number of layers with weights on the main path, 6n + 2 with n >= 1.
      shortcut: "A" for zero-padded shortcuts without parameters, "B" for projections.
      widths: channels of the three stages, each >= 1; for "A" none below the one before.
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
        for c_out, strides in _layout(widths, count):
            blocks.append(BasicBlock(c_in, c_out, strides, rngs, shortcut=shortcut))
            c_in = c_out
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, num_classes] logits of images [N, H, W, C]."""
        check_input("CifarResNet", x, self.image_shape)
        x = jax.nn.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, axis=(1, 2)))


class PreActResNet(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, three stages of pre-activation bottlenecks, mean, output.

    Depth 9n + 2 means n bottlenecks in each stage: 164 is n = 18. A bottleneck of width w has w channels inside and
    4w channels out; a norm and ReLU follow the last one. Where a stage begins the shortcut projects.

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
        for c_inner, strides in _layout(widths, count):
            blocks.append(PreActBottleneck(c_in, c_inner, _EXPANSION * c_inner, strides, rngs))
            c_in = _EXPANSION * c_inner
        self.blocks = nnx.List(blocks)
        self.norm = batch_norm(c_in, rngs)
        self.output = nnx.Linear(c_in, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, num_classes] logits of images [N, H, W, C]."""
        check_input("PreActResNet", x, self.image_shape)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(jax.nn.relu(self.norm(x)), axis=(1, 2)))


def _layout(widths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(width, strides) of each block: all stages but the first begin by halving the image."""
    return [
        (width, 2 if stage > 0 and block == 0 else 1)
        for stage, width in enumerate(widths)
        for block in range(count)
    ]


def _blocks_per_stage(owner: str, depth: int, *, layers_per_block: int) -> int:
    """N of the depth 3 * layers_per_block * n + 2.

    Raises:
      ValueError: if there is no such whole n >= 1.
    """
    step = 3 * layers_per_block
    count = (depth - 2) // step if type(depth) is int else 0
    if count < 1 or depth != step * count + 2:
        raise ValueError(
            f"{owner} needs a depth of {step}n + 2 ({step + 2}, {2 * step + 2}, {3 * step + 2}, ...), got {depth!r}."
        )
    return count
