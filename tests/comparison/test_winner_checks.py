"""What the parts of a winner are worth, and whether it decides everywhere what is kept."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_runs import searched_on_landscapes
from toy_problem import ToyLandscapeProblem

from jaxprune.comparison.final_controls import random_search
from jaxprune.comparison.winner_checks import MAX_PARTS, soundness, worth_of_parts
from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.scoring.ranking import Ranking
from jaxprune.search.problem import SEARCH_POOL, Behaviour
from jaxprune.search.simplification import ablations
from jaxprune.search.state import Individual
from jaxprune.tasks.round_plans import FirstRoundPlan
from jaxprune.types import Invalid


def fitted_problem():
    problem = ToyLandscapeProblem()
    problem.fit_landscapes(searched_on_landscapes().state.config.plans)
    return problem


def winner_of(text):
    """The state of a search with a verified winner of any formula."""
    problem, state = fitted_problem(), searched_on_landscapes().state
    expression = parse(text)
    (behaviour,) = problem.behaviours([expression])
    assert isinstance(behaviour, Behaviour)
    candidate = dataclasses.replace(
        state.candidates[-1], id=len(state.candidates), text=str(expression), behaviour=behaviour
    )
    state = dataclasses.replace(state, candidates=(*state.candidates, candidate))
    return problem, state, Individual(candidate, state.predicted[candidate.id], 0.0)


def test_worth_is_the_paired_difference_to_the_whole_formula_in_sd():
    problem, state, winner = winner_of("std(X)*sum(abs(WO))")
    parts = worth_of_parts(problem, state, winner)
    assert [(part.removed, part.formula) for part in parts] == [
        (removed, str(rest)) for removed, rest in ablations(winner.expression)
    ]
    by_key = {trial.key: problem.run(trial).accuracy for trial in list(problem.ran)} | dict(state.results)
    part = next(part for part in parts if part.formula == "sum(abs(WO))")
    (behaviour,) = problem.behaviours([parse("sum(abs(WO))")])
    whole, expected, total = winner.candidate.behaviour, 0.0, sum(task.weight for task in state.tasks)
    for task in state.tasks:
        differences = [
            by_key[task.name, SEARCH_POOL, base, 0, behaviour.digests[task.name][base]]
            - by_key[task.name, SEARCH_POOL, base, 0, whole.digests[task.name][base]]
            for base in range(task.bases)
        ]
        expected += task.weight / total * np.mean(differences) / state.scales[task.name].spread
    assert part.measured == pytest.approx(expected) and part.se > 0
    predicted = sum(
        task.weight / total / state.scales[task.name].spread
        * (behaviour.predicted[task.name].difference - whole.predicted[task.name].difference)
        for task in state.tasks
    )  # fmt: skip
    assert part.predicted == pytest.approx(predicted)


def test_a_plan_is_fine_tuned_once_and_never_if_the_search_knows_it():
    problem, state, winner = winner_of("std(X)*sum(abs(WO))*mean(X)")
    told = []
    worth_of_parts(problem, state, winner, told.append)
    keys = [trial.key for trial in problem.ran]
    assert keys and len(set(keys)) == len(keys) == len(told)
    assert not set(keys) & set(state.results)
    assert told[-1] == f"parts of the winner: {len(keys)} of {len(keys)} networks fine-tuned"


def test_long_formulas_have_their_first_parts_measured_and_invalid_ones_named():
    text = "*".join(f"sum(abs({name}))*mean({name})" for name in ("X", "WI", "WO", "GW", "P", "Q"))
    problem, state, winner = winner_of(text)
    parts = worth_of_parts(problem, state, winner)
    assert len(parts) == MAX_PARTS < len(ablations(winner.expression))
    behaviours = problem.behaviours([parse(part.formula) for part in parts])
    reasons = [behaviour.reason if isinstance(behaviour, Invalid) else "" for behaviour in behaviours]
    assert [part.reason for part in parts] == reasons
    assert [part.predicted is None for part in parts] == [bool(reason) for reason in reasons]


def pool_of(*plans):
    """A pool with one plan for each base."""
    programs = SimpleNamespace(
        rounds=[SimpleNamespace(counts={"a": 2, "b": 1}, structure=SimpleNamespace(widths={"a": 4, "b": 2}))]
    )
    return SimpleNamespace(programs=programs, plans=lambda functions: [list(plans)])


def plan(a, b, fallback=(), ties=0):
    ranking = Ranking({"a": np.array(a), "b": np.array(b)}, fallback, ties)
    return FirstRoundPlan((("a", (0, 1)), ("b", (0,))), ranking)


def test_soundness_counts_what_the_function_does_not_decide():
    sound = soundness(pool_of(plan([4.0, 3, 0, 0], [1.0, 0], ties=1)), library["l1"])
    assert (sound.bases, sound.groups, sound.channels, sound.ties, sound.ties_at_cut) == (1, 2, 6, 1, 0)
    assert sound.is_clean
    tied = soundness(pool_of(plan([4.0, 0, 0, 0], [1.0, 0], ties=2)), library["l1"])
    assert tied.ties_at_cut == 1 and not tied.is_clean
    fallback = soundness(pool_of(plan([4.0, 3, 2, 1], [1.0, 1], fallback=("b",))), library["l1"])
    assert (fallback.fallbacks, fallback.ties_at_cut) == (1, 0) and not fallback.is_clean
    invalid = soundness(pool_of(Invalid("0/0"), plan([4.0, 3, 2, 1], [1.0, 0])), library["l1"])
    assert (invalid.bases, invalid.invalid, invalid.groups, invalid.reason) == (2, 1, 2, "0/0")
    assert not invalid.is_clean


def test_the_random_search_has_as_many_generations_as_the_search_on_the_same_problem(tmp_path):
    problem, state = fitted_problem(), searched_on_landscapes().state
    best, numbers = random_search(tmp_path, problem, state, [])
    assert numbers["generations"] == state.generation - 1 and numbers["formula"] == best.candidate.text
    assert best.is_verified and numbers["evaluations"] == len(problem.ran)
    assert (tmp_path / "random-search" / "journal.jsonl").exists()
    again = random_search(tmp_path, problem, state, [])
    assert again == (best, numbers) and numbers["evaluations"] == len(problem.ran)
