"""Variation: makes new formulas from given ones, well typed and within limits, each decided by its key alone.

`vary` draws one of subtree mutation, point mutation, crossover, hoisting, constant jitter and a new random formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax

from jaxprune.language.expression import Expression
from jaxprune.language.mutation import (
    all_subtrees,
    checked_limits,
    jitter_constants,
    mutate_hoist,
    mutate_point,
    mutate_subtree,
    node_weight,
    replace_subtree,
)
from jaxprune.language.paper_variation import paper_crossover, paper_mutation
from jaxprune.language.sampling import Draws, Limits, is_constant, random_expression
from jaxprune.language.vocabulary import Vocabulary

__all__ = [
    "Origin",
    "VariationSettings",
    "crossover",
    "jitter_constants",
    "mutate_hoist",
    "mutate_point",
    "mutate_subtree",
    "paper_crossover",
    "paper_mutation",
    "vary",
]

Origin = Literal[
    "subtree", "point", "hoist", "constants", "crossover", "random",
    "paper_crossover", "paper_mutation", "paper_crossover+mutation", "clone",
]  # fmt: skip
"""How a formula was made, as the journal records it."""


@dataclass(frozen=True)
class VariationSettings:
    """How `vary` draws the kind of variation.

    Attributes:
      preset: `default` draws one kind by the weights below; `paper` applies one-point crossover and full-tree
        mutation, each with its own probability, to a copy of the first parent.
      subtree, crossover, point, hoist, constants, random: relative weights, not negative.
      paper_crossover_probability, paper_mutation_probability: in [0, 1]; 0.75 each in the reference.

    Raises:
      ValueError: if a weight is negative or all are 0, a probability is outside [0, 1], or the preset is unknown.
    """

    preset: Literal["default", "paper"] = "default"
    subtree: float = 0.28
    crossover: float = 0.28
    point: float = 0.2
    hoist: float = 0.08
    constants: float = 0.08
    random: float = 0.08
    paper_crossover_probability: float = 0.75
    paper_mutation_probability: float = 0.75

    def __post_init__(self) -> None:
        if self.preset not in ("default", "paper"):
            raise ValueError(f"The variation preset must be 'default' or 'paper', got {self.preset!r}.")
        weights = self.weights()
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"Variation weights must be >= 0 and not all 0, got {weights}.")
        for probability in (self.paper_crossover_probability, self.paper_mutation_probability):
            if not 0 <= probability <= 1:
                raise ValueError(f"Paper variation probabilities must be in [0, 1], got {probability}.")

    def weights(self) -> dict[Origin, float]:
        """Returns kind of variation -> its weight in the default preset."""
        return {
            "subtree": self.subtree, "crossover": self.crossover, "point": self.point,
            "hoist": self.hoist, "constants": self.constants, "random": self.random,
        }  # fmt: skip


def vary(
    key: jax.Array,
    parents: Sequence[Expression],
    vocabulary: Vocabulary,
    limits: Limits | None = None,
    settings: VariationSettings | None = None,
) -> tuple[Expression, Origin]:
    """Makes a new formula from its parents.

    If the drawn kind cannot change the parent (jitter without constants, for example), subtree mutation replaces it.
    With the default preset the child therefore differs from the first parent unless the vocabulary allows no other.

    Args:
      key: decides everything.
      parents: the first is changed; the second, if any, contributes to crossover. Ones that exceed the limits are
        ignored.
      vocabulary: what new parts are made of.
      limits: largest size and depth of the child; 40 nodes and 8 levels by default.
      settings: weights and probabilities; the defaults of `VariationSettings`.

    Returns:
      (child, origin): a formula of type () within the limits, and how it was made. Without a usable parent it is a
      random formula.

    Raises:
      ValueError: if the vocabulary has no formula of type () within the limits.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> from jaxprune.language.parsing import parse
      >>> parents = [parse("sum(abs(WI))"), parse("var(P)/(var(Q) + 0.05)")]
      >>> child, origin = vary(jax.random.key(0), parents, PAPER_VOCABULARY)
      >>> child.type, child is parents[0]
      ((), False)
    """
    limits, settings = limits or Limits(), settings or VariationSettings()
    draws = Draws(key)
    usable = [parent for parent in parents if parent.type == () and limits.allow(parent)]
    if not usable:
        return random_expression(draws, vocabulary, limits=limits), "random"
    if settings.preset == "paper":
        return _vary_like_paper(draws, usable, vocabulary, limits, settings)
    first, last = usable[0], usable[-1]
    variations: dict[Origin, Callable[[], Expression]] = {
        "subtree": lambda: mutate_subtree(draws, first, vocabulary, limits),
        "crossover": lambda: crossover(draws, first, last, limits),
        "point": lambda: mutate_point(draws, first, vocabulary, limits),
        "hoist": lambda: mutate_hoist(draws, first, limits),
        "constants": lambda: jitter_constants(draws, first, limits),
        "random": lambda: random_expression(draws, vocabulary, limits=limits),
    }
    weights = {origin: weight for origin, weight in settings.weights().items() if weight > 0}
    drawn = list(weights)[draws.order(list(weights.values()))[0]]
    for origin in dict.fromkeys([drawn, "subtree", "random"]):
        child = variations[origin]()
        if child is not first:
            return child, origin
    return first, "clone"


def crossover(
    key: jax.Array | Draws, a: Expression, b: Expression, limits: Limits | None = None
) -> Expression:
    """Replaces one subtree of `a` by a subtree of `b` of the same type.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      a: a formula within the limits; a part of `b` may also replace all of it.
      b: the formula that the new subtree is taken from; it may exceed the limits.
      limits: largest size and depth of the result.

    Returns:
      A formula of `a.type` within the limits; `a` itself if no part of `b` fits anywhere. It is never the whole of `b`.

    Raises:
      ValueError: if `a` exceeds the limits.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> a, b = parse("sum(WI)"), parse("mean(abs(WI))")
      >>> child = crossover(jax.random.key(0), a, b)
      >>> child.type, child is a
      ((), False)
    """
    limits = checked_limits("crossover", a, limits)
    draws = Draws.of(key)
    subtrees = all_subtrees(a, limits)
    donors = list(b.walk())
    for index in draws.order([node_weight(subtree.node) for subtree in subtrees]):
        subtree = subtrees[index]
        fitting = [
            node
            for node in donors
            if node.type == subtree.node.type
            and subtree.accepts(node)
            and node is not subtree.node
            and (subtree.path or node is not b)
            and (is_constant(subtree.node) or not is_constant(node))
        ]
        for choice in draws.order([node_weight(node) for node in fitting]):
            child = replace_subtree(a, subtree.path, fitting[choice])
            if child is not b:  # the new part may have been all in which a and b differ
                return child
    return a


def _vary_like_paper(
    draws: Draws,
    parents: Sequence[Expression],
    vocabulary: Vocabulary,
    limits: Limits,
    settings: VariationSettings,
) -> tuple[Expression, Origin]:
    """Applies the paper's crossover and mutation to the first parent, each with its own probability."""
    is_crossed = draws.fraction() < settings.paper_crossover_probability
    is_mutated = draws.fraction() < settings.paper_mutation_probability
    child = parents[0]
    if is_crossed:
        child = paper_crossover(draws, child, parents[-1], limits)
    if is_mutated:
        child = paper_mutation(draws, child, vocabulary, limits)
    if is_crossed and is_mutated:
        return child, "paper_crossover+mutation"
    return child, "paper_crossover" if is_crossed else "paper_mutation" if is_mutated else "clone"
