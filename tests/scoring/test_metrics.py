"""The zoo: every metric against its definition, by hand, and one contract for all of them."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from metric_definitions import DEFINITIONS, score_by_definition

from jaxprune.language.library import library
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.observer import observe
from jaxprune.observation.operands import Operands
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.metric_functions import chip, fpgm, hrank, lamp, random_numbers
from jaxprune.scoring.metrics import layer_scores, metrics, name_of, random
from jaxprune.scoring.ranking import score

LABELS = np.array([0, 0, 1, 2, 1, 0, 1, 2, 2, 0])
DEAD = 1
CHANNELS = 4
OPTIONAL = {"WO": "outgoing", "gamma": "gamma", "GW": "weight_gradient", "GX": "feature_gradient"}
OPTIONAL |= {"GW2": "squared_weight_gradient"}
BY_EXAMPLE = ("features", "feature_gradient", "labels")


def make_arrays(seed=0, dead=()):
    """Arrays of one layer whose channels differ between classes, some of them dead throughout."""
    rng = np.random.default_rng(seed)
    level = rng.standard_normal((3, 1, 1, CHANNELS))[LABELS]
    features = np.maximum(rng.standard_normal((len(LABELS), 2, 3, CHANNELS)) + level, 0)
    kernel = rng.standard_normal((3, 3, 2, CHANNELS))
    outgoing, gamma = rng.standard_normal((3, 3, CHANNELS, 5)), rng.standard_normal(CHANNELS)
    for array, axis in ((features, -1), (kernel, -1), (outgoing, -2), (gamma, -1)):
        np.moveaxis(array, axis, 0)[list(dead)] = 0
    named = {"features": features, "kernel": kernel, "outgoing": outgoing, "gamma": gamma}
    named |= {"weight_gradient": rng.standard_normal(kernel.shape)}
    named |= {"feature_gradient": rng.standard_normal(features.shape)}
    named |= {"squared_weight_gradient": rng.random(kernel.shape)}
    return {"labels": LABELS, **{name: array.astype(np.float32) for name, array in named.items()}}


def make(seed=0, dead=(), **changes):
    return Operands.from_arrays(**(make_arrays(seed, dead) | changes))


@functools.cache
def streamed():
    """The operands of one layer from streams cut in three ways, each forwards and backwards."""
    arrays = make_arrays(dead=(DEAD,))
    by_example = [arrays.pop(key) for key in ("features", "labels", "feature_gradient")]
    operands = []
    for sizes in ([10], [3, 4], [1] * 9):
        cuts = np.cumsum(sizes)
        parts = [tuple(part) for part in zip(*(np.split(a, cuts) for a in by_example), strict=True)]
        batches = [part for part in parts if len(part[1])]
        for order in (batches, batches[::-1]):
            operands.append(Operands.from_batches(order, **arrays, num_samples=30))
    return operands


def assert_close(found, expected, rtol=2e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_every_metric_has_a_definition_to_be_compared_with():
    assert set(DEFINITIONS) | {"random"} == set(metrics)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("dead", [(), (DEAD,)], ids=["alive", "dead channel"])
def test_scores_follow_the_definition(name, dead):
    arrays = make_arrays(dead=dead)
    assert_close(metrics[name](Operands.from_arrays(**arrays)), score_by_definition(name, **arrays))


@pytest.mark.parametrize("name", metrics)
class TestEveryMetric:
    def test_it_says_what_it_is(self, name):
        metric = metrics[name]
        assert metric.name == name == str(metric) == name_of(metric)
        assert len(metric.about) > 20 and len(metric.source) > 20
        assert set(metric.reads) <= set(OPERANDS) and metric.operands == set(metric.reads)
        if metric.expression is not None:
            assert metric.expression.type == () and metric.operands == metric.expression.operands
            assert metric.formula == str(metric.expression)
        else:
            assert metric.function.__doc__ or name == "random"
        mathtext = pytest.importorskip("matplotlib.mathtext")
        mathtext.MathTextParser("path").parse(f"${metric.latex}$")

    def test_it_gives_one_finite_number_per_channel_also_to_dead_ones(self, name):
        for dead in ((), (DEAD,), range(CHANNELS)):
            scores = metrics[name](make(dead=dead))
            assert scores.shape == (CHANNELS,) and scores.dtype == jnp.float32
            assert np.isfinite(scores).all()

    def test_reordering_channels_reorders_scores(self, name):
        arrays, order = make_arrays(dead=(DEAD,)), np.array([2, 0, 3, 1])
        moved = {
            key: np.take(array, order, axis=-2 if key == "outgoing" else -1) if key != "labels" else array
            for key, array in arrays.items()
        }
        expected = np.asarray(metrics[name](Operands.from_arrays(**arrays)))[order]
        assert_close(metrics[name](Operands.from_arrays(**moved)), expected)

    def test_the_order_of_examples_does_not_matter(self, name):
        arrays = make_arrays()
        order = np.random.default_rng(1).permutation(len(LABELS))
        moved = arrays | {name: arrays[name][order] for name in BY_EXAMPLE}
        assert_close(
            metrics[name](Operands.from_arrays(**moved)), metrics[name](Operands.from_arrays(**arrays)), 1e-4
        )

    def test_how_a_stream_is_cut_and_its_order_do_not_matter(self, name):
        """Where the sample holds every example; moments and averages over gradients are streamed."""
        expected = metrics[name](make(dead=(DEAD,)))
        for operands in streamed():
            assert_close(metrics[name](operands), expected, 1e-4)

    def test_jitted_equals_eager(self, name):
        operands, metric = make(), metrics[name]
        is_formula = metric.expression is not None
        eager = inspect.unwrap(compile(metric.expression)) if is_formula else metric.function
        assert_close(eager(operands), metric(operands))

    def test_stacked_members_equal_one_by_one(self, name):
        members = [make(seed) for seed in range(3)]
        together = metrics[name](Operands.stack(members))
        assert together.shape == (3, CHANNELS)
        assert_close(together, np.stack([metrics[name](member) for member in members]))

    def test_bfloat16_scores_as_the_same_numbers_in_float32(self, name):
        short = {
            key: jnp.asarray(array, jnp.bfloat16) if key != "labels" else array
            for key, array in make_arrays().items()
        }
        wide = {
            key: np.asarray(array, np.float32) if key != "labels" else array for key, array in short.items()
        }
        found, expected = (metrics[name](Operands.from_arrays(**each)) for each in (short, wide))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)

    def test_missing_operands_are_named(self, name):
        for operand, argument in OPTIONAL.items():
            if operand in metrics[name].reads:
                with pytest.raises(ValueError, match=f"operand {operand} is missing"):
                    metrics[name](make(**{argument: None}))

    def test_it_lowers_for_every_platform(self, name):
        flat, tree = jax.tree.flatten(make())
        exported = export.export(
            jax.jit(lambda *leaves: metrics[name](jax.tree.unflatten(tree, leaves))),
            platforms=("cpu", "cuda", "tpu"),
        )(*[jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in flat])
        assert exported.platforms == ("cpu", "cuda", "tpu")


class TestByHand:
    def test_random_numbers_belong_to_channels(self):
        operands = make()
        first = np.asarray(random(0)(operands))
        assert len(set(first.tolist())) == CHANNELS and (first >= 0).all() and (first < 1).all()
        np.testing.assert_array_equal(metrics["random"](operands), first)
        np.testing.assert_array_equal(random(0)(operands.take([2, 0])), first[[2, 0]])
        assert not np.isin(random(1)(operands), first).any()
        assert not np.isin(random(0)(make(1)), first).any()
        assert random(1) is random(1) and random(1).name == "random(1)"

    def test_equal_channels_draw_equal_numbers_and_flipped_signs_do_not(self):
        kernel = np.array([[1.0, 1.0, -1.0, 2.0], [3.0, 3.0, -3.0, 4.0]], np.float32)
        scores = random_numbers(7)(
            make(kernel=kernel, outgoing=None, weight_gradient=None, squared_weight_gradient=None)
        ).tolist()
        assert scores[0] == scores[1] and len({*scores}) == 3

    def test_random_numbers_are_uniform(self):
        kernel = np.random.default_rng(0).standard_normal((3, 2000))
        ops = Operands.from_arrays(features=np.ones((2, 2000)), labels=[0, 1], kernel=kernel)
        scores = np.sort(random_numbers(0)(ops))
        assert np.abs(scores - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / np.sqrt(
            2000
        )  # 1 % of the KS test

    @pytest.mark.parametrize("seed", [-1, 2**32])
    def test_seeds_out_of_range_are_refused(self, seed):
        with pytest.raises(ValueError, match=rf"random needs a seed in 0 .. 2\*\*32 - 1, got {seed}"):
            random(seed)

    def test_fpgm_adds_distances_and_not_squares(self):
        """Filters (0, 0), (3, 4), (0, 1): distances 5, 1 and sqrt(18)."""
        ops = Operands.from_arrays(features=np.eye(3), labels=[0, 1, 1], kernel=[[0, 3, 0], [0, 4, 1]])
        np.testing.assert_allclose(fpgm(ops), [6, 5 + 18**0.5, 1 + 18**0.5], rtol=1e-6)
        np.testing.assert_allclose(fpgm(ops.take([1])), [5 + 18**0.5], rtol=1e-6)

    def test_lamp_counts_equal_norms_together(self):
        """Squares 1, 4, 4, 9: 1/18, 4/17 twice, 9/9; alone after `take`, still in the same layer."""
        ops = Operands.from_arrays(features=np.eye(4), labels=[0, 1, 1, 0], kernel=[[1, 2, -2, 3]])
        np.testing.assert_allclose(lamp(ops), [1 / 18, 4 / 17, 4 / 17, 1], rtol=1e-6)
        np.testing.assert_allclose(lamp(ops.take([2])), [4 / 17], rtol=1e-6)

    def test_hrank_of_a_dense_layer_says_whether_it_is_alive(self):
        features = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        ops = Operands.from_arrays(features=features, labels=[0, 0, 1, 1], kernel=np.eye(2))
        assert hrank(ops).tolist() == [0.75, 0.0]

    def test_chip_of_more_channels_than_positions(self):
        """Rows (3, 0), (0, 1), (0, 1): singular values 3, sqrt 2; without the first sqrt 2, without another 3, 1."""
        maps = np.repeat(np.array([[[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]]), 2, axis=0)
        ops = Operands.from_arrays(features=maps, labels=[0, 1], kernel=np.eye(3))
        np.testing.assert_allclose(chip(ops), [3, 2**0.5 - 1, 2**0.5 - 1], rtol=1e-5)

    def test_chip_keeps_its_digits_where_channels_differ_in_scale(self):
        """Against float64 singular values with and without each row: dead, repeated and tiny channels."""
        rng = np.random.default_rng(3)
        maps = np.maximum(rng.standard_normal((2, 5, 6, 40)), 0).astype(np.float32)
        maps[..., 0], maps[..., 1], maps[..., 2] = 0, maps[..., 3], 1e-4 * maps[..., 2]
        arrays = {"labels": np.array([0, 1]), "features": maps, "gamma": np.ones(40)}
        weights = {"kernel": np.ones((1, 40)), "outgoing": np.ones((40, 1))}
        gradients = {"weight_gradient": np.ones((1, 40)), "feature_gradient": np.ones(maps.shape)}
        gradients["squared_weight_gradient"] = np.ones((1, 40))
        expected = score_by_definition("chip", **arrays, **weights, **gradients)
        found = chip(Operands.from_arrays(**arrays, kernel=weights["kernel"]))
        norm = np.linalg.svd(maps.reshape(2, 30, 40), compute_uv=False).sum(-1).max()
        assert np.abs(found - expected).max() < 1e-6 * norm
        alive = expected > 1e-3
        np.testing.assert_allclose(found[alive], expected[alive], rtol=1e-4)

    def test_gradient_metrics_of_one_channel(self):
        """X = (1, 2), (3, 1), gradients (2, -1), (-1, 1): products (2, -2), (-3, 1); w = 1, 3, g = 2, -1, g^2 5, 2."""
        ops = Operands.from_arrays(
            features=np.array([[1.0, 2.0], [3.0, 1.0]])[:, :, None],
            labels=[0, 1],
            kernel=[[1.0], [3.0]],
            weight_gradient=[[2.0], [-1.0]],
            feature_gradient=np.array([[2.0, -1.0], [-1.0, 1.0]])[:, :, None],
            squared_weight_gradient=[[5.0], [2.0]],
        )
        names = ("taylor", "taylor_activations", "fisher", "obd", "obd_activations")
        found = [float(metrics[name](ops)[0]) for name in names]
        np.testing.assert_allclose(found, [1, 0.5, 2, 11.5, 4.5], rtol=1e-6)

    def test_wanda_thinet_and_flap_of_one_channel(self):
        """X = 1, 3: mean square 5, variance 1; consumers -1 and 2."""
        ops = Operands.from_arrays(
            features=[[1.0], [3.0]], labels=[0, 1], kernel=[[1.0]], outgoing=[[-1.0, 2.0]]
        )
        found = [float(metrics[name](ops)[0]) for name in ("wanda", "thinet", "flap")]
        np.testing.assert_allclose(found, [3 * 5**0.5, 25, 5], rtol=1e-6)


class Net(nnx.Module):
    """Two convolutions with batch norm; every layer has every operand."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        return self.head(nnx.relu(self.norm2(self.conv2(x))).mean((1, 2)))


@pytest.fixture(scope="module")
def observed():
    """A network on the same 24 images: all at once, in two ways of splitting, in another order, with dead channels."""
    net, rng = Net(nnx.Rngs(0)), np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = (rng.standard_normal((24, 8, 8, 1)) + labels[:, None, None, None]).astype(np.float32)
    order = rng.permutation(24)
    dead = Net(nnx.Rngs(0))
    for value in (dead.conv1.kernel, dead.conv1.bias, dead.norm1.scale, dead.conv2.kernel, dead.norm2.scale):
        value[...] = value[...].at[..., DEAD].set(0.0)
    return {
        "whole": observe(net, images, labels),
        "dead": observe(dead, images, labels),
        "pooled": observe(net, images, labels, max_positions=4),
        "shuffled": observe(net, images[order], labels[order]),
        "batches of 5": observe(net, images, labels, num_samples=12, batch_size=5),
        "batches of 24": observe(net, images, labels, num_samples=12, batch_size=24),
    }


READS_SAMPLE = {"di", "mmd", "hsic", "hrank", "chip", "obd_activations"}


@pytest.mark.parametrize("name", metrics)
class TestOnANetwork:
    def test_the_order_of_calibration_images_does_not_matter(self, name, observed):
        """Where the sample holds every image; a smaller one holds the first of each class."""
        found, expected = (score(metrics[name], observed[way]) for way in ("shuffled", "whole"))
        assert list(found) == ["conv1.kernel", "conv2.kernel"]
        for group in expected:
            assert_close(found[group], expected[group], 2e-4)

    def test_how_the_calibration_set_is_split_does_not_matter(self, name, observed):
        """Moments are of all images whatever the sample; functions of the sample see the same one."""
        found, expected = (score(metrics[name], observed[way]) for way in ("batches of 5", "batches of 24"))
        for group in expected:
            assert_close(found[group], expected[group], 2e-4)
            if name not in READS_SAMPLE:
                assert_close(found[group], score(metrics[name], observed["whole"])[group], 2e-4)

    def test_a_dead_channel_of_a_layer_has_a_finite_score(self, name, observed):
        alive, dead = (score(metrics[name], observed[way]) for way in ("whole", "dead"))
        for group, scores in dead.items():
            assert np.isfinite(scores).all()
            assert name == "random" or scores[DEAD] != alive[group][DEAD]

    def test_it_reads_the_maps_of_positions_that_were_asked_for(self, name, observed):
        """Only what reads the sample may change when its maps are pooled."""
        pooled = observed["pooled"]
        assert pooled["conv1.kernel"].space == (2, 2) and observed["whole"]["conv1.kernel"].space == (4, 4)
        found, expected = (score(metrics[name], each)["conv1.kernel"] for each in (pooled, observed["whole"]))
        if name in READS_SAMPLE:
            assert not np.allclose(found, expected, rtol=1e-3)
        else:
            assert_close(found, expected, 2e-4)


@pytest.mark.parametrize("name", metrics)
def test_every_metric_makes_a_smaller_network(name, observed):
    net, example = Net(nnx.Rngs(0)), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    scores = score(metrics[name], observed["whole"])
    made = plan(net, scores, example, kept_fraction=0.5)
    assert made.kept_counts == {"conv1.kernel": 2, "conv2.kernel": 3}
    for group, kept in made.kept.items():
        assert scores[group][list(kept)].min() >= np.delete(scores[group], list(kept)).max()
    if name == "chip":
        assert slim(net, made)(jnp.zeros((1, 8, 8, 1))).shape == (1, 3)


def test_fisher_is_of_all_examples_and_each_ones_own(observed):
    """From the gradients of the sample that holds everything; the mean gradient squared would be far less."""
    full = observed["whole"].with_gradients()["conv1.kernel"]
    effects = np.sum(np.asarray(full.samples * full.gradients.samples, np.float64), axis=1)
    streamed = observed["batches of 5"].with_gradients()["conv1.kernel"]
    np.testing.assert_allclose(metrics["fisher"](streamed), np.mean(effects**2, axis=0), rtol=1e-4)
    assert (np.mean(effects, axis=0) ** 2 < 0.9 * np.mean(effects**2, axis=0)).all()


def test_hrank_and_chip_read_whole_maps_when_asked():
    """Maps of 12 x 12: pooled to 64 positions by default, whole with `max_positions`, and then the paper's."""
    net = Net(nnx.Rngs(0))
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((6, 24, 24, 1)).astype(np.float32), np.arange(6) % 2
    pooled, whole = (
        observe(net, images, labels, **each)["conv1.kernel"] for each in ({}, {"max_positions": 144})
    )
    assert (pooled.space, whole.space) == ((6, 6), (12, 12))
    view = nnx.view(net, use_running_average=True)
    maps = np.asarray(
        nnx.max_pool(nnx.relu(view.norm1(view.conv1(jnp.asarray(images)))), (2, 2), (2, 2)), np.float64
    )
    ranks = np.linalg.matrix_rank(np.moveaxis(maps, -1, 1).astype(np.float32)).mean(0)
    np.testing.assert_allclose(hrank(whole), ranks)
    assert (ranks > 6).all() and (np.asarray(hrank(pooled)) <= 6).all()
    rows = np.moveaxis(maps, -1, 1).reshape(6, 4, -1)
    norms = np.linalg.svd(rows, compute_uv=False).sum(-1)
    without = [np.linalg.svd(np.delete(rows, c, axis=1), compute_uv=False).sum(-1) for c in range(4)]
    np.testing.assert_allclose(chip(whole), (norms - np.array(without)).mean(1), rtol=1e-4)
    assert not np.allclose(chip(pooled), chip(whole), rtol=0.05)


def test_apoz_counts_all_images_at_all_positions(observed):
    exact = 1 - np.mean(np.asarray(observed["whole"]["conv1.kernel"].samples) == 0, axis=(0, 1))
    np.testing.assert_allclose(metrics["apoz"](observed["batches of 5"]["conv1.kernel"]), exact, rtol=1e-6)


def test_published_functions_are_all_in_the_zoo():
    assert {name: metrics[name].expression for name in library} == dict(library)


def test_any_function_scores_layers_and_what_it_gives_is_checked():
    members = [make(seed) for seed in range(2)]
    found = layer_scores(lambda ops: np.asarray(ops.filters).max(0), Operands.stack(members))
    np.testing.assert_array_equal(found, [member.filters.max(0) for member in members])
    with pytest.raises(
        ValueError, match=r"<lambda> must give one number per channel, shape \(4,\), got float32"
    ):
        layer_scores(lambda ops: ops.filters, members[0])
    with pytest.raises(ValueError, match=r"one number per channel, .* got bool of shape \(4,\)"):
        layer_scores(lambda ops: ops.filters[0] > 0, members[0])
    with pytest.raises(TypeError, match="needs the Operands of one layer, got dict"):
        metrics["lamp"]({})
