"""Scores of functions on every producer of a network, and in words why some functions have no scores there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.language.vocabulary import OF_ACTIVATIONS, OPERANDS
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import explain_missing, missing_operands
from jaxprune.scoring.metrics import Metric, PruningFunction, layer_scores, name_of
from jaxprune.scoring.scorer import PopulationScores, Scorer
from jaxprune.types import Array, Invalid

_ORIGINS: Mapping[str, str] = {
    "WO": "no layer with weights reads its channels, or not each in places of its own",
    "gamma": "no learned normalisation scale follows it",
    "beta": "no learned normalisation shift follows it",
    "GW": "observe fills it, Operands.from_arrays takes weight_gradient=",
    "GX": "observe fills it, Operands.from_arrays takes feature_gradient=",
    "GW2": "observe fills it, Operands.from_arrays takes squared_weight_gradient=",
    **dict.fromkeys(OF_ACTIVATIONS, "its activations cannot be observed (see docs/structure.md)"),
}
"""Why an operand is absent, or how to provide it."""
_NO_CLASSES = "the examples have no classes, because observe got no labels (pass them to it)"


class ProducerScores(NamedTuple):
    """The scores of functions on all producers."""

    observed: Observed
    """What was scored, with the gradients that functions read."""
    scorer: Scorer
    by_producer: Mapping[str, PopulationScores]


def expression_or_callable(f: PruningFunction) -> PruningFunction:
    """Returns a metric's expression if it has one, otherwise the argument unchanged.

    Raises:
      TypeError: if it is no pruning function.
    """
    if not isinstance(f, Expression) and not callable(f):
        raise TypeError(
            "a pruning function must be an Expression, a Metric or a function of Operands, "
            f"got {type(f).__name__}. Use parse(text) or metrics[name]."
        )
    return f.expression or f if isinstance(f, Metric) else f


def score_producers(functions: Sequence[PruningFunction], observed: Observed) -> ProducerScores:
    """Scores functions on every producer of a group: expressions together, others one by one.

    Args:
      functions: as `expression_or_callable` returns them.
      observed: what `observe` returns; gradients are computed if a function reads them and they can be computed.

    Returns:
      The scores, by producer path.
    """
    names = frozenset[str]().union(*(f.operands for f in functions if isinstance(f, Expression | Metric)))
    if names & {"GW", "GX"} and observed.gradient_source is not None:
        observed = observed.with_gradients()
    if "GW2" in names and observed.squared_gradient_source is not None:
        observed = observed.with_squared_gradients()
    paths = dict.fromkeys(path for producers in observed.groups.values() for path in producers)
    scorer = observed.cached("scorer", lambda: Scorer({path: observed[path] for path in paths}))
    expressions = [f for f in functions if isinstance(f, Expression)]
    results = scorer.run(expressions)
    if len(expressions) == len(functions):
        return ProducerScores(observed, scorer, results)
    by_producer = {}
    for path in paths:
        scores, reasons, is_sound = results[path]
        of_expressions = iter(zip(scores, reasons, is_sound, strict=True))
        rows = [
            next(of_expressions) if isinstance(f, Expression) else _call(f, observed[path]) for f in functions
        ]
        by_producer[path] = PopulationScores(
            np.stack([row[0] for row in rows]), [row[1] for row in rows], np.stack([row[2] for row in rows])
        )
    return ProducerScores(observed, scorer, by_producer)


def problems_of(
    functions: Sequence[PruningFunction], scored: ProducerScores
) -> dict[tuple[int, int], Invalid]:
    """Says why functions have no finite scores.

    Args:
      functions: that were scored.
      scored: their scores.

    Returns:
      (row of the function, member) -> the reason; functions without a problem are left out.
    """
    problems: dict[tuple[int, int], Invalid] = {}
    questions: dict[tuple[int, int], tuple[Expression, str, int, int]] = {}
    for row, f in enumerate(functions):
        reasons = {path: reason for path, own in scored.by_producer.items() if (reason := own.reasons[row])}
        first = next(iter(reasons.values()), "")
        where = shorten_paths([path for path, reason in reasons.items() if reason == first])
        is_sound = np.all([own.is_sound[row].all(axis=-1) for own in scored.by_producer.values()], axis=0)
        for member in range(scored.observed.num_members) if reasons else np.flatnonzero(~is_sound).tolist():
            if reasons:
                problems[row, member] = Invalid(f"{first} ({where})")
                continue
            # the first score that is not finite, or hides a value that is not
            unsound = (
                (group, path, int(channels[0]))
                for group, paths in scored.observed.groups.items()
                for path in paths
                if (channels := np.flatnonzero(~scored.by_producer[path].is_sound[row, member])).size
            )
            for group, path, channel in islice(unsound, 1):
                problems[row, member] = Invalid(
                    f"not finite in group {group}, channel {channel}: {name_of(f)}"
                )
                if isinstance(f, Expression):
                    questions[row, member] = (f, path, member, channel)
    offenders = scored.scorer.first_offenders(list(questions.values()))
    for (key, (f, *_)), offending in zip(questions.items(), offenders, strict=True):
        start = problems[key].reason.removesuffix(name_of(f))
        problems[key] = Invalid(f"{start}{offending}")
    return problems


def shorten_paths(paths: Sequence[str]) -> str:
    """Names the first of some producers, and how many more there are.

    Example:
      >>> shorten_paths(["conv1", "conv2"]), shorten_paths(["a", "b", "c", "d", "e"])
      ('conv1, conv2', 'a, b, c and 2 more')
    """
    shown = paths if len(paths) <= 4 else paths[:3]
    return ", ".join(shown) + (f" and {len(paths) - 3} more" if len(paths) > 4 else "")


def explain_absent(
    f: PruningFunction, absent: Mapping[str, tuple[str, ...]], *, has_classes: bool = True
) -> str:
    """Says which operands a function needs and which producers do not have them.

    Args:
      f: the function.
      absent: producer path -> names of the operands that it lacks.
      has_classes: whether the examples have labels.
    """
    parts = []
    for name in dict.fromkeys(name for names in absent.values() for name in names):
        paths = [path for path, names in absent.items() if name in names]
        who = f"producers {', '.join(paths)} do" if len(paths) > 1 else f"producer {paths[0]} does"
        why = _ORIGINS.get(name, "what was registered to read it gave None")
        if OPERANDS[name].per_class and not has_classes:
            why = _NO_CLASSES
        parts.append(f"operand {name}, which {who} not have: {why}")
    return f"{name_of(f)} needs {'; '.join(parts)}. Use a function without it, or give it to the operands."


def _call(
    f: Metric | Callable[[Operands], Array], operands: Operands
) -> tuple[np.ndarray, str | None, np.ndarray]:
    """Returns [B, C] scores of a function that is called, why it was not, and whether scores are finite."""
    absent = missing_operands(f.operands, operands) if isinstance(f, Metric) else ()
    if absent:
        nothing = np.full((operands.num_members, operands.num_channels), np.nan, operands.dtype)
        return nothing, explain_missing(absent, operands), np.isfinite(nothing)
    scores = layer_scores(f, operands).astype(operands.dtype)
    return scores, None, np.isfinite(scores)
