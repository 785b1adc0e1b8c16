"""Values that depend on the class only through which rows they select: computed once on all rows, then split by class.

`abs(P - mX)` is `abs(X - mX)` on the rows of class k, so all classes' means of it follow from one pass over its
*class-independent form* `abs(X - mX)`; and `rbf(P, Q, 1)` is a block of `rbf(X, 1)`. This is where most of the time
of a naive evaluation, which takes every class apart again for every formula, is saved.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.expression import Expression, apply, operand
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.scoring.analysis import STATISTICS, moment_answer

_SET_OF = {"NX": "X", "N": "P", "NQ": "Q"}
_PAIR_ANSWERS = frozenset({"mean", "sum"})
_ROWWISE = {"+", "-", "*", "/", "abs", "square", "sqrt", "slice", "transpose", "outer", "rbf"}


class SetAnswer(NamedTuple):
    """A reduction that follows from the statistics of a class-independent form."""

    form: Expression
    name: str
    """Its key in the statistics, such as `mean(P)` or `sum(P,Q)`."""
    is_pair: bool


@lru_cache(maxsize=1 << 16)
def class_independent_form(node: Expression) -> Expression | None:
    """The value over all examples of which this one keeps some rows, or None if it differs between classes otherwise.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> for text in ("abs(P - mX)", "P - mP", "rbf(P, Q, 1)"):
      ...     print(class_independent_form(parse(text)))
      abs(X - mX)
      None
      rbf(X, 1)
    """
    if node.name in ("P", "Q"):
        return operand("X")
    if not any(OPERANDS[name].per_class for name in node.operands):
        return node
    if not node.children or node.type == ():
        return None
    is_rowwise = node.operator in _ROWWISE
    if node.operator == "matmul":  # rows stay apart unless they are what is summed over
        is_rowwise = node.children[0].type[-1] not in SAMPLE_AXES
    forms = [class_independent_form(child) for child in node.children] if is_rowwise else [None]
    if any(form is None for form in forms):
        return None
    found = [form for form in forms if form is not None]
    if node.operator == "rbf" and found[0] is found[-1]:
        found = found[:1]
    return apply(node.operator, *found, params=node.params)


@lru_cache(maxsize=1 << 16)
def set_answer(node: Expression) -> SetAnswer | None:
    """How a reduction over rows of some classes follows from its argument's class-independent form, or None.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> found = set_answer(parse("var(abs(Q))"))
      >>> print(found.form, found.name)
      abs(X) var(Q)
    """
    if node.operator not in STATISTICS or moment_answer(node) is not None:
        return None
    child = node.children[0]
    sets = [_SET_OF[axis] for axis in child.type if axis in SAMPLE_AXES]
    if not sets or set(sets) == {"X"}:
        return None
    form = class_independent_form(child)
    if form is None:
        return None
    if len(sets) == 2:
        is_answered = node.operator in _PAIR_ANSWERS
        return SetAnswer(form, f"{node.operator}({','.join(sets)})", True) if is_answered else None
    if len(child.type) == 2 and child.type[1] in SAMPLE_AXES:
        form = apply("transpose", form)
    return SetAnswer(form, f"{node.operator}({sets[0]})", False)
