"""What a generation proposes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from toy_problem import SMALL, TASKS, ToyProblem

from jaxprune.language.expression import Expression
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.search.evaluation import evaluate, max_fine_tunings
from jaxprune.search.problem import Behaviour
from jaxprune.search.proposals import ask, canonical_text, propose
from jaxprune.search.search import init_search
from jaxprune.search.serialization import state_to_json
from jaxprune.search.state import SearchState
from jaxprune.search.update import tell
from jaxprune.types import Invalid


def after(state: SearchState, num_generations: int) -> SearchState:
    for _ in range(num_generations):
        state = tell(state, evaluate(state, ask(state)))
    return state


@pytest.fixture(scope="module")
def started() -> SearchState:
    return after(init_search(ToyProblem(), SMALL), 1)


def test_generation_0_is_library_seeds_and_guesses_once_each() -> None:
    guess = "mean(X) + sum(abs(WI))"
    known = str(library["l1"])
    state = init_search(ToyProblem(), SMALL, guesses=[guess, known, parse(guess)])
    asked = propose(state)
    origins = [proposal.candidate.origin for proposal in asked.proposals]
    assert origins[0] == "library:l2" and origins[-1] == "guess"
    names = {f"library:{name}" for name in library} | {f"seed:{name}" for name in own_seeds}
    assert set(origins) == names - {"library:bn_scale"} | {"guess"}  # the toy has no gamma
    assert len(origins) == len(set(origins))
    assert asked.tally.duplicates == 2 and asked.tally.proposed == len(origins) + 2
    invalid = [proposal.candidate for proposal in asked.proposals if proposal.candidate.status == "invalid"]
    assert len(invalid) == asked.tally.invalid > 0
    assert all(candidate.reason == "a toy reason" and candidate.behaviour is None for candidate in invalid)


def test_paper_seeds_and_vocabulary() -> None:
    paper = init_search(ToyProblem(), SMALL.replace(vocabulary="paper", seeds="paper"))
    assert len(ask(paper)) == 7
    read = {name for proposal in ask(paper) for name in proposal.candidate.expression.operands}
    assert "WO" not in read
    later = after(paper, 1)
    assert not any("WO" in proposal.candidate.expression.operands for proposal in ask(later))


def test_ask_is_pure(started: SearchState) -> None:
    before = state_to_json(started)
    first, second = ask(started), ask(started)
    assert first == second
    assert state_to_json(started) == before
    other = dataclasses.replace(started, config=started.config.replace(seed=2))
    assert ask(other) != first


def test_proposals_are_new_valid_and_within_limits(started: SearchState) -> None:
    state = after(started, 3)
    forms = [canonical_text(candidate.text) for candidate in state.candidates]
    assert len(set(forms)) == len(forms)
    later = [candidate for candidate in state.candidates if candidate.generation > 0]
    assert len(later) == 3 * SMALL.population
    digests = [candidate.behaviour.digest for candidate in later if candidate.behaviour is not None]
    assert len(set(digests)) == len(later)
    seeds = {
        candidate.behaviour.digest
        for candidate in state.candidates[: -len(later)]
        if candidate.behaviour is not None
    }
    assert not seeds & set(digests)
    for candidate in later:
        expression = candidate.expression
        assert expression.size <= SMALL.max_size and expression.depth <= SMALL.max_depth
        assert all(parent < candidate.id for parent in candidate.parents)


def test_elites_are_asked_again(started: SearchState) -> None:
    again = [proposal.candidate.id for proposal in ask(started) if proposal.again]
    assert again == list(started.population[: SMALL.elites])


def test_random_search_never_varies(started: SearchState) -> None:
    control = dataclasses.replace(started, config=SMALL.replace(strategy="random"))
    new = [proposal.candidate for proposal in ask(control) if not proposal.again]
    assert len(new) == SMALL.population
    assert {candidate.origin for candidate in new} == {"random"}
    assert all(candidate.parents == () for candidate in new)


def test_max_evaluations_shrinks_the_last_generation(started: SearchState) -> None:
    room = max_fine_tunings(3, TASKS, SMALL.promote_fraction, SMALL.elites)
    for left, expected in ((room, 3), (room - 1, 2), (1, 0)):
        config = SMALL.replace(max_evaluations=started.evaluations + left)
        asked = ask(dataclasses.replace(started, config=config))
        assert sum(not proposal.again for proposal in asked) == expected


def test_near_plans_come_last() -> None:
    state = after(init_search(ToyProblem(), SMALL.replace(min_plan_distance=0.0)), 1)
    eager = {proposal.candidate.text for proposal in ask(state)}
    careful = dataclasses.replace(state, config=state.config.replace(min_plan_distance=0.3))
    assert {proposal.candidate.text for proposal in ask(careful)} != eager
    assert len(ask(careful)) == len(ask(state))


class InvalidProblem(ToyProblem):
    """Nothing can be scored."""

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        return [Invalid("dead channels") for _ in functions]


class ShortProblem(ToyProblem):
    """Forgets the extra base."""

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        return [Behaviour({"digits": ("a",) * 3, "fashion": ("a",) * 2}) for _ in functions]


class LosingProblem(ToyProblem):
    """Forgets a function."""

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        return super().behaviours(functions)[1:]


def test_a_problem_that_l2_cannot_score_is_refused() -> None:
    with pytest.raises(ValueError, match="a network that l2 can score; it is invalid: dead channels"):
        ask(init_search(InvalidProblem(), SMALL))


def test_behaviours_are_checked() -> None:
    with pytest.raises(ValueError, match="one digest per task and search base, extra ones included"):
        ask(init_search(ShortProblem(), SMALL))
    with pytest.raises(ValueError, match="one result per function"):
        ask(init_search(LosingProblem(), SMALL))


def test_init_search_refuses_what_is_no_function_or_task() -> None:
    with pytest.raises(ValueError, match=r"one number per channel, got an array from mX"):
        init_search(ToyProblem(), SMALL, guesses=["mX"])
    with pytest.raises(ValueError, match="tasks with different names"):
        init_search(ToyProblem([TASKS[0], TASKS[0]]), SMALL)
    with pytest.raises(ValueError, match="one or more tasks"):
        init_search(ToyProblem([]), SMALL)
