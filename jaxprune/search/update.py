"""From a state and the records of one generation to the next state: a pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxprune.search.evaluation import Record, TrialRecord
from jaxprune.search.fitness import TaskScale, task_scale
from jaxprune.search.state import (
    REFERENCE_ID,
    Candidate,
    GenerationSummary,
    SearchState,
    Tally,
    estimate_seconds_left,
    one_per_behaviour,
    pareto_front,
    survivors,
)


def tell(
    state: SearchState, records: Sequence[Record], *, tally: Tally | None = None, seconds: float = 0.0
) -> SearchState:
    """Takes a generation's records in and says where the search stands.

    Args:
      state: the state that was asked; it is not changed.
      records: what `evaluate` returned for its proposals.
      tally: what became of the other proposals, for the summary.
      seconds: how long the generation took, for the summary.

    Returns:
      The state to ask for the next generation.

    Raises:
      ValueError: if candidate ids do not follow the state's, or generation 0 did not try l2 everywhere.
    """
    new = [record for record in records if isinstance(record, Candidate)]
    trials = [record for record in records if isinstance(record, TrialRecord)]
    expected = list(range(len(state.candidates), len(state.candidates) + len(new)))
    if [candidate.id for candidate in new] != expected:
        raise ValueError(
            f"tell needs new candidates with ids {expected}, got {[candidate.id for candidate in new]}. "
            "Pass the records of the proposals that this very state was asked for."
        )
    told = dataclasses.replace(
        state,
        generation=state.generation + 1,
        candidates=_with_ages([*state.candidates, *new], trials, state.generation),
        results={**state.results, **{trial.key: trial.accuracy for trial in trials}},
        evaluations=state.evaluations + sum(not trial.is_cached for trial in trials),
    )
    if not state.scales:
        told = dataclasses.replace(told, scales=_scales(told))
    archive = pareto_front(one_per_behaviour(told.ranked()))
    told = dataclasses.replace(
        told, population=survivors(told), archive=tuple(member.candidate.id for member in archive)
    )
    summary = _summary(told, new, trials, tally or Tally(), seconds)
    return dataclasses.replace(told, summaries=(*state.summaries, summary))


def _with_ages(
    candidates: Sequence[Candidate], trials: Sequence[TrialRecord], generation: int
) -> tuple[Candidate, ...]:
    """The candidates, those with a record in this generation marked as evaluated in it."""
    touched = {trial.candidate for trial in trials}
    return tuple(
        dataclasses.replace(candidate, last_evaluated=generation) if candidate.id in touched else candidate
        for candidate in candidates
    )


def _scales(state: SearchState) -> Mapping[str, TaskScale]:
    """How much the library's results vary on each task; for the rest of the run."""
    reference = state.candidates[REFERENCE_ID].digests if state.candidates else {}
    library = [
        candidate.digests
        for candidate in state.candidates
        if candidate.status == "ok" and candidate.origin.startswith("library:")
    ]
    scales = {task.name: task_scale(state.results, task, library, reference) for task in state.tasks}
    missing = [name for name, scale in scales.items() if not scale.reference > 0]
    if missing:
        raise ValueError(
            f"generation 0 needs results of l2 on every base, got none on {', '.join(missing)}. "
            "Evaluate all proposals of generation 0 before telling."
        )
    return scales


def _summary(
    state: SearchState,
    new: Sequence[Candidate],
    trials: Sequence[TrialRecord],
    tally: Tally,
    seconds: float,
) -> GenerationSummary:
    best = state.ranked()[0]
    generation, last = state.generation - 1, state.config.generations
    run = [trial for trial in trials if not trial.is_cached]
    history = [*(summary.seconds for summary in state.summaries), seconds]
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
        eta_seconds=estimate_seconds_left(history, max(last - generation, 0)),
    )
