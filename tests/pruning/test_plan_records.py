"""What a plan records of its budget: asked and met, the metric and versions, and whether its file was changed."""

import json

import numpy as np
import pytest
from pruned_nets import IMAGES, plain, scores_of

from jaxprune.pruning.planning import Plan, plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import merge_model, split_model
from jaxprune.structure.tracing import trace_structure

SCORES = scores_of(trace_structure(plain(), IMAGES))


def test_a_plan_says_what_was_asked_and_met_and_by_what(tmp_path):
    chosen = plan(plain(), SCORES, IMAGES, macs_fraction=0.5, metric="sum(abs(WI))")
    chosen.save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["budget"]["name"] == "macs_fraction" and record["budget"]["asked"] == 0.5
    assert record["budget"]["met"] == pytest.approx(0.4005, abs=1e-4)
    assert record["metric"] == "sum(abs(WI))"
    assert sorted(record["versions"]) == ["flax", "jax", "jaxprune"]
    loaded = Plan.load(tmp_path / "plan.json")
    assert (loaded, loaded.budget, loaded.metric) == (chosen, chosen.budget, chosen.metric)
    assert str(loaded.budget) == "macs_fraction: asked 0.5, met 0.4005"


@pytest.mark.parametrize(
    "budget",
    [{"kept_counts": {"conv1.kernel": 2}}, {"kept_fraction": {"conv*": 0.5}}, {"params_fraction": 0.5}],
)
def test_every_kind_of_budget_is_saved(budget):
    chosen = plan(plain(), SCORES, IMAGES, **budget)
    assert Plan.from_json(chosen.to_json()).budget == chosen.budget


def test_a_plan_replays_on_a_fresh_copy():
    net = plain()
    text = plan(net, SCORES, IMAGES, kept_fraction=0.5).to_json()
    copy = merge_model(*split_model(plain()))
    first, second = (split_model(slim(each, Plan.from_json(text)))[1] for each in (net, copy))
    assert all(np.array_equal(first[path], second[path]) for path in first)


def test_a_plan_of_an_earlier_version_still_loads():
    record = json.loads(plan(plain(), SCORES, IMAGES, kept_fraction=0.5).to_json())
    for name in ("budget", "kept_digest", "metric", "versions"):
        record.pop(name, None)
    old = Plan.from_json(json.dumps(record))
    assert old.budget is None and old.metric == "" and slim(plain(), old).conv1.kernel.shape[3] == 2
    assert json.loads(old.to_json()) == record


def test_channels_that_were_changed_in_the_file_are_refused(tmp_path):
    record = json.loads(plan(plain(), SCORES, IMAGES, kept_fraction=0.5).to_json())
    record["groups"]["conv1.kernel"]["kept"] = [0, 1, 2]
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"plan\.json: needs the kept channels that the plan was saved with"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 3}, "budget must have a name, and what was asked and met, got 3"),
        ({"budget": {"name": "x", "asked": 1, "met": 1}}, "budget must be one of kept_fraction"),
        (
            {"budget": {"name": "kept_fraction", "asked": "half", "met": 1}},
            "asked of a budget must be numbers, got 'half'",
        ),
        (
            {"budget": {"name": "kept_fraction", "asked": 1, "met": {"a": -1}}},
            "met of a budget must be numbers, got",
        ),
        (
            {"budget": {"name": "kept_fraction", "asked": 1, "met": float("nan")}},
            "met of a budget must be numbers, got nan",
        ),
        (
            {"budget": {"name": "kept_fraction", "asked": 1, "met": 1, "table": []}},
            "table of a budget must be rows of numbers",
        ),
        ({"budget": None, "kept_digest": None}, "budget must have a name"),
        ({"metric": ""}, "metric must be a text, got ''"),
        ({"versions": {}}, "versions must be texts by package, got {}"),
        ({"versions": {"jax": 1}}, "versions must be texts by package"),
    ],
)
def test_every_part_of_a_budget_is_checked(change, message):
    record = json.loads(plan(plain(), SCORES, IMAGES, kept_fraction=0.5).to_json())
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps({**record, **change}))


def test_a_budget_without_its_digest_is_refused():
    record = json.loads(plan(plain(), SCORES, IMAGES, kept_fraction=0.5).to_json())
    del record["kept_digest"]
    with pytest.raises(ValueError, match="a budget and the digest of the kept channels go together"):
        Plan.from_json(json.dumps(record))
