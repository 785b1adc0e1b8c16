"""A graph evaluated on an accelerator: steps that apply one operator to values of the same types run as one call.

Levels, jobs and stacks are planned on the host before anything runs; from the first call to the scores nothing is
copied between host and device. Steps of a job at the same depth that have the same program are stacked. What would not
fit the budget for all channels at once is computed in blocks of channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import slice_bounds, slice_range
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import CLASS_SIZES, View
from jaxprune.scoring.compute import Value
from jaxprune.scoring.device_dispatch import SCALAR, Dispatcher, Job, Launch, Task
from jaxprune.scoring.device_programs import STACK_SIZES, Inputs, Spec, is_traced, masked_axes, programs_for
from jaxprune.scoring.graph import Graph, Node, is_large, is_reduction
from jaxprune.scoring.layer_batches import batch_layers
from jaxprune.scoring.leaves import operand_value
from jaxprune.scoring.value_cache import ValueCache
from jaxprune.types import Array

_MOST_NUMBERS = 1 << 12
"""So many numbers are kept on the device for later calls."""
Ranges = tuple[Array, ...]
"""For each group [1, 1, 1, D] booleans."""


class DeviceEvaluator:
    """Evaluates graphs on some layers by jitted calls, and remembers what was reduced to scalars.

    Args:
      layers: operands of equal dtype and number of classes, stacked or not; all of as many networks.
      budget_bytes: for values besides the operands. A quarter each serves to remember scalars, to hold those of one
        call, and for larger values.
    """

    def __init__(self, layers: Sequence[Operands], budget_bytes: int) -> None:
        self.num_networks = layers[0].num_members
        members = zip(*(one.members() for one in layers), strict=True)
        grouped = [batch_layers(own) for own in members]
        groups, starts, self.network_channels = grouped[0]
        self._networks = [tuple(own for _, own in groups) for groups, _, _ in grouped]
        self.num_channels = self.num_networks * self.network_channels
        self.network_starts = [own[0] for own in starts]
        self.starts = [
            [index * self.network_channels + own for index in range(self.num_networks)]
            for own in self.network_starts
        ]
        self.num_classes, self.dtype = layers[0].num_classes, layers[0].dtype
        self.programs = programs_for(tuple(shape for shape, _ in groups), self.dtype)
        self.num_calls = 0
        with jax.enable_x64(self.dtype == np.float64):
            # a scalar that no block has filled yet
            self.zeros = jax.device_put(np.zeros((self.num_classes, self.network_channels), self.dtype))
        self.budget_bytes = budget_bytes
        self.remembered = ValueCache(budget_bytes // 4)
        self._leaves: dict[tuple[object, int], Value] = {}
        self._moments: dict[tuple[View, int], Mapping[str, Value]] = {}
        self._ranges: dict[tuple[str, View, bool], Ranges] = {}
        self._offsets: dict[int, list[Array]] = {}
        self._numbers: dict[float, Array] = {}

    def evaluate(self, graph: Graph, wanted: Sequence[int]) -> np.ndarray:
        """[len(wanted), channels of all networks] means over classes of scalars."""
        tasks = [(number, network) for number in wanted for network in range(self.num_networks)]
        return self.evaluate_tasks(graph, tasks).reshape(len(wanted), self.num_channels)

    def evaluate_tasks(self, graph: Graph, wanted: Sequence[Task]) -> np.ndarray:
        """[len(wanted), channels of a network] means over classes of scalars, each of one network."""
        with jax.enable_x64(self.dtype == np.float64):  # a thread does not know what its caller enabled
            return _Run(self, graph).scores(wanted)

    def least_bytes(self, graph: Graph, wanted: Sequence[int], channel: int) -> int:
        """What is held at once for the smallest block of all layers; nothing is run."""
        return Dispatcher(self.programs, graph, self.budget_bytes).least_bytes(wanted)

    def warm_up(self, graph: Graph) -> int:
        """Compiles the programs that evaluating all scalars of a graph calls; returns how many there are now."""
        scalars = [number for number, step in enumerate(graph.steps) if not is_large(step)]
        tasks = [(number, network) for number in scalars for network in range(self.num_networks)]
        jobs, _ = Dispatcher(self.programs, graph, self.budget_bytes).plan(tasks, frozenset())
        return self.programs.compile_all([launch.spec for job in jobs for launch in job.launches])

    def leaf(self, step: Node, network: int) -> Value:
        """The value of an operand or a moment, on the device."""
        members = self._networks[network]
        if step.kind == "moment" or step.name in CLASS_SIZES:
            key = (step.view, network)
            if key not in self._moments:
                self._moments[key] = self.programs.moments(members, step.view)
            return self._moments[key][step.name]
        if (step.name, network) not in self._leaves:
            if OPERANDS[step.name].read is None:
                value = self.programs.operand(members, step.name, step.type)
            else:
                found = [operand_value(jnp, own, step.name) for own in members]
                value = self.programs.stored([own for own in found if own is not None], step.type)
            self._leaves[step.name, network] = value
        return self._leaves[step.name, network]

    def ranges(self, axis: str, view: View, *, is_front: bool) -> Ranges:
        """Which positions are real: those of a slice where they lie, or moved to the front."""
        key = (axis, view, is_front)
        if key not in self._ranges:
            own = []
            for group in self.programs.groups:
                size = group.axes(("D",), view)[0]
                start, stop = slice_bounds(size, *(slice_range(axis) or (0, 8)))
                start, stop = (0, stop - start) if is_front else (start, stop)
                positions = np.arange(size)
                own.append(((positions >= start) & (positions < stop)).reshape(1, 1, 1, size))
            self._ranges[key] = tuple(jax.device_put(own))
        return self._ranges[key]

    def offsets(self, num_blocks: int) -> list[Array]:
        """For each block [groups] the first channel; the last block of a group overlaps the one before."""
        if num_blocks not in self._offsets:
            blocks = []
            for block in range(num_blocks):
                sizes = [self.programs.channels(group, num_blocks) for group in self.programs.groups]
                firsts = [
                    min(block * size, group.num_channels - size)
                    for size, group in zip(sizes, self.programs.groups, strict=True)
                ]
                blocks.append(np.asarray(firsts, np.int32))
            self._offsets[num_blocks] = jax.device_put(blocks)
        return self._offsets[num_blocks]

    def numbers(self, values: Sequence[float]) -> None:
        """Brings literal numbers to the device."""
        if len(self._numbers) > _MOST_NUMBERS:
            self._numbers.clear()
        new = [value for value in dict.fromkeys(values) if value not in self._numbers]
        self._numbers |= zip(
            new, jax.device_put([np.asarray(value, self.dtype) for value in new]), strict=True
        )

    def number(self, value: float) -> Array:
        """A literal number that has been brought there."""
        return self._numbers[value]


class _Run:
    """One graph while it is evaluated."""

    def __init__(self, evaluator: DeviceEvaluator, graph: Graph) -> None:
        self._evaluator, self._graph, self._programs = evaluator, graph, evaluator.programs
        self._planner = Dispatcher(evaluator.programs, graph, evaluator.budget_bytes)
        self._scalars: dict[Task, Array] = {}

    def scores(self, wanted: Sequence[Task]) -> np.ndarray:
        """[len(wanted), channels] means over classes of scalars."""
        for number, step in enumerate(self._graph.steps):
            for network in range(self._evaluator.num_networks if is_reduction(self._graph, number) else 0):
                known = self._evaluator.remembered.get((step.key, network))
                if known is not None:
                    self._scalars[number, network] = known[0]
        jobs, last_levels = self._planner.plan(wanted, frozenset(self._scalars))
        self._prepare(jobs)
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            self._run(job)
            for number, network in job.outputs:
                if is_reduction(self._graph, number):
                    key = (self._graph.steps[number].key, network)
                    self._evaluator.remembered.add(key, [self._scalars[number, network]])
            if following is not None and following.level > job.level:
                for task in [
                    each for each in self._scalars if last_levels.get(each[0], job.level + 1) <= job.level
                ]:
                    del self._scalars[task]
        return self._means(wanted)

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Brings everything to the device that calls read, before the first one."""
        numbers = []
        for job in jobs:
            self._evaluator.offsets(job.num_blocks)
            for launch in job.launches:
                for task in launch.tasks:
                    step = self._graph.steps[task[0]]
                    numbers += self._traced(step)
                    self._positions(launch.spec, step)
                    for each in step.inputs:
                        if is_large(self._graph.steps[each]) and not self._graph.steps[each].inputs:
                            self._evaluator.leaf(self._graph.steps[each], task[1])
            for task in job.outputs:
                step = self._graph.steps[task[0]]
                if not step.inputs and step.kind != "literal":
                    self._scalars[task] = self._evaluator.leaf(step, task[1])
        self._evaluator.numbers(numbers)

    def _traced(self, step: Node) -> list[float]:
        """The number that a program takes for a step, if any."""
        if not is_traced(step.kind, step.name):
            return []
        return [step.key[0].value if step.kind == "literal" else step.params[0]]

    def _positions(self, spec: Spec, step: Node) -> list[Ranges]:
        """The masks that a program takes for a step."""
        found = []
        for index, axis in masked_axes(spec):
            own = self._graph.steps[step.inputs[index]]
            is_slice = step.name == "slice" and step.kind == "operator"
            name = step.type[axis] if is_slice else own.type[axis]
            found.append(self._evaluator.ranges(name, own.view, is_front=not is_slice))
        return found

    def _run(self, job: Job) -> None:
        for block in range(job.num_blocks):
            values: dict[Task, Value] = {}
            reads = Counter(task for launch in job.launches for task in self._reads(launch))
            for launch in job.launches:
                found = self._call(launch, job, block, values)
                for task, value in zip(launch.tasks, found, strict=False):
                    is_kept = not is_large(self._graph.steps[task[0]])
                    (self._scalars if is_kept else values)[task] = value
                for task in self._reads(launch):
                    reads[task] -= 1
                    if not reads[task]:
                        values.pop(task, None)

    def _reads(self, launch: Launch) -> list[Task]:
        """What a call reads, again for every member that does."""
        return [
            (self._source(each), network)
            for number, network in launch.tasks
            for each in self._graph.steps[number].inputs
        ]

    def _source(self, number: int) -> int:
        """The step whose call computes a value: for a larger one of several statistics, theirs."""
        step = self._graph.steps[number]
        return step.inputs[0] if step.kind == "statistic" and is_large(step) else number

    def _call(self, launch: Launch, job: Job, block: int, values: dict[Task, Value]) -> Sequence[Value]:
        spec = launch.spec
        filled = launch.tasks + launch.tasks[-1:] * (spec.size - len(launch.tasks))
        offsets = self._evaluator.offsets(job.num_blocks)[block]
        steps = [self._graph.steps[number] for number, _ in filled]
        stacks = [
            [
                self._value(step, step.inputs[index], network, values)
                for step, (_, network) in zip(steps, filled, strict=True)
            ]
            for index in range(len(spec.arguments))
        ]
        by_member = [self._positions(spec, step) for step in steps]
        masks = [list(own) for own in zip(*by_member, strict=True)]
        params = [self._evaluator.number(value) for step in steps for value in self._traced(step)]
        bases: list[Array] = []
        if spec.result.is_scalar and spec.num_blocks > 1:
            bases = [self._scalars.get(task, self._evaluator.zeros) for task in filled]
        self._evaluator.num_calls += 1
        return self._programs(spec, Inputs(stacks, masks, params, offsets, bases))

    def _value(
        self,
        reader: Node,
        number: int,
        network: int,
        values: dict[Task, Value],
    ) -> Value:
        """What a step reads: scalars and operands of all channels, other values of a block."""
        step, source = self._graph.steps[number], (self._source(number), network)
        if not is_large(step):
            return self._scalars[number, network]
        if reader.kind == "statistic":
            return values[source][reader.name]
        if step.kind == "statistic":
            return values[source][step.name]
        if step.inputs:
            return values[source]
        return self._evaluator.leaf(step, network)

    def _means(self, wanted: Sequence[Task]) -> np.ndarray:
        offsets, largest = self._evaluator.offsets(1)[0], STACK_SIZES[-1]
        found = []
        for own in (wanted[first : first + largest] for first in range(0, len(wanted), largest)):
            size = next(size for size in STACK_SIZES if size >= len(own))
            stack = [self._scalars[task] for task in own]
            stack += stack[-1:] * (size - len(own))
            self._evaluator.num_calls += 1
            spec = Spec("mean", "", None, (), (), (SCALAR,), SCALAR, size, 1)
            found.append(self._programs(spec, Inputs([stack], [], [], offsets, [])))
        nothing = np.zeros((0, self._evaluator.network_channels), self._evaluator.dtype)
        return np.concatenate([nothing, *jax.device_get(found)])[: len(wanted)]
