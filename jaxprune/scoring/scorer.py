"""Scores of many functions on one layer or on a whole network, with a status for each function.

`Scorer` turns the formulas into one graph, lets a NumPy or a device evaluator compute it, and reads off the scores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from threading import RLock
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxprune.language.canonical import shared_form
from jaxprune.language.expression import Expression
from jaxprune.language.operators import OPERATORS
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import View, evaluated_nodes
from jaxprune.scoring.compiled import check_operands, check_scalar, explain_missing, missing_operands, view_of
from jaxprune.scoring.device_evaluator import DeviceEvaluator
from jaxprune.scoring.formula_cost import (
    BUDGET_BYTES,
    BUDGET_SHARE,
    MAX_FLOPS,
    estimate_cost,
    explain_memory_refusal,
    explain_refusal,
)
from jaxprune.scoring.graph import Graph
from jaxprune.scoring.layer_batches import axis_sizes
from jaxprune.scoring.numpy_evaluator import NumpyEvaluator

Backend = Literal["numpy", "device"]
"""`numpy` computes on the host, `device` by jitted calls on the devices of JAX's default backend."""

LEAST_BYTES = 16 << 20
"""Memory for values that are computed together, if the budget is smaller than that."""
_SMALL_SHARE = 64
"""A function whose largest value takes less than this part of the budget is accepted without a closer look."""


class PopulationScores(NamedTuple):
    """Scores of P functions on B members of a layer (B = 1 if not stacked)."""

    scores: np.ndarray
    """[P, B, C], rows of functions that were not evaluated are NaN."""
    reasons: list[str | None]
    """Why a function was not evaluated."""
    is_sound: np.ndarray
    """[P, B, C] whether the score and all intermediate values are finite."""


class Scorer:
    """Scores functions on some layers and caches values between calls, which may come from several threads.

    New operands need a new scorer. A function that one layer refuses is evaluated on none.

    Args:
      operands: of one producer, or producer path -> operands, stacked or not.
      budget_bytes: memory for values besides the operands; by default what suits the device, see `default_budget`.
        Values that are computed together may take 16 MiB even if the budget is smaller.
      max_flops: functions costlier than this on one member of a layer are refused, `MAX_FLOPS` by default.
      block_entries: entries of the largest value that NumPy computes at once; by default what suits a CPU's cache.
      backend: where to compute; by default on the host where JAX has only CPUs, else on the device.

    Raises:
      TypeError: if `operands` is neither.
      ValueError: if layers differ in dtype or number of classes or members, or the backend is unknown.
    """

    def __init__(
        self,
        operands: Operands | Mapping[str, Operands],
        *,
        budget_bytes: int | None = None,
        max_flops: float | None = None,
        block_entries: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        self._layers: dict[str, Operands] = (
            dict(operands) if isinstance(operands, Mapping) else {"": operands}
        )
        _check_layers(self._layers)
        if backend not in (None, *get_args(Backend)):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}.")
        self._backend: Backend = backend or default_backend()
        self._budget_bytes = default_budget(self._backend) if budget_bytes is None else budget_bytes
        self._max_flops = MAX_FLOPS if max_flops is None else max_flops
        self._block_entries = block_entries
        self._lock = RLock()
        self._is_full = all(layer.sample_is_full for layer in self._layers.values())
        self._sizes = {
            path: {view: axis_sizes(layer, view) for view in get_args(View)}
            for path, layer in self._layers.items()
        }
        self._start_anew()
        self._starts = dict(zip(self._layers, self._evaluator.starts, strict=True))
        """Producer path -> the first channel of each of its members among all."""

    def _start_anew(self) -> None:
        """Makes an evaluator without cached values, for the operators and operands that are registered now."""
        self._registered = [*OPERATORS.values(), *OPERANDS.values()]
        self._absent: dict[tuple[str, str], bool] = {}
        layers, budget_bytes = list(self._layers.values()), max(self._budget_bytes, LEAST_BYTES)
        self._evaluator: NumpyEvaluator | DeviceEvaluator = (
            NumpyEvaluator(layers, budget_bytes, self._block_entries)
            if self._backend == "numpy"
            else DeviceEvaluator(layers, budget_bytes)
        )

    def run(
        self, functions: Sequence[Expression], *, networks: Sequence[int] | None = None
    ) -> dict[str, PopulationScores]:
        """Scores all functions; those that cannot be evaluated get a reason instead of an exception.

        Args:
          functions: P expressions of type ().
          networks: for each function the one stacked member that it scores; by default it scores all.

        Returns:
          Producer path ("" for a single layer) -> scores; [P, 1, C] if `networks` are given.

        Raises:
          TypeError: if a function is not an expression.
          ValueError: if its type is not ().
        """
        for f in functions:
            check_scalar(f)
        with self._lock:
            registered = [*OPERATORS.values(), *OPERANDS.values()]
            if list(map(id, registered)) != list(map(id, self._registered)):
                self._start_anew()
            reasons = self._reasons(functions)
            evaluator = self._evaluator
            width = evaluator.num_channels if networks is None else evaluator.network_channels
            scores = np.full((len(functions), width), np.nan, evaluator.dtype)
            is_sound = np.zeros(scores.shape, bool)
            for batch in self._batches(functions, _accepted(reasons)):
                own_networks = None if networks is None else [networks[row] for row in batch]
                results = self._evaluate([functions[row] for row in batch], own_networks)
                scores[batch], is_sound[batch] = results
        starts = evaluator.starts if networks is None else [[start] for start in evaluator.network_starts]
        by_path = {}
        for (path, layer), by_member in zip(self._layers.items(), starts, strict=True):
            index = np.add.outer(by_member, np.arange(layer.num_channels))  # [B, C]
            own_scores, own_soundness = scores.take(index, axis=1), is_sound.take(index, axis=1)
            by_path[path] = PopulationScores(own_scores, reasons[path], own_soundness)
        return by_path

    def _reasons(self, functions: Sequence[Expression]) -> dict[str, list[str | None]]:
        """Returns for each producer path why functions are not evaluated there, or None."""
        names = frozenset[str]().union(*(f.operands for f in functions))
        by_shape: dict[object, list[str | None]] = {}  # layers of one shape cost the same
        reasons = {}
        for path, layer in self._layers.items():
            new = [name for name in names if (path, name) not in self._absent]
            missing = missing_operands(new, layer)
            self._absent |= {(path, name): name in missing for name in new}
            absent = frozenset(name for name in names if self._absent[path, name])
            key = (
                absent,
                layer.has_activations,
                *(tuple(sizes.items()) for sizes in self._sizes[path].values()),
            )
            if key not in by_shape:
                by_shape[key] = [self._refusal(f, path, absent) for f in functions]
            reasons[path] = list(by_shape[key])
        return reasons

    def _refusal(self, f: Expression, path: str, absent: frozenset[str]) -> str | None:
        """Returns why a function is not evaluated on a layer, or None."""
        if absent & f.operands:
            return explain_missing(tuple(sorted(absent & f.operands)), self._layers[path])
        cost = estimate_cost(f, self._sizes[path][self._view(f)], self._evaluator.dtype.itemsize)
        refusal = explain_refusal(cost, self._budget_bytes, self._max_flops)
        num_layers = len(self._layers) if self._backend == "device" else 1  # computed at once
        is_small = cost.bytes_per_channel * num_layers * _SMALL_SHARE < max(self._budget_bytes, LEAST_BYTES)
        if refusal is not None or is_small:
            return refusal
        # Only the graph tells how many large values are held at once.
        graph, wanted, checks = self._graph([f])
        held = self._evaluator.least_bytes(graph, [*wanted, *checks[0]], self._starts[path][0])
        if BUDGET_SHARE * held <= LEAST_BYTES:
            return None
        return explain_memory_refusal(cost, held, self._budget_bytes)

    def _batches(self, functions: Sequence[Expression], rows: Sequence[int]) -> list[list[int]]:
        """Splits rows of functions into batches whose scalars, and checks, fit into a quarter of the budget."""
        scalar_bytes = (
            self._evaluator.num_classes * self._evaluator.num_channels * self._evaluator.dtype.itemsize
        )
        batches: list[list[int]] = []
        in_batch: set[Expression] = set()
        for row in rows:
            nodes = set(evaluated_nodes(shared_form(functions[row])))
            if not batches or 4 * scalar_bytes * len(in_batch | nodes) > self._budget_bytes:
                batches.append([])
                in_batch = set()
            batches[-1].append(row)
            in_batch |= nodes
        return batches

    def _evaluate(
        self, functions: Sequence[Expression], networks: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns [P, channels] scores, and whether they and all that vanished on the way to them are finite."""
        graph, wanted, checks = self._graph(functions)
        if networks is None:
            finite = {number: None for own in checks for number in own}
            means = self._evaluator.evaluate(graph, [*wanted, *finite])
            row_of = {number: row for row, number in enumerate(finite)}
            rows = [[row_of[number] for number in own] for own in checks]
        else:
            tasks = list(zip(wanted, networks, strict=True))
            tasks += [
                (number, network) for own, network in zip(checks, networks, strict=True) for number in own
            ]
            means = self._evaluator.evaluate_tasks(graph, tasks)
            ends = np.cumsum([len(own) for own in checks], dtype=int)
            rows = [list(range(end - len(own), end)) for end, own in zip(ends, checks, strict=True)]
        scores, is_finite = means[: len(wanted)], means[len(wanted) :] > 0
        is_sound = np.isfinite(scores)
        for row, own_rows in enumerate(rows):
            is_sound[row] &= is_finite[own_rows].all(axis=0)
        return scores, is_sound

    def _graph(self, functions: Sequence[Expression]) -> tuple[Graph, list[int], list[tuple[int, ...]]]:
        """Returns a graph, and for each function the node of its value and those that say whether it is sound."""
        graph = Graph()
        wanted, checks = [], []
        for f in functions:
            form, view = shared_form(f), self._view(f)
            wanted.append(graph.add(form, view))
            checks.append(graph.add_soundness(form, view))
        return graph, wanted, checks

    def _view(self, f: Expression) -> View:
        """Returns the sample if the function needs it and any layer has more than its sample."""
        return view_of(f, sample_is_full=self._is_full)

    def warm_up(self, functions: Sequence[Expression]) -> int:
        """Compiles the programs that these functions would call, several at a time; on a CPU there are none.

        Populations of other functions then compile little. Some thousands of random functions are a good choice.

        Args:
          functions: expressions of type ().

        Returns:
          How many programs there are now.
        """
        if isinstance(self._evaluator, NumpyEvaluator):
            return 0
        for batch in self._batches(functions, _accepted(self._reasons(functions))):
            graph, _, _ = self._graph([functions[row] for row in batch])
            with self._lock:
                self._evaluator.warm_up(graph)
        return self.num_programs

    @property
    def num_programs(self) -> int:
        """Programs that have been compiled for the device backend."""
        return 0 if isinstance(self._evaluator, NumpyEvaluator) else len(self._evaluator.programs.compiled)

    @property
    def num_calls(self) -> int:
        """Calls of programs that the device backend has made."""
        return 0 if isinstance(self._evaluator, NumpyEvaluator) else self._evaluator.num_calls

    def first_offenders(self, questions: Sequence[tuple[Expression, str, int, int]]) -> list[Expression]:
        """Finds the first sub-expressions, children first, that are not finite for a channel of a member.

        Args:
          questions: (function, path of the producer, member, channel) each; the path is "" for a single layer.

        Returns:
          The offending sub-expression of each question; the function itself if all are finite.
        """
        offenders: list[Expression] = []
        for batch in self._batches([f for f, *_ in questions], range(len(questions))):
            own = [questions[row] for row in batch]
            graph = Graph()
            checks = {
                (node, f): graph.add_finite(node, self._view(f))
                for f, *_ in own
                for node in evaluated_nodes(f)
            }
            order = list(dict.fromkeys(checks.values()))
            with self._lock:
                is_finite = dict(zip(order, self._evaluator.evaluate(graph, order) > 0, strict=True))
            for f, path, member, channel in own:
                index = self._starts[path][member] + channel
                bad = (node for node in evaluated_nodes(f) if not is_finite[checks[node, f]][index])
                offenders.append(next(bad, f))
        return offenders


def default_backend() -> Backend:
    """Returns where functions are scored by default: by NumPy where JAX has only CPUs, else on the device.

    On a CPU compiling takes more time than it saves.
    """
    return "numpy" if jax.default_backend() == "cpu" else "device"


def default_budget(backend: Backend = "numpy") -> int:
    """Returns the default memory for values in bytes: an eighth of the device's memory, or of the host's up to 512 MiB.

    Args:
      backend: where values are computed.

    Example:
      >>> 0 < default_budget() <= 512 << 20
      True
    """
    known = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if known and backend == "device":
        return known // 8
    if not hasattr(os, "sysconf"):
        return BUDGET_BYTES
    return min(BUDGET_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)


def _accepted(reasons: Mapping[str, Sequence[str | None]]) -> list[int]:
    """Returns the rows of the functions that no layer refuses."""
    return [row for row, by_layer in enumerate(zip(*reasons.values(), strict=True)) if not any(by_layer)]


def _check_layers(layers: Mapping[str, Operands]) -> None:
    """Refuses what are not layers, none at all, and layers that cannot be scored together."""
    for layer in layers.values():
        check_operands(layer)
    if not layers:
        raise ValueError("a scorer needs the operands of at least one layer, got none.")
    first_path, first = next(iter(layers.items()))
    for path, layer in layers.items():
        if (layer.dtype, layer.num_classes) != (first.dtype, first.num_classes):
            raise ValueError(
                f"a scorer needs layers of one dtype and number of classes, got {layer.dtype} with {layer.num_classes} "
                f"classes for {path} and {first.dtype} with {first.num_classes} for {first_path}. Observe all layers "
                "on the same images."
            )
        if layer.num_members != first.num_members or layer.is_stacked != first.is_stacked:
            raise ValueError(
                f"a scorer needs layers of equally many stacked members, got {layer.num_members} for {path} and "
                f"{first.num_members} for {first_path}. Stack all layers of the same networks."
            )
