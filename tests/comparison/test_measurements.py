"""A comparison's numbers by hand: three bases, two repeats, a reader can check all of them."""

from __future__ import annotations

import builtins
import csv
import io
import json
import math

import pytest

from jaxprune.comparison.measurements import Measurement, Refused, TaskFacts, standard_error
from jaxprune.comparison.results import Comparison


def measured(name, base, validation, *, kind="metric", draw=0, repeat=0, test=None, seconds=0.5, task="t"):
    formula = name if kind == "metric" else ""
    curve = (validation / 2, validation)
    return Measurement(task, name, kind, formula, base, draw, repeat, validation, test, curve, seconds, "d")


FACTS = TaskFacts("t", "final", {"conv": 4}, {"conv": 2}, (90.0, 91.0, 92.0), "abc")
TABLE = Comparison(
    (
        *(measured("l2", base, value, test=value - 1) for base, value in enumerate([80.0, 70.0, 60.0])),
        *(measured("l1", base, value, test=value - 2) for base, value in enumerate([83.0, 70.0, 57.0])),
        *(measured("f", base, value, test=value) for base, value in enumerate([84.0, 72.0, 66.0])),
        *(
            measured("random", base, 50.0 + draw, kind="random", draw=draw, test=40.0)
            for base in range(3)
            for draw in range(3)
        ),
    ),
    (FACTS,),
    (Refused("t", "broken", "mean(P)/0", "base 0: not finite"),),
    {"l2": 4, "l1": 3, "f": 2},
    seed=7,
)


def row(name, comparison=TABLE):
    return next(one for one in comparison.summary() if one.name == name)


def test_differences_are_paired_by_base():
    assert TABLE.differences("f", "l2", "t") == {0: 4.0, 1: 2.0, 2: 6.0}
    assert TABLE.paired("f", "l2", "t") == (4.0, pytest.approx(2 / math.sqrt(3)), 3)
    assert TABLE.paired("l2", "f", "t").mean == -4.0


def test_the_error_of_a_difference_is_not_that_of_the_accuracies():
    summary = row("f")
    assert (summary.n, summary.mean, summary.difference) == (3, 74.0, 4.0)
    assert summary.se == pytest.approx(math.sqrt(84) / math.sqrt(3))
    assert summary.difference_se == pytest.approx(2 / math.sqrt(3))


def test_wins_ties_and_losses_count_bases():
    assert (row("l1").wins, row("l1").ties, row("l1").losses) == (1, 1, 1)
    assert (row("f").wins, row("f").ties, row("f").losses) == (3, 0, 0)
    assert (row("l2").wins, row("l2").ties, row("l2").losses) == (0, 3, 0)


def test_draws_are_averaged_inside_a_base():
    summary = row("random")
    assert (summary.n, summary.mean, summary.se) == (3, 51.0, 0.0)
    assert (summary.difference, summary.kind, summary.complexity) == (-19.0, "random", None)


def test_repeats_are_paired_and_averaged_inside_a_base():
    comparison = Comparison(
        (
            measured("l2", 0, 80.0, repeat=0),
            measured("l2", 0, 60.0, repeat=1),
            measured("f", 0, 82.0, repeat=0),
            measured("f", 0, 66.0, repeat=1),
        )
    )
    assert comparison.paired("f", "l2", "t") == (4.0, None, 1)
    only_second = Comparison(
        (comparison.measurements[0], comparison.measurements[1], comparison.measurements[3])
    )
    assert only_second.paired("f", "l2", "t") == (6.0, None, 1)


def test_test_accuracies_have_a_column_of_their_own():
    summary = row("f")
    assert (summary.test, summary.test_difference) == (74.0, 5.0)
    assert TABLE.paired("f", "l1", "t", on="test").mean == 6.0


def test_the_summary_is_sorted_with_invalid_functions_last():
    assert [row.name for row in TABLE.summary()] == ["f", "l2", "l1", "random", "broken"]
    broken = row("broken")
    assert (broken.n, broken.mean, broken.reason) == (0, None, "base 0: not finite")


def test_ranks_share_ties():
    assert TABLE.ranks("t") == {
        "l2": (3.0, 2.5, 2.0),
        "l1": (2.0, 2.5, 3.0),
        "f": (1.0, 1.0, 1.0),
        "random": (4.0, 4.0, 4.0),
    }
    equal = Comparison(tuple(measured(name, 0, 80.0) for name in ("l2", "l1", "f")))
    assert equal.ranks("t") == {"l2": (2.0,), "l1": (2.0,), "f": (2.0,)}


def test_one_value_has_no_standard_error():
    assert standard_error([1.0]) is None
    assert standard_error([]) is None


def test_names_and_facts():
    assert TABLE.task_names == ("t",)
    assert TABLE.names("t") == ("l2", "l1", "f", "random")
    assert TABLE.base_accuracies == {"t": (90.0, 91.0, 92.0)}


def test_json_round_trip():
    assert Comparison.from_json(TABLE.to_json()) == TABLE


def test_other_json_is_refused():
    with pytest.raises(ValueError, match=r"needs a comparison as Comparison.to_json writes it"):
        Comparison.from_json('{"format": 1}')
    with pytest.raises(ValueError, match=r"needs a comparison as Comparison.to_json writes it"):
        Comparison.from_json("not JSON")
    newer = json.dumps(json.loads(TABLE.to_json()) | {"format": 99})
    with pytest.raises(ValueError, match=r"format 1 or older, got 99. Use a newer jaxprune"):
        Comparison.from_json(newer)


def test_csv_has_one_line_per_measurement():
    lines = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert len(lines) == len(TABLE.measurements)
    assert lines[3]["name"] == "l1"
    assert float(lines[3]["validation"]) == 83.0
    assert lines[3]["curve"] == "41.5 83.0"
    closed = Comparison((measured("l2", 0, 80.0),)).to_csv()
    assert next(csv.DictReader(io.StringIO(closed)))["test"] == ""


def test_dataframe_has_one_row_per_measurement():
    pytest.importorskip("pandas")
    frame = TABLE.to_dataframe()
    assert len(frame) == len(TABLE.measurements)
    assert frame[frame.name == "f"].validation.mean() == 74.0


def test_a_missing_pandas_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_pandas(name, *rest):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match=r'pip install "jaxprune\[report\]"'):
        TABLE.to_dataframe()


def test_markdown_shows_means_errors_and_reasons():
    text = TABLE.to_markdown()
    assert "3 final bases with 91.0 % validation accuracy before pruning (90.0 to 92.0)" in text
    assert "conv 2 of 4" in text
    assert "| f | 74.0 ± 5.3 | 3 | +4.0 ± 1.2 | 3/0/0 | 74.0 | +5.0 ± 1.2 | 2 | 0.50 |" in text
    assert "| l2 | 70.0 ± 5.8 | 3 |  |  | 69.0 |  | 4 | 0.50 |" in text
    assert "- broken `mean(P)/0`: invalid, base 0: not finite" in text


def test_markdown_spells_out_only_formulas_that_their_names_do_not():
    rows = (("l1", "sum(abs(WI))"), ("winner", "mean(X)*2"), ("mean(X)*3", "mean(X)*3"))
    measurements = [
        Measurement("t", name, "metric", formula, 0, 0, 0, 80.0, None, (80.0,), 0.1, "")
        for name, formula in rows
    ]
    text = Comparison(tuple(measurements)).to_markdown()
    assert "| l1 |" in text and "| winner `mean(X)*2` |" in text and "| mean(X)*3 |" in text


def test_markdown_without_test_images_has_no_such_column():
    assert "test" not in Comparison((measured("l2", 0, 80.0),)).to_markdown()


def test_a_row_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"needs a row measured on task 't', got 'l9', neither among"):
        TABLE.paired("l9", "l2", "t")
    with pytest.raises(ValueError, match=r"got 'broken', one that is invalid there: base 0: not finite"):
        TABLE.by_base("broken", "t")


def test_rows_without_a_common_base_cannot_be_paired():
    apart = Comparison((measured("l2", 0, 80.0), measured("f", 1, 80.0)))
    with pytest.raises(ValueError, match=r"need a base in common on 't' with validation accuracy, got none"):
        apart.paired("f", "l2", "t")
