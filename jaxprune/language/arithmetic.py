"""Elementwise operators: `+ - * /`, `abs`, `square`, `sqrt`. They follow plain IEEE arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax.numpy as jnp

from jaxprune.language.axes import is_sample_axis
from jaxprune.language.operators import (
    ATOM_LEVEL,
    BROADCAST,
    PRODUCT_LEVEL,
    SUM_LEVEL,
    Fragment,
    Params,
    register_operator,
)


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
    operator.add,
    signatures=BROADCAST,
    latex=_sum_latex,
    sympy=operator.add,
    code="{0} + {1}",
    level=SUM_LEVEL,
    is_commutative=True,
)
register_operator(
    "-",
    operator.sub,
    signatures=BROADCAST,
    latex=_difference_latex,
    sympy=operator.sub,
    code="{0} - {1}",
    level=SUM_LEVEL,
)
register_operator(
    "*",
    operator.mul,
    signatures=BROADCAST,
    latex=_product_latex,
    sympy=operator.mul,
    code="{0} * {1}",
    level=PRODUCT_LEVEL,
    is_commutative=True,
)
register_operator(
    "/",
    operator.truediv,
    signatures=BROADCAST,
    latex=_quotient_latex,
    sympy=operator.truediv,
    code="{0} / {1}",
    level=PRODUCT_LEVEL,
)
register_operator("abs", jnp.abs, latex=_abs_latex, sympy=_sympy_abs, code="np.abs({0})")
register_operator("square", jnp.square, latex=_square_latex, sympy=_sympy_square, code="np.square({0})")
register_operator("sqrt", jnp.sqrt, latex=_sqrt_latex, sympy=_sympy_sqrt, code="np.sqrt({0})")
