import json

import jax
import numpy as np
import pytest
from pruned_nets import IMAGES, conv_norm_relu, plain, scores_of

from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.pruning.budgets import budget_counts
from jaxprune.pruning.planning import Plan, make_plan, plan, select
from jaxprune.pruning.slimming import slim
from jaxprune.structure.tracing import trace_structure

STRUCTURE = trace_structure(plain(), IMAGES)
SCORES = scores_of(STRUCTURE)


def plan_plain(scores=SCORES, **budget):
    return plan(plain(), scores, IMAGES, **budget)


def test_highest_scores_stay_by_hand():
    scores = {**SCORES, "conv1.kernel": np.array([0.5, 3.0, -1.0, 2.0])}
    assert plan_plain(scores, kept_fraction=0.5).kept["conv1.kernel"] == (1, 3)


def test_of_equal_scores_the_lower_index_falls():
    assert select({"a": np.zeros(4)}, {"a": 2}) == (("a", (2, 3)),)


def test_select_keeps_all_of_a_group_without_scores():
    assert select({}, {"a": 2}) == (("a", (0, 1)),)


def test_kept_fraction_rounds_half_to_even_and_keeps_one():
    assert plan_plain(kept_fraction=0.5).kept_counts == {
        "conv1.kernel": 2,
        "conv2.kernel": 3,
        "dense.kernel": 2,
    }
    assert set(plan_plain(kept_fraction=0.01).kept_counts.values()) == {1}
    assert plan_plain(kept_fraction=1.0).kept_counts == STRUCTURE.widths


def test_multiples():
    counts = budget_counts(STRUCTURE, kept_fraction=0.5, multiple_of=2)
    assert counts == {"conv1.kernel": 2, "conv2.kernel": 4, "dense.kernel": 2}
    assert budget_counts(STRUCTURE, kept_fraction=0.5, multiple_of=8) == STRUCTURE.widths
    assert budget_counts(STRUCTURE, kept_fraction=0.99, multiple_of=4)["conv2.kernel"] == 4


def test_kept_counts_are_met_and_other_groups_stay_whole():
    assert plan_plain(kept_counts={"conv2.kernel": 2}).kept_counts == {**STRUCTURE.widths, "conv2.kernel": 2}


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_cost_budgets_hold_for_the_slim_network_and_nothing_larger_would(scope, fraction):
    net = plain()
    for name, cost in (
        ("macs_fraction", lambda m: count_macs(m, IMAGES[:1])),
        ("params_fraction", count_parameters),
    ):
        chosen_plan = plan(net, SCORES, IMAGES, scope=scope, **{name: fraction})
        assert cost(slim(net, chosen_plan)) <= fraction * cost(net)
        assert any(count < STRUCTURE.widths[group] for group, count in chosen_plan.kept_counts.items())


def test_uniform_macs_budget_is_the_greatest_fraction_that_fits():
    counts = budget_counts(STRUCTURE, macs_fraction=0.5)
    fractions = np.linspace(0.01, 1, 2000)
    fitting = [
        budget_counts(STRUCTURE, kept_fraction=float(t))
        for t in fractions
        if STRUCTURE.count_macs(budget_counts(STRUCTURE, kept_fraction=float(t)))
        <= 0.5 * STRUCTURE.count_macs()
    ]
    assert counts == fitting[-1]


def test_global_scope_removes_the_lowest_of_all_groups():
    scores = {
        "conv1.kernel": np.arange(4) + 10.0,
        "conv2.kernel": np.arange(6.0),
        "dense.kernel": np.arange(5) + 20.0,
    }
    chosen_plan = plan_plain(scores, kept_fraction=12 / 15, scope="global")
    assert chosen_plan.kept_counts == {"conv1.kernel": 4, "conv2.kernel": 3, "dense.kernel": 5}
    assert plan_plain(scores, kept_fraction=3 / 15, scope="global").kept_counts == dict.fromkeys(
        STRUCTURE.widths, 1
    )
    even = plan_plain(scores, kept_fraction=0.7, scope="global", multiple_of=2).kept_counts
    assert even["conv2.kernel"] == 2


def test_ignored_groups_stay_whole():
    counts = plan_plain(
        {"dense.kernel": SCORES["dense.kernel"]}, kept_fraction=0.4, ignore=("conv*",)
    ).kept_counts
    assert counts == {"conv1.kernel": 4, "conv2.kernel": 6, "dense.kernel": 2}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "Give exactly one budget out of"),
        ({"kept_fraction": 0.5, "macs_fraction": 0.5}, "Give exactly one budget out of"),
        ({"kept_fraction": 0.0}, r"kept_fraction must be in \(0, 1\]"),
        ({"kept_fraction": "0.5"}, r"kept_fraction must be in \(0, 1\], got '0.5'"),
        ({"kept_fraction": True}, r"kept_fraction must be in \(0, 1\], got True"),
        ({"kept_fraction": 0.5, "multiple_of": True}, "multiple_of must be a whole number >= 1, got True"),
        (
            {"kept_counts": {"conv1.kernel": True}},
            "needs a whole number of kept channels from 1 to 4, got True",
        ),
        ({"kept_fraction": 0.5, "multiple_of": 2.5}, "multiple_of must be a whole number >= 1, got 2.5"),
        ({"macs_fraction": 1.5}, r"macs_fraction must be in \(0, 1\]"),
        ({"macs_fraction": 0.001}, "macs_fraction=0.001 cannot be met"),
        ({"kept_fraction": 0.01, "scope": "global"}, "kept_fraction=0.01 cannot be met"),
        ({"kept_fraction": 0.5, "scope": "layer"}, "scope must be 'group' or 'global'"),
        ({"kept_fraction": 0.5, "multiple_of": 0}, "multiple_of must be a whole number >= 1"),
        ({"kept_fraction": 0.5, "ignore": ("nope",)}, "ignore needs names or patterns of groups"),
        (
            {"kept_counts": {"conv1.kernel": 0}},
            "'conv1.kernel' needs a whole number of kept channels from 1 to 4, got 0",
        ),
        (
            {"kept_counts": {"conv1.kernel": 5}},
            "'conv1.kernel' needs a whole number of kept channels from 1 to 4, got 5",
        ),
        ({"kept_counts": {"conv1.kernel": 2.0}}, "a whole number of kept channels from 1 to 4, got 2.0"),
        (
            {"kept_counts": {"conv1.kernel": np.True_}},
            "a whole number of kept channels from 1 to 4, got np.True_",
        ),
        (
            {"kept_counts": {"conv1.kernel": 2.5}},
            "needs a whole number of kept channels from 1 to 4, got 2.5",
        ),
        (
            {"kept_counts": {"conv1.kernel": float("nan")}},
            "needs a whole number of kept channels from 1 to 4, got nan",
        ),
        (
            {"kept_counts": {"conv1.kernel": "3"}},
            "needs a whole number of kept channels from 1 to 4, got '3'",
        ),
        ({"kept_counts": 3}, "kept_counts must map group names to kept channels, got 3"),
        ({"kept_counts": {"conv7.kernel": 1}}, "'conv7.kernel' is no group"),
        (
            {"kept_counts": {"conv1.kernel": 1}, "ignore": ("conv1.kernel",)},
            "is ignored and has a kept count",
        ),
    ],
)
def test_impossible_budgets_are_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        plan_plain(**budget)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.kernel": np.array([1, np.nan, 2, 3])}, "'conv1.kernel' channel 1 has score nan"),
        ({"dense.kernel": np.array([1, 2, 3, 4, np.inf])}, "'dense.kernel' channel 4 has score inf"),
        ({"conv1.kernel": np.arange(3.0)}, r"'conv1.kernel' needs \[4\] scores, got shape \(3,\)"),
        ({"other": np.arange(3.0)}, "'other' is no group of this network"),
    ],
)
@pytest.mark.parametrize("scope", ["group", "global"])
def test_unusable_scores_are_refused(change, message, scope):
    with pytest.raises(ValueError, match=message):
        plan_plain({**SCORES, **change}, kept_fraction=0.5, scope=scope)


ONE = {"conv1.kernel": SCORES["conv1.kernel"]}


@pytest.mark.parametrize("scope", ["group", "global"])
def test_groups_without_scores_stay_whole(scope):
    for options in ({}, {"groups": "conv*"}, {"groups": ["conv1.kernel", "dense*"], "ignore": "dense*"}):
        found = plan_plain(ONE, kept_fraction=0.5, scope=scope, **options)
        assert found.kept_counts == {**STRUCTURE.widths, "conv1.kernel": 2}


def test_only_chosen_groups_lose_channels():
    assert plan_plain(kept_fraction=0.5, groups=["conv*"], ignore="conv1*").kept_counts == {
        "conv1.kernel": 4,
        "conv2.kernel": 3,
        "dense.kernel": 5,
    }


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"kept_counts": {"conv2.kernel": 2, "dense.kernel": 2}},
            "'conv2.kernel' has no scores; group 'dense.kernel' has no scores",
        ),
        (
            {"params_fraction": 0.1},
            "cannot be met: the smallest network .* Groups without scores stay whole: conv2.kernel, dense.kernel",
        ),
        (
            {"kept_fraction": {"dense*": 0.5}},
            "got 'dense\\*', whose groups stay whole .* without scores stay whole: conv2.kernel, dense.kernel",
        ),
        (
            {"kept_fraction": 0.5, "groups": "conv2*"},
            "nothing is left to prune: .* and groups=.* and scores of conv1.kernel every group stays whole",
        ),
        (
            {"kept_fraction": 0.5, "groups": "pool*"},
            "groups needs names or patterns of groups, .*, got .*pool",
        ),
    ],
)
def test_what_groups_without_scores_do_not_allow_is_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        plan_plain(ONE, **budget)


def test_json_round_trip_through_a_file(tmp_path):
    chosen_plan = plan_plain(kept_fraction=0.5)
    chosen_plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == chosen_plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    assert chosen_plan.to_kept()[0][0] == "conv1.kernel"


def test_a_plan_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(OSError, match=r"plan\.json"):
        plan_plain(kept_fraction=0.5).save(tmp_path / "plan.json")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("text", ["{}", "nonsense", "[]", '{"format": 1, "groups": 3}'])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"needs a plan as Plan\.to_json writes it"):
        Plan.from_json(text)


def test_a_newer_format_is_refused():
    record = {**json.loads(plan_plain(kept_fraction=0.5).to_json()), "format": 99}
    with pytest.raises(ValueError, match="needs a plan of format 1 or older, got 99"):
        Plan.from_json(json.dumps(record))


def test_a_plan_for_another_network_is_refused():
    with pytest.raises(ValueError, match="needs the network that the plan was made for"):
        slim(conv_norm_relu(), plan_plain(kept_fraction=0.5))


def test_kept_indices_alone_are_no_plan():
    with pytest.raises(TypeError, match=r"needs a Plan, got dict\. Make one with plan\(\)"):
        slim(plain(), dict(plan_plain(kept_fraction=0.5).kept))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nope": (0,)}, "no group is called 'nope'"),
        ({"conv1.kernel": ()}, "needs between 1 and 4 kept indices"),
        ({"conv1.kernel": (1, 0)}, "needs rising indices between 0 and 3"),
        ({"conv1.kernel": (1, 4)}, "needs rising indices between 0 and 3"),
    ],
)
def test_kept_indices_that_do_not_fit_are_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        make_plan(STRUCTURE, kept)


def test_scores_may_be_jax_arrays():
    scores = {name: jax.numpy.asarray(value) for name, value in SCORES.items()}
    assert plan_plain(scores, kept_fraction=0.5) == plan_plain(kept_fraction=0.5)


def test_scores_without_groups_are_refused():
    with pytest.raises(TypeError, match=r"scores needs group name -> one score per channel.* got ndarray"):
        plan(plain(), np.ones(8), IMAGES, kept_fraction=0.5)
