"""Turns a state and the records of one generation into the next state, as a pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.search.evaluation import Record, TrialRecord
from jaxprune.search.fitness import TaskScale, predicted_scale, task_scale
from jaxprune.search.problem import Behaviour, RowUse
from jaxprune.search.selection import one_per_behaviour, pareto_front, survivors
from jaxprune.search.state import REFERENCE_ID, Candidate, GenerationSummary, SearchState, Tally


def tell(
    state: SearchState,
    records: Sequence[Record],
    *,
    tally: Tally | None = None,
    seconds: float = 0.0,
    use: RowUse | None = None,
) -> SearchState:
    """Adds the records of a generation to the state: new candidates, results, population, archive and a summary.

    Args:
      state: the state that was asked; it is not changed.
      records: the result of `evaluate` for its proposals.
      tally: counts of what became of the other proposals, for the summary.
      seconds: how long the generation took, for the summary.
      use: how rows of fine-tunings were used, for the summary.

    Returns:
      The state to ask for the next generation.

    Raises:
      ValueError: if candidate ids do not follow the state's, or if generation 0 has no results of l2 on some base.
    """
    new = [record for record in records if isinstance(record, Candidate)]
    trials = [record for record in records if isinstance(record, TrialRecord)]
    expected = list(range(len(state.candidates), len(state.candidates) + len(new)))
    if [candidate.id for candidate in new] != expected:
        raise ValueError(
            f"tell needs new candidates with ids {expected}, got {[candidate.id for candidate in new]}. "
            "Pass the records of the proposals that this very state was asked for."
        )
    evaluated = {trial.candidate for trial in trials}
    after = dataclasses.replace(
        state,
        generation=state.generation + 1,
        candidates=tuple(
            dataclasses.replace(candidate, last_evaluated=state.generation)
            if candidate.id in evaluated
            else candidate
            for candidate in (*state.candidates, *new)
        ),
        **_with_trials(state, trials),
    )
    if not state.scales:
        after = dataclasses.replace(after, scales=_scales(after))
    after = dataclasses.replace(after, population=survivors(after), archive=archive_of(after))
    summary = _summary(after, new, trials, tally or Tally(), seconds, use or RowUse())
    return dataclasses.replace(after, summaries=(*state.summaries, summary))


def tell_verified(state: SearchState, records: Sequence[Record]) -> SearchState:
    """Adds the records of a verification to the state; generation, candidates and population stay as they are.

    Args:
      state: the state that was verified; it is not changed.
      records: the result of `verify`.

    Returns:
      The state, whose best and whose archive are verified by fine-tuning.
    """
    trials = [record for record in records if isinstance(record, TrialRecord)]
    after = dataclasses.replace(state, verified_at=state.generation, **_with_trials(state, trials))
    return dataclasses.replace(after, archive=archive_of(after))


def estimate_seconds_left(seconds: Sequence[float], generations_left: int) -> float | None:
    """Estimates the time to the end from the mean time of the last three generations.

    Args:
      seconds: time of every generation so far; that of generation 0 counts only while there is no other.
      generations_left: number of generations still to run.

    Returns:
      Seconds, or None before the first generation.

    Example:
      >>> estimate_seconds_left([100.0, 10.0, 12.0, 14.0, 16.0], 2)
      28.0
    """
    recent = seconds[1:][-3:] or seconds
    return generations_left * sum(recent) / len(recent) if recent else None


def archive_of(state: SearchState) -> tuple[int, ...]:
    """Returns the ids of the Pareto front, one candidate per behaviour; of verified ones if there are any."""
    ranked = one_per_behaviour(state.ranked())
    verified = [individual for individual in ranked if individual.is_verified]
    return tuple(individual.candidate.id for individual in pareto_front(verified or ranked))


def _with_trials(state: SearchState, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Returns the fields of the state that fine-tunings change."""
    return {
        "results": {**state.results, **{trial.key: trial.accuracy for trial in trials}},
        "evaluations": state.evaluations + sum(not trial.is_cached for trial in trials),
    }


def _scales(state: SearchState) -> Mapping[str, TaskScale]:
    """Measures on the library how much results vary on each task; the whole run uses these scales."""
    valid = [candidate for candidate in state.candidates if candidate.origin.startswith("library:")]
    if state.has_landscapes:
        return _predicted_scales(state, [c.behaviour for c in valid if c.behaviour is not None])
    reference = state.candidates[REFERENCE_ID].digests if state.candidates else {}
    library = [candidate.digests for candidate in valid if candidate.status == "ok"]
    scales = {task.name: task_scale(state.results, task, library, reference) for task in state.tasks}
    missing = [name for name, scale in scales.items() if not scale.reference > 0]
    if missing:
        raise ValueError(
            f"generation 0 needs results of l2 on every base, got none on {', '.join(missing)}. "
            "Evaluate all proposals of generation 0 before telling."
        )
    return scales


def _predicted_scales(state: SearchState, library: Sequence[Behaviour]) -> Mapping[str, TaskScale]:
    """Measures the scales on what landscapes predict of the library; functions with the same plans count once."""
    reference = state.candidates[REFERENCE_ID].behaviour if state.candidates else None
    if reference is None or not reference.predicted:
        raise ValueError(
            "generation 0 needs what landscapes predict of l2, got nothing. Call the problem's fit_landscapes before "
            'ask, or use EvolveConfig(fitness="finetune").'
        )
    scales = {}
    for task in state.tasks:
        distinct = {behaviour.digests[task.name]: behaviour.predicted[task.name] for behaviour in library}
        scales[task.name] = predicted_scale(list(distinct.values()), task, reference.predicted[task.name])
    return scales


def _summary(
    state: SearchState,
    new: Sequence[Candidate],
    trials: Sequence[TrialRecord],
    tally: Tally,
    seconds: float,
    use: RowUse,
) -> GenerationSummary:
    """Summarises the generation that led to `state`."""
    best = state.ranked()[0]
    generation, last = state.generation - 1, state.config.generations
    run = [trial for trial in trials if not trial.is_cached]
    times = [*(summary.seconds for summary in state.summaries), seconds]
    return GenerationSummary(
        generation=generation,
        num_generations=last,
        best_id=best.candidate.id,
        best_mean=best.fitness.mean,
        best_se=best.fitness.se,
        best_text=best.candidate.text,
        best_bases=sum(result.bases for result in best.fitness.tasks.values()),
        **dataclasses.asdict(tally),
        evaluated=sum(candidate.status == "ok" for candidate in new),
        evaluated_total=sum(candidate.status == "ok" for candidate in state.candidates),
        fine_tunings=len(run),
        fine_tunings_total=state.evaluations,
        references=sum(trial.purpose == "reference" for trial in run) if generation else 0,
        reevaluations=sum(trial.purpose == "again" for trial in run),
        cache_hits=len(trials) - len(run),
        archive_size=len(state.archive),
        seconds=seconds,
        eta_seconds=estimate_seconds_left(times, max(last - generation, 0)),
        row_seconds=use.seconds,
        idle_seconds=use.idle_seconds,
    )
