"""Mutations of one formula: a new subtree, another node, a part hoisted, constants jittered.

Each is decided by its key alone, keeps the type and stays within the limits.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax

from jaxprune.language.expression import Expression, apply, literal, operand, replace_children
from jaxprune.language.grammar import Grammar, continues_chain, grammar_of
from jaxprune.language.operators import OPERATORS, IllTypedError
from jaxprune.language.productions import Goal
from jaxprune.language.sampling import Draws, Limits, grow, is_constant, target_size
from jaxprune.language.vocabulary import Vocabulary

_SAME_TYPE_WEIGHT = 4.0
_JITTER_CHANCE, _JITTER_SPREAD = 0.5, 0.5
_SMALLEST_CONSTANT, _LARGEST_CONSTANT = 1e-9, 1e9
_ATTEMPTS = 4


def mutate_subtree(
    key: jax.Array | Draws, f: Expression, vocabulary: Vocabulary, limits: Limits | None = None
) -> Expression:
    """`f` with one subtree replaced by a random one of the same type.

    A subtree that differs among channels is replaced by one that does too.

    Args:
      key: decides everything; a `Draws` stream is read on.
      f: a formula within the limits.
      vocabulary: what the new subtree is made of.
      limits: largest size and depth of the result.

    Returns:
      A formula of `f.type` within the limits; `f` itself only if no draw found another (a vocabulary of one formula).

    Raises:
      ValueError: if `f` is beyond the limits.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> f = apply("sum", apply("abs", operand("WI")))
      >>> mutate_subtree(jax.random.key(0), f, PAPER_VOCABULARY).type
      ()
    """
    limits = require_within("mutate_subtree", f, limits)
    draws, grammar = Draws.of(key), grammar_of(vocabulary)
    sites = [s for s in all_subtrees(f, limits) if grammar.is_reachable(goal_of(s.node), s.depth, s.size)]
    for index in draws.order([node_weight(site.node) for site in sites])[:_ATTEMPTS]:
        site = sites[index]
        goal = goal_of(site.node)
        least = grammar.least_nodes(goal, site.depth) or 1
        new = grow(draws, grammar, goal, site.depth, target_size(draws, least, site.size), site.above)
        if new is not site.node:
            return transplant(f, site.path, new)
    return f


def mutate_point(
    key: jax.Array | Draws, f: Expression, vocabulary: Vocabulary, limits: Limits | None = None
) -> Expression:
    """`f` with one node replaced: an operand or constant by another, an operator by one that takes the same arguments.

    A replacement may change types on the way (`mean(P)` becomes `mean(WI)`) as long as the whole stays well typed.

    Args:
      key: decides everything; a `Draws` stream is read on.
      f: a formula within the limits.
      vocabulary: what the new node is taken from.
      limits: largest size and depth of the result.

    Returns:
      A formula of `f.type` within the limits; `f` itself if no single node can be replaced.

    Raises:
      ValueError: if `f` is beyond the limits.

    Example:
      >>> from jaxprune.language.vocabulary import Vocabulary
      >>> f = apply("sum", apply("abs", operand("WI")))
      >>> str(mutate_point(jax.random.key(3), f, Vocabulary(("WI",), ("sum", "mean", "abs"))))
      'mean(abs(WI))'
    """
    limits = require_within("mutate_point", f, limits)
    draws, grammar = Draws.of(key), grammar_of(vocabulary)
    sites = all_subtrees(f, limits)
    for index in draws.order([1.0] * len(sites)):
        site = sites[index]
        options = _replacements(site.node, grammar)
        for option in draws.order([weight for _, weight in options]):
            new = options[option][0]
            try:
                child = transplant(f, site.path, new)
            except IllTypedError:
                continue
            if child.type == f.type and child is not f and limits.allow(child):
                return child
    return f


def mutate_hoist(key: jax.Array | Draws, f: Expression, limits: Limits | None = None) -> Expression:
    """`f` with one subtree replaced by a smaller one from inside it, of the same type: it gets shorter.

    Args:
      key: decides everything; a `Draws` stream is read on.
      f: a formula within the limits.
      limits: largest size and depth of `f`.

    Returns:
      A smaller formula of `f.type`; `f` itself if nothing inside it can be hoisted.

    Raises:
      ValueError: if `f` is beyond the limits.

    Example:
      >>> f = apply("sqrt", apply("sum", operand("WI")))
      >>> str(mutate_hoist(jax.random.key(0), f))
      'sum(WI)'
    """
    limits = require_within("mutate_hoist", f, limits)
    pairs = []
    for site in all_subtrees(f, limits):
        inner = [node for node in site.node.walk() if node.type == site.node.type and node is not site.node]
        inner = inner if is_constant(site.node) else [node for node in inner if not is_constant(node)]
        pairs += [(site, node) for node in inner if site.fits(node)]
    if not pairs:
        return f
    site, node = pairs[Draws.of(key).index(len(pairs))]
    return transplant(f, site.path, node)


def jitter_constants(key: jax.Array | Draws, f: Expression, limits: Limits | None = None) -> Expression:
    """`f` with constants multiplied by log-normal factors; signs never change and 0 stays 0.

    Each literal and each continuous parameter (the width of `rbf`) changes with probability one half, at least
    one of them always; results keep three significant digits so that formulas stay readable.

    Args:
      key: decides everything; a `Draws` stream is read on.
      f: a formula within the limits.
      limits: largest size and depth of `f`.

    Returns:
      A formula of the same shape; `f` itself if it has no constant but 0.

    Raises:
      ValueError: if `f` is beyond the limits.

    Example:
      >>> f = apply("/", operand("gamma"), literal(0.05))
      >>> child = jitter_constants(jax.random.key(0), f)
      >>> child.children[0] is f.children[0], child.children[1].value > 0
      (True, True)
    """
    limits = require_within("jitter_constants", f, limits)
    draws = Draws.of(key)
    sites = [site for site in all_subtrees(f, limits) if _has_constant(site.node)]
    if not sites:
        return f
    certain = draws.index(len(sites))
    changed = f
    for index, site in enumerate(sites):  # the shape stays, so the paths do
        if index == certain or draws.fraction() < _JITTER_CHANCE:
            node = subtree_at(changed, site.path)
            changed = transplant(changed, site.path, _jittered(draws, node))
    return changed


def goal_of(node: Expression) -> Goal:
    """What a replacement for `node` must be: of its type, and different among channels if `node` is."""
    return Goal(node.type, not is_constant(node))


def _replacements(node: Expression, grammar: Grammar) -> list[tuple[Expression, float]]:
    """Other nodes over the same children, weighted; whether the types above take them is for the caller to try."""
    if node.children:
        steps = grammar.alternatives([child.type for child in node.children])
        made = [(apply(step.head, *node.children, params=step.params), step.weight) for step in steps]
        return [(new, weight) for new, weight in made if new is not node]
    vocabulary = grammar.vocabulary
    leaves = [operand(name) for name in vocabulary.operands]
    if is_constant(node):
        leaves += [literal(value) for value in vocabulary.literals]
    else:
        leaves = [leaf for leaf in leaves if not is_constant(leaf)]
    return [
        (leaf, _SAME_TYPE_WEIGHT if leaf.type == node.type else 1.0)
        for leaf in leaves
        if leaf is not node and bool(leaf.type) == bool(node.type)
    ]


def _has_constant(node: Expression) -> bool:
    return node.value != 0 or (bool(node.params) and _takes_any_width(node.operator))


def _takes_any_width(operator: str) -> bool:
    """Whether an operator's parameters are continuous, unlike the bounds of `slice`."""
    return any(
        not float(param).is_integer() for choice in OPERATORS[operator].parameter_choices for param in choice
    )


def _jittered(draws: Draws, node: Expression) -> Expression:
    if node.is_literal:
        return literal(_jitter(draws, node.value))
    try:
        return apply(node.operator, *node.children, params=[_jitter(draws, param) for param in node.params])
    except IllTypedError:  # an operator of one's own may bound its parameters
        return node


def _jitter(draws: Draws, value: float) -> float:
    size = min(
        max(abs(value) * math.exp(_JITTER_SPREAD * draws.normal()), _SMALLEST_CONSTANT), _LARGEST_CONSTANT
    )
    return math.copysign(float(f"{size:.3g}"), value) if value else 0.0


# === merged: """Sites: the places in a formula where another subtree may stand, and how much room each

Path = tuple[int, ...]
"""Which child to follow at each node from the root; () is the root."""

_LEAF_WEIGHT = 0.4


class Subtree(NamedTuple):
    """A place in a formula.

    Attributes:
      path: how to get there from the root.
      node: the subtree that stands there.
      above: the operator right above, "" at the root.
      depth: levels a subtree there may have; one more if it continues the chain of the operator above.
      size: nodes a subtree there may have.
    """

    path: Path
    node: Expression
    above: str
    depth: int
    size: int

    def fits(self, new: Expression) -> bool:
        """Whether the formula stays within its limits with `new` here."""
        return new.size <= self.size and new.depth - continues_chain(new.operator, self.above) <= self.depth


def all_subtrees(f: Expression, limits: Limits) -> list[Subtree]:
    """Every place in `f`, the root first, repeated subtrees once for each place.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> [(str(site.node), site.size) for site in all_subtrees(parse("sum(abs(WI))"), Limits(max_size=10))]
      [('sum(abs(WI))', 10), ('abs(WI)', 9), ('WI', 8)]
    """
    slack = limits.max_size - f.size
    found = [Subtree((), f, "", limits.max_depth, limits.max_size)]
    for site in found:  # grows while it is walked
        below = site.depth + continues_chain(site.node.operator, site.above) - 1
        found.extend(
            Subtree((*site.path, index), child, site.node.operator, below, slack + child.size)
            for index, child in enumerate(site.node.children)
        )
    return found


def node_weight(node: Expression) -> float:
    """How often variation picks this node: leaves less often, since most nodes are leaves."""
    return 1.0 if node.children else _LEAF_WEIGHT


def require_within(caller: str, f: Expression, limits: Limits | None) -> Limits:
    """The limits, the default ones for None, after checking that `f` is within them.

    Raises:
      ValueError: if it is not.
    """
    limits = limits or Limits()
    if not limits.allow(f):
        raise ValueError(
            f"{caller} needs a formula of at most {limits.max_size} nodes and depth {limits.max_depth}, got "
            f"{f.size} nodes and depth {f.depth}: {f}. Shorten it or raise the limits."
        )
    return limits


def subtree_at(f: Expression, path: Path) -> Expression:
    """The subtree at `path`."""
    return functools.reduce(lambda node, index: node.children[index], path, f)


def transplant(f: Expression, path: Path, new: Expression) -> Expression:
    """`f` with `new` at `path`.

    Raises:
      IllTypedError: if an operator above does not take the type of `new`.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> str(transplant(parse("sum(abs(WI))"), (0, 0), parse("WO")))
      'sum(abs(WO))'
    """
    if not path:
        return new
    children = list(f.children)
    children[path[0]] = transplant(children[path[0]], path[1:], new)
    return replace_children(f, children)
