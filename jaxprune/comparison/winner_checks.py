"""Looks closer at the winner of a search: what each of its parts is worth, and whether it tells channels apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxprune.comparison.measurements import standard_error
from jaxprune.language.expression import Expression
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.search.evaluation import outcomes_of
from jaxprune.search.fitness import paired_differences
from jaxprune.search.problem import SEARCH_POOL, Behaviour, Trial, TrialKey
from jaxprune.search.simplification import ablations
from jaxprune.search.state import Individual, SearchState
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import BasePool
from jaxprune.types import Invalid

MAX_PARTS = 8
"""Parts whose worth is measured."""


@dataclass(frozen=True)
class Part:
    """What a formula loses without one of its parts, in sd of the search's tasks.

    Args:
      removed: what was removed, as `ablations` says it.
      formula: what is left.
      predicted: its fitness minus that of the whole formula, by what landscapes predict; None if it is invalid.
      measured: the same, by fine-tuning on the search bases.
      se: standard error of `measured` over bases; None on a single base.
      reason: why the rest is invalid, otherwise empty.
    """

    removed: str
    formula: str
    predicted: float | None = None
    measured: float | None = None
    se: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Soundness:
    """Whether a function tells channels apart on the base networks of a task.

    Args:
      bases: number of bases.
      groups: number of groups that are pruned, over all bases.
      fallbacks: number of those whose scores were all equal, so that l2 ordered them.
      channels: number of their channels.
      ties: number of those that share their score with a channel of lower index in the other groups.
      ties_at_cut: number of groups where a kept channel has the score of a pruned one.
      invalid: number of bases on which the function is invalid.
      reason: why it is invalid on the first of these, otherwise empty.
    """

    bases: int
    groups: int
    fallbacks: int
    channels: int
    ties: int
    ties_at_cut: int
    invalid: int
    reason: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether the function itself decides everywhere what is kept."""
        return not (self.invalid or self.fallbacks or self.ties_at_cut)


def worth_of_parts(
    problem: TaskProblem,
    state: SearchState,
    winner: Individual,
    on_status: Callable[[str], None] = lambda message: None,
) -> tuple[Part, ...]:
    """Measures what the winner is worth without each of its parts, on the search bases.

    Plans that the search has fine-tuned are not fine-tuned again.

    Args:
      problem: what was searched on, with landscapes.
      state: the finished search.
      winner: its winner.
      on_status: called with what is going on.

    Returns:
      The first `MAX_PARTS` parts that can be left out, outer ones first.
    """
    pairs = ablations(winner.expression)[:MAX_PARTS]
    whole = winner.candidate.behaviour
    assert whole is not None
    behaviours = problem.behaviours([rest for _, rest in pairs])
    functions = [winner.expression, *(rest for _, rest in pairs)]
    trials = {
        trial.key: trial
        for function, behaviour in zip(functions, [whole, *behaviours], strict=True)
        if isinstance(behaviour, Behaviour)
        for trial in _trials(state, function, behaviour)
    }
    missing = [trial for key, trial in trials.items() if key not in state.results]
    results = dict(state.results)
    with contextlib.closing(outcomes_of(problem, missing)) as outcomes:
        for number, (trial, outcome) in enumerate(zip(missing, outcomes, strict=True), start=1):
            results[trial.key] = outcome.accuracy
            on_status(f"parts of the winner: {number} of {len(missing)} networks fine-tuned")
    predicted = state.predicted[winner.candidate.id].mean
    parts = []
    for (removed, rest), behaviour in zip(pairs, behaviours, strict=True):
        if isinstance(behaviour, Invalid):
            parts.append(Part(removed, str(rest), reason=behaviour.reason))
            continue
        fitness = state.predicted_fitness(behaviour.predicted)
        measured, se = _difference(state, results, behaviour, whole)
        parts.append(Part(removed, str(rest), fitness.mean - predicted, measured, se))
    return tuple(parts)


def soundness(pool: BasePool, function: PruningFunction) -> Soundness:
    """Counts where a function does not tell channels apart.

    Args:
      pool: the base networks.
      function: the function.
    """
    counts, widths = pool.programs.rounds[0].counts, pool.programs.rounds[0].structure.widths
    (plans,) = pool.plans([function])
    invalid = [plan for plan in plans if isinstance(plan, Invalid)]
    rankings = [plan.ranking for plan in plans if not isinstance(plan, Invalid)]
    return Soundness(
        bases=len(plans),
        groups=len(rankings) * len(counts),
        fallbacks=sum(len(ranking.fallback_groups) for ranking in rankings),
        channels=len(rankings) * sum(widths[group] for group in counts),
        ties=sum(ranking.num_ties for ranking in rankings),
        ties_at_cut=sum(
            _is_tied_at(ranking.scores[group], count)
            for ranking in rankings
            for group, count in counts.items()
            if group not in ranking.fallback_groups
        ),
        invalid=len(invalid),
        reason=invalid[0].reason if invalid else "",
    )


def _is_tied_at(scores: np.ndarray, count: int) -> bool:
    """Whether the channels on both sides of the cut have the same score."""
    ordered = np.sort(scores)[::-1]
    return count < len(ordered) and bool(ordered[count - 1] == ordered[count])


def _trials(state: SearchState, function: Expression, behaviour: Behaviour) -> list[Trial]:
    """The fine-tunings of a function on all search bases."""
    return [
        Trial(task.name, SEARCH_POOL, base, 0, behaviour.digests[task.name][base], function, behaviour.kept)
        for task in state.tasks
        for base in range(task.bases)
    ]


def _difference(
    state: SearchState, results: dict[TrialKey, float], behaviour: Behaviour, whole: Behaviour
) -> tuple[float, float | None]:
    """The mean over tasks of paired differences in sd, with its standard error over bases."""
    total = sum(task.weight for task in state.tasks)
    mean, errors = 0.0, []
    for task in state.tasks:
        by_base = paired_differences(results, task, behaviour.digests, whole.digests)
        differences = [difference for difference, _, _ in by_base.values()]
        share = task.weight / total / state.scales[task.name].spread
        mean += share * float(np.mean(differences))
        se = standard_error(differences)
        errors.append(None if se is None else share * se)
    known = [error for error in errors if error is not None]
    return mean, math.hypot(*known) if len(known) == len(errors) else None
