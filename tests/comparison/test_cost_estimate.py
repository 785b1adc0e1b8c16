"""What a run costs: counts, FLOPs and hours by hand, for a network whose products can be counted on paper."""

from __future__ import annotations

import pytest
from cli_tasks import small
from tiny_task import tiny_programs

from jaxprune.comparison.cost_estimate import (
    MOST_SECONDS,
    TIMED_FROM,
    CostEstimate,
    TaskCost,
    estimate_cost,
    measured_speed,
    refusal,
)
from jaxprune.search.settings import PRESETS, EvolveConfig
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule

FINETUNE = EvolveConfig(
    fitness="finetune", generations=3, population=4, promote_fraction=0.5, elites=1, seeds="paper"
)


@pytest.fixture(scope="module")
def programs() -> TaskPrograms:
    """Dense layers 5-8-2 cut to 5-4-2; 60 images, 3 epochs in batches of 20; 2 bases, and 2 final ones."""
    return TaskPrograms(small())


def test_flops_are_those_of_forward_and_backward_products(programs: TaskPrograms) -> None:
    (task,) = estimate_cost({"small": programs}, FINETUNE).tasks
    assert task.base_flops == 6 * (5 * 8 + 8 * 2) * 60 * 3
    assert task.finetune_flops == 6 * (5 * 4 + 4 * 2) * 60 * 3


def test_fine_tunings_are_counted_by_phase(programs: TaskPrograms) -> None:
    (task,) = estimate_cost({"small": programs}, FINETUNE, num_guesses=1).tasks
    assert task.num_start == (7 + 1) * 2  # the paper's seeds and a guess, on both bases
    assert task.num_searched == 3 * (
        4 + 2 + 2
    )  # each generation: all once, half of them twice, one elite and l2
    assert task.num_final == 11 * 2  # rows on two final bases
    assert task.num_bases == 4


def test_limits_and_no_report_cost_less(programs: TaskPrograms) -> None:
    config = FINETUNE.replace(max_evaluations=20)
    (task,) = estimate_cost({"small": programs}, config, has_report=False).tasks
    assert (task.num_bases, task.num_start, task.num_searched, task.num_final) == (2, 14, 6, 0)


def test_full_controls_search_twice_and_climb(programs: TaskPrograms) -> None:
    standard, full = (
        estimate_cost({"small": programs}, FINETUNE, controls=controls).tasks[0]
        for controls in ("standard", "full")  # type: ignore[arg-type]
    )
    assert full.num_final > standard.num_final + standard.num_start + standard.num_searched + 2 * 200


def test_a_bank_costs_plans_on_every_base(programs: TaskPrograms) -> None:
    config = EvolveConfig(plans=12, leaders=5)
    searched, unseen = estimate_cost({"small": programs}, config, unseen=[tiny_programs()]).tasks
    assert searched.num_start == 12 * 2 and searched.num_searched == 0
    assert (
        searched.num_final == 2 * (5 + 3 + 1) * 2 + 21 * 2
    )  # verification, also of the random search; the rows
    assert (unseen.num_bases, unseen.num_start, unseen.num_final) == (2, 0, 21 * 2)


def test_all_rounds_of_a_schedule_count() -> None:
    once = TaskPrograms(small())
    twice = TaskPrograms(small(schedule=Schedule(kept_counts=((4,), (2,)))))
    masked = TaskPrograms(small(finetune="masked"))
    costs = [estimate_cost({"small": each}, FINETUNE).tasks[0] for each in (once, twice, masked)]
    assert costs[1].finetune_flops == costs[0].finetune_flops * 1.5
    assert costs[2].finetune_flops == costs[2].base_flops


def test_large_runs_are_timed_and_small_ones_are_not(programs: TaskPrograms) -> None:
    timed: list[str] = []

    def speed(machine: TaskPrograms) -> float:
        timed.append(machine.task.name)
        return 1e9

    assert estimate_cost({"small": programs}, FINETUNE, speed=speed).seconds is None and timed == []
    many = FINETUNE.replace(generations=2**20, population=2**12)
    estimate = estimate_cost({"small": programs}, many, speed=speed)
    assert estimate.flops > TIMED_FROM and timed == ["small"]
    assert estimate.seconds == pytest.approx(estimate.flops / 1e9)


def test_a_time_limit_holds_for_the_generations_alone() -> None:
    task = TaskCost("a", 1, 10, 1000, 5, base_flops=30.0, finetune_flops=2.0, flops_per_second=2.0)
    assert CostEstimate((task,)).seconds == 15 + 10 + 1000 + 5
    assert CostEstimate((task,), time_limit_seconds=60.0).seconds == 15 + 10 + 60 + 5
    assert CostEstimate((task,), time_limit_seconds=6000.0).seconds == 15 + 10 + 1000 + 5


def test_what_takes_more_than_a_week_is_refused_with_advice() -> None:
    task = TaskCost("a", 1, 0, 0, 0, base_flops=MOST_SECONDS, finetune_flops=1.0, flops_per_second=1.0)
    assert refusal(CostEstimate((task,))) == ""
    assert refusal(CostEstimate((task, task))).startswith(
        "a run needs at most 7 days on this machine to start unasked, got an estimate of 14 days. Rehearse it"
    )
    assert "--scale 0.05" in refusal(CostEstimate((task, task)))


def test_an_estimate_is_one_sentence() -> None:
    task = TaskCost("a", 1, 1000, 234, 0, base_flops=1e15, finetune_flops=1e15, flops_per_second=1e12)
    assert str(CostEstimate((task,))) == (
        "This run costs at most 1.2e+18 FLOP, about 14 days on this machine: "
        "1 base networks and 1,234 fine-tunings of a."
    )


def test_a_step_is_measured(programs: TaskPrograms) -> None:
    assert 0 < measured_speed(programs) < 1e15


def test_the_paper_preset_costs_what_paper_and_pencil_say() -> None:
    """40 children x 10 generations on one base of each task, six leaders again with l2, seven metrics at the start."""
    config = PRESETS["paper"].config
    machine = TaskPrograms(small(bases=1, extra_bases=3, final_bases=4))
    (task,) = estimate_cost({"small": machine}, config).tasks
    assert (task.num_bases, task.num_start, task.num_searched, task.num_final) == (8, 7, 10 * (40 + 12), 44)
