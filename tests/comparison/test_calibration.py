"""Calibration: what follows from made-up measurements, by hand, and one run end to end on a tiny task."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tiny_task import tiny_programs, tiny_task

from jaxprune.comparison.calibration import Calibration, calibrate, task_rank_correlations
from jaxprune.comparison.landscape_quality import HalvesAgreement, LandscapeQuality
from jaxprune.comparison.measurements import Measurement, Refused, TaskFacts
from jaxprune.comparison.oracle import Climb
from jaxprune.comparison.results import Comparison


def calibration(table, *, task="t", bases=2, repeats=1, search_bases=4, digests=None, climbs=()):
    """A calibration of name -> accuracies on the bases, repeats in turn."""
    kinds = {"random": "random", "scratch": "scratch", "oracle": "oracle"}
    measurements = [
        Measurement(
            task,
            name,
            kinds.get(name, "metric"),
            name,
            number // repeats,
            0,
            number % repeats,
            value,
            None,
            (value,),
            0.25,
            (digests or {}).get(name, name),
        )
        for name, values in table.items()
        for number, value in enumerate(values)
    ]
    facts = TaskFacts(task, "search", {"conv": 4}, {"conv": 2}, (90.0,) * bases)
    refused = (Refused(task, "bn_scale", "abs(gamma)", "base 0: no gamma"),)
    return Calibration(Comparison(tuple(measurements), (facts,), refused), climbs, search_bases)


LANDSCAPE = LandscapeQuality(50, 8, 20, 0.68, HalvesAgreement(0.86, 0.78, 0.9, 3.0))

TABLE = {
    "l2": (80.0, 70.0),
    "f": (84.0, 74.0),
    "g": (76.0, 66.0),
    "random": (60.0, 60.0),
    "scratch": (50.0, 50.0),
    "oracle": (90.0, 80.0),
}


def test_share_of_the_gap_by_hand():
    calibrated = calibration(TABLE)
    # random 60, oracle 85: the gap is 25; l2 75, f 79, g 71
    assert calibrated.shares == pytest.approx({"l2": 0.6, "f": 0.76, "g": 0.44})
    assert (calibrated.best_function, calibrated.headroom) == ("f", 6.0)


def test_components_are_those_of_the_functions_alone():
    calibrated = calibration(TABLE)
    assert calibrated.components.function_sd == pytest.approx(4.0)
    assert (calibrated.components.interaction_sd, calibrated.reliability, calibrated.search_reliability) == (
        0.0,
        1.0,
        1.0,
    )
    assert calibrated.base_rank_correlation == pytest.approx(1.0)
    assert calibrated.warnings == ()


def test_functions_with_equal_plans_count_once():
    calibrated = calibration(
        {"l2": (80.0, 70.0), "twice": (80.0, 70.0), "f": (84.0, 74.0)}, digests={"twice": "l2"}
    )
    assert calibrated.functions == ("l2", "f")


def test_a_search_on_luck_is_warned_of():
    calibrated = calibration({"l2": (80.0, 70.0), "f": (70.0, 80.0), "g": (76.0, 75.0)})
    assert calibrated.search_reliability == 0.0
    assert calibrated.base_rank_correlation == pytest.approx(-1.0)
    assert (
        "reliability is 0.00 on 4 search bases, below 0.5: a search would mostly select luck"
        in calibrated.warnings[0]
    )


def test_a_task_on_which_scratch_does_as_well_is_warned_of():
    calibrated = calibration({**TABLE, "scratch": (80.0, 70.0)})
    (warning,) = calibrated.warnings
    assert "training from scratch (75.0 %) is as good as the median function (75.0 %)" in warning


def test_a_task_without_a_gap_is_warned_of():
    calibrated = calibration({**TABLE, "oracle": (60.0, 60.0)})
    assert calibrated.shares == {}
    assert "nothing to find" in calibrated.warnings[0]


def test_one_base_has_no_components():
    calibrated = calibration({"l2": (80.0,), "f": (84.0,)}, bases=1)
    assert (calibrated.components, calibrated.reliability, calibrated.search_reliability) == (
        None,
        None,
        None,
    )
    assert calibrated.base_rank_correlation is None
    assert "SD between functions" not in calibrated.to_markdown()


def test_repeats_are_told_from_bases():
    calibrated = calibration({"l2": (80.0, 82.0, 70.0, 72.0), "f": (85.0, 83.0, 73.0, 75.0)}, repeats=2)
    assert calibrated.repeats == 2
    # seed deviations: -1 1 / 1 -1 on base 0 around shared orders, none on base 1: mean square 4 / 2
    assert calibrated.components.seed_sd == pytest.approx(2**0.5)


def test_tasks_are_correlated_by_ranks():
    first = calibration(TABLE, task="a")
    second = calibration({"l2": (70.0, 70.0), "f": (60.0, 60.0), "h": (99.0, 99.0)}, task="b")
    third = calibration({"l2": (70.0, 70.0)}, task="c")
    assert task_rank_correlations([first, second, third]) == {("a", "b"): -1.0}


def test_markdown_shows_the_table_the_components_and_the_climbs():
    climbs = (Climb(0, "f", 40, 3, ((1, 84.0), (40, 91.0)), (("conv", (0, 1)),)),)
    text = calibration(TABLE, climbs=climbs).to_markdown()
    assert "| f | 79.0 ± 5.0 | 84.0 | 74.0 | +4.0 ± 0.0 | 76 % |" in text
    assert "| SD between functions | 4.0 points |" in text
    assert "| headroom: oracle minus best function (f) | +6.0 points |" in text
    assert "- bn_scale: invalid, base 0: no gamma" in text
    assert "base 0: from f, 84.0 to 91.0 % in 40 evaluations" in text


def test_json_round_trip():
    climbs = (Climb(0, "f", 40, 3, ((1, 84.0), (40, 91.0)), (("conv", (0, 1)),)),)
    calibrated = calibration(TABLE, climbs=climbs)
    assert Calibration.from_json(calibrated.to_json()) == calibrated


def test_a_landscape_joins_the_table_the_warnings_and_the_json():
    calibrated = dataclasses.replace(calibration(TABLE), landscape=LANDSCAPE)
    assert Calibration.from_json(calibrated.to_json()) == calibrated
    assert "| optimism of the landscape about its best quarter | +0.9 points, +0.30 SD of functions |" in (
        calibrated.to_markdown()
    )
    assert calibrated.warnings == ()
    blind = dataclasses.replace(
        calibrated, landscape=dataclasses.replace(LANDSCAPE, held_out_correlation=0.1)
    )
    assert blind.warnings == blind.landscape.warnings != ()


def test_a_landscape_without_halves_survives_json():
    without = dataclasses.replace(LANDSCAPE, bases=3, halves=None)
    calibrated = dataclasses.replace(calibration(TABLE), landscape=without)
    assert Calibration.from_json(calibrated.to_json()) == calibrated


def test_json_of_earlier_versions_is_read():
    plain = json.loads(calibration(TABLE).to_json())
    del plain["landscape"]
    assert Calibration.from_json(json.dumps(plain)) == calibration(TABLE)


def test_other_json_is_refused():
    with pytest.raises(ValueError, match=r"needs a calibration as Calibration.to_json writes it"):
        Calibration.from_json("{}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bases": 0}, r"bases >= 1 \(got 0\)"),
        ({"repeats": 0, "draws": -1}, r"repeats >= 1 \(got 0\), draws >= 0 \(got -1\)"),
        ({"oracle_evaluations": -1}, r"oracle_evaluations >= 0 \(got -1\)"),
        ({"plans": 9}, "plans >= 10 to fit a landscape, or 0 to leave it out, got 9"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"calibrate needs {message}"):
        calibrate(tiny_programs().task, **settings)


@pytest.fixture(scope="module")
def real(bases_dir):
    messages: list[str] = []
    settings = {
        "bases": 2,
        "draws": 1,
        "plans": 10,
        "functions": ["l1", "bn_scale"],
        "programs": tiny_programs(),
        "folder": bases_dir,
    }
    calibrated = calibrate(tiny_task(bases=4), oracle_evaluations=17, on_message=messages.append, **settings)
    return calibrated, messages, settings


def test_a_real_calibration_has_all_rows(real):
    calibrated, _, _ = real
    assert set(calibrated.means) == {"l2", "l1", "random", "scratch", "oracle"}
    assert (calibrated.bases, calibrated.repeats, calibrated.search_bases) == (2, 2, 4)
    assert calibrated.comparison.tasks[0].pool == "search"
    assert len(calibrated.comparison.of("oracle", "tiny")) == 4


def test_the_oracle_climbs_from_the_best_plan_of_each_base(real):
    calibrated, messages, _ = real
    assert [climb.base for climb in calibrated.climbs] == [0, 1]
    for climb in calibrated.climbs:
        by_function = {name: calibrated.comparison.by_base(name, "tiny")[climb.base] for name in ("l1", "l2")}
        assert by_function[climb.start] == max(by_function.values())
        assert climb.evaluations <= 17 and climb.trace[-1][1] >= climb.trace[0][1]
    assert any(message.startswith("oracle: 17 of 17") for message in messages)


def test_a_real_calibration_survives_json_and_prints(real):
    calibrated, _, _ = real
    assert Calibration.from_json(calibrated.to_json()) == calibrated
    assert "Calibration of tiny" in calibrated.to_markdown()


def test_a_real_calibration_tells_how_the_landscape_predicts(real, bases_dir):
    calibrated, messages, _ = real
    quality = calibrated.landscape
    assert (quality.plans, quality.bases, quality.functions, quality.halves) == (10, 2, 2, None)
    assert -1 <= quality.held_out_correlation <= 1
    assert "landscape: 20 of 20 plans" in messages
    (bank,) = bases_dir.glob("tiny-*/bank-search.jsonl")
    numbers = {(line["base"], line["number"]) for line in map(json.loads, bank.read_text().splitlines())}
    assert numbers >= {(base, number) for base in range(2) for number in range(10)}


def test_without_plans_there_is_no_landscape(real):
    calibrated, _, settings = real
    without = calibrate(tiny_task(bases=4), oracle_evaluations=0, **{**settings, "plans": 0})
    assert without.landscape is None and "landscape" not in without.to_markdown()
    assert without.components == calibrated.components


def test_without_an_oracle_the_other_rows_are_the_same(real):
    calibrated, _, settings = real
    without = calibrate(tiny_task(bases=4), oracle_evaluations=0, **settings)
    assert without.climbs == () and without.headroom is None and without.shares == {}
    assert without.means == {name: mean for name, mean in calibrated.means.items() if name != "oracle"}
