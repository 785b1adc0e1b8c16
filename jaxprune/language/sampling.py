"""Random expressions: typed, useful more often than not, and complete at the first attempt.

Every step picks among productions that the reachability tables say can still be finished in the depth and size
left, so nothing is ever rejected.
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
from jaxprune.language.vocabulary import Vocabulary

_SMALLEST_TARGET, _LARGEST_TARGET = 7, 32
_SCALAR_COMFORT = 2  # a moment of an operand; one node would often leave nothing but a literal
_DEFAULT_RIDGE = 0.05
_OTHER_SIDE = {"P": "Q", "Q": "P", "mP": "mQ", "mQ": "mP", "N": "NQ", "NQ": "N"}
_NEVER_NEGATIVE = frozenset({"abs", "square", "sqrt", "var", "std", "count", "rbf"})
_KEEPS_SIGN = frozenset(
    {"sum", "mean", "product", "mean_samples", "trace", "transpose", "slice", "geometric_median",
     "+", "*", "/", "inner", "outer", "matmul"}
)  # fmt: skip
_CLASS_SIZES = frozenset({"N", "NQ", "NX"})


@dataclass(frozen=True)
class Limits:
    """How large a formula may grow: nodes, and levels with a chain of `+ -` or of `*` counted as one.

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
        """Whether `f` is within both limits."""
        return f.size <= self.max_size and f.depth <= self.max_depth


class Draws:
    """A stream of uniform numbers for one expression, read from the generator in blocks because single draws cost more.

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
        """The stream of a key; a stream stays itself, so that one operator can go on where another stopped."""
        return source if isinstance(source, Draws) else cls(source)

    def fraction(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(64).tolist()
        return self._block.pop()

    def index(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self.fraction() * count)

    def normal(self) -> float:
        """A standard normal number (Box and Muller)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.fraction()))
        return radius * math.cos(2.0 * math.pi * self.fraction())

    def order(self, weights: Sequence[float]) -> list[int]:
        """All indices in random order, each next one drawn in proportion to its weight among those left."""
        arrival = [-math.log(1.0 - self.fraction()) / weight for weight in weights]
        return sorted(range(len(weights)), key=arrival.__getitem__)


def random_expression(
    key: jax.Array | Draws, vocabulary: Vocabulary, *, type: Type = (), limits: Limits | None = None
) -> Expression:
    """A random formula of a type, within the limits, biased to what published metrics are made of.

    Moments, weights and ridged quotients are frequent, matrix operators rare, constants few. It reads at least one
    operand that differs among channels, and it is more than a single operand wherever there is room.

    Args:
      key: decides everything; the same key gives the same formula.
      vocabulary: operands, operators and constants to build from.
      type: axes of its value; () for a pruning function.
      limits: largest size and depth; 40 nodes and 8 levels by default.

    Returns:
      An expression of `type`. Nothing is rejected on the way: it costs one pass.

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
    """How many nodes to aim at: log-uniform over ordinary formula sizes, inside [least, most]."""
    exponent = draws.fraction()
    target = round(_SMALLEST_TARGET * (_LARGEST_TARGET / _SMALLEST_TARGET) ** exponent)
    return min(max(target, least), most)


def grow(
    draws: Draws, grammar: Grammar, goal: Goal, depth: int, size: int, above: str = "", stage: Stage = "any"
) -> Expression:
    """A random tree for a reachable goal; see `Grammar.choices` for the arguments.

    `stage` applies to its root alone. Spare nodes are divided evenly at random among the children.
    """
    step = grammar.choices(goal, depth, size, above, stage).pick(draws.fraction())
    rooms = grammar.rooms(step, depth, above)
    spare = size - step.nodes - sum(part.copies * least for part, _, least in rooms)
    children = []
    comforts = [
        part.copies * max(0, _SCALAR_COMFORT - least) if not part.goal.type else 0 for part, _, least in rooms
    ]
    if sum(comforts) > spare:
        comforts = [0] * len(rooms)
    spare -= sum(comforts)
    for index, (part, levels, least) in enumerate(rooms):
        extra = spare if index == len(rooms) - 1 else draws.index(spare + 1)
        spare -= extra
        nodes = least + (comforts[index] + extra) // part.copies
        children.append(grow(draws, grammar, part.goal, levels, nodes, part.above))
    return assemble(draws, grammar.vocabulary, step, children)


def assemble(
    draws: Draws, vocabulary: Vocabulary, step: Production, children: Sequence[Expression]
) -> Expression:
    """The expression of a production over its generated parts; never larger or deeper than planned."""
    if step.kind == "operand":
        return operand(step.head)
    if step.kind == "literal":
        return literal(step.params[0])
    if step.kind == "operator":
        if (
            step.head in "+-/" and children[0] is children[-1]
        ):  # x - x and x/x say nothing, x + x no more than x
            return children[0]
        return apply(step.head, *children, params=step.params)
    if step.kind == "ridge":
        return apply("/", children[0], apply("+", _nonnegative(children[1]), _ridge(draws, vocabulary)))
    if step.kind == "contrast":
        return _contrast(children[0], vocabulary)
    if step.kind == "guarded_sqrt":
        return apply("sqrt", _nonnegative(children[0]))
    energy = apply("sum", apply("square", children[0]))
    return energy if step.kind == "energy" else apply("sqrt", energy)


def is_constant(f: Expression) -> bool:
    """Whether `f` is the same for all channels because it reads nothing but class sizes.

    Example:
      >>> is_constant(apply("+", operand("N"), literal(1))), is_constant(operand("gamma"))
      (True, False)
    """
    return f.operands <= _CLASS_SIZES


def is_nonnegative(f: Expression) -> bool:
    """Whether `f` is provably never below 0.

    Example:
      >>> is_nonnegative(apply("var", operand("P"))), is_nonnegative(apply("mean", operand("P")))
      (True, False)
    """
    if f.is_literal:
        return f.value >= 0
    if f.is_operand:
        return f.name in _CLASS_SIZES
    if f.operator in _NEVER_NEGATIVE:
        return True
    return f.operator in _KEEPS_SIGN and all(map(is_nonnegative, f.children))


def other_side(f: Expression) -> Expression:
    """The same statistic of the other side: class k and the other classes exchanged.

    Raises:
      IllTypedError: if an operand of one's own keeps an axis on its side.

    Example:
      >>> str(other_side(apply("/", apply("var", operand("P")), operand("N"))))
      'var(Q)/NQ'
    """
    if f.is_operand:
        return operand(_OTHER_SIDE.get(f.name, f.name))
    return replace_children(f, [other_side(child) for child in f.children])


def _contrast(f: Expression, vocabulary: Vocabulary) -> Expression:
    try:
        other = other_side(f)
    except IllTypedError:
        return f
    says_something = other.operands != f.operands  # mP*mQ on both sides would cancel
    return apply("-", f, other) if says_something and other.operands <= {*vocabulary.operands} else f


def _nonnegative(f: Expression) -> Expression:
    return f if is_nonnegative(f) else apply("abs", f)


def _ridge(draws: Draws, vocabulary: Vocabulary) -> Expression:
    small = [value for value in vocabulary.literals if 0 < value < 1] or [_DEFAULT_RIDGE]
    return literal(small[draws.index(len(small))])
