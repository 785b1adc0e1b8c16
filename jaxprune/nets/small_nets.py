"""Small networks for small images: a plain one, LeNet-5, and two with batch norm, deeper or depthwise."""

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
from jaxprune.nets.resnets import ConvNorm


class _TwoConvNet(nnx.Module):
    """The common part of `PlainConvNet` and `LeNet5`; a subclass sets the convolutions and the smallest images."""

    _kernel_size: int
    _padding: str
    _smallest: int

    def __init__(
        self, rngs: nnx.Rngs, widths: Sequence[int], num_classes: int, image_shape: Sequence[int]
    ) -> None:
        name, size, padding = type(self).__name__, self._kernel_size, self._padding
        conv1, conv2, hidden = check_widths(name, widths, ("conv1", "conv2", "dense"))
        self.image_shape = check_sizes(name, image_shape, num_classes, smallest=self._smallest)
        height, width, channels = self.image_shape
        lost = size - 1 if padding == "VALID" else 0  # rows and columns that a convolution cuts off
        rows, columns = (((side - lost) // 2 - lost) // 2 for side in (height, width))
        self.conv1 = convolution(channels, conv1, size, padding, rngs)
        self.conv2 = convolution(conv1, conv2, size, padding, rngs)
        self.dense = dense(rows * columns * conv2, hidden, rngs)
        self.output = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input(type(self).__name__, x, self.image_shape)
        x = max_pool(jax.nn.relu(self.conv1(x)))
        x = max_pool(jax.nn.relu(self.conv2(x)))
        x = jax.nn.relu(self.dense(flatten(x)))
        return self.output(x)


class PlainConvNet(_TwoConvNet):
    """Images [N, H, W, C] to logits: 3x3 convolution, ReLU, 2x2 max pooling, twice; dense, ReLU; output.

    Groups are named `conv1.kernel`, `conv2.kernel` and `dense.kernel`.

    Args:
      rngs: random streams for the parameters.
      widths: channels of conv1, conv2 and the dense layer, each >= 1.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 4x4.

    Raises:
      ValueError: if a width, the number of widths, the image shape or the number of classes does not fit, or if
        the network is called on a batch of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> PlainConvNet(nnx.Rngs(0), widths=(6, 12, 24))(jnp.zeros((2, 8, 8, 1))).shape
      (2, 10)
    """

    _kernel_size, _padding, _smallest = 3, "SAME", 4

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        image_shape: Sequence[int] = (8, 8, 1),
    ) -> None:
        super().__init__(rngs, widths, num_classes, image_shape)


class LeNet5(_TwoConvNet):
    """Images [N, H, W, C] to logits: 5x5 convolution, ReLU, 2x2 max pooling, twice; dense, ReLU; output.

    With the default widths the kernels hold 500, 25,000, 400,000 and 5,000 weights. Groups are named
    `conv1.kernel`, `conv2.kernel` and `dense.kernel`.

    Args:
      rngs: random streams for the parameters.
      widths: channels of conv1, conv2 and the dense layer, each >= 1.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 16x16.

    Raises:
      ValueError: if a width, the number of widths, the image shape or the number of classes does not fit, or if
        the network is called on a batch of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> nnx.eval_shape(lambda: LeNet5(nnx.Rngs(0), widths=(8, 20, 100))(jnp.zeros((2, 28, 28, 1)))).shape
      (2, 10)

    Source:
      LeCun et al. 1998, in the 20-50-500 form that Liu, Kung, Wentzlaff 2022 prune.
    """

    _kernel_size, _padding, _smallest = 5, "VALID", 16

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: Sequence[int] = (20, 50, 500),
        num_classes: int = 10,
        image_shape: Sequence[int] = (28, 28, 1),
    ) -> None:
        super().__init__(rngs, widths, num_classes, image_shape)


class SmallConvNet(nnx.Module):
    """Images [N, H, W, C] to logits: four times 3x3 convolution, batch norm, ReLU; dense, ReLU; output.

    Pooling (2x2 maximum) follows the second and the fourth convolution. Groups are named `conv1.kernel` to
    `conv4.kernel` and `dense.kernel`. Convolutions have no bias, since the norms `norm1` to `norm4` shift.

    Args:
      rngs: random streams for the parameters.
      widths: channels of conv1 to conv4 and the dense layer, each >= 1.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 4x4.

    Raises:
      ValueError: if a width, the number of widths, the image shape or the number of classes does not fit, or if
        the network is called on a batch of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> nnx.eval_shape(lambda: SmallConvNet(nnx.Rngs(0), widths=(8, 8, 16, 16, 32))(jnp.zeros((2, 8, 8, 1)))).shape
      (2, 10)
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: Sequence[int] = (16, 16, 32, 32, 64),
        num_classes: int = 10,
        image_shape: Sequence[int] = (8, 8, 1),
    ) -> None:
        layers = ("conv1", "conv2", "conv3", "conv4", "dense")
        conv1, conv2, conv3, conv4, hidden = check_widths("SmallConvNet", widths, layers)
        self.image_shape = check_sizes("SmallConvNet", image_shape, num_classes, smallest=4)
        height, width, channels = self.image_shape
        self.conv1 = convolution(channels, conv1, 3, "SAME", rngs, use_bias=False)
        self.norm1 = batch_norm(conv1, rngs)
        self.conv2 = convolution(conv1, conv2, 3, "SAME", rngs, use_bias=False)
        self.norm2 = batch_norm(conv2, rngs)
        self.conv3 = convolution(conv2, conv3, 3, "SAME", rngs, use_bias=False)
        self.norm3 = batch_norm(conv3, rngs)
        self.conv4 = convolution(conv3, conv4, 3, "SAME", rngs, use_bias=False)
        self.norm4 = batch_norm(conv4, rngs)
        self.dense = dense((height // 4) * (width // 4) * conv4, hidden, rngs)
        self.output = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("SmallConvNet", x, self.image_shape)
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = max_pool(jax.nn.relu(self.norm2(self.conv2(x))))
        x = jax.nn.relu(self.norm3(self.conv3(x)))
        x = max_pool(jax.nn.relu(self.norm4(self.conv4(x))))
        x = jax.nn.relu(self.dense(flatten(x)))
        return self.output(x)


class DepthwiseNet(nnx.Module):
    """Images [N, H, W, C] to logits: 3x3 convolution, three times depthwise 3x3 and 1x1 convolution, output.

    Batch norm and ReLU follow each convolution, and pooling (2x2 maximum) the first and the third 1x1 convolution.
    Groups are named `stem.conv.kernel` and `pointwise1.conv.kernel` to `pointwise3.conv.kernel`.

    Args:
      rngs: random streams for the parameters.
      widths: channels of the stem and of pointwise1 to pointwise3, each >= 1.
      num_classes: number of logits, >= 2.
      image_shape: (H, W, C) of one image, at least 4x4.

    Raises:
      ValueError: if a width, the number of widths, the image shape or the number of classes does not fit, or if
        the network is called on a batch of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> nnx.eval_shape(lambda: DepthwiseNet(nnx.Rngs(0), widths=(8, 16, 16, 32))(jnp.zeros((2, 8, 8, 1)))).shape
      (2, 10)
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: Sequence[int] = (16, 32, 32, 64),
        num_classes: int = 10,
        image_shape: Sequence[int] = (8, 8, 1),
    ) -> None:
        layers = ("stem", "pointwise1", "pointwise2", "pointwise3")
        stem, first, second, third = check_widths("DepthwiseNet", widths, layers)
        self.image_shape = check_sizes("DepthwiseNet", image_shape, num_classes, smallest=4)
        height, width, channels = self.image_shape
        self.stem = ConvNorm(channels, stem, 3, rngs)
        self.depthwise1 = ConvNorm(stem, stem, 3, rngs, groups=stem)
        self.pointwise1 = ConvNorm(stem, first, 1, rngs)
        self.depthwise2 = ConvNorm(first, first, 3, rngs, groups=first)
        self.pointwise2 = ConvNorm(first, second, 1, rngs)
        self.depthwise3 = ConvNorm(second, second, 3, rngs, groups=second)
        self.pointwise3 = ConvNorm(second, third, 1, rngs)
        self.output = nnx.Linear((height // 4) * (width // 4) * third, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, num_classes] logits of images [N, H, W, C]."""
        check_input("DepthwiseNet", x, self.image_shape)
        relu = jax.nn.relu
        x = relu(self.stem(x))
        x = max_pool(relu(self.pointwise1(relu(self.depthwise1(x)))))
        x = relu(self.pointwise2(relu(self.depthwise2(x))))
        x = max_pool(relu(self.pointwise3(relu(self.depthwise3(x)))))
        return self.output(flatten(x))
