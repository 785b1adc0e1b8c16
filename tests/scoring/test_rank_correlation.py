"""Rank correlations and estimated costs: by hand, against SciPy, and where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxprune.language.parsing import parse
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring.formula_cost import layer_costs
from jaxprune.scoring.rank_correlation import correlate, rank_correlation, rank_correlations
from jaxprune.scoring.ranking import Scored, score_functions


def scored(**groups):
    return Scored({name: np.array(values, float) for name, values in groups.items()}, "ok", "", ())


@pytest.fixture(scope="module")
def observed():
    rng = np.random.default_rng(0)

    def layer(channels, **more):
        return Operands.from_arrays(
            features=rng.normal(size=(12, 3, 3, channels)).astype(np.float32),
            labels=np.arange(12) % 3,
            kernel=rng.normal(size=(3, 3, 2, channels)),
            **more,
        )

    layers = {"a": layer(5, gamma=np.ones(5)), "b": layer(4)}
    return Observed(layers, {"a": ("a",), "b": ("b",)})


def test_rank_correlations_by_hand():
    # ranks 1 2 3 and 2 1 3: differences 1 1 0, so 1 - 6*2/(3*8)
    assert rank_correlation(np.array([1.0, 5.0, 9.0]), np.array([3.0, 2.0, 4.0])) == pytest.approx(0.5)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


def test_rank_correlations_equal_scipys_with_ties():
    scores = np.random.default_rng(0).integers(0, 6, (4, 20)).astype(float)
    np.testing.assert_allclose(rank_correlations(scores), spearmanr(scores.T).statistic, atol=1e-12)


def test_the_most_alike_come_first_and_the_unscored_are_named():
    f = scored(a=[1, 2, 3, 4], b=[1, 2, 3])
    others = {
        "little": scored(a=[1, 3, 2, 4], b=[2, 1, 3]),
        "reverse": scored(a=[4, 3, 2, 1], b=[30, 20, 10]),
        "half": scored(a=[2, 2, 2, 2], b=[1, 2, 3]),
        "flat": scored(a=[1, 1, 1, 1], b=[1, 1, 1]),
        "none": Scored({}, "missing operand", "gamma in a", ()),
    }
    found = correlate(f, others)
    assert found.names == ("reverse", "half", "little", "flat") and found.groups == ("a", "b")
    np.testing.assert_allclose(found.by_group[:3], [[-1, -1], [np.nan, 1], [0.8, 0.5]])
    np.testing.assert_allclose(found.mean, [-1, 1, 0.65, np.nan])
    assert found.left_out == {"none": "missing operand: gamma in a"}
    assert np.isfinite(found.together[:3]).all() and np.isnan(found.together[3])


def test_a_function_without_scores_cannot_be_compared():
    with pytest.raises(ValueError, match="finite scores that differ, got a function that is constant: equal"):
        correlate(Scored({}, "constant", "equal in every group", ()), {})


def test_costs_are_of_shapes_and_say_what_would_be_refused(observed):
    a, b = layer_costs(parse("sum(abs(WI))"), observed)
    assert (a.producer, a.channels, a.bytes_per_channel, a.flops, a.refusal) == ("a", 5, 72, 180.0, "")
    assert (b.channels, b.flops) == (4, 144.0)
    pairs = parse("mean(rbf(X, 1))")
    assert layer_costs(pairs, observed)[0].bytes_per_channel == 12 * 12 * 4
    assert (
        "operations on this layer, more than 1.0e+01" in layer_costs(pairs, observed, max_flops=10)[1].refusal
    )
    assert "bytes for one channel" in layer_costs(pairs, observed, budget_bytes=4 * 575)[0].refusal
    assert not layer_costs(pairs, observed, budget_bytes=4 * 576)[0].refusal
    costs = layer_costs(parse("abs(gamma)"), observed)
    assert not costs[0].refusal and "operand gamma is missing" in costs[1].refusal


def test_every_function_has_a_status_and_fails_alone(observed):
    texts = ["sum(abs(WI))", "gamma", "NX", "mean(X)/(NX - NX)", "sum(abs(WI))"]
    found = score_functions([parse(text) for text in texts], observed)
    assert [each.status for each in found] == ["ok", "constant", "constant", "not finite", "ok"]
    assert [each.detail for each in found[1:4]] == [
        "equal in every group; no gamma in b",
        "equal in every group",
        "in group a, channel 0: mean(X)/(NX - NX)",
    ]
    assert found[0] is found[4]
    np.testing.assert_allclose(found[0].scores["a"].mean(), 1)
    assert np.isnan(found[1].scores["b"]).all()


def test_a_group_of_equal_scores_is_told(observed):
    layers = {
        name: Operands.from_arrays(
            features=np.arange(12.0).reshape(4, 3), labels=[0, 0, 1, 1], kernel=np.array(kernel, float)
        )
        for name, kernel in {"a": [[1, 2, 3]], "b": [[2, 2, 2]]}.items()
    }
    (found,) = score_functions([parse("sum(WI)")], Observed(layers, {"a": ("a",), "b": ("b",)}))
    assert (found.status, found.constant_groups) == ("ok", ("b",))


def test_several_networks_or_one_layer_are_refused(observed):
    with pytest.raises(TypeError, match="needs what observe returns, got Operands"):
        score_functions([parse("NX")], observed["a"])
    with pytest.raises(ValueError, match="operands of one network, got 2 stacked"):
        score_functions([parse("NX")], Observed.stack([observed, observed]))
    assert score_functions([], observed) == []
