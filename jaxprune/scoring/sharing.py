"""Formulas written so that more of them share values and cost less, with the same meaning.

Finite, infinite and NaN results are preserved exactly: `x - x` is not 0, for it says where `x` is not finite. Rounding
stays the same too (`mean(W) + N` and `N + mean(W)` are one value). Only where an outer product is never written down it
may differ, and entries of it that would overflow do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression, apply, replace_children

_OF_ONE = frozenset({"sum", "product", "mean"})
_NEVER_NEGATIVE = frozenset({"abs", "square", "std", "var", "count"})  # a root may be -0.0


def _variance(left: Expression, right: Expression) -> Expression:
    """Of all products of two vectors' entries; no term is negative, so that nothing cancels."""
    spread, other = apply("var", left), apply("var", right)
    squares = apply("+", other, apply("square", apply("mean", right)))
    return apply("+", apply("*", spread, squares), apply("*", apply("square", apply("mean", left)), other))


_OF_OUTER: Mapping[str, Callable[[Expression, Expression], Expression]] = MappingProxyType(
    {
        "sum": lambda left, right: apply("*", apply("sum", left), apply("sum", right)),
        "mean": lambda left, right: apply("*", apply("mean", left), apply("mean", right)),
        "var": _variance,
        "std": lambda left, right: apply("sqrt", _variance(left, right)),
    }
)


@lru_cache(maxsize=1 << 16)
def shared_form(node: Expression) -> Expression:
    """The representative of formulas that are equal by what their operators mean.

    Arguments that may be swapped have one order; the sum, product or mean of one number is that number, `abs` of what
    is never negative is what it is of, signs do not matter to `square`, and a matrix transposed twice is itself. Sum,
    mean, variance and standard deviation of an outer product follow from those of its vectors.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> shared_form(parse("N*mean(abs(abs(WI)))")) is shared_form(parse("sum(mean(abs(WI))*N)"))
      True
      >>> print(shared_form(parse("N - N")), shared_form(parse("sum(outer(mX, mP))")))
      N - N sum(mP)*sum(mX)
    """
    children = [shared_form(child) for child in node.children]
    if not children:
        return node
    only = children[0]
    if node.operator in _OF_ONE and only.type == ():
        return only
    if node.operator == "abs" and only.operator in _NEVER_NEGATIVE:
        return only
    if node.operator == "transpose" and only.operator == "transpose":
        return only.children[0]
    if only.operator == "outer" and node.operator in _OF_OUTER:
        return shared_form(_OF_OUTER[node.operator](*only.children))
    if node.operator == "square" and only.operator == "abs":
        children = [only.children[0]]
    if node.operator == "rbf" and len(children) == 2 and children[1] is only:
        return apply("rbf", only, params=node.params)
    if len(children) == 2 and OPERATORS[node.operator].is_commutative:
        children.sort(key=lambda child: (hash(child), str(child)))
    return replace_children(node, children)
