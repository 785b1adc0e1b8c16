"""From functions and an observed network to an order of channels in every group, or the reason why there is none.

Scores of a group's producers are made unitless and joined; non-finite values make a function invalid, a group of
equal scores falls back to the order of `l2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.observation.observed import Observed
from jaxprune.scoring.compiled import Reader, missing_operands
from jaxprune.scoring.metrics import Metric, PruningFunction
from jaxprune.scoring.status import (
    Found,
    plainest,
    problems_of,
    say_absent,
    say_refused,
    score_producers,
    some_of,
    with_what_is_read,
)
from jaxprune.types import Invalid

Aggregation = Literal["relative", "mean", "max", "first"]
"""How the scores of a group's producers become one: `relative` is the mean of scores divided by their mean
magnitude, `mean` the plain mean, `max` the largest relative score, `first` the first producer's score alone."""

_CONSTANT_ULPS = 8  # a spread of less is rounding, not an order


@dataclass(frozen=True, eq=False)
class Ranking:
    """Finite scores of all channels of a network by one function; the lowest are pruned first."""

    scores: Mapping[str, np.ndarray]
    """Group name -> [C] float64 scores."""
    fallback_groups: tuple[str, ...]
    """Groups whose scores were all equal, which hold the scores of `l2` instead."""
    num_ties: int
    """Channels of the other groups that share their score with one of lower index."""


Status = Literal["ok", "constant", "not finite", "missing operand", "refused"]
"""What became of a function on a network; `constant` means equal scores in every group."""


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of one function on all channels of a network, as they are, and what became of it."""

    scores: Mapping[str, np.ndarray]
    """Group name -> [C] float64 scores; NaN where it was not evaluated or not finite."""
    status: Status
    detail: str
    """Which operand, cost or first sub-expression, group and channel it is about; "" for `ok`."""
    constant_groups: tuple[str, ...]
    """Groups whose scores are all equal."""


def score(
    f: PruningFunction, operands: Observed, *, aggregation: Aggregation = "relative"
) -> dict[str, np.ndarray]:
    """The score of every channel of every group of an observed network.

    Args:
      f: a pruning function: an expression, a metric, or any function from the `Operands` of one layer to [C] scores.
      operands: what `observe` returns; gradients are computed when `f` is the first to read `GW` or `GX`.
      aggregation: how the scores of several producers of one group are joined, see `Aggregation`. The default
        divides by the mean magnitude in groups of one producer too, so that groups can be compared.

    Returns:
      Group name -> [C] float64 scores ([B, C] for stacked operands), the lowest to be pruned first. Values that
      the arithmetic makes NaN or infinite stay so.

    Raises:
      TypeError: if `operands` is not what `observe` returns, or `f` no pruning function.
      ValueError: if a producer lacks an operand, a function does not give [C] numbers, or the aggregation is unknown.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> score(parse("sum(abs(WI))"), observed)
      {'dense.kernel': array([0.8, 1.2])}
      >>> score(lambda operands: abs(operands.filters).sum(0), observed)
      {'dense.kernel': array([0.8, 1.2])}
    """
    if not isinstance(operands, Observed):
        raise TypeError(
            f"score needs what observe returns, got {type(operands).__name__}. "
            "For the Operands of one layer use compile(f)(operands)."
        )
    f = plainest(f)
    operands = with_what_is_read([f], operands)
    found = score_producers([f], operands)
    reasons = [f"{path}: {result.reasons[0]}" for path, result in found.results.items() if result.reasons[0]]
    if reasons:
        reader = cast(Reader, f)  # plain functions give no reasons
        absent = {path: names for path, one in operands.items() if (names := missing_operands(reader, one))}
        raise ValueError(say_absent(f, absent) if absent else say_refused(f, reasons))
    joined = {}
    for group, paths in operands.groups.items():
        scores = aggregate([found.results[path].scores[0] for path in paths], aggregation)
        joined[group] = scores if operands.is_stacked else scores[0]
    return joined


def rank_population(
    functions: Sequence[PruningFunction], operands: Observed, *, aggregation: Aggregation = "relative"
) -> list[Ranking | Invalid] | list[list[Ranking | Invalid]]:
    """Ranks the channels of a network by many functions at once.

    A function is invalid, with a reason, where a score or an intermediate value is not finite (the reason names
    group, channel and the first offending sub-expression), where an operand is missing, where it would cost too much,
    and where its scores are constant in every group.

    Args:
      functions: P pruning functions, as `score` takes them.
      operands: what `observe` returns, or several of these stacked.
      aggregation: see `Aggregation`.

    Returns:
      One result per function; for stacked operands, per function a list with one result per member.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> print(rank_population([parse("N / (NX - NX)")], observed)[0])
      invalid: not finite in group dense.kernel, channel 0: N/(NX - NX)
    """
    functions = [plainest(f) for f in functions]
    operands = with_what_is_read(functions, operands)
    unique = list(dict.fromkeys([*functions, library["l2"]]))
    found = score_producers(unique, operands)
    problems = problems_of(unique, found, operands)
    fallback = _group_scores(found, operands, unique.index(library["l2"]), aggregation)
    ranked: dict[PruningFunction, list[Ranking | Invalid]] = {}
    for row, f in enumerate(unique):
        scores = _group_scores(found, operands, row, aggregation)
        ranked[f] = [
            problems.get((row, member)) or _rank(scores, fallback, member)
            for member in range(operands.num_members)
        ]
    if operands.is_stacked:
        return [ranked[f] for f in functions]
    return [ranked[f][0] for f in functions]


def score_functions(
    functions: Sequence[PruningFunction], operands: Observed, *, aggregation: Aggregation = "relative"
) -> list[Scored]:
    """Scores many functions on a network in one batched call; what fails says so and does not disturb the others.

    Args:
      functions: P pruning functions, as `score` takes them; one that comes twice is scored once and returned twice.
      operands: what `observe` returns, of one network.
      aggregation: see `Aggregation`.

    Returns:
      One record per function, in their order.

    Raises:
      TypeError: if `operands` is not what `observe` returns.
      ValueError: for operands of several networks.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> found = score_functions([parse("sum(abs(WI))"), parse("gamma"), parse("NX")], observed)
      >>> [(each.status, each.detail) for each in found]
      [('ok', ''), ('missing operand', 'gamma in dense.kernel'), ('constant', 'equal in every group')]
    """
    if not isinstance(operands, Observed):
        raise TypeError(f"score_functions needs what observe returns, got {type(operands).__name__}.")
    if operands.is_stacked:
        raise ValueError(
            f"score_functions needs the operands of one network, got {operands.num_members} stacked. "
            "Use operands.member(i), or rank_population."
        )
    functions = [plainest(f) for f in functions]
    unique = list(dict.fromkeys(functions))
    operands = with_what_is_read(unique, operands)
    found = score_producers(unique, operands)
    problems = problems_of(unique, found, operands)
    scored = {
        f: _scored(f, row, found, problems.get((row, 0)), operands, aggregation)
        for row, f in enumerate(unique)
    }
    return [scored[f] for f in functions]


def pruning_order(scores: np.ndarray) -> np.ndarray:
    """Channel indices from the first to be pruned to the last: lowest score first, ties by index.

    Example:
      >>> pruning_order(np.array([2.0, 1.0, 2.0, 0.5])).tolist()
      [3, 1, 0, 2]
    """
    return np.argsort(scores, kind="stable")


def aggregate(scores: Sequence[np.ndarray], aggregation: Aggregation) -> np.ndarray:
    """Joins [..., C] scores of several producers; float64, so that dividing makes no new ties.

    Raises:
      ValueError: if the aggregation is unknown.

    Example:
      >>> aggregate([np.array([1.0, 3.0]), np.array([20.0, 20.0])], "relative").tolist()
      [0.75, 1.25]
    """
    if aggregation not in _JOINED:
        raise ValueError(f"aggregation must be one of {', '.join(_JOINED)}, got {aggregation!r}.")
    with np.errstate(invalid="ignore", over="ignore"):
        return _JOINED[aggregation](np.stack([np.asarray(values, np.float64) for values in scores]))


def is_constant(scores: np.ndarray) -> bool:
    """Whether [C] finite scores differ by no more than rounding.

    Example:
      >>> is_constant(np.array([0.1, 0.1 + 1e-9])), is_constant(np.array([0.1, 0.11]))
      (True, False)
    """
    spread = float(scores.max() - scores.min())
    return spread <= _CONSTANT_ULPS * float(np.finfo(np.float32).eps) * float(np.abs(scores).max())


def _relative(scores: np.ndarray) -> np.ndarray:
    """Scores divided by their mean magnitude; those of a producer of zeros stay zero."""
    magnitude = np.mean(np.abs(scores), axis=-1, keepdims=True)
    return scores / np.where(magnitude == 0, 1.0, magnitude)


_JOINED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relative": lambda scores: np.mean(_relative(scores), axis=0),
    "mean": lambda scores: np.mean(scores, axis=0),
    "max": lambda scores: np.max(_relative(scores), axis=0),
    "first": lambda scores: scores[0],
}


def _group_scores(
    found: Found, operands: Observed, row: int, aggregation: Aggregation
) -> dict[str, np.ndarray]:
    """Group name -> [B, C] scores of one function; NaN where it was not evaluated."""
    return {
        group: aggregate([found.results[path].scores[row] for path in paths], aggregation)
        for group, paths in operands.groups.items()
    }


def _scored(
    f: PruningFunction,
    row: int,
    found: Found,
    problem: Invalid | None,
    operands: Observed,
    aggregation: Aggregation,
) -> Scored:
    scores = {name: each[0] for name, each in _group_scores(found, operands, row, aggregation).items()}
    for path, result in found.results.items():
        if result.reasons[row] is not None:
            absent = missing_operands(f, operands[path]) if isinstance(f, Expression | Metric) else ()
            if absent:
                alike = [
                    other for other, each in found.results.items() if each.reasons[row] == result.reasons[row]
                ]
                detail = f"{' and '.join(absent)} in {some_of(alike)}"
                return Scored(scores, "missing operand", detail, ())
            return Scored(scores, "refused", f"{result.reasons[row]} ({path})".removeprefix("refused: "), ())
    if problem is not None:
        return Scored(scores, "not finite", problem.reason.removeprefix("not finite "), ())
    equal = tuple(name for name, each in scores.items() if is_constant(each))
    if len(equal) == len(scores):
        return Scored(scores, "constant", "equal in every group", equal)
    return Scored(scores, "ok", "", equal)


def _rank(
    scores: Mapping[str, np.ndarray], fallback: Mapping[str, np.ndarray], member: int
) -> Ranking | Invalid:
    """The ranking of one member from finite scores."""
    chosen, equal, ties = {}, [], 0
    for group, values in scores.items():
        own = values[member]
        if is_constant(own):
            equal.append(group)
            own = fallback[group][member]
        else:
            ties += own.size - np.unique(own).size
        chosen[group] = own
    if len(equal) == len(scores):
        return Invalid("constant in every group")
    return Ranking(chosen, tuple(equal), ties)
