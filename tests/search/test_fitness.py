"""Fitness by hand, and what it must not depend on."""

from __future__ import annotations

import math

import pytest

from jaxprune.search.fitness import TaskScale, fitness_of, paired_differences, task_scale
from jaxprune.search.problem import TaskInfo

TASK = TaskInfo("t", bases=2, extra_bases=1)
L2 = {"t": ("l", "l", "l")}
F = {"t": ("f", "f", "f")}
SCALES = {"t": TaskScale(spread=2.0, base_sd=3.0, reference=80.0)}


def results(**by_place: float) -> dict[tuple[str, str, int, int, str], float]:
    """`f01=81` is the accuracy of f on base 0, repeat 1."""
    return {("t", "search", int(name[1]), int(name[2]), name[0]): value for name, value in by_place.items()}


def test_difference_is_paired_within_base_and_repeat() -> None:
    differences = paired_differences(results(f00=82, l00=80, f01=81, l01=81, f10=70, l10=75), TASK, F, L2)
    assert differences == {0: (1.0, 81.5, 2), 1: (-5.0, 70.0, 1)}


def test_a_result_without_its_reference_does_not_count() -> None:
    assert paired_differences(results(f00=82), TASK, F, L2) == {}


def test_n_counts_bases_not_repeats() -> None:
    two_repeats = fitness_of(results(f00=82, l00=80, f01=84, l01=80), [TASK], SCALES, F, L2)
    two_bases = fitness_of(results(f00=82, l00=80, f10=84, l10=80), [TASK], SCALES, F, L2)
    assert two_repeats is not None and two_bases is not None
    assert two_repeats.mean == two_bases.mean == 1.5
    assert (two_repeats.tasks["t"].bases, two_repeats.tasks["t"].trials) == (1, 2)
    assert two_repeats.se == pytest.approx(1.5) and two_bases.se == pytest.approx(1.5 / math.sqrt(2))
    assert two_bases.lower == two_bases.mean - two_bases.se


def test_l2_has_difference_zero_without_error() -> None:
    fitness = fitness_of(results(l00=80, l10=70), [TASK], SCALES, L2, L2)
    assert fitness is not None
    assert (fitness.mean, fitness.se) == (0.0, 0.0)


def test_no_fitness_before_every_task_has_a_result() -> None:
    other = TaskInfo("u")
    digests, reference = {**F, "u": ("f",)}, {**L2, "u": ("l",)}
    scales = {**SCALES, "u": SCALES["t"]}
    assert fitness_of(results(f00=82, l00=80), [TASK, other], scales, digests, reference) is None


def test_weights_share_the_fitness_between_tasks() -> None:
    tasks = [TaskInfo("t", weight=3.0), TaskInfo("u", weight=1.0)]
    digests, reference = {"t": ("f",), "u": ("f",)}, {"t": ("l",), "u": ("l",)}
    table = {(task, "search", 0, 0, name): value for task, name, value in (
        ("t", "f", 82.0), ("t", "l", 80.0), ("u", "f", 50.0), ("u", "l", 54.0))}  # fmt: skip
    scales = {"t": TaskScale(1.0, 1.0, 80.0), "u": TaskScale(2.0, 2.0, 54.0)}
    paired = fitness_of(table, tasks, scales, digests, reference)
    assert paired is not None
    assert paired.mean == pytest.approx(0.75 * 2.0 + 0.25 * -2.0)
    assert paired.se == pytest.approx(math.hypot(0.75, 0.25))
    arithmetic = fitness_of(table, tasks, scales, digests, reference, "arithmetic")
    assert arithmetic is not None and arithmetic.mean == pytest.approx(0.75 * 82 + 0.25 * 50)
    geometric = fitness_of(table, tasks, scales, digests, reference, "geometric")
    assert geometric is not None and geometric.mean == pytest.approx(82**0.75 * 50**0.25)
    assert geometric.se == pytest.approx(geometric.mean * math.hypot(0.75 / 82, 0.25 * 2 / 50))


def test_an_easy_base_alone_does_not_win_by_accuracy() -> None:
    table = results(f00=95, l00=96, g00=95, l10=64, g10=70)
    only_easy = fitness_of(table, [TASK], SCALES, F, L2, "arithmetic")
    both = fitness_of(table, [TASK], SCALES, {"t": ("g", "g", "g")}, L2, "arithmetic")
    assert only_easy is not None and both is not None
    assert only_easy.mean < both.mean == 82.5


def test_scale_by_hand() -> None:
    table = results(f00=82, f10=84, l00=80, l10=80, g00=79, g10=81)
    scale = task_scale(table, TASK, [L2, F, F, {"t": ("g", "g", "g")}], L2)
    assert scale.spread == pytest.approx(math.sqrt(3.0))  # of 0, 3, 0: equal plans count once
    assert scale.base_sd == pytest.approx(math.sqrt(2.0))  # of (2, 4) and (-1, 1)
    assert scale.reference == 80.0


def test_scale_falls_back_where_nothing_varies() -> None:
    alone = task_scale(results(l00=80, l10=90), TASK, [L2], L2)
    assert (alone.spread, alone.base_sd, alone.reference) == (1.0, 1.0, 85.0)
    one_base = task_scale(
        results(l00=80, f00=84), TaskInfo("t"), [{"t": ("l",)}, {"t": ("f",)}], {"t": ("l",)}
    )
    assert one_base.base_sd == one_base.spread == pytest.approx(math.sqrt(8.0))
