"""A comparison end to end on a tiny task: what is equal, what is shared, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_task import tiny_programs, tiny_task

from jaxprune.comparison.protocol import compare, layer_views
from jaxprune.comparison.results import Comparison
from jaxprune.datasets.guarded_split import AlreadyOpenedError
from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.scoring.metrics import metrics
from jaxprune.search.task_problem import _digest
from jaxprune.tasks.base_networks import BasePool
from jaxprune.tasks.tasks import Schedule


def compared(functions=("l1", "2*sum(abs(WI))", "bn_scale"), bases=2, **settings):
    programs = tiny_programs()
    return compare(functions, programs.task, bases, programs={"tiny": programs}, **settings)


@pytest.fixture(scope="module")
def rows():
    return []


@pytest.fixture(scope="module")
def comparison(bases_dir, rows, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "new"
    return compared(
        draws=2, evaluations=3, repeats=2, folder=bases_dir, test_records=run_dir, on_row=rows.append
    )


def by_place(comparison, name):
    return {
        (measurement.base, measurement.draw, measurement.repeat): measurement
        for measurement in comparison.of(name, "tiny")
    }


def test_every_row_is_measured_on_every_base_and_repeat(comparison):
    places = {(base, 0, repeat) for base in range(2) for repeat in range(2)}
    for name in ("l2", "l1", "2*sum(abs(WI))", "scratch"):
        assert set(by_place(comparison, name)) == places
    assert set(by_place(comparison, "random")) == {
        (b, d, r) for b in range(2) for d in range(2) for r in range(2)
    }
    assert [row.n for row in comparison.summary()] == [2, 2, 2, 2, 2, 0]


def test_metrics_and_functions_have_rows_beside_formulas(bases_dir):
    def by_first_weight(operands):
        return operands.filters[0]

    functions = ["l1", "fpgm", metrics["chip"], by_first_weight]
    comparison = compared(functions, draws=0, with_scratch=False, folder=bases_dir)
    assert comparison.names("tiny") == ("l2", "l1", "fpgm", "chip", "by_first_weight")
    assert comparison.complexities == {"l2": 4, "l1": 3} and not comparison.refused
    assert [measurement.formula for measurement in comparison.of("chip", "tiny")] == ["chip"] * 2
    (row,) = (line for line in comparison.to_markdown().splitlines() if line.startswith("| fpgm"))
    assert "`" not in row


def test_functions_with_one_plan_are_fine_tuned_once(comparison):
    ours, theirs = by_place(comparison, "2*sum(abs(WI))"), by_place(comparison, "l1")
    for place, measured in theirs.items():
        assert ours[place].seconds == measured.seconds
        assert (ours[place].validation, ours[place].digest) == (measured.validation, measured.digest)
    assert comparison.paired("2*sum(abs(WI))", "l1", "tiny") == (0.0, 0.0, 2)


def test_an_invalid_function_is_a_row_with_its_reason(comparison):
    assert [(measurement.name, measurement.formula) for measurement in comparison.refused] == [
        ("bn_scale", "abs(gamma)")
    ]
    assert "gamma" in comparison.refused[0].reason
    assert "- bn_scale: invalid, base 0:" in comparison.to_markdown()


def test_curves_end_with_the_accuracy(comparison):
    assert all(
        len(measurement.curve) == 3 and measurement.curve[-1] == measurement.validation
        for measurement in comparison.measurements
    )


def test_accuracies_are_percentages_of_the_images(comparison):
    assert all((measurement.validation * 100 / 100).is_integer() for measurement in comparison.measurements)
    tested = np.array([measurement.test for measurement in comparison.measurements]) * 350 / 100
    np.testing.assert_allclose(tested, np.round(tested), atol=1e-6)


def test_facts_of_the_task_are_told(comparison):
    (facts,) = comparison.tasks
    assert (facts.name, facts.pool, len(facts.base_accuracies)) == ("tiny", "final", 2)
    assert facts.widths == {"conv1.kernel": 4, "conv2.kernel": 6, "dense.kernel": 8}
    assert facts.kept == {"conv1.kernel": 2, "conv2.kernel": 3, "dense.kernel": 4}
    assert comparison.complexities["l1"] == library["l1"].complexity


def test_each_measurement_is_told(comparison, rows):
    assert sorted(map(str, rows)) == sorted(map(str, comparison.measurements))


def test_the_same_seed_gives_the_same_comparison(comparison, bases_dir):
    again = compared(draws=2, repeats=2, evaluations=3, folder=bases_dir)
    for first, second in zip(comparison.measurements, again.measurements, strict=True):
        assert (first.name, first.curve, first.digest) == (second.name, second.curve, second.digest)


def test_a_row_does_not_depend_on_which_other_rows_there_are(comparison, bases_dir):
    alone = compared(["norm_in_out", "l1"], draws=0, with_scratch=False, folder=bases_dir)
    assert alone.names("tiny") == ("l2", "norm_in_out", "l1")
    for (base, draw, repeat), measured in by_place(alone, "l1").items():
        assert measured.validation == by_place(comparison, "l1")[base, draw, repeat].validation


def test_the_search_pool_has_other_networks_than_the_final_one(comparison, bases_dir):
    search = compared([], bases=2, draws=0, with_scratch=False, pool="search", folder=bases_dir)
    assert search.tasks[0].pool == "search"
    assert search.of("l2", "tiny")[0].digest != comparison.of("l2", "tiny")[0].digest


def test_test_images_stay_closed_without_a_record(bases_dir):
    closed = compared([], bases=1, draws=0, with_scratch=False, folder=bases_dir)
    assert [measurement.test for measurement in closed.measurements] == [None]
    assert closed.summary()[0].se is None


def test_test_images_are_opened_once_a_run(tmp_path, bases_dir):
    settings = {"bases": 1, "draws": 0, "with_scratch": False, "folder": bases_dir, "test_records": tmp_path}
    first = compared([], **settings)
    record = json.loads((tmp_path / "test-tiny.json").read_text())
    assert record["num_examples"] == 350 and len(record["opened"]) == 1
    with pytest.raises(AlreadyOpenedError, match=r"needs to be opened once a run"):
        compared([], **settings)
    again = compared([], reopen_test=True, **settings)
    assert again.measurements[0].test == first.measurements[0].test


def test_a_real_comparison_survives_json(comparison):
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_bases_may_differ_between_tasks(bases_dir):
    with pytest.raises(ValueError, match=r"bases needs a number for task 'tiny', got numbers for other"):
        compared([], bases={"other": 2})
    one = compared([], bases={"tiny": 1}, draws=0, with_scratch=False, folder=bases_dir)
    assert one.summary()[0].n == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bases": 0}, r"bases >= 1 \(got 0\)"),
        ({"draws": -1, "repeats": 0}, r"draws >= 0 \(got -1\), repeats >= 1 \(got 0\)"),
        ({"evaluations": 0}, r"evaluations >= 1 \(got 0\)"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"a comparison needs {message}"):
        compared([], **settings)


def test_tasks_need_different_names():
    with pytest.raises(ValueError, match=r"tasks need different names"):
        compare([], [tiny_task(), tiny_task()])
    with pytest.raises(ValueError, match=r"at least one task is needed"):
        compare([], [])


def test_layer_views_show_kept_channels_and_sorted_scores(bases_dir):
    pool = BasePool(tiny_programs(), 0, "final", 2, folder=bases_dir)
    views = layer_views(pool, {"l1": library["l1"], "broken": parse("abs(gamma)")}, draws=2)
    assert [(view.group, view.width, view.count) for view in views] == [
        ("conv1.kernel", 4, 2),
        ("conv2.kernel", 6, 3),
        ("dense.kernel", 8, 4),
    ]
    plan = dict(pool.plans([library["l1"]])[0][0].kept)
    for view in views:
        assert view.kept.keys() == {"l1", "random 1", "random 2"}
        assert view.scores.keys() == {"l1"}
        assert view.kept["l1"] == plan[view.group]
        assert list(view.scores["l1"]) == sorted(view.scores["l1"], reverse=True)
        assert len(view.scores["l1"]) == view.width


def test_with_several_rounds_only_equal_functions_share_a_digest():
    kept = (("conv", (0, 1)),)

    def digest(text, rounds):
        return _digest(parse(text), kept, rounds)

    assert digest("mean(X)", 1) == digest("std(X)", 1)
    assert digest("mean(X)", 2) != digest("std(X)", 2)
    assert digest("mean(X) + std(X)", 2) == digest("std(X) + mean(X)", 2)


@pytest.mark.slow
def test_several_rounds_are_compared_and_shared_by_function_only():
    task = tiny_task("rounds", schedule=Schedule(kept_fraction=0.5, rounds=2))
    comparison = compare(["l1", "2*sum(abs(WI))"], task, 1, draws=1, with_scratch=True)
    assert [row.n for row in comparison.summary()] == [1] * 5
    (first,), (second,) = comparison.of("l1", "rounds"), comparison.of("2*sum(abs(WI))", "rounds")
    assert first.digest == second.digest and first.validation == second.validation
