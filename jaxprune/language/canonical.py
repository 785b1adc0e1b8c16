"""Replaces formulas by a representative of all formulas that mean the same.

`canonical_form` recognises duplicates: formulas that differ only by order, folded numbers and safe identities.
`shared_form` prepares scoring: it rewrites formulas so that they share more values and need less arithmetic.
Both use only identities that hold for all finite values, so nothing like `x - x = 0` or `x/x = 1`, which would hide a
non-finite `x`. Rounding may differ between a formula and its canonical form, so score what the user wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from jaxprune.language.expression import Expression, apply, literal, operand, replace_children
from jaxprune.language.operators import OPERATORS

_NEVER_NEGATIVE = frozenset({"abs", "square", "std", "var", "count"})
"""Operators whose result never has a minus sign; a root may be -0.0."""
_NON_NEGATIVE = _NEVER_NEGATIVE | {"sqrt"}
_ORDER_FREE = frozenset({"sum", "product", "mean", "std", "var", "count", "trace"})
_SCALAR_IDENTITIES = frozenset({"sum", "product", "mean"})
"""Reductions that return a scalar unchanged."""
_MEAN_OF = MappingProxyType({"mX": "X", "mP": "P", "mQ": "Q"})
_SAMPLES_MEAN = MappingProxyType({samples: mean for mean, samples in _MEAN_OF.items()})

SignedTerms = list[tuple[int, Expression]]
"""The terms of a sum, each with its sign, 1 or -1."""


def canonical_form(f: Expression) -> Expression:
    """Returns the representative of all formulas that equal `f` by reordering, folding numbers and safe identities.

    Sums and products are flattened and sorted; numbers in them are joined if the result remains finite; signs move
    outward and vanish in `abs` and `square`; identities such as `sqrt(var(x)) = std(x)` and `x*x = square(x)` apply.

    Args:
      f: any expression.

    Returns:
      An expression of the same type and, where `f` is finite, the same value up to rounding.
      `canonical_form(canonical_form(f)) is canonical_form(f)`.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> str(canonical_form(parse("0.05 + var(Q) + sum((mX - mP)*(mX - mP)) + 0*1")))
      'sum(square(mP - mX)) + var(Q) + 0.05'
    """
    return f.fold(_rewrite)


@lru_cache(maxsize=1 << 12)  # more nodes than a population has; each stays in memory
def shared_form(node: Expression) -> Expression:
    """Returns the representative of formulas that compute the same values, one that is cheap to compute.

    Arguments that may be swapped get one order; the sum, product or mean of one number becomes that number; `abs` of
    a value that is never negative is dropped, and so is `abs` within `square`; a matrix transposed twice is itself.
    Sum, mean, variance and standard deviation of an outer product are computed from those of its vectors.

    Args:
      node: any expression.

    Returns:
      An expression of the same type and with the same value, up to rounding where an outer product is replaced.

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
    inner = children[0]
    if node.operator in _SCALAR_IDENTITIES and inner.type == ():
        return inner
    if node.operator == "abs" and inner.operator in _NEVER_NEGATIVE:
        return inner
    if node.operator == "transpose" and inner.operator == "transpose":
        return inner.children[0]
    if inner.operator == "outer" and node.operator in _OF_OUTER_PRODUCT:
        return shared_form(_OF_OUTER_PRODUCT[node.operator](*inner.children))
    if node.operator == "square" and inner.operator == "abs":
        children = [inner.children[0]]
    if node.operator == "rbf" and len(children) == 2 and children[1] is inner:
        return apply("rbf", inner, params=node.params)
    if len(children) == 2 and OPERATORS[node.operator].is_commutative:
        children.sort(key=lambda child: (hash(child), str(child)))
    return replace_children(node, children)


def _variance_of_outer(left: Expression, right: Expression) -> Expression:
    """The variance of all products of two vectors' entries; no term is negative, so nothing cancels."""
    left_var, right_var = apply("var", left), apply("var", right)
    right_square = apply("+", right_var, apply("square", apply("mean", right)))
    left_part = apply("*", left_var, right_square)
    return apply("+", left_part, apply("*", apply("square", apply("mean", left)), right_var))


_OF_OUTER_PRODUCT: Mapping[str, Callable[[Expression, Expression], Expression]] = MappingProxyType(
    {
        "sum": lambda left, right: apply("*", apply("sum", left), apply("sum", right)),
        "mean": lambda left, right: apply("*", apply("mean", left), apply("mean", right)),
        "var": _variance_of_outer,
        "std": lambda left, right: apply("sqrt", _variance_of_outer(left, right)),
    }
)
"""Reduction -> the same of an outer product, from its two vectors."""


def _rewrite(node: Expression, children: Sequence[Expression]) -> Expression:
    """The canonical form of a node, from those of its children."""
    if not children:
        return node
    node = replace_children(node, children)
    if node.operator in ("+", "-"):
        return _sum(*_terms(node))
    if node.operator == "*":
        return _product(_factors(node))
    if node.operator in _RULES:
        return _RULES[node.operator](node)
    if OPERATORS[node.operator].is_commutative and len(children) == 2:
        return replace_children(node, sorted(node.children, key=str))
    return node


def _terms(node: Expression) -> tuple[SignedTerms, float]:
    """Splits a sum into its terms and the total of its numbers (which remain terms if their total overflows)."""
    terms: SignedTerms = []
    numbers: list[float] = []
    stack = [(1, node)]
    while stack:
        sign, part = stack.pop()
        if part.operator in ("+", "-"):
            stack.append((sign, part.children[0]))
            stack.append((sign if part.operator == "+" else -sign, part.children[1]))
        elif part.is_literal:
            numbers.append(sign * part.value)
        else:
            part_sign, unsigned = _split_sign(part)
            terms.append((sign * part_sign, unsigned))
    if not math.isfinite(sum(map(abs, numbers))):
        return terms + [(1, literal(number)) for number in numbers], 0.0
    return terms, math.fsum(sorted(numbers))


def _sum(terms: SignedTerms, constant: float) -> Expression:
    """Builds a sum: positive terms in the order of their text, then negative ones, then the number."""
    positive = sorted((term for sign, term in terms if sign > 0), key=str)
    negative = sorted((term for sign, term in terms if sign < 0), key=str)
    if positive:
        value = positive.pop(0)
    elif constant or not negative:
        value, constant = literal(constant), 0.0
    else:
        value = _product([literal(-1.0), *_factors(negative.pop(0))])
    for term in positive:
        value = apply("+", value, term)
    for term in negative:
        value = apply("-", value, term)
    if constant:
        value = apply("+" if constant > 0 else "-", value, literal(abs(constant)))
    return value


def _factors(node: Expression) -> list[Expression]:
    """The factors of a product of products; of anything else, the node itself."""
    factors: list[Expression] = []
    stack = [node]
    while stack:
        part = stack.pop()
        if part.operator == "*":
            stack.extend(part.children)
        else:
            factors.append(part)
    return factors


def _product(factors: Sequence[Expression]) -> Expression:
    """Builds a product: the number first, then the other factors in the order of their text, equal pairs as squares."""
    numbers = sorted(factor.value for factor in factors if factor.is_literal)
    others = sorted((factor for factor in factors if not factor.is_literal), key=str)
    folded = math.prod(numbers)
    if not _is_exact(folded, is_zero=0 in numbers):
        leading = [literal(number) for number in numbers]
    else:
        leading = [] if others and folded == 1 else [literal(folded)]
    for index in range(len(others) - 1):
        if others[index] is others[index + 1]:
            rest = others[:index] + others[index + 2 :]
            return _product([*leading, *_factors(_square(apply("square", others[index]))), *rest])
    value, *more = [*leading, *others]
    for factor in more:
        value = apply("*", value, factor)
    return value


def _split_sign(node: Expression) -> tuple[int, Expression]:
    """Returns (-1, its opposite) for a negative number or a product with one, else (1, node)."""
    if node.is_literal:
        return (-1, literal(-node.value)) if node.value < 0 else (1, node)
    if node.operator != "*":
        return 1, node
    factors = _factors(node)
    negative = [index for index, factor in enumerate(factors) if factor.is_literal and factor.value < 0]
    if len(negative) % 2 == 0:
        return 1, node
    factors[negative[0]] = literal(-factors[negative[0]].value)
    return -1, _product(factors)


def _without_sign(node: Expression) -> Expression:
    """Returns an expression with the same absolute value: without sign, a difference in its preferred direction."""
    _, node = _split_sign(node)
    if node.operator == "abs":
        return node.children[0]
    if node.operator not in ("+", "-"):
        return node
    terms, constant = _terms(node)
    reversed_node = _sum([(-sign, term) for sign, term in terms], -constant)
    num_positive = sum(sign > 0 for sign, _ in terms) + (constant > 0)
    num_negative = sum(sign < 0 for sign, _ in terms) + (constant < 0)
    if num_positive != num_negative:
        return node if num_positive > num_negative else reversed_node
    return min(node, reversed_node, key=str)


def _square(node: Expression) -> Expression:
    inner = _without_sign(node.children[0])
    if inner.operator == "std":
        return apply("var", inner.children[0])
    if inner.is_literal and 0 < inner.value * inner.value < math.inf:
        return literal(inner.value * inner.value)
    return apply("square", inner)


def _abs(node: Expression) -> Expression:
    inner = _without_sign(node.children[0])
    if inner.operator in _NON_NEGATIVE or (inner.is_literal and inner.value >= 0):
        return inner
    return apply("abs", inner)


def _sqrt(node: Expression) -> Expression:
    inner = node.children[0]
    if inner.operator == "var":
        return apply("std", inner.children[0])
    if inner.is_literal and inner.value >= 0:
        return literal(math.sqrt(inner.value))
    return node


def _quotient(node: Expression) -> Expression:
    top_sign, top = _split_sign(node.children[0])
    bottom_sign, bottom = _split_sign(node.children[1])
    quotient = apply("/", top, bottom)
    if bottom.is_literal and bottom.value == 1:
        quotient = top
    elif top.is_literal and bottom.is_literal and bottom.value:
        number = top.value / bottom.value
        quotient = literal(number) if _is_exact(number, is_zero=top.value == 0) else quotient
    return quotient if top_sign == bottom_sign else _product([literal(-1.0), *_factors(quotient)])


def _is_exact(number: float, is_zero: bool) -> bool:
    """Whether a computed number neither overflowed nor, unless it must be 0, underflowed."""
    return math.isfinite(number) and (number != 0 or is_zero)


def _reduction(node: Expression) -> Expression:
    inner = node.children[0]
    while node.operator in _ORDER_FREE and inner.operator == "transpose":
        inner = inner.children[0]
    if node.operator in _SCALAR_IDENTITIES and inner.type == ():
        return inner
    if node.operator == "mean" and inner.operator == "mean_samples":
        inner = inner.children[0]
    if node.operator == "mean" and inner.name in _MEAN_OF:
        inner = operand(_MEAN_OF[inner.name])
    return apply(node.operator, inner)


def _mean_samples(node: Expression) -> Expression:
    name = node.children[0].name
    return operand(_SAMPLES_MEAN[name]) if name in _SAMPLES_MEAN else node


def _transpose(node: Expression) -> Expression:
    inner = node.children[0]
    return inner.children[0] if inner.operator == "transpose" else node


def _rbf(node: Expression) -> Expression:
    is_repeated = len(node.children) == 2 and node.children[0] is node.children[1]
    return apply("rbf", node.children[0], params=node.params) if is_repeated else node


_RULES: Mapping[str, Callable[[Expression], Expression]] = MappingProxyType(
    {
        "/": _quotient,
        "abs": _abs,
        "square": _square,
        "sqrt": _sqrt,
        "mean_samples": _mean_samples,
        "transpose": _transpose,
        "rbf": _rbf,
        **dict.fromkeys(sorted(_ORDER_FREE), _reduction),
    }
)
