"""MobileNetV2: inverted residual blocks around depthwise convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import check_input, check_sizes, check_widths
from jaxprune.nets.resnets import ConvNorm

MOBILENET_V2_WIDTHS = (32, 16, 24, 32, 64, 96, 160, 320, 1280)
"""Channels of the stem, the seven stages and the head."""

INVERTED_LAYERS = ("stem", *(f"stage{i}" for i in range(1, 8)), "head")
"""Names of the layers that have a width of their own."""
_STEM_STRIDES = 2
_DIVISOR = 8
"""Scaled widths are multiples of this."""


class InvertedResidual(nnx.Module):
    """1x1 convolution to `expansion` times the channels, depthwise convolution, 1x1 without ReLU.

    The input is added where it has the shape of the result. With an expansion of 1 the first convolution is left out.
    `size` is the side of the depthwise kernel; `conv_norm` makes the convolutions, as `ConvNorm` does.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        strides: int,
        expansion: int,
        rngs: nnx.Rngs,
        *,
        size: int = 3,
        conv_norm: Callable[..., ConvNorm] = ConvNorm,
    ) -> None:
        inner = expansion * c_in
        self.expand = conv_norm(c_in, inner, 1, rngs) if expansion != 1 else None
        self.depthwise = conv_norm(inner, inner, size, rngs, strides=strides, groups=inner)
        self.project = conv_norm(inner, c_out, 1, rngs)
        self.adds = strides == 1 and c_in == c_out

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, c_in] to [N, ceil(H / strides), ceil(W / strides), c_out]."""
        y = x if self.expand is None else jax.nn.relu6(self.expand(x))
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class MobileNetV2(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, seven stages of inverted residuals, 1x1 head, mean, output.

    Args:
      rngs: random streams for the parameters.
      multiplier: factor on all widths, which are then rounded to multiples of 8 unless the factor is 1; the head is
        never made narrower.
      widths: channels of the stem, the seven stages and the head, each >= 1.
      repeats: blocks in each of the seven stages, each >= 1.
      strides: strides of the first block of each stage; those of the stem are 2. For 32x32 images,
        (1, 1, 1, 2, 1, 2, 1) leaves more positions.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, each side at least the product of all strides (32).

    Raises:
      ValueError: if the multiplier, a width, the number of widths, repeats or strides, the image shape or the number
        of classes does not fit, or if the network is called on a batch of another shape.

    Example:
      >>> nnx.eval_shape(lambda: MobileNetV2(nnx.Rngs(0), repeats=(1,) * 7)(jnp.zeros((2, 224, 224, 3)))).shape
      (2, 1000)

    Source:
      Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, table 2.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        multiplier: float = 1.0,
        widths: Sequence[int] = MOBILENET_V2_WIDTHS,
        repeats: Sequence[int] = (1, 2, 3, 4, 3, 3, 1),
        strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1),
        num_classes: int = 1000,
        image_shape: Sequence[int] = (224, 224, 3),
    ) -> None:
        if not 0 < multiplier < math.inf:
            raise ValueError(
                f"MobileNetV2 needs a multiplier > 0, got {multiplier}. 1.0 is the published size."
            )
        self.repeats = repeats = check_stages("MobileNetV2", "repeats", repeats)
        strides = check_stages("MobileNetV2", "strides", strides)
        widths = check_widths("MobileNetV2", widths, INVERTED_LAYERS)
        if multiplier != 1:
            head = _scaled(widths[-1], max(1.0, multiplier))
            widths = (*(_scaled(width, multiplier) for width in widths[:-1]), head)
        smallest = _STEM_STRIDES * math.prod(strides)
        self.image_shape = check_sizes("MobileNetV2", image_shape, num_classes, smallest=smallest)
        c_in, *stages, head = widths
        self.stem = ConvNorm(self.image_shape[-1], c_in, 3, rngs, strides=_STEM_STRIDES)
        blocks = []
        for stage, (c_out, count) in enumerate(zip(stages, repeats, strict=True)):
            for number in range(count):
                block_strides, expansion = strides[stage] if number == 0 else 1, 6 if stage > 0 else 1
                blocks.append(InvertedResidual(c_in, c_out, block_strides, expansion, rngs))
                c_in = c_out
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(c_in, head, 1, rngs)
        self.output = nnx.Linear(head, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("MobileNetV2", x, self.image_shape)
        x = jax.nn.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(jax.nn.relu6(self.head(x)), axis=(1, 2)))


def _scaled(width: int, multiplier: float) -> int:
    """The multiple of 8 that is nearest to the scaled width, but at least nine tenths of it."""
    scaled = width * multiplier
    rounded = max(_DIVISOR, int(scaled + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded if rounded >= 0.9 * scaled else rounded + _DIVISOR


def check_stages(owner: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Checks that there is a whole number >= 1 for each of the seven stages.

    Args:
      owner, name: names of the network and of the setting, for error messages.
      values: the setting.

    Returns:
      The values as a tuple.

    Raises:
      ValueError: if there are not seven values, or some are not whole numbers >= 1.

    Example:
      >>> check_stages("MyNet", "repeats", [1] * 7)
      (1, 1, 1, 1, 1, 1, 1)
    """
    values = tuple(values)
    if len(values) != 7 or not all(type(value) is int and value >= 1 for value in values):
        raise ValueError(f"{owner} needs {name} for seven stages, each a whole number >= 1, got {values}.")
    return values
