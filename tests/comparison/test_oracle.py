"""Climbing on a made-up pool, where a plan's accuracy is a sum that a reader can maximise."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxprune.comparison.oracle import Start, climb, oracle_entry
from jaxprune.language.library import library
from jaxprune.tasks.base_networks import Entry

WIDTHS = {"a": 6, "b": 4, "whole": 2}
VALUES = {"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b": [8.0, 1.0, 1.0, 7.0], "whole": [0.0, 0.0]}
START = (("a", (0, 1)), ("b", (1, 2)), ("whole", (0, 1)))
BEST = (("a", (4, 5)), ("b", (0, 3)), ("whole", (0, 1)))


class ToyPool:
    """Accuracy is the sum of the kept channels' values, minus the base's number."""

    def __init__(self, rounds=1):
        self.key = jax.random.key(0)
        first = SimpleNamespace(structure=SimpleNamespace(widths=WIDTHS))
        self.programs = SimpleNamespace(rounds=[first] * rounds)
        self.entries: list[Entry] = []

    def finetune(self, entries):
        self.entries += entries
        for entry in entries:
            value = sum(VALUES[name][i] for name, kept in entry.kept for i in kept)
            yield SimpleNamespace(accuracies=np.array([value - entry.base]))


def climbed(pool=None, evaluations=100, **settings):
    starts = {base: Start("l1", START, library["l1"]) for base in (0, 1)}
    return climb(pool or ToyPool(), starts, evaluations=evaluations, repeat=5, **settings)


def test_the_best_plan_is_found_on_every_base():
    climbs = climbed()
    assert climbs[0].kept == climbs[1].kept == BEST
    assert (climbs[0].trace[0], climbs[0].trace[-1][1], climbs[1].trace[-1][1]) == ((1, 5.0), 26.0, 25.0)
    assert climbs[0].start == "l1"


def test_the_current_plan_never_gets_worse_and_counts_are_kept():
    pool = ToyPool()
    climbs = climbed(pool)
    accuracies = [accuracy for _, accuracy in climbs[0].trace]
    assert accuracies == sorted(accuracies)
    assert {tuple(len(kept) for _, kept in entry.kept) for entry in pool.entries} == {(2, 2, 2)}


def test_no_plan_is_tried_twice_and_all_share_one_repeat():
    pool = ToyPool()
    climbed(pool)
    plans = [(entry.base, entry.kept) for entry in pool.entries]
    assert len(set(plans)) == len(plans)
    assert {entry.repeat for entry in pool.entries} == {5}


def test_the_number_of_evaluations_is_met_exactly():
    pool = ToyPool()
    climbs = climbed(pool, evaluations=12, batch=8)
    assert [climb.evaluations for climb in climbs.values()] == [12, 12]
    assert len(pool.entries) == 24
    assert [count for count, _ in climbs[0].trace] == [1, 9, 12]


def test_one_evaluation_is_the_start():
    climbs = climbed(evaluations=1)
    assert (climbs[0].kept, climbs[0].accepted, climbs[0].trace) == (START, 0, ((1, 5.0),))


def test_a_climb_ends_where_every_neighbour_is_known():
    # 2 of 6 and 2 of 4: the best plan has 8 + 4 neighbours, so far fewer than 5,000 are left to try
    climbs = climbed(evaluations=5000)
    assert climbs[0].kept == BEST
    assert climbs[0].evaluations < 100


def test_the_same_key_gives_the_same_climb():
    assert climbed() == climbed()


def test_a_base_climbs_alike_whatever_other_bases_there_are():
    alone = climb(ToyPool(), {1: Start("l1", START, library["l1"])}, evaluations=30, repeat=5)
    assert alone[1] == climbed(evaluations=30)[1]


def test_progress_is_told():
    messages: list[str] = []
    climbed(evaluations=20, on_message=messages.append)
    assert messages[-1].startswith("oracle: 20 of 20 evaluations a base, ")


def test_later_rounds_are_planned_by_the_function_of_the_start():
    start = Start("l1", START, library["l1"])
    assert oracle_entry(ToyPool(), start, 0, 1, START) == Entry(0, 1, None, START)
    assert oracle_entry(ToyPool(rounds=2), start, 0, 1, START) == Entry(0, 1, library["l1"], START)


@pytest.mark.parametrize(("evaluations", "batch"), [(0, 8), (10, 0)])
def test_settings_out_of_range_are_refused(evaluations, batch):
    with pytest.raises(ValueError, match=rf"evaluations >= 1 and batch >= 1, got {evaluations} and {batch}"):
        climbed(evaluations=evaluations, batch=batch)
