"""Scores of many functions on one layer or on a whole network, with a status for each function."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from threading import RLock
from typing import NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View, evaluated_nodes, needs_samples, swallowed_children
from jaxprune.scoring.compiled import (
    check_operands,
    check_scalar,
    explain_missing,
    missing_operands,
)
from jaxprune.scoring.engine import LEAST_BYTES, Engine, needs_columns
from jaxprune.scoring.estimates import LEAST_SHARE, estimate_cost, explain_plan, explain_refusal
from jaxprune.scoring.lanes import axis_sizes
from jaxprune.scoring.layers import layers_of
from jaxprune.scoring.records import Operands
from jaxprune.scoring.samples import MASK_BYTES
from jaxprune.scoring.sharing import shared_form

BUDGET_BYTES = 512 << 20
"""How much memory node values may take at most, besides the operands themselves, where nobody says otherwise."""
_ROOM = 64
"""The plan of a function is looked at where its largest value takes more than that part of the budget."""
MAX_FLOPS = 5e10
"""Operations that one function may cost on one member of one layer; costlier ones are refused."""


def default_budget() -> int:
    """Bytes for values where nobody says otherwise: an eighth of the device's memory, at most 512 MiB.

    Example:
      >>> 0 < default_budget() <= 512 << 20
      True
    """
    known = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if not known and hasattr(os, "sysconf"):
        known = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(BUDGET_BYTES, known // 8) if known else BUDGET_BYTES


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
      budget_bytes: memory for values besides the operands and their padded copies; by default what suits the device,
        see `default_budget`. Fewer than 16 MiB count as that many for what is computed at once.
      max_flops: functions costlier than this on one member of a layer are refused, `MAX_FLOPS` by default.
      column_entries: entries of the largest value that is computed at once; by default what suits the backend.
      mesh: devices that share the channels of every layer.

    Raises:
      TypeError: if `operands` is neither.
      ValueError: if layers differ in dtype or number of classes.
    """

    def __init__(
        self,
        operands: Operands | Mapping[str, Operands],
        *,
        budget_bytes: int | None = None,
        max_flops: float | None = None,
        column_entries: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self._layers: dict[str, Operands] = (
            dict(operands) if isinstance(operands, Mapping) else {"": operands}
        )
        for one in self._layers.values():
            check_operands(one)
        _check_alike(self._layers)
        budget_bytes = default_budget() if budget_bytes is None else budget_bytes
        self._budget_bytes = budget_bytes
        self._max_flops = MAX_FLOPS if max_flops is None else max_flops
        devices = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)  # of automatic axes
        masks = min(MASK_BYTES, budget_bytes // 8)
        layers, starts, num_lanes = layers_of(list(self._layers.values()), devices, masks)
        self._engine = Engine(layers, num_lanes, budget_bytes, column_entries)
        self._lock = RLock()
        self._is_full = all(one.sample_is_full for one in self._layers.values())
        self._sizes = {
            path: {view: axis_sizes(one, view) for view in get_args(View)}
            for path, one in self._layers.items()
        }
        self._places = {
            path: [slice(start, start + one.num_channels) for start in own]
            for (path, one), own in zip(self._layers.items(), starts, strict=True)
        }

    def run(self, functions: Sequence[Expression]) -> dict[str, PopulationScores]:
        """Scores all functions; those that cannot be evaluated get a reason instead of an exception.

        Returns:
          Producer path ("" for a single layer) -> scores.
        """
        for f in functions:
            check_scalar(f)
        with self._lock:
            return self._run(functions)

    def _run(self, functions: Sequence[Expression]) -> dict[str, PopulationScores]:
        reasons = self._reasons(functions)
        is_refused = [any(reasons[path][row] for path in reasons) for row in range(len(functions))]
        scores = np.full((len(functions), self._engine.num_lanes), np.nan, self._engine.dtype)
        is_sound = np.zeros(scores.shape, bool)
        rows = [row for row in range(len(functions)) if not is_refused[row]]
        for batch in self._batches(functions, rows):
            wanted = [(shared_form(functions[row]), self._view(functions[row])) for row in batch]
            scores[batch] = self._engine.scores(wanted)
            is_sound[batch] = self._soundness(wanted, scores[batch])
        return {
            path: PopulationScores(
                np.stack([scores[:, place] for place in places], axis=1),
                reasons[path],
                np.stack([is_sound[:, place] for place in places], axis=1),
            )
            for path, places in self._places.items()
        }

    def warm_up(self) -> None:
        """Compiles every kernel that any formula can ask for on these layers, before the first one comes.

        After it new populations compile nothing, nor does the same network when it has been pruned. It takes from
        seconds to minutes; a persistent compilation cache keeps the result. Operators and operands that a user
        registers may compile more.
        """
        self._engine.warm_up(self._budget_bytes // (LEAST_SHARE * self._engine.dtype.itemsize))

    def first_offending(self, f: Expression, member: int, channel: int, path: str = "") -> Expression:
        """The first sub-expression, children first, that is not finite for a channel of a member.

        Returns:
          That node; `f` itself if all are finite.
        """
        return self.first_offenders([(f, path, member, channel)])[0]

    def first_offenders(self, asked: Sequence[tuple[Expression, str, int, int]]) -> list[Expression]:
        """`first_offending` of many (function, path, member, channel) at once."""
        nodes = [(node, self._view(f)) for f, *_ in asked for node in evaluated_nodes(f)]
        with self._lock:
            finite = iter(self._engine.finite(nodes))
        found = []
        for f, path, member, channel in asked:
            lane = self._places[path][member].start + channel
            own = [(node, next(finite)[lane]) for node in evaluated_nodes(f)]
            found.append(next((node for node, is_finite in own if not is_finite), f))
        return found

    def _soundness(self, wanted: Sequence[tuple[Expression, View]], scores: np.ndarray) -> np.ndarray:
        """Whether scores, and all arguments whose non-finite entries could vanish, are finite."""
        looked_at = [
            [
                (node.children[index], view)
                for node in evaluated_nodes(f)
                for index in swallowed_children(node)
            ]
            for f, view in wanted
        ]
        finite = iter(self._engine.finite([pair for own in looked_at for pair in own]))
        is_sound = np.isfinite(scores)
        for row, own in enumerate(looked_at):
            for _ in own:
                is_sound[row] &= next(finite)
        return is_sound

    def _batches(self, functions: Sequence[Expression], rows: Sequence[int]) -> list[list[int]]:
        """Functions in batches whose planes that come from columns fit into a quarter of the budget."""
        plane = self._engine.num_classes * self._engine.num_lanes * self._engine.dtype.itemsize
        batches: list[list[int]] = []
        held: set[Expression] = set()
        for row in rows:
            needed = {node for node in evaluated_nodes(shared_form(functions[row])) if needs_columns(node)}
            if not batches or 4 * plane * len(held | needed) > self._budget_bytes:
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
        read = _Names(frozenset().union(*(f.operands for f in functions)))
        by_shape: dict[object, list[str | None]] = {}  # layers of one shape cost the same
        found = {}
        for path, one in self._layers.items():
            absent = frozenset(missing_operands(read, one))
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
        cost = estimate_cost(f, self._sizes[path][view], self._engine.dtype.itemsize)
        refusal = explain_refusal(cost, self._budget_bytes, self._max_flops)
        if refusal is not None or cost.bytes_per_channel * _ROOM < max(self._budget_bytes, LEAST_BYTES):
            return refusal
        # Large values: how many of them there are at once tells the plan alone.
        lanes = [place.start for place in self._places[path]]
        held = self._engine.least_bytes(f, view, lanes)
        is_small = LEAST_SHARE * held <= LEAST_BYTES
        return None if is_small else explain_plan(cost, held, self._budget_bytes)


class _Names(NamedTuple):
    """Names of operands, as something that reads them."""

    operands: frozenset[str]


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


def score_population(
    functions: Sequence[Expression],
    operands: Operands,
    *,
    paired: bool = False,
    budget_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Scores many functions on one layer; row i equals `compile(functions[i])(operands)`.

    Nothing is compiled per formula: one jitted kernel per operator and padded shape serves all, and what formulas share
    is computed once. With shapes in the same buckets, known kinds of values compile nothing more.

    Args:
      functions: P expressions of type (); one that comes twice is computed once.
      operands: of one producer, stacked or not.
      paired: score function i on member i alone, for networks that each function has pruned already.
      budget_bytes: memory for values besides the operands, by default what suits the device.
      mesh: devices that share the channels; scores do not depend on how many there are.

    Returns:
      [P, C] scores, [P, B, C] for stacked operands ([P, C] if paired); not finite where the arithmetic is not.

    Raises:
      ValueError: if a function reads an operand the layer does not have, or would exceed the budget; use
        `score_with_status` to get the others. If paired, and there is not one function for each stacked member.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> functions = [parse("sum(abs(WI))"), parse("mean(X)")]
      >>> score_population(functions, ops).tolist()
      [[4.0, 6.0], [0.5, 0.5]]
      >>> score_population(functions, Operands.stack([ops, ops]), paired=True).tolist()
      [[4.0, 6.0], [0.5, 0.5]]
    """
    if paired:
        return _score_pairs(functions, operands, budget_bytes, mesh)
    scores, reasons = score_with_status(functions, operands, budget_bytes=budget_bytes, mesh=mesh)
    failed = [f"{f}: {reason}" for f, reason in zip(functions, reasons, strict=True) if reason is not None]
    if failed:
        raise ValueError(
            "score_population needs functions that it can evaluate on this layer, got "
            + "; ".join(failed)
            + ". Leave them out, or use score_with_status."
        )
    return scores


def _score_pairs(
    functions: Sequence[Expression], operands: Operands, budget_bytes: int | None, mesh: Mesh | None
) -> np.ndarray:
    check_operands(operands)
    if not operands.is_stacked or len(functions) != operands.num_members:
        members = operands.num_members if operands.is_stacked else "no"
        raise ValueError(
            f"paired scoring needs one function for each stacked member, got {len(functions)} functions and "
            f"{members} stacked members. Stack them with Operands.stack, or leave out paired=True."
        )
    rows = [
        score_population([f], operands.member(i), budget_bytes=budget_bytes, mesh=mesh)[0]
        for i, f in enumerate(functions)
    ]
    return np.stack(rows)


def score_with_status(
    functions: Sequence[Expression],
    operands: Operands,
    *,
    budget_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, list[str | None]]:
    """Like `score_population`, but a function that cannot be evaluated gives a NaN row and a reason.

    Returns:
      ([P, C] or [P, B, C] scores, P reasons: None, or why the function was not evaluated).

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> score_with_status([parse("gamma")], ops)[1]
      ['operand gamma is missing: this layer does not have it']
    """
    check_operands(operands)
    found = Scorer(operands, budget_bytes=budget_bytes, mesh=mesh).run(functions)[""]
    scores = found.scores if operands.is_stacked else found.scores[:, 0]
    return scores, found.reasons
