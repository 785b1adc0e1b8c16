"""Scores many functions on the operands of one layer: the public functions around `Scorer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import check_operands
from jaxprune.scoring.scorer import Backend, Scorer


def score_population(
    functions: Sequence[Expression],
    operands: Operands,
    *,
    paired: bool = False,
    budget_bytes: int | None = None,
    backend: Backend | None = None,
) -> np.ndarray:
    """Scores many functions on one layer; row i equals `compile(functions[i])(operands)`.

    Nothing is compiled per formula, and what formulas share is computed once. On a CPU nothing is compiled at all; on
    an accelerator one jitted call computes an operator for many formulas and all channels.

    Args:
      functions: P expressions of type (); one that comes twice is computed once.
      operands: of one producer, stacked or not.
      paired: score function i on member i alone, for networks that each function has pruned already.
      budget_bytes: memory for values besides the operands, by default what suits the device.
      backend: where to compute, see `Scorer`.

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
        check_operands(operands)
        if not operands.is_stacked or len(functions) != operands.num_members:
            members = operands.num_members if operands.is_stacked else "no"
            raise ValueError(
                f"paired scoring needs one function for each stacked member, got {len(functions)} functions and "
                f"{members} stacked members. Stack them with Operands.stack, or leave out paired=True."
            )
        scorer = Scorer(operands, budget_bytes=budget_bytes, backend=backend)
        result = scorer.run(functions, networks=range(operands.num_members))[""]
        scores, reasons = result.scores[:, 0], result.reasons
    else:
        scores, reasons = score_with_status(functions, operands, budget_bytes=budget_bytes, backend=backend)
    failed = [f"{f}: {reason}" for f, reason in zip(functions, reasons, strict=True) if reason is not None]
    if failed:
        raise ValueError(
            f"score_population needs functions that it can evaluate on this layer, got {'; '.join(failed)}. "
            "Leave them out, or use score_with_status."
        )
    return scores


def score_with_status(
    functions: Sequence[Expression],
    operands: Operands,
    *,
    budget_bytes: int | None = None,
    backend: Backend | None = None,
) -> tuple[np.ndarray, list[str | None]]:
    """Scores many functions like `score_population`; one that cannot be evaluated gives NaN and a reason.

    Args:
      functions, operands, budget_bytes, backend: as for `score_population`.

    Returns:
      ([P, C] or [P, B, C] scores, P reasons: None, or why the function was not evaluated).

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> score_with_status([parse("gamma")], ops)[1]
      ['operand gamma is missing: this layer does not have it']
    """
    check_operands(operands)
    result = Scorer(operands, budget_bytes=budget_bytes, backend=backend).run(functions)[""]
    return (result.scores if operands.is_stacked else result.scores[:, 0]), result.reasons
