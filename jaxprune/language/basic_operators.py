"""Basic operators: `+ - * /`, `abs`, `square`, `sqrt`, and those that summarise the entries of a value.

The elementwise ones follow plain IEEE arithmetic. The others are `sum product mean std var count mean_samples`; they
read masks and leave padding out, and the spread of a constant is exactly 0.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.language.axes import is_sample_axis
from jaxprune.language.operators import (
    ATOM_LEVEL,
    BROADCAST,
    ELEMENTWISE,
    NUM_BATCH_AXES,
    PRODUCT_LEVEL,
    SUM_LEVEL,
    AxisMasks,
    Fragment,
    Implementation,
    Masks,
    Params,
)
from jaxprune.language.registration import register_operator
from jaxprune.types import Array, Namespace

_PART = 1024
"""NumPy's `einsum` sums 1.5 to 4 times as fast as its `sum` (measured), but adds one entry after the other. Longer rows
would lose digits, so they are summed in parts of this length."""


def real_entries(xp: Namespace, value: Array, masks: AxisMasks | None) -> Array | None:
    """Combines the masks of a value's axes into one of its entries.

    Args:
      xp: `numpy` or `jax.numpy`.
      value: [M or 1, K or 1, C or 1, *axes].
      masks: one for each of `axes`, or None.

    Returns:
      Booleans that broadcast to the shape of `value`, True for real entries; None if all entries are real.
    """
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
    """Returns the value with 0 in place of every padding entry; see `real_entries` for the arguments."""
    is_real = real_entries(xp, value, masks)
    return value if is_real is None else xp.where(is_real, value, 0)


def sum_rows(xp: Namespace, *factors: Array) -> Array:
    """Sums a product along the last axis, so that equal rows have exactly equal sums.

    Args:
      xp: `numpy` or `jax.numpy`.
      *factors: arrays [..., entries] of one shape.

    Returns:
      [...] sums.

    Example:
      >>> sum_rows(np, np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [3.0, 7.0]
    """
    if xp is not np:
        return functools.reduce(xp.multiply, factors).sum(axis=-1)
    length = factors[0].shape[-1]
    if length <= _PART:
        return _einsum_rows(factors)
    whole = length - length % _PART
    parts = [factor[..., :whole].reshape(*factor.shape[:-1], -1, _PART) for factor in factors]
    total = _einsum_rows([_einsum_rows(parts)])
    return total if whole == length else total + _einsum_rows([factor[..., whole:] for factor in factors])


def _einsum_rows(factors: Sequence[Array]) -> Array:
    """Sums a product along the last axis, entry after entry."""
    return np.einsum(",".join(["...i"] * len(factors)) + "->...", *factors)


# Elementwise operators.


def _elementwise(function: str) -> Implementation:
    """Applies a function of NumPy and `jax.numpy`; positions are laid along the rows of examples."""

    def implement(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
        num_dims = max(value.ndim for value in values)
        aligned = [
            value.reshape(
                *value.shape[:NUM_BATCH_AXES], *(1,) * (num_dims - value.ndim), *value.shape[NUM_BATCH_AXES:]
            )
            if value.ndim < num_dims
            else value
            for value in values
        ]
        return getattr(xp, function)(*aligned)

    return implement


def _infix_latex(symbol: str, arguments: Sequence[Fragment], params: Params) -> Fragment:
    left, right = arguments
    # A vector of positions that meets examples is written as the matrix of its copies, one for each row.
    if any(len(fragment.type) == 2 and is_sample_axis(fragment.type[0]) for fragment in arguments):
        left, right = (
            Fragment(rf"\mathbf{{1}} {fragment.within(ATOM_LEVEL)}^{{\top}}", PRODUCT_LEVEL, fragment.type)
            if len(fragment.type) == 1
            else fragment
            for fragment in arguments
        )
    if symbol == "/":
        return Fragment(rf"\frac{{{left.text}}}{{{right.text}}}", PRODUCT_LEVEL)
    level = SUM_LEVEL
    if symbol == "*":
        symbol, level = r"\odot" if left.type and right.type else r"\cdot", PRODUCT_LEVEL
    return Fragment(f"{left.within(level)} {symbol} {right.within(PRODUCT_LEVEL)}", level)


for _symbol, _function, _sympy, _level in (
    ("+", "add", operator.add, SUM_LEVEL),
    ("-", "subtract", operator.sub, SUM_LEVEL),
    ("*", "multiply", operator.mul, PRODUCT_LEVEL),
    ("/", "true_divide", operator.truediv, PRODUCT_LEVEL),
):
    register_operator(
        _symbol,
        _elementwise(_function),
        signatures=BROADCAST,
        is_batched=True,
        latex=functools.partial(_infix_latex, _symbol),
        sympy=_sympy,
        code=f"{{0}} {_symbol} {{1}}",
        level=_level,
        is_commutative=_symbol in "+*",
    )


def _unary_latex(name: str, arguments: Sequence[Fragment], params: Params) -> Fragment:
    (argument,) = arguments
    if name == "abs":
        return Fragment(rf"\left|{argument.text}\right|")
    if name == "sqrt":
        return Fragment(rf"\sqrt{{{argument.text}}}")
    power = r"\circ 2" if argument.type else "2"
    return Fragment(f"{{{argument.within(ATOM_LEVEL)}}}^{{{power}}}", PRODUCT_LEVEL)


def _unary_sympy(name: str, value: object) -> object:
    import sympy

    if name == "square" and isinstance(value, sympy.Number):
        number = float(value)  # exact powers of nested literals would grow without bound
        return sympy.Float(number * number)
    return {"abs": sympy.Abs, "square": lambda base: sympy.Pow(base, 2), "sqrt": sympy.sqrt}[name](value)


for _name in ("abs", "square", "sqrt"):
    register_operator(
        _name,
        _elementwise(_name),
        signatures=ELEMENTWISE,
        is_batched=True,
        latex=functools.partial(_unary_latex, _name),
        sympy=functools.partial(_unary_sympy, _name),
        code=f"np.{_name}({{0}})",
    )


# Operators that summarise entries.


class _Rows(NamedTuple):
    """All entries of each channel as one row."""

    values: Array
    """[M, K, C, entries]."""
    is_real: Array | None
    """Booleans that broadcast to `values`, or None if all entries are real."""
    num_real: Array | int
    """The number of real entries, [M or 1, K or 1, C or 1] or one number for all rows."""


def _reduction(function: Callable[[Namespace, _Rows], Array]) -> Implementation:
    """Applies a function of rows to all entries of a value."""

    def implement(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
        value = values[0]
        flat = value.reshape(*value.shape[:NUM_BATCH_AXES], -1)
        is_real = None if masks is None else real_entries(xp, value, masks[0])
        if is_real is None:
            return function(xp, _Rows(flat, None, flat.shape[-1]))
        batch = is_real.shape[:NUM_BATCH_AXES]
        is_real = xp.broadcast_to(is_real, batch + value.shape[NUM_BATCH_AXES:]).reshape(*batch, -1)
        num_real = xp.maximum(is_real.sum(axis=-1), 1).astype(value.dtype)
        return function(xp, _Rows(flat, is_real, num_real))

    return implement


def _centred(xp: Namespace, rows: _Rows) -> tuple[Array, Array]:
    """Returns the [M, K, C] means and the deviations from them, 0 in the padding.

    Deviations are first taken from the first real entry. A constant is then exact, and the numbers to add are small,
    so that long float32 sums keep their digits (differences of kernel means need them).
    """
    first = _first(xp, rows)
    deviations = _with_padding(xp, rows, rows.values - first)
    shift = sum_rows(xp, deviations) / rows.num_real
    return first[..., 0] + shift, _with_padding(xp, rows, deviations - shift[..., None])


def _first(xp: Namespace, rows: _Rows) -> Array:
    """Returns the [M, K, C, 1] first real entry of each row."""
    if rows.is_real is None:
        return rows.values[..., :1]
    index = xp.argmax(rows.is_real, axis=-1)[..., None]
    batch = xp.broadcast_shapes(index.shape[:-1], rows.values.shape[:-1])
    values = xp.broadcast_to(rows.values, batch + rows.values.shape[-1:])
    return xp.take_along_axis(values, xp.broadcast_to(index, (*batch, 1)), axis=-1)


def _with_padding(xp: Namespace, rows: _Rows, values: Array, padding: int = 0) -> Array:
    """Returns `values` with `padding` where the rows hold no real entry."""
    return values if rows.is_real is None else xp.where(rows.is_real, values, padding)


def _sum(xp: Namespace, rows: _Rows) -> Array:
    return sum_rows(xp, _with_padding(xp, rows, rows.values))


def _product(xp: Namespace, rows: _Rows) -> Array:
    return xp.prod(_with_padding(xp, rows, rows.values, 1), axis=-1)


def _count(xp: Namespace, rows: _Rows) -> Array:
    return xp.zeros(rows.values.shape[:-1], rows.values.dtype) + rows.num_real


def _mean(xp: Namespace, rows: _Rows) -> Array:
    # NumPy's sums (see `sum_rows`) are exact enough, and every pass over the entries takes time.
    if xp is np and rows.is_real is None:
        first = rows.values[..., :1]
        return first[..., 0] + sum_rows(np, rows.values - first) / rows.num_real
    mean, deviations = _centred(xp, rows)
    return mean + sum_rows(xp, deviations) / rows.num_real


def _var(xp: Namespace, rows: _Rows) -> Array:
    deviations = _centred(xp, rows)[1]
    return sum_rows(xp, deviations, deviations) / rows.num_real


def _std(xp: Namespace, rows: _Rows) -> Array:
    return xp.sqrt(_var(xp, rows))


def _mean_samples(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
    by_position = xp.swapaxes(values[0], -1, -2)
    is_real = None if masks is None else masks[0][0]
    if is_real is None:
        return _mean(xp, _Rows(by_position, None, by_position.shape[-1]))
    num_real = is_real.sum(axis=-1)[..., None].astype(by_position.dtype)
    return _mean(xp, _Rows(by_position, is_real[..., None, :], num_real))


_MEAN_CODE = '''\
def mean(values):
    """Mean of all entries; relative to the first one, so that a constant is exact."""
    first = values.reshape(-1)[0]
    return first + np.mean(values - first)'''

_VARIANCE_CODE = '''\
def variance(values):
    """Mean squared deviation of all entries; relative to the first one, so that a constant gives exactly 0."""
    shifted = values - values.reshape(-1)[0]
    return np.mean(np.square(shifted - np.mean(shifted)))'''

_SAMPLE_MEAN_CODE = '''\
def sample_mean(samples):
    """Mean of the rows of [n, D] samples; relative to the first row, so that a constant is exact."""
    return samples[0] + np.mean(samples - samples[:1], 0)'''

_COUNT_CODE = {
    "numpy": "np.asarray(np.size({0}), dtype=X.dtype)",
    "jax": "jnp.asarray(jnp.size({0}), dtype=X.dtype)",
    "torch": "torch.asarray(torch.numel({0}), dtype=X.dtype)",
}

for _name, _reduce, _code, _helper in (
    ("sum", _sum, "np.sum({0})", ""),
    ("product", _product, "np.prod({0})", ""),
    ("mean", _mean, "mean({0})", _MEAN_CODE),
    ("std", _std, "np.sqrt(variance({0}))", _VARIANCE_CODE),
    ("var", _var, "variance({0})", _VARIANCE_CODE),
    ("count", _count, _COUNT_CODE, ""),
):
    register_operator(
        _name, _reduction(_reduce), signatures=("* -> ()",), is_batched=True, code=_code, helper=_helper
    )
register_operator(
    "mean_samples",
    _mean_samples,
    signatures=("(n,d) -> (d)",),
    is_batched=True,
    latex=lambda arguments, params: rf"\operatorname{{mean}}_{{n}}\left({arguments[0].text}\right)",
    code="sample_mean({0})",
    helper=_SAMPLE_MEAN_CODE,
)
