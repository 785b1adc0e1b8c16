"""EfficientNet-lite0: inverted residual blocks with 3x3 and 5x5 depthwise convolutions, without squeeze-excite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import check_input, check_sizes, check_widths
from jaxprune.nets.mobilenet import INVERTED_LAYERS, InvertedResidual, check_stages
from jaxprune.nets.resnets import ConvNorm

EFFICIENTNET_LITE0_WIDTHS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
"""Channels of the stem, the seven stages and the head."""

_KERNEL_SIZES = (3, 3, 5, 3, 5, 5, 3)
_STEM_STRIDES = 2
_MOMENTUM = 0.99


class EfficientNetLite0(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, seven stages of inverted residuals, 1x1 head, mean, output.

    All activations are ReLU6. The batch normalisations have the published epsilon of 1e-3 and momentum of 0.99.

    Args:
      rngs: random streams for the parameters.
      widths: channels of the stem, the seven stages and the head, each >= 1.
      repeats: blocks in each of the seven stages, each >= 1.
      strides: strides of the first block of each stage; those of the stem are 2.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, each side at least the product of all strides (32).
      padding: "SAME" as in the published network, which pads strided convolutions of even images at the end alone; or
        "equal" on both sides, as networks do that were trained in PyTorch.
      epsilon: what the normalisations add to the variance, > 0.

    Raises:
      ValueError: if a width, the number of widths, repeats or strides, the image shape, the number of classes, the
        padding or the epsilon does not fit, or if the network is called on a batch of another shape.

    Example:
      >>> nnx.eval_shape(lambda: EfficientNetLite0(nnx.Rngs(0), repeats=(1,) * 7)(jnp.zeros((2, 224, 224, 3)))).shape
      (2, 1000)

    Source:
      Tan and Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, table 1; the lite
      form, of the TensorFlow authors, leaves out squeeze-excite and takes ReLU6 for swish.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: Sequence[int] = EFFICIENTNET_LITE0_WIDTHS,
        repeats: Sequence[int] = (1, 2, 2, 3, 3, 4, 1),
        strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1),
        num_classes: int = 1000,
        image_shape: Sequence[int] = (224, 224, 3),
        padding: Literal["SAME", "equal"] = "SAME",
        epsilon: float = 1e-3,
    ) -> None:
        if padding not in ("SAME", "equal"):
            raise ValueError(
                f'EfficientNetLite0 needs padding "SAME" (as published) or "equal" (on both sides), got {padding!r}.'
            )
        if not 0 < epsilon < math.inf:
            raise ValueError(f"EfficientNetLite0 needs an epsilon > 0, got {epsilon}. 0.001 is as published.")
        self.repeats = repeats = check_stages("EfficientNetLite0", "repeats", repeats)
        strides = check_stages("EfficientNetLite0", "strides", strides)
        c_in, *stages, head = check_widths("EfficientNetLite0", widths, INVERTED_LAYERS)
        smallest = _STEM_STRIDES * math.prod(strides)
        self.image_shape = check_sizes("EfficientNetLite0", image_shape, num_classes, smallest=smallest)
        conv_norm = partial(ConvNorm, padding=padding, epsilon=epsilon, momentum=_MOMENTUM)
        self.stem = conv_norm(self.image_shape[-1], c_in, 3, rngs, strides=_STEM_STRIDES)
        blocks = []
        for stage, (c_out, count, size) in enumerate(zip(stages, repeats, _KERNEL_SIZES, strict=True)):
            for number in range(count):
                block_strides, expansion = strides[stage] if number == 0 else 1, 6 if stage > 0 else 1
                blocks.append(
                    InvertedResidual(
                        c_in, c_out, block_strides, expansion, rngs, size=size, conv_norm=conv_norm
                    )
                )
                c_in = c_out
        self.blocks = nnx.List(blocks)
        self.head = conv_norm(c_in, head, 1, rngs)
        self.output = nnx.Linear(head, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("EfficientNetLite0", x, self.image_shape)
        x = jax.nn.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(jax.nn.relu6(self.head(x)), axis=(1, 2)))
