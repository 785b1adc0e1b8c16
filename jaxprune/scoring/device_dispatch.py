"""The calls that evaluate a graph on a device, planned from types and shapes alone before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxprune.language.axes import is_position_axis
from jaxprune.language.operators import OPERATORS
from jaxprune.scoring.device_programs import STACK_SIZES, Programs, Spec, ValueSpec, is_traced
from jaxprune.scoring.graph import (
    Graph,
    Node,
    cone_of,
    fitting,
    is_large,
    is_reduction,
    last_levels,
    levels_of,
    needed_steps,
    peak_size,
)

VALUE_SHARE = 16
"""A value may take a sixteenth of the budget; larger ones are computed in blocks of channels."""
JOB_SHARE = 4
"""What is held at once for a block may take a quarter."""
STACK_BYTES = 32 << 20
"""Of the largest value of a stack: filling up less costs no more than a call."""
SCALAR = ValueSpec((), is_scalar=True)

Task = tuple[int, int]
"""Number of a step, and of the network it is computed for."""


class Launch(NamedTuple):
    """One call: a program and what its members compute."""

    spec: Spec
    tasks: tuple[Task, ...]
    """At most as many as the program has members; the last one fills up."""


class Job(NamedTuple):
    """Calls that are repeated for every block of channels."""

    launches: tuple[Launch, ...]
    num_blocks: int
    outputs: tuple[Task, ...]
    level: int


class Dispatcher:
    """Plans one evaluation.

    Args:
      programs: for the groups of layers.
      graph: what is evaluated.
      budget_bytes: for values.
    """

    def __init__(self, programs: Programs, graph: Graph, budget_bytes: int) -> None:
        self._programs, self._graph, self._budget_bytes = programs, graph, budget_bytes
        self._most_blocks = max(group.num_channels for group in programs.groups)

    def plan(self, wanted: Sequence[Task], known: frozenset[Task]) -> tuple[list[Job], dict[int, int]]:
        """Jobs in order, and for each step the level after which nobody reads it."""
        graph = self._graph
        networks: dict[int, list[int]] = {}
        for network in sorted({network for _, network in wanted}):
            own = [number for number, other in wanted if other == network]
            there = {number for number, other in known if other == network}
            for number in needed_steps(graph, own, there):
                networks.setdefault(number, []).append(network)
        needed = sorted(networks)
        levels = levels_of(graph, needed)
        jobs: list[Job] = []
        for level in range(max(levels.values(), default=0) + 1):
            own = [
                number for number in needed if levels[number] == level and not is_large(graph.steps[number])
            ]
            by_blocks: dict[int, list[Task]] = {1: []}
            scalars: list[Task] = []
            for number in own:
                own_tasks = [(number, network) for network in networks[number]]
                if is_reduction(graph, number):
                    by_blocks.setdefault(self._num_blocks(number), []).extend(own_tasks)
                else:
                    scalars += own_tasks
            for num_blocks, reductions in by_blocks.items():
                most = self._budget_bytes // JOB_SHARE
                for part, size in fitting(reductions, num_blocks, self._peak_bytes, most, self._more_blocks):
                    jobs.append(Job(tuple(self._launches(self._tasks(part), size)), size, tuple(part), level))
            jobs.append(Job(tuple(self._launches(scalars, 1)), 1, tuple(scalars), level))
        last = last_levels(graph, needed, levels, [number for number, _ in wanted])
        return [job for job in jobs if job.outputs], last

    def least_bytes(self, wanted: Sequence[int]) -> int:
        """The most that is held at once for one function, in the smallest blocks."""
        needed = needed_steps(self._graph, wanted)
        reductions = [number for number in needed if is_reduction(self._graph, number)]
        return max((self._peak_bytes([(number, 0)], self._most_blocks) for number in reductions), default=0)

    def stored(self, step: Node) -> ValueSpec:
        """How a step's value is stored: scalars and vectors of positions for all classes and channels."""
        if not is_large(step):
            return SCALAR
        axes = tuple("D" if is_position_axis(axis) else axis for axis in step.type)
        is_vector = axes == ("D",)
        view = step.view if "D" in axes else "full"
        return ValueSpec(axes, view, step.per_class or is_vector, step.per_channel or is_vector)

    def _more_blocks(self, num_blocks: int) -> int:
        return min(2 * num_blocks, self._most_blocks)

    def _num_blocks(self, reduction: int) -> int:
        """How many blocks make the largest value of a reduction small enough."""
        specs = {self.stored(self._graph.steps[each]) for each in cone_of(self._graph, [reduction])} - {
            SCALAR
        }
        num_blocks, most = 1, self._budget_bytes // VALUE_SHARE
        while num_blocks < self._most_blocks and any(
            self._programs.value_bytes(spec, num_blocks) > most for spec in specs if spec.per_channel
        ):
            num_blocks = self._more_blocks(num_blocks)
        return num_blocks

    def _tasks(self, reductions: Sequence[Task]) -> list[Task]:
        """Reductions and the larger values that they need."""
        return [
            (number, network)
            for network in sorted({network for _, network in reductions})
            for number in cone_of(self._graph, [each for each, other in reductions if other == network])
        ]

    def _peak_bytes(self, reductions: Sequence[Task], num_blocks: int) -> int:
        """The most bytes of larger values that are held at once for a block."""
        total = 0
        for network in {network for _, network in reductions}:
            tasks = self._tasks([task for task in reductions if task[1] == network])
            depths = self._depths(tasks)
            order = sorted(depths, key=lambda number: (depths[number], number))
            total += peak_size(
                self._graph, order, lambda step: self._programs.value_bytes(self.stored(step), num_blocks)
            )
        return total

    def _depths(self, tasks: Sequence[Task]) -> dict[int, int]:
        """Step -> how many calls after one another lead to it."""
        depths: dict[int, int] = {}
        for number, _ in sorted(tasks):
            step = self._graph.steps[number]
            below = max((depths.get(each, 0) for each in step.inputs), default=0)
            depths[number] = below + self._has_call(step)
        return depths

    def _has_call(self, step: Node) -> bool:
        """Whether a call computes its value: operands are there, and so is each of several statistics."""
        if not step.inputs:
            return step.kind == "literal"
        return not (is_large(step) and step.kind == "statistic")

    def _launches(self, tasks: Sequence[Task], num_blocks: int) -> Iterator[Launch]:
        """Tasks at the same depth that have the same program, in stacks."""
        depths = self._depths(tasks)
        stacks: dict[tuple[int, Spec], list[Task]] = {}
        for number, network in tasks:
            step = self._graph.steps[number]
            if self._has_call(step):
                key = (depths[number], self._spec(step, num_blocks))
                stacks.setdefault(key, []).append((number, network))
        for (_, spec), own in sorted(stacks.items(), key=lambda item: item[0][0]):
            first = 0
            for size in self._sizes(spec, len(own)):
                yield Launch(spec._replace(size=size), tuple(own[first : first + size]))
                first += size

    def _sizes(self, spec: Spec, number: int) -> Iterator[int]:
        """Sizes of the programs that serve a stack: few calls, and not much that only fills up."""
        values = (*spec.arguments, spec.result)
        largest = max(self._programs.value_bytes(each, spec.num_blocks) for each in values)
        allowed = [size for size in STACK_SIZES if size == 1 or size * largest <= STACK_BYTES]
        while number > 0:
            size = max(size for size in allowed if size == 1 or size <= 4 * number)
            yield size
            number -= size

    def _spec(self, step: Node, num_blocks: int) -> Spec:
        """The program that computes a step."""
        result = self.stored(step)
        has_classes = result.is_scalar or result.axes == ("D",)
        arguments = []
        for each in (self._graph.steps[number] for number in step.inputs):
            own = ValueSpec(()) if step.kind == "statistic" else self.stored(each)
            arguments.append(
                own._replace(
                    one_class=own.per_class and not each.per_class and not has_classes,
                    is_whole=num_blocks > 1 and is_large(each) and not each.inputs and own.per_channel,
                )
            )
        is_operator = step.kind == "operator"
        has_params = is_operator and not is_traced(step.kind, step.name) and step.name != "slice"
        return Spec(
            step.kind,
            step.name if is_operator else "",
            OPERATORS[step.name].implement if is_operator else None,
            step.params if has_params else (),
            result.axes if step.kind in ("rows", "statistics") else (),
            tuple(arguments),
            result,
            size=1,
            num_blocks=1 if all(argument.is_scalar for argument in arguments) else num_blocks,
        )
