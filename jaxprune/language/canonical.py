"""One representative for formulas that differ in ways that never matter.

Only identities that hold for all finite values are used, so nothing like `x - x = 0` or `x/x = 1`, which would hide a
non-finite `x`. Rounding may differ between a formula and its canonical form: use it to recognise duplicates, and
score what the user wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from jaxprune.language.expression import Expression, apply, literal, operand, replace_children
from jaxprune.language.operators import OPERATORS

_NON_NEGATIVE = frozenset({"abs", "square", "sqrt", "std", "var", "count"})
_ORDER_FREE = frozenset({"sum", "product", "mean", "std", "var", "count", "trace"})
_MEAN_OF = MappingProxyType({"mX": "X", "mP": "P", "mQ": "Q"})
_SAMPLES_MEAN = MappingProxyType({samples: mean for mean, samples in _MEAN_OF.items()})


def canonical_form(f: Expression) -> Expression:
    """The representative of all formulas that equal `f` by reordering, folding numbers and safe identities.

    Sums and products are flattened and sorted; numbers in them are joined where the result stays finite; signs move
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


def _rewrite(node: Expression, children: Sequence[Expression]) -> Expression:
    if not children:
        return node
    node = replace_children(node, children)
    if node.operator in ("+", "-"):
        return _sum(*_terms(node))
    if node.operator == "*":
        return _product(_factors(node))
    rule = _RULES.get(node.operator)
    if rule is not None:
        return rule(node)
    if node.operator in OPERATORS and OPERATORS[node.operator].is_commutative and len(children) == 2:
        return replace_children(node, sorted(node.children, key=str))
    return node


Terms = list[tuple[int, Expression]]


def _terms(node: Expression) -> tuple[Terms, float]:
    """The signed terms of a sum and the numbers in it added up (kept as terms if that overflows)."""
    terms: Terms = []
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
            own_sign, positive = _split_sign(part)
            terms.append((sign * own_sign, positive))
    constant = math.fsum(sorted(numbers)) if _adds_up(numbers) else math.nan
    if not math.isfinite(constant):
        return terms + [(1, literal(number)) for number in numbers], 0.0
    return terms, constant


def _adds_up(numbers: Sequence[float]) -> bool:
    return math.isfinite(sum(map(abs, numbers)))


def _sum(terms: Terms, constant: float) -> Expression:
    """Positive terms in text order, then negative ones, then the number."""
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
    """The number first, then the other factors in text order, equal pairs as squares; signs go to the number."""
    numbers = [factor.value for factor in factors if factor.is_literal]
    others = sorted((factor for factor in factors if not factor.is_literal), key=str)
    folded = math.prod(sorted(numbers))
    is_safe = math.isfinite(folded) and (folded != 0 or 0 in numbers)  # no overflow, no underflow
    leading = [literal(folded)] if is_safe else [literal(number) for number in sorted(numbers)]
    if others and leading == [literal(1.0)]:
        leading = []
    for index in range(len(others) - 1):
        if others[index] is others[index + 1]:
            rest = others[:index] + others[index + 2 :]
            return _product([*leading, *_factors(_square(apply("square", others[index]))), *rest])
    value, *more = [*leading, *others]
    for factor in more:
        value = apply("*", value, factor)
    return value


def _split_sign(node: Expression) -> tuple[int, Expression]:
    """(-1, the rest) of a negative number or of a product whose number is negative, else (1, node)."""
    if node.is_literal:
        return (-1, literal(-node.value)) if node.value < 0 else (1, node)
    if node.operator == "*":
        factors = _factors(node)
        num_negative = sum(factor.is_literal and factor.value < 0 for factor in factors)
        if num_negative % 2:
            first = next(
                index for index, factor in enumerate(factors) if factor.is_literal and factor.value < 0
            )
            factors[first] = literal(-factors[first].value)
            return -1, _product(factors)
    return 1, node


def _without_sign(node: Expression) -> Expression:
    """What `abs` and `square` see the same of: no sign, and a difference turned to its preferred direction."""
    _, node = _split_sign(node)
    if node.operator == "abs":
        return node.children[0]
    if node.operator not in ("+", "-"):
        return node
    terms, constant = _terms(node)
    turned = _sum([(-sign, term) for sign, term in terms], -constant)
    num_positive = sum(sign > 0 for sign, _ in terms) + (constant > 0)
    num_negative = sum(sign < 0 for sign, _ in terms) + (constant < 0)
    if num_positive != num_negative:
        return node if num_positive > num_negative else turned
    return min(node, turned, key=str)


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
    if bottom == literal(1.0):
        value = top
    elif (
        top.is_literal
        and bottom.is_literal
        and bottom.value
        and _is_safe(top.value, top.value / bottom.value)
    ):
        value = literal(top.value / bottom.value)
    else:
        value = apply("/", top, bottom)
    return value if top_sign == bottom_sign else _product([literal(-1.0), *_factors(value)])


def _is_safe(before: float, after: float) -> bool:
    return math.isfinite(after) and (after != 0 or before == 0)


def _reduction(node: Expression) -> Expression:
    inner = node.children[0]
    while node.operator in _ORDER_FREE and inner.operator == "transpose":
        inner = inner.children[0]
    if node.operator in ("sum", "product", "mean") and inner.type == ():
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


# === merged: """Formulas written so that more of them share values and cost less, with the same meaning

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
