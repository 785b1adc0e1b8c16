"""The variation of the paper's reference code, for the `paper` preset.

One-point crossover between typed trees, and uniform mutation that grows a full tree of height 0 to 4. Operators and
operands are drawn evenly, without the idioms and the bias of `sampling`, and constants may appear anywhere.
"""

from __future__ import annotations

import jax

from jaxprune.language.expression import Expression
from jaxprune.language.grammar import Grammar, Stage, grammar_of
from jaxprune.language.mutation import all_subtrees, checked_limits, replace_subtree
from jaxprune.language.productions import Goal
from jaxprune.language.sampling import Draws, Limits, assemble
from jaxprune.language.vocabulary import Vocabulary

MAX_HEIGHT = 4


def paper_mutation(
    key: jax.Array | Draws, f: Expression, vocabulary: Vocabulary, limits: Limits | None = None
) -> Expression:
    """Replaces an evenly drawn subtree of `f` by a full random tree of height 0 to 4.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      f: a formula within the limits.
      vocabulary: what the new subtree is made of.
      limits: largest size and depth of the result; where a full tree does not fit, its branches end earlier.

    Returns:
      A formula of `f.type` within the limits, possibly `f` itself or one without operands, as in the reference;
      `f` itself if the vocabulary reaches none of its types.

    Raises:
      ValueError: if `f` exceeds the limits.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> from jaxprune.language.parsing import parse
      >>> paper_mutation(jax.random.key(0), parse("sum(abs(WI))"), PAPER_VOCABULARY).type
      ()

    Source:
      Liu, Kung, Wentzlaff, Evolving Transferable (Neural) Pruning Functions, 2022; reference code.
    """
    limits = checked_limits("paper_mutation", f, limits)
    draws, grammar = Draws.of(key), grammar_of(vocabulary, "uniform")
    replaceable = []
    for subtree in all_subtrees(f, limits):
        goal = Goal(subtree.node.type, informative=bool(subtree.node.type))
        if grammar.is_reachable(goal, subtree.max_depth, subtree.max_size):
            replaceable.append((subtree, goal))
    if not replaceable:
        return f
    subtree, goal = replaceable[draws.index(len(replaceable))]
    height = draws.index(MAX_HEIGHT + 1)
    new = _grow_full(
        draws, grammar, goal, subtree.max_depth, subtree.max_size, subtree.parent_operator, height
    )
    return replace_subtree(f, subtree.path, new)


def paper_crossover(
    key: jax.Array | Draws, a: Expression, b: Expression, limits: Limits | None = None
) -> Expression:
    """Replaces a subtree of `a` by one of `b` of the same type.

    First the type is drawn evenly from those that both formulas have below their roots, then a pair of subtrees.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      a: a formula within the limits.
      b: the formula that the new subtree is taken from.
      limits: largest size and depth of the result; pairs of subtrees that would exceed them are left out.

    Returns:
      A formula of `a.type` within the limits; `a` itself if there is no pair.

    Raises:
      ValueError: if `a` exceeds the limits.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> str(paper_crossover(jax.random.key(0), parse("sum(WI)"), parse("mean(abs(WI))")))
      'sum(abs(WI))'

    Source:
      Liu, Kung, Wentzlaff, Evolving Transferable (Neural) Pruning Functions, 2022; reference code.
    """
    limits = checked_limits("paper_crossover", a, limits)
    draws = Draws.of(key)
    pairs = [
        (subtree, donor.node)
        for subtree in all_subtrees(a, limits)[1:]
        for donor in all_subtrees(b, limits)[1:]
        if donor.node.type == subtree.node.type and subtree.accepts(donor.node)
    ]
    if not pairs:
        return a
    types = sorted({node.type for _, node in pairs})
    type = types[draws.index(len(types))]
    pairs = [(subtree, node) for subtree, node in pairs if node.type == type]
    subtree, node = pairs[draws.index(len(pairs))]
    return replace_subtree(a, subtree.path, node)


def _grow_full(
    draws: Draws,
    grammar: Grammar,
    goal: Goal,
    depth: int,
    size: int,
    parent_operator: str,
    height: int,
) -> Expression:
    """Draws a tree whose branches all have `height` operators where types, depth and size allow."""
    stage: Stage = "branch" if height > 0 else "leaf"
    production = grammar.choices(goal, depth, size, parent_operator, stage).pick(draws.fraction())
    parts = grammar.part_limits(production, depth, parent_operator)
    spare = size - production.nodes - sum(least for _, _, least in parts)
    children = []
    for index, (part, max_depth, least) in enumerate(parts):
        share = spare // (len(parts) - index)  # evenly, so that all branches can be full
        spare -= share
        children.append(
            _grow_full(draws, grammar, part.goal, max_depth, least + share, part.parent_operator, height - 1)
        )
    return assemble(draws, grammar.vocabulary, production, children)
