"""The distinct steps that compute a population: equal sub-expressions are one step, whichever formulas they are in.

A step says what it computes from which earlier steps. What streamed moments answer is read from them, and what depends
on the class only through its rows is computed once on all rows. How a step is computed is said in `compute.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from jaxprune.language.axes import SAMPLE_AXES, Type
from jaxprune.language.expression import Expression
from jaxprune.language.operators import Params
from jaxprune.scoring.analysis import (
    View,
    dependence_of,
    evaluated_nodes,
    moment_answer,
    reads_activations,
    swallowed_children,
)
from jaxprune.scoring.class_independent import class_independent_form, set_answer

Kind = Literal["literal", "operand", "moment", "operator", "rows", "statistics", "statistic", "finite"]
"""`rows` selects the rows of some classes, `statistics` are those of all sets of rows at once, of which `statistic` is
one; `finite` is whether all entries of a value are, over all classes."""

Key = tuple[Expression, View | None, str]
"""What a step computes, the same for equal steps of other graphs: a node, where it reads activations, and "value",
"finite" or "statistics"."""


class Node(NamedTuple):
    """One value to compute."""

    kind: Kind
    name: str
    """Of the operand, the operator or the statistic."""
    params: Params
    inputs: tuple[int, ...]
    """Numbers of earlier steps."""
    type: Type
    """Axes of its value for one class and channel; for statistics those of what they are of."""
    per_class: bool
    per_channel: bool
    key: Key

    @property
    def view(self) -> View:
        """Where it reads activations."""
        return self.key[1] or "full"


class Graph:
    """Steps in an order in which every one comes after its inputs.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> graph = Graph()
      >>> graph.add(parse("var(abs(P)) + 1"), "sample")
      5
      >>> [(step.kind, step.name) for step in graph.steps]
      [('operand', 'X'), ('operator', 'abs'), ('statistics', ''), ('statistic', 'var(P)'), ('literal', ''), \
('operator', '+')]
    """

    def __init__(self) -> None:
        self.steps: list[Node] = []
        self._known: dict[Key, int] = {}

    def add(self, node: Expression, view: View) -> int:
        """The step of a node's value; what it needs comes before it."""
        key: Key = (node, view if reads_activations(node) else None, "value")
        found = self._known.get(key)
        return self._add(key, *self._recipe(node, view)) if found is None else found

    def add_finite(self, node: Expression, view: View) -> int:
        """The step that tells where all entries of a node's value are finite, over all classes.

        Over all classes every row is read, so a selection of rows is finite exactly where the value on all rows is. Of
        pairs of rows some are read for no class.
        """
        is_selection = sum(axis in SAMPLE_AXES for axis in node.type) == 1
        form = class_independent_form(node) if is_selection else None
        value = node if form is None else form
        key: Key = (value, view if reads_activations(value) else None, "finite")
        found = self._known.get(key)
        return self._add(key, "finite", "", (self.add(value, view),)) if found is None else found

    def add_soundness(self, f: Expression, view: View) -> tuple[int, ...]:
        """Steps that tell where nothing that is not finite vanished on the way to a function's value."""
        looked_at = (
            node.children[index] for node in evaluated_nodes(f) for index in swallowed_children(node)
        )
        return tuple(dict.fromkeys(self.add_finite(node, view) for node in looked_at))

    def _recipe(self, node: Expression, view: View) -> tuple[Kind, str, tuple[int, ...]]:
        answer = moment_answer(node)
        if answer is not None:
            return "moment", answer, ()
        if not node.children and node.name not in ("P", "Q"):
            return ("operand", node.name, ()) if node.is_operand else ("literal", "", ())
        from_sets = set_answer(node)
        if from_sets is not None:
            key: Key = (from_sets.form, view, "statistics")
            found = self._known.get(key)
            if found is None:
                found = self._add(key, "statistics", "", (self.add(from_sets.form, view),))
            return "statistic", from_sets.name, (found,)
        form = class_independent_form(node)
        if form is not None and form is not node:
            return "rows", "", (self.add(form, view),)
        return "operator", node.operator, tuple(self.add(child, view) for child in node.children)

    def _add(self, key: Key, kind: Kind, name: str, inputs: tuple[int, ...]) -> int:
        node = key[0]
        is_value = key[2] == "value"
        depends = dependence_of(node)
        step = Node(
            kind,
            name,
            node.params if kind == "operator" else (),
            inputs,
            () if kind == "finite" else node.type,
            depends.per_class and is_value,
            depends.channel,
            key,
        )
        self.steps.append(step)
        self._known[key] = len(self.steps) - 1
        return len(self.steps) - 1


Item = TypeVar("Item")
_SCRATCH = 3
"""What a step needs besides while it sums up, in sizes of its input."""


def is_large(step: Node) -> bool:
    """Whether its value is no scalar, or statistics of one."""
    return step.type != () or step.kind == "statistics"


def is_reduction(graph: Graph, number: int) -> bool:
    """Whether a step makes a scalar of a larger value."""
    step = graph.steps[number]
    return not is_large(step) and any(is_large(graph.steps[each]) for each in step.inputs)


def needed_steps(graph: Graph, wanted: Iterable[int], known: Container[int] = ()) -> list[int]:
    """Steps that wanted ones need, in order; what is known needs nothing, and is not named."""
    seen: set[int] = set()
    stack = list(wanted)
    while stack:
        number = stack.pop()
        if number not in seen and number not in known:
            seen.add(number)
            stack.extend(graph.steps[number].inputs)
    return sorted(seen)


def levels_of(graph: Graph, needed: Sequence[int]) -> dict[int, int]:
    """Step -> how many rounds of reductions, one after another, come before its value is there."""
    levels: dict[int, int] = {}
    for number in needed:
        below = max((levels.get(each, 0) for each in graph.steps[number].inputs), default=0)
        levels[number] = below + is_reduction(graph, number)
    return levels


def last_levels(
    graph: Graph, needed: Sequence[int], levels: Mapping[int, int], wanted: Iterable[int]
) -> dict[int, int]:
    """Step -> the level at which it is read for the last time; a reduction reads through large values."""
    found = dict(levels)
    for number in reversed(needed):
        read_at = found[number] if is_large(graph.steps[number]) else levels[number]
        for each in graph.steps[number].inputs:
            if each in found:
                found[each] = max(found[each], read_at)
    return found | dict.fromkeys(wanted, len(graph.steps))


def cone_of(graph: Graph, reductions: Iterable[int]) -> list[int]:
    """Reductions and the large values that they need, in order."""
    stack = list(reductions)
    found = set(stack)
    while stack:
        for number in graph.steps[stack.pop()].inputs:
            if is_large(graph.steps[number]) and number not in found:
                found.add(number)
                stack.append(number)
    return sorted(found)


def last_uses(graph: Graph, order: Sequence[int], kept: Container[int] = ()) -> dict[int, list[int]]:
    """Step -> steps of those in `order` whose values nobody reads after it, but for what is kept."""
    last = {each: number for number in order for each in graph.steps[number].inputs}
    found: dict[int, list[int]] = {}
    for each in order:
        if each in last and each not in kept:
            found.setdefault(last[each], []).append(each)
    return found


def peak_size(graph: Graph, order: Sequence[int], size: Callable[[Node], int]) -> int:
    """The most that is held at once while steps are computed, in the unit of `size`; operands are there anyway."""
    uses = last_uses(graph, order)
    total = peak = 0
    for number in order:
        step = graph.steps[number]
        inputs = [graph.steps[each] for each in step.inputs]
        own = size(step) if step.inputs and is_large(step) else 0
        total += own
        is_plain = step.kind == "operator" and is_large(step) and step.name not in ("rbf", "inverse")
        scratch = (
            0 if is_plain else _SCRATCH * max((size(each) for each in inputs if is_large(each)), default=0)
        )
        peak = max(peak, total + scratch)
        freed = (graph.steps[each] for each in uses.get(number, ()))
        total -= sum(size(each) for each in freed if each.inputs and is_large(each))
    return peak


def fitting(
    reductions: Sequence[Item],
    block: int,
    holds: Callable[[Sequence[Item], int], int],
    most: int,
    smaller: Callable[[int], int],
) -> Iterator[tuple[Sequence[Item], int]]:
    """Reductions in parts, each with a block, for which `holds(part, block)` is at most `most`.

    Blocks become smaller only where a single reduction is too large; the smallest is taken as it is.
    """
    if holds(reductions, block) <= most or (len(reductions) == 1 and smaller(block) == block):
        yield reductions, block
    elif len(reductions) > 1:
        half = len(reductions) // 2
        for part in (reductions[:half], reductions[half:]):
            yield from fitting(part, block, holds, most, smaller)
    else:
        yield from fitting(reductions, smaller(block), holds, most, smaller)
