"""Random expressions: well typed, more often useful than not, and complete at the first attempt.

Every node is drawn from the productions that the grammar says can still be completed within the remaining depth and
size, so no tree is ever rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxprune.keys import generator
from jaxprune.language.axes import Type, type_name
from jaxprune.language.expression import Expression, apply, literal, operand, replace_children
from jaxprune.language.grammar import Grammar, Stage, grammar_of
from jaxprune.language.operators import IllTypedError
from jaxprune.language.productions import Goal, Production
from jaxprune.language.vocabulary import CLASS_SIZES, Vocabulary

_SMALLEST_TARGET, _LARGEST_TARGET = 7, 32
_SCALAR_NODES = 2
"""How many nodes a scalar part gets where there is room: enough for a moment of an operand; one node would often leave
nothing but a literal."""
_DEFAULT_RIDGE = 0.05
_OTHER_SIDE = {"P": "Q", "Q": "P", "mP": "mQ", "mQ": "mP", "N": "NQ", "NQ": "N"}
_ALWAYS_NONNEGATIVE = frozenset({"abs", "square", "sqrt", "var", "std", "count", "rbf"})
_NONNEGATIVE_OF_NONNEGATIVE = frozenset(
    {"sum", "mean", "product", "mean_samples", "trace", "transpose", "slice", "geometric_median",
     "+", "*", "/", "inner", "outer", "matmul"}
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How large a formula may grow.

    Attributes:
      max_size: the most nodes.
      max_depth: the most levels, where a chain of `+` and `-`, or of `*`, counts as one.

    Raises:
      ValueError: if either is below 1.
    """

    max_size: int = 40
    max_depth: int = 8

    def __post_init__(self) -> None:
        if self.max_size < 1 or self.max_depth < 1:
            raise ValueError(
                f"Limits must be at least 1, got max_size={self.max_size}, max_depth={self.max_depth}. "
                "The default is 40 nodes and depth 8."
            )

    def allow(self, f: Expression) -> bool:
        """Returns whether `f` is within both limits."""
        return f.size <= self.max_size and f.depth <= self.max_depth


class Draws:
    """A stream of random numbers for one expression, drawn in blocks because single draws take longer.

    Example:
      >>> draws = Draws(jax.random.key(0))
      >>> 0 <= draws.fraction() < 1, draws.index(3) in range(3)
      (True, True)
    """

    def __init__(self, key: jax.Array) -> None:
        self._generator: np.random.Generator = generator(key)
        self._block: list[float] = []

    @classmethod
    def of(cls, source: jax.Array | Draws) -> Draws:
        """Returns the stream of a key, or a given stream itself, which then continues where it stopped."""
        return source if isinstance(source, Draws) else cls(source)

    def fraction(self) -> float:
        """Draws a number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(64).tolist()
        return self._block.pop()

    def index(self, count: int) -> int:
        """Draws a whole number in [0, count)."""
        return int(self.fraction() * count)

    def normal(self) -> float:
        """Draws a standard normal number (Box and Muller)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.fraction()))
        return radius * math.cos(2.0 * math.pi * self.fraction())

    def order(self, weights: Sequence[float]) -> list[int]:
        """Returns all indices in random order, each drawn in proportion to its weight among those not yet drawn."""
        arrival = [-math.log(1.0 - self.fraction()) / weight for weight in weights]
        return sorted(range(len(weights)), key=arrival.__getitem__)


def random_expression(
    key: jax.Array | Draws, vocabulary: Vocabulary, *, type: Type = (), limits: Limits | None = None
) -> Expression:
    """Draws a formula of a type within the limits, made mostly of what published metrics are made of.

    Moments, weights and ridged quotients are frequent, matrix operators rare, constants few. The formula reads at
    least one operand that differs among channels, and is more than a single operand wherever there is room.

    Args:
      key: decides everything, so that the same key gives the same formula; draws from a `Draws` stream continue it.
      vocabulary: operands, operators and constants to build from.
      type: axes of its value; () for a pruning function.
      limits: largest size and depth; 40 nodes and 8 levels by default.

    Returns:
      An expression of `type`.

    Raises:
      ValueError: if the vocabulary has no formula of that type within the limits.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> f = random_expression(jax.random.key(0), PAPER_VOCABULARY)
      >>> f.type, f.size <= 40, f is random_expression(jax.random.key(0), PAPER_VOCABULARY)
      ((), True, True)
    """
    limits = limits or Limits()
    grammar, goal = grammar_of(vocabulary), Goal(tuple(type))
    if not grammar.is_reachable(goal, limits.max_depth, limits.max_size):
        operands, operators = " ".join(vocabulary.operands) or "none", " ".join(vocabulary.operators) or "all"
        raise ValueError(
            f"random_expression needs a vocabulary that reaches type {type_name(tuple(type))} within "
            f"{limits.max_size} nodes and depth {limits.max_depth}, got operands: {operands}; operators: {operators}. "
            "Add operands or operators, or raise the limits."
        )
    draws = Draws.of(key)
    size = target_size(draws, grammar.least_nodes(goal, limits.max_depth) or 1, limits.max_size)
    return grow(draws, grammar, goal, limits.max_depth, size, stage="branch")


def target_size(draws: Draws, least: int, most: int) -> int:
    """Draws how many nodes to aim at, log-uniformly over ordinary formula sizes.

    Args:
      draws: the stream to draw from.
      least: the smallest result.
      most: the largest result.

    Returns:
      A number in [least, most].
    """
    exponent = draws.fraction()
    target = round(_SMALLEST_TARGET * (_LARGEST_TARGET / _SMALLEST_TARGET) ** exponent)
    return min(max(target, least), most)


def grow(
    draws: Draws,
    grammar: Grammar,
    goal: Goal,
    depth: int,
    size: int,
    parent_operator: str = "",
    stage: Stage = "any",
) -> Expression:
    """Draws a tree; the nodes that it may have beyond the fewest possible are divided at random among the children.

    Args:
      draws: the stream to draw from.
      grammar: the productions to draw.
      goal: what the tree must compute; must be reachable.
      depth, size: the most levels and nodes of the tree.
      parent_operator: the operator directly above the tree, "" at the root of a formula.
      stage: restricts the root of the tree alone (see `Grammar.choices`).

    Returns:
      An expression within `depth` and `size`.
    """
    production = grammar.choices(goal, depth, size, parent_operator, stage).pick(draws.fraction())
    parts = grammar.part_limits(production, depth, parent_operator)
    spare = size - production.nodes - sum(part.copies * least for part, _, least in parts)
    extras = [
        0 if part.goal.type else part.copies * max(0, _SCALAR_NODES - least) for part, _, least in parts
    ]
    if sum(extras) > spare:
        extras = [0] * len(parts)
    spare -= sum(extras)
    children = []
    for index, (part, max_depth, least) in enumerate(parts):
        share = spare if index == len(parts) - 1 else draws.index(spare + 1)
        spare -= share
        max_size = least + (extras[index] + share) // part.copies
        children.append(grow(draws, grammar, part.goal, max_depth, max_size, part.parent_operator))
    return assemble(draws, grammar.vocabulary, production, children)


def assemble(
    draws: Draws, vocabulary: Vocabulary, production: Production, children: Sequence[Expression]
) -> Expression:
    """Builds the expression of a production.

    Args:
      draws: the stream that a ridge is drawn from.
      vocabulary: the operands and constants that may be added.
      production: the rule to apply.
      children: the generated parts, in order.

    Returns:
      An expression with at most the levels and nodes that the production counts on.
    """
    head = production.head
    match production.kind:
        case "operand":
            return operand(head)
        case "literal":
            return literal(production.params[0])
        case "operator":
            if head in "+-/" and children[0] is children[-1]:
                return children[0]  # x - x and x/x say nothing, x + x no more than x
            return apply(head, *children, params=production.params)
        case "ridge":
            ridges = [value for value in vocabulary.literals if 0 < value < 1] or [_DEFAULT_RIDGE]
            ridge = literal(ridges[draws.index(len(ridges))])
            return apply("/", children[0], apply("+", _nonnegative(children[1]), ridge))
        case "contrast":
            return _contrast(children[0], vocabulary)
        case "guarded_sqrt":
            return apply("sqrt", _nonnegative(children[0]))
        case "energy":
            return apply("sum", apply("square", children[0]))
        case "norm":
            return apply("sqrt", apply("sum", apply("square", children[0])))


def is_constant(f: Expression) -> bool:
    """Returns whether `f` is the same for all channels because it reads nothing but class sizes.

    Example:
      >>> is_constant(apply("+", operand("N"), literal(1))), is_constant(operand("gamma"))
      (True, False)
    """
    return f.operands <= CLASS_SIZES


def is_nonnegative(f: Expression) -> bool:
    """Returns whether `f` is provably never below 0.

    Example:
      >>> is_nonnegative(apply("var", operand("P"))), is_nonnegative(apply("mean", operand("P")))
      (True, False)
    """
    if f.is_literal:
        return f.value >= 0
    if f.is_operand:
        return f.name in CLASS_SIZES
    if f.operator in _ALWAYS_NONNEGATIVE:
        return True
    return f.operator in _NONNEGATIVE_OF_NONNEGATIVE and all(map(is_nonnegative, f.children))


def other_side(f: Expression) -> Expression:
    """Returns the same statistic with class k and the other classes exchanged.

    Raises:
      IllTypedError: if the types no longer match because a user's operand has an axis of one of the two.

    Example:
      >>> str(other_side(apply("/", apply("var", operand("P")), operand("N"))))
      'var(Q)/NQ'
    """
    if f.is_operand:
        return operand(_OTHER_SIDE.get(f.name, f.name))
    return replace_children(f, [other_side(child) for child in f.children])


def _contrast(f: Expression, vocabulary: Vocabulary) -> Expression:
    """The difference of a statistic between class k and the other classes; `f` itself if that says nothing."""
    try:
        other = other_side(f)
    except IllTypedError:
        return f
    is_different = other.operands != f.operands  # the two sides of mP*mQ would cancel
    return apply("-", f, other) if is_different and other.operands <= {*vocabulary.operands} else f


def _nonnegative(f: Expression) -> Expression:
    """`f`, or its absolute value if it may be negative."""
    return f if is_nonnegative(f) else apply("abs", f)
