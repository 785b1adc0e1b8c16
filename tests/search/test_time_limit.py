"""A time limit, or another reason to stop, is looked at while proposing too, and changes no proposal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_proposals import after
from toy_problem import SMALL, ToyProblem

from jaxprune.language.expression import Expression
from jaxprune.search import generations, proposals
from jaxprune.search.callbacks import Callback, notify
from jaxprune.search.evaluation import SearchStopped
from jaxprune.search.problem import Behaviour
from jaxprune.search.proposals import propose
from jaxprune.search.search import evolve_problem, init_search
from jaxprune.search.state import SearchState
from jaxprune.types import Invalid


@pytest.fixture(scope="module")
def started() -> SearchState:
    return after(init_search(ToyProblem(), SMALL), 1)


def stopping_after(num_questions: int) -> Callable[[], str | None]:
    """A reason to stop that is there from the question of this number on."""
    questions = iter(range(num_questions))
    return lambda: None if next(questions, None) is not None else "enough"


class Clock:
    """A clock that only a problem moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class SlowToScore(ToyProblem):
    """Takes a second for each call of `behaviours`, on a clock of its own."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.sizes = clock, list[int]()

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        self.clock.now += 1.0
        self.sizes.append(len(functions))
        return super().behaviours(functions)


def test_a_time_limit_ends_proposing_between_two_parts_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr(generations, "time", clock)
    monkeypatch.setattr(proposals, "SCORED_AT_ONCE", 30)
    problem = SlowToScore(clock)
    start_calls = -(-(len(propose(init_search(ToyProblem(), SMALL)).proposals)) // 30)
    config = SMALL.replace(generations=1, population=30, time_limit_seconds=start_calls + 1.5)
    result = evolve_problem(problem, config, tmp_path)
    assert result.stopped == "time" and result.state.generation == 1
    assert problem.sizes[start_calls:] == [30, 30]  # of 120 that were drawn


class TrainsBases(ToyProblem):
    """Trains four base networks when it scores, a second each, and reports each as the tasks do."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.num_bases = clock, 0

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        for _ in range(4):
            self.clock.now += 1.0
            self.num_bases += 1
            notify([], "on_base")
        return super().behaviours(functions)


def test_a_time_limit_ends_the_training_of_base_networks_after_generation_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr(generations, "time", clock)
    config = SMALL.replace(generations=1, time_limit_seconds=2.5)
    problem = TrainsBases(clock)
    evolve_problem(ToyProblem(), config.replace(generations=0), tmp_path)
    result = evolve_problem(problem, config, tmp_path, resume=True)
    assert result.stopped == "time" and result.state.generation == 1 and problem.num_bases == 3


@pytest.mark.parametrize("num_questions", [0, 1, 5, 23, 24, 25, 30])
def test_every_part_of_proposing_asks_whether_to_stop(started: SearchState, num_questions: int) -> None:
    before = started.problem.num_scored  # type: ignore[attr-defined]
    with pytest.raises(SearchStopped, match="enough"):
        propose(started, stopping_after(num_questions))
    num_drawn = SMALL.population * SMALL.proposals_per_slot
    has_scored = started.problem.num_scored > before  # type: ignore[attr-defined]
    assert has_scored == (
        num_questions > num_drawn
    )  # asked before each draw, then before scoring, then in the choice


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_how_many_are_scored_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, started: SearchState, at_once: int
) -> None:
    expected = propose(started)
    monkeypatch.setattr(proposals, "SCORED_AT_ONCE", at_once)
    assert propose(started) == expected


def test_a_search_stopped_while_proposing_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole = evolve_problem(ToyProblem(), SMALL, tmp_path / "whole", callbacks=[Callback()])
    state = after(init_search(ToyProblem(), SMALL), 2)
    with pytest.raises(SearchStopped):
        propose(state, stopping_after(10))
    assert after(state, SMALL.generations - 1).candidates == whole.state.candidates
