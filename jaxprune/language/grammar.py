"""Reachability tables: which productions can still be completed within a depth and a size.

For each goal (a type) and depth the table holds the fewest nodes that reach it, so a generator that only picks
productions whose parts fit never dead-ends and never has to throw a tree away.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jaxprune.language.axes import Type
from jaxprune.language.operators import OPERATORS, Operator, Params
from jaxprune.language.productions import Goal, Part, Production, Style, all_productions
from jaxprune.language.vocabulary import OPERANDS, Operand, Vocabulary

CHAINS = {"+": "sum", "-": "sum", "*": "product"}
"""Operators whose nested applications count as one level -> the chain they belong to."""

Stage = Literal["any", "leaf", "branch"]
"""Which productions a step uses where it has the choice: all, leaves, or operators."""

_SELF_UNDOING = frozenset({"abs", "sqrt", "square", "transpose", "inverse"})
_NEVER = 10**6
_SETTLED_DEPTH = 4  # idioms reach three levels down, so shallower rows may still shrink after standing still


class Choices(NamedTuple):
    """Productions that fit, with the running sum of their weights."""

    productions: tuple[Production, ...]
    cumulative: tuple[float, ...]

    def pick(self, fraction: float) -> Production:
        """The production at `fraction`, in [0, 1), of the total weight."""
        index = bisect_right(self.cumulative, fraction * self.cumulative[-1])
        return self.productions[min(index, len(self.productions) - 1)]


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
        self._least: dict[Goal, list[int]] = {goal: [_NEVER] for goal in self._productions}
        self._choices: dict[tuple[Goal, int, int, str, Stage], Choices] = {}
        self._fill_table()
        self._enough = self._largest_need()

    def least_nodes(self, goal: Goal, depth: int) -> int | None:
        """The fewest nodes of a tree that reaches `goal` in `depth` levels, or None if none does."""
        least = self._at(goal, depth)
        return least if least < _NEVER else None

    def is_reachable(self, goal: Goal, depth: int, size: int) -> bool:
        """Whether some tree of at most `size` nodes and `depth` levels reaches `goal`."""
        return self._at(goal, depth) <= min(size, _NEVER - 1)

    def choices(self, goal: Goal, depth: int, size: int, above: str = "", stage: Stage = "any") -> Choices:
        """The productions of `goal` that can be completed, weighted.

        Args:
          goal: must be reachable within `depth` and `size` (see `is_reachable`).
          depth: levels left, this node's included, if it starts a level; one that continues the chain of the
            operator above starts none.
          size: nodes left, this node's included.
          above: the operator above, "" at the root. Nothing is squared, rooted or transposed twice in a row.
          stage: `leaf` and `branch` keep only leaves or operators where some fit; where no leaf fits, `leaf`
            keeps the productions with the smallest trees.

        Returns:
          At least one production.
        """
        key = (goal, depth, min(size, self._enough), above, stage)
        if key not in self._choices:
            self._choices[key] = self._list_choices(*key)
        return self._choices[key]

    def alternatives(self, child_types: Sequence[Type]) -> tuple[Production, ...]:
        """The operators that take values of these types, each with its parameters once."""
        return self._alternatives.get(tuple(child_types), ())

    def rooms(self, production: Production, depth: int, above: str) -> list[tuple[Part, int, int]]:
        """For each part of `production`: the levels it may use and the fewest nodes it then needs."""
        depth += continues_chain(production.head, above)
        return [
            (part, depth - part.levels, self._at(part.goal, depth - part.levels)) for part in production.parts
        ]

    def _list_choices(self, goal: Goal, depth: int, size: int, above: str, stage: Stage) -> Choices:
        steps = self._productions[goal]
        needs = [self._needs(step, depth + continues_chain(step.head, above)) for step in steps]
        fitting = [step for step, nodes in zip(steps, needs, strict=True) if nodes <= size]
        if above in _SELF_UNDOING:
            fitting = [step for step in fitting if step.head != above] or fitting
        if stage == "branch":
            fitting = [step for step in fitting if not step.is_leaf] or fitting
        elif stage == "leaf":
            smallest = [step for step, nodes in zip(steps, needs, strict=True) if nodes == min(needs)]
            fitting = [step for step in fitting if step.is_leaf] or smallest
        return Choices(tuple(fitting), tuple(itertools.accumulate(step.weight for step in fitting)))

    def _fill_table(self) -> None:
        for depth in itertools.count(1):
            row = {goal: self._smallest(steps, depth) for goal, steps in self._productions.items()}
            if depth > _SETTLED_DEPTH and all(row[goal] == self._least[goal][-1] for goal in row):
                return
            for goal, nodes in row.items():
                self._least[goal].append(nodes)

    def _smallest(self, steps: Sequence[Production], depth: int) -> int:
        return min([_NEVER, *(self._needs(step, depth) for step in steps)])

    def _largest_need(self) -> int:
        """The size from which on every production that fits the depth fits the size too."""
        depths = range(1, max(map(len, self._least.values())) + 1)
        steps = [step for group in self._productions.values() for step in group]
        return max(
            [1, *(n for step in steps for depth in depths if (n := self._needs(step, depth)) < _NEVER)]
        )

    def _needs(self, step: Production, depth: int) -> int:
        """The fewest nodes of a tree with this production at its root; `_NEVER` or more if none fits."""
        return step.nodes + sum(part.copies * self._at(part.goal, depth - part.levels) for part in step.parts)

    def _at(self, goal: Goal, depth: int) -> int:
        row = self._least.get(goal)
        return row[min(depth, len(row) - 1)] if row is not None and depth >= 1 else _NEVER


def continues_chain(head: str, above: str) -> bool:
    """Whether `head` right below `above` starts no level: sums within sums, products within products.

    Example:
      >>> continues_chain("-", "+"), continues_chain("*", "+"), continues_chain("/", "/")
      (True, False, False)
    """
    return head in CHAINS and CHAINS[head] == CHAINS.get(above)


def grammar_of(vocabulary: Vocabulary, style: Style = "useful") -> Grammar:
    """The grammar of a vocabulary, built once for each state of the registries.

    Args:
      vocabulary: operands, operators and literals to build from.
      style: `useful` favours what published metrics are made of, `uniform` draws operators evenly.

    Returns:
      Its reachability tables; operators and operands registered so far are in it.

    Raises:
      ValueError: if the vocabulary names what is not registered.
    """
    unknown = [name for name in vocabulary.operands if name not in OPERANDS]
    unknown += [name for name in vocabulary.operators if name not in OPERATORS]
    if unknown:
        raise ValueError(
            f"A vocabulary must be made of registered operands and operators, got {', '.join(unknown)}. "
            "Register them first."
        )
    registered: list[Operator | Operand] = [
        *OPERATORS.values(),
        *(OPERANDS[name] for name in vocabulary.operands),
    ]
    known = _GRAMMARS.get((vocabulary, style))
    if known is None or known[0] != registered:
        if len(_GRAMMARS) >= _MAX_GRAMMARS:
            del _GRAMMARS[next(iter(_GRAMMARS))]
        known = _GRAMMARS[vocabulary, style] = (registered, Grammar(vocabulary, style))
    return known[1]


_MAX_GRAMMARS = 32
_GRAMMARS: dict[tuple[Vocabulary, Style], tuple[list[Operator | Operand], Grammar]] = {}


def _by_child_types(
    productions: Mapping[Goal, Sequence[Production]],
) -> dict[tuple[Type, ...], tuple[Production, ...]]:
    found: dict[tuple[Type, ...], dict[tuple[str, Params], Production]] = {}
    for goal, steps in productions.items():
        for step in steps:
            if step.kind == "operator" and goal.informative:
                types = tuple(part.goal.type for part in step.parts)
                found.setdefault(types, {}).setdefault((step.head, step.params), step)
    return {types: tuple(steps.values()) for types, steps in found.items()}
