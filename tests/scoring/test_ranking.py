import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.metrics import Metric, metrics
from jaxprune.scoring.ranking import Ranking, aggregate, is_constant, pruning_order, rank_population, score
from jaxprune.scoring.scorer import Scorer
from jaxprune.types import Invalid

LABELS = np.arange(12) % 3


def make(seed, channels=4, dead=(), positions=2, **changes):
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.standard_normal((12, positions, 1, channels)), 0).astype(np.float32)
    features[..., list(dead)] = 0
    kernel = rng.standard_normal((5, channels)).astype(np.float32)
    return Operands.from_arrays(**({"features": features, "labels": LABELS, "kernel": kernel} | changes))


def observe(seed=0, dead=(), dense_positions=1):
    return Observed(
        {
            "conv.kernel": make(seed),
            "skip.kernel": make(seed + 10, dead=dead),
            "dense.kernel": make(seed + 20, 6, positions=dense_positions),
        },
        {"conv.kernel": ("conv.kernel", "skip.kernel"), "dense.kernel": ("dense.kernel",)},
    )


def test_scores_of_a_group_are_the_mean_of_relative_scores():
    observed = observe()
    own = {path: np.abs(np.asarray(ops.filters)).sum(0).astype(np.float64) for path, ops in observed.items()}
    relative = {path: values / values.mean() for path, values in own.items()}
    scores = score(library["l1"], observed)
    assert list(scores) == ["conv.kernel", "dense.kernel"]
    np.testing.assert_allclose(
        scores["conv.kernel"], (relative["conv.kernel"] + relative["skip.kernel"]) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(scores["dense.kernel"], relative["dense.kernel"], rtol=1e-6)
    first = score(library["l1"], observed, aggregation="first")["conv.kernel"]
    np.testing.assert_allclose(first, own["conv.kernel"], rtol=1e-6)


def test_aggregations_by_hand():
    pair = [np.array([1.0, 3.0]), np.array([-30.0, 10.0])]
    assert aggregate(pair, "relative").tolist() == [-0.5, 1.0]
    assert aggregate(pair, "mean").tolist() == [-14.5, 6.5]
    assert aggregate(pair, "max").tolist() == [0.5, 1.5]
    assert aggregate([np.zeros(2)], "relative").tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="aggregation must be one of relative, mean, max, first, got 'sum'"):
        aggregate(pair, "sum")


def test_scores_keep_what_is_not_finite_and_name_what_is_missing():
    scores = score(parse("var(P)/var(X)"), observe(dead=[1]))
    assert np.isnan(scores["conv.kernel"][1])
    with pytest.raises(
        ValueError,
        match=r"needs operand gamma, which producers conv.kernel, skip.kernel, dense.kernel do not have: no learned",
    ):
        score(parse("gamma"), observe())


def test_one_layer_alone_has_no_groups():
    with pytest.raises(TypeError, match=r"score needs what observe returns, got Operands.*compile\(f\)"):
        score(library["l1"], make(0))


def test_lowest_first_and_ties_by_index():
    assert pruning_order(np.array([1.0, 0.0, 1.0, 0.0])).tolist() == [1, 3, 0, 2]
    assert (
        is_constant(np.full(3, 0.3)) and is_constant(np.zeros(3)) and not is_constant(np.array([0.0, 1e-9]))
    )


def test_a_sound_function_is_ranked():
    result = rank_population([library["abs_snr"]], observe(dense_positions=2))[0]
    assert isinstance(result, Ranking)
    assert result.fallback_groups == () and result.num_ties == 0
    np.testing.assert_array_equal(
        result.scores["dense.kernel"], score(library["abs_snr"], observe(dense_positions=2))["dense.kernel"]
    )


def test_equal_scores_in_one_group_fall_back_to_l2():
    observed = observe()
    result = rank_population([parse("std(mX)")], observed)[0]
    assert result.fallback_groups == ("dense.kernel",)  # one position: nothing varies over positions
    np.testing.assert_array_equal(
        result.scores["dense.kernel"], score(library["l2"], observed)["dense.kernel"]
    )


def test_metrics_and_functions_are_ranked_beside_formulas():
    observed = observe(dead=[2])
    norm = metrics["l1"]
    functions = [norm, metrics["lamp"], library["fdr"], lambda ops: jnp.abs(ops.filters).sum(0)]
    by_metric, lamp, fdr, by_function = rank_population(functions, observed)
    for group in observed.groups:
        np.testing.assert_array_equal(by_metric.scores[group], score(library["l1"], observed)[group])
        np.testing.assert_array_equal(by_function.scores[group], score(functions[-1], observed)[group])
        np.testing.assert_allclose(by_function.scores[group], by_metric.scores[group], rtol=1e-6)
        np.testing.assert_array_equal(lamp.scores[group], score(metrics["lamp"], observed)[group])
        np.testing.assert_array_equal(fdr.scores[group], score(library["fdr"], observed)[group])
    own = [np.asarray(metrics["lamp"](observed[path])) for path in ("conv.kernel", "skip.kernel")]
    np.testing.assert_allclose(lamp.scores["conv.kernel"], aggregate(own, "relative"), rtol=1e-6)


def test_functions_that_fail_say_why():
    def half(operands):
        return jnp.where(jnp.arange(operands.num_channels) == 3, jnp.nan, 1.0)

    needy = Metric("needy", half, "about", "x", "source", ("gamma", "WO"))
    found = rank_population([half, needy, lambda ops: jnp.ones(ops.num_channels)], observe())
    assert [result.reason for result in found] == [
        "not finite in group conv.kernel, channel 3: half",
        "operand WO and gamma is missing: this layer does not have it (conv.kernel, skip.kernel, dense.kernel)",
        "constant in every group",
    ]
    with pytest.raises(
        ValueError, match=r"^needy needs operand WO, which producers conv.kernel, skip.kernel, dense.kernel"
    ):
        score(needy, observe())
    with pytest.raises(
        TypeError, match=r"must be an Expression, a Metric or a function of Operands, got str. Use parse"
    ):
        score("l1", observe())


def test_called_functions_see_stacked_members_one_by_one():
    members = [observe(0), observe(1)]
    for f in (metrics["lamp"], lambda ops: jnp.abs(ops.filters).max(0)):
        together = score(f, Observed.stack(members))
        ranked = rank_population([f], Observed.stack(members))[0]
        for index, member in enumerate(members):
            for group, alone in score(f, member).items():
                np.testing.assert_allclose(together[group][index], alone, rtol=1e-6)
                np.testing.assert_allclose(ranked[index].scores[group], alone, rtol=1e-6)


def test_isolated_ties_are_counted():
    kernel = np.repeat(np.arange(1.0, 4.0), 2)[None]
    ops = make(0, channels=6, kernel=kernel)
    result = rank_population([library["l1"]], Observed({"a": ops}, {"a": ("a",)}))[0]
    assert result.num_ties == 3


def test_invalid_functions_say_why():
    functions = ["var(P)/var(X)", "gamma", "N", "1/(1/var(mX)) + sum(abs(WI))", "mean(sqrt(mX - abs(X) - 9))"]
    observed = observe(dead=[2])
    reasons = [result.reason for result in rank_population([parse(text) for text in functions], observed)]
    assert reasons == [
        "not finite in group conv.kernel, channel 2: var(P)/var(X)",
        "operand gamma is missing: this layer does not have it (conv.kernel, skip.kernel, dense.kernel)",
        "constant in every group",
        "not finite in group conv.kernel, channel 2: 1/var(mX)",
        "not finite in group conv.kernel, channel 0: sqrt(mX - abs(X) - 9)",
    ]


def test_stacked_members_are_ranked_one_by_one():
    members = [observe(0), observe(1, dead=[3]), observe(2)]
    functions = [parse("var(P)/var(X)"), library["fdr"], library["fdr"]]
    together = rank_population(functions, Observed.stack(members))
    assert [len(row) for row in together] == [3, 3, 3]
    assert together[1] is together[2]
    for index, member in enumerate(members):
        for row, alone in zip(together, rank_population(functions, member), strict=True):
            if isinstance(alone, Invalid):
                assert row[index] == alone
            else:
                assert row[index].fallback_groups == alone.fallback_groups
                for group, scores in alone.scores.items():
                    np.testing.assert_allclose(row[index].scores[group], scores, rtol=1e-5)
    assert isinstance(together[0][1], Invalid) and not isinstance(together[1][1], Invalid)
    assert score(library["l1"], Observed.stack(members))["dense.kernel"].shape == (3, 6)


@pytest.mark.parametrize("channels", [1, 5, 64, 65])
def test_layers_of_any_width_are_ranked_by_their_own_channels(channels):
    """Whatever the ranking scores side by side, the bank is the layer's and nothing of it shows in scores or ties."""
    ops = make(3, channels, kernel=np.random.default_rng(4).standard_normal((5, channels)))
    observed = Observed({"a": ops}, {"a": ("a",)})
    functions = [
        library["geometric_median"],
        parse("sum(matmul(WI, W)) + mean(W)"),
        library["mmd"],
        library["di"],
    ]
    alone = np.asarray(jax.jit(lambda ops: [compile(f)(ops) for f in functions])(ops))
    ranked = rank_population(functions, observed, aggregation="mean")
    for f, own, result in zip(functions, alone, ranked, strict=True):
        scores = score(f, observed, aggregation="mean")["a"]
        np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-5 * np.abs(own).max())
        if channels == 1:
            assert result == Invalid("constant in every group")
        else:
            assert result.num_ties == 0 and result.fallback_groups == ()
            np.testing.assert_array_equal(result.scores["a"], scores)


def test_the_offending_channel_is_found_in_the_last_place_too():
    observed = Observed({"a": make(0, 65, dead=[64])}, {"a": ("a",)})
    assert str(rank_population([parse("var(P)/var(X)")], observed)[0]) == (
        "invalid: not finite in group a, channel 64: var(P)/var(X)"
    )


def test_ones_own_operand_is_read_for_the_whole_layer():
    """A reader may look at all channels at once, or give a table: it never sees parts of a layer, nor padding."""
    table = jnp.asarray([3.0, 1.0, 2.0, 5.0])
    register_operand("place", type=(), read=lambda ops: jnp.argsort(jnp.argsort(ops.filters[0])))
    register_operand(
        "given", type=("D",), read=lambda ops: jnp.tile(table[:, None, None], (1, 3, 2)), per_class=True
    )
    try:
        functions = [parse("place"), parse("sum(given)"), parse("sum(given) + mean(abs(X))")]
        members = [make(seed) for seed in range(2)]
        stacked = Observed.stack([Observed({"a": ops}, {"a": ("a",)}) for ops in members])
        place, given, both = (score(f, stacked, aggregation="mean")["a"] for f in functions)
        in_blocks = Scorer(Operands.stack(members), block_entries=1).run([parse("place + mean(abs(X))*0")])[
            ""
        ]
    finally:
        del OPERANDS["place"], OPERANDS["given"]
    for index, ops in enumerate(members):
        expected = np.argsort(np.argsort(np.asarray(ops.filters[0])))
        np.testing.assert_array_equal(place[index], expected)
        np.testing.assert_array_equal(in_blocks.scores[0, index], expected)
        np.testing.assert_array_equal(given[index], 2 * np.asarray(table))
        np.testing.assert_allclose(both[index] - given[index], np.abs(ops.samples).mean((0, 1)), rtol=1e-5)
