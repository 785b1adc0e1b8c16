"""VGG-16 and VGG-19 for large images, in the form of the usual pretrained weights, with three dense layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.blocks import (
    batch_norm,
    check_input,
    check_sizes,
    check_widths,
    convolution,
    dense,
    flatten,
    max_pool,
)

IMAGENET_VGG_STAGES: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
)
"""Depth -> number of convolutions before each of the five poolings."""

POOLED_SIDE = 7
"""The dense layers read 7x7 positions, whatever the size of the image."""

_STAGE_WIDTHS = (64, 128, 256, 512, 512)
_DENSE_WIDTHS = (4096, 4096)


class ImageNetVGG(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolutions in five stages, mean to 7x7 positions, three dense layers.

    A convolution is followed by a batch normalisation, if there are any, and ReLU; 2x2 maxima end each stage. `VGG16`
    and `VGG19` are the forms for small images, with one dense layer less and norms after the ReLU.

    Args:
      rngs: random streams for the parameters, and for dropout.
      depth: number of layers with weights: 11, 13, 16 or 19.
      has_norms: whether there are batch normalisations.
      widths: channels of the convolutions and the two dense layers, each >= 1; by default the published ones.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 32x32.
      dropout_rate: share of both dense layers' outputs dropped in training, in [0, 1); 0.5 as published. With 0 the
        network has no random state.

    Raises:
      ValueError: if the depth, a width, the number of widths, the image shape, the number of classes or the dropout
        rate does not fit, or if the network is called on a batch of another shape.

    Example:
      >>> nnx.eval_shape(lambda: ImageNetVGG(nnx.Rngs(0), widths=(4,) * 15)(jnp.zeros((2, 224, 224, 3)))).shape
      (2, 1000)

    Source:
      Simonyan and Zisserman 2015, table 1, configurations A, B, D and E.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        depth: int = 16,
        has_norms: bool = False,
        widths: Sequence[int] | None = None,
        num_classes: int = 1000,
        image_shape: Sequence[int] = (224, 224, 3),
        dropout_rate: float = 0.0,
    ) -> None:
        counts = IMAGENET_VGG_STAGES.get(depth)
        if counts is None:
            raise ValueError(
                f"ImageNetVGG needs a depth of {', '.join(map(str, IMAGENET_VGG_STAGES))}, got {depth!r}."
            )
        if not 0 <= dropout_rate < 1:
            raise ValueError(
                f"ImageNetVGG needs dropout_rate in [0, 1), the part dropped, got {dropout_rate}."
            )
        if widths is None:
            stages = zip(_STAGE_WIDTHS, counts, strict=True)
            widths = (*(width for width, count in stages for _ in range(count)), *_DENSE_WIDTHS)
        layers = (*(f"conv{i}" for i in range(1, sum(counts) + 1)), "dense1", "dense2")
        *conv_widths, first, second = check_widths("ImageNetVGG", widths, layers)
        self.image_shape = check_sizes("ImageNetVGG", image_shape, num_classes, smallest=32)
        self.pooled_after = tuple(sum(counts[: stage + 1]) for stage in range(len(counts)))
        sizes = zip((self.image_shape[-1], *conv_widths[:-1]), conv_widths, strict=True)
        self.convs = nnx.List([convolution(c_in, c_out, 3, 1, rngs) for c_in, c_out in sizes])
        self.norms = nnx.List([batch_norm(c_out, rngs) for c_out in conv_widths]) if has_norms else None
        self.dense1 = dense(POOLED_SIDE**2 * conv_widths[-1], first, rngs)
        self.dense2 = dense(first, second, rngs)
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs) if dropout_rate > 0 else None
        self.output = nnx.Linear(second, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("ImageNetVGG", x, self.image_shape)
        for number, conv in enumerate(self.convs, start=1):
            x = conv(x)
            x = jax.nn.relu(x if self.norms is None else self.norms[number - 1](x))
            if number in self.pooled_after:
                x = max_pool(x)
        x = flatten(mean_to_positions(x, POOLED_SIDE))
        for layer in (self.dense1, self.dense2):
            x = jax.nn.relu(layer(x))
            x = x if self.dropout is None else self.dropout(x)
        return self.output(x)


def mean_to_positions(x: jax.Array, side: int) -> jax.Array:
    """Averages [N, H, W, C] to [N, side, side, C].

    Position i of a side is the mean over floor(i H / side) to ceil((i + 1) H / side), so that smaller images are
    repeated.

    Args:
      x: activations.
      side: number of positions along each side.

    Returns:
      The means.

    Example:
      >>> mean_to_positions(jnp.arange(4.0).reshape(1, 1, 4, 1), 2)[0, :, :, 0].tolist()
      [[0.5, 2.5], [0.5, 2.5]]
    """
    for axis in (1, 2):
        size = x.shape[axis]
        if size != side:
            windows = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
            parts = [jax.lax.slice_in_dim(x, *window, axis=axis) for window in windows]
            x = jnp.concatenate([jnp.mean(part, axis=axis, keepdims=True) for part in parts], axis=axis)
    return x
