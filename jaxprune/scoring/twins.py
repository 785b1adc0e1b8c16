"""Values that have no class turn but for the rows they keep: computed once for all examples, then split by class.

`abs(P - mX)` is `abs(X - mX)` on the rows of class k, so all classes' means of it follow from one pass over its *twin*
`abs(X - mX)`; and `rbf(P, Q, 1)` is a block of `rbf(X, X, 1)`. This is where most of the time of a naive evaluation,
which takes every class apart again for every formula, is saved.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.operands import OPERANDS
from jaxprune.language.tree import Expression, apply, operand
from jaxprune.scoring.analysis import moment_answer
from jaxprune.scoring.kernels import BINARY, UNARY

_SET_OF = {"NX": "X", "N": "P", "NQ": "Q"}
_ROW_ANSWERS = frozenset({"mean", "var", "std", "sum", "count", "mean_samples"})
_PAIR_ANSWERS = frozenset({"mean", "sum"})
_ROWWISE = {*BINARY, *UNARY} | {"slice", "transpose", "outer", "rbf"}


class SetAnswer(NamedTuple):
    """A reduction that follows from the statistics of a twin."""

    twin: Expression
    name: str
    """Its key in the statistics, such as `mean(P)` or `sum(P,Q)`."""
    is_pair: bool


@lru_cache(maxsize=1 << 16)
def twin_of(node: Expression) -> Expression | None:
    """The value over all examples of which this one keeps some rows, or None if it differs between classes otherwise.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> print(twin_of(parse("abs(P - mX)")), twin_of(parse("P - mP")), twin_of(parse("rbf(P, Q, 1)")))
      abs(X - mX) None rbf(X, X, 1)
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
    twins = [twin_of(child) for child in node.children] if is_rowwise else [None]
    if any(twin is None for twin in twins):
        return None
    found = [twin for twin in twins if twin is not None]
    return apply(node.operator, *found, params=node.params)


@lru_cache(maxsize=1 << 16)
def set_answer(node: Expression) -> SetAnswer | None:
    """How a reduction over rows of some classes follows from its argument's twin, or None.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> found = set_answer(parse("var(abs(Q))"))
      >>> print(found.twin, found.name)
      abs(X) var(Q)
    """
    if node.operator not in _ROW_ANSWERS or moment_answer(node) is not None:
        return None
    child = node.children[0]
    sets = [_SET_OF[axis] for axis in child.type if axis in SAMPLE_AXES]
    if not sets or set(sets) == {"X"}:
        return None
    twin = twin_of(child)
    if twin is None:
        return None
    if len(sets) == 2:
        is_answered = node.operator in _PAIR_ANSWERS
        return SetAnswer(twin, f"{node.operator}({','.join(sets)})", True) if is_answered else None
    if len(child.type) == 2 and child.type[1] in SAMPLE_AXES:
        twin = apply("transpose", twin)
    return SetAnswer(twin, f"{node.operator}({sets[0]})", False)
