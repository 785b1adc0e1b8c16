"""Scores of many functions on one layer: every distinct sub-expression once, no compilation per formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View, estimate_cost, evaluated_nodes
from jaxprune.scoring.blocks import Layout, block_of, boundaries, default_block_bytes, give_boundaries
from jaxprune.scoring.compiled import (
    as_stacked,
    check_operands,
    check_scalar,
    explain_missing,
    missing_operands,
    view_of,
)
from jaxprune.scoring.graph import ValueGraph
from jaxprune.scoring.lanes import axis_sizes, class_mean, keep_registered
from jaxprune.scoring.records import Operands

BUDGET_BYTES = 512 << 20
"""How much memory node values may take, besides the operands themselves."""
MAX_FLOPS = 5e10
"""Operations that one function may cost on one member of one layer; costlier ones are refused."""


class PopulationScores(NamedTuple):
    """Scores of P functions on B members of a layer (B = 1 if not stacked)."""

    scores: np.ndarray
    """[P, B, C], rows of functions that were not evaluated are NaN."""
    reasons: list[str | None]
    """Why a function was not evaluated."""
    is_sound: np.ndarray
    """[P, B, C] whether the score and all intermediate values are finite."""


class Scorer:
    """Scores functions on one layer and remembers node values between calls.

    Args:
      operands: of one producer, stacked or not.
      budget_bytes: memory for node values; larger ones are computed for a few channels at a time.
      max_flops: functions costlier than this on one member are refused.
      block_bytes: size of the largest value of a block; by default what suits the backend.
    """

    def __init__(
        self,
        operands: Operands,
        *,
        budget_bytes: int = BUDGET_BYTES,
        max_flops: float = MAX_FLOPS,
        block_bytes: int | None = None,
    ) -> None:
        check_operands(operands)
        self.operands = operands
        self._budget_bytes = budget_bytes
        self._max_flops = max_flops
        self._block_bytes = min(block_bytes or default_block_bytes(), budget_bytes // 8)
        self._graph = ValueGraph(as_stacked(operands), cache_bytes=budget_bytes // 2)
        self._offending: dict[tuple[Expression, Expression], Expression] = {}

    def run(self, functions: Sequence[Expression]) -> PopulationScores:
        """Scores all functions; those that cannot be evaluated get a reason instead of an exception."""
        for f in functions:
            check_scalar(f)
        self._graph.operands = keep_registered(self._graph.operands, functions)
        reasons = [self._refusal(f) for f in functions]
        wanted = [
            (f, view_of(f, self.operands))
            for f, reason in zip(functions, reasons, strict=True)
            if reason is None
        ]
        for view in ("full", "sample"):
            chosen = [(f, own_view) for f, own_view in wanted if own_view == view]
            if chosen:
                give_boundaries(self._graph, chosen, self._layout(view))
        values = [class_mean(self._graph.value(f, view)) for f, view in wanted]
        hidden = [self._graph.hidden(f, view) for f, view in wanted]
        return self._collect(
            reasons, jax.device_get(values), jax.device_get([list(h.values()) for h in hidden])
        )

    def first_offending(self, f: Expression, member: int, channel: int) -> Expression:
        """The first sub-expression, children first, that is not finite for a channel of a member.

        Returns:
          That node; `f` itself if all are finite.
        """
        view = view_of(f, self.operands)
        layout = self._layout(view)
        nodes = evaluated_nodes(f)
        small = [node for node in nodes if not layout.is_big(node)]
        found = next(
            (node for node in small if not self._is_finite(self._graph, node, view, member, channel)), f
        )
        before = nodes[: nodes.index(found)]
        if not any(layout.is_big(node) for node in before):
            return found
        if (f, found) not in self._offending:  # what one member shows, the others show too
            sizes = [layout.block_channels(node) for node in boundaries(f, layout)]
            block, place = block_of(self._graph, member, channel, min(sizes, default=1), layout)
            big = (node for node in before if not self._is_finite(block, node, view, 0, place))
            self._offending[f, found] = next(big, found)
        return self._offending[f, found]

    def _is_finite(self, graph: ValueGraph, node: Expression, view: View, member: int, channel: int) -> bool:
        finite = graph.finite(node, view)
        return bool(finite[min(member, finite.shape[0] - 1), min(channel, finite.shape[1] - 1)])

    def _refusal(self, f: Expression) -> str | None:
        """Why `f` is not evaluated, or None."""
        absent = missing_operands(f, self._graph.operands)
        if absent:
            return explain_missing(absent)
        layout = self._layout(view_of(f, self.operands))
        cost = estimate_cost(f, layout.sizes, layout.itemsize)
        if cost.flops > self._max_flops:
            return (
                f"refused: needs {cost.flops:.1e} operations on this layer, more than {self._max_flops:.1e}"
            )
        if 4 * cost.bytes_per_channel > self._budget_bytes:
            return (
                f"refused: needs values of {cost.bytes_per_channel:.1e} bytes for one channel, "
                f"more than a quarter of the budget of {self._budget_bytes:.1e}"
            )
        return None

    def _layout(self, view: View) -> Layout:
        sizes = axis_sizes(self._graph.operands, view)
        return Layout(self._graph.lanes, sizes, self.operands.dtype.itemsize, self._block_bytes)

    def _collect(
        self, reasons: list[str | None], values: list[np.ndarray], hidden: list[list[list[np.ndarray]]]
    ) -> PopulationScores:
        members, _, channels = self._graph.lanes
        scores = np.full((len(reasons), members, channels), np.nan, self.operands.dtype)
        is_sound = np.zeros(scores.shape, bool)
        rows = [row for row, reason in enumerate(reasons) if reason is None]
        for row, value, lookups in zip(rows, values, hidden, strict=True):
            scores[row] = value
            is_sound[row] = np.isfinite(value)
            for lookup in lookups:
                for is_finite in lookup:
                    is_sound[row] &= is_finite
        return PopulationScores(scores, reasons, is_sound)


def score_population(
    functions: Sequence[Expression], operands: Operands, *, budget_bytes: int = BUDGET_BYTES
) -> np.ndarray:
    """Scores many functions on one layer; row i equals `compile(functions[i])(operands)`.

    Nothing is compiled per formula: one jitted kernel per operator and shape serves all, and sub-expressions that
    formulas share are computed once. With the same shapes, further calls compile nothing.

    Args:
      functions: P expressions of type ().
      operands: of one producer, stacked or not.
      budget_bytes: memory for node values.

    Returns:
      [P, C] scores, [P, B, C] for stacked operands; not finite where the arithmetic is not.

    Raises:
      ValueError: if a function reads an operand the layer does not have, or would exceed the budget; use
        `score_with_status` to get the others.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> score_population([parse("sum(abs(WI))"), parse("mean(X)")], ops).tolist()
      [[4.0, 6.0], [0.5, 0.5]]
    """
    scores, reasons = score_with_status(functions, operands, budget_bytes=budget_bytes)
    failed = [f"{f}: {reason}" for f, reason in zip(functions, reasons, strict=True) if reason is not None]
    if failed:
        raise ValueError(
            "score_population needs functions that it can evaluate on this layer, got "
            + "; ".join(failed)
            + ". Leave them out, or use score_with_status."
        )
    return scores


def score_with_status(
    functions: Sequence[Expression], operands: Operands, *, budget_bytes: int = BUDGET_BYTES
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
    found = Scorer(operands, budget_bytes=budget_bytes).run(functions)
    scores = found.scores if operands.is_stacked else found.scores[:, 0]
    return scores, found.reasons
