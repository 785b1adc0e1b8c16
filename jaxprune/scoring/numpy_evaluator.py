"""A graph is evaluated on a CPU: every node is a few calls of NumPy, and nothing is compiled.

Large values are computed for a block of members and channels at a time, as many as fit the cache, reduced to scalars,
and dropped as soon as no node needs them. Scalars are computed for all channels of a batch of layers at once.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache, partial
from threading import Lock

import numpy as np
from threadpoolctl import ThreadpoolController

from jaxprune.observation.operands import Operands
from jaxprune.scoring.compute import CACHED_VALUES, Value, ValueCache, compute_node
from jaxprune.scoring.graph import (
    Graph,
    Node,
    cone_of,
    last_uses,
    levels_of,
    needed_nodes,
    peak_size,
    split_to_fit,
)
from jaxprune.scoring.layer_batches import LayerBatch, batch_layers
from jaxprune.types import Array

BLOCK_ENTRIES = 1 << 18
"""Entries of the largest value of a block, as measured: smaller blocks take more calls, larger ones leave the cache."""
_MAX_CHANNELS = 1024
"""Channels of a batch at most, unless a single layer has more: threads share the work by batches."""
_SIZE_FACTOR = 8
"""Reductions whose largest values differ by less than this factor share blocks."""

Region = tuple[slice, slice, slice]
"""Members, classes (all of them) and channels of a block."""


class NumpyEvaluator:
    """Evaluates graphs on some layers, and caches what was reduced to scalars.

    Args:
      layers: operands of equal dtype and number of classes, stacked or not.
      budget_bytes: memory for values besides the operands: a quarter for cached scalars, a quarter for the scalars of
        one call, and a quarter for blocks.
      block_entries: of the largest value that is computed at once, `BLOCK_ENTRIES` by default.
    """

    def __init__(
        self, layers: Sequence[Operands], budget_bytes: int, block_entries: int | None = None
    ) -> None:
        batches, self.starts, self.num_channels = batch_layers(layers, _MAX_CHANNELS)
        self.batches = [LayerBatch(shape, members) for shape, members in batches]
        self.num_classes, self.dtype = layers[0].num_classes, self.batches[0].dtype
        self.network_channels = self.num_channels // layers[0].num_members
        self._layers, self._budget_bytes = tuple(layers), budget_bytes
        max_entries = max(1, budget_bytes // (32 * self.dtype.itemsize))
        self._block_entries = min(block_entries or BLOCK_ENTRIES, max_entries)
        self._cache = ValueCache(budget_bytes // 4, CACHED_VALUES)

    def evaluate(self, graph: Graph, wanted: Sequence[int]) -> np.ndarray:
        """Computes scalars for all channels.

        Args:
          graph: where the nodes are.
          wanted: numbers of nodes with scalar values.

        Returns:
          [len(wanted), channels] means over classes, in the order of the batches' channels.
        """
        known = {
            number: values
            for number in needed_nodes(graph, wanted)
            if graph.nodes[number].is_reduction
            and (values := self._cache.get(graph.nodes[number].key)) is not None
        }
        needed = needed_nodes(graph, wanted, known)
        levels, last = levels_of(graph, needed, wanted)
        runs = [
            _BatchRun(batch, graph, {number: values[index] for number, values in known.items()})
            for index, batch in enumerate(self.batches)
        ]
        has_affinity = hasattr(os, "sched_getaffinity")
        workers = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        limits = (self._block_entries, self._budget_bytes // 4 // workers)
        with _single_blas, ThreadPoolExecutor(workers) as pool:
            for level in range(max(levels.values(), default=0) + 1):
                scalars = [n for n in needed if levels[n] == level and not graph.nodes[n].is_large]
                reductions = [n for n in scalars if graph.nodes[n].is_reduction]
                tasks = [task for run in runs for task in run.tasks(reductions, *limits)]
                list(pool.map(operator.call, tasks))
                for number in reductions:
                    self._cache.add(graph.nodes[number].key, [run.values[number] for run in runs])
                for run in runs:
                    run.compute_scalars(scalars)
                    for number in [n for n in run.values if last.get(n, level + 1) <= level]:
                        del run.values[number]
        means = np.empty((len(wanted), self.num_channels), self.dtype)
        with np.errstate(all="ignore"):
            for row, number in enumerate(wanted):
                for run in runs:
                    part = means[row, run.shape.start : run.shape.start + run.shape.width]
                    part.reshape(run.shape.num_members, -1)[...] = run.values[number].mean(axis=1)
        return means

    @property
    def network_starts(self) -> list[int]:
        """For each layer the number of its first channel among those of one network."""
        first_members = [layer.members()[0] for layer in self._layers]
        return [starts[0] for starts in batch_layers(first_members, _MAX_CHANNELS)[1]]

    def evaluate_tasks(self, graph: Graph, wanted: Sequence[tuple[int, int]]) -> np.ndarray:
        """Computes scalars, each for one stacked network.

        Args:
          graph: where the nodes are.
          wanted: (number of a node, network) pairs.

        Returns:
          [len(wanted), channels of a network] means over classes.
        """
        means = np.empty((len(wanted), self.network_channels), self.dtype)
        for network in sorted({network for _, network in wanted}):
            rows = [row for row, (_, other) in enumerate(wanted) if other == network]
            layers = [layer.member(network) for layer in self._layers]
            evaluator = NumpyEvaluator(layers, self._budget_bytes, self._block_entries)
            means[rows] = evaluator.evaluate(graph, [wanted[row][0] for row in rows])
        return means

    def least_bytes(self, graph: Graph, wanted: Sequence[int], channel: int) -> int:
        """Returns the memory that one channel needs at once; nothing is computed.

        Args:
          graph: where the nodes are.
          wanted: numbers of nodes.
          channel: number of a channel, whose batch of layers counts.
        """
        index = sum(batch.shape.start <= channel for batch in self.batches) - 1
        run = _BatchRun(self.batches[index], graph, {})
        reductions = [number for number in needed_nodes(graph, wanted) if graph.nodes[number].is_reduction]
        return max((run.peak_bytes([number], 1) for number in reductions), default=0)


class _BatchRun:
    """One batch of layers while a graph is evaluated."""

    def __init__(self, batch: LayerBatch, graph: Graph, known: dict[int, Array]) -> None:
        self.batch, self.shape, self.graph = batch, batch.shape, graph
        self.values = known
        """Scalars by node, [M or 1, K or 1, C or 1]."""

    def tasks(
        self, reductions: Sequence[int], block_entries: int, max_bytes: int
    ) -> Iterator[Callable[[], object]]:
        """Yields calls that may run at the same time and together compute some reductions."""
        alike: dict[tuple[bool, int], list[int]] = {}
        for number in reductions:
            node = self.graph.nodes[number]
            self.values[number] = np.empty(self._batch_axes(node, self.shape.width), self.batch.dtype)
            has_shared = any(_is_shared(self.graph.nodes[i]) for i in cone_of(self.graph, [number]))
            size_class = int(math.log(self._channel_entries([number]), _SIZE_FACTOR))
            alike.setdefault((has_shared, size_class), []).append(number)
        for similar in alike.values():
            block = min(max(1, block_entries // self._channel_entries(similar)), self.shape.width)
            for part, size in split_to_fit(
                similar, block, self.peak_bytes, max_bytes, lambda block: -(-block // 2)
            ):
                yield from self._split(part, size)

    def compute_scalars(self, numbers: Sequence[int]) -> None:
        """Computes scalars from scalars, for all channels."""
        with np.errstate(all="ignore"):
            for number in numbers:
                node = self.graph.nodes[number]
                if not node.inputs:
                    self.values[number] = self.batch.leaf(node)
                elif number not in self.values:
                    inputs = [self.values[i] for i in node.inputs]
                    self.values[number] = compute_node(np, node, inputs, self.shape.rows)

    def peak_bytes(self, reductions: Sequence[int], block: int) -> int:
        """Returns the most memory that a block of so many channels needs at once."""
        cone = cone_of(self.graph, reductions)
        entries = peak_size(self.graph, cone, lambda node: self._entries(node, block))
        return entries * self.batch.dtype.itemsize

    def _channel_entries(self, reductions: Sequence[int]) -> int:
        """Counts the entries of the largest value that reductions need, for one channel."""
        cone = (self.graph.nodes[i] for i in cone_of(self.graph, reductions))
        return max((self._entries(node, 1) for node in cone if node.per_channel), default=1)

    def _batch_axes(self, node: Node, block: int) -> tuple[int, int, int]:
        """Returns the numbers of members, classes and channels of a value for so many channels."""
        return (
            max(1, block // self.shape.num_channels),
            self.shape.num_classes if node.per_class else 1,
            min(block, self.shape.num_channels) if node.per_channel else 1,
        )

    def _entries(self, node: Node, block: int) -> int:
        return math.prod(self._batch_axes(node, block)) * self.shape.entries(node)

    def _split(self, reductions: Sequence[int], block: int) -> Iterator[Callable[[], object]]:
        """Yields a task for each block; the first one computes what all channels of a member share."""
        shape, nodes, everything = self.shape, self.graph.nodes, slice(None)
        cone = [number for number in cone_of(self.graph, reductions) if nodes[number].inputs]
        shared = [number for number in cone if _is_shared(nodes[number])]
        rest = [number for number in cone if number not in shared]
        inputs = {i for number in rest for i in nodes[number].inputs}
        members, _, channels = self._batch_axes(nodes[cone[0]]._replace(per_channel=True), block)
        if not any(nodes[number].per_channel for number in rest):
            channels = shape.num_channels
        for member in range(0, shape.num_members, members):
            members_slice = slice(member, member + members)
            shared_values = _once(
                partial(self._run, shared, dict, (members_slice, everything, everything), inputs)
            )
            for first in range(0, shape.num_channels, channels):
                region = (members_slice, everything, slice(first, first + channels))
                yield partial(self._run, rest, shared_values, region)

    def _run(
        self,
        order: Sequence[int],
        known: Callable[[], dict[int, Value]],
        region: Region,
        permanent: set[int] | None = None,
    ) -> dict[int, Value]:
        """Computes nodes for one region, stores scalars among `values`, and returns the large values still there."""
        nodes, rows, values = self.graph.nodes, self.shape.rows, dict(known())
        uses = last_uses(self.graph, order, permanent or ())
        with np.errstate(all="ignore"):
            for number in order:
                node = nodes[number]
                inputs = [self._read(i, values, region) for i in node.inputs]
                masks = [rows.masks(nodes[i].type) for i in node.inputs]
                value = compute_node(np, node, inputs, rows, masks=masks)
                if node.is_large:
                    values[number] = value
                else:
                    _part(self.values[number], region)[...] = value
                del inputs, value
                for i in uses.get(number, ()):
                    values.pop(i, None)
        return values

    def _read(self, number: int, values: dict[int, Value], region: Region) -> Value:
        if number in values:
            return values[number]
        node = self.graph.nodes[number]
        return _part(self.values[number] if node.type == () else self.batch.leaf(node), region)


def _once(make: Callable[[], dict[int, Value]]) -> Callable[[], dict[int, Value]]:
    """Returns a function whose result the first of several threads makes, and the others wait for."""
    lock, cached = Lock(), lru_cache(maxsize=1)(make)

    def result() -> dict[int, Value]:
        with lock:
            return cached()

    return result


def _is_shared(node: Node) -> bool:
    """Whether the node computes a large value that all channels of a member have in common."""
    return node.is_large and bool(node.inputs) and not node.per_channel


def _part(value: Value, region: Region) -> Value:
    """Returns the region of a value; an axis of size 1 is the same for all."""
    parts = (part if size > 1 else slice(None) for part, size in zip(region, value.shape, strict=False))
    return value[tuple(parts)]


class _SingleBlas:
    """While entered, products of matrices use one core each, so that threads of BLAS and ours do not compete.

    Measured with another process on one of 2 cores: 11 s for a product that takes 0.4 s like this. The limit holds for
    the whole process: of several evaluations that overlap, the first one sets it and the last one lifts it.
    """

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limit: AbstractContextManager[object] = nullcontext()

    @cached_property
    def _controller(self) -> ThreadpoolController:
        return ThreadpoolController()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._limit.__exit__(None, None, None)


_single_blas = _SingleBlas()
