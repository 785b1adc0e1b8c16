"""Pieces that the networks share: layers, pooling, shape checks, and convolution as one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

WEIGHT_INIT = nnx.initializers.he_normal()
"""Initialiser of every layer that a ReLU follows."""


def convolution(
    c_in: int, c_out: int, size: int, padding: str, rngs: nnx.Rngs, *, use_bias: bool = True
) -> nnx.Conv:
    """A `size` x `size` convolution initialised for a ReLU; straight before a normalisation a bias is idle."""
    return nnx.Conv(
        c_in, c_out, (size, size), padding=padding, use_bias=use_bias, kernel_init=WEIGHT_INIT, rngs=rngs
    )


def strided_convolution(
    c_in: int, c_out: int, size: int, strides: int, rngs: nnx.Rngs, *, groups: int = 1
) -> nnx.Conv:
    """A `size` x `size` convolution without bias that pads as much on either side, for a normalisation to follow.

    "SAME" pads a strided convolution more at the end than at the start; published networks do not.
    """
    return nnx.Conv(
        c_in,
        c_out,
        (size, size),
        strides=strides,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=WEIGHT_INIT,
        rngs=rngs,
    )


def dense(c_in: int, c_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with bias, initialised for a ReLU."""
    return nnx.Linear(c_in, c_out, kernel_init=WEIGHT_INIT, rngs=rngs)


def batch_norm(c_out: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation whose statistics settle within a few dozen steps, for short training runs."""
    return nnx.BatchNorm(c_out, momentum=0.9, use_fast_variance=False, rngs=rngs)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 2x2 window, [N, H, W, C] to [N, H//2, W//2, C]; an odd last row or column is dropped.

    A reshape and a maximum: on a CPU this is meant to be faster than a window reduction.

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
    return jnp.max(x.reshape(n, rows, 2, columns, 2, channels), axis=(2, 4))


def flatten(x: jax.Array) -> jax.Array:
    """[N, H, W, C] to [N, H*W*C], channels fastest."""
    return x.reshape(x.shape[0], -1)


def check_widths(owner: str, widths: Sequence[int], layers: Sequence[str]) -> tuple[int, ...]:
    """The widths as a tuple, once they are one positive whole number for each of `layers`.

    Raises:
      ValueError: if their number is wrong or any is not a whole number >= 1; names all the bad ones.

    Example:
      >>> check_widths("MyNet", [8, 16], ["conv", "dense"])
      (8, 16)
    """
    widths = tuple(widths)
    if len(widths) != len(layers):
        raise ValueError(
            f"{owner} needs {len(layers)} widths, one each for {', '.join(layers)}, got {len(widths)}: {widths}."
        )
    bad = [
        f"{layer}: {width!r}" for layer, width in zip(layers, widths, strict=True) if not _is_positive(width)
    ]
    if bad:
        raise ValueError(
            f"{owner} needs widths that are whole numbers >= 1, got {', '.join(bad)}. "
            "Keep at least one channel in each layer."
        )
    return tuple(int(width) for width in widths)


def check_sizes(
    owner: str, image_shape: Sequence[int], num_classes: int, *, smallest: int
) -> tuple[int, int, int]:
    """The image shape as a tuple (H, W, C), once the network can hold it and its number of classes.

    Args:
      owner: the network's name, for the message.
      image_shape: (H, W, C) of one image.
      num_classes: width of the output layer, at least 2.
      smallest: the smallest H and W that leave at least one position after the last pooling.

    Raises:
      ValueError: if the shape is not three whole numbers >= 1, H or W is below `smallest`, or `num_classes` < 2.

    Example:
      >>> check_sizes("MyNet", [8, 8, 1], 10, smallest=4)
      (8, 8, 1)
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(_is_positive(size) for size in shape):
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
    if not _is_positive(num_classes) or num_classes < 2:
        raise ValueError(f"{owner} needs num_classes to be a whole number >= 2, got {num_classes!r}.")
    return int(height), int(width), int(channels)


def check_input(owner: str, x: jax.Array, image_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError unless `x` is a batch [N, H, W, C] of images of `image_shape`."""
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
    """A 2-D convolution as shifted views of the image joined and multiplied once by the kernel matrix.

    Drop-in for the `conv_general_dilated=` argument of `nnx.Conv`, for compiled loops on a CPU: inside `scan` the
    library's convolution is slow there (LeNet-5, batch 100: a step of 63 ms instead of 482 ms, and of 22 ms instead
    of 189 ms at 8-20-100, on two busy cores). Outside loops neither is clearly faster.
    What it does not cover (dilation, groups, other than two spatial axes) goes to the library unchanged.

    Args:
      lhs: [N, H, W, c_in] images.
      rhs: [kh, kw, c_in, c_out] kernel.
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
    dilated = any(step != 1 for step in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if lhs.ndim != 4 or dilated or feature_group_count != 1:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,  # type: ignore[arg-type]
            feature_group_count=feature_group_count, precision=precision, **options,  # type: ignore[arg-type]
        )  # fmt: skip
    kernel_rows, kernel_columns, c_in, c_out = rhs.shape
    row_step, column_step = window_strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    x = jnp.pad(lhs, ((0, 0), *map(tuple, padding), (0, 0)))
    rows = (x.shape[1] - kernel_rows) // row_step + 1
    columns = (x.shape[2] - kernel_columns) // column_step + 1
    row_span, column_span = (rows - 1) * row_step + 1, (columns - 1) * column_step + 1
    views = [
        x[:, i : i + row_span : row_step, j : j + column_span : column_step]
        for i in range(kernel_rows)
        for j in range(kernel_columns)
    ]
    patches = jnp.concatenate(views, axis=-1)
    return jnp.matmul(patches, rhs.reshape(kernel_rows * kernel_columns * c_in, c_out), precision=precision)


def with_patch_convolutions(model: nnx.Module) -> nnx.Module:
    """A copy of `model` whose ordinary 2-D convolutions run as matrix products (`convolve_by_patches`).

    Parameters, paths and results (up to rounding) stay the same, so states move freely between the two; use it for
    training and evaluation on a CPU, and the plain model for tracing structure.

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


def _is_positive(value: object) -> bool:
    """Whether `value` is a whole number (not a truth value) of at least 1."""
    return not isinstance(value, bool) and hasattr(value, "__index__") and value.__index__() >= 1
