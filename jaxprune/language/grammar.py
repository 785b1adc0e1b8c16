"""Grammars: which productions can still be completed within a depth and a size.

For each goal and depth a table holds the fewest nodes of a tree that reaches the goal. A generator that only picks
productions whose parts fit therefore never gets stuck and never discards a tree.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jaxprune.language.axes import Type
from jaxprune.language.expression import continues_chain
from jaxprune.language.operators import OPERATORS, Operator, Params
from jaxprune.language.productions import Goal, Part, Production, Style, all_productions
from jaxprune.language.vocabulary import OPERANDS, Operand, Vocabulary

Stage = Literal["any", "leaf", "branch"]
"""Which productions are preferred where several fit: no preference, leaves, or operators."""

_SELF_UNDOING = frozenset({"abs", "sqrt", "square", "transpose", "inverse"})
_UNREACHABLE = 10**6
_MIN_TABLE_DEPTH = (
    4  # some productions span three levels, so a shallower table may repeat a row and still change later
)
_MAX_GRAMMARS = 32


class Choices(NamedTuple):
    """Productions that fit, with the running sum of their weights."""

    productions: tuple[Production, ...]
    cumulative: tuple[float, ...]

    def pick(self, fraction: float) -> Production:
        """Returns the production at `fraction`, in [0, 1), of the total weight."""
        index = bisect_right(self.cumulative, fraction * self.cumulative[-1])
        return self.productions[min(index, len(self.productions) - 1)]


class PartLimits(NamedTuple):
    """A part of a production, how many levels it may have, and the fewest nodes it then needs."""

    part: Part
    max_depth: int
    least_nodes: int


class Grammar:
    """The productions of a vocabulary, and for every goal and depth the fewest nodes that reach it.

    Example:
      >>> from jaxprune.language.vocabulary import PAPER_VOCABULARY
      >>> grammar = grammar_of(PAPER_VOCABULARY)  # its only scalar operands are class sizes, the same for all channels
      >>> [grammar.least_nodes(Goal(()), depth) for depth in (1, 2, 8)]
      [None, 2, 2]
    """

    def __init__(self, vocabulary: Vocabulary, style: Style = "useful") -> None:
        self.vocabulary = vocabulary
        self._productions = all_productions(vocabulary, style)
        self._alternatives = _by_child_types(self._productions)
        self._choices: dict[tuple[Goal, int, int, str, Stage], Choices] = {}
        self._by_productions: dict[tuple[int, ...], Choices] = {}  # most limits leave the same productions
        self._table: dict[Goal, list[int]] = {goal: [_UNREACHABLE] for goal in self._productions}
        self._fill_table()
        # From this size on, every production that fits the depth fits the size too.
        needed = [
            self._least_with(production, depth)
            for productions in self._productions.values()
            for production in productions
            for depth in range(1, max(map(len, self._table.values())) + 1)
        ]
        self._sufficient_size = max([1, *(size for size in needed if size < _UNREACHABLE)])

    def least_nodes(self, goal: Goal, depth: int) -> int | None:
        """Returns the fewest nodes of a tree that reaches a goal.

        Args:
          goal: what the tree must compute.
          depth: the most levels it may have.

        Returns:
          The number of nodes, or None if no such tree exists.
        """
        least = self._least(goal, depth)
        return least if least < _UNREACHABLE else None

    def is_reachable(self, goal: Goal, depth: int, size: int) -> bool:
        """Returns whether some tree reaches a goal.

        Args:
          goal: what the tree must compute.
          depth: the most levels it may have.
          size: the most nodes it may have.
        """
        return self._least(goal, depth) <= min(size, _UNREACHABLE - 1)

    def choices(
        self, goal: Goal, depth: int, size: int, parent_operator: str = "", stage: Stage = "any"
    ) -> Choices:
        """Returns the productions of `goal` that can be completed, with their weights.

        Args:
          goal: must be reachable within `depth` and `size` (see `is_reachable`).
          depth: the most levels of the tree; a node that continues its parent's chain of sums or products starts no
            level of its own.
          size: the most nodes of the tree.
          parent_operator: the operator directly above, "" at the root. Nothing is squared, rooted or transposed
            twice in a row.
          stage: `leaf` and `branch` select only leaves or operators if some fit; if no leaf fits, `leaf` selects
            the productions with the smallest trees.

        Returns:
          At least one production.
        """
        key = (goal, depth, min(size, self._sufficient_size), parent_operator, stage)
        if key not in self._choices:
            self._choices[key] = self._list_choices(*key)
        return self._choices[key]

    def alternatives(self, child_types: Sequence[Type]) -> tuple[Production, ...]:
        """Returns the operators that accept values of these types, each once for each choice of its parameters."""
        return self._alternatives.get(tuple(child_types), ())

    def part_limits(self, production: Production, depth: int, parent_operator: str) -> list[PartLimits]:
        """Returns what each part of a production may use and needs.

        Args:
          production: one that can be completed.
          depth: the most levels of its tree.
          parent_operator: the operator directly above, "" at the root.

        Returns:
          The limits of `production.parts`, in their order.
        """
        depth += continues_chain(production.head, parent_operator)
        return [
            PartLimits(part, depth - part.levels, self._least(part.goal, depth - part.levels))
            for part in production.parts
        ]

    def _list_choices(self, goal: Goal, depth: int, size: int, parent_operator: str, stage: Stage) -> Choices:
        productions = self._productions[goal]
        sizes = [
            self._least_with(production, depth + continues_chain(production.head, parent_operator))
            for production in productions
        ]
        fitting = [production for production, least in zip(productions, sizes, strict=True) if least <= size]
        if parent_operator in _SELF_UNDOING:
            fitting = [production for production in fitting if production.head != parent_operator] or fitting
        if stage == "branch":
            fitting = [production for production in fitting if not production.is_leaf] or fitting
        elif stage == "leaf":
            fitting = [production for production in fitting if production.is_leaf] or [
                production
                for production, least in zip(productions, sizes, strict=True)
                if least == min(sizes)
            ]
        weights = itertools.accumulate(production.weight for production in fitting)
        identity = tuple(map(id, fitting))
        return self._by_productions.setdefault(identity, Choices(tuple(fitting), tuple(weights)))

    def _fill_table(self) -> None:
        """Adds rows for greater and greater depths until nothing changes."""
        for depth in itertools.count(1):
            row = {
                goal: min(
                    [_UNREACHABLE, *(self._least_with(production, depth) for production in productions)]
                )
                for goal, productions in self._productions.items()
            }
            if depth > _MIN_TABLE_DEPTH and all(row[goal] == self._table[goal][-1] for goal in row):
                return
            for goal, least in row.items():
                self._table[goal].append(least)

    def _least_with(self, production: Production, depth: int) -> int:
        """The fewest nodes of a tree with this production at its root; `_UNREACHABLE` or more if there is none."""
        return production.nodes + sum(
            part.copies * self._least(part.goal, depth - part.levels) for part in production.parts
        )

    def _least(self, goal: Goal, depth: int) -> int:
        """The fewest nodes of a tree that reaches the goal; `_UNREACHABLE` if there is none."""
        row = self._table.get(goal)
        return row[min(depth, len(row) - 1)] if row is not None and depth >= 1 else _UNREACHABLE


def grammar_of(vocabulary: Vocabulary, style: Style = "useful") -> Grammar:
    """Returns the grammar of a vocabulary, built once for each state of the registries.

    Args:
      vocabulary: operands, operators and literals to build from.
      style: `useful` favours what published metrics are made of, `uniform` draws operators evenly.

    Returns:
      A grammar with the operators and operands registered so far.

    Raises:
      ValueError: if the vocabulary names an operand or an operator that is not registered.
    """
    unknown = [name for name in vocabulary.operands if name not in OPERANDS]
    unknown += [name for name in vocabulary.operators if name not in OPERATORS]
    if unknown:
        raise ValueError(
            f"A vocabulary must be made of registered operands and operators, got {', '.join(unknown)}. "
            "Register them first."
        )
    operands = [OPERANDS[name] for name in vocabulary.operands]
    registered: list[Operator | Operand] = [*OPERATORS.values(), *operands]
    cached = _GRAMMARS.get((vocabulary, style))
    if cached is not None and cached[0] == registered:
        return cached[1]
    if len(_GRAMMARS) >= _MAX_GRAMMARS:
        del _GRAMMARS[next(iter(_GRAMMARS))]
    grammar = Grammar(vocabulary, style)
    _GRAMMARS[vocabulary, style] = (registered, grammar)
    return grammar


_GRAMMARS: dict[tuple[Vocabulary, Style], tuple[list[Operator | Operand], Grammar]] = {}


def _by_child_types(
    productions: Mapping[Goal, Sequence[Production]],
) -> dict[tuple[Type, ...], tuple[Production, ...]]:
    """Returns the single operators among the productions, by the types of their arguments."""
    by_types: dict[tuple[Type, ...], dict[tuple[str, Params], Production]] = {}
    for goal, alternatives in productions.items():
        for production in alternatives:
            if production.kind == "operator" and goal.informative:
                types = tuple(part.goal.type for part in production.parts)
                by_types.setdefault(types, {}).setdefault((production.head, production.params), production)
    return {types: tuple(group.values()) for types, group in by_types.items()}
