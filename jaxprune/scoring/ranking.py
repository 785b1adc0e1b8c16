"""From functions and an observed network to an order of channels in every group, or the reason why there is none.

Scores of a group's producers are made unitless and joined; non-finite values make a function invalid, a group of
equal scores falls back to the order of `l2`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeGuard, cast

import numpy as np

from jaxprune.language.published import library
from jaxprune.language.tree import Expression
from jaxprune.scoring.compiled import Reader, explain_missing, missing_operands
from jaxprune.scoring.evaluator import MAX_FLOPS, PopulationScores, Scorer
from jaxprune.scoring.lanes import keep_registered
from jaxprune.scoring.metrics import Metric, PruningFunction, layer_scores, name_of
from jaxprune.scoring.records import Observed, Operands
from jaxprune.types import Array, Invalid

Aggregation = Literal["relative", "mean", "max", "first"]
"""How the scores of a group's producers become one: `relative` is the mean of scores divided by their mean
magnitude, `mean` the plain mean, `max` the largest relative score, `first` the first producer's score alone."""

CHANNEL_MULTIPLE = 64
"""Layers are scored at widths of whole multiples of this."""

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
      >>> from jaxprune.scoring.records import Operands
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
    f = _plainest(f)
    operands = _with_what_is_read([f], operands)
    found = _score_producers([f], operands)
    reasons = [f"{path}: {result.reasons[0]}" for path, (_, result) in found.items() if result.reasons[0]]
    if reasons:
        reader = cast(Reader, f)  # plain functions give no reasons
        absent = {path: names for path, one in operands.items() if (names := missing_operands(reader, one))}
        raise ValueError(_say_absent(f, absent) if absent else _say_refused(f, reasons))
    joined = {}
    for group, paths in operands.groups.items():
        scores = aggregate([found[path][1].scores[0] for path in paths], aggregation)
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
      >>> from jaxprune.scoring.records import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> print(rank_population([parse("N / (NX - NX)")], observed)[0])
      invalid: not finite in group dense.kernel, channel 0: N/(NX - NX)
    """
    functions = [_plainest(f) for f in functions]
    operands = _with_what_is_read(functions, operands)
    unique = list(dict.fromkeys([*functions, library["l2"]]))
    found = _score_producers(unique, operands)
    fallback = _group_scores(found, operands, unique.index(library["l2"]), aggregation)
    ranked: dict[PruningFunction, list[Ranking | Invalid]] = {}
    for row, f in enumerate(unique):
        scores = _group_scores(found, operands, row, aggregation)
        ranked[f] = [
            _first_problem(f, row, member, found, operands) or _rank(scores, fallback, member)
            for member in range(operands.num_members)
        ]
    if operands.is_stacked:
        return [ranked[f] for f in functions]
    return [ranked[f][0] for f in functions]


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

_ORIGINS: Mapping[str, str] = {
    "WO": "no layer with weights reads its channels",
    "gamma": "no learned normalisation scale follows it",
    "beta": "no learned normalisation shift follows it",
    "GW": "observe fills it, Operands.from_arrays takes weight_gradient=",
    "GX": "observe fills it, Operands.from_arrays takes feature_gradient=",
}
"""Why an operand is absent, or how to give it."""


def _with_what_is_read(functions: Sequence[PruningFunction], operands: Observed) -> Observed:
    """The observation with gradients, if a function reads any and they can be had."""
    is_asked = any({"GW", "GX"} & f.operands for f in functions if isinstance(f, Expression | Metric))
    return operands.with_gradients() if is_asked and operands.gradient_source is not None else operands


def _say_absent(f: PruningFunction, absent: Mapping[str, tuple[str, ...]]) -> str:
    """What `f` needs and which producers do not have it."""
    parts = []
    for name in dict.fromkeys(name for names in absent.values() for name in names):
        paths = [path for path, names in absent.items() if name in names]
        who = f"producers {', '.join(paths)} do" if len(paths) > 1 else f"producer {paths[0]} does"
        why = _ORIGINS.get(name, "what was registered to read it gave None")
        parts.append(f"operand {name}, which {who} not have: {why}")
    return f"{name_of(f)} needs {'; '.join(parts)}. Use a function without it, or give it to the operands."


def _say_refused(f: PruningFunction, reasons: Sequence[str]) -> str:
    return f"{name_of(f)} must be evaluated on every layer, but {'; '.join(reasons)}. Use another function."


_Found = dict[str, tuple[Scorer, PopulationScores]]


def _plainest(f: PruningFunction) -> PruningFunction:
    """The expression of a metric that is one, else what was given.

    Raises:
      TypeError: if it cannot score anything.
    """
    if not isinstance(f, Expression) and not callable(f):
        raise TypeError(
            "a pruning function must be an Expression, a Metric or a function of Operands, "
            f"got {type(f).__name__}. Use parse(text) or metrics[name]."
        )
    return f.expression or f if isinstance(f, Metric) else f


def _is_called(f: PruningFunction) -> TypeGuard[Metric | Callable[[Operands], Array]]:
    """Whether it scores a layer by being called, rather than as part of a population of expressions."""
    return callable(f) and not isinstance(f, Expression)


def _score_producers(functions: Sequence[PruningFunction], operands: Observed) -> _Found:
    """Scores the functions on every producer, producers side by side: compiling a kernel occupies one core."""
    paths = list(dict.fromkeys(path for producers in operands.groups.values() for path in producers))
    expressions = [cast(Expression, f) for f in functions if not _is_called(f)]
    scorers = {path: _scorer(keep_registered(operands[path], expressions)) for path in paths}

    def run(path: str) -> PopulationScores:
        found = scorers[path].run(expressions)
        channels = operands[path].num_channels
        own = iter(
            PopulationScores(found.scores[row, :, :channels], [reason], found.is_sound[row, :, :channels])
            for row, reason in enumerate(found.reasons)
        )
        rows = [_call(f, operands[path]) if _is_called(f) else next(own) for f in functions]
        return PopulationScores(
            np.stack([row.scores for row in rows]),
            [row.reasons[0] for row in rows],
            np.stack([row.is_sound for row in rows]),
        )

    with ThreadPoolExecutor(max_workers=max(1, min(len(paths), os.cpu_count() or 1))) as pool:
        results = list(pool.map(run, paths))
    return {path: (scorers[path], result) for path, result in zip(paths, results, strict=True)}


def _call(f: Metric | Callable[[Operands], Array], operands: Operands) -> PopulationScores:
    """The row of one function that is called: [B, C] scores."""
    absent = missing_operands(f, operands) if isinstance(f, Metric) else ()
    if absent:
        nothing = np.full((operands.num_members, operands.num_channels), np.nan, operands.dtype)
        return PopulationScores(nothing, [explain_missing(absent)], np.isfinite(nothing))
    scores = layer_scores(f, operands).astype(operands.dtype)
    return PopulationScores(scores, [None], np.isfinite(scores))


def _scorer(operands: Operands) -> Scorer:
    """A scorer of the operands with channel 0 repeated up to a multiple of `CHANNEL_MULTIPLE`.

    Channels do not see each other (but for the bank, which `take` leaves whole), so the others keep their scores, and
    layers of many widths share kernels: most of the time of a first ranking is compilation. What a function may cost
    counts the repeated channels.
    """
    channels = operands.num_channels
    padding = -channels % CHANNEL_MULTIPLE
    if not padding:
        return Scorer(operands)
    max_flops = MAX_FLOPS * channels / (channels + padding)
    return Scorer(operands.take([*range(channels), *[0] * padding]), max_flops=max_flops)


def _group_scores(
    found: _Found, operands: Observed, row: int, aggregation: Aggregation
) -> dict[str, np.ndarray]:
    """Group name -> [B, C] scores of one function; NaN where it was not evaluated."""
    return {
        group: aggregate([found[path][1].scores[row] for path in paths], aggregation)
        for group, paths in operands.groups.items()
    }


def _first_problem(
    f: PruningFunction, row: int, member: int, found: _Found, operands: Observed
) -> Invalid | None:
    """Why a function gives no scores on a member, or None."""
    for group, paths in operands.groups.items():
        for path in paths:
            scorer, result = found[path]
            reason = result.reasons[row]
            if reason is not None:
                return Invalid(f"{reason} ({path})")
            bad = np.flatnonzero(~result.is_sound[row, member])
            if bad.size:
                channel = int(bad[0])
                offending = name_of(f)
                if isinstance(f, Expression):
                    offending = str(scorer.first_offending(f, member, channel))
                return Invalid(f"not finite in group {group}, channel {channel}: {offending}")
    return None


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
