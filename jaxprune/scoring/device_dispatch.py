"""The calls that evaluate a graph on a device, decided from types and shapes before anything runs."""

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
    levels_of,
    needed_nodes,
    peak_size,
    split_to_fit,
)

VALUE_SHARE = 16
"""A value may take a sixteenth of the budget; larger ones are computed in blocks of channels."""
JOB_SHARE = 4
"""All values that are held at once for a block may take a quarter."""
STACK_BYTES = 32 << 20
"""Memory of the largest value of a stack: filling up to this size takes no longer than a call."""
SCALAR = ValueSpec((), is_scalar=True)

Task = tuple[int, int]
"""Number of a node, and of the network it is computed for."""


class Launch(NamedTuple):
    """One call: a program and what its members compute."""

    spec: Spec
    tasks: tuple[Task, ...]
    """At most as many as the program has members; if there are fewer, copies of the last one fill up."""


class Job(NamedTuple):
    """Calls that are repeated for every block of channels."""

    launches: tuple[Launch, ...]
    num_blocks: int
    outputs: tuple[Task, ...]
    level: int


class Dispatcher:
    """Decides the calls of one evaluation.

    Args:
      programs: for the batches of layers.
      graph: what is evaluated.
      budget_bytes: memory for values.
    """

    def __init__(self, programs: Programs, graph: Graph, budget_bytes: int) -> None:
        self._programs, self._graph, self._budget_bytes = programs, graph, budget_bytes
        self._max_blocks = max(batch.num_channels for batch in programs.batches)

    def dispatch(self, wanted: Sequence[Task], known: frozenset[Task]) -> tuple[list[Job], dict[int, int]]:
        """Splits an evaluation into jobs.

        Args:
          wanted: the tasks whose values are wanted.
          known: tasks whose values are there.

        Returns:
          (jobs in order, for each node the level after which nothing reads it).
        """
        graph = self._graph
        networks: dict[int, list[int]] = {}
        for network in sorted({network for _, network in wanted}):
            own = [number for number, other in wanted if other == network]
            present = {number for number, other in known if other == network}
            for number in needed_nodes(graph, own, present):
                networks.setdefault(number, []).append(network)
        needed = sorted(networks)
        levels, last = levels_of(graph, needed, [number for number, _ in wanted])
        jobs: list[Job] = []
        for level in range(max(levels.values(), default=0) + 1):
            by_blocks: dict[int, list[Task]] = {1: []}
            scalars: list[Task] = []
            for number in needed:
                if levels[number] != level or graph.nodes[number].is_large:
                    continue
                tasks = [(number, network) for network in networks[number]]
                if graph.nodes[number].is_reduction:
                    by_blocks.setdefault(self._num_blocks(number), []).extend(tasks)
                else:
                    scalars += tasks
            for num_blocks, reductions in by_blocks.items():
                limit = self._budget_bytes // JOB_SHARE
                for part, size in split_to_fit(
                    reductions, num_blocks, self._peak_bytes, limit, self._more_blocks
                ):
                    jobs.append(Job(tuple(self._launches(self._tasks(part), size)), size, tuple(part), level))
            jobs.append(Job(tuple(self._launches(scalars, 1)), 1, tuple(scalars), level))
        return [job for job in jobs if job.outputs], last

    def least_bytes(self, wanted: Sequence[int]) -> int:
        """Returns the most memory that one function holds at once, in the smallest blocks.

        Args:
          wanted: numbers of the function's nodes.
        """
        needed = needed_nodes(self._graph, wanted)
        reductions = [number for number in needed if self._graph.nodes[number].is_reduction]
        return max((self._peak_bytes([(number, 0)], self._max_blocks) for number in reductions), default=0)

    def stored(self, node: Node) -> ValueSpec:
        """Returns how a node's value is stored: scalars and vectors of positions for all classes and channels."""
        if not node.is_large:
            return SCALAR
        axes = tuple("D" if is_position_axis(axis) else axis for axis in node.type)
        is_vector = axes == ("D",)
        view = node.view if "D" in axes else "full"
        return ValueSpec(axes, view, node.per_class or is_vector, node.per_channel or is_vector)

    def _more_blocks(self, num_blocks: int) -> int:
        return min(2 * num_blocks, self._max_blocks)

    def _num_blocks(self, reduction: int) -> int:
        """Returns how many blocks make the largest value of a reduction small enough."""
        cone = cone_of(self._graph, [reduction])
        specs = {self.stored(self._graph.nodes[number]) for number in cone} - {SCALAR}
        num_blocks, limit = 1, self._budget_bytes // VALUE_SHARE
        while num_blocks < self._max_blocks and any(
            self._programs.value_bytes(spec, num_blocks) > limit for spec in specs if spec.per_channel
        ):
            num_blocks = self._more_blocks(num_blocks)
        return num_blocks

    def _tasks(self, reductions: Sequence[Task]) -> list[Task]:
        """Returns reductions and the large values that they need."""
        return [
            (number, network)
            for network in sorted({network for _, network in reductions})
            for number in cone_of(self._graph, [number for number, other in reductions if other == network])
        ]

    def _peak_bytes(self, reductions: Sequence[Task], num_blocks: int) -> int:
        """Returns the most bytes of large values that are held at once for a block."""
        total = 0
        for network in {network for _, network in reductions}:
            depths = self._depths(self._tasks([task for task in reductions if task[1] == network]))
            order = sorted(depths, key=lambda number: (depths[number], number))
            total += peak_size(
                self._graph, order, lambda node: self._programs.value_bytes(self.stored(node), num_blocks)
            )
        return total

    def _depths(self, tasks: Sequence[Task]) -> dict[int, int]:
        """Returns for each node how many calls lead to it, one after another."""
        depths: dict[int, int] = {}
        for number, _ in sorted(tasks):
            node = self._graph.nodes[number]
            below = max((depths.get(i, 0) for i in node.inputs), default=0)
            depths[number] = below + _has_call(node)
        return depths

    def _launches(self, tasks: Sequence[Task], num_blocks: int) -> Iterator[Launch]:
        """Stacks tasks at the same depth that have the same program."""
        depths = self._depths(tasks)
        stacks: dict[tuple[int, Spec], list[Task]] = {}
        for number, network in tasks:
            node = self._graph.nodes[number]
            if _has_call(node):
                key = (depths[number], self._spec(node, num_blocks))
                stacks.setdefault(key, []).append((number, network))
        for (_, spec), members in sorted(stacks.items(), key=lambda item: item[0][0]):
            first = 0
            for size in self._sizes(spec, len(members)):
                yield Launch(spec._replace(size=size), tuple(members[first : first + size]))
                first += size

    def _sizes(self, spec: Spec, number: int) -> Iterator[int]:
        """Yields sizes of the programs that serve a stack: few calls, and not much that only fills up."""
        values = (*spec.arguments, spec.result)
        largest = max(self._programs.value_bytes(value, spec.num_blocks) for value in values)
        allowed = [size for size in STACK_SIZES if size == 1 or size * largest <= STACK_BYTES]
        while number > 0:
            size = max(size for size in allowed if size == 1 or size <= 4 * number)
            yield size
            number -= size

    def _spec(self, node: Node, num_blocks: int) -> Spec:
        """Returns the program that computes a node."""
        result = self.stored(node)
        has_classes = result.is_scalar or result.axes == ("D",)
        arguments = []
        for value in (self._graph.nodes[number] for number in node.inputs):
            stored = ValueSpec(()) if node.kind == "statistic" else self.stored(value)
            arguments.append(
                stored._replace(
                    one_class=stored.per_class and not value.per_class and not has_classes,
                    is_whole=num_blocks > 1 and value.is_large and not value.inputs and stored.per_channel,
                )
            )
        is_operator = node.kind == "operator"
        has_params = is_operator and not is_traced(node.kind, node.name) and node.name != "slice"
        return Spec(
            node.kind,
            node.name if is_operator else "",
            OPERATORS[node.name].implement if is_operator else None,
            node.params if has_params else (),
            result.axes if node.kind in ("rows", "statistics") else (),
            tuple(arguments),
            result,
            size=1,
            num_blocks=1 if all(argument.is_scalar for argument in arguments) else num_blocks,
        )


def _has_call(node: Node) -> bool:
    """Whether a call computes the value: operands are there already, and so are large statistics of several."""
    if not node.inputs:
        return node.kind == "literal"
    return not (node.is_large and node.kind == "statistic")
