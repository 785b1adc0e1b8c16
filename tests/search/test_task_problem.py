"""Tasks as a problem: outcomes come chunk by chunk, in order, on an accelerator; landscapes predict them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bank import FakePool, accuracy
from tiny_task import tiny_task

from jaxprune.language.library import library
from jaxprune.scoring.metrics import metrics
from jaxprune.search.problem import Behaviour, Trial
from jaxprune.search.search import evolve_problem
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.round_plans import FirstRoundPlan
from jaxprune.types import Invalid

CHUNK = 4


class Chunks:
    """A pool that trains a chunk at a time; the accuracy of an entry is its base and repeat."""

    def __init__(self) -> None:
        self.num_chunks = 0

    def finetune(self, entries: Sequence[Entry]) -> Iterator[SimpleNamespace]:
        for first in range(0, len(entries), CHUNK):
            self.num_chunks += 1
            for entry in entries[first : first + CHUNK]:
                yield SimpleNamespace(accuracies=np.array([entry.base + entry.repeat / 100]), seconds=1.0)


def vmapped_problem(names: Sequence[str]) -> TaskProblem:
    """A problem whose tasks train in chunks, without networks."""
    problem = object.__new__(TaskProblem)
    problem.programs = {name: SimpleNamespace(is_vmapped=True) for name in names}  # type: ignore[misc]
    problem.pools = {name: Chunks() for name in names}  # type: ignore[misc]
    problem._outcomes = {}
    return problem


def trial(task: str, base: int, repeat: int) -> Trial:
    return Trial(task, "search", base, repeat, "digest", library["l1"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_outcomes_are_in_the_order_of_trials_and_no_chunk_is_trained_early(
    keys: list[tuple[str, int, int]],
) -> None:
    problem = vmapped_problem("abc")
    taken: dict[str, set[tuple[int, int]]] = {name: set() for name in "abc"}
    for (task, base, repeat), outcome in zip(
        keys, problem.run_many([trial(*key) for key in keys]), strict=True
    ):
        assert outcome.accuracy == pytest.approx(base + repeat / 100)
        taken[task].add((base, repeat))  # an equal trial is not trained again
        trained = {name: pool.num_chunks for name, pool in problem.pools.items()}  # type: ignore[attr-defined]
        assert trained == {name: -(-len(distinct) // CHUNK) for name, distinct in taken.items()}


def test_what_another_search_has_fine_tuned_is_not_trained_again() -> None:
    problem = vmapped_problem("a")
    first = list(problem.run_many([trial("a", base, 0) for base in range(2)]))
    again = list(problem.run_many([trial("a", base, 0) for base in (1, 0)]))
    assert again == first[::-1]
    assert problem.pools["a"].num_chunks == 1  # type: ignore[attr-defined]


def test_a_guess_that_reads_what_a_network_lacks_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(pool: BasePool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BasePool, "bases", property(trained))
    told: list[str] = []
    problem = TaskProblem([tiny_task()])
    guesses = ["mean(X)*sum(WO)", "gamma*mean(X)"]
    with pytest.raises(KeyboardInterrupt):
        evolve_problem(
            problem,
            EvolveConfig(generations=0, fitness="finetune"),
            tmp_path,
            callbacks=[SimpleNamespace(on_message=told.append)],
            guesses=guesses,
        )
    (message,) = told
    assert message.startswith(
        "The guess gamma*mean(X) is left out: on task tiny, gamma*mean(X) needs operand gamma, which producers "
        "conv1.kernel, conv2.kernel, dense.kernel do not have: no learned normalisation scale follows it."
    )


class TestLandscapes:
    """With pools whose accuracies are made up."""

    def problem(self, **pools: FakePool) -> TaskProblem:
        problem = object.__new__(TaskProblem)
        for pool in pools.values():
            pool.programs.structure = pool.programs.rounds[0].structure
        problem.pools = pools  # type: ignore[assignment]
        problem.programs = {name: pool.programs for name, pool in pools.items()}  # type: ignore[misc]
        problem._landscapes, problem._banks, problem._l2_predictions = {}, {}, {}
        problem._outcomes = {}
        return problem

    def test_evolution_and_its_random_control_share_one_bank(self) -> None:
        problem = self.problem(a=FakePool(), b=FakePool(num_bases=2))
        first = problem.fit_landscapes(12)
        num_run = [len(pool.finetuned) for pool in problem.pools.values()]  # type: ignore[attr-defined]
        assert problem.fit_landscapes(12) == first
        assert [len(pool.finetuned) for pool in problem.pools.values()] == num_run  # type: ignore[attr-defined]
        assert {name: facts.plans for name, facts in first.items()} == {"a": 36, "b": 24}
        more = problem.fit_landscapes(15)
        assert more["a"].plans == 45 and more["a"].digest != first["a"].digest
        again = self.problem(a=FakePool(), b=FakePool(num_bases=2)).fit_landscapes(15)
        assert more == again

    def test_progress_names_the_task(self) -> None:
        told: list[str] = []
        self.problem(a=FakePool(), b=FakePool(num_bases=2)).fit_landscapes(10, told.append)
        assert told[0] == "bank of a: 1 of 30 plans fine-tuned"
        assert told[-1] == "bank of b: 20 of 20 plans fine-tuned"

    def test_predictions_are_of_the_plans_and_differences_are_to_l2(self) -> None:
        pools = {"a": FakePool(), "b": FakePool(num_bases=2)}
        problem = self.problem(**pools)
        assert not problem.behaviours([library["l2"]])[0].predicted  # type: ignore[union-attr]
        problem.fit_landscapes(60)
        l2, other = problem.behaviours([library["l2"], library["l1"]])
        assert isinstance(l2, Behaviour) and isinstance(other, Behaviour)
        for name, pool in pools.items():
            assert (l2.predicted[name].difference, l2.predicted[name].se) == (0.0, 0.0)
            plans = [plan for row in pool.plans([library["l2"], library["l1"]]) for plan in row]
            kept = [plan.kept for plan in plans if isinstance(plan, FirstRoundPlan)]
            truth = np.array([accuracy(i % pool.num_bases, plan) for i, plan in enumerate(kept)])
            of_l2, of_other = truth.reshape(2, -1)
            assert other.predicted[name].difference == pytest.approx(np.mean(of_other - of_l2), abs=0.4)
            assert other.predicted[name].accuracy == pytest.approx(np.mean(of_other), abs=0.4)
            assert other.predicted[name].accuracy - l2.predicted[name].accuracy == pytest.approx(
                other.predicted[name].difference
            )
            assert other.predicted[name].se > 0

    def test_metrics_without_a_formula_are_predicted_too(self) -> None:
        problem = self.problem(a=FakePool(), b=FakePool(num_bases=2))
        with pytest.raises(ValueError, match="predict needs landscapes of all tasks, got none yet"):
            problem.predict([library["l2"]])
        problem.fit_landscapes(10)
        (behaviour,) = problem.behaviours([library["l2"]])
        assert isinstance(behaviour, Behaviour)
        assert problem.predict([metrics["fpgm"]]) == [behaviour.predicted]  # the pool looks at rows only

    def test_a_function_that_fails_on_one_base_is_invalid_everywhere(self) -> None:
        problem = self.problem(a=FakePool(), b=FakePool(invalid=[(1, 2)]))
        problem.fit_landscapes(10)
        l2, other = problem.behaviours([library["l2"], library["l1"]])
        assert isinstance(l2, Behaviour) and other == Invalid("task b, base 2: a toy reason")
        assert problem.predict([library["l2"], library["l1"]])[1] == other

    def test_l2_needs_to_be_valid_on_all_bases(self) -> None:
        problem = self.problem(a=FakePool(), b=FakePool(invalid=[(0, 1)]))
        with pytest.raises(
            ValueError, match=r"to l2, so task 'b' needs a network that l2 can score; it is .*a toy"
        ):
            problem.fit_landscapes(10)

    def test_tasks_of_several_rounds_and_too_few_plans_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got 2 of task 'toy'.* Use fitness=\"finetune\" \("):
            self.problem(a=FakePool(), b=FakePool(num_rounds=2)).fit_landscapes(10)
        with pytest.raises(ValueError, match=r"at least 8 plans .* got 7 on 3"):
            self.problem(a=FakePool()).fit_landscapes(7)
