"""Mutations of one formula: a new subtree, another node, a part hoisted, constants jittered.

Each is decided by its key alone, keeps the formula's type and stays within the limits. They choose among the formula's
subtrees, each of which knows how large its replacement may be.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax

from jaxprune.language.expression import (
    Expression,
    apply,
    continues_chain,
    literal,
    operand,
    replace_children,
)
from jaxprune.language.grammar import Grammar, grammar_of
from jaxprune.language.operators import OPERATORS, IllTypedError
from jaxprune.language.productions import Goal
from jaxprune.language.sampling import Draws, Limits, grow, is_constant, target_size
from jaxprune.language.vocabulary import Vocabulary

Path = tuple[int, ...]
"""Which child to follow at each node from the root; () is the root."""

_SAME_TYPE_WEIGHT = 4.0
_LEAF_WEIGHT = 0.4
_JITTER_CHANCE, _JITTER_SPREAD = 0.5, 0.5
_SMALLEST_CONSTANT, _LARGEST_CONSTANT = 1e-9, 1e9
_ATTEMPTS = 4


class Subtree(NamedTuple):
    """A part of a formula, and how large its replacement may be.

    Attributes:
      path: how to reach it from the root.
      node: the part itself.
      parent_operator: the operator directly above, "" at the root.
      max_depth: the most levels of a replacement; one more if it continues the chain of the operator above.
      max_size: the most nodes of a replacement.
    """

    path: Path
    node: Expression
    parent_operator: str
    max_depth: int
    max_size: int

    def accepts(self, new: Expression) -> bool:
        """Returns whether the formula stays within its limits when `new` replaces this subtree."""
        own_levels = new.depth - continues_chain(new.operator, self.parent_operator)
        return new.size <= self.max_size and own_levels <= self.max_depth


def all_subtrees(f: Expression, limits: Limits) -> list[Subtree]:
    """Returns every subtree of `f`, the root first, repeated ones each time they appear.

    Args:
      f: a formula within the limits.
      limits: largest size and depth of the formula after a replacement.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> [(str(subtree.node), subtree.max_size) for subtree in all_subtrees(parse("sum(abs(WI))"), Limits(10))]
      [('sum(abs(WI))', 10), ('abs(WI)', 9), ('WI', 8)]
    """
    spare = limits.max_size - f.size
    subtrees = [Subtree((), f, "", limits.max_depth, limits.max_size)]
    for path, node, parent_operator, max_depth, _ in subtrees:  # grows while it is walked
        child_depth = max_depth + continues_chain(node.operator, parent_operator) - 1
        subtrees.extend(
            Subtree((*path, index), child, node.operator, child_depth, spare + child.size)
            for index, child in enumerate(node.children)
        )
    return subtrees


def node_weight(node: Expression) -> float:
    """Returns how often variation picks this node: leaves less often, because most nodes are leaves."""
    return 1.0 if node.children else _LEAF_WEIGHT


def checked_limits(caller: str, f: Expression, limits: Limits | None) -> Limits:
    """Returns the limits after checking that a formula is within them.

    Args:
      caller: named in the error.
      f: the formula to check.
      limits: largest size and depth; None for the default ones.

    Raises:
      ValueError: if `f` exceeds the limits.
    """
    limits = limits or Limits()
    if not limits.allow(f):
        raise ValueError(
            f"{caller} needs a formula of at most {limits.max_size} nodes and depth {limits.max_depth}, got "
            f"{f.size} nodes and depth {f.depth}: {f}. Shorten it or raise the limits."
        )
    return limits


def subtree_at(f: Expression, path: Path) -> Expression:
    """Returns the subtree at `path`."""
    return functools.reduce(lambda node, index: node.children[index], path, f)


def replace_subtree(f: Expression, path: Path, new: Expression) -> Expression:
    """Returns `f` with `new` in place of the subtree at `path`.

    Raises:
      IllTypedError: if an operator above does not accept the type of `new`.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> str(replace_subtree(parse("sum(abs(WI))"), (0, 0), parse("WO")))
      'sum(abs(WO))'
    """
    if not path:
        return new
    children = list(f.children)
    children[path[0]] = replace_subtree(children[path[0]], path[1:], new)
    return replace_children(f, children)


def mutate_subtree(
    key: jax.Array | Draws, f: Expression, vocabulary: Vocabulary, limits: Limits | None = None
) -> Expression:
    """Replaces one subtree of `f` by a random one of the same type.

    A subtree that differs among channels is replaced by one that does too.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      f: a formula within the limits.
      vocabulary: what the new subtree is made of.
      limits: largest size and depth of the result.

    Returns:
      A formula of `f.type` within the limits; `f` itself only if no draw found another (a vocabulary of one formula).

    Raises:
      ValueError: if `f` exceeds the limits.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> f = apply("sum", apply("abs", operand("WI")))
      >>> mutate_subtree(jax.random.key(0), f, PAPER_VOCABULARY).type
      ()
    """
    limits = checked_limits("mutate_subtree", f, limits)
    draws, grammar = Draws.of(key), grammar_of(vocabulary)
    replaceable = []
    for subtree in all_subtrees(f, limits):
        goal = Goal(subtree.node.type, informative=not is_constant(subtree.node))
        if grammar.is_reachable(goal, subtree.max_depth, subtree.max_size):
            replaceable.append((subtree, goal))
    for index in draws.order([node_weight(subtree.node) for subtree, _ in replaceable])[:_ATTEMPTS]:
        (path, node, parent_operator, max_depth, max_size), goal = replaceable[index]
        size = target_size(draws, grammar.least_nodes(goal, max_depth) or 1, max_size)
        new = grow(draws, grammar, goal, max_depth, size, parent_operator)
        if new is not node:
            return replace_subtree(f, path, new)
    return f


def mutate_point(
    key: jax.Array | Draws, f: Expression, vocabulary: Vocabulary, limits: Limits | None = None
) -> Expression:
    """Replaces one node of `f`: an operand or constant by another, an operator by one that accepts the same arguments.

    Types inside the formula may change (`mean(P)` becomes `mean(WI)`) as long as the whole remains well typed.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      f: a formula within the limits.
      vocabulary: what the new node is taken from.
      limits: largest size and depth of the result.

    Returns:
      A formula of `f.type` within the limits; `f` itself if no single node can be replaced.

    Raises:
      ValueError: if `f` exceeds the limits.

    Example:
      >>> from jaxprune.language.vocabulary import Vocabulary
      >>> f = apply("sum", apply("abs", operand("WI")))
      >>> str(mutate_point(jax.random.key(3), f, Vocabulary(("WI",), ("sum", "mean", "abs"))))
      'mean(abs(WI))'
    """
    limits = checked_limits("mutate_point", f, limits)
    draws, grammar = Draws.of(key), grammar_of(vocabulary)
    subtrees = all_subtrees(f, limits)
    for index in draws.order([1.0] * len(subtrees)):
        replacements = _node_replacements(subtrees[index].node, grammar)
        for choice in draws.order([weight for _, weight in replacements]):
            try:
                child = replace_subtree(f, subtrees[index].path, replacements[choice][0])
            except IllTypedError:
                continue
            if child.type == f.type and child is not f and limits.allow(child):
                return child
    return f


def _node_replacements(node: Expression, grammar: Grammar) -> list[tuple[Expression, float]]:
    """Returns other nodes over the same children, with weights; the operators above may refuse their types."""
    if node.children:
        applied = [
            (apply(production.head, *node.children, params=production.params), production.weight)
            for production in grammar.alternatives([child.type for child in node.children])
        ]
        return [(new, weight) for new, weight in applied if new is not node]
    leaves = [operand(name) for name in grammar.vocabulary.operands]
    if is_constant(node):
        leaves += [literal(value) for value in grammar.vocabulary.literals]
    else:
        leaves = [leaf for leaf in leaves if not is_constant(leaf)]
    return [
        (leaf, _SAME_TYPE_WEIGHT if leaf.type == node.type else 1.0)
        for leaf in leaves
        if leaf is not node and bool(leaf.type) == bool(node.type)
    ]


def mutate_hoist(key: jax.Array | Draws, f: Expression, limits: Limits | None = None) -> Expression:
    """Replaces one subtree of `f` by a smaller one of the same type from inside it, which shortens the formula.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      f: a formula within the limits.
      limits: largest size and depth of `f`.

    Returns:
      A smaller formula of `f.type`; `f` itself if nothing inside it can be hoisted.

    Raises:
      ValueError: if `f` exceeds the limits.

    Example:
      >>> f = apply("sqrt", apply("sum", operand("WI")))
      >>> str(mutate_hoist(jax.random.key(0), f))
      'sum(WI)'
    """
    limits = checked_limits("mutate_hoist", f, limits)
    pairs = [
        (subtree.path, inner)
        for subtree in all_subtrees(f, limits)
        for inner in subtree.node.walk()
        if inner.type == subtree.node.type
        and inner is not subtree.node
        and (is_constant(subtree.node) or not is_constant(inner))
        and subtree.accepts(inner)
    ]
    if not pairs:
        return f
    path, inner = pairs[Draws.of(key).index(len(pairs))]
    return replace_subtree(f, path, inner)


def jitter_constants(key: jax.Array | Draws, f: Expression, limits: Limits | None = None) -> Expression:
    """Multiplies constants of `f` by log-normal factors; signs never change, and 0 remains 0.

    Each literal and each continuous parameter (the width of `rbf`) changes with probability one half, and at least
    one of them always does. Results are rounded to three significant digits, so that formulas are easy to read.

    Args:
      key: decides everything; draws from a `Draws` stream continue it.
      f: a formula within the limits.
      limits: largest size and depth of `f`.

    Returns:
      A formula of the same shape; `f` itself if it has no constant but 0.

    Raises:
      ValueError: if `f` exceeds the limits.

    Example:
      >>> f = apply("/", operand("gamma"), literal(0.05))
      >>> child = jitter_constants(jax.random.key(0), f)
      >>> child.children[0] is f.children[0], child.children[1].value > 0
      (True, True)
    """
    limits = checked_limits("jitter_constants", f, limits)
    draws = Draws.of(key)
    paths = [subtree.path for subtree in all_subtrees(f, limits) if _has_constant(subtree.node)]
    if not paths:
        return f
    always_changed = draws.index(len(paths))
    jittered = f
    for index, path in enumerate(paths):  # the shape does not change, so the paths remain valid
        if index == always_changed or draws.fraction() < _JITTER_CHANCE:
            jittered = replace_subtree(jittered, path, _jittered(draws, subtree_at(jittered, path)))
    return jittered


def _has_constant(node: Expression) -> bool:
    """Whether the node is a literal other than 0, or has continuous parameters (unlike the bounds of `slice`)."""
    choices = OPERATORS[node.operator].parameter_choices if node.params else ()
    return node.value != 0 or any(not float(param).is_integer() for choice in choices for param in choice)


def _jittered(draws: Draws, node: Expression) -> Expression:
    """The node with every constant of its own multiplied by a random factor."""
    if node.is_literal:
        return literal(_jittered_number(draws, node.value))
    try:
        params = [_jittered_number(draws, param) for param in node.params]
        return apply(node.operator, *node.children, params=params)
    except IllTypedError:  # a user's operator may bound its parameters
        return node


def _jittered_number(draws: Draws, value: float) -> float:
    magnitude = abs(value) * math.exp(_JITTER_SPREAD * draws.normal())
    magnitude = min(max(magnitude, _SMALLEST_CONSTANT), _LARGEST_CONSTANT)
    return math.copysign(float(f"{magnitude:.3g}"), value) if value else 0.0
