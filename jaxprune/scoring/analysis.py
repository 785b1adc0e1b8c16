"""What an expression needs, found from the tree alone: operands, whole samples or moments, classes and channels.

Everything here is a function of an expression and of what operands and operators are, computed once and remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.expression import Expression
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.moments import SETS

View = Literal["full", "sample"]
"""Whether a function reads all calibration examples (by their moments) or the sample."""

MOMENT_NAMES = {"mX": "mean_samples(X)", "mP": "mean_samples(P)", "mQ": "mean_samples(Q)"}
STATISTICS = ("mean", "var", "std", "sum", "count", "mean_samples")
"""Operators that moments answer."""
CLASS_SIZES = frozenset({"N", "NQ", "NX"})
"""Operands that come with the moments."""
_CHANNEL_FREE = CLASS_SIZES | {"W"}

# x / inf, exp(-inf), an entry cut away: here a non-finite value can turn into a finite one.
_SWALLOWS: Mapping[str, tuple[int, ...]] = {
    "/": (1,),
    "rbf": (0, 1),
    "slice": (0,),
    "geometric_median": (0,),
    "count": (0,),
    "trace": (0,),
    "inverse": (0,),
}
_HARMLESS = frozenset({"+", "-", "*", "abs", "square", "sqrt", "sum", "product", "mean", "std", "var"}) | {
    "mean_samples",
    "transpose",
    "matmul",
    "inner",
    "outer",
}


class Dependence(NamedTuple):
    """Whether a value differs between classes and between channels."""

    per_class: bool
    channel: bool


@lru_cache(maxsize=1 << 16)
def moment_answer(node: Expression) -> str | None:
    """The name of the moment that answers this node without sample matrices, such as `var(Q)`, or None.

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


@lru_cache(maxsize=1 << 16)
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


@lru_cache(maxsize=1 << 16)
def reads_activations(f: Expression) -> bool:
    """Whether the value depends on the view: whether it reads class sizes, or anything by example or position."""
    return any(
        name in CLASS_SIZES or any(axis not in ("F", "O", "C") for axis in OPERANDS[name].type)
        for name in f.operands
    )


@lru_cache(maxsize=1 << 16)
def dependence_of(f: Expression) -> Dependence:
    """What the value depends on.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> dependence_of(parse("mean(W) * N"))
      Dependence(per_class=True, channel=False)
    """
    return Dependence(
        per_class=any(OPERANDS[name].per_class for name in f.operands),
        channel=any(name not in _CHANNEL_FREE for name in f.operands),
    )


@lru_cache(maxsize=1 << 16)
def evaluated_nodes(f: Expression) -> tuple[Expression, ...]:
    """The nodes that are computed, children first: what a moment answers hides its arguments."""
    found: dict[Expression, None] = {}

    def visit(node: Expression) -> None:
        if node in found:
            return
        if moment_answer(node) is None:
            for child in node.children:
                visit(child)
        found[node] = None

    visit(f)
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def swallowed_children(node: Expression) -> tuple[int, ...]:
    """Arguments whose non-finite entries may vanish from the result, so that they must be looked at.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> swallowed_children(parse("N / (NQ - NX)")), swallowed_children(parse("N / 2"))
      ((1,), ())
    """
    if not node.children or moment_answer(node) is not None or node.operator in _HARMLESS:
        return ()
    looked_at = _SWALLOWS.get(node.operator, tuple(range(len(node.children))))
    return tuple(i for i in looked_at if i < len(node.children) and not node.children[i].is_literal)
