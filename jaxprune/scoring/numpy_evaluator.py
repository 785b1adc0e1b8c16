"""A graph evaluated on a CPU: every step is a few calls of NumPy, nothing compiles.

Large values are computed for a block of members and channels at a time, as many as fit the cache, reduced to scalars,
and dropped as soon as nobody needs them. Scalars are computed for all channels of a group of layers at once.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from threading import Lock

import numpy as np
from threadpoolctl import ThreadpoolController

from jaxprune.observation.operands import Operands
from jaxprune.scoring.compute import Value, compute_step
from jaxprune.scoring.graph import (
    Graph,
    Node,
    cone_of,
    fitting,
    is_large,
    is_reduction,
    last_levels,
    last_uses,
    levels_of,
    needed_steps,
    peak_size,
)
from jaxprune.scoring.layer_batches import LayerBatch, batch_layers
from jaxprune.scoring.value_cache import ValueCache
from jaxprune.types import Array

BLOCK_ENTRIES = 1 << 18
"""Entries of the largest value of a block, as measured: smaller blocks take more calls, larger ones leave the cache."""
_MOST_CHANNELS = 1024
"""So many channels stand side by side at most, unless one layer alone has more: threads share the work by groups."""
_ALIKE = 8
"""Reductions whose largest values differ by less than that factor share blocks."""

Region = tuple[slice, slice, slice]
"""Members, classes (all of them) and channels of a block."""


class NumpyEvaluator:
    """Evaluates graphs on some layers, and remembers what was reduced to scalars.

    Args:
      layers: operands of equal dtype and number of classes, stacked or not.
      budget_bytes: for values besides the operands. A quarter each serves to remember scalars, to hold those of one
        call, and for blocks.
      block_entries: of the largest value that is computed at once, `BLOCK_ENTRIES` by default.
    """

    def __init__(
        self, layers: Sequence[Operands], budget_bytes: int, block_entries: int | None = None
    ) -> None:
        groups, self.starts, self.num_channels = batch_layers(layers, _MOST_CHANNELS)
        self.groups = [LayerBatch(*each) for each in groups]
        self.num_classes, self.dtype = layers[0].num_classes, self.groups[0].dtype
        self.network_channels = self.num_channels // layers[0].num_members
        self._layers, self._budget_bytes = tuple(layers), budget_bytes
        most = max(1, budget_bytes // (32 * self.dtype.itemsize))
        self._block_entries = min(block_entries or BLOCK_ENTRIES, most)
        self._remembered = ValueCache(budget_bytes // 4)

    def evaluate(self, graph: Graph, wanted: Sequence[int]) -> np.ndarray:
        """[len(wanted), channels] means over classes of scalars, in the order of the groups' channels."""
        known = {
            number: values
            for number in needed_steps(graph, wanted)
            if is_reduction(graph, number)
            and (values := self._remembered.get(graph.steps[number].key)) is not None
        }
        needed = needed_steps(graph, wanted, known)
        levels = levels_of(graph, needed)
        last = last_levels(graph, needed, levels, wanted)
        runs = [
            _GroupRun(group, graph, {number: own[index] for number, own in known.items()})
            for index, group in enumerate(self.groups)
        ]
        workers = _num_cores()
        limits = (self._block_entries, self._budget_bytes // 4 // workers)
        with _single_blas, ThreadPoolExecutor(workers) as pool:
            for level in range(max(levels.values(), default=0) + 1):
                scalars = [n for n in needed if levels[n] == level and not is_large(graph.steps[n])]
                reductions = [number for number in scalars if is_reduction(graph, number)]
                list(
                    pool.map(operator.call, [task for run in runs for task in run.tasks(reductions, *limits)])
                )
                for number in reductions:
                    self._remembered.add(graph.steps[number].key, [run.values[number] for run in runs])
                for run in runs:
                    run.compute_scalars(scalars)
                    for number in [each for each in run.values if last.get(each, level + 1) <= level]:
                        del run.values[number]
        found = np.empty((len(wanted), self.num_channels), self.dtype)
        with np.errstate(all="ignore"):
            for row, number in enumerate(wanted):
                for run in runs:
                    own = found[row, run.shape.start : run.shape.start + run.shape.width]
                    own.reshape(run.shape.num_members, -1)[...] = run.values[number].mean(axis=1)
        return found

    @property
    def network_starts(self) -> list[int]:
        """For each layer the number of its first channel among those of one network."""
        return [own[0] for own in batch_layers([one.members()[0] for one in self._layers], _MOST_CHANNELS)[1]]

    def evaluate_tasks(self, graph: Graph, wanted: Sequence[tuple[int, int]]) -> np.ndarray:
        """[len(wanted), channels of a network] means over classes of scalars, each of one stacked network."""
        found = np.empty((len(wanted), self.network_channels), self.dtype)
        for network in sorted({network for _, network in wanted}):
            rows = [row for row, (_, other) in enumerate(wanted) if other == network]
            layers = [one.member(network) for one in self._layers]
            alone = NumpyEvaluator(layers, self._budget_bytes, self._block_entries)
            found[rows] = alone.evaluate(graph, [wanted[row][0] for row in rows])
        return found

    def least_bytes(self, graph: Graph, wanted: Sequence[int], channel: int) -> int:
        """What is held at once for one channel of the group that has this one; nothing is run."""
        shapes = [group.shape for group in self.groups]
        group = self.groups[sum(shape.start <= channel for shape in shapes) - 1]
        run = _GroupRun(group, graph, {})
        reductions = [number for number in needed_steps(graph, wanted) if is_reduction(graph, number)]
        return max((run.peak_bytes([number], 1) for number in reductions), default=0)


class _GroupRun:
    """One group of layers while a graph is evaluated."""

    def __init__(self, group: LayerBatch, graph: Graph, known: dict[int, Array]) -> None:
        self.group, self.shape, self.graph = group, group.shape, graph
        self.values = known
        """Scalars, [M or 1, K or 1, C or 1]."""

    def tasks(
        self, reductions: Sequence[int], block_entries: int, most_bytes: int
    ) -> Iterator[Callable[[], None]]:
        """Calls that may run at the same time and together compute some reductions."""
        alike: dict[tuple[bool, int], list[int]] = {}
        for number in reductions:
            step = self.graph.steps[number]
            self.values[number] = np.empty(self._batch(step, self.shape.width), self.group.dtype)
            has_shared = any(_is_shared(self.graph.steps[each]) for each in cone_of(self.graph, [number]))
            bucket = int(math.log(self._channel_entries([number]), _ALIKE))
            alike.setdefault((has_shared, bucket), []).append(number)
        for own in alike.values():
            block = min(max(1, block_entries // self._channel_entries(own)), self.shape.width)
            for part, size in fitting(own, block, self.peak_bytes, most_bytes, lambda b: -(-b // 2)):
                yield from self._split(part, size)

    def compute_scalars(self, numbers: Sequence[int]) -> None:
        """Computes scalars from scalars, for all channels."""
        with np.errstate(all="ignore"):
            for number in numbers:
                step = self.graph.steps[number]
                if not step.inputs:
                    self.values[number] = self.group.leaf(step)
                elif number not in self.values:
                    inputs = [self.values[each] for each in step.inputs]
                    self.values[number] = compute_step(np, step, inputs, self.shape.rows)

    def peak_bytes(self, reductions: Sequence[int], block: int) -> int:
        """The most that is held at once for a block of so many channels."""
        cone = cone_of(self.graph, reductions)
        return (
            peak_size(self.graph, cone, lambda step: self._entries(step, block)) * self.group.dtype.itemsize
        )

    def _channel_entries(self, reductions: Sequence[int]) -> int:
        """Of the largest value on the way to reductions, for one channel."""
        cone = (self.graph.steps[each] for each in cone_of(self.graph, reductions))
        return max((self._entries(step, 1) for step in cone if step.per_channel), default=1)

    def _batch(self, step: Node, block: int) -> tuple[int, int, int]:
        """Members, classes and channels of a value for so many channels."""
        return (
            max(1, block // self.shape.num_channels),
            self.shape.num_classes if step.per_class else 1,
            min(block, self.shape.num_channels) if step.per_channel else 1,
        )

    def _entries(self, step: Node, block: int) -> int:
        return math.prod(self._batch(step, block)) * self.shape.entries(step)

    def _split(self, reductions: Sequence[int], block: int) -> Iterator[Callable[[], None]]:
        """A task for each block; what all channels of a member share is computed by the first that needs it."""
        shape, steps, everything = self.shape, self.graph.steps, slice(None)
        cone = [number for number in cone_of(self.graph, reductions) if steps[number].inputs]
        shared = [number for number in cone if _is_shared(steps[number])]
        own = [number for number in cone if number not in shared]
        read = {each for number in own for each in steps[number].inputs}
        members, _, channels = self._batch(steps[cone[0]]._replace(per_channel=True), block)
        if not any(steps[number].per_channel for number in own):
            channels = shape.num_channels
        for member in range(0, shape.num_members, members):
            there = slice(member, member + members)
            once = _Once(partial(self._run, shared, {}, (there, everything, everything), read))
            for first in range(0, shape.num_channels, channels):
                region = (there, everything, slice(first, first + channels))
                yield lambda once=once, region=region: self._run(own, once(), region)  # type: ignore[misc]

    def _run(
        self, order: Sequence[int], known: dict[int, Value], region: Region, kept: set[int] | None = None
    ) -> dict[int, Value]:
        """Computes steps for one region; returns what is kept, and stores scalars among `values`."""
        steps, rows, values = self.graph.steps, self.shape.rows, dict(known)
        uses = last_uses(self.graph, order, kept or ())
        with np.errstate(all="ignore"):
            for number in order:
                step = steps[number]
                inputs = [self._read(each, values, region) for each in step.inputs]
                masks = [rows.masks(steps[each].type) for each in step.inputs]
                found = compute_step(np, step, inputs, rows, masks=masks)
                if is_large(step):
                    values[number] = found
                else:
                    _part(self.values[number], region)[...] = found
                del inputs, found
                for each in uses.get(number, ()):
                    values.pop(each, None)
        return values

    def _read(self, number: int, values: dict[int, Value], region: Region) -> Value:
        if number in values:
            return values[number]
        step = self.graph.steps[number]
        return _part(self.values[number] if step.type == () else self.group.leaf(step), region)


class _Once:
    """What a call returns, made by the first of several threads that ask."""

    def __init__(self, make: Callable[[], dict[int, Value]]) -> None:
        self._make, self._lock = make, Lock()
        self._found: dict[int, Value] | None = None

    def __call__(self) -> dict[int, Value]:
        with self._lock:
            if self._found is None:
                self._found = self._make()
            return self._found


def _is_shared(step: Node) -> bool:
    """Whether it is a larger value, computed from others, that all channels of a member have in common."""
    return is_large(step) and bool(step.inputs) and not step.per_channel


def _part(value: Value, region: Region) -> Value:
    """The region of a value; an axis of size 1 is the same for all."""
    return value[
        tuple(own if size > 1 else slice(None) for own, size in zip(region, value.shape, strict=False))
    ]


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _SingleBlas:
    """Products of matrices on one core each while several threads run: BLAS threads of both would wait for each other.

    Measured with another process on one of 2 cores: 11 s for a product that takes 0.4 s so. The limit holds for the
    whole process: the first evaluation of several that overlap sets it, the last one lifts it.
    """

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limit: AbstractContextManager[object] = nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._limit.__exit__(None, None, None)


_single_blas = _SingleBlas()


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
