"""Functions and an observed network become an order of channels in every group, or the reason why there is none.

Scores of a group's producers are made unitless and joined. Non-finite values make a function invalid; a group of equal
scores takes the order of `l2` instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.observation.observed import Observed
from jaxprune.scoring.compiled import missing_operands
from jaxprune.scoring.metrics import Metric, PruningFunction, name_of
from jaxprune.scoring.scorable import (
    absent_operands,
    choose_groups,
    describe_left_out,
    explain_left_out,
    score_in_parts,
)
from jaxprune.scoring.status import (
    ProducerScores,
    explain_absent,
    expression_or_callable,
    problems_of,
    score_producers,
    shorten_paths,
)
from jaxprune.types import Invalid

Aggregation = Literal["relative", "mean", "max", "first"]
"""How the scores of a group's producers become one: `relative` is the mean of scores divided by their mean
magnitude, `mean` the plain mean, `max` the largest relative score, `first` the first producer's score alone."""

Status = Literal["ok", "constant", "not finite", "missing operand", "refused"]
"""What became of a function on a network; `constant` means equal scores in every group."""

CONSTANT = Invalid("constant in every group")
"""What becomes of a function that orders no group."""

_CONSTANT_ULPS = 8  # a smaller spread is rounding, not an order


@dataclass(frozen=True, eq=False)
class Ranking:
    """Finite scores of all channels of a network by one function; the lowest are pruned first."""

    scores: Mapping[str, np.ndarray]
    """Group name -> [C] float64 scores."""
    fallback_groups: tuple[str, ...]
    """Groups whose scores were all equal, which have the scores of `l2` instead."""
    num_ties: int
    """Channels of the other groups that share their score with a channel of lower index."""


@dataclass(frozen=True, eq=False)
class StackedRanking:
    """Scores of all channels of B stacked networks by one function; the lowest are pruned first."""

    scores: Mapping[str, np.ndarray]
    """Group name -> [B, C] float64 scores, finite for members without a problem."""
    is_fallback: Mapping[str, np.ndarray]
    """Group name -> [B] whether the scores were all equal, so that those of `l2` stand there instead."""
    num_ties: np.ndarray
    """[B] channels of the other groups that share their score with a channel of lower index."""
    problems: Mapping[int, Invalid]
    """Member -> why the function is invalid on it."""

    def member(self, member: int) -> Ranking | Invalid:
        """Returns the ranking of one member."""
        if member in self.problems:
            return self.problems[member]
        fallbacks = tuple(group for group, is_fallback in self.is_fallback.items() if is_fallback[member])
        scores = {group: by_member[member] for group, by_member in self.scores.items()}
        return Ranking(scores, fallbacks, int(self.num_ties[member]))


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of one function on all channels of a network, unchanged, and what became of the function."""

    scores: Mapping[str, np.ndarray]
    """Group name -> [C] float64 scores; NaN where it was not evaluated or not finite."""
    status: Status
    detail: str
    """Which operand, cost or first sub-expression, group and channel it is about, and which groups are left out because
    they lack an operand; "" for `ok` in all groups."""
    constant_groups: tuple[str, ...]
    """Groups whose scores are all equal."""


def score(
    f: PruningFunction,
    operands: Observed,
    *,
    groups: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    aggregation: Aggregation = "relative",
) -> dict[str, np.ndarray]:
    """Scores every channel of every group of an observed network.

    A group is scored by those of its producers that have all operands that `f` reads (what makes queries has no `WO`,
    for example). Groups without such a producer are left out, with one warning that names them and what they lack;
    `plan` leaves them whole.

    Args:
      f: a pruning function: an expression, a metric, or any function from the `Operands` of one layer to [C] scores.
      operands: what `observe` returns; gradients are computed when `f` is the first to read `GW` or `GX`.
      groups: names or shell patterns of the groups to score, such as `"layers.*"`; by default all.
      ignore: names or patterns of groups among them that are not scored.
      aggregation: how the scores of several producers of one group are joined, see `Aggregation`. The default
        divides by the mean magnitude in groups of one producer too, so that groups can be compared.

    Returns:
      Group name -> [C] float64 scores ([B, C] for stacked operands), the lowest to be pruned first, for the groups that
      can be scored. Values that the arithmetic makes NaN or infinite stay so.

    Raises:
      TypeError: if `operands` is not what `observe` returns, or `f` no pruning function.
      ValueError: if no group has all operands, a function does not give [C] numbers, a pattern matches nothing, or the
        aggregation is unknown.

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
    f = expression_or_callable(f)
    (part,) = score_in_parts([f], choose_groups(operands, groups, ignore))
    scored = part.scored
    reasons = [f"{path}: {own.reasons[0]}" for path, own in scored.by_producer.items() if own.reasons[0]]
    if reasons:
        absent = absent_operands(f, scored.observed, list(scored.observed))
        if absent:
            raise ValueError(explain_absent(f, absent, has_classes=operands.has_classes))
        raise ValueError(
            f"{name_of(f)} must be evaluated on every layer, but {'; '.join(reasons)}. Use another function."
        )
    if part.left_out:
        warnings.warn(explain_left_out(f, part.left_out), stacklevel=2)
    by_group = _group_scores(scored, 0, aggregation)
    return by_group if operands.is_stacked else {group: scores[0] for group, scores in by_group.items()}


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

    Raises:
      TypeError: if a function is no pruning function.
      ValueError: if a function does not give [C] numbers, or the aggregation is unknown.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> print(rank_population([parse("N / (NX - NX)")], observed)[0])
      invalid: not finite in group dense.kernel, channel 0: N/(NX - NX)
    """
    stacked = rank_stack(functions, operands, aggregation=aggregation)
    members = range(operands.num_members)
    by_member = {id(each): [each.member(member) for member in members] for each in stacked}
    if operands.is_stacked:
        return [by_member[id(each)] for each in stacked]
    return [by_member[id(each)][0] for each in stacked]


def rank_stack(
    functions: Sequence[PruningFunction], operands: Observed, *, aggregation: Aggregation = "relative"
) -> list[StackedRanking]:
    """Ranks the channels of all stacked networks by many functions at once, as `rank_population` does.

    Args:
      functions: P pruning functions, as `score` takes them.
      operands: what `observe` returns, or several of these stacked.
      aggregation: see `Aggregation`.

    Returns:
      One result per function, with B = 1 for a single network.

    Raises:
      TypeError: if a function is no pruning function.
      ValueError: if a function does not give [C] numbers, or the aggregation is unknown.
    """
    functions = [expression_or_callable(f) for f in functions]
    unique = list(dict.fromkeys([*functions, library["l2"]]))
    scored = score_producers(unique, operands)
    fallback = _group_scores(scored, unique.index(library["l2"]), aggregation)
    ranked = dict(zip(unique, _rank(unique, scored, fallback, aggregation), strict=True))
    return [ranked[f] for f in functions]


def score_functions(
    functions: Sequence[PruningFunction],
    operands: Observed,
    *,
    groups: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    aggregation: Aggregation = "relative",
) -> list[Scored]:
    """Scores many functions on a network in batched calls; the status of one that fails says why.

    Args:
      functions: P pruning functions, as `score` takes them; one that comes twice is scored once and returned twice.
      operands: what `observe` returns, of one network.
      groups, ignore: as for `score`.
      aggregation: see `Aggregation`.

    Returns:
      One record per function, in their order.

    Raises:
      TypeError: if `operands` is not what `observe` returns.
      ValueError: for operands of several networks, and patterns that match nothing.

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
    functions = [expression_or_callable(f) for f in functions]
    chosen = choose_groups(operands, groups, ignore)
    results: dict[PruningFunction, Scored] = {}
    for part in score_in_parts(list(dict.fromkeys(functions)), chosen):
        problems = problems_of(part.functions, part.scored)
        for row, f in enumerate(part.functions):
            found = _with_status(f, row, part.scored, problems.get((row, 0)), aggregation)
            results[f] = _with_left_out(found, part.left_out, chosen)
    return [results[f] for f in functions]


def rank_groups(
    f: PruningFunction,
    operands: Observed,
    *,
    groups: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Ranking | Invalid:
    """Ranks the channels of the groups that a function can score, as `rank_population` does for those of all groups.

    Args:
      f: a pruning function, as `score` takes it.
      operands: what `observe` returns, of one network.
      groups, ignore: as for `score`, which warns in the same way of groups that are left out.

    Raises:
      TypeError: if `f` is no pruning function.
      ValueError: if it does not give [C] numbers, or a pattern matches nothing.

    Example:
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> observed = Observed({"a": ops, "b": ops}, {"a": ("a",), "b": ("b",)})
      >>> list(rank_groups(library["l1"], observed, ignore="b").scores)
      ['a']
    """
    f = expression_or_callable(f)
    (part,) = score_in_parts([f], choose_groups(operands, groups, ignore))
    if part.left_out:
        warnings.warn(explain_left_out(f, part.left_out), stacklevel=2)
    fallback = _group_scores(score_producers([library["l2"]], part.scored.observed), 0, "relative")
    (stacked,) = _rank([f], part.scored, fallback, "relative")
    return stacked.member(0)


def pruning_order(scores: np.ndarray) -> np.ndarray:
    """Returns channel indices from the first to be pruned to the last: lowest score first, ties by index.

    Example:
      >>> pruning_order(np.array([2.0, 1.0, 2.0, 0.5])).tolist()
      [3, 1, 0, 2]
    """
    return np.argsort(scores, kind="stable")


def aggregate(scores: Sequence[np.ndarray], aggregation: Aggregation) -> np.ndarray:
    """Joins the scores of several producers, in float64, so that dividing makes no new ties.

    Args:
      scores: [..., C] of each producer.
      aggregation: how to join them.

    Returns:
      [..., C].

    Raises:
      ValueError: if the aggregation is unknown.

    Example:
      >>> aggregate([np.array([1.0, 3.0]), np.array([20.0, 20.0])], "relative").tolist()
      [0.75, 1.25]
    """
    if aggregation not in _AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {', '.join(_AGGREGATIONS)}, got {aggregation!r}.")
    with np.errstate(invalid="ignore", over="ignore"):
        return _AGGREGATIONS[aggregation](np.stack([np.asarray(values, np.float64) for values in scores]))


def is_constant(scores: np.ndarray) -> bool:
    """Whether [C] finite scores differ by no more than rounding.

    Example:
      >>> is_constant(np.array([0.1, 0.1 + 1e-9])), is_constant(np.array([0.1, 0.11]))
      (True, False)
    """
    return bool(_are_constant(scores))


def _are_constant(scores: np.ndarray) -> np.ndarray:
    """Returns [...] whether [..., C] finite scores differ by no more than rounding."""
    spread = scores.max(axis=-1) - scores.min(axis=-1)
    largest: np.ndarray = np.abs(scores).max(axis=-1)
    return spread <= _CONSTANT_ULPS * float(np.finfo(np.float32).eps) * largest


def _relative(scores: np.ndarray) -> np.ndarray:
    """Divides scores by their mean magnitude; those of a producer of zeros stay zero."""
    magnitude = np.mean(np.abs(scores), axis=-1, keepdims=True)
    return scores / np.where(magnitude == 0, 1.0, magnitude)


_AGGREGATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relative": lambda scores: np.mean(_relative(scores), axis=0),
    "mean": lambda scores: np.mean(scores, axis=0),
    "max": lambda scores: np.max(_relative(scores), axis=0),
    "first": lambda scores: scores[0],
}


def _group_scores(scored: ProducerScores, row: int, aggregation: Aggregation) -> dict[str, np.ndarray]:
    """Returns group name -> [B, C] scores of one function; NaN where it was not evaluated."""
    return {
        group: aggregate([scored.by_producer[path].scores[row] for path in paths], aggregation)
        for group, paths in scored.observed.groups.items()
    }


def _with_status(
    f: PruningFunction, row: int, scored: ProducerScores, problem: Invalid | None, aggregation: Aggregation
) -> Scored:
    """Returns the scores of one function on one network, with its status."""
    scores = {group: by_member[0] for group, by_member in _group_scores(scored, row, aggregation).items()}
    reasons = {path: reason for path, own in scored.by_producer.items() if (reason := own.reasons[row])}
    if reasons:
        path, reason = next(iter(reasons.items()))
        names = f.operands if isinstance(f, Expression | Metric) else ()
        absent = missing_operands(names, scored.observed[path])
        if absent:
            alike = [other for other, its_reason in reasons.items() if its_reason == reason]
            detail = f"{' and '.join(absent)} in {shorten_paths(alike)}"
            return Scored(scores, "missing operand", detail, ())
        return Scored(scores, "refused", f"{reason} ({path})".removeprefix("refused: "), ())
    if problem is not None:
        return Scored(scores, "not finite", problem.reason.removeprefix("not finite "), ())
    constant = tuple(group for group, values in scores.items() if is_constant(values))
    if len(constant) == len(scores):
        return Scored(scores, "constant", "equal in every group", constant)
    return Scored(scores, "ok", "", constant)


def _with_left_out(found: Scored, left_out: Mapping[str, tuple[str, ...]], observed: Observed) -> Scored:
    """Returns scores with NaN for the groups that could not be scored, and says which these are."""
    if not left_out:
        return found
    scores = {
        name: found.scores[name] if name in found.scores else np.full(observed[paths[0]].num_channels, np.nan)
        for name, paths in observed.groups.items()
    }
    detail = "; ".join(text for text in (found.detail, describe_left_out(left_out)) if text)
    return replace(found, scores=scores, detail=detail)


def _rank(
    functions: Sequence[PruningFunction],
    scored: ProducerScores,
    fallback: Mapping[str, np.ndarray],
    aggregation: Aggregation,
) -> list[StackedRanking]:
    """Ranks by functions that were scored; `fallback` orders groups in which all scores are equal."""
    problems: dict[int, dict[int, Invalid]] = {row: {} for row in range(len(functions))}
    for (row, member), problem in problems_of(functions, scored).items():
        problems[row][member] = problem
    return [
        _ranked(_group_scores(scored, row, aggregation), fallback, problems[row])
        for row in range(len(functions))
    ]


def _ranked(
    scores: Mapping[str, np.ndarray], fallback: Mapping[str, np.ndarray], problems: dict[int, Invalid]
) -> StackedRanking:
    """Returns the ranking of all members; where a group's scores are equal, those of the fallback count."""
    chosen, is_constant = {}, {}
    num_ties: np.ndarray | int = 0
    with np.errstate(invalid="ignore"):  # members with a problem may have scores that are not finite
        for group, by_member in scores.items():
            is_constant[group] = _are_constant(by_member)
            chosen[group] = np.where(is_constant[group][:, None], fallback[group], by_member)
            ties = np.count_nonzero(np.diff(np.sort(by_member, axis=-1), axis=-1) == 0, axis=-1)
            num_ties = num_ties + np.where(is_constant[group], 0, ties)
    everywhere = np.all(list(is_constant.values()), axis=0)
    constant = {int(member): CONSTANT for member in np.flatnonzero(everywhere)}
    return StackedRanking(chosen, is_constant, np.asarray(num_ties), {**constant, **problems})
