"""Operators on vectors and matrices: products, transpose, trace, inverse, kernels, the medoid and slices.

Every contraction reads masks and replaces padding before it sums. Distances come from differences, never from
expanded squares, which lose three digits in float32.
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
    AxisMasks,
    Fragment,
    Params,
    Shape,
)
from jaxprune.language.registration import register_operator
from jaxprune.types import Array, Namespace

INVERSE_RIDGE = 1e-4
_COORDINATES = 8
"""How many coordinates of squared distances are added up at once."""

Masks = Sequence[AxisMasks] | None


def _axis_mask(masks: Masks, argument: int, axis: int) -> Array | None:
    return None if masks is None else masks[argument][axis]


def _transpose(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    return xp.swapaxes(values[0], -1, -2)


def _matmul(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    # Only the contracted axis must be clean: padded rows and columns of the result stay padding.
    left, right = values
    ranks = (left.ndim - NUM_BATCH_AXES, right.ndim - NUM_BATCH_AXES)
    left = zero_padding(xp, left, (*(None,) * (ranks[0] - 1), _axis_mask(masks, 0, -1)))
    right = zero_padding(xp, right, (_axis_mask(masks, 1, 0), *(None,) * (ranks[1] - 1)))
    if ranks == (1, 1):
        return sum_rows(xp, left, right)
    left = left[..., None, :] if ranks[0] == 1 else left
    right = right[..., None] if ranks[1] == 1 else right
    if xp is np:
        found: Array = _numpy_product(np.asarray(left), np.asarray(right))
    else:
        found = jnp.matmul(left, right, precision="highest")
    return found[..., 0, :] if ranks[0] == 1 else found[..., 0] if ranks[1] == 1 else found


def _numpy_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of matrices; what is shared by all channels or classes becomes one product, not one for each."""
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    if left.shape[-2] == 1 and right.shape[1:3] == (1, 1) and left.shape[:-2] == batch:
        # a vector of each channel with one matrix of the layer
        return np.matmul(left.reshape(batch[0], -1, left.shape[-1]), right[:, 0, 0]).reshape(
            *batch, 1, right.shape[-1]
        )
    if right.shape[-1] == 1 and left.shape[1:3] == (1, 1) and right.shape[:-2] == batch:
        flat = right.reshape(batch[0], -1, right.shape[-2])
        found = np.matmul(flat, np.swapaxes(left[:, 0, 0], -1, -2))
        return found.reshape(*batch, left.shape[-2], 1)
    if right.shape[-1] == 1 and left.shape[1] == 1 < right.shape[1] and right.shape[2] == batch[2]:
        # one matrix of a channel with the vectors of all classes
        by_class = np.moveaxis(right[..., 0], 1, -1)
        return np.moveaxis(np.matmul(left[:, 0], by_class), -1, 1)[..., None]
    return np.matmul(left, right)


def _outer(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    return values[0][..., :, None] * values[1][..., None, :]


def _trace(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    diagonal = xp.diagonal(values[0], axis1=-2, axis2=-1)
    return sum_rows(xp, zero_padding(xp, diagonal, (_axis_mask(masks, 0, 0),)))


def _inverse(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    """(A + 1e-4 I)^-1 of square matrices, padding replaced by an identity block.

    Rows and columns are scaled to a unit diagonal first: in float32 that keeps one to two more digits when positions
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
    try:
        return xp.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        # NumPy refuses all where one is singular: that one has no inverse that is finite.
        if matrices.ndim == 2:
            return np.full_like(matrices, np.nan)
        return np.stack([_inverted(np, each) for each in matrices])


def squared_distances(xp: Namespace, rows: Array, others: Array) -> Array:
    """[..., n, m] from [..., n, D] and [..., m, D], never from expanded float32 squares, which lose three digits."""
    return (_numpy_distances if xp is np else _jax_distances)(rows, others)


def _jax_distances(rows: Array, others: Array) -> Array:
    """A few coordinates at a time over whole matrices, which processors do fastest."""
    padding = -rows.shape[-1] % _COORDINATES
    parts = [jnp.pad(each, [(0, 0)] * (each.ndim - 1) + [(0, padding)]) for each in (rows, others)]

    def add(index: int | Array, total: Array) -> Array:
        left, right = (
            jax.lax.dynamic_slice_in_dim(each, index * _COORDINATES, _COORDINATES, -1) for each in parts
        )
        squares = [jnp.square(left[..., :, None, i] - right[..., None, :, i]) for i in range(_COORDINATES)]
        return total + sum(squares[1:], start=squares[0])

    batch = jnp.broadcast_shapes(rows.shape[:-2], others.shape[:-2])
    zeros = jnp.zeros((*batch, rows.shape[-2], others.shape[-2]), rows.dtype)
    num_parts = parts[0].shape[-1] // _COORDINATES
    return add(0, zeros) if num_parts == 1 else jax.lax.fori_loop(0, num_parts, add, zeros)


def _numpy_distances(rows: Array, others: Array) -> Array:
    """Matrix by matrix: float32 by products in float64, which is exact enough and up to 20 times as fast as `cdist`."""
    batch = np.broadcast_shapes(rows.shape[:-2], others.shape[:-2])
    found = np.empty((*batch, rows.shape[-2], others.shape[-2]), rows.dtype)
    is_same = rows is others
    rows, others = (np.broadcast_to(each, batch + each.shape[-2:]) for each in (rows, others))
    pair = _cdist_squares if rows.dtype == np.float64 or rows.shape[-1] < _COORDINATES else _product_squares
    for index in np.ndindex(batch):
        own = rows[index]
        found[index] = pair(own, own if is_same else others[index])
    return found


def _cdist_squares(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n, m] squared distances by differences."""
    return cdist(rows, others, "sqeuclidean")


def _product_squares(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n, m] squared distances of float32 rows by a product in float64, relative to the first row.

    Given the same array twice, a row is exactly at 0 from itself.
    """
    start = rows[0].astype(np.float64)
    left = rows - start
    right = left if rows is others else others - start
    left_squares = np.einsum("ij,ij->i", left, left)
    right_squares = left_squares if right is left else np.einsum("ij,ij->i", right, right)
    found = np.matmul(left, right.T)
    found *= -2
    found += left_squares[:, None]
    found += right_squares
    np.maximum(found, 0, out=found)
    if right is left:
        np.fill_diagonal(found, 0)
    return found


def _rbf(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    clean = [
        zero_padding(xp, value, (None, _axis_mask(masks, index, 1))) for index, value in enumerate(values)
    ]
    distances = squared_distances(xp, clean[0], clean[-1])
    factor = -1 / (2 * params[0] ** 2)
    return xp.exp(distances * (distances.dtype.type(factor) if xp is np else factor))


def _geometric_median(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    bank, columns = values[0], _axis_mask(masks, 0, 1)
    clean = zero_padding(xp, bank, (_axis_mask(masks, 0, 0), columns))
    by_column = xp.swapaxes(clean, -1, -2)
    distances = xp.sqrt(squared_distances(xp, by_column, by_column))
    totals = sum_rows(xp, zero_padding(xp, distances, (None, columns)))
    if columns is not None:
        totals = xp.where(columns, totals, xp.inf)
    chosen = xp.argmin(totals, axis=-1)[..., None, None]
    return xp.take_along_axis(bank, chosen, axis=-1)[..., 0]


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


def _juxtaposed(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = (argument.within(PRODUCT_LEVEL) for argument in arguments)
    left = rf"{arguments[0].within(ATOM_LEVEL)}^{{\top}}" if len(arguments[0].type) == 1 else left
    return Fragment(rf"{left}\, {right}", PRODUCT_LEVEL)


def _outer_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = arguments[0].within(PRODUCT_LEVEL), arguments[1].within(ATOM_LEVEL)
    return Fragment(rf"{left}\, {right}^{{\top}}", PRODUCT_LEVEL)


def _transpose_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    return Fragment(rf"{{{arguments[0].within(ATOM_LEVEL)}}}^{{\top}}", PRODUCT_LEVEL)


def _trace_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\operatorname{{tr}}\left({arguments[0].text}\right)"


def _inverse_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    return Fragment(rf"\left({arguments[0].text} + 10^{{-4}} I\right)^{{-1}}", PRODUCT_LEVEL)


def _rbf_latex(arguments: Sequence[Fragment], params: Params) -> str:
    inside = ", ".join(argument.text for argument in (arguments[0], arguments[-1]))
    return rf"\kappa_{{\sigma={params[0]:g}}}\left({inside}\right)"


def _medoid_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\operatorname{{medoid}}\left({arguments[0].text}\right)"


def _slice_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    eighths = rf"\left[{int(params[0])}/8 : {int(params[1])}/8\right]"
    return Fragment(rf"{{{arguments[0].within(ATOM_LEVEL)}}}_{{{eighths}}}", PRODUCT_LEVEL)


def _matmul_flops(shapes: Sequence[Shape]) -> float:
    return 2.0 * math.prod(shapes[0]) * math.prod(shapes[1][1:])


def _outer_flops(shapes: Sequence[Shape]) -> float:
    return float(shapes[0][0] * shapes[1][0])


def _inverse_flops(shapes: Sequence[Shape]) -> float:
    return 8.0 * shapes[0][0] ** 3


def _rbf_flops(shapes: Sequence[Shape]) -> float:
    return 3.0 * shapes[0][0] * shapes[-1][0] * shapes[0][1]


def _medoid_flops(shapes: Sequence[Shape]) -> float:
    return 3.0 * shapes[0][0] * shapes[0][1] ** 2


_TRANSPOSE_CODE = {"numpy": "np.transpose({0})", "jax": "jnp.transpose({0})", "torch": "torch.t({0})"}
_MATMUL_CODE = {
    "numpy": "np.matmul({0}, {1})",
    "jax": 'jnp.matmul({0}, {1}, precision="highest")',
    "torch": "torch.matmul({0}, {1})",
}
_INNER_CODE = {
    "numpy": "np.dot({0}, {1})",
    "jax": 'jnp.dot({0}, {1}, precision="highest")',
    "torch": "torch.dot({0}, {1})",
}
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
    code=_TRANSPOSE_CODE,
)
register_operator(
    "matmul",
    _matmul,
    signatures=("(a,b), (b,c) -> (a,c)", "(a,b), (b) -> (a)", "(b), (b,c) -> (c)"),
    is_batched=True,
    latex=_juxtaposed,
    code=_MATMUL_CODE,
    flops=_matmul_flops,
)
register_operator(
    "inner",
    _matmul,
    signatures=("(a), (a) -> ()",),
    is_batched=True,
    latex=_juxtaposed,
    code=_INNER_CODE,
    is_commutative=True,
)
register_operator(
    "outer",
    _outer,
    signatures=("(a), (b) -> (a,b)",),
    is_batched=True,
    latex=_outer_latex,
    code="np.outer({0}, {1})",
    flops=_outer_flops,
)
register_operator(
    "trace", _trace, signatures=("(a,a) -> ()",), is_batched=True, latex=_trace_latex, code="np.trace({0})"
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
    flops=_inverse_flops,
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
    flops=_rbf_flops,
    parameter_choices=((0.5,), (1.0,), (3.0,)),
    check_params=_check_sigma,
)
register_operator(
    "geometric_median",
    _geometric_median,
    signatures=("(F,C) -> (F)",),
    is_batched=True,
    latex=_medoid_latex,
    code="medoid({0})",
    helper=_MEDOID_CODE,
    complexity=2,
    flops=_medoid_flops,
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
