"""Scores of many functions on one layer or on a whole network, with a status for each function."""

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
from jaxprune.scoring.analysis import View, evaluated_nodes, needs_samples
from jaxprune.scoring.compiled import (
    check_operands,
    check_scalar,
    explain_missing,
    missing_operands,
)
from jaxprune.scoring.device_evaluator import DeviceEvaluator
from jaxprune.scoring.formula_cost import (
    BUDGET_BYTES,
    LEAST_SHARE,
    MAX_FLOPS,
    estimate_cost,
    explain_plan,
    explain_refusal,
)
from jaxprune.scoring.graph import Graph
from jaxprune.scoring.leaves import axis_sizes
from jaxprune.scoring.numpy_evaluator import NumpyEvaluator

Backend = Literal["numpy", "device"]
"""`numpy` computes on the host, `device` by jitted calls on the devices of JAX's default backend."""

LEAST_BYTES = 16 << 20
"""A smaller budget counts as that for values that are computed together."""
_ROOM = 64
"""Functions whose largest value takes less than a sixty-fourth of the budget are not looked at more closely."""


def default_budget(backend: Backend = "numpy") -> int:
    """Bytes for values where nobody says otherwise: an eighth of the memory, of the host's at most 512 MiB.

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


def default_backend() -> Backend:
    """Where to compute where nobody says: NumPy on a CPU, where compiling costs more than it gains."""
    return "numpy" if jax.default_backend() == "cpu" else "device"


class PopulationScores(NamedTuple):
    """Scores of P functions on B members of a layer (B = 1 if not stacked)."""

    scores: np.ndarray
    """[P, B, C], rows of functions that were not evaluated are NaN."""
    reasons: list[str | None]
    """Why a function was not evaluated."""
    is_sound: np.ndarray
    """[P, B, C] whether the score and all intermediate values are finite."""


class Scorer:
    """Scores functions on some layers and remembers values between calls, which may come from several threads.

    New operands need a new scorer. A function that one layer refuses is evaluated on none.

    Args:
      operands: of one producer, or producer path -> operands, stacked or not.
      budget_bytes: memory for values besides the operands; by default what suits the device, see `default_budget`.
        Fewer than 16 MiB count as that many for what is computed at once.
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
        for one in self._layers.values():
            check_operands(one)
        _check_alike(self._layers)
        if backend not in (None, *get_args(Backend)):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}.")
        self._backend: Backend = backend or default_backend()
        self._budget_bytes = default_budget(self._backend) if budget_bytes is None else budget_bytes
        self._max_flops = MAX_FLOPS if max_flops is None else max_flops
        self._block_entries = block_entries
        self._registered = _registered()
        self._evaluator = self._make_evaluator()
        self._absent: dict[tuple[str, str], bool] = {}
        self._lock = RLock()
        self._is_full = all(one.sample_is_full for one in self._layers.values())
        self._sizes = {
            path: {view: axis_sizes(one, view) for view in get_args(View)}
            for path, one in self._layers.items()
        }
        self._starts = dict(zip(self._layers, self._evaluator.starts, strict=True))
        """Producer path -> the first channel of each of its members among all."""

    def _make_evaluator(self) -> NumpyEvaluator | DeviceEvaluator:
        layers, budget_bytes = list(self._layers.values()), max(self._budget_bytes, LEAST_BYTES)
        if self._backend == "numpy":
            return NumpyEvaluator(layers, budget_bytes, self._block_entries)
        return DeviceEvaluator(layers, budget_bytes)

    def run(
        self, functions: Sequence[Expression], *, networks: Sequence[int] | None = None
    ) -> dict[str, PopulationScores]:
        """Scores all functions; those that cannot be evaluated get a reason instead of an exception.

        Args:
          functions: P expressions of type ().
          networks: for each function the one stacked member that it scores; by default it scores all.

        Returns:
          Producer path ("" for a single layer) -> scores; [P, 1, C] if `networks` are given.
        """
        for f in functions:
            check_scalar(f)
        with self._lock:
            self._forget_what_has_changed()
            return self._run(functions, networks)

    def _forget_what_has_changed(self) -> None:
        """Drops all values where operands or operators were registered anew since they were computed."""
        now = _registered()
        if len(now) != len(self._registered) or any(
            a is not b for a, b in zip(now, self._registered, strict=True)
        ):
            self._registered, self._evaluator, self._absent = now, self._make_evaluator(), {}

    def _run(
        self, functions: Sequence[Expression], networks: Sequence[int] | None
    ) -> dict[str, PopulationScores]:
        reasons = self._reasons(functions)
        evaluator = self._evaluator
        shape = (len(functions), evaluator.num_channels if networks is None else evaluator.network_channels)
        scores, is_sound = np.full(shape, np.nan, evaluator.dtype), np.zeros(shape, bool)
        for batch in self._batches(functions, _rows_without(reasons)):
            own = None if networks is None else [networks[row] for row in batch]
            scores[batch], is_sound[batch] = self._evaluate([functions[row] for row in batch], own)
        starts = evaluator.starts if networks is None else [[start] for start in evaluator.network_starts]
        return {
            path: PopulationScores(
                np.stack([scores[:, start : start + one.num_channels] for start in own], axis=1),
                reasons[path],
                np.stack([is_sound[:, start : start + one.num_channels] for start in own], axis=1),
            )
            for (path, one), own in zip(self._layers.items(), starts, strict=True)
        }

    def _evaluate(
        self, functions: Sequence[Expression], networks: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """[P, channels] scores, and whether they and everything that vanished on the way to them are finite."""
        graph, wanted, looked_at = self._graph(functions)
        if networks is None:
            finite = {number: None for own in looked_at for number in own}
            found = self._evaluator.evaluate(graph, [*wanted, *finite])
            row_of = {number: row for row, number in enumerate(finite)}
            rows = [[row_of[number] for number in own] for own in looked_at]
        else:
            tasks = list(zip(wanted, networks, strict=True))
            checks = [
                (number, network) for own, network in zip(looked_at, networks, strict=True) for number in own
            ]
            found = self._evaluator.evaluate_tasks(graph, tasks + checks)
            ends = np.cumsum([len(own) for own in looked_at], dtype=int)
            rows = [list(range(end - len(own), end)) for end, own in zip(ends, looked_at, strict=True)]
        scores, is_finite = found[: len(wanted)], found[len(wanted) :] > 0
        is_sound = np.isfinite(scores)
        for row, own in enumerate(rows):
            is_sound[row] &= is_finite[own].all(axis=0)
        return scores, is_sound

    def _graph(self, functions: Sequence[Expression]) -> tuple[Graph, list[int], list[tuple[int, ...]]]:
        """A graph, and for each function the step of its value and those that tell whether it is sound."""
        graph = Graph()
        wanted, looked_at = [], []
        for f in functions:
            form, view = shared_form(f), self._view(f)
            wanted.append(graph.add(form, view))
            looked_at.append(graph.add_soundness(form, view))
        return graph, wanted, looked_at

    def warm_up(self, functions: Sequence[Expression]) -> int:
        """Compiles the operators that these functions would call, several at a time; on a CPU there are none.

        Populations of other functions then compile little: give it some thousands of random ones.

        Returns:
          How many programs there are now.
        """
        if isinstance(self._evaluator, NumpyEvaluator):
            return 0
        for batch in self._batches(functions, _rows_without(self._reasons(functions))):
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

    def first_offending(self, f: Expression, member: int, channel: int, path: str = "") -> Expression:
        """The first sub-expression, children first, that is not finite for a channel of a member.

        Returns:
          That node; `f` itself if all are finite.
        """
        return self.first_offenders([(f, path, member, channel)])[0]

    def first_offenders(self, asked: Sequence[tuple[Expression, str, int, int]]) -> list[Expression]:
        """`first_offending` of many (function, path, member, channel) at once."""
        found: list[Expression] = []
        for batch in self._batches([f for f, *_ in asked], range(len(asked))):
            own = [asked[row] for row in batch]
            graph = Graph()
            steps = {
                (node, f): graph.add_finite(node, self._view(f))
                for f, *_ in own
                for node in evaluated_nodes(f)
            }
            order = list(dict.fromkeys(steps.values()))
            with self._lock:
                is_finite = dict(zip(order, self._evaluator.evaluate(graph, order) > 0, strict=True))
            for f, path, member, channel in own:
                number = self._starts[path][member] + channel
                bad = (node for node in evaluated_nodes(f) if not is_finite[steps[node, f]][number])
                found.append(next(bad, f))
        return found

    def _batches(self, functions: Sequence[Expression], rows: Sequence[int]) -> list[list[int]]:
        """Functions in batches whose scalars, and whether each value is finite, fit into a quarter of the budget."""
        scalar = self._evaluator.num_classes * self._evaluator.num_channels * self._evaluator.dtype.itemsize
        batches: list[list[int]] = []
        held: set[Expression] = set()
        for row in rows:
            needed = set(evaluated_nodes(shared_form(functions[row])))
            if not batches or 4 * scalar * len(held | needed) > self._budget_bytes:
                batches.append([])
                held = set()
            batches[-1].append(row)
            held |= needed
        return batches

    def _view(self, f: Expression) -> View:
        """The sample where a function needs it and any layer has more than its sample."""
        return "sample" if needs_samples(f) and not self._is_full else "full"

    def _reasons(self, functions: Sequence[Expression]) -> dict[str, list[str | None]]:
        """Producer path -> why each function is not evaluated there, or None."""
        read = frozenset[str]().union(*(f.operands for f in functions))
        by_shape: dict[object, list[str | None]] = {}  # layers of one shape cost the same
        found = {}
        for path, one in self._layers.items():
            new = [name for name in read if (path, name) not in self._absent]
            missing = missing_operands(_Names(frozenset(new)), one)
            self._absent |= {(path, name): name in missing for name in new}
            absent = frozenset(name for name in read if self._absent[path, name])
            sizes = self._sizes[path]
            key = (absent, *(tuple(own.items()) for own in sizes.values()))
            if key not in by_shape:
                by_shape[key] = [self._refusal(f, path, absent) for f in functions]
            found[path] = list(by_shape[key])
        return found

    def _refusal(self, f: Expression, path: str, absent: frozenset[str]) -> str | None:
        if absent & f.operands:
            return explain_missing(tuple(sorted(absent & f.operands)))
        view = self._view(f)
        cost = estimate_cost(f, self._sizes[path][view], self._evaluator.dtype.itemsize)
        refusal = explain_refusal(cost, self._budget_bytes, self._max_flops)
        together = len(self._layers) if self._backend == "device" else 1  # layers that are computed at once
        if refusal is not None or cost.bytes_per_channel * together * _ROOM < max(
            self._budget_bytes, LEAST_BYTES
        ):
            return refusal
        # Large values: how many of them there are at once tells the graph alone.
        graph, wanted, looked_at = self._graph([f])
        held = self._evaluator.least_bytes(graph, [*wanted, *looked_at[0]], self._starts[path][0])
        is_small = LEAST_SHARE * held <= LEAST_BYTES
        return None if is_small else explain_plan(cost, held, self._budget_bytes)


class _Names(NamedTuple):
    """Names of operands, as something that reads them."""

    operands: frozenset[str]


def _rows_without(reasons: Mapping[str, Sequence[str | None]]) -> list[int]:
    """Numbers of the functions that no layer refuses."""
    return [row for row, own in enumerate(zip(*reasons.values(), strict=True)) if not any(own)]


def _registered() -> list[object]:
    """What formulas may be made of, as it is registered now."""
    return [*OPERATORS.values(), *OPERANDS.values()]


def _check_alike(layers: Mapping[str, Operands]) -> None:
    if not layers:
        raise ValueError("a scorer needs the operands of at least one layer, got none.")
    first_path, first = next(iter(layers.items()))
    for path, one in layers.items():
        if (one.dtype, one.num_classes) != (first.dtype, first.num_classes):
            raise ValueError(
                f"a scorer needs layers of one dtype and number of classes, got {one.dtype} with {one.num_classes} "
                f"classes for {path} and {first.dtype} with {first.num_classes} for {first_path}. Observe all layers "
                "on the same images."
            )
        if one.num_members != first.num_members or one.is_stacked != first.is_stacked:
            raise ValueError(
                f"a scorer needs layers of equally many stacked members, got {one.num_members} for {path} and "
                f"{first.num_members} for {first_path}. Stack all layers of the same networks."
            )
