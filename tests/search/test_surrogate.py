"""Plans as predictors of fitness."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_proposals import after
from toy_problem import SMALL, ToyProblem

from jaxprune.search.problem import pack_kept, plan_distance
from jaxprune.search.proposals import ask
from jaxprune.search.search import init_search
from jaxprune.search.surrogate import most_promising, plan_distances


def random_plans(count: int, seed: int = 0) -> list[str]:
    draws = np.random.default_rng(seed)
    return [pack_kept([draws.permutation(24) < 12]) for _ in range(count)]


def test_distances_equal_the_pairwise_ones() -> None:
    plans = random_plans(5)
    table = plan_distances(plans)
    for i, plan in enumerate(plans):
        for j, other in enumerate(plans):
            assert table[i, j] == pytest.approx(plan_distance(plan, other))


def test_the_neighbour_of_the_best_is_picked_and_that_of_the_worst_is_not() -> None:
    assert most_promising(["f0", "0f"], [1.0, -1.0], [0.1, 0.1], ["1e", "e1"], count=1) == [1]


def test_picks_are_apart_from_one_another() -> None:
    known, proposals = ["fff000", "000fff"], ["fff000", "fff000", "ff800f"]
    assert set(most_promising(known, [1.0, 0.9], [0.5, 0.5], proposals, count=2)) == {0, 2}


def test_it_predicts_an_additive_fitness() -> None:
    worth = np.random.default_rng(5).normal(size=24)
    value = {
        plan: float(worth @ np.unpackbits(np.frombuffer(bytes.fromhex(plan), np.uint8)))
        for plan in random_plans(260)
    }
    plans = list(value)
    known, proposals = plans[:120], plans[120:]
    picked = most_promising(known, [value[plan] for plan in known], [0.1] * 120, proposals, count=8)
    everyone = [value[plan] for plan in proposals]
    assert np.mean([everyone[i] for i in picked]) > np.mean(everyone) + np.std(everyone)


def test_without_plans_or_data_it_says_nothing() -> None:
    assert most_promising(["f0"], [1.0], [0.1], ["0f"], count=1) == []
    assert most_promising(["f0", ""], [1.0, 0.0], [0.1, 0.1], ["0f"], count=1) == []
    assert most_promising(["f0", "0f"], [1.0, 0.0], [0.1, 0.1], [], count=1) == []
    assert len(most_promising(["f0", "0f"], [1.0, 0.0], [0.1, 0.1], ["e1"], count=5)) == 1


def test_guidance_changes_evolution_but_never_the_control() -> None:
    state = after(init_search(ToyProblem(), SMALL), 1)

    def asked(**changes: object) -> list[str]:
        changed = dataclasses.replace(state, config=SMALL.replace(**changes))
        return [proposal.candidate.text for proposal in ask(changed)]

    assert asked(guided_fraction=1.0) != asked(guided_fraction=0.0)
    assert asked(guided_fraction=1.0, strategy="random") == asked(guided_fraction=0.0, strategy="random")
