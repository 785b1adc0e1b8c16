"""From proposals to records: which fine-tunings a generation runs, in which order, and their retries.

Every candidate is tried on one base per task, the better third on all bases, elites on one further base or
key per task; wherever a candidate is tried, l2 is tried first with the same keys. A fine-tuning whose plan
is already known on that base, with those keys, is never run again.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax

from jaxprune.search.fitness import fitness_of
from jaxprune.search.problem import (
    SEARCH_POOL,
    BatchProblem,
    InfrastructureError,
    Outcome,
    Problem,
    TaskInfo,
    Trial,
    TrialKey,
)
from jaxprune.search.state import REFERENCE_ID, Candidate, SearchState

RETRIES = 2
"""How often a fine-tuning is tried again after an infrastructure error, before the run stops."""

FAILURES = (InfrastructureError, MemoryError, OSError, jax.errors.JaxRuntimeError)
"""What counts as an infrastructure error: trying again may help, and it says nothing about the function."""

Purpose = Literal["reference", "screen", "promote", "again"]
"""Why a fine-tuning was run: l2 to pair with, the first base, all bases, or an elite's further ones."""


@dataclass(frozen=True)
class Proposal:
    """One thing to evaluate: a new candidate, or a known one `again` on further bases and keys."""

    candidate: Candidate
    again: bool = False


@dataclass(frozen=True)
class TrialRecord:
    """What one fine-tuning of one candidate gave.

    Args:
      generation: in which it was wanted.
      candidate: the id of the candidate it was wanted for.
      purpose: why.
      task, pool, base, repeat, digest: the trial's key.
      accuracy: validation accuracy in percent.
      seconds: how long the fine-tuning took.
      is_cached: whether it was known already from an equal plan, so that nothing ran.
    """

    generation: int
    candidate: int
    purpose: Purpose
    task: str
    pool: str
    base: int
    repeat: int
    digest: str
    accuracy: float
    seconds: float = 0.0
    is_cached: bool = False

    @property
    def key(self) -> TrialKey:
        """What the accuracy is a function of."""
        return (self.task, self.pool, self.base, self.repeat, self.digest)


Record = Candidate | TrialRecord
"""One line of a generation: a new candidate, or a fine-tuning of a candidate."""


class SearchStopped(Exception):
    """Raised between two fine-tunings when `should_stop` gave a reason."""


def evaluate(
    state: SearchState,
    proposals: Sequence[Proposal],
    *,
    on_record: Callable[[Record], None] = lambda record: None,
    on_retry: Callable[[str], None] = lambda message: None,
    should_stop: Callable[[], str | None] = lambda: None,
    recorded: Mapping[TrialKey, Outcome] | None = None,
) -> tuple[Record, ...]:
    """Runs what the proposals of `ask` need and returns what `tell` wants to know.

    Args:
      state: the state that was asked.
      proposals: what `ask(state)` gave.
      on_record: called with every record as soon as it is known, in their order.
      on_retry: called with a message before a fine-tuning is tried again.
      should_stop: called before every fine-tuning; a text stops, None goes on.
      recorded: outcomes of an interrupted run of this generation, which are taken instead of run again.

    Returns:
      The new candidates, then one record per candidate and fine-tuning, in an order that depends on
      nothing but `state` and `proposals`.

    Raises:
      InfrastructureError: if a fine-tuning failed for reasons of its surroundings `RETRIES + 1` times.
      SearchStopped: if `should_stop` gave a reason.
    """
    run = _Evaluation(state, on_record, on_retry, should_stop, recorded or {})
    return run.all_of(proposals)


@dataclass(frozen=True)
class _Want:
    candidate: Candidate
    purpose: Purpose
    trial: Trial


class _Evaluation:
    """One generation under evaluation: what is known so far, and the records made of it."""

    def __init__(
        self,
        state: SearchState,
        on_record: Callable[[Record], None],
        on_retry: Callable[[str], None],
        should_stop: Callable[[], str | None],
        recorded: Mapping[TrialKey, Outcome],
    ) -> None:
        self.state, self.recorded = state, recorded
        self.on_record, self.on_retry, self.should_stop = on_record, on_retry, should_stop
        self.known = dict(state.results)
        self.records: list[Record] = []

    def all_of(self, proposals: Sequence[Proposal]) -> tuple[Record, ...]:
        state = self.state
        new = [proposal.candidate for proposal in proposals if not proposal.again]
        for candidate in new:
            self._keep(candidate)
        self.reference = next(found for found in (*state.candidates[:1], *new) if found.id == REFERENCE_ID)
        valid = [candidate for candidate in new if candidate.status == "ok"]
        everywhere = [(task, base, 0) for task in state.tasks for base in range(task.bases)]
        first = [(task, state.generation % task.bases, 0) for task in state.tasks]
        others = [place for place in everywhere if place not in first]
        if state.generation == 0:
            self._stage("screen", [(candidate, everywhere) for candidate in valid])
            return tuple(self.records)
        self._stage("screen", [(candidate, first) for candidate in valid])
        self._stage("promote", [(candidate, others) for candidate in self._better(valid)])
        elites = [proposal.candidate for proposal in proposals if proposal.again]
        self._stage("again", [(elite, self._further(elite)) for elite in elites])
        return tuple(self.records)

    def _better(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The share that is promoted, judged on what is known of each, simpler ones first among equals."""
        state = self.state
        scored = []
        for candidate in candidates:
            fitness = fitness_of(
                self.known,
                state.tasks,
                state.scales,
                candidate.digests,
                self.reference.digests,
                state.config.fitness,
            )
            if fitness is not None:
                scored.append((-fitness.mean, candidate.complexity, candidate.id, candidate))
        scored.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in scored[: num_promoted(len(candidates), state.config.promote_fraction)]]

    def _further(self, candidate: Candidate) -> list[tuple[TaskInfo, int, int]]:
        """Per task the first (base, repeat) the candidate was not tried on: bases first, then keys."""
        places = []
        for task in self.state.tasks:
            bases = range(task.bases + task.extra_bases)
            places.append(
                next(
                    (task, base, repeat)
                    for repeat in itertools.count()
                    for base in bases
                    if (task.name, SEARCH_POOL, base, repeat, candidate.digests[task.name][base])
                    not in self.known
                )
            )
        return places

    def _stage(
        self, purpose: Purpose, wanted: Iterable[tuple[Candidate, Sequence[tuple[TaskInfo, int, int]]]]
    ) -> None:
        """Runs l2 wherever it is missing, then every candidate at its places, and keeps the records."""
        candidates = [(candidate, place) for candidate, places in wanted for place in places]
        references = [
            _Want(self.reference, "reference", _trial(self.reference, *place))
            for place in dict.fromkeys(place for _, place in candidates)
        ]
        wants = [want for want in references if want.trial.key not in self.known]
        paired = {want.trial.key for want in wants}
        for candidate, place in candidates:
            want = _Want(candidate, purpose, _trial(candidate, *place))
            own_result = candidate.id == REFERENCE_ID and want.trial.key in paired
            if not own_result:
                wants.append(want)
        self._run(wants)

    def _run(self, wants: Sequence[_Want]) -> None:
        fresh = {want.trial.key: want.trial for want in wants if want.trial.key not in self.known}
        missing = [trial for key, trial in fresh.items() if key not in self.recorded]
        outcomes = outcomes_of(self.state.problem, missing, self.on_retry)
        for want in wants:
            key = want.trial.key
            if key in self.known:
                self._keep(self._record(want, self.known[key], 0.0, is_cached=True))
                continue
            if key in self.recorded:
                outcome = self.recorded[key]
            else:
                reason = self.should_stop()
                if reason is not None:
                    raise SearchStopped(reason)
                outcome = next(outcomes)
            self.known[key] = outcome.accuracy
            self._keep(self._record(want, outcome.accuracy, outcome.seconds, is_cached=False))

    def _record(self, want: _Want, accuracy: float, seconds: float, is_cached: bool) -> TrialRecord:
        trial = want.trial
        return TrialRecord(
            self.state.generation,
            want.candidate.id,
            want.purpose,
            trial.task,
            trial.pool,
            trial.base,
            trial.repeat,
            trial.digest,
            accuracy,
            seconds,
            is_cached,
        )

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        self.on_record(record)


def num_promoted(num_candidates: int, promote_fraction: float) -> int:
    """How many of a generation's candidates go on to all bases: the fraction, rounded up.

    Example:
      >>> num_promoted(16, 1 / 3), num_promoted(16, 0.0)
      (6, 0)
    """
    return math.ceil(num_candidates * promote_fraction - 1e-9)


def largest_cost(num_slots: int, tasks: Sequence[TaskInfo], promote_fraction: float, elites: int) -> int:
    """The most fine-tunings that a generation of `num_slots` new candidates can take.

    Elites count twice: l2 may have to be tried with the same new keys.

    Example:
      >>> largest_cost(6, [TaskInfo("a", bases=4)], promote_fraction=1 / 3, elites=1)
      14
    """
    rest = sum(task.bases - 1 for task in tasks)
    return num_slots * len(tasks) + num_promoted(num_slots, promote_fraction) * rest + 2 * elites * len(tasks)


def outcomes_of(
    problem: Problem, trials: Sequence[Trial], on_retry: Callable[[str], None] = lambda message: None
) -> Iterator[Outcome]:
    """Yields the outcome of every trial in order, trying again after an infrastructure error.

    Raises:
      InfrastructureError: if one trial failed `RETRIES + 1` times in a row.
    """
    done = failures = 0
    while done < len(trials):
        try:
            for outcome in _attempt(problem, trials[done:]):
                yield outcome
                done, failures = done + 1, 0
        except FAILURES as error:
            trial = trials[done]
            failures += 1
            told = f"fine-tuning on task {trial.task}, base {trial.base}, repeat {trial.repeat} failed"
            cause = f"{type(error).__name__}: {error}"
            if failures > RETRIES:
                raise InfrastructureError(f"{told} {failures} times, the last time with {cause}") from error
            on_retry(f"{told} ({cause}); trying again, {failures} of {RETRIES}")
            gc.collect()  # frees device buffers that the traceback held
        else:
            if done != len(trials):
                raise RuntimeError(
                    f"run_many needs one outcome per trial, got {done} for {len(trials)} trials."
                )


def _attempt(problem: Problem, trials: Sequence[Trial]) -> Iterator[Outcome]:
    if isinstance(problem, BatchProblem):
        yield from problem.run_many(trials)
    else:
        yield from (problem.run(trial) for trial in trials)


def _trial(candidate: Candidate, task: TaskInfo, base: int, repeat: int) -> Trial:
    digest = candidate.digests[task.name][base]
    return Trial(task.name, SEARCH_POOL, base, repeat, digest, candidate.expression)
