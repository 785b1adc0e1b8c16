"""Elementwise operators: `+ - * /`, `abs`, `square`, `sqrt`. They follow plain IEEE arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

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
    register_operator,
)
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
