"""Ranks and regrets among known functions, by hand and by their invariances."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pooled import KNOWN, TWO, compared, shifted, tables

from jaxprune.comparison.regret import RankRow, ranks


def only(table):
    (row,) = table.rows
    return row


def test_a_new_row_is_ranked_among_the_known_ones_and_itself():
    # a: l1 78, l2 80, fdr 82, new 84, sd 2; b: l1 52, l2 56, fdr 60, new 54, sd 4
    row = only(ranks(TWO, ["new"], KNOWN))
    assert (row.ranks, row.mean_rank) == ((1.0, 3.0), 2.0)
    assert (row.regrets, row.mean_regret, row.worst_regret) == ((1.0, -1.5), -0.25, -1.5)


def test_a_known_row_is_compared_with_the_best_of_the_others():
    row = only(ranks(TWO, ["fdr"], KNOWN))
    assert (row.ranks, row.regrets) == ((1.0, 1.0), (1.0, 1.0))


def test_other_new_rows_do_not_change_a_rank():
    together = {row.name: row for row in ranks(TWO, ["l2", "new", "fdr"], KNOWN).rows}
    assert together == {name: only(ranks(TWO, [name], KNOWN)) for name in ("l2", "new", "fdr")}


def test_the_lowest_mean_rank_comes_first():
    assert [row.name for row in ranks(TWO, ["l1", "l2", "new", "fdr"], KNOWN).rows] == [
        "fdr",
        "new",
        "l2",
        "l1",
    ]


def test_equal_rows_share_their_mean_rank():
    comparison = compared({"t": {"l1": (80.0,), "l2": (70.0,), "fdr": (80.0,), "new": (80.0,)}})
    assert only(ranks(comparison, ["new"], KNOWN)).ranks == (2.0,)


def test_an_invalid_row_is_ranked_last_and_has_no_regret():
    rows = {"l1": (80.0,), "l2": (70.0,), "fdr": (75.0,), "new": (76.0,)}
    comparison = compared({"a": rows, "b": {name: rows[name] for name in KNOWN}}, [("b", "new")])
    table = ranks(comparison, ["new"], KNOWN)
    row = only(table)
    assert (row.ranks, row.regrets) == ((2.0, 4.0), (-0.8, None))
    assert (row.mean_rank, row.mean_regret, row.worst_regret) == (3.0, None, None)
    assert table.to_markdown().splitlines()[2:] == [
        "| new | 2 | 4 (invalid) | 3.0 | invalid | invalid |",
        "",
        "- new: invalid on b, base 0: not finite",
    ]


def test_invalid_rows_share_the_last_ranks_and_valid_ones_are_above_them():
    comparison = compared({"t": {"l1": (80.0,), "l2": (70.0,), "bad": (0.0,)}}, [("t", "fdr"), ("t", "new")])
    by_name = {row.name: row for row in ranks(comparison, ["new", "bad"], KNOWN).rows}
    assert by_name["new"].ranks == (3.5,)
    assert by_name["bad"].ranks == (3.0,)


def test_invalid_rows_come_last_at_equal_mean_ranks():
    comparison = compared({"t": {"l1": (80.0,), "l2": (70.0,), "last": (60.0,)}}, [("t", "new")])
    table = ranks(comparison, ["new", "last"], ("l1", "l2"))
    assert [(row.name, row.mean_rank) for row in table.rows] == [("last", 3.0), ("new", 3.0)]


def test_test_accuracies_are_used_when_asked_for():
    measurements = tuple(
        dataclasses.replace(one, test=0.0 if one.name == "new" else one.test) for one in TWO.measurements
    )
    comparison = dataclasses.replace(TWO, measurements=measurements)
    assert only(ranks(comparison, ["new"], KNOWN)).ranks == (1.0, 3.0)
    assert only(ranks(comparison, ["new"], KNOWN, measure="test")).ranks == (4.0, 4.0)


def test_only_the_named_tasks_count():
    assert only(ranks(TWO, ["new"], KNOWN, tasks=["b"])) == RankRow("new", (3.0,), (-1.5,))


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="needs a task, got none"):
        ranks(TWO, ["new"], KNOWN, tasks=[])


@given(tables(), st.integers(-50, 50))
def test_a_shift_of_all_rows_changes_no_rank(drawn, points):
    before, after = (ranks(compared(one), ["new", "l2"], KNOWN) for one in (drawn, shifted(drawn, points)))
    assert {row.name: row.ranks for row in after.rows} == {row.name: row.ranks for row in before.rows}


@given(tables())
def test_the_best_row_has_no_negative_regret_and_others_have_one(drawn):
    for row in ranks(compared(drawn), KNOWN, KNOWN).rows:
        for rank, regret in zip(row.ranks, row.regrets, strict=True):
            assert (regret >= 0) == (rank < 2)
