"""What scoring makes of input that is not as it should be: every case has a defined result, or an error that helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from class_moments import class_sets
from flax import nnx

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.observation.moments import sample_moments
from jaxprune.observation.observer import observe
from jaxprune.observation.operands import Operands
from jaxprune.scoring.metrics import metrics
from jaxprune.scoring.populations import score_population, score_with_status
from jaxprune.scoring.ranking import Ranking, rank_population, score, score_functions
from jaxprune.scoring.scorer import Scorer
from jaxprune.types import Invalid

rng = np.random.default_rng(0)
LABELS = np.arange(30) % 3
IMAGES = (rng.standard_normal((30, 6, 6, 1)) + LABELS[:, None, None, None]).astype(np.float32)


class Net(nnx.Module):
    """A normalisation after the first and the last of four convolutions."""

    def __init__(self, dtype=None):
        rngs = nnx.Rngs(0)
        self.conv = nnx.List([nnx.Conv(c_in, 4, (3, 3), dtype=dtype, rngs=rngs) for c_in in (1, 4, 4, 4)])
        self.norm = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm[0](self.conv[0](x)))
        x = nnx.relu(self.conv[2](nnx.relu(self.conv[1](x))))
        return self.head(nnx.relu(self.norm[1](self.conv[3](x))).mean((1, 2)))


@pytest.fixture(scope="module")
def observed():
    return observe(Net(), IMAGES, LABELS)


def make(**changes):
    """A layer of 4 channels from arrays."""
    arrays = {"features": np.abs(IMAGES[:, :2]).repeat(4, axis=-1) * [1, 2, 3, 4], "labels": LABELS}
    arrays |= {"kernel": np.random.default_rng(1).standard_normal((3, 4))}
    return Operands.from_arrays(**(arrays | changes))


class TestAnOperandThatSomeLayersLack:
    BARE = "conv.1.kernel, conv.2.kernel"

    def test_one_function_leaves_them_out_and_says_so(self, observed):
        assert list(observed) == [f"conv.{i}.kernel" for i in range(4)]
        for f in (parse("gamma*sum(WI)"), parse("beta + mean(X)"), metrics["bn_scale"]):
            with pytest.warns(
                UserWarning, match=rf"cannot score every group: no (gamma|beta) in {self.BARE}\. "
            ):
                assert list(score(f, observed)) == ["conv.0.kernel", "conv.3.kernel"]

    def test_nothing_but_them_is_an_error_with_producers_and_operand(self, observed):
        with pytest.raises(
            ValueError,
            match=rf"gamma\*sum\(WI\) needs operand gamma, which producers {self.BARE} do not have: no learned "
            "normalisation scale follows it. Use a function without it, or give it to the operands",
        ):
            score(parse("gamma*sum(WI)"), observed, ignore=["conv.0*", "conv.3*"])
        with pytest.raises(
            ValueError, match=f"beta, which producers {self.BARE} do not have: no learned .* shift"
        ):
            score(parse("beta + mean(X)"), observed, groups=["conv.1*", "conv.2*"])

    def test_in_a_population_it_is_a_value_and_the_others_are_scored(self, observed):
        missing, fine = rank_population([metrics["bn_scale"], library["fdr"]], observed)
        assert missing == Invalid(f"operand gamma is missing: this layer does not have it ({self.BARE})")
        assert isinstance(fine, Ranking)
        np.testing.assert_array_equal(
            fine.scores["conv.1.kernel"], score(library["fdr"], observed)["conv.1.kernel"]
        )
        found = score_functions([metrics["bn_scale"], metrics["l1"]], observed)
        assert [(each.status, each.detail) for each in found] == [
            ("constant", f"equal in every group; no gamma in {self.BARE}"),
            ("ok", ""),
        ]
        np.testing.assert_array_equal(found[0].scores["conv.0.kernel"], np.ones(4))
        assert np.isnan(found[0].scores["conv.1.kernel"]).all()
        (alone,) = score_functions([metrics["bn_scale"]], observed, groups=["conv.1*", "conv.2*"])
        assert (alone.status, alone.detail) == ("missing operand", f"gamma in {self.BARE}")

    def test_one_layer_alone_says_so_too(self, observed):
        with pytest.raises(
            ValueError, match=r"got abs\(gamma\): operand gamma is missing: this layer does not have it"
        ):
            score_population([library["l1"], library["bn_scale"]], observed["conv.1.kernel"])
        scores, reasons = score_with_status([library["bn_scale"]], observed["conv.0.kernel"])
        assert reasons == [None] and np.isfinite(scores).all()


@pytest.fixture(scope="module")
def mixed():
    """A sample of 6 images from batches that hold all classes."""
    return observe(Net(), IMAGES, LABELS, num_samples=6)


class TestAClassThatABatchLacks:
    @pytest.mark.parametrize("batch_size", [4, 10, 30])
    def test_batches_of_one_class_each_are_as_good_as_mixed_ones(self, batch_size, mixed):
        order = np.argsort(LABELS, kind="stable")
        found = observe(Net(), IMAGES[order], LABELS[order], num_samples=6, batch_size=batch_size)
        for path in mixed:
            np.testing.assert_array_equal(found[path].moments.count, [10, 10, 10])
            for sets, same in zip(
                class_sets(found[path].moments).values(),
                class_sets(mixed[path].moments).values(),
                strict=True,
            ):
                np.testing.assert_allclose(sets.mean, same.mean, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(sets.m2, same.m2, rtol=1e-4, atol=1e-5)

    def test_streamed_batches_may_lack_classes_too(self):
        order = np.argsort(LABELS, kind="stable")
        features, kernel = np.abs(IMAGES[order]), np.ones((2, 1))
        batches = [
            (features[start : start + 6], LABELS[order][start : start + 6]) for start in range(0, 30, 6)
        ]
        whole = Operands.from_arrays(features=features, labels=LABELS[order], kernel=kernel)
        expected = score_population([library["fdr"]], whole)
        for num_classes in (None, 3):
            found = Operands.from_batches(batches, kernel=kernel, num_classes=num_classes)
            np.testing.assert_allclose(score_population([library["fdr"]], found), expected, rtol=1e-5)


class TestMixedDtypes:
    """What is computed is `promote_types(dtype, float32)`."""

    @staticmethod
    def dtypes(operands):
        return {leaf.dtype for leaf in jax.tree.leaves(operands)}

    def test_bfloat16_activations_with_float32_weights(self):
        features = jnp.asarray(np.abs(IMAGES[:, :2]).repeat(4, axis=-1), jnp.bfloat16)
        mixed = make(
            features=features, gamma=np.arange(4, dtype=np.float16), outgoing=np.ones((4, 2), np.int8)
        )
        assert self.dtypes(mixed) == {np.dtype(np.float32)}
        wide = make(features=np.asarray(features, np.float32), gamma=np.arange(4.0), outgoing=np.ones((4, 2)))
        jax.tree.map(np.testing.assert_array_equal, mixed, wide)
        assert score_population([library["fdr"]], mixed).dtype == np.float32

    def test_bfloat16_samples_with_float32_moments(self):
        rows = jnp.asarray(IMAGES[:, :2].reshape(30, -1, 4), jnp.bfloat16)
        moments = sample_moments(rows.astype(jnp.float32), LABELS, num_classes=3)
        parts = {"sample_labels": LABELS, "kernel": jnp.ones((2, 4), jnp.bfloat16)}
        found = Operands.build(moments=moments, samples=rows, **parts)
        assert self.dtypes(found) == {np.dtype(np.float32)}
        short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), moments)
        assert self.dtypes(Operands.build(moments=short, samples=rows, **parts)) == {np.dtype(np.float32)}

    def test_float64_in_any_array_wins_where_it_is_on(self):
        with jax.enable_x64(True):
            features = np.abs(IMAGES[:, :2]).repeat(4, axis=-1)
            assert self.dtypes(make(features=features)) == {np.dtype(np.float64)}  # the kernel has it
            found = make(features=jnp.asarray(features, jnp.bfloat16), kernel=np.ones((3, 4), np.float32))
            assert self.dtypes(found) == {np.dtype(np.float32)}

    def test_a_bfloat16_network_has_float32_operands_near_those_in_float32(self):
        half, full = (observe(Net(dtype), IMAGES, LABELS).with_gradients() for dtype in (jnp.bfloat16, None))
        assert self.dtypes(half) == {np.dtype(np.float32)}
        for name in ("l1", "mean_activation", "fisher"):
            scores = [score(metrics[name], each)["conv.0.kernel"] for each in (half, full)]
            np.testing.assert_allclose(*scores, rtol=0.05)

    def test_layers_of_two_dtypes_are_refused(self):
        with jax.enable_x64(True):
            layers = {
                "wide": make(),
                "plain": make(features=IMAGES[:, :2].repeat(4, -1), kernel=np.ones((1, 4), "f4")),
            }
            with pytest.raises(
                ValueError, match=r"layers of one dtype.* float32 .* for plain and float64 .* for wide"
            ):
                Scorer(layers)


def test_an_empty_population_has_no_scores(observed):
    assert score_population([], make()).shape == (0, 4)
    stacked = Operands.stack([make(), make()])
    assert score_population([], stacked).shape == (0, 2, 4)
    assert score_with_status([], make())[1] == []
    assert rank_population([], observed) == [] and score_functions([], observed) == []
    with pytest.raises(
        ValueError, match="one function for each stacked member, got 0 functions and 2 stacked"
    ):
        score_population([], stacked, paired=True)


class TestDuplicates:
    def test_rows_are_equal_and_in_order(self):
        texts = ["var(P) + 1", "l1", "1 + var(P)", "l1", "var(P) + 1"]
        functions = [library[text] if text in library else parse(text) for text in texts]
        scores = score_population(functions, make())
        for one, other in [(0, 4), (1, 3)]:
            np.testing.assert_array_equal(scores[one], scores[other])
        np.testing.assert_allclose(scores[0], scores[2], rtol=1e-6)
        assert not np.array_equal(scores[0], scores[1])

    def test_they_are_scored_once_and_returned_twice(self, observed):
        calls = []

        def counted(operands):
            calls.append(operands.num_channels)
            return jnp.sum(operands.filters, axis=0)

        found = score_functions([counted, library["l1"], counted, metrics["l1"]], observed)
        assert len(calls) == len(observed)
        assert found[0] is found[2] and found[1] is found[3]  # a metric is its formula
        calls.clear()
        ranked = rank_population([counted, library["l1"], counted], observed)
        assert len(calls) == len(observed) and ranked[0] is ranked[2]
