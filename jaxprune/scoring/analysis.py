"""What a formula needs, found from its tree alone: whole samples or moments, classes, channels, and what it can share.

Everything here is a function of an expression and of what operands and operators are. Results for the last expressions
are cached; a bound on their number keeps a search of many generations from growing.

Much of what a formula computes for each class depends on the class only through which rows it selects. `abs(P - mX)` is
`abs(X - mX)` on the rows of class k, so the means of all classes follow from one pass over its *class-independent form*
`abs(X - mX)`; and `rbf(P, Q, 1)` is a block of `rbf(X, 1)`. Computing such values once on all rows, then splitting them
by class, saves most of the time of a naive evaluation, which computes every class anew for every formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.expression import Expression, apply, operand
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.moments import SETS

View = Literal["full", "sample"]
"""Whether a function reads all calibration examples (through their moments) or the sample."""

MOMENT_NAMES = {"mX": "mean_samples(X)", "mP": "mean_samples(P)", "mQ": "mean_samples(Q)"}
STATISTICS = ("mean", "var", "std", "sum", "count", "mean_samples")
"""Operators that can be computed from moments."""
CLASS_SIZES = frozenset({"N", "NQ", "NX"})
"""Operands that come with the moments."""
_CHANNEL_FREE = CLASS_SIZES | {"W"}
_LAST_NODES = 1 << 12
"""Expressions whose analysis is kept: more than a call has, but few, because each stays in memory."""
_LAST_FUNCTIONS = 1 << 10
"""The same for whole functions, each of which keeps all of its nodes in memory."""

# Arguments by operator where a non-finite value can become finite: x / inf, exp(-inf), an entry that is cut off.
_SWALLOWS: Mapping[str, tuple[int, ...]] = {
    "/": (1,),
    "rbf": (0, 1),
    "slice": (0,),
    **dict.fromkeys(("geometric_median", "count", "trace", "inverse"), (0,)),
}
_HARMLESS = frozenset(
    "+ - * abs square sqrt sum product mean std var mean_samples transpose matmul inner outer".split()
)
_SET_OF = {"NX": "X", "N": "P", "NQ": "Q"}
_PAIR_STATISTICS = frozenset({"mean", "sum"})
_ROWWISE = {"+", "-", "*", "/", "abs", "square", "sqrt", "slice", "transpose", "outer", "rbf"}


class Dependence(NamedTuple):
    """Whether a value differs between classes and between channels."""

    per_class: bool
    channel: bool


class SetAnswer(NamedTuple):
    """A reduction that is one of the statistics of a class-independent form."""

    form: Expression
    name: str
    """Its key in the statistics, such as `mean(P)` or `sum(P,Q)`."""
    is_pair: bool


@lru_cache(maxsize=_LAST_NODES)
def moment_answer(node: Expression) -> str | None:
    """Returns the name of the moment that is this node's value, such as `var(Q)`, or None if no moment is.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> moment_answer(parse("std(P)")), moment_answer(parse("std(abs(P))"))
      ('std(P)', None)
    """
    if node.is_operand:
        return MOMENT_NAMES.get(node.name)
    if node.operator in STATISTICS and node.children[0].is_operand and node.children[0].name in SETS:
        return f"{node.operator}({node.children[0].name})"
    return None


@lru_cache(maxsize=_LAST_NODES)
def needs_samples(f: Expression) -> bool:
    """Whether the function reads whole sample matrices, and therefore reads everything from the sample.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> needs_samples(parse("var(P) + sum(mX)")), needs_samples(parse("mean(abs(P))"))
      (False, True)
    """
    if moment_answer(f) is not None:
        return False
    if f.is_operand:
        return not SAMPLE_AXES.isdisjoint(OPERANDS[f.name].type)
    return any(needs_samples(child) for child in f.children)


@lru_cache(maxsize=_LAST_NODES)
def reads_activations(f: Expression) -> bool:
    """Whether the value depends on the view: whether it reads class sizes, or anything by example or position."""
    return any(
        name in CLASS_SIZES or any(axis not in ("F", "O", "C") for axis in OPERANDS[name].type)
        for name in f.operands
    )


@lru_cache(maxsize=_LAST_NODES)
def dependence_of(f: Expression) -> Dependence:
    """Returns whether the value differs between classes and between channels.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> dependence_of(parse("mean(W) * N"))
      Dependence(per_class=True, channel=False)
    """
    return Dependence(
        per_class=any(OPERANDS[name].per_class for name in f.operands),
        channel=any(name not in _CHANNEL_FREE for name in f.operands),
    )


@lru_cache(maxsize=_LAST_FUNCTIONS)
def evaluated_nodes(f: Expression) -> tuple[Expression, ...]:
    """Returns the nodes that are computed, children first; the arguments of a node that is a moment are not."""
    nodes: dict[Expression, None] = {}

    def visit(node: Expression) -> None:
        if node not in nodes:
            for child in node.children if moment_answer(node) is None else ():
                visit(child)
            nodes[node] = None

    visit(f)
    return tuple(nodes)


@lru_cache(maxsize=_LAST_NODES)
def swallowed_children(node: Expression) -> tuple[int, ...]:
    """Returns the arguments whose non-finite entries may vanish from the result, so that they must be checked.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> swallowed_children(parse("N / (NQ - NX)")), swallowed_children(parse("N / 2"))
      ((1,), ())
    """
    if not node.children or moment_answer(node) is not None or node.operator in _HARMLESS:
        return ()
    candidates = _SWALLOWS.get(node.operator, tuple(range(len(node.children))))
    return tuple(i for i in candidates if i < len(node.children) and not node.children[i].is_literal)


@lru_cache(maxsize=_LAST_NODES)
def class_independent_form(node: Expression) -> Expression | None:
    """Returns the value on all rows from which this one selects rows, or None if classes differ in other ways too.

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
    if node.operator == "matmul":  # rows stay separate unless the product sums over them
        is_rowwise = node.children[0].type[-1] not in SAMPLE_AXES
    if not is_rowwise:
        return None
    forms = []
    for child in node.children:
        form = class_independent_form(child)
        if form is None:
            return None
        forms.append(form)
    if node.operator == "rbf" and forms[0] is forms[-1]:
        forms = forms[:1]
    return apply(node.operator, *forms, params=node.params)


@lru_cache(maxsize=_LAST_NODES)
def set_answer(node: Expression) -> SetAnswer | None:
    """Returns how a reduction over the rows of classes follows from its argument's class-independent form, or None.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> answer = set_answer(parse("var(abs(Q))"))
      >>> print(answer.form, answer.name)
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
        is_answered = node.operator in _PAIR_STATISTICS
        return SetAnswer(form, f"{node.operator}({','.join(sets)})", True) if is_answered else None
    if len(child.type) == 2 and child.type[1] in SAMPLE_AXES:
        form = apply("transpose", form)
    return SetAnswer(form, f"{node.operator}({sets[0]})", False)
