"""Formulas become a graph of the distinct values to compute: equal sub-expressions are one node for all formulas.

A node says what it computes from which earlier nodes. Where a moment is the value, the node reads it; what depends on
the class only through which rows it selects is computed once on all rows (see `analysis`). `compute` says how a node is
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

from jaxprune.language.axes import SAMPLE_AXES, Type
from jaxprune.language.expression import Expression
from jaxprune.language.operators import Params
from jaxprune.scoring.analysis import (
    View,
    class_independent_form,
    dependence_of,
    evaluated_nodes,
    moment_answer,
    reads_activations,
    set_answer,
    swallowed_children,
)

Kind = Literal["literal", "operand", "moment", "operator", "rows", "statistics", "statistic", "finite"]
"""`rows` selects the rows of some classes, `statistics` are those of all sets of rows at once, of which `statistic` is
one; `finite` says whether all entries of a value are finite, over all classes."""

Key = tuple[Expression, View | None, str]
"""What a node computes, the same for equal nodes of other graphs: an expression, where it reads activations (None if it
reads none), and "value", "finite" or "statistics"."""

Item = TypeVar("Item")
_SCRATCH = 3
"""Memory that a node needs while it sums up, in sizes of its input."""


class Node(NamedTuple):
    """One value to compute."""

    kind: Kind
    name: str
    """Of the operand, the operator or the statistic."""
    params: Params
    inputs: tuple[int, ...]
    """Numbers of earlier nodes."""
    type: Type
    """Axes of its value for one class and channel; for statistics those of the value that they describe."""
    per_class: bool
    per_channel: bool
    is_reduction: bool
    """Whether it makes a scalar of a larger value."""
    key: Key

    @property
    def view(self) -> View:
        """Where it reads activations."""
        return self.key[1] or "full"

    @property
    def is_large(self) -> bool:
        """Whether its value is not a scalar, or statistics of a value."""
        return self.type != () or self.kind == "statistics"


class Graph:
    """Nodes in an order in which every one comes after its inputs.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> graph = Graph()
      >>> graph.add(parse("var(abs(P)) + 1"), "sample")
      5
      >>> [(node.kind, node.name) for node in graph.nodes]
      [('operand', 'X'), ('operator', 'abs'), ('statistics', ''), ('statistic', 'var(P)'), ('literal', ''), \
('operator', '+')]
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._numbers: dict[Key, int] = {}

    def add(self, expression: Expression, view: View) -> int:
        """Adds the node of an expression's value, after the nodes that it needs, unless it is there.

        Args:
          expression: what to compute.
          view: where it reads activations.

        Returns:
          The number of the node.
        """
        key: Key = (expression, view if reads_activations(expression) else None, "value")
        if key in self._numbers:
            return self._numbers[key]
        moment, of_sets = moment_answer(expression), set_answer(expression)
        if moment is not None:
            return self._append(key, "moment", moment, ())
        if not expression.children and expression.name not in ("P", "Q"):
            kind: Kind = "operand" if expression.is_operand else "literal"
            return self._append(key, kind, expression.name if expression.is_operand else "", ())
        if of_sets is not None:
            statistics: Key = (of_sets.form, view, "statistics")
            if statistics not in self._numbers:
                self._append(statistics, "statistics", "", (self.add(of_sets.form, view),))
            return self._append(key, "statistic", of_sets.name, (self._numbers[statistics],))
        form = class_independent_form(expression)
        if form is not None and form is not expression:
            return self._append(key, "rows", "", (self.add(form, view),))
        inputs = tuple(self.add(child, view) for child in expression.children)
        return self._append(key, "operator", expression.operator, inputs)

    def add_finite(self, expression: Expression, view: View) -> int:
        """Adds the node that says where all entries of an expression's value are finite, over all classes.

        Over all classes every row is read, so a row selection is finite exactly where the value on all rows is. This
        does not hold for selections of pairs of rows, some of which no class reads.

        Args:
          expression: whose value is checked.
          view: where it reads activations.

        Returns:
          The number of the node.
        """
        is_selection = sum(axis in SAMPLE_AXES for axis in expression.type) == 1
        form = class_independent_form(expression) if is_selection else None
        value = expression if form is None else form
        key: Key = (value, view if reads_activations(value) else None, "finite")
        if key in self._numbers:
            return self._numbers[key]
        return self._append(key, "finite", "", (self.add(value, view),))

    def add_soundness(self, f: Expression, view: View) -> tuple[int, ...]:
        """Adds nodes that say whether a non-finite value vanished on the way to a function's value.

        Args:
          f: the function.
          view: where it reads activations.

        Returns:
          The numbers of these nodes: the function is sound where all of them are 1.
        """
        checked = (node.children[index] for node in evaluated_nodes(f) for index in swallowed_children(node))
        return tuple(dict.fromkeys(self.add_finite(expression, view) for expression in checked))

    def _append(self, key: Key, kind: Kind, name: str, inputs: tuple[int, ...]) -> int:
        """Appends a node and returns its number."""
        expression, _, content = key
        depends = dependence_of(expression)
        node = Node(
            kind,
            name,
            expression.params if kind == "operator" else (),
            inputs,
            () if kind == "finite" else expression.type,
            depends.per_class and content == "value",
            depends.channel,
            is_reduction=False,
            key=key,
        )
        is_reduction = not node.is_large and any(self.nodes[number].is_large for number in inputs)
        self.nodes.append(node._replace(is_reduction=is_reduction))
        self._numbers[key] = len(self.nodes) - 1
        return len(self.nodes) - 1


def needed_nodes(graph: Graph, wanted: Iterable[int], known: Container[int] = ()) -> list[int]:
    """Returns the nodes that wanted ones need, themselves included, in order.

    Args:
      graph: where the nodes are.
      wanted: numbers of nodes.
      known: nodes whose values are there: they are left out, and so is what only they need.
    """
    needed: set[int] = set()
    stack = list(wanted)
    while stack:
        number = stack.pop()
        if number not in needed and number not in known:
            needed.add(number)
            stack.extend(graph.nodes[number].inputs)
    return sorted(needed)


def levels_of(
    graph: Graph, needed: Sequence[int], wanted: Iterable[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Says after how many reductions values are computed, and until when they are read.

    Args:
      graph: where the nodes are.
      needed: nodes in order; others count as level 0.
      wanted: nodes that are read after everything else.

    Returns:
      For each node its level, the number of reductions that lead to its value one after another; and the level at which
      it is read for the last time (reductions read through large values).
    """
    levels: dict[int, int] = {}
    for number in needed:
        node = graph.nodes[number]
        below = max((levels.get(i, 0) for i in node.inputs), default=0)
        levels[number] = below + node.is_reduction
    last = dict(levels)
    for number in reversed(needed):
        node = graph.nodes[number]
        read_at = last[number] if node.is_large else levels[number]
        for i in node.inputs:
            if i in last:
                last[i] = max(last[i], read_at)
    return levels, last | dict.fromkeys(wanted, len(graph.nodes))


def cone_of(graph: Graph, reductions: Iterable[int]) -> list[int]:
    """Returns reductions and the large values that they need, in order.

    Args:
      graph: where the nodes are.
      reductions: numbers of nodes.
    """
    stack = list(reductions)
    cone = set(stack)
    while stack:
        for number in graph.nodes[stack.pop()].inputs:
            if graph.nodes[number].is_large and number not in cone:
                cone.add(number)
                stack.append(number)
    return sorted(cone)


def last_uses(graph: Graph, order: Sequence[int], permanent: Container[int] = ()) -> dict[int, list[int]]:
    """Returns for each node those nodes of `order` whose values no later one reads.

    Args:
      graph: where the nodes are.
      order: nodes in the order in which they are computed.
      permanent: nodes whose values are needed afterwards, and are left out.
    """
    last = {i: number for number in order for i in graph.nodes[number].inputs}
    uses: dict[int, list[int]] = {}
    for number in order:
        if number in last and number not in permanent:
            uses.setdefault(last[number], []).append(number)
    return uses


def peak_size(graph: Graph, order: Sequence[int], size: Callable[[Node], int]) -> int:
    """Returns the most that large values take at once while nodes are computed, without operands.

    Args:
      graph: where the nodes are.
      order: nodes in the order in which they are computed.
      size: of the value of a node, in any unit.

    Returns:
      The peak in that unit.
    """
    uses = last_uses(graph, order)
    total = peak = 0
    for number in order:
        node = graph.nodes[number]
        total += size(node) if node.inputs and node.is_large else 0
        scratch = 0
        if node.kind != "operator" or not node.is_large or node.name in ("rbf", "inverse"):
            inputs = [graph.nodes[i] for i in node.inputs]
            scratch = _SCRATCH * max((size(value) for value in inputs if value.is_large), default=0)
        peak = max(peak, total + scratch)
        freed = (graph.nodes[i] for i in uses.get(number, ()))
        total -= sum(size(value) for value in freed if value.inputs and value.is_large)
    return peak


def split_to_fit(
    reductions: Sequence[Item],
    block: int,
    size_of: Callable[[Sequence[Item], int], int],
    max_size: int,
    next_block: Callable[[int], int],
) -> Iterator[tuple[Sequence[Item], int]]:
    """Splits reductions into parts, each with a block size, so that each part fits.

    Blocks become smaller only where a single reduction is too large; the smallest block is used in any case.

    Args:
      reductions: what to split.
      block: size of the blocks to begin with.
      size_of: size of a part when it is computed in such blocks.
      max_size: the largest size that fits.
      next_block: the next smaller block; the smallest one is followed by itself.

    Yields:
      (part, block) pairs.
    """
    if size_of(reductions, block) <= max_size or (len(reductions) == 1 and next_block(block) == block):
        yield reductions, block
    elif len(reductions) > 1:
        half = len(reductions) // 2
        for part in (reductions[:half], reductions[half:]):
            yield from split_to_fit(part, block, size_of, max_size, next_block)
    else:
        yield from split_to_fit(reductions, next_block(block), size_of, max_size, next_block)
