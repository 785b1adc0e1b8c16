"""Pooling tasks, by hand and by its invariances."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.comparison.measurements import Measurement, Refused
from jaxprune.comparison.pooled import standing, standing_table
from jaxprune.comparison.results import Comparison

KNOWN = ("l1", "l2", "fdr")


def compared(tables, refused=()):
    """A comparison of task -> row -> validation accuracies by base; test accuracies are one point lower."""
    return Comparison(
        tuple(
            Measurement(task, name, "metric", name, base, 0, 0, accuracy, accuracy - 1, (accuracy,), 0.1, "d")
            for task, rows in tables.items()
            for name, accuracies in rows.items()
            for base, accuracy in enumerate(accuracies)
        ),
        refused=tuple(Refused(task, name, name, "base 0: not finite") for task, name in refused),
    )


TABLES = {
    # means of l1, l2, fdr: 78, 80, 82, hence sd 2; new - l2: +4, +2, +6
    "a": {
        "l1": (78.0, 78.0, 78.0),
        "l2": (90.0, 80.0, 70.0),
        "fdr": (82.0, 83.0, 81.0),
        "new": (94.0, 82.0, 76.0),
    },
    # means 52, 56, 60, hence sd 4; new - l2: -3, -1
    "b": {"l1": (50.0, 54.0), "l2": (56.0, 56.0), "fdr": (61.0, 59.0), "new": (53.0, 55.0)},
}
TWO = compared(TABLES)


def against_l2(comparison, **options):
    return standing(comparison, "new", against="l2", known=KNOWN, **options)


def test_each_task_has_the_paired_difference_and_the_sd_of_known_rows():
    a, b = against_l2(TWO).tasks
    assert (a.task, a.difference, a.sd) == ("a", (4.0, pytest.approx(2 / math.sqrt(3)), 3), 2.0)
    assert (b.task, b.difference, b.sd) == ("b", (-2.0, 1.0, 2), 4.0)
    assert b.standardised == (-0.5, 0.25, 2)


def test_the_pooled_mean_weighs_tasks_alike_and_adds_their_squared_errors():
    pooled = against_l2(TWO)
    assert pooled.mean == (2.0 - 0.5) / 2
    assert pooled.se == pytest.approx(math.sqrt((1 / 3) + 0.25**2) / 2)


def test_the_p_value_of_one_task_is_that_of_students_t():
    # Three bases, differences 4, 2, 6: t = 4 / (2 / sqrt 3) = 3.4641 with 2 degrees of freedom, where the two-sided
    # probability is 1 - t / sqrt(t^2 + 2).
    t = 2 * math.sqrt(3)
    assert against_l2(TWO, tasks=["a"]).p_value == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_two_tasks_of_equal_errors_add_their_degrees_of_freedom():
    # Two bases a task with differences 1 and 3: mean 2, se 1, one degree of freedom each, so t = 2 sqrt 2 with 2.
    rows = {"l1": (70.0, 70.0), "l2": (70.0, 74.0), "fdr": (74.0, 74.0), "new": (71.0, 77.0)}
    pooled = against_l2(compared({"a": rows, "b": rows}))
    t = 2 * math.sqrt(2)
    assert pooled.mean / pooled.se == pytest.approx(t)
    assert pooled.p_value == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_test_accuracies_are_used_when_asked_for():
    changed = dataclasses.replace(
        TWO,
        measurements=tuple(
            dataclasses.replace(one, test=0.0 if one.name == "l2" else one.test) for one in TWO.measurements
        ),
    )
    assert against_l2(changed, tasks=["b"]).tasks[0].difference.mean == -2.0
    assert against_l2(changed, tasks=["b"], measure="test").tasks[0].difference.mean == 53.0


def test_a_row_that_is_invalid_on_a_task_has_no_pooled_standing():
    tables = {"a": TABLES["a"], "b": {name: TABLES["b"][name] for name in KNOWN}}
    pooled = against_l2(compared(tables, [("b", "new")]))
    assert pooled.tasks[0].difference.mean == 4.0
    assert pooled.tasks[1].difference is None
    assert [one.name for one in pooled.tasks[1].invalid] == ["new"]
    assert (pooled.mean, pooled.se, pooled.p_value) == (None, None, None)


def test_an_invalid_known_row_is_told_and_left_out_of_the_sd():
    tables = {"b": {name: TABLES["b"][name] for name in ("l1", "l2", "new")}}
    pooled = against_l2(compared(tables, [("b", "fdr")]))
    assert pooled.tasks[0].sd == pytest.approx(math.sqrt(8))
    table = standing_table(compared(tables, [("b", "fdr")]), ["new"], against=["l2"], known=KNOWN)
    assert table.to_markdown().endswith("\n\n- fdr: invalid on b, base 0: not finite")


def test_a_single_base_gives_a_mean_without_error():
    pooled = against_l2(compared({"t": {"l1": (70.0,), "l2": (72.0,), "fdr": (74.0,), "new": (73.0,)}}))
    assert (pooled.mean, pooled.se, pooled.p_value) == (0.5, None, None)


def test_equal_differences_have_a_p_value_only_for_a_tie():
    rows = {"l1": (70.0, 70.0), "l2": (72.0, 75.0), "fdr": (74.0, 74.0), "new": (73.0, 76.0)}
    comparison = compared({"t": rows})
    assert against_l2(comparison).p_value is None
    assert standing(comparison, "new", against="new", known=KNOWN).p_value == 1.0


def test_the_table_has_a_line_for_each_pair_of_different_rows():
    table = standing_table(TWO, ["new", "fdr"], against=["l2", "fdr"], known=KNOWN)
    assert [(one.row, one.against) for one in table.standings] == [
        ("new", "l2"),
        ("new", "fdr"),
        ("fdr", "l2"),
    ]
    lines = table.to_markdown().splitlines()
    assert (
        lines[0]
        == "| function - reference | a, sd 2.00, points ± SE | b, sd 4.00, points ± SE | all tasks, sd ± SE | p |"
    )
    assert lines[2].startswith("| new - l2 | +4.00 ± 1.15 (n = 3) | -2.00 ± 1.00 (n = 2) | +0.75 ± 0.31 | 0.")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        (TABLES, {"tasks": []}, "needs a task, got none"),
        (TABLES, {"tasks": ["c"]}, "needs a row measured on task 'c', got 'new'"),
        ({"t": {"l1": (1.0,), "l2": (2.0,), "new": (3.0,)}}, {}, "got 'fdr', neither among"),
        (
            {"t": {"l1": (1.0,), "l2": (2.0, 3.0), "fdr": (1.0, 2.0), "new": (3.0, 1.0)}},
            {},
            r"on the same bases, got new on \[0, 1\], l2 on \[0, 1\], l1 on \[0\]",
        ),
        (
            {"t": {"l1": (1.0,), "l2": (1.0,), "fdr": (1.0,), "new": (3.0,)}},
            {},
            "two or more known rows with different mean accuracies on task 't', got 3 measured",
        ),
    ],
)
def test_what_cannot_be_pooled_is_refused(tables, options, message):
    with pytest.raises(ValueError, match=message):
        against_l2(compared(tables), **options)


def test_closed_test_images_are_refused():
    closed = dataclasses.replace(
        TWO, measurements=tuple(dataclasses.replace(one, test=None) for one in TWO.measurements)
    )
    with pytest.raises(ValueError, match="needs test accuracies on task 'a', got none for new, l2, l1, fdr"):
        against_l2(closed, measure="test")


accuracies = st.integers(0, 400).map(lambda number: number / 4)
"""Multiples of a quarter, so that sums are exact."""


@st.composite
def tables(draw):
    """Task -> row -> accuracies on a few bases, with known rows that differ."""
    drawn = {}
    for task in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        bases = draw(st.integers(2, 4))
        drawn[task] = {
            name: tuple(draw(st.lists(accuracies, min_size=bases, max_size=bases)))
            for name in (*KNOWN, "new")
        }
        drawn[task]["l1"] = tuple(value + 101 for value in drawn[task]["l2"])
    return drawn


def shifted(drawn, points):
    return {
        task: {name: tuple(value + points for value in values) for name, values in rows.items()}
        for task, rows in drawn.items()
    }


def numbers(pooled):
    return [pooled.mean, pooled.se, *(one.sd for one in pooled.tasks)]


@given(tables(), st.integers(-50, 50))
def test_a_shift_of_all_rows_changes_nothing(drawn, points):
    before, after = (against_l2(compared(one)) for one in (drawn, shifted(drawn, points)))
    assert numbers(after) == pytest.approx(numbers(before), abs=1e-9)


@given(tables(), st.integers(2, 3))
def test_more_equal_bases_leave_means_and_shrink_errors(drawn, times):
    repeated = {task: {name: values * times for name, values in rows.items()} for task, rows in drawn.items()}
    before, after = (against_l2(compared(one)) for one in (drawn, repeated))
    assert after.mean == pytest.approx(before.mean, abs=1e-9)
    assert [one.sd for one in after.tasks] == pytest.approx([one.sd for one in before.tasks])
    assert after.se <= before.se + 1e-9


@given(tables())
def test_swapping_the_rows_flips_the_sign(drawn):
    comparison = compared(drawn)
    forth = standing(comparison, "new", against="l2", known=KNOWN)
    back = standing(comparison, "l2", against="new", known=KNOWN)
    assert (back.mean, back.se, back.p_value) == (-forth.mean, forth.se, forth.p_value)
