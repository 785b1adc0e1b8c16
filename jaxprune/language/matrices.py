"""Operators on vectors and matrices: products, transpose, trace, inverse, kernels, the medoid and slices.

Every contraction reads masks and replaces padding before it sums. Distances come from differences, never from
expanded squares, which lose three digits in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxprune.language.axes import NUM_SLICE_PARTS, slice_bounds, slice_capacity
from jaxprune.language.operators import (
    ATOM_LEVEL,
    PRODUCT_LEVEL,
    AxisMasks,
    Fragment,
    Params,
    Shape,
    register_operator,
)
from jaxprune.language.reductions import zero_padding

INVERSE_RIDGE = 1e-4
_HIGHEST = jax.lax.Precision.HIGHEST
_COORDINATES = 8
"""How many coordinates of squared distances are added up at once."""

Masks = Sequence[AxisMasks] | None


def _all_masks(arrays: Sequence[jax.Array], masks: Masks) -> Sequence[AxisMasks]:
    return masks if masks is not None else [(None,) * array.ndim for array in arrays]


def _transpose(matrix: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    return matrix.T


def _matmul(left: jax.Array, right: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    # Only the contracted axis must be clean: padded rows and columns of the result stay padding.
    masks = _all_masks((left, right), masks)
    left = zero_padding(left, (*(None,) * (left.ndim - 1), masks[0][-1]))
    right = zero_padding(right, (masks[1][0], *(None,) * (right.ndim - 1)))
    return jnp.matmul(left, right, precision=_HIGHEST)


def _outer(left: jax.Array, right: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    return left[:, None] * right[None]


def _trace(matrix: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    diagonal = jnp.diagonal(matrix)
    return jnp.sum(zero_padding(diagonal, None if masks is None else masks[0][:1]))


def ridge_inverse(matrix: jax.Array, mask: jax.Array | None) -> jax.Array:
    """(A + 1e-4 I)^-1 of a square matrix, padding replaced by an identity block.

    Rows and columns are scaled to a unit diagonal first: in float32 that keeps one to two more digits when positions
    differ in scale (a Newton step after it was measured to gain nothing).
    """
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    ridged = matrix + INVERSE_RIDGE * eye
    if mask is not None:
        ridged = jnp.where(mask[:, None] & mask[None], ridged, eye)
    diagonal = jnp.diagonal(ridged)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    scaled = ridged * scale[:, None] * scale[None]
    return jnp.linalg.inv(scaled) * scale[:, None] * scale[None]


def _inverse(matrix: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    return ridge_inverse(matrix, None if masks is None else masks[0][0])


def squared_distances(rows: jax.Array, others: jax.Array) -> jax.Array:
    """[n, m] from [n, D] and [m, D]: a few coordinates at a time over whole matrices, which processors do fastest."""
    padding = ((0, 0), (0, -rows.shape[1] % _COORDINATES))
    chunks = [
        jnp.pad(points, padding).reshape(len(points), -1, _COORDINATES).transpose(1, 2, 0)
        for points in (rows, others)
    ]

    def add(index: int | jax.Array, total: jax.Array) -> jax.Array:
        left, right = chunks[0][index], chunks[1][index]
        squares = [jnp.square(left[i][:, None] - right[i][None]) for i in range(_COORDINATES)]
        return total + sum(squares[1:], start=squares[0])

    zeros = jnp.zeros((len(rows), len(others)), rows.dtype)
    num_chunks = chunks[0].shape[0]
    return add(0, zeros) if num_chunks == 1 else jax.lax.fori_loop(0, num_chunks, add, zeros)


def _rbf(*samples: jax.Array, masks: Masks = None, params: Params = ()) -> jax.Array:
    masks = _all_masks(samples, masks)
    clean = [zero_padding(array, (None, mask[1])) for array, mask in zip(samples, masks, strict=True)]
    return jnp.exp(-squared_distances(clean[0], clean[-1]) / (2 * params[0] ** 2))


def _geometric_median(bank: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    rows, columns = _all_masks((bank,), masks)[0]
    clean = zero_padding(bank, (rows, columns))
    distances = jnp.sqrt(squared_distances(clean.T, clean.T))
    totals = jnp.sum(zero_padding(distances, (None, columns)), axis=1)
    if columns is not None:
        totals = jnp.where(columns, totals, jnp.inf)
    return jnp.take(bank, jnp.argmin(totals), axis=1)


def _slice(array: jax.Array, *, masks: Masks = None, params: Params = ()) -> jax.Array:
    first, last = int(params[0]), int(params[1])
    mask = None if masks is None else masks[0][-1]
    if mask is None:
        start, stop = slice_bounds(array.shape[-1], first, last)
        return array[..., start:stop]
    # The true size is known at run time only: take as many positions as any size could keep (`sliced_mask`).
    capacity = slice_capacity(array.shape[-1], first, last)
    start_index = first * jnp.sum(mask) // NUM_SLICE_PARTS
    return jnp.take(array, start_index + jnp.arange(capacity), axis=-1, mode="clip")


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
    uses_masks=True,
    latex=_transpose_latex,
    code=_TRANSPOSE_CODE,
)
register_operator(
    "matmul",
    _matmul,
    signatures=("(a,b), (b,c) -> (a,c)", "(a,b), (b) -> (a)", "(b), (b,c) -> (c)"),
    uses_masks=True,
    latex=_juxtaposed,
    code=_MATMUL_CODE,
    flops=_matmul_flops,
)
register_operator(
    "inner",
    _matmul,
    signatures=("(a), (a) -> ()",),
    uses_masks=True,
    latex=_juxtaposed,
    code=_INNER_CODE,
    is_commutative=True,
)
register_operator(
    "outer",
    _outer,
    signatures=("(a), (b) -> (a,b)",),
    uses_masks=True,
    latex=_outer_latex,
    code="np.outer({0}, {1})",
    flops=_outer_flops,
)
register_operator(
    "trace", _trace, signatures=("(a,a) -> ()",), uses_masks=True, latex=_trace_latex, code="np.trace({0})"
)
register_operator(
    "inverse",
    _inverse,
    signatures=("(a,a) -> (a,a)",),
    uses_masks=True,
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
    uses_masks=True,
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
    uses_masks=True,
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
    uses_masks=True,
    latex=_slice_latex,
    code="position_slice({0}, {p0}, {p1})",
    helper=_SLICE_CODE,
    complexity=2,
    parameter_choices=tuple((float(i), float(j)) for i in range(8) for j in range(i + 1, 9)),
    check_params=_check_eighths,
)
