"""Which fine-tunings a generation runs, and what happens when one fails."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from test_proposals import after
from toy_problem import SMALL, TASKS, ToyBatchProblem, ToyProblem

from jaxprune.search.evaluation import (
    RETRIES,
    SearchStopped,
    TrialRecord,
    batch_sizes,
    evaluate,
    max_fine_tunings,
    num_promoted,
    outcomes_of,
)
from jaxprune.search.problem import InfrastructureError, Outcome, TaskInfo, Trial
from jaxprune.search.proposals import ask
from jaxprune.search.search import init_search
from jaxprune.search.state import Candidate
from jaxprune.search.update import tell


def trials_of(records: tuple[object, ...]) -> list[TrialRecord]:
    return [record for record in records if isinstance(record, TrialRecord)]


class CountingProblem(ToyBatchProblem):
    """Notes how many trials it was given at a time."""

    def __init__(self, tasks: Sequence[TaskInfo]) -> None:
        super().__init__(tasks)
        self.sizes: list[int] = []

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        self.sizes.append(len(trials))
        return super().run_many(trials)


def idle_share(sizes: Sequence[int], row: int) -> float:
    """The share of copies in the rows that hold batches of so many members."""
    return 1 - sum(sizes) / sum(row * -(-size // row) for size in sizes)


def test_promoted_candidates_and_elites_fill_rows_together() -> None:
    """So 16 candidates on 4 bases leave under 15 % of 8 devices with 1 member each to copies; larger rows do not."""
    problem = CountingProblem([TaskInfo("a", bases=4)])
    config = SMALL.replace(population=16, elites=2)
    state = after(init_search(problem, config), 2)
    problem.sizes.clear()
    trials = trials_of(evaluate(state, ask(state)))
    by_purpose = Counter(trial.purpose for trial in trials if not trial.is_cached)
    screened = by_purpose["screen"]
    assert by_purpose["promote"] and by_purpose["again"]
    assert problem.sizes == [screened, by_purpose.total() - screened]
    sizes = batch_sizes(16, problem.tasks[0], 1 / 3, 2)  # if no plan is known already
    assert sizes == (16, 22) and screened <= 16 and problem.sizes[1] <= 22
    together, apart = ([idle_share(each, 8 * chunk) for chunk in (1, 2, 4)] for each in (sizes, (16, 18, 4)))
    assert together == pytest.approx([2 / 40, 10 / 48, 26 / 64])
    assert apart == pytest.approx([10 / 48, 26 / 64, 58 / 96])  # if elites waited for promoted candidates
    order = [trial.purpose for trial in trials]
    assert order.index("again") > max(i for i, purpose in enumerate(order) if purpose == "promote")


def test_generation_0_runs_everything_on_all_normal_bases() -> None:
    state = init_search(ToyProblem(), SMALL)
    proposals = ask(state)
    trials = trials_of(evaluate(state, proposals))
    valid = [proposal.candidate.id for proposal in proposals if proposal.candidate.status == "ok"]
    places = {(trial.candidate, trial.task, trial.base) for trial in trials}
    assert places == {(id_, task.name, base) for id_ in valid for task in TASKS for base in range(task.bases)}
    assert {trial.repeat for trial in trials} == {0}
    assert [trial.candidate for trial in trials[:5]] == [0] * 5  # l2 comes first


def test_a_generation_screens_promotes_and_tries_elites_again() -> None:
    state = after(init_search(ToyProblem(), SMALL), 2)
    proposals = ask(state)
    trials = trials_of(evaluate(state, proposals))
    new = [proposal.candidate.id for proposal in proposals if not proposal.again]
    screened = {(t.candidate, t.task, t.base) for t in trials if t.purpose == "screen"}
    assert screened == {(id_, task.name, 2 % task.bases) for id_ in new for task in TASKS}
    promoted = {t.candidate for t in trials if t.purpose == "promote"}
    assert len(promoted) == num_promoted(len(new), SMALL.promote_fraction) == 2
    everywhere = {(t.task, t.base) for t in trials if t.candidate == min(promoted)}
    assert everywhere == {(task.name, base) for task in TASKS for base in range(task.bases)}
    again = [t for t in trials if t.purpose == "again"]
    assert {t.candidate for t in again} == {state.population[0]} and len(again) == len(TASKS)
    assert sum(not t.is_cached for t in trials) <= max_fine_tunings(
        6, TASKS, SMALL.promote_fraction, SMALL.elites
    )


def test_promotion_takes_the_better_ones() -> None:
    state = after(init_search(ToyProblem(), SMALL), 1)
    trials = trials_of(evaluate(state, ask(state)))
    after_tell = tell(state, evaluate(state, ask(state)))
    promoted = {t.candidate for t in trials if t.purpose == "promote"}
    reference = {(t.task, t.base): t.accuracy for t in trials if t.candidate == 0}
    reference |= {(k[0], k[2]): v for k, v in state.results.items()
                  if k[4] == state.candidates[0].digests[k[0]][k[2]] and k[3] == 0}  # fmt: skip
    first: dict[int, float] = {}
    for t in trials:
        if t.purpose == "screen":
            task = next(task for task in TASKS if task.name == t.task)
            value = (
                (t.accuracy - reference[t.task, t.base])
                / after_tell.scales[t.task].spread
                * task.weight
                / 1.5
            )
            first[t.candidate] = first.get(t.candidate, 0.0) + value
    assert promoted == set(sorted(first, key=lambda id_: -first[id_])[: len(promoted)])


def test_elites_get_bases_then_keys_always_paired_with_l2() -> None:
    config = SMALL.replace(elites=1, generations=8)
    state = after(init_search(ToyProblem(), config), 7)
    repeats = {key[3] for key in state.results}
    assert {key[2] for key in state.results if key[0] == "digits"} == {0, 1, 2, 3}
    assert repeats > {0, 1}
    reference = state.candidates[0].digests
    for task, pool, base, repeat, _ in state.results:
        assert (task, pool, base, repeat, reference[task][base]) in state.results


def test_no_plan_is_ever_trained_twice_with_the_same_keys() -> None:
    problem = ToyProblem()
    state = after(init_search(problem, SMALL), 5)
    keys = [trial.key for trial in problem.ran]
    assert len(keys) == len(set(keys)) == state.evaluations == len(state.results)
    assert sum(summary.cache_hits for summary in state.summaries) > 0


def test_many_at_a_time_equals_one_by_one() -> None:
    single, batch = ToyProblem(), ToyBatchProblem()
    first, second = after(init_search(single, SMALL), 3), after(init_search(batch, SMALL), 3)
    assert first.results == second.results and first.candidates == second.candidates


@pytest.mark.parametrize("kind", [ToyProblem, ToyBatchProblem])
def test_infrastructure_errors_are_retried_and_leave_no_trace(kind: type[ToyProblem]) -> None:
    calm, shaky = kind(), kind(fail_at=(3, 4, 9))
    messages: list[str] = []
    state = init_search(shaky, SMALL)
    records = evaluate(state, ask(state), on_retry=messages.append)
    undisturbed = init_search(calm, SMALL)
    assert records == evaluate(undisturbed, ask(undisturbed))
    assert len(messages) == 3
    assert messages[1].endswith("(InfrastructureError: the toy device was lost); trying again, 2 of 2")


def test_the_third_failure_stops_without_a_fitness() -> None:
    problem = ToyProblem(fail_at=(3, 4, 5))
    state = init_search(problem, SMALL)
    kept: list[object] = []
    with pytest.raises(InfrastructureError, match=r"fine-tuning on task digits, base 2, .* failed 3 times"):
        evaluate(state, ask(state), on_record=kept.append)
    assert sum(isinstance(record, TrialRecord) for record in kept) == RETRIES
    assert sum(isinstance(record, Candidate) for record in kept) == len(ask(state))


def test_should_stop_is_asked_before_every_fine_tuning() -> None:
    problem = ToyProblem()
    state = init_search(problem, SMALL)
    with pytest.raises(SearchStopped, match="enough"):
        evaluate(state, ask(state), should_stop=lambda: "enough" if problem.num_calls == 7 else None)
    assert problem.num_calls == 7


def test_recorded_outcomes_are_not_run_again() -> None:
    first = ToyProblem()
    state = init_search(first, SMALL)
    records = evaluate(state, ask(state))
    recorded = {t.key: Outcome(t.accuracy, t.seconds) for t in trials_of(records)[:40] if not t.is_cached}
    second = ToyProblem()
    resumed = dataclasses.replace(state, problem=second)
    assert evaluate(resumed, ask(resumed), recorded=recorded) == records
    assert second.num_calls == first.num_calls - len(recorded)


class Miscounting(ToyProblem):
    """Loses the last outcome."""

    def run_many(self, trials: list[Trial]) -> list[Outcome]:
        return [self.run(trial) for trial in trials][:-1]


def test_run_many_needs_one_outcome_per_trial() -> None:
    state = init_search(ToyProblem(), SMALL)
    candidate = ask(state)[0].candidate
    trials = [
        Trial("digits", "search", 0, n, candidate.digests["digits"][0], candidate.expression) for n in (0, 1)
    ]
    with pytest.raises(RuntimeError, match="got 1 for 2 trials"):
        list(outcomes_of(Miscounting(), trials))


class FailingAtTheEnd(ToyProblem):
    """Fails `times` times, each time after so many outcomes of a call."""

    def __init__(self, after: int, times: int) -> None:
        super().__init__()
        self.after, self.times = after, times

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        for number, trial in enumerate(trials):
            self._fail(number)
            yield self.run(trial)
        self._fail(len(trials))

    def _fail(self, number: int) -> None:
        if number == self.after and self.times:
            self.times -= 1
            raise MemoryError("no room")


@pytest.mark.parametrize("num_trials", [1, 2, 5])
@pytest.mark.parametrize("before_end", [0, 1])
def test_a_failure_loses_no_outcome_and_is_not_met_after_the_last(num_trials: int, before_end: int) -> None:
    candidate = ask(init_search(ToyProblem(), SMALL))[0].candidate
    digest = candidate.digests["digits"][0]
    trials = [Trial("digits", "search", 0, n, digest, candidate.expression) for n in range(num_trials)]
    messages: list[str] = []
    problem = FailingAtTheEnd(after=num_trials - before_end, times=1)
    assert list(outcomes_of(problem, trials, messages.append)) == [
        ToyProblem().run(trial) for trial in trials
    ]
    assert len(messages) == before_end
    assert all("MemoryError: no room); trying again" in message for message in messages)
    assert problem.ran == trials


def test_tell_refuses_records_of_another_state() -> None:
    state = init_search(ToyProblem(), SMALL)
    records = evaluate(state, ask(state))
    after_tell = tell(state, records)
    with pytest.raises(ValueError, match="needs new candidates with ids"):
        tell(after_tell, records)
    with pytest.raises(ValueError, match="needs results of l2 on every base, got none on digits, fashion"):
        tell(state, [record for record in records if isinstance(record, Candidate)])
