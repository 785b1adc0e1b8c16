"""Ranking, age, Pareto front, ancestry, and the state as plain data."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_proposals import after
from toy_problem import SMALL, ToyProblem

from jaxprune.search.fitness import Fitness
from jaxprune.search.problem import Behaviour
from jaxprune.search.search import init_search
from jaxprune.search.selection import one_per_behaviour, pareto_front, survivors
from jaxprune.search.serialization import state_from_json, state_to_json
from jaxprune.search.state import Candidate, Individual, SearchState, ancestry


def individual(id_: int, lower: float, complexity: int, plan: str = "") -> Individual:
    behaviour = Behaviour({"t": (plan or str(id_),)})
    candidate = Candidate(id_, f"f{id_}", complexity, "random", (), 0, behaviour=behaviour)
    return Individual(candidate, Fitness(lower + 1.0, 1.0, {}), lower)


@pytest.fixture(scope="module")
def evolved() -> SearchState:
    return after(init_search(ToyProblem(), SMALL), 4)


def test_front_by_hand() -> None:
    individuals = [
        individual(0, 1.0, 5),
        individual(1, 0.5, 3),
        individual(2, 0.9, 6),
        individual(3, 2.0, 9),
        individual(4, 2.0, 9),
    ]
    assert [individual.candidate.id for individual in pareto_front(individuals)] == [1, 0, 3]
    assert pareto_front([]) == ()


def test_of_one_behaviour_the_first_stays() -> None:
    individuals = [individual(0, 1.0, 5, "a"), individual(1, 1.0, 7, "a"), individual(2, 0.5, 3, "b")]
    assert [individual.candidate.id for individual in one_per_behaviour(individuals)] == [0, 2]


def test_rank_is_by_lower_bound_then_complexity(evolved: SearchState) -> None:
    ranked = evolved.ranked()
    keys = [
        (-individual.fitness.lower, individual.candidate.complexity, individual.candidate.id)
        for individual in ranked
    ]
    assert keys == sorted(keys)
    assert evolved.ranked([3, 1, 2]) == tuple(
        individual for individual in ranked if individual.candidate.id in (1, 2, 3)
    )


def test_population_is_the_best_of_the_young_one_per_behaviour(evolved: SearchState) -> None:
    assert len(evolved.population) == SMALL.population
    digests = [evolved.individual(id_).candidate.behaviour for id_ in evolved.population]
    assert len({behaviour.digest for behaviour in digests if behaviour is not None}) == SMALL.population
    assert survivors(evolved) == evolved.population


def test_who_is_not_tried_again_for_too_long_retires(evolved: SearchState) -> None:
    leader = evolved.population[0]
    later = dataclasses.replace(evolved, generation=6)
    assert leader in survivors(later)
    aged = [
        dataclasses.replace(candidate, last_evaluated=0) if candidate.id == leader else candidate
        for candidate in evolved.candidates
    ]
    tired = dataclasses.replace(later, candidates=tuple(aged))
    assert leader in survivors(tired)  # 5 generations without: still a parent
    assert leader not in survivors(dataclasses.replace(tired, generation=7))


def test_elites_never_grow_old() -> None:
    state = after(init_search(ToyProblem(), SMALL.replace(max_age=1, generations=9)), 8)
    for candidate_id in state.population:
        assert state.generation - 1 - state.candidates[candidate_id].last_evaluated <= 1
    best = state.ranked()[0].candidate
    assert best.id in state.population or best.last_evaluated < state.generation - 2


def test_archive_is_a_front_of_valid_candidates(evolved: SearchState) -> None:
    individuals = [evolved.individual(id_) for id_ in evolved.archive]
    assert [individual.candidate.id for individual in pareto_front(individuals)] == list(evolved.archive)
    assert evolved.ranked()[0].fitness.lower == individuals[-1].fitness.lower
    assert all(individual.candidate.status == "ok" for individual in individuals)


def test_ancestry_holds_all_forebears(evolved: SearchState) -> None:
    child = next(candidate for candidate in reversed(evolved.candidates) if candidate.parents)
    family = ancestry(evolved, child.id)
    ids = [candidate.id for candidate in family]
    assert ids == sorted(ids) and ids[-1] == child.id
    assert all(set(candidate.parents) <= set(ids) for candidate in family)
    assert all(
        candidate.generation == 0 or candidate.parents or candidate.origin == "random" for candidate in family
    )
    assert ancestry(evolved, 0) == (evolved.candidates[0],)


def test_unknown_candidates_are_refused(evolved: SearchState) -> None:
    with pytest.raises(ValueError, match="no candidate 999: the run has candidates 0 to"):
        ancestry(evolved, 999)
    invalid = next(candidate.id for candidate in evolved.candidates if candidate.status == "invalid")
    with pytest.raises(ValueError, match=f"candidate {invalid} has no fitness"):
        evolved.individual(invalid)


def test_state_survives_json(evolved: SearchState) -> None:
    plain = json.loads(json.dumps(state_to_json(evolved), allow_nan=False))
    back = state_from_json(plain, evolved.problem)
    assert back == evolved
    assert after(back, 1).candidates == after(evolved, 1).candidates


def test_scales_stay_as_generation_0_measured_them(evolved: SearchState) -> None:
    first = after(init_search(ToyProblem(), SMALL), 1)
    assert first.scales == evolved.scales
    assert all(scale.spread > 0 and scale.base_sd > 0 for scale in first.scales.values())


def test_summaries_add_up(evolved: SearchState) -> None:
    assert [summary.generation for summary in evolved.summaries] == [0, 1, 2, 3]
    assert sum(summary.fine_tunings for summary in evolved.summaries) == evolved.evaluations
    assert evolved.summaries[-1].fine_tunings_total == evolved.evaluations
    assert sum(summary.evaluated for summary in evolved.summaries) == evolved.summaries[-1].evaluated_total
    for summary in evolved.summaries:
        assert summary.proposed == summary.unique + summary.duplicates + summary.invalid
    best = evolved.ranked()[0]
    assert evolved.summaries[-1].best_text == best.candidate.text
    assert evolved.summaries[-1].best_mean == best.fitness.mean
