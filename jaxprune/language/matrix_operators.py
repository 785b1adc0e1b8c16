"""Operators on vectors and matrices: products, transpose, trace, inverse, kernels, the medoid and slices.

Every contraction replaces padding by 0 before it sums. Distances are computed from differences, never from expanded
float32 squares, which lose three digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from jaxprune.language.axes import NUM_SLICE_PARTS, slice_bounds
from jaxprune.language.basic_operators import sum_rows, zero_padding
from jaxprune.language.operators import (
    ATOM_LEVEL,
    NUM_BATCH_AXES,
    PRODUCT_LEVEL,
    Fragment,
    Masks,
    Params,
)
from jaxprune.language.registration import register_operator
from jaxprune.types import Array, Namespace

INVERSE_RIDGE = 1e-4
_COORDINATES = 8
"""How many coordinates of squared distances are added up at once."""


def squared_distances(xp: Namespace, rows: Array, others: Array) -> Array:
    """Computes the squared Euclidean distances between all pairs of rows.

    Args:
      xp: `numpy` or `jax.numpy`.
      rows: [..., n, D].
      others: [..., m, D]; if it is `rows` itself, each row is at distance exactly 0 from itself.

    Returns:
      [..., n, m] distances.
    """
    return (_numpy_distances if xp is np else _jax_distances)(rows, others)


def _jax_distances(rows: Array, others: Array) -> Array:
    """Adds up a few coordinates at a time over whole matrices, which is fastest in compiled programs."""
    padding = -rows.shape[-1] % _COORDINATES
    padded = [jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, padding)]) for array in (rows, others)]

    def add(index: int | Array, total: Array) -> Array:
        left, right = (
            jax.lax.dynamic_slice_in_dim(array, index * _COORDINATES, _COORDINATES, -1) for array in padded
        )
        squares = [jnp.square(left[..., :, None, i] - right[..., None, :, i]) for i in range(_COORDINATES)]
        return total + sum(squares[1:], start=squares[0])

    batch = jnp.broadcast_shapes(rows.shape[:-2], others.shape[:-2])
    zeros = jnp.zeros((*batch, rows.shape[-2], others.shape[-2]), rows.dtype)
    num_parts = padded[0].shape[-1] // _COORDINATES
    return add(0, zeros) if num_parts == 1 else jax.lax.fori_loop(0, num_parts, add, zeros)


def _numpy_distances(rows: Array, others: Array) -> Array:
    """Takes one matrix after another.

    Float32 distances come from products in float64, which are exact enough and up to 20 times as fast as `cdist`.
    """
    batch = np.broadcast_shapes(rows.shape[:-2], others.shape[:-2])
    distances = np.empty((*batch, rows.shape[-2], others.shape[-2]), rows.dtype)
    is_same = rows is others
    rows, others = (np.broadcast_to(array, batch + array.shape[-2:]) for array in (rows, others))
    uses_differences = rows.dtype == np.float64 or rows.shape[-1] < _COORDINATES
    for index in np.ndindex(batch):
        left = rows[index]
        right = left if is_same else others[index]
        distances[index] = (
            cdist(left, right, "sqeuclidean") if uses_differences else _product_squares(left, right)
        )
    return distances


def _product_squares(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the [n, m] squared distances of float32 rows by a product in float64, relative to the first row.

    If both arguments are the same array, the distance of a row from itself is exactly 0.
    """
    start = rows[0].astype(np.float64)
    left = rows - start
    right = left if rows is others else others - start
    left_squares = np.einsum("ij,ij->i", left, left)
    right_squares = left_squares if right is left else np.einsum("ij,ij->i", right, right)
    distances = np.matmul(left, right.T)
    distances *= -2
    distances += left_squares[:, None]
    distances += right_squares
    np.maximum(distances, 0, out=distances)
    if right is left:
        np.fill_diagonal(distances, 0)
    return distances


def _axis_mask(masks: Masks, argument: int, axis: int) -> Array | None:
    """The mask of one axis of one argument."""
    return None if masks is None else masks[argument][axis]


def _transpose(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    return xp.swapaxes(values[0], -1, -2)


def _matmul(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    # Only the contracted axis must be clean: padded rows and columns of the result remain padding.
    left, right = values
    num_left_axes, num_right_axes = left.ndim - NUM_BATCH_AXES, right.ndim - NUM_BATCH_AXES
    left = zero_padding(xp, left, (*(None,) * (num_left_axes - 1), _axis_mask(masks, 0, -1)))
    right = zero_padding(xp, right, (_axis_mask(masks, 1, 0), *(None,) * (num_right_axes - 1)))
    if num_left_axes == num_right_axes == 1:
        return sum_rows(xp, left, right)
    if num_left_axes == 1:
        return _product(xp, left[..., None, :], right)[..., 0, :]
    if num_right_axes == 1:
        return _product(xp, left, right[..., None])[..., 0]
    return _product(xp, left, right)


def _product(xp: Namespace, left: Array, right: Array) -> Array:
    """Multiplies matrices; with NumPy, what all channels or classes share is one product, not one for each."""
    if xp is not np:
        return jnp.matmul(left, right, precision="highest")
    left, right = np.asarray(left), np.asarray(right)
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    if left.shape[-2] == 1 and right.shape[1:3] == (1, 1) and left.shape[:-2] == batch:
        # A vector of each channel with one matrix of the layer.
        vectors = left.reshape(batch[0], -1, left.shape[-1])
        return np.matmul(vectors, right[:, 0, 0]).reshape(*batch, 1, right.shape[-1])
    if right.shape[-1] == 1 and left.shape[1:3] == (1, 1) and right.shape[:-2] == batch:
        # One matrix of the layer with a vector of each channel.
        vectors = right.reshape(batch[0], -1, right.shape[-2])
        products = np.matmul(vectors, np.swapaxes(left[:, 0, 0], -1, -2))
        return products.reshape(*batch, left.shape[-2], 1)
    if right.shape[-1] == 1 and left.shape[1] == 1 < right.shape[1] and right.shape[2] == batch[2]:
        # One matrix of each channel with the vectors of all classes.
        by_class = np.moveaxis(right[..., 0], 1, -1)
        return np.moveaxis(np.matmul(left[:, 0], by_class), -1, 1)[..., None]
    return np.matmul(left, right)


def _outer(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    return values[0][..., :, None] * values[1][..., None, :]


def _trace(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    diagonal = xp.diagonal(values[0], axis1=-2, axis2=-1)
    return sum_rows(xp, zero_padding(xp, diagonal, (_axis_mask(masks, 0, 0),)))


def _inverse(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    """Computes (A + 1e-4 I)^-1 of square matrices, with padding replaced by an identity block.

    Rows and columns are first scaled to a unit diagonal: in float32 that saves one to two digits when positions
    differ in scale (a Newton step after it was measured to gain nothing).
    """
    matrix, mask = values[0], _axis_mask(masks, 0, 0)
    eye = xp.eye(matrix.shape[-1], dtype=matrix.dtype).reshape((1,) * (matrix.ndim - 2) + matrix.shape[-2:])
    ridged = matrix + matrix.dtype.type(INVERSE_RIDGE) * eye
    if mask is not None:
        ridged = xp.where(mask[..., :, None] & mask[..., None, :], ridged, eye)
    diagonal = xp.diagonal(ridged, axis1=-2, axis2=-1)
    scale = xp.where(diagonal > 0, 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1)), 1)
    scaled = ridged * scale[..., :, None] * scale[..., None, :]
    return _inverted(xp, scaled) * scale[..., :, None] * scale[..., None, :]


def _inverted(xp: Namespace, matrices: Array) -> Array:
    """Inverts matrices; one that is singular gives NaN (NumPy alone would refuse all of them)."""
    try:
        return xp.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        if matrices.ndim == 2:
            return np.full_like(matrices, np.nan)
        return np.stack([_inverted(np, matrix) for matrix in matrices])


def _rbf(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    clean = [
        zero_padding(xp, value, (None, _axis_mask(masks, index, 1))) for index, value in enumerate(values)
    ]
    distances = squared_distances(xp, clean[0], clean[-1])
    factor = -1 / (2 * params[0] ** 2)
    return xp.exp(distances * (distances.dtype.type(factor) if xp is np else factor))


def _geometric_median(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    """Selects the column of [..., F, C] with the least sum of distances to the others."""
    filters, channel_mask = values[0], _axis_mask(masks, 0, 1)
    clean = zero_padding(xp, filters, (_axis_mask(masks, 0, 0), channel_mask))
    by_channel = xp.swapaxes(clean, -1, -2)
    distances = xp.sqrt(squared_distances(xp, by_channel, by_channel))
    totals = sum_rows(xp, zero_padding(xp, distances, (None, channel_mask)))
    if channel_mask is not None:
        totals = xp.where(channel_mask, totals, xp.inf)
    medoid = xp.argmin(totals, axis=-1)[..., None, None]
    return xp.take_along_axis(filters, medoid, axis=-1)[..., 0]


def _slice(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    start, stop = slice_bounds(values[0].shape[-1], int(params[0]), int(params[1]))
    return values[0][..., start:stop]


def _check_sigma(params: Params) -> str:
    if math.isfinite(params[0]) and params[0] > 0:
        return ""
    return f"needs a positive width sigma, got {params[0]:g}. Write rbf(A, B, 1) or rbf(A, 1)."


def _check_eighths(params: Params) -> str:
    if all(float(param).is_integer() for param in params) and 0 <= params[0] < params[1] <= NUM_SLICE_PARTS:
        return ""
    shown = ", ".join(f"{param:g}" for param in params)
    return f"needs whole numbers 0 <= i < j <= {NUM_SLICE_PARTS}, got {shown}. Write slice(X, 2, 5)."


def _transposed_text(fragment: Fragment) -> str:
    return rf"{fragment.within(ATOM_LEVEL)}^{{\top}}"


def _matmul_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = arguments
    row = _transposed_text(left) if len(left.type) == 1 else left.within(PRODUCT_LEVEL)
    return Fragment(rf"{row}\, {right.within(PRODUCT_LEVEL)}", PRODUCT_LEVEL)


def _outer_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = arguments
    return Fragment(rf"{left.within(PRODUCT_LEVEL)}\, {_transposed_text(right)}", PRODUCT_LEVEL)


def _transpose_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    return Fragment(rf"{{{arguments[0].within(ATOM_LEVEL)}}}^{{\top}}", PRODUCT_LEVEL)


def _inverse_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    return Fragment(rf"\left({arguments[0].text} + 10^{{-4}} I\right)^{{-1}}", PRODUCT_LEVEL)


def _rbf_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\kappa_{{\sigma={params[0]:g}}}\left({arguments[0].text}, {arguments[-1].text}\right)"


def _slice_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    eighths = rf"\left[{int(params[0])}/8 : {int(params[1])}/8\right]"
    return Fragment(rf"{{{arguments[0].within(ATOM_LEVEL)}}}_{{{eighths}}}", PRODUCT_LEVEL)


_INVERSE_CODE = '''\
def ridge_inverse(matrix):
    """Inverse of A + 1e-4 I."""
    return np.linalg.inv(matrix + 1e-4 * np.eye(len(matrix), dtype=matrix.dtype))'''
_RBF_CODE = '''\
def rbf(rows, others, sigma):
    """Gaussian kernel exp(-|a - b|^2 / (2 sigma^2)) between all pairs of rows."""
    squares = np.square(rows[:, None] - others[None])
    return np.exp(-np.sum(squares, -1) / (2 * sigma**2))'''
_MEDOID_CODE = '''\
def medoid(bank):
    """The column of [F, C] with the least sum of Euclidean distances to the others (the first on ties)."""
    distances = np.sqrt(np.sum(np.square(bank[:, :, None] - bank[:, None]), 0))
    return bank[:, np.argmin(np.sum(distances, 1))]'''
_SLICE_CODE = '''\
def position_slice(values, first, last):
    """Positions from floor(first D / 8) to floor(last D / 8) on the last axis, at least one."""
    num_positions = values.shape[-1]
    start = first * num_positions // 8
    return values[..., start : max(last * num_positions // 8, start + 1)]'''

register_operator(
    "transpose",
    _transpose,
    signatures=("(a,b) -> (b,a)",),
    is_batched=True,
    latex=_transpose_latex,
    code={"numpy": "np.transpose({0})", "jax": "jnp.transpose({0})", "torch": "torch.t({0})"},
)
register_operator(
    "matmul",
    _matmul,
    signatures=("(a,b), (b,c) -> (a,c)", "(a,b), (b) -> (a)", "(b), (b,c) -> (c)"),
    is_batched=True,
    latex=_matmul_latex,
    code={
        "numpy": "np.matmul({0}, {1})",
        "jax": 'jnp.matmul({0}, {1}, precision="highest")',
        "torch": "torch.matmul({0}, {1})",
    },
    flops=lambda shapes: 2.0 * math.prod(shapes[0]) * math.prod(shapes[1][1:]),
)
register_operator(
    "inner",
    _matmul,
    signatures=("(a), (a) -> ()",),
    is_batched=True,
    latex=_matmul_latex,
    code={
        "numpy": "np.dot({0}, {1})",
        "jax": 'jnp.dot({0}, {1}, precision="highest")',
        "torch": "torch.dot({0}, {1})",
    },
    is_commutative=True,
)
register_operator(
    "outer",
    _outer,
    signatures=("(a), (b) -> (a,b)",),
    is_batched=True,
    latex=_outer_latex,
    code="np.outer({0}, {1})",
    flops=lambda shapes: float(shapes[0][0] * shapes[1][0]),
)
register_operator(
    "trace",
    _trace,
    signatures=("(a,a) -> ()",),
    is_batched=True,
    latex=lambda arguments, params: rf"\operatorname{{tr}}\left({arguments[0].text}\right)",
    code="np.trace({0})",
)
register_operator(
    "inverse",
    _inverse,
    signatures=("(a,a) -> (a,a)",),
    is_batched=True,
    latex=_inverse_latex,
    code="ridge_inverse({0})",
    helper=_INVERSE_CODE,
    complexity=2,
    flops=lambda shapes: 8.0 * shapes[0][0] ** 3,
)
register_operator(
    "rbf",
    _rbf,
    signatures=("(a,d), (b,d) -> (a,b)", "(a,d) -> (a,a)"),
    is_batched=True,
    latex=_rbf_latex,
    code="rbf({0}, {1}, {p0})",
    helper=_RBF_CODE,
    complexity=2,
    flops=lambda shapes: 3.0 * shapes[0][0] * shapes[-1][0] * shapes[0][1],
    parameter_choices=((0.5,), (1.0,), (3.0,)),
    check_params=_check_sigma,
)
register_operator(
    "geometric_median",
    _geometric_median,
    signatures=("(F,C) -> (F)",),
    is_batched=True,
    latex=lambda arguments, params: rf"\operatorname{{medoid}}\left({arguments[0].text}\right)",
    code="medoid({0})",
    helper=_MEDOID_CODE,
    complexity=2,
    flops=lambda shapes: 3.0 * shapes[0][0] * shapes[0][1] ** 2,
)
register_operator(
    "slice",
    _slice,
    signatures=("(n,D) -> (n,D[i:j])", "(D) -> (D[i:j])"),
    is_batched=True,
    latex=_slice_latex,
    code="position_slice({0}, {p0}, {p1})",
    helper=_SLICE_CODE,
    complexity=2,
    parameter_choices=tuple((float(i), float(j)) for i in range(8) for j in range(i + 1, 9)),
    check_params=_check_eighths,
)
