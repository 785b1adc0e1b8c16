"""Parts that the networks share: layers, pooling, checks of arguments, and convolution by shifted views."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxprune.types import is_whole

WEIGHT_INIT = nnx.initializers.he_normal()
"""Initialiser of every layer that a ReLU follows."""


def convolution(
    c_in: int,
    c_out: int,
    size: int,
    padding: str | int,
    rngs: nnx.Rngs,
    *,
    strides: int = 1,
    groups: int = 1,
    use_bias: bool = True,
) -> nnx.Conv:
    """Makes a convolution initialised for a ReLU.

    Args:
      c_in: number of input channels.
      c_out: number of output channels.
      size: side of the kernel.
      padding: "SAME", "VALID" or the number of zeros on each side.
      rngs: random streams for the parameters.
      strides: distance between positions, in both directions.
      groups: number of groups of channels that are convolved separately.
      use_bias: whether there is a bias; directly before a normalisation it would have no effect.
    """
    return nnx.Conv(
        c_in, c_out, (size, size), strides=strides, padding=padding, feature_group_count=groups,
        use_bias=use_bias, kernel_init=WEIGHT_INIT, rngs=rngs,
    )  # fmt: skip


def strided_convolution(
    c_in: int, c_out: int, size: int, strides: int, rngs: nnx.Rngs, *, groups: int = 1
) -> nnx.Conv:
    """Makes a convolution without bias, to be followed by a normalisation, with equal padding on both sides.

    "SAME" pads a strided convolution more at the end than at the start; published networks do not.

    Args are those of `convolution`; `size` is an odd number.
    """
    return convolution(c_in, c_out, size, size // 2, rngs, strides=strides, groups=groups, use_bias=False)


def dense(c_in: int, c_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Makes a dense layer with bias from `c_in` to `c_out` channels, initialised for a ReLU."""
    return nnx.Linear(c_in, c_out, kernel_init=WEIGHT_INIT, rngs=rngs)


def batch_norm(c_out: int, rngs: nnx.Rngs, *, epsilon: float = 1e-5, momentum: float = 0.9) -> nnx.BatchNorm:
    """Makes a batch normalisation, by default one whose statistics settle in few steps, for short training runs."""
    return nnx.BatchNorm(c_out, momentum=momentum, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum of each 2x2 window, by a reshape and a maximum; an odd last row or column is dropped.

    Args:
      x: [N, H, W, C] activations with H, W >= 2.

    Returns:
      [N, H//2, W//2, C] of the same dtype.

    Raises:
      ValueError: if there are not four axes or a side is shorter than 2.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise ValueError(
            f"max_pool needs [N, H, W, C] with H, W >= 2, got shape {x.shape}. "
            "Use larger images or pool less often."
        )
    n, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    if (height, width) != (2 * rows, 2 * columns):
        x = x[:, : 2 * rows, : 2 * columns]
    return _window_max(x.reshape(n, rows, 2, columns, 2, channels))


@jax.custom_jvp
def _window_max(x: jax.Array) -> jax.Array:
    """The maximum over both axes of two of [N, h, 2, w, 2, C]; of equal values the first one gets the derivative."""
    return jnp.max(x, axis=(2, 4))


@_window_max.defjvp
def _window_max_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Chooses by comparing neighbours.

    JAX's own derivative looks for the maximum among the inputs. Where XLA computes these a second time for it and
    rounds otherwise (a normalisation before the pooling, say), it finds none, and divides zero by zero.
    """
    x, tangent = primals[0], tangents[0]
    is_upper = x[:, :, 0] >= x[:, :, 1]
    rows, tangent = (jnp.where(is_upper, each[:, :, 0], each[:, :, 1]) for each in (x, tangent))
    is_left = rows[:, :, :, 0] >= rows[:, :, :, 1]
    return _window_max(x), jnp.where(is_left, tangent[:, :, :, 0], tangent[:, :, :, 1])


def flatten(x: jax.Array) -> jax.Array:
    """Flattens [N, H, W, C] to [N, H*W*C], with channels varying fastest."""
    return x.reshape(x.shape[0], -1)


def check_widths(owner: str, widths: Sequence[int], layers: Sequence[str]) -> tuple[int, ...]:
    """Checks that there is one width, a whole number >= 1, for each layer.

    Args:
      owner: name of the network, for error messages.
      widths: number of channels of each layer.
      layers: names of the layers, for error messages.

    Returns:
      The widths as a tuple.

    Raises:
      ValueError: if there are too few or too many widths, or some are not whole numbers >= 1; names all of these.

    Example:
      >>> check_widths("MyNet", [8, 16], ["conv", "dense"])
      (8, 16)
    """
    widths = tuple(widths)
    if len(widths) != len(layers):
        raise ValueError(
            f"{owner} needs {len(layers)} widths, one each for {', '.join(layers)}, got {len(widths)}: {widths}."
        )
    wrong = [
        f"{layer}: {width!r}"
        for layer, width in zip(layers, widths, strict=True)
        if not is_whole(width, smallest=1)
    ]
    if wrong:
        raise ValueError(
            f"{owner} needs widths that are whole numbers >= 1, got {', '.join(wrong)}. "
            "Keep at least one channel in each layer."
        )
    return tuple(int(width) for width in widths)


def check_sizes(
    owner: str, image_shape: Sequence[int], num_classes: int, *, smallest: int
) -> tuple[int, int, int]:
    """Checks the image shape and the number of classes of a network.

    Args:
      owner: name of the network, for error messages.
      image_shape: (H, W, C) of one image.
      num_classes: width of the output layer, at least 2.
      smallest: the smallest H and W that leave at least one position after the last pooling.

    Returns:
      The image shape as a tuple.

    Raises:
      ValueError: if the shape is not three whole numbers >= 1, H or W is below `smallest`, or `num_classes` < 2.

    Example:
      >>> check_sizes("MyNet", [8, 8, 1], 10, smallest=4)
      (8, 8, 1)
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(is_whole(size, smallest=1) for size in shape):
        raise ValueError(
            f"{owner} needs image_shape = (H, W, C), three whole numbers >= 1, got {image_shape!r}. "
            "Grey images have C = 1."
        )
    height, width, channels = shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{owner} needs images of at least {smallest}x{smallest}, got {height}x{width}. "
            "Enlarge the images or choose a network with less pooling."
        )
    if not is_whole(num_classes, smallest=2):
        raise ValueError(f"{owner} needs num_classes to be a whole number >= 2, got {num_classes!r}.")
    return int(height), int(width), int(channels)


def check_input(owner: str, x: jax.Array, image_shape: tuple[int, int, int]) -> None:
    """Checks that a network is called on a batch of images of its shape.

    Args:
      owner: name of the network, for error messages.
      x: the batch, to be [N, H, W, C].
      image_shape: (H, W, C) of one image.

    Raises:
      ValueError: if it has another shape.
    """
    if x.ndim != 4 or tuple(x.shape[1:]) != image_shape:
        hint = (
            " Add the channel axis: x[..., None]."
            if tuple(x.shape[1:]) + (1,) == image_shape
            else " Add the batch axis: x[None]."
            if tuple(x.shape) == image_shape
            else " Build the network with image_shape= of your images."
        )
        raise ValueError(
            f"{owner} needs a batch of images [N, {', '.join(map(str, image_shape))}], got {x.shape}.{hint}"
        )


def convolve_by_patches(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    **options: object,
) -> jax.Array:
    """Computes a 2-D convolution from shifted views of the image: joined, and multiplied once by the kernel matrix.

    Of a depthwise convolution (one filter per channel, strides of 1), the views times their taps are summed instead.

    This replaces the `conv_general_dilated=` argument of `nnx.Conv` in compiled loops on a CPU, where the library's
    convolution is slow: on two busy cores, a step of LeNet-5 with batches of 100 takes 63 ms instead of 482 ms, and
    22 ms instead of 189 ms at 8-20-100 channels. Outside loops neither is clearly faster.
    Other cases (dilation, other groups, other than two spatial axes) are passed on to the library.

    Args:
      lhs: [N, H, W, c_in] images.
      rhs: [kh, kw, c_in, c_out] kernel; [kh, kw, 1, c_in] of a depthwise convolution.
      window_strides: (rows, columns).
      padding: "SAME", "VALID" or explicit ((top, bottom), (left, right)).
      lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision, **options: as in
        `jax.lax.conv_general_dilated`.

    Returns:
      [N, H', W', c_out].

    Example:
      >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
      >>> convolve_by_patches(x, kernel, (1, 1), "VALID")[0, 0, 0].tolist()
      [18.0, 18.0, 18.0, 18.0, 18.0]
    """
    is_dilated = any(dilation != 1 for dilation in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    is_depthwise = feature_group_count == lhs.shape[-1] == rhs.shape[-1] and tuple(window_strides) == (1, 1)
    if lhs.ndim != 4 or is_dilated or not (feature_group_count == 1 or is_depthwise):
        convolve: Callable[..., jax.Array] = lax.conv_general_dilated
        return convolve(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count=feature_group_count, precision=precision, **options,
        )  # fmt: skip
    kernel_rows, kernel_columns, c_in, c_out = rhs.shape
    row_stride, column_stride = window_strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    x = jnp.pad(lhs, ((0, 0), *map(tuple, padding), (0, 0)))
    rows = (x.shape[1] - kernel_rows) // row_stride + 1
    columns = (x.shape[2] - kernel_columns) // column_stride + 1
    row_span, column_span = (rows - 1) * row_stride + 1, (columns - 1) * column_stride + 1
    views = [
        x[:, i : i + row_span : row_stride, j : j + column_span : column_stride]
        for i in range(kernel_rows)
        for j in range(kernel_columns)
    ]
    if is_depthwise:
        taps = rhs.reshape(kernel_rows * kernel_columns, 1, 1, 1, c_out)
        return sum((view * tap for view, tap in zip(views, taps, strict=True)), start=jnp.zeros((), x.dtype))
    patches = jnp.concatenate(views, axis=-1)
    return jnp.matmul(patches, rhs.reshape(kernel_rows * kernel_columns * c_in, c_out), precision=precision)


def with_patch_convolutions(model: nnx.Module) -> nnx.Module:
    """Copies a model so that its 2-D convolutions, ordinary and depthwise, run by `convolve_by_patches`.

    Parameters, paths and results (up to rounding) stay the same, so one model can take the state of the other. Use
    the copy to train and evaluate on a CPU, and the original to trace the structure.

    Args:
      model: any NNX model; it is not changed.

    Returns:
      A new model of the same type with copied variables.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> model = PlainConvNet(nnx.Rngs(0))
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> bool(jnp.allclose(with_patch_convolutions(model)(x), model(x), atol=1e-5))
      True
    """
    copy = nnx.clone(model)
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.Conv) and module.conv_general_dilated is lax.conv_general_dilated:
            module.conv_general_dilated = convolve_by_patches
    return copy
