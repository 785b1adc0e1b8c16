"""Evaluates proposals: decides which fine-tunings a generation runs and in which order, and retries failed ones.

Every candidate is tried on one base per task, the better third of them on all bases, and elites on one further base or
repeat per task. On a landscape candidates are only recorded, and the leaders are tried at the end, by `verify`.
Wherever a candidate is tried, l2 is tried first with the same keys. A fine-tuning whose plan is already known on that
base with those keys is never run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from dataclasses import dataclass, field
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
from jaxprune.search.selection import apart
from jaxprune.search.state import REFERENCE_ID, Candidate, Individual, SearchState, is_start_formula

FIRST_BASES = 24
"""Bases of each task on which all leaders are verified, at most."""

FINALISTS = 6
"""Leaders that are verified on all bases."""

START_FORMULAS = 3
"""Start formulas that are verified, the best by what landscapes predict."""

RETRIES = 2
"""How often something is tried again after an infrastructure error before the run stops."""

FAILURES = (InfrastructureError, MemoryError, OSError, jax.errors.JaxRuntimeError)
"""The errors that count as infrastructure errors: trying again may help, and they say nothing about the function."""

Purpose = Literal["reference", "screen", "promote", "again", "verify"]
"""Why a fine-tuning was run: l2 for the pairing, a first base, all bases, a further base or repeat of an elite, or the
verification of a leader."""

Condition = tuple[TaskInfo, int, int]
"""The task, base and repeat under which a candidate is fine-tuned."""


@dataclass(frozen=True)
class Proposal:
    """A candidate to evaluate: a new one, or with `again` a known one on further bases and keys."""

    candidate: Candidate
    again: bool = False


@dataclass(frozen=True)
class TrialRecord:
    """The journal's record of one fine-tuning of one candidate.

    Args:
      generation: the generation that needed it.
      candidate: the id of the candidate that needed it.
      purpose: why it was run.
      task, pool, base, repeat, digest: the trial's key.
      accuracy: validation accuracy in percent.
      seconds: how long the fine-tuning took.
      is_cached: whether the accuracy was known already from an equal plan, so that nothing was run.
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
        """The values that determine the accuracy."""
        return (self.task, self.pool, self.base, self.repeat, self.digest)


Record = Candidate | TrialRecord
"""One record of a generation: a new candidate, or a fine-tuning of a candidate."""


class SearchStopped(Exception):
    """Raised between two fine-tunings, or while proposing, because `should_stop` gave a reason."""


def stop_if_asked(should_stop: Callable[[], str | None]) -> None:
    """Raises `SearchStopped` if `should_stop` gives a reason."""
    reason = should_stop()
    if reason is not None:
        raise SearchStopped(reason)


def evaluate(
    state: SearchState,
    proposals: Sequence[Proposal],
    *,
    on_record: Callable[[Record], None] = lambda record: None,
    on_retry: Callable[[str], None] = lambda message: None,
    should_stop: Callable[[], str | None] = lambda: None,
    recorded: Mapping[TrialKey, Outcome] | None = None,
) -> tuple[Record, ...]:
    """Runs the fine-tunings that the proposals of `ask` need, and returns the records for `tell`.

    Args:
      state: the state that was asked.
      proposals: the result of `ask(state)`.
      on_record: called with every record as soon as it is known, in their order.
      on_retry: called with a message before a fine-tuning is tried again.
      should_stop: called before every fine-tuning; returns a reason to stop, or None to go on.
      recorded: outcomes that the journal holds already, which are used instead of running them again.

    Returns:
      The new candidates, then one record per candidate and fine-tuning. Their order depends on nothing but `state` and
      `proposals`.

    Raises:
      InfrastructureError: if a fine-tuning failed `RETRIES + 1` times for reasons outside it.
      SearchStopped: if `should_stop` gave a reason.
    """
    return _Evaluation(state, on_record, on_retry, should_stop, recorded or {}).run(proposals)


def verify(
    state: SearchState,
    *,
    on_record: Callable[[Record], None] = lambda record: None,
    on_retry: Callable[[str], None] = lambda message: None,
    should_stop: Callable[[], str | None] = lambda: None,
    recorded: Mapping[TrialKey, Outcome] | None = None,
) -> tuple[Record, ...]:
    """Verifies the leaders of a search on landscapes by fine-tuning, and returns the records for `tell_verified`.

    The leaders, with plans that are `apart`, and the best start formulas are fine-tuned on up to 24 bases of each task,
    and the best six and the start formulas on all. Nothing else may be called the best.

    Args:
      state: the state of a search on landscapes, after one or more generations.
      on_record, on_retry, should_stop, recorded: as for `evaluate`.

    Returns:
      One record per candidate and fine-tuning, in an order that depends on nothing but `state`.

    Raises:
      InfrastructureError: as `evaluate`.
      SearchStopped: as `evaluate`.
    """
    return _Evaluation(state, on_record, on_retry, should_stop, recorded or {}).verify()


@dataclass(frozen=True)
class _Request:
    """A candidate that needs the result of a trial."""

    candidate: Candidate
    purpose: Purpose
    trial: Trial


@dataclass
class _Evaluation:
    """The evaluation of one generation: the accuracies known so far, and the records made so far."""

    state: SearchState
    on_record: Callable[[Record], None]
    on_retry: Callable[[str], None]
    should_stop: Callable[[], str | None]
    recorded: Mapping[TrialKey, Outcome]
    records: list[Record] = field(default_factory=list)

    def run(self, proposals: Sequence[Proposal]) -> tuple[Record, ...]:
        state = self.state
        self.accuracies = dict(state.results)
        new = [proposal.candidate for proposal in proposals if not proposal.again]
        for candidate in new:
            self._add(candidate)
        self.reference = (*state.candidates, *new)[REFERENCE_ID]
        if state.has_landscapes:
            return tuple(self.records)
        valid = [candidate for candidate in new if candidate.status == "ok"]
        all_bases = [(task, base, 0) for task in state.tasks for base in range(task.bases)]
        if state.generation == 0:
            self._run_stage(
                "screen", [(candidate, condition) for candidate in valid for condition in all_bases]
            )
            return tuple(self.records)
        one_base = [(task, state.generation % task.bases, 0) for task in state.tasks]
        other_bases = [condition for condition in all_bases if condition not in one_base]
        self._run_stage("screen", [(candidate, condition) for candidate in valid for condition in one_base])
        promoted = [(candidate, condition) for candidate in self._better(valid) for condition in other_bases]
        requests = self._requests("promote", promoted)
        # Elites do not wait for the accuracies of promoted candidates: together they fill more rows of members.
        planned = {request.trial.key for request in requests}
        elites = [proposal.candidate for proposal in proposals if proposal.again]
        further = [
            (elite, self._next_condition(elite, task, planned)) for elite in elites for task in state.tasks
        ]
        self._run([*requests, *self._requests("again", further, planned)])
        return tuple(self.records)

    def verify(self) -> tuple[Record, ...]:
        """Tries the leaders on up to `FIRST_BASES` bases of each task, and the best of these on all."""
        state = self.state
        self.accuracies, self.reference = dict(state.results), state.candidates[REFERENCE_ID]
        leaders = apart(state.ranked_by_prediction(), state.config, state.config.leaders)
        start = [individual for individual in state.ranked_by_prediction() if is_start_formula(individual)]
        chosen = {individual.candidate.id: individual for individual in (*leaders, *start[:START_FORMULAS])}
        first = [(task, base, 0) for task in state.tasks for base in range(min(task.bases, FIRST_BASES))]
        self._try(list(chosen.values()), first)
        measured = dataclasses.replace(state, results=self.accuracies).measured(
            [individual.candidate for individual in leaders]
        )
        ranked = sorted(
            leaders,
            key=lambda individual: (
                individual.cost - (individual.value + measured[individual.candidate.id].mean) / 2,
                individual.candidate.id,
            ),
        )
        best = [*ranked[:FINALISTS], *start[:START_FORMULAS]]
        rest = [(task, base, 0) for task in state.tasks for base in range(FIRST_BASES, task.bases)]
        self._try(best, rest)
        return tuple(self.records)

    def _try(self, individuals: Sequence[Individual], conditions: Sequence[Condition]) -> None:
        """Fine-tunes each individual under each condition."""
        candidates = dict.fromkeys(individual.candidate.id for individual in individuals)
        self._run_stage(
            "verify",
            [(self.state.candidates[id_], condition) for condition in conditions for id_ in candidates],
        )

    def _better(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Returns the share that is promoted, judged on the results so far; of equals the simpler come first."""
        state = self.state
        ranked = []
        for candidate in candidates:
            fitness = fitness_of(
                self.accuracies,
                state.tasks,
                state.scales,
                candidate.digests,
                self.reference.digests,
                state.config.joint,
            )
            if fitness is not None:
                ranked.append((-fitness.mean, candidate.complexity, candidate.id, candidate))
        ranked.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in ranked[: num_promoted(len(candidates), state.config.promote_fraction)]]

    def _next_condition(self, candidate: Candidate, task: TaskInfo, planned: Set[TrialKey]) -> Condition:
        """Returns the first condition under which the candidate is not tried: all bases, then the next repeat."""
        conditions = (
            (task, base, repeat)
            for repeat in itertools.count()
            for base in range(task.bases + task.extra_bases)
        )
        known = self.accuracies.keys() | planned
        return next(condition for condition in conditions if _trial(candidate, *condition).key not in known)

    def _run_stage(self, purpose: Purpose, wanted: Sequence[tuple[Candidate, Condition]]) -> None:
        """Runs candidates and what is missing of l2, see `_requests`; records all of them."""
        self._run(self._requests(purpose, wanted))

    def _requests(
        self,
        purpose: Purpose,
        wanted: Sequence[tuple[Candidate, Condition]],
        planned: Set[TrialKey] = frozenset(),
    ) -> list[_Request]:
        """Returns l2 under every condition where it is neither known nor planned, then the candidates."""
        references = [
            _Request(self.reference, "reference", _trial(self.reference, *condition))
            for condition in dict.fromkeys(condition for _, condition in wanted)
        ]
        known = self.accuracies.keys() | planned
        requests = [request for request in references if request.trial.key not in known]
        paired = {request.trial.key for request in requests}
        for candidate, condition in wanted:
            request = _Request(candidate, purpose, _trial(candidate, *condition))
            if candidate.id != REFERENCE_ID or request.trial.key not in paired:  # l2 itself is there already
                requests.append(request)
        return requests

    def _run(self, requests: Sequence[_Request]) -> None:
        """Runs the trials of requests that are not known yet, all together; records every request in order."""
        trials = {request.trial.key: request.trial for request in requests}
        missing = [
            trial for key, trial in trials.items() if key not in self.accuracies and key not in self.recorded
        ]
        generation = self.state.generation
        # Closed whatever happens: otherwise threads would go on training after the search has ended.
        with contextlib.closing(outcomes_of(self.state.problem, missing, self.on_retry)) as outcomes:
            for request in requests:
                key = request.trial.key
                is_cached = key in self.accuracies
                if is_cached:
                    outcome = Outcome(self.accuracies[key])
                elif key in self.recorded:
                    outcome = self.recorded[key]
                else:
                    stop_if_asked(self.should_stop)
                    outcome = next(outcomes)
                self.accuracies[key] = outcome.accuracy
                number, accuracy, seconds = request.candidate.id, outcome.accuracy, outcome.seconds
                self._add(
                    TrialRecord(generation, number, request.purpose, *key, accuracy, seconds, is_cached)
                )

    def _add(self, record: Record) -> None:
        self.records.append(record)
        self.on_record(record)


def num_promoted(num_candidates: int, promote_fraction: float) -> int:
    """Computes how many of a generation's candidates are tried on all bases: the fraction, rounded up.

    Args:
      num_candidates: number of valid new candidates.
      promote_fraction: the share of them that is promoted, in [0, 1].

    Example:
      >>> num_promoted(16, 1 / 3), num_promoted(16, 0.0)
      (6, 0)
    """
    return math.ceil(num_candidates * promote_fraction - 1e-9)


def batch_sizes(num_slots: int, task: TaskInfo, promote_fraction: float, elites: int) -> tuple[int, int]:
    """Computes how many fine-tunings of one task a generation runs together, at most: first bases, then all others.

    Elites count twice, because l2 may have to be tried with the same new keys.

    Args:
      num_slots: number of new candidates.
      task: one of the problem's tasks.
      promote_fraction: the share of candidates that is promoted, in [0, 1].
      elites: number of elites that are tried again.

    Example:
      >>> batch_sizes(16, TaskInfo("a", bases=4), promote_fraction=1 / 3, elites=2)
      (16, 22)
    """
    return num_slots, num_promoted(num_slots, promote_fraction) * (task.bases - 1) + 2 * elites


def max_fine_tunings(num_slots: int, tasks: Sequence[TaskInfo], promote_fraction: float, elites: int) -> int:
    """Computes the largest number of fine-tunings that a generation can need: all of `batch_sizes`, of all tasks.

    Example:
      >>> max_fine_tunings(6, [TaskInfo("a", bases=4)], promote_fraction=1 / 3, elites=1)
      14
    """
    return sum(sum(batch_sizes(num_slots, task, promote_fraction, elites)) for task in tasks)


def outcomes_of(
    problem: Problem, trials: Sequence[Trial], on_retry: Callable[[str], None] = lambda message: None
) -> Generator[Outcome, None, None]:
    """Yields the outcome of every trial in order, trying again after an infrastructure error.

    Args:
      problem: the problem that runs the trials.
      trials: the trials.
      on_retry: called with a message before a trial is tried again.

    Raises:
      InfrastructureError: if one trial failed `RETRIES + 1` times in a row.
      RuntimeError: if the problem's `run_many` yields fewer outcomes than trials.
    """
    done = failures = 0
    while done < len(trials):
        rest = trials[done:]
        try:
            outcomes = problem.run_many(rest) if isinstance(problem, BatchProblem) else map(problem.run, rest)
            for _, outcome in zip(rest, outcomes, strict=False):  # asks for no more than there are trials
                yield outcome
                done, failures = done + 1, 0
            if done < len(trials):
                raise RuntimeError(
                    f"run_many needs one outcome per trial, got {done} for {len(trials)} trials."
                )
        except FAILURES as error:
            failures += 1
            trial = trials[done]
            action = f"fine-tuning on task {trial.task}, base {trial.base}, repeat {trial.repeat}"
            report_failure(action, failures, error, on_retry)
            gc.collect()  # frees device buffers that the traceback held


def report_failure(action: str, failures: int, error: Exception, on_retry: Callable[[str], None]) -> None:
    """Reports that something failed and will be tried again.

    Args:
      action: what failed, for the messages.
      failures: how often it has failed in a row.
      error: the last failure.
      on_retry: called with the message.

    Raises:
      InfrastructureError: if it has failed more than `RETRIES` times.
    """
    cause = _cause(error)
    if failures > RETRIES:
        raise InfrastructureError(f"{action} failed {failures} times, the last time with {cause}") from error
    on_retry(f"{action} failed ({cause}); trying again, {failures} of {RETRIES}")


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _trial(candidate: Candidate, task: TaskInfo, base: int, repeat: int) -> Trial:
    assert candidate.behaviour is not None
    digest = candidate.digests[task.name][base]
    return Trial(task.name, SEARCH_POOL, base, repeat, digest, candidate.expression, candidate.behaviour.kept)
