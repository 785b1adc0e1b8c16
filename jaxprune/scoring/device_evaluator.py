"""A graph is evaluated on an accelerator: one call applies an operator to many values of the same types.

Which calls run is decided on the host before anything runs (`device_dispatch`); between the first call and the scores
nothing is copied between host and device. Nodes of a job at the same depth that have the same program are stacked. What
would not fit the budget for all channels at once is computed in blocks of channels.
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
from jaxprune.scoring.compute import CACHED_VALUES, Value, ValueCache
from jaxprune.scoring.device_dispatch import SCALAR, Dispatcher, Job, Launch, Task
from jaxprune.scoring.device_programs import STACK_SIZES, Inputs, Spec, is_traced, masked_axes, programs_for
from jaxprune.scoring.graph import Graph, Node
from jaxprune.scoring.large_moments import LargeMoments, is_large
from jaxprune.scoring.layer_batches import batch_layers, operand_value
from jaxprune.types import Array

_MAX_NUMBERS = 1 << 12
"""Literal numbers that stay on the device for later calls."""
Ranges = tuple[Array, ...]
"""For each batch [1, 1, 1, D] booleans."""


class DeviceEvaluator:
    """Evaluates graphs on some layers by jitted calls, and caches what was reduced to scalars.

    Args:
      layers: operands of equal dtype and number of classes, stacked or not; all of as many networks.
      budget_bytes: memory for values besides the operands: a quarter for cached scalars, a quarter for the scalars of
        one call, and a quarter for larger values.
    """

    def __init__(self, layers: Sequence[Operands], budget_bytes: int) -> None:
        self.num_networks = layers[0].num_members
        by_network = [batch_layers(own) for own in zip(*(one.members() for one in layers), strict=True)]
        batches, starts, self.network_channels = by_network[0]
        self._networks = [tuple(members for _, members in own) for own, _, _ in by_network]
        self.num_channels = self.num_networks * self.network_channels
        self.network_starts = [by_member[0] for by_member in starts]
        self.starts = [
            [index * self.network_channels + start for index in range(self.num_networks)]
            for start in self.network_starts
        ]
        self.num_classes, self.dtype = layers[0].num_classes, layers[0].dtype
        self.programs = programs_for(tuple(shape for shape, _ in batches), self.dtype)
        self.num_calls = 0
        with jax.enable_x64(self.dtype == np.float64):
            # a scalar that no block has filled yet
            self.zeros = jax.device_put(np.zeros((self.num_classes, self.network_channels), self.dtype))
        self.budget_bytes = budget_bytes
        self.cache = ValueCache(budget_bytes // 4, CACHED_VALUES * self.num_networks)
        self._leaves: dict[tuple[object, int], Value] = {}
        self._moments: dict[tuple[View, int], Mapping[str, Value]] = {}
        self._ranges: dict[tuple[str, View, bool], Ranges] = {}
        self._offsets: dict[int, list[Array]] = {}
        self._numbers: dict[float, Array] = {}

    def evaluate(self, graph: Graph, wanted: Sequence[int]) -> np.ndarray:
        """Computes scalars for all channels of all networks.

        Args:
          graph: where the nodes are.
          wanted: numbers of nodes with scalar values.

        Returns:
          [len(wanted), channels of all networks] means over classes.
        """
        tasks = [(number, network) for number in wanted for network in range(self.num_networks)]
        return self.evaluate_tasks(graph, tasks).reshape(len(wanted), self.num_channels)

    def evaluate_tasks(self, graph: Graph, wanted: Sequence[Task]) -> np.ndarray:
        """Computes scalars, each for one network.

        Args:
          graph: where the nodes are.
          wanted: (number of a node, network) pairs.

        Returns:
          [len(wanted), channels of a network] means over classes.
        """
        with jax.enable_x64(self.dtype == np.float64):  # a thread does not know what its caller enabled
            return _Run(self, graph).scores(wanted)

    def least_bytes(self, graph: Graph, wanted: Sequence[int], channel: int) -> int:
        """Returns the memory that the smallest block of all layers needs at once; nothing is computed.

        Args:
          graph: where the nodes are.
          wanted: numbers of nodes.
          channel: not used: a block has channels of all layers.
        """
        return Dispatcher(self.programs, graph, self.budget_bytes).least_bytes(wanted)

    def warm_up(self, graph: Graph) -> int:
        """Compiles the programs that evaluate all scalars of a graph; returns how many there are now."""
        scalars = [number for number, node in enumerate(graph.nodes) if not node.is_large]
        tasks = [(number, network) for number in scalars for network in range(self.num_networks)]
        jobs, _ = Dispatcher(self.programs, graph, self.budget_bytes).dispatch(tasks, frozenset())
        return self.programs.compile_all([launch.spec for job in jobs for launch in job.launches])

    def leaf(self, node: Node, network: int) -> Value:
        """Returns the value of an operand or a moment, on the device.

        Args:
          node: without inputs.
          network: number of the network.
        """
        members = self._networks[network]
        if node.kind == "moment" or node.name in CLASS_SIZES:
            key = (node.view, network)
            if key not in self._moments:
                self._moments[key] = (
                    LargeMoments(members, node.view, self.programs.stored)
                    if is_large(members, node.view)
                    else self.programs.moments(members, node.view)
                )
            return self._moments[key][node.name]
        if (node.name, network) not in self._leaves:
            if OPERANDS[node.name].read is None:
                value = self.programs.operand(members, node.name, node.type)
            else:
                values = [operand_value(jnp, own, node.name) for own in members]
                value = self.programs.stored([array for array in values if array is not None], node.type)
            self._leaves[node.name, network] = value
        return self._leaves[node.name, network]

    def ranges(self, axis: str, view: View, *, is_front: bool) -> Ranges:
        """Returns which positions belong to a slice.

        Args:
          axis: of the slice.
          view: where positions are counted.
          is_front: whether the slice has been moved to the front.
        """
        key = (axis, view, is_front)
        if key not in self._ranges:
            masks = []
            for batch in self.programs.batches:
                size = batch.axes(("D",), view)[0]
                start, stop = slice_bounds(size, *(slice_range(axis) or (0, 8)))
                start, stop = (0, stop - start) if is_front else (start, stop)
                positions = np.arange(size)
                masks.append(((positions >= start) & (positions < stop)).reshape(1, 1, 1, size))
            self._ranges[key] = tuple(jax.device_put(masks))
        return self._ranges[key]

    def offsets(self, num_blocks: int) -> list[Array]:
        """Returns for each block [batches] the first channel; the last block of a batch overlaps the one before."""
        if num_blocks not in self._offsets:
            blocks = []
            for block in range(num_blocks):
                sizes = [self.programs.channels(batch, num_blocks) for batch in self.programs.batches]
                firsts = [
                    min(block * size, batch.num_channels - size)
                    for size, batch in zip(sizes, self.programs.batches, strict=True)
                ]
                blocks.append(np.asarray(firsts, np.int32))
            self._offsets[num_blocks] = jax.device_put(blocks)
        return self._offsets[num_blocks]

    def put_numbers(self, values: Sequence[float]) -> None:
        """Copies literal numbers to the device, where `number` reads them."""
        if len(self._numbers) > _MAX_NUMBERS:
            self._numbers.clear()
        new = [value for value in dict.fromkeys(values) if value not in self._numbers]
        arrays = jax.device_put([np.asarray(value, self.dtype) for value in new])
        self._numbers |= zip(new, arrays, strict=True)

    def number(self, value: float) -> Array:
        """Returns a literal number that `put_numbers` has copied."""
        return self._numbers[value]


class _Run:
    """One graph while it is evaluated."""

    def __init__(self, evaluator: DeviceEvaluator, graph: Graph) -> None:
        self._evaluator, self._graph, self._programs = evaluator, graph, evaluator.programs
        self._dispatcher = Dispatcher(evaluator.programs, graph, evaluator.budget_bytes)
        self._scalars: dict[Task, Array] = {}

    def scores(self, wanted: Sequence[Task]) -> np.ndarray:
        """Returns [len(wanted), channels] means over classes of scalars."""
        nodes = self._graph.nodes
        for number, node in enumerate(nodes):
            for network in range(self._evaluator.num_networks if node.is_reduction else 0):
                cached = self._evaluator.cache.get((node.key, network))
                if cached is not None:
                    self._scalars[number, network] = cached[0]
        jobs, last_levels = self._dispatcher.dispatch(wanted, frozenset(self._scalars))
        self._prepare(jobs)
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            self._run(job)
            for number, network in job.outputs:
                if nodes[number].is_reduction:
                    self._evaluator.cache.add((nodes[number].key, network), [self._scalars[number, network]])
            if following is not None and following.level > job.level:
                level = job.level
                for task in [t for t in self._scalars if last_levels.get(t[0], level + 1) <= level]:
                    del self._scalars[task]
        return self._means(wanted)

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Copies everything that calls read to the device, before the first one."""
        nodes, numbers = self._graph.nodes, []
        for job in jobs:
            self._evaluator.offsets(job.num_blocks)
            for launch in job.launches:
                for number, network in launch.tasks:
                    numbers += _traced_numbers(nodes[number])
                    self._positions(launch.spec, nodes[number])
                    for value in (nodes[i] for i in nodes[number].inputs):
                        if value.is_large and not value.inputs:
                            self._evaluator.leaf(value, network)
            for number, network in job.outputs:
                if not nodes[number].inputs and nodes[number].kind != "literal":
                    self._scalars[number, network] = self._evaluator.leaf(nodes[number], network)
        self._evaluator.put_numbers(numbers)

    def _positions(self, spec: Spec, node: Node) -> list[Ranges]:
        """Returns the masks that a program takes for a node."""
        masks = []
        for index, axis in masked_axes(spec):
            value = self._graph.nodes[node.inputs[index]]
            is_slice = node.name == "slice" and node.kind == "operator"
            name = node.type[axis] if is_slice else value.type[axis]
            masks.append(self._evaluator.ranges(name, value.view, is_front=not is_slice))
        return masks

    def _run(self, job: Job) -> None:
        """Runs the calls of a job, block by block, and drops large values after their last use."""
        for block in range(job.num_blocks):
            values: dict[Task, Value] = {}
            reads = Counter(task for launch in job.launches for task in self._reads(launch))
            for launch in job.launches:
                results = self._call(launch, job, block, values)
                for task, value in zip(launch.tasks, results, strict=False):
                    (values if self._graph.nodes[task[0]].is_large else self._scalars)[task] = value
                for task in self._reads(launch):
                    reads[task] -= 1
                    if not reads[task]:
                        values.pop(task, None)

    def _reads(self, launch: Launch) -> list[Task]:
        """Returns the tasks whose values a call reads, once for every member that does."""
        return [
            (self._source(i), network)
            for number, network in launch.tasks
            for i in self._graph.nodes[number].inputs
        ]

    def _source(self, number: int) -> int:
        """Returns the node whose call computes a value: a large statistic is one of several from one call."""
        node = self._graph.nodes[number]
        return node.inputs[0] if node.kind == "statistic" and node.is_large else number

    def _call(self, launch: Launch, job: Job, block: int, values: dict[Task, Value]) -> Sequence[Value]:
        """Calls a program for one block."""
        spec = launch.spec
        tasks = launch.tasks + launch.tasks[-1:] * (spec.size - len(launch.tasks))
        nodes = [self._graph.nodes[number] for number, _ in tasks]
        stacks = [
            [
                self._value(node, node.inputs[index], network, values)
                for node, (_, network) in zip(nodes, tasks, strict=True)
            ]
            for index in range(len(spec.arguments))
        ]
        masks_by_member = [self._positions(spec, node) for node in nodes]
        masks = [list(own) for own in zip(*masks_by_member, strict=True)]
        params = [self._evaluator.number(value) for node in nodes for value in _traced_numbers(node)]
        offsets = self._evaluator.offsets(job.num_blocks)[block]
        bases: list[Array] = []
        if spec.result.is_scalar and spec.num_blocks > 1:
            bases = [self._scalars.get(task, self._evaluator.zeros) for task in tasks]
        self._evaluator.num_calls += 1
        return self._programs(spec, Inputs(stacks, masks, params, offsets, bases))

    def _value(self, reader: Node, number: int, network: int, values: dict[Task, Value]) -> Value:
        """Returns what a node reads: scalars and operands of all channels, other values of a block."""
        node, source = self._graph.nodes[number], (self._source(number), network)
        if not node.is_large:
            return self._scalars[number, network]
        if reader.kind == "statistic":
            return values[source][reader.name]
        if node.kind == "statistic":
            return values[source][node.name]
        if node.inputs:
            return values[source]
        return self._evaluator.leaf(node, network)

    def _means(self, wanted: Sequence[Task]) -> np.ndarray:
        """Averages scalars over classes."""
        offsets, largest = self._evaluator.offsets(1)[0], STACK_SIZES[-1]
        means = []
        for tasks in (wanted[first : first + largest] for first in range(0, len(wanted), largest)):
            size = next(size for size in STACK_SIZES if size >= len(tasks))
            stack = [self._scalars[task] for task in tasks]
            stack += stack[-1:] * (size - len(tasks))
            self._evaluator.num_calls += 1
            spec = Spec("mean", "", None, (), (), (SCALAR,), SCALAR, size, 1)
            means.append(self._programs(spec, Inputs([stack], [], [], offsets, [])))
        nothing = np.zeros((0, self._evaluator.network_channels), self._evaluator.dtype)
        return np.concatenate([nothing, *jax.device_get(means)])[: len(wanted)]


def _traced_numbers(node: Node) -> list[float]:
    """Returns the number that a program takes for a node, if it takes one."""
    if not is_traced(node.kind, node.name):
        return []
    return [node.key[0].value if node.kind == "literal" else node.params[0]]
