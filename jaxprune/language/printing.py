"""From an expression to its canonical infix text, which parses back to the very same tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from jaxprune.language.expression import Expression
from jaxprune.language.operators import ATOM_LEVEL, OPERATORS, PRODUCT_LEVEL, SUM_LEVEL, Fragment
from jaxprune.language.vocabulary import OPERANDS

if TYPE_CHECKING:
    from sympy import Expr


class _Piece(NamedTuple):
    text: str
    level: int

    def within(self, level: int) -> str:
        return self.text if self.level >= level else f"({self.text})"


def to_text(f: Expression) -> str:
    """The formula in infix notation, with no more parentheses than its exact tree needs.

    Args:
      f: any expression, of any type.

    Returns:
      One line; `parse(to_text(f)) is f`.

    Example:
      >>> from jaxprune.language.expression import apply, literal, operand
      >>> to_text(apply("/", operand("N"), apply("*", literal(2), operand("NQ"))))
      'N/(2*NQ)'
    """
    return f.fold(_combine).text


def number_text(value: float) -> str:
    """The shortest text that reads back as this number, without `.0`.

    Example:
      >>> number_text(2.0), number_text(0.05), number_text(1e-4), number_text(1e22)
      ('2', '0.05', '0.0001', '1e+22')
    """
    text = repr(float(value))
    return text.removesuffix(".0")


def _combine(node: Expression, children: Sequence[_Piece]) -> _Piece:
    if node.is_operand:
        return _Piece(node.name, ATOM_LEVEL)
    if node.is_literal:
        return _Piece(number_text(node.value), ATOM_LEVEL)
    operator = OPERATORS[node.operator]
    if operator.is_infix:  # left-associative: an equal level on the right needs parentheses
        arguments = [children[0].within(operator.level), children[1].within(operator.level + 1)]
    else:
        arguments = [child.text for child in children]
    return _Piece(operator.text(arguments, [number_text(param) for param in node.params]), operator.level)


# === merged: """LaTeX and SymPy forms of expressions. Neither fails for any expression, so a report nev


def to_latex(f: Expression) -> str:
    r"""The formula as LaTeX math, without dollar signs.

    Args:
      f: any expression.

    Returns:
      Text that compiles in math mode with amsmath.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> to_latex(parse("sqrt(sum(square(WI)))"))
      '\\sqrt{\\operatorname{sum}\\left({w}^{\\circ 2}\\right)}'
    """
    return f.fold(_latex).text


def to_sympy(f: Expression) -> Expr:
    """The formula in SymPy, for simplifying and printing in its many forms.

    Operands are symbols; `+ - * / abs square sqrt` act entry by entry; every other operator is an undefined function
    of the same name with its parameters last. SymPy cancels as for finite numbers: `X - X` becomes 0.

    Args:
      f: any expression.

    Returns:
      A SymPy expression.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> to_sympy(parse("abs(gamma)/sqrt(var(P) + 1)"))
      Abs(gamma)/sqrt(var(P) + 1)
    """
    return f.fold(_sympy)


def _latex(node: Expression, children: Sequence[Fragment]) -> Fragment:
    if node.is_operand:
        symbol = OPERANDS[node.name].latex
        return Fragment(symbol, PRODUCT_LEVEL if "^" in symbol else ATOM_LEVEL, node.type)
    if node.is_literal:
        number = _latex_number(node.value)
        return Fragment(
            number, SUM_LEVEL if node.value < 0 else PRODUCT_LEVEL if "^" in number else ATOM_LEVEL
        )
    rendered = OPERATORS[node.operator].latex(children, node.params)
    fragment = rendered if isinstance(rendered, Fragment) else Fragment(rendered)
    return fragment._replace(type=node.type)


def _latex_number(value: float) -> str:
    mantissa, _, exponent = number_text(value).partition("e")
    if not exponent and 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.17e}".partition("e")
        mantissa = number_text(float(mantissa))
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return {"1": power, "-1": f"-{power}"}.get(mantissa, rf"{mantissa} \times {power}")


def _sympy(node: Expression, children: Sequence[Expr]) -> Expr:
    import sympy

    if node.is_operand:
        return sympy.Symbol(node.name)
    if node.is_literal:
        return _sympy_number(node.value)
    operator = OPERATORS[node.operator]
    params = [_sympy_number(param) for param in node.params]
    if operator.sympy is None:
        return sympy.Function(node.operator)(*children, *params)
    return cast("Expr", operator.sympy(*children, *params))


def _sympy_number(value: float) -> Expr:
    """Whole numbers exactly, others in double precision."""
    import sympy

    if value.is_integer() and abs(value) < 1e6:
        return sympy.Integer(int(value))
    return sympy.Float(value)
