"""Tasks whose groups are scored one after another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flax import nnx
from tiny_task import tiny_programs, tiny_task

from jaxprune.config import _changed
from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.pruning.sequential import rank_sequentially
from jaxprune.search.bank import measure_bank
from jaxprune.tasks.base_networks import Base, BasePool, Entry
from jaxprune.tasks.round_plans import FirstRoundPlan, StackedPlan
from jaxprune.tasks.task_identity import fingerprint_of, identity_of
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule
from jaxprune.training.loop import split_network
from jaxprune.types import Invalid

SCHEDULE = Schedule(kept_fraction=0.5, rounds=2, scoring="sequential")
SPREAD = parse("std(X)")


@pytest.fixture(scope="module")
def pool() -> BasePool:
    """Two base networks that nobody has trained."""
    task = tiny_task("sequential", schedule=SCHEDULE, bases=2, extra_bases=0)
    pool = BasePool(TaskPrograms(task), 0, "search", 2)
    models = [task.model(nnx.Rngs(seed)) for seed in range(2)]
    pool.__dict__["bases"] = tuple(Base(i, split_network(model)[1], 50.0) for i, model in enumerate(models))
    return pool


def test_plans_are_those_of_one_group_after_another(pool: BasePool) -> None:
    (plans,) = pool.plans([SPREAD])
    first = pool.programs.rounds[0]
    for base, plan in zip(pool.bases, plans, strict=True):
        expected = rank_sequentially(
            SPREAD, first.structure, pool.programs.observer(0), base.weights, first.counts
        )
        assert isinstance(plan, FirstRoundPlan) and not isinstance(expected, Invalid)
        assert plan.kept == expected.kept
        assert {name: len(channels) for name, channels in plan.kept} == first.counts


def test_stacked_plans_hold_the_same_channels(pool: BasePool) -> None:
    (plans,), (stacked, invalid) = pool.plans([SPREAD]), pool.stacked_plans([SPREAD, parse("1/(NX - NX)")])
    assert isinstance(stacked, StackedPlan)
    widths = pool.programs.structure.widths
    for row, plan in zip(stacked.is_kept, plans, strict=True):
        assert isinstance(plan, FirstRoundPlan)
        starts = dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
        assert set(np.flatnonzero(row)) == {starts[n] + c for n, channels in plan.kept for c in channels}
    assert isinstance(invalid, Invalid) and invalid.reason.startswith(
        "base 0: not finite in group conv1.kernel"
    )


def test_later_rounds_are_scored_one_after_another_too(pool: BasePool) -> None:
    (plans,) = pool.plans([SPREAD])
    assert isinstance(plans[0], FirstRoundPlan)
    entry = Entry(0, function=SPREAD)
    assert pool._kept(entry, 0, pool.bases[0].weights) == plans[0].kept
    weights = pool.programs.prune(0, pool.bases[0].weights, plans[0].kept)
    second = pool.programs.rounds[1]
    expected = rank_sequentially(SPREAD, second.structure, pool.programs.observer(1), weights, second.counts)
    assert not isinstance(expected, Invalid)
    assert pool._kept(entry, 1, weights) == expected.kept
    broken = Entry(0, function=parse("1/(NX - NX)"))
    l2 = rank_sequentially(library["l2"], second.structure, pool.programs.observer(1), weights, second.counts)
    assert not isinstance(l2, Invalid)
    assert pool._kept(broken, 1, weights) == l2.kept


def test_fingerprints_know_sequential_scoring_and_not_joint() -> None:
    programs = tiny_programs()
    assert "scoring" not in programs.identity["settings"]["schedule"]  # type: ignore[operator]
    schedule = dataclasses.replace(programs.task.schedule, scoring="sequential")
    other = identity_of(programs.task.replace(schedule=schedule), programs.model, programs.structure)
    assert other["settings"]["schedule"]["scoring"] == "sequential"  # type: ignore[index]
    assert fingerprint_of(other) != programs.fingerprint


def test_landscapes_refuse_sequential_scoring(pool: BasePool) -> None:
    with pytest.raises(ValueError, match=r'scoring "joint", got "sequential" of task .*finetune'):
        measure_bank(pool, 10)


def test_unknown_scoring_is_refused() -> None:
    with pytest.raises(ValueError, match='scoring must be "joint" or "sequential", got \'layerwise\''):
        Schedule(kept_fraction=0.5, scoring="layerwise")  # type: ignore[arg-type]


def test_options_that_change_the_schedule_keep_its_scoring() -> None:
    changed = _changed(tiny_task(schedule=SCHEDULE), {"kept_fraction": 0.25})
    assert changed.schedule == Schedule(kept_fraction=0.25, rounds=2, scoring="sequential")
