"""`GW` and `GX` in scoring: from arrays, in every way of running a function, and the errors where they are absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.language.library import own_seeds
from jaxprune.language.parsing import parse
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.observed import LazyValues, Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population, score_with_status
from jaxprune.scoring.ranking import rank_population, score
from jaxprune.scoring.scorer import Scorer
from jaxprune.types import Invalid

LABELS = np.arange(12) % 3
FUNCTIONS = [
    parse(text)
    for text in (
        "square(inner(GW, WI))",
        "mean(X*GX)",
        "sum(abs(mean_samples(X*GX) - mX)) + N",
        "mean(matmul(P, transpose(GX))) * sum(abs(GW))",
        "var(GX) / (var(X) + 1) + mean(slice(GX, 2, 7))",
    )
]


def arrays(seed=0, channels=3):
    rng = np.random.default_rng(seed)
    shapes = {"features": (12, 2, 2, channels), "kernel": (3, 3, 2, channels)}
    shapes |= {"weight_gradient": shapes["kernel"], "feature_gradient": shapes["features"]}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"labels": LABELS}


def make(seed=0, channels=3, **changes):
    return Operands.from_arrays(**(arrays(seed, channels) | changes))


def observed(*names, source=None, **changes):
    names = names or ("conv1.kernel",)
    return Observed({name: make(**changes) for name in names}, {name: (name,) for name in names}, source)


def test_by_hand():
    ops = Operands.from_arrays(
        features=[[1.0, 2.0], [3.0, 0.0]],
        labels=[1, 0],
        kernel=[[1.0, -2.0], [3.0, 4.0]],
        weight_gradient=[[1.0, 1.0], [-1.0, 2.0]],
        feature_gradient=[[0.5, 1.0], [-1.0, 7.0]],
    )
    assert ops.gradients.samples[:, 0].tolist() == [[-1.0, 7.0], [0.5, 1.0]]  # sorted by class as X is
    assert ops.gradients.fisher.tolist() == [(0.25 + 9) / 2, 2.0]
    assert ops.gradients.first_order.tolist() == [(0.5 + 3) / 2, 1.0]
    scores = score_population([own_seeds["taylor"], parse("sum(X*GX)"), parse("sum(GW)")], ops)
    assert scores.tolist() == [[4.0, 36.0], [-2.5, 2.0], [0.0, 3.0]]


def test_every_way_of_running_reads_them():
    members = [make(0), make(1)]
    stacked = Operands.stack(members)
    whole = score_population(FUNCTIONS, stacked)
    run = jax.jit(lambda operands: jnp.stack([compile(f)(operands) for f in FUNCTIONS]))
    for member, operands in enumerate(members):
        np.testing.assert_allclose(run(operands), whole[:, member], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run(operands.take([2])), whole[:, member, 2:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(run, out_axes=1)(stacked), whole, rtol=1e-4, atol=1e-5)
    blocks = Scorer(stacked, block_entries=64).run(FUNCTIONS)[""]
    np.testing.assert_allclose(blocks.scores, whole, rtol=1e-4, atol=1e-5)


def test_reordering_channels_reorders_scores():
    order = np.array([2, 0, 1])
    moved = {name: value if name == "labels" else value[..., order] for name, value in arrays().items()}
    found = score_population(FUNCTIONS, Operands.from_arrays(**moved))
    np.testing.assert_allclose(found, score_population(FUNCTIONS, make())[:, order], rtol=1e-4, atol=1e-5)


def test_channels_members_and_stacks_carry_them():
    part = make().take([2, 0])
    for found, whole in zip(part.gradients, make().gradients, strict=True):
        np.testing.assert_array_equal(found, whole[..., np.array([2, 0])])
    stacked = Operands.stack([make(0), make(1)])
    assert stacked.gradients.samples.shape == (2, 12, 4, 3)
    jax.tree.map(np.testing.assert_array_equal, stacked.member(1).gradients, make(1).gradients)
    with pytest.raises(ValueError, match="or in which operands are present"):
        Operands.stack([make(), make(feature_gradient=None)])


def test_one_of_the_two_may_be_given():
    weights, samples = make(feature_gradient=None), make(weight_gradient=None)
    assert weights.gradients.fisher is None and samples.gradients.weights is None
    _, reasons = score_with_status(FUNCTIONS[:2], weights)
    assert reasons[0] is None and reasons[1].startswith(
        "operand GX is missing: this layer does not have it; for"
    )
    _, reasons = score_with_status(FUNCTIONS[:2], samples)
    assert "weight_gradient= and feature_gradient= of from_arrays" in reasons[0] and reasons[1] is None
    assert make(weight_gradient=None, feature_gradient=None).gradients is None


BAD = {
    "shape of weights": (
        {"weight_gradient": np.ones((18, 3))},
        r"weight_gradient must have the shape of kernel, \(3, 3, 2, 3\), got shape \(18, 3\). Differentiate",
    ),
    "shape of features": (
        {"feature_gradient": np.ones((11, 2, 2, 3))},
        r"feature_gradient must have the shape of features, \(12, 2, 2, 3\), got shape \(11, 2, 2, 3\)",
    ),
    "rank": ({"weight_gradient": np.ones(3)}, "weight_gradient must be a non-empty"),
    "NaN": (
        {"weight_gradient": np.full((3, 3, 2, 3), np.nan)},
        "must be finite.*54 of 54 in weight_gradient",
    ),
    "infinite": ({"feature_gradient": np.full((12, 2, 2, 3), np.inf)}, "144 of 144 in feature_gradient"),
    "shape of squares": (
        {"squared_weight_gradient": np.ones((18, 3))},
        r"squared_weight_gradient must have the shape of kernel, \(3, 3, 2, 3\), got shape \(18, 3\)",
    ),
    "negative squares": (
        {"squared_weight_gradient": -np.ones((3, 3, 2, 3))},
        "squared_weight_gradient must be >= 0, got -1. Square each example's own gradient, then average",
    ),
    "as extras": (
        {"extras": {"GW": np.ones((3, 18))}},
        "got 'GW', which is built in.*GW is weight_gradient=",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_gradients_are_named(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_absent_operands_are_named_with_producer_and_remedy():
    bare = observed("conv1.kernel", "conv2.kernel", weight_gradient=None, feature_gradient=None)
    with pytest.raises(
        ValueError,
        match=r"sum\(WI\*GW\) needs operand GW, which producers conv1.kernel, conv2.kernel do not have: observe fills "
        r"it, Operands.from_arrays takes weight_gradient=. Use a function without it",
    ):
        score(parse("sum(WI*GW)"), bare)
    with pytest.raises(
        ValueError,
        match=r"operand GX, which .*feature_gradient=; operand gamma, which .*: no learned normalisation",
    ):
        score(parse("gamma*sum(GX)"), bare)
    (ranked,) = rank_population([parse("sum(GX)")], bare)
    assert isinstance(ranked, Invalid)
    assert "operand GX is missing" in ranked.reason and ranked.reason.endswith("(conv1.kernel, conv2.kernel)")
    with pytest.raises(
        ValueError, match=r"with_gradients needs what observe returned, got operands that do not"
    ):
        bare.with_gradients()


def test_squared_gradients_by_hand():
    ops = Operands.from_arrays(
        features=np.eye(2),
        labels=[0, 1],
        kernel=[[1.0, -2.0], [3.0, 4.0]],
        squared_weight_gradient=[[1.0, 0.5], [2.0, 3.0]],
    )
    functions = [parse("sum(GW2)"), parse("sum(square(WI)*GW2)/2")]
    assert score_population(functions, ops).tolist() == [[3.0, 3.5], [9.5, 25.0]]
    assert score_population(functions, ops.take([1])).tolist() == [[3.5], [25.0]]
    batches = [(np.eye(2), [0, 1])]
    streamed = Operands.from_batches(
        batches, kernel=np.eye(2), squared_weight_gradient=[[1.0, 0.5], [2.0, 3.0]]
    )
    assert score_population(functions[:1], streamed).tolist() == [[3.0, 3.5]]


def test_absent_squared_gradients_are_named():
    f, bare = parse("sum(GW2)"), observed("conv1.kernel", "conv2.kernel")
    with pytest.raises(
        ValueError,
        match=r"sum\(GW2\) needs operand GW2, which producers conv1.kernel, conv2.kernel do not have: observe fills "
        "it, Operands.from_arrays takes squared_weight_gradient=",
    ):
        score(f, bare)
    with pytest.raises(
        ValueError, match=r"GW2 is missing.*observe\(...\).with_squared_gradients\(\), or squared_w"
    ):
        compile(f)(bare["conv1.kernel"])
    with pytest.raises(
        ValueError, match=r"with_squared_gradients needs what observe returned.*squared_weight_grad"
    ):
        bare.with_squared_gradients()


class TestSource:
    @staticmethod
    def counted():
        calls = []

        def compute():
            calls.append(1)
            return {"conv1.kernel": make(len(calls)).gradients}

        return LazyValues(compute), calls

    def test_a_ranking_asks_once_and_only_if_a_function_reads_them(self):
        source, calls = self.counted()
        bare = observed(weight_gradient=None, feature_gradient=None, source=source)
        rank_population([parse("sum(WI)")], bare)
        assert calls == []
        ranked = [rank_population([parse("sum(WI)"), FUNCTIONS[0]], bare)[1] for _ in range(2)]
        assert calls == [1]
        expected = (np.asarray(make(1).gradients.weights) * np.asarray(make().filters)).sum(0) ** 2
        for one in ranked:
            np.testing.assert_allclose(one.scores["conv1.kernel"], expected / expected.mean(), rtol=1e-5)

    def test_given_gradients_are_kept(self):
        source, calls = self.counted()
        full = observed(source=source)
        assert full.with_gradients() is full and full.has_gradients
        score(FUNCTIONS[1], full)
        assert calls == []

    def test_members_of_a_stack_have_their_own(self):
        sources, counts = zip(*[self.counted() for _ in range(2)], strict=True)
        stacked = Observed.stack(
            [observed(weight_gradient=None, feature_gradient=None, source=source) for source in sources]
        )
        stacked.member(1).with_gradients()
        assert [len(count) for count in counts] == [0, 1]
        both = stacked.with_gradients()
        assert both["conv1.kernel"].gradients.weights.shape == (2, 18, 3)
        again = stacked.member(0).with_gradients()
        jax.tree.map(
            np.testing.assert_array_equal,
            again["conv1.kernel"].gradients,
            both.member(0)["conv1.kernel"].gradients,
        )
        assert [len(count) for count in counts] == [1, 1]

    def test_a_source_is_no_part_of_the_pytree(self):
        source, _ = self.counted()
        mapped = jax.tree.map(lambda leaf: 2 * leaf, observed(source=source))
        assert mapped.gradient_source is None and mapped.has_gradients
        assert jax.tree.structure(mapped) == jax.tree.structure(observed())

    def test_a_failure_is_no_result(self):
        outcomes = iter([ValueError("no memory"), {"conv1.kernel": Gradients(jnp.ones((2, 3)))}])

        def compute():
            found = next(outcomes)
            if isinstance(found, Exception):
                raise found
            return found

        source = LazyValues(compute)
        with pytest.raises(ValueError, match="no memory"):
            source()
        assert source()["conv1.kernel"].weights.shape == (2, 3)
