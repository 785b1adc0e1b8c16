"""Elementwise operators: `+ - * /`, `abs`, `square`, `sqrt`. They follow plain IEEE arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from jaxprune.language.axes import is_sample_axis
from jaxprune.language.operators import (
    ATOM_LEVEL,
    BROADCAST,
    NUM_BATCH_AXES,
    PRODUCT_LEVEL,
    SUM_LEVEL,
    AxisMasks,
    Fragment,
    Implementation,
    Params,
)
from jaxprune.language.registration import register_operator
from jaxprune.types import Array, Namespace


def _elementwise(function: Callable[[Namespace], Callable[..., Array]]) -> Implementation:
    """Lays a scalar along all axes of a larger value, and positions along the rows of samples."""

    def implement(
        xp: Namespace, *values: Array, masks: Sequence[AxisMasks] | None = None, params: Params = ()
    ) -> Array:
        rank = max(value.ndim for value in values)
        return function(xp)(*(_with_rank(value, rank) for value in values))

    return implement


def _with_rank(value: Array, rank: int) -> Array:
    missing = rank - value.ndim
    if not missing:
        return value
    batch, axes = value.shape[:NUM_BATCH_AXES], value.shape[NUM_BATCH_AXES:]
    return value.reshape(*batch, *(1,) * missing, *axes)


def _aligned(fragments: Sequence[Fragment]) -> list[Fragment]:
    """Writes a position vector that meets samples as the matrix of its copies, one per row."""
    rank = max(len(fragment.type) for fragment in fragments)
    if rank != 2 or not any(
        is_sample_axis(fragment.type[0]) for fragment in fragments if len(fragment.type) == 2
    ):
        return list(fragments)
    return [
        Fragment(rf"\mathbf{{1}} {fragment.within(ATOM_LEVEL)}^{{\top}}", PRODUCT_LEVEL, fragment.type)
        if len(fragment.type) == 1
        else fragment
        for fragment in fragments
    ]


def _sum_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = _aligned(arguments)
    return Fragment(f"{left.within(SUM_LEVEL)} + {right.within(PRODUCT_LEVEL)}", SUM_LEVEL)


def _difference_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = _aligned(arguments)
    return Fragment(f"{left.within(SUM_LEVEL)} - {right.within(PRODUCT_LEVEL)}", SUM_LEVEL)


def _product_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = _aligned(arguments)
    sign = r"\odot" if left.type and right.type else r"\cdot"
    return Fragment(f"{left.within(PRODUCT_LEVEL)} {sign} {right.within(PRODUCT_LEVEL)}", PRODUCT_LEVEL)


def _quotient_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = _aligned(arguments)
    return Fragment(rf"\frac{{{left.text}}}{{{right.text}}}", PRODUCT_LEVEL)


def _abs_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\left|{arguments[0].text}\right|"


def _square_latex(arguments: Sequence[Fragment], params: Params) -> Fragment:
    power = r"\circ 2" if arguments[0].type else "2"
    return Fragment(f"{{{arguments[0].within(ATOM_LEVEL)}}}^{{{power}}}", PRODUCT_LEVEL)


def _sqrt_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\sqrt{{{arguments[0].text}}}"


def _sympy_abs(value: object) -> object:
    import sympy

    return sympy.Abs(value)


def _sympy_sqrt(value: object) -> object:
    import sympy

    return sympy.sqrt(value)


def _sympy_square(value: object) -> object:
    import sympy

    if isinstance(value, sympy.Number):  # exact powers of nested literals would grow without bound
        number = float(value)
        return sympy.Float(number * number)
    return sympy.Pow(value, 2)


register_operator(
    "+",
    _elementwise(lambda xp: operator.add),
    is_batched=True,
    signatures=BROADCAST,
    latex=_sum_latex,
    sympy=operator.add,
    code="{0} + {1}",
    level=SUM_LEVEL,
    is_commutative=True,
)
register_operator(
    "-",
    _elementwise(lambda xp: operator.sub),
    is_batched=True,
    signatures=BROADCAST,
    latex=_difference_latex,
    sympy=operator.sub,
    code="{0} - {1}",
    level=SUM_LEVEL,
)
register_operator(
    "*",
    _elementwise(lambda xp: operator.mul),
    is_batched=True,
    signatures=BROADCAST,
    latex=_product_latex,
    sympy=operator.mul,
    code="{0} * {1}",
    level=PRODUCT_LEVEL,
    is_commutative=True,
)
register_operator(
    "/",
    _elementwise(lambda xp: operator.truediv),
    is_batched=True,
    signatures=BROADCAST,
    latex=_quotient_latex,
    sympy=operator.truediv,
    code="{0} / {1}",
    level=PRODUCT_LEVEL,
)
register_operator(
    "abs",
    _elementwise(lambda xp: xp.abs),
    is_batched=True,
    latex=_abs_latex,
    sympy=_sympy_abs,
    code="np.abs({0})",
)
register_operator(
    "square",
    _elementwise(lambda xp: xp.square),
    is_batched=True,
    latex=_square_latex,
    sympy=_sympy_square,
    code="np.square({0})",
)
register_operator(
    "sqrt",
    _elementwise(lambda xp: xp.sqrt),
    is_batched=True,
    latex=_sqrt_latex,
    sympy=_sympy_sqrt,
    code="np.sqrt({0})",
)


# === merged: """Operators that summarise the entries of a value: `sum product mean std var count mean_s

_PART = 1024
"""NumPy's `einsum` sums 1.5 to 4 times as fast as its `sum` (measured); it adds one entry after the other, so that
longer rows, which would lose digits, are summed in parts of that length."""


def real_entries(xp: Namespace, value: Array, masks: AxisMasks | None) -> Array | None:
    """Which entries of `value` are real: booleans that broadcast to its shape, or None when all are."""
    if masks is None or all(mask is None for mask in masks):
        return None
    is_real = xp.ones((1,) * value.ndim, bool)
    for axis, mask in enumerate(masks):
        if mask is not None:
            shape = [1] * len(masks)
            shape[axis] = mask.shape[-1]
            is_real = is_real & mask.reshape(*mask.shape[:-1], *shape)
    return is_real


def zero_padding(xp: Namespace, value: Array, masks: AxisMasks | None) -> Array:
    """The value with 0 wherever an entry is padding."""
    is_real = real_entries(xp, value, masks)
    return value if is_real is None else xp.where(is_real, value, 0)


def sum_rows(xp: Namespace, *factors: Array) -> Array:
    """The sum of a product along the last axis; equal rows have equal sums wherever they stand.

    Example:
      >>> sum_rows(np, np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [3.0, 7.0]
    """
    if xp is not np:
        return reduce(xp.multiply, factors).sum(axis=-1)
    length = factors[0].shape[-1]
    whole = length - length % _PART
    if length <= _PART:
        return _einsum_rows(factors)
    parts = [each[..., :whole].reshape(*each.shape[:-1], -1, _PART) for each in factors]
    total = _einsum_rows([_einsum_rows(parts)])
    return total if whole == length else total + _einsum_rows([each[..., whole:] for each in factors])


def _einsum_rows(factors: Sequence[Array]) -> Array:
    return np.einsum(",".join(["...i"] * len(factors)) + "->...", *factors)


class _Rows(NamedTuple):
    """All entries of each channel as one row."""

    values: Array
    """[M, K, C, entries]."""
    is_real: Array | None
    """Booleans that broadcast to them, or None."""
    count: Array | int  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls here
    """Of real entries, [M or 1, K or 1, C or 1] or one number for all."""


def _rows(xp: Namespace, value: Array, masks: Sequence[AxisMasks] | None) -> _Rows:
    flat = value.reshape(*value.shape[:NUM_BATCH_AXES], -1)
    own = None if masks is None else real_entries(xp, value, masks[0])
    if own is None:
        return _Rows(flat, None, flat.shape[-1])
    shape = own.shape[:NUM_BATCH_AXES] + value.shape[NUM_BATCH_AXES:]
    is_real = xp.broadcast_to(own, shape).reshape(*own.shape[:NUM_BATCH_AXES], -1)
    return _Rows(flat, is_real, xp.maximum(is_real.sum(axis=-1), 1).astype(value.dtype))


def _first(xp: Namespace, rows: _Rows) -> Array:
    """[M, K, C, 1] the first real entry."""
    if rows.is_real is None:
        return rows.values[..., :1]
    index = xp.argmax(rows.is_real, axis=-1)[..., None]
    batch = xp.broadcast_shapes(index.shape[:-1], rows.values.shape[:-1])
    entries = rows.values.shape[-1:]
    return xp.take_along_axis(
        xp.broadcast_to(rows.values, batch + entries), xp.broadcast_to(index, (*batch, 1)), axis=-1
    )


def _centred(xp: Namespace, rows: _Rows) -> tuple[Array, Array]:
    """Means and the deviations from them, 0 in the padding.

    Deviations start at the first real entry: a constant is exact, and what is left to add up is small, so that long
    float32 sums keep their digits (differences of kernel means need them).
    """
    start = _first(xp, rows)
    deviations = rows.values - start
    if rows.is_real is not None:
        deviations = xp.where(rows.is_real, deviations, 0)
    shift = sum_rows(xp, deviations) / rows.count
    deviations = deviations - shift[..., None]
    if rows.is_real is not None:
        deviations = xp.where(rows.is_real, deviations, 0)
    return start[..., 0] + shift, deviations


Reduction = Callable[[Namespace, _Rows], Array]


def _reduction(function: Reduction) -> Implementation:
    def implement(
        xp: Namespace, *values: Array, masks: Sequence[AxisMasks] | None = None, params: Params = ()
    ) -> Array:
        return function(xp, _rows(xp, values[0], masks))

    return implement


def _sum(xp: Namespace, rows: _Rows) -> Array:
    return sum_rows(xp, rows.values if rows.is_real is None else xp.where(rows.is_real, rows.values, 0))


def _product(xp: Namespace, rows: _Rows) -> Array:
    return xp.prod(rows.values if rows.is_real is None else xp.where(rows.is_real, rows.values, 1), axis=-1)


def _count(xp: Namespace, rows: _Rows) -> Array:
    return xp.zeros(rows.values.shape[:-1], rows.values.dtype) + rows.count


def _mean(xp: Namespace, rows: _Rows) -> Array:
    if xp is np and rows.is_real is None:  # its sums are exact enough, and every pass over the entries counts
        start = rows.values[..., :1]
        return start[..., 0] + sum_rows(np, rows.values - start) / rows.count
    mean, deviations = _centred(xp, rows)
    return mean + sum_rows(xp, deviations) / rows.count


def _var(xp: Namespace, rows: _Rows) -> Array:
    deviations = _centred(xp, rows)[1]
    return sum_rows(xp, deviations, deviations) / rows.count


def _std(xp: Namespace, rows: _Rows) -> Array:
    return xp.sqrt(_var(xp, rows))


def _mean_samples(
    xp: Namespace, *values: Array, masks: Sequence[AxisMasks] | None = None, params: Params = ()
) -> Array:
    rows = None if masks is None else masks[0][0]
    by_position = _Rows(
        xp.swapaxes(values[0], -1, -2),
        None if rows is None else rows[..., None, :],
        values[0].shape[-2] if rows is None else rows.sum(axis=-1)[..., None].astype(values[0].dtype),
    )
    return _mean(xp, by_position)


def _mean_samples_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\operatorname{{mean}}_{{n}}\left({arguments[0].text}\right)"


_MEAN = '''\
def mean(values):
    """Mean of all entries; relative to the first one, so that a constant is exact."""
    first = values.reshape(-1)[0]
    return first + np.mean(values - first)'''

_VARIANCE = '''\
def variance(values):
    """Mean squared deviation of all entries; relative to the first one, so that a constant gives exactly 0."""
    shifted = values - values.reshape(-1)[0]
    return np.mean(np.square(shifted - np.mean(shifted)))'''

_SAMPLE_MEAN = '''\
def sample_mean(samples):
    """Mean of the rows of [n, D] samples; relative to the first row, so that a constant is exact."""
    return samples[0] + np.mean(samples - samples[:1], 0)'''

_COUNT = {
    "numpy": "np.asarray(np.size({0}), dtype=X.dtype)",
    "jax": "jnp.asarray(jnp.size({0}), dtype=X.dtype)",
    "torch": "torch.asarray(torch.numel({0}), dtype=X.dtype)",
}

_WHOLE = ("* -> ()",)

register_operator("sum", _reduction(_sum), signatures=_WHOLE, is_batched=True, code="np.sum({0})")
register_operator("product", _reduction(_product), signatures=_WHOLE, is_batched=True, code="np.prod({0})")
register_operator(
    "mean", _reduction(_mean), signatures=_WHOLE, is_batched=True, code="mean({0})", helper=_MEAN
)
register_operator(
    "std",
    _reduction(_std),
    signatures=_WHOLE,
    is_batched=True,
    code="np.sqrt(variance({0}))",
    helper=_VARIANCE,
)
register_operator(
    "var", _reduction(_var), signatures=_WHOLE, is_batched=True, code="variance({0})", helper=_VARIANCE
)
register_operator("count", _reduction(_count), signatures=_WHOLE, is_batched=True, code=_COUNT)
register_operator(
    "mean_samples",
    _mean_samples,
    signatures=("(n,d) -> (d)",),
    is_batched=True,
    latex=_mean_samples_latex,
    code="sample_mean({0})",
    helper=_SAMPLE_MEAN,
)
