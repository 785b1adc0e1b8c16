"""From an expression to its canonical infix text, which parses back to the very same tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxprune.language.operators import ATOM_LEVEL, OPERATORS
from jaxprune.language.tree import Expression


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
      >>> from jaxprune.language.tree import apply, literal, operand
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
