"""VGG-16 and VGG-19 for small colour images: thirteen or sixteen 3x3 convolutions and one dense layer."""

from __future__ import annotations

from collections.abc import Sequence

import jax
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

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512)
"""Channels of the thirteen convolutions and the dense layer."""

VGG19_WIDTHS = (64, 64, 128, 128, *(256,) * 4, *(512,) * 9)
"""Channels of the sixteen convolutions and the dense layer."""


class _VGG(nnx.Module):
    """The common part of both depths; a subclass sets default widths and the convolutions before pooling, from 1."""

    _default_widths: tuple[int, ...]
    _pooled_after: tuple[int, ...]

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: Sequence[int] | None = None,
        num_classes: int = 10,
        image_shape: Sequence[int] = (32, 32, 3),
        dropout_rate: float = 0.0,
    ) -> None:
        name, layers = type(self).__name__, [f"conv{i}" for i in range(1, self._pooled_after[-1] + 1)]
        *conv_widths, hidden = check_widths(
            name, self._default_widths if widths is None else widths, (*layers, "dense")
        )
        self.image_shape = check_sizes(name, image_shape, num_classes, smallest=32)
        if not 0 <= dropout_rate < 1:
            raise ValueError(
                f"{name} needs dropout_rate in [0, 1), the part dropped, got {dropout_rate}. "
                "A keep probability of 0.85 is dropout_rate=0.15."
            )
        height, width, channels = self.image_shape
        inputs = (channels, *conv_widths[:-1])
        sizes = zip(inputs, conv_widths, strict=True)
        self.convs = nnx.List([convolution(c_in, c_out, 3, "SAME", rngs) for c_in, c_out in sizes])
        self.norms = nnx.List([batch_norm(c_out, rngs) for c_out in conv_widths])
        self.dense = dense((height // 32) * (width // 32) * conv_widths[-1], hidden, rngs)
        self.dense_norm = batch_norm(hidden, rngs)
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs) if dropout_rate > 0 else None
        self.output = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input(type(self).__name__, x, self.image_shape)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            x = norm(jax.nn.relu(conv(x)))
            if number in self._pooled_after:
                x = max_pool(x)
        x = flatten(x)
        x = x if self.dropout is None else self.dropout(x)
        x = self.dense_norm(jax.nn.relu(self.dense(x)))
        x = x if self.dropout is None else self.dropout(x)
        return self.output(x)


class VGG16(_VGG):
    """Images [N, H, W, C] to logits: thirteen times 3x3 convolution, ReLU, batch norm; dense, ReLU, batch norm; output.

    Pooling (2x2 maximum) follows convolutions 2, 4, 7, 10 and 13. Normalisation comes *after* the ReLU, as in the
    paper's network, so the next layer reads signed activations. Groups are named `convs.0.kernel` to
    `convs.12.kernel` and `dense.kernel`; the matching norms are `norms.0` to `norms.12` and `dense_norm`.

    Args:
      rngs: random streams for the parameters, and for dropout.
      widths: channels of the thirteen convolutions and the dense layer, each >= 1; by default `VGG16_WIDTHS`.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 32x32.
      dropout_rate: share of the dense layer's inputs and outputs dropped in training, in [0, 1); 0.15 in the paper.
        With 0 the network has no random state.

    Raises:
      ValueError: if a width, the number of widths, the image shape, the number of classes or the dropout rate does
        not fit, or if the network is called on a batch of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> nnx.eval_shape(lambda: VGG16(nnx.Rngs(0), widths=(4,) * 14)(jnp.zeros((2, 32, 32, 3)))).shape
      (2, 10)

    Source:
      Simonyan and Zisserman 2015, in the form for 32x32 images that Liu, Kung, Wentzlaff 2022 prune.
    """

    _default_widths = VGG16_WIDTHS
    _pooled_after = (2, 4, 7, 10, 13)


class VGG19(_VGG):
    """Images [N, H, W, C] to logits: like `VGG16`, with sixteen convolutions and pooling after 2, 4, 8, 12 and 16.

    Groups are named `convs.0.kernel` to `convs.15.kernel` and `dense.kernel`; the matching norms are `norms.0`
    to `norms.15` and `dense_norm`.

    Args:
      rngs: random streams for the parameters, and for dropout.
      widths: channels of the sixteen convolutions and the dense layer, each >= 1; by default `VGG19_WIDTHS`.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 32x32.
      dropout_rate: share of the dense layer's inputs and outputs dropped in training, in [0, 1).

    Raises:
      ValueError: as for `VGG16`.

    Example:
      >>> import jax.numpy as jnp
      >>> nnx.eval_shape(lambda: VGG19(nnx.Rngs(0), widths=(4,) * 17)(jnp.zeros((2, 32, 32, 3)))).shape
      (2, 10)

    Source:
      Simonyan and Zisserman 2015, configuration E, in the same form for 32x32 images.
    """

    _default_widths = VGG19_WIDTHS
    _pooled_after = (2, 4, 8, 12, 16)
