"""What scoring every producer of a network gave, and why some functions give no scores there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeGuard, cast

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import explain_missing, missing_operands
from jaxprune.scoring.metrics import Metric, PruningFunction, layer_scores, name_of
from jaxprune.scoring.scorer import PopulationScores, Scorer
from jaxprune.types import Array, Invalid


class Found(NamedTuple):
    """What scoring all producers gave."""

    scorer: Scorer
    results: Mapping[str, PopulationScores]


def plainest(f: PruningFunction) -> PruningFunction:
    """Returns a metric's expression if it has one, otherwise the argument unchanged.

    Raises:
      TypeError: if it cannot score anything.
    """
    if not isinstance(f, Expression) and not callable(f):
        raise TypeError(
            "a pruning function must be an Expression, a Metric or a function of Operands, "
            f"got {type(f).__name__}. Use parse(text) or metrics[name]."
        )
    return f.expression or f if isinstance(f, Metric) else f


def with_what_is_read(functions: Sequence[PruningFunction], operands: Observed) -> Observed:
    """The observation with the gradients that functions read, as far as they can be had."""
    read = frozenset[str]().union(*(f.operands for f in functions if isinstance(f, Expression | Metric)))
    if read & {"GW", "GX"} and operands.gradient_source is not None:
        operands = operands.with_gradients()
    if "GW2" in read and operands.squared_gradient_source is not None:
        operands = operands.with_squared_gradients()
    return operands


def score_producers(functions: Sequence[PruningFunction], operands: Observed) -> Found:
    """Scores the functions on every producer of a group: expressions together, others one by one."""
    paths = dict.fromkeys(path for producers in operands.groups.values() for path in producers)
    scorer = operands.cached("scorer", lambda: Scorer({path: operands[path] for path in paths}))
    found = scorer.run([cast(Expression, f) for f in functions if not _is_called(f)])

    def rows_of(path: str) -> PopulationScores:
        own = found[path]
        given = iter(
            PopulationScores(own.scores[row], [reason], own.is_sound[row])
            for row, reason in enumerate(own.reasons)
        )
        rows = [_call(f, operands[path]) if _is_called(f) else next(given) for f in functions]
        return PopulationScores(
            np.stack([row.scores for row in rows]) if rows else own.scores,
            [row.reasons[0] for row in rows],
            np.stack([row.is_sound for row in rows]) if rows else own.is_sound,
        )

    return Found(scorer, {path: rows_of(path) for path in paths})


def problems_of(
    functions: Sequence[PruningFunction], found: Found, operands: Observed
) -> dict[tuple[int, int], Invalid]:
    """(row of the function, member) -> why it gives no scores there."""
    problems: dict[tuple[int, int], Invalid] = {}
    asked: dict[tuple[int, int], tuple[Expression, str, int, int]] = {}
    for row, f in enumerate(functions):
        reasons = {path: reason for path, result in found.results.items() if (reason := result.reasons[row])}
        first = next(iter(reasons.values()), "")
        where = some_of([path for path, reason in reasons.items() if reason == first])
        for member in range(operands.num_members):
            if reasons:
                problems[row, member] = Invalid(f"{first} ({where})")
                continue
            bad = _first_unsound(row, member, found, operands)
            if bad is not None:
                group, path, channel = bad
                problems[row, member] = Invalid(
                    f"not finite in group {group}, channel {channel}: {name_of(f)}"
                )
                if isinstance(f, Expression):
                    asked[row, member] = (f, path, member, channel)
    offenders = found.scorer.first_offenders(list(asked.values()))
    for (key, (f, *_)), offending in zip(asked.items(), offenders, strict=True):
        start = problems[key].reason.removesuffix(name_of(f))
        problems[key] = Invalid(f"{start}{offending}")
    return problems


def _first_unsound(row: int, member: int, found: Found, operands: Observed) -> tuple[str, str, int] | None:
    """Group, producer and channel of the first score that is not finite, or hides what is not."""
    for group, paths in operands.groups.items():
        for path in paths:
            bad = np.flatnonzero(~found.results[path].is_sound[row, member])
            if bad.size:
                return group, path, int(bad[0])
    return None


def _is_called(f: PruningFunction) -> TypeGuard[Metric | Callable[[Operands], Array]]:
    """Whether it scores a layer by being called, rather than as part of a population of expressions."""
    return callable(f) and not isinstance(f, Expression)


def _call(f: Metric | Callable[[Operands], Array], operands: Operands) -> PopulationScores:
    """The row of one function that is called: [B, C] scores."""
    absent = missing_operands(f, operands) if isinstance(f, Metric) else ()
    if absent:
        nothing = np.full((operands.num_members, operands.num_channels), np.nan, operands.dtype)
        return PopulationScores(nothing, [explain_missing(absent)], np.isfinite(nothing))
    scores = layer_scores(f, operands).astype(operands.dtype)
    return PopulationScores(scores, [None], np.isfinite(scores))


# === merged: """In words: why a function has no scores on a network."""

_ORIGINS: Mapping[str, str] = {
    "WO": "no layer with weights reads its channels",
    "gamma": "no learned normalisation scale follows it",
    "beta": "no learned normalisation shift follows it",
    "GW": "observe fills it, Operands.from_arrays takes weight_gradient=",
    "GX": "observe fills it, Operands.from_arrays takes feature_gradient=",
    "GW2": "observe fills it, Operands.from_arrays takes squared_weight_gradient=",
}
"""Why an operand is absent, or how to give it."""


def some_of(paths: Sequence[str]) -> str:
    """The first of some producers, and how many more there are.

    Example:
      >>> some_of(["conv1", "conv2"]), some_of(["a", "b", "c", "d", "e"])
      ('conv1, conv2', 'a, b, c and 2 more')
    """
    shown = paths if len(paths) <= 4 else paths[:3]
    return ", ".join(shown) + (f" and {len(paths) - 3} more" if len(paths) > 4 else "")


def say_absent(f: PruningFunction, absent: Mapping[str, tuple[str, ...]]) -> str:
    """What `f` needs and which producers do not have it."""
    parts = []
    for name in dict.fromkeys(name for names in absent.values() for name in names):
        paths = [path for path, names in absent.items() if name in names]
        who = f"producers {', '.join(paths)} do" if len(paths) > 1 else f"producer {paths[0]} does"
        why = _ORIGINS.get(name, "what was registered to read it gave None")
        parts.append(f"operand {name}, which {who} not have: {why}")
    return f"{name_of(f)} needs {'; '.join(parts)}. Use a function without it, or give it to the operands."


def say_refused(f: PruningFunction, reasons: Sequence[str]) -> str:
    """Why `f` is not evaluated, from what single layers say."""
    return f"{name_of(f)} must be evaluated on every layer, but {'; '.join(reasons)}. Use another function."
