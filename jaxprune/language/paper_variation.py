"""The variation of the paper's reference code, for the `paper` preset.

One-point crossover between typed trees, and uniform mutation that grows a full tree of height 0 to 4. Operators and
operands are drawn evenly, without the idioms and the bias of `sampling`, and constants may stand anywhere.
"""

from __future__ import annotations

import jax

from jaxprune.language.expression import Expression
from jaxprune.language.grammar import Grammar, Stage, grammar_of
from jaxprune.language.mutation import all_subtrees, require_within, transplant
from jaxprune.language.productions import Goal
from jaxprune.language.sampling import Draws, Limits, assemble
from jaxprune.language.vocabulary import Vocabulary

MAX_HEIGHT = 4


def paper_mutation(
    key: jax.Array | Draws, f: Expression, vocabulary: Vocabulary, limits: Limits | None = None
) -> Expression:
    """`f` with an evenly drawn subtree replaced by a full random tree of height 0 to 4.

    Args:
      key: decides everything; a `Draws` stream is read on.
      f: a formula within the limits.
      vocabulary: what the new subtree is made of.
      limits: largest size and depth of the result; where a full tree does not fit, branches end earlier.

    Returns:
      A formula of `f.type` within the limits, possibly `f` itself or one without operands, as in the reference;
      `f` itself if the vocabulary reaches none of its types.

    Raises:
      ValueError: if `f` is beyond the limits.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> from jaxprune.language.parsing import parse
      >>> paper_mutation(jax.random.key(0), parse("sum(abs(WI))"), PAPER_VOCABULARY).type
      ()

    Source:
      Liu, Kung, Wentzlaff, Evolving Transferable (Neural) Pruning Functions, 2022; reference code.
    """
    limits = require_within("paper_mutation", f, limits)
    draws, grammar = Draws.of(key), grammar_of(vocabulary, "uniform")
    goals = [
        (site, Goal(site.node.type, informative=bool(site.node.type))) for site in all_subtrees(f, limits)
    ]
    goals = [(site, goal) for site, goal in goals if grammar.is_reachable(goal, site.depth, site.size)]
    if not goals:
        return f
    site, goal = goals[draws.index(len(goals))]
    height = draws.index(MAX_HEIGHT + 1)
    return transplant(
        f, site.path, _grow_full(draws, grammar, goal, site.depth, site.size, site.above, height)
    )


def paper_crossover(
    key: jax.Array | Draws, a: Expression, b: Expression, limits: Limits | None = None
) -> Expression:
    """`a` with a subtree replaced by one of `b`: a type that both have below their roots, then a place in each, evenly.

    Args:
      key: decides everything; a `Draws` stream is read on.
      a: a formula within the limits.
      b: the formula that gives.
      limits: largest size and depth of the result; pairs of places that would pass them are left out.

    Returns:
      A formula of `a.type` within the limits; `a` itself if no pair of places is left.

    Raises:
      ValueError: if `a` is beyond the limits.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> str(paper_crossover(jax.random.key(0), parse("sum(WI)"), parse("mean(abs(WI))")))
      'sum(abs(WI))'

    Source:
      Liu, Kung, Wentzlaff, Evolving Transferable (Neural) Pruning Functions, 2022; reference code.
    """
    limits = require_within("paper_crossover", a, limits)
    draws = Draws.of(key)
    donors = [site.node for site in all_subtrees(b, limits)[1:]]
    pairs = [
        (site, node) for site in all_subtrees(a, limits)[1:] for node in donors if node.type == site.node.type
    ]
    pairs = [(site, node) for site, node in pairs if site.fits(node)]
    if not pairs:
        return a
    types = sorted({node.type for _, node in pairs})
    chosen = types[draws.index(len(types))]
    same = [(site, node) for site, node in pairs if node.type == chosen]
    site, node = same[draws.index(len(same))]
    return transplant(a, site.path, node)


def _grow_full(
    draws: Draws, grammar: Grammar, goal: Goal, depth: int, size: int, above: str, height: int
) -> Expression:
    """A tree whose branches all have `height` operators where types, depth and size allow."""
    stage: Stage = "branch" if height > 0 else "leaf"
    step = grammar.choices(goal, depth, size, above, stage).pick(draws.fraction())
    rooms = grammar.rooms(step, depth, above)
    spare = size - step.nodes - sum(least for _, _, least in rooms)
    children = []
    for index, (part, levels, least) in enumerate(rooms):
        extra = spare // (len(rooms) - index)  # evenly, so that the tree is full on both sides
        spare -= extra
        children.append(_grow_full(draws, grammar, part.goal, levels, least + extra, part.above, height - 1))
    return assemble(draws, grammar.vocabulary, step, children)
