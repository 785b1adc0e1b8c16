"""Variation: new formulas from old ones, well typed and within the limits, each decided by its key alone.

`vary` picks among subtree and point mutation, crossover, hoist, constant jitter and a fresh random formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax

from jaxprune.language.expression import Expression
from jaxprune.language.mutation import (
    all_subtrees,
    jitter_constants,
    mutate_hoist,
    mutate_point,
    mutate_subtree,
    node_weight,
    require_within,
    transplant,
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
"""How a formula came about, as the journal says it."""


@dataclass(frozen=True)
class VariationSettings:
    """How `vary` chooses.

    Attributes:
      preset: `default` draws one operator by the weights below; `paper` applies one-point crossover and full-tree
        mutation, each with its own probability, to a clone of the first parent.
      subtree, crossover, point, hoist, constants, random: relative weights, not negative.
      paper_crossover_probability, paper_mutation_probability: in [0, 1]; .75 each in the reference.

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
        for chance in (self.paper_crossover_probability, self.paper_mutation_probability):
            if not 0 <= chance <= 1:
                raise ValueError(f"Paper variation probabilities must be in [0, 1], got {chance}.")

    def weights(self) -> dict[Origin, float]:
        """Operator -> its weight in the default preset."""
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
    """A child of `parents` and how it came about.

    An operator that cannot change its parent (a jitter without constants, say) gives way to subtree mutation, so
    with the default preset the child differs from the first parent unless the vocabulary has nothing else.

    Args:
      key: decides everything.
      parents: the first is changed; the second, if any, gives to crossover. Ones beyond the limits are passed over.
      vocabulary: what new parts are made of.
      limits: largest size and depth of the child; 40 nodes and 8 levels by default.
      settings: probabilities; the defaults of `VariationSettings`.

    Returns:
      (child of type () within the limits, its origin). Without a usable parent it is a random formula.

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
    moves: dict[Origin, Callable[[], Expression]] = {
        "subtree": lambda: mutate_subtree(draws, first, vocabulary, limits),
        "crossover": lambda: crossover(draws, first, last, limits),
        "point": lambda: mutate_point(draws, first, vocabulary, limits),
        "hoist": lambda: mutate_hoist(draws, first, limits),
        "constants": lambda: jitter_constants(draws, first, limits),
        "random": lambda: random_expression(draws, vocabulary, limits=limits),
    }
    weights = {name: weight for name, weight in settings.weights().items() if weight > 0}
    chosen = list(weights)[draws.order(list(weights.values()))[0]]
    for name in dict.fromkeys([chosen, "subtree", "random"]):
        child = moves[name]()
        if child is not first:
            return child, name
    return first, "clone"


def crossover(
    key: jax.Array | Draws, a: Expression, b: Expression, limits: Limits | None = None
) -> Expression:
    """`a` with one subtree replaced by a subtree of `b` of the same type.

    Args:
      key: decides everything; a `Draws` stream is read on.
      a: a formula within the limits, which keeps its root or is replaced whole by a part of `b`.
      b: the formula that gives; it may be beyond the limits.
      limits: largest size and depth of the result.

    Returns:
      A formula of `a.type` within the limits; `a` itself if no part of `b` fits anywhere. It is never the whole of `b`.

    Raises:
      ValueError: if `a` is beyond the limits.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> a, b = parse("sum(WI)"), parse("mean(abs(WI))")
      >>> child = crossover(jax.random.key(0), a, b)
      >>> child.type, child is a
      ((), False)
    """
    limits = require_within("crossover", a, limits)
    draws = Draws.of(key)
    sites = all_subtrees(a, limits)
    donors = list(b.walk())
    for index in draws.order([node_weight(site.node) for site in sites]):
        site = sites[index]
        fitting = [
            node
            for node in donors
            if node.type == site.node.type
            and site.fits(node)
            and node is not site.node
            and (site.path or node is not b)
            and (is_constant(site.node) or not is_constant(node))
        ]
        for chosen in draws.order([node_weight(node) for node in fitting]) if fitting else ():
            child = transplant(a, site.path, fitting[chosen])
            if child is not b:  # a part of b where a and b differ in nothing else
                return child
    return a


def _vary_like_paper(
    draws: Draws,
    parents: Sequence[Expression],
    vocabulary: Vocabulary,
    limits: Limits,
    settings: VariationSettings,
) -> tuple[Expression, Origin]:
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
