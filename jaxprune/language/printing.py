"""Prints expressions: as infix text that parses back to the same tree, as LaTeX, and in SymPy.

None of the three fails for any expression, so a report never fails because of a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from jaxprune.language.expression import Expression
from jaxprune.language.operators import ATOM_LEVEL, OPERATORS, PRODUCT_LEVEL, SUM_LEVEL, Fragment
from jaxprune.language.vocabulary import OPERANDS

if TYPE_CHECKING:
    from sympy import Expr


class Piece(NamedTuple):
    """A piece of infix text and how tightly it binds."""

    text: str
    level: int = ATOM_LEVEL

    def within(self, level: int) -> str:
        """Returns the text, in parentheses if it binds more loosely than `level`."""
        return self.text if self.level >= level else f"({self.text})"


def to_text(f: Expression) -> str:
    """Returns the formula in infix notation, with no more parentheses than its exact tree needs.

    Args:
      f: any expression, of any type.

    Returns:
      One line; `parse(to_text(f)) is f`.

    Example:
      >>> from jaxprune.language.expression import apply, literal, operand
      >>> to_text(apply("/", operand("N"), apply("*", literal(2), operand("NQ"))))
      'N/(2*NQ)'
    """
    return f.fold(_infix).text


def number_text(value: float) -> str:
    """Returns the shortest text that reads back as this number, without `.0`.

    Example:
      >>> number_text(2.0), number_text(0.05), number_text(1e-4), number_text(1e22)
      ('2', '0.05', '0.0001', '1e+22')
    """
    return repr(float(value)).removesuffix(".0")


def to_latex(f: Expression) -> str:
    r"""Returns the formula as LaTeX math, without dollar signs.

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
    """Returns the formula in SymPy, which can simplify it and print it in many forms.

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


def _infix(node: Expression, children: Sequence[Piece]) -> Piece:
    """The infix text of a node, from that of its children."""
    if node.is_operand:
        return Piece(node.name)
    if node.is_literal:
        return Piece(number_text(node.value))
    operator = OPERATORS[node.operator]
    if operator.is_infix:  # left-associative: an equal level on the right needs parentheses
        space = "" if operator.level == PRODUCT_LEVEL else " "
        left, right = children[0].within(operator.level), children[1].within(operator.level + 1)
        return Piece(f"{left}{space}{operator.name}{space}{right}", operator.level)
    arguments = [*(child.text for child in children), *map(number_text, node.params)]
    return Piece(f"{operator.name}({', '.join(arguments)})")


def _latex(node: Expression, children: Sequence[Fragment]) -> Fragment:
    """The LaTeX of a node, from that of its children."""
    if node.is_operand:
        symbol = OPERANDS[node.name].latex
        return Fragment(symbol, PRODUCT_LEVEL if "^" in symbol else ATOM_LEVEL, node.type)
    if node.is_literal:
        number = _latex_number(node.value)
        level = SUM_LEVEL if node.value < 0 else PRODUCT_LEVEL if "^" in number else ATOM_LEVEL
        return Fragment(number, level)
    latex = OPERATORS[node.operator].latex(children, node.params)
    fragment = latex if isinstance(latex, Fragment) else Fragment(latex)
    return fragment._replace(type=node.type)


def _latex_number(value: float) -> str:
    """The number in LaTeX, very small and very large ones as powers of ten."""
    mantissa, _, exponent = number_text(value).partition("e")
    if not exponent and 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.17e}".partition("e")
        mantissa = number_text(float(mantissa))
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return {"1": power, "-1": f"-{power}"}.get(mantissa, rf"{mantissa} \times {power}")


def _sympy(node: Expression, children: Sequence[Expr]) -> Expr:
    """The SymPy form of a node, from those of its children."""
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
    """The number in SymPy: whole numbers exactly, others in double precision."""
    import sympy

    if value.is_integer() and abs(value) < 1e6:
        return sympy.Integer(int(value))
    return sympy.Float(value)
