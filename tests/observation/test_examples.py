"""Observing without labels, with a loss that reads the batch, with several inputs, and batches from an iterable."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.nets.inputs import Inputs
from jaxprune.observation.examples import first_batch, gather_examples, is_stream
from jaxprune.observation.observer import observe
from jaxprune.pruning.sequential import sequential_plan
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.metrics import metrics
from jaxprune.scoring.ranking import rank_population, score
from jaxprune.scoring.scorer import Scorer

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 9, (20, 5)).astype(np.int32)
MASK = (RNG.random((20, 5)) > 0.2).astype(np.float32)
X = RNG.normal(size=(20, 6)).astype(np.float32)
LABELS = np.arange(20) % 4
SMALL = {"num_samples": 8, "batch_size": 8}


class Tokens(nnx.Module):
    """A small language model that returns a dict."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.head = nnx.Embed(9, 6, rngs=rngs), nnx.Linear(6, 9, rngs=rngs)
        self.up, self.down = nnx.Linear(6, 7, rngs=rngs), nnx.Linear(7, 6, rngs=rngs)

    def __call__(self, tokens, *, mask):
        x = self.embed(tokens)
        x = x + self.down(nnx.gelu(self.up(x)))
        return {"logits": self.head(x) * mask[..., None], "auxiliary": 0.0}


class Dense(nnx.Module):
    """A dense network without any norm."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def batch_of(rows=slice(None)):
    return Inputs(TOKENS[rows], mask=MASK[rows])


BATCHES = [batch_of(slice(start, start + 8)) for start in (0, 8, 16)]


def next_token(outputs, batch):
    (tokens,) = batch.args
    logits = outputs["logits"][:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(-1)


def next_given(outputs, targets):
    logits = outputs["logits"][:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets["next"]).mean(-1)


FORMULAS = [
    "sum(abs(WI))",
    "mean(X)",
    "var(X)*NX",
    "sum(abs(GW))",
    "mean(abs(X*GX))",
    "sum(GW2)",
    "sum(square(mX))",
]


@pytest.fixture(scope="module")
def observed():
    return observe(Tokens(), batch_of(), loss=next_token, **SMALL)


@pytest.fixture(scope="module")
def values(observed):
    return {text: score(parse(text), observed) for text in FORMULAS}


def test_positions_of_a_sequence_count_as_d(observed):
    assert observed["up.kernel"].samples.shape == (8, 5, 7)
    assert observed["up.kernel"].num_classes == 1 and not observed["up.kernel"].has_classes
    assert observed["up.kernel"].moments.count.tolist() == [20.0]


def test_moments_are_those_of_all_examples(observed):
    net = Tokens()
    hidden = np.asarray(nnx.gelu(net.up(net.embed(TOKENS))), np.float64)
    moments = observed["up.kernel"].moments
    np.testing.assert_allclose(moments.pivot + moments.offset[0], hidden.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.m2[0] / 20, hidden.var(0), atol=1e-6)


def test_gradients_are_those_of_the_loss_that_reads_the_batch(observed):
    def mean_loss(kernel):
        net = Tokens()
        net.up.kernel[...] = kernel
        return next_token(net(TOKENS, mask=MASK), batch_of()).mean()

    expected = jax.jit(jax.grad(mean_loss))(Tokens().up.kernel[...])
    np.testing.assert_allclose(observed.with_gradients()["up.kernel"].gradients.weights, expected, atol=1e-6)


def test_targets_of_any_form_give_the_same_gradients(values):
    given = observe(Tokens(), batch_of(), {"next": TOKENS[:, 1:]}, loss=next_given, **SMALL)
    for text in ("sum(abs(GW))", "sum(GW2)"):
        for name, scores in score(parse(text), given).items():
            np.testing.assert_allclose(scores, values[text][name], rtol=1e-5)


@pytest.mark.parametrize("name", ["P", "Q", "mP", "mQ", "N", "NQ"])
def test_class_operands_are_refused_by_name(observed, name):
    f = parse(f"mean({name})" if name not in ("N", "NQ") else f"{name}*mean(X)")
    with pytest.raises(
        ValueError, match=f"operand {name}, which .* the examples have no classes, because observe"
    ):
        score(f, observed)
    with pytest.raises(ValueError, match=f"operand {name} is missing.*give labels to observe"):
        compile(f)(observed["up.kernel"])


def test_a_population_keeps_what_needs_no_classes(observed):
    fdr, mean = rank_population([library["fdr"], parse("mean(X)")], observed)
    assert "the examples have no classes" in str(fdr) and set(mean.scores) == set(observed.groups)
    assert score(metrics["apoz"], observed)["up.kernel"].shape == (7,)


@pytest.mark.parametrize("text", ["mean(X)", "sum(square(mX))", "sum(matmul(transpose(X), X))"])
def test_engines_agree_without_classes(observed, text):
    layer = observed["up.kernel"]
    expected = compile(parse(text))(layer)
    for backend in ("numpy", "device"):
        found = Scorer(layer, backend=backend).run([parse(text)])[""]
        np.testing.assert_allclose(found.scores[0, 0], expected, rtol=1e-5)


def test_labels_change_nothing_for_functions_without_classes():
    with_labels, without = (observe(Dense(), X, labels) for labels in (LABELS, None))
    for text in ("mean(X)", "var(X)", "sum(square(mX))"):
        pair = (score(parse(text), each)["first.kernel"] for each in (with_labels, without))
        np.testing.assert_allclose(*pair, rtol=1e-5)


class Reread:
    """Batches that are made anew for every pass."""

    def __init__(self, make):
        self.make, self.passes = make, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.make(self.passes))


def test_batches_of_an_iterable_give_what_all_of_them_in_memory_give(values):
    streamed = observe(Tokens(), Reread(lambda number: BATCHES), loss=next_token, **SMALL)
    for text, expected in values.items():
        for name, scores in score(parse(text), streamed).items():
            np.testing.assert_allclose(scores, expected[name], rtol=1e-5)


def test_batches_with_labels_are_sampled_by_class():
    pairs = [(X[start : start + 8], LABELS[start : start + 8]) for start in (0, 8, 16)]
    stored, streamed = observe(Dense(), X, LABELS, **SMALL), observe(Dense(), pairs, num_samples=8)
    layers = [each["first.kernel"] for each in (stored, streamed)]
    assert layers[0].class_counts == layers[1].class_counts == (2, 2, 2, 2)
    np.testing.assert_allclose(layers[1].samples, layers[0].samples, atol=1e-6)
    for f in (library["fdr"], own_seeds["taylor"]):
        pair = (score(f, each)["first.kernel"] for each in (stored, streamed))
        np.testing.assert_allclose(*pair, rtol=1e-4)


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, "another type"

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_data_loaders_of_other_libraries_are_read():
    pairs = [[Foreign(X[start : start + 10]), Foreign(LABELS[start : start + 10])] for start in (0, 10)]
    examples = gather_examples(Dense(), Reread(lambda number: pairs), None, has_loss=False)
    (array,), labels = examples.take(np.array([3, 15]))
    np.testing.assert_array_equal(array, X[[3, 15]])
    assert labels.tolist() == LABELS[[3, 15]].tolist()


def test_layers_are_planned_one_after_another_without_labels():
    chosen = sequential_plan(parse("mean(X)"), Tokens(), BATCHES, None, {"up.kernel": 3}, **SMALL)
    assert chosen.kept_counts["up.kernel"] == 3 and chosen.inputs is not None


SPLIT = """
import jax
import numpy as np
from test_examples import LABELS, SMALL, X, Dense

from jaxprune.language.parsing import parse
from jaxprune.observation.examples import gather_examples
from jaxprune.observation.observer import observe
from jaxprune.scoring.ranking import score

place = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data"))
placed = jax.device_put(X, place)
examples = gather_examples(Dense(), placed, None, has_loss=False)
assert {len(batch.arrays[0].sharding.device_set) for batch in examples.batches(8)} == {2}
expected = score(parse("mean(X)"), observe(Dense(), X, **SMALL))["first.kernel"]
pieces = [jax.device_put(X[start : start + 10], place) for start in (0, 10)]
for images in (placed, pieces):
    found = score(parse("mean(X)"), observe(Dense(), images, **SMALL))["first.kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
print("done")
"""


def test_arrays_that_are_split_over_devices_stay_split(root):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    paths = os.pathsep.join(map(str, (root, root / "tests" / "observation")))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-c", SPLIT], env=env, capture_output=True, text=True, check=False
    )
    assert result.stdout == "done\n", result.stderr


def test_a_list_is_batches_only_without_labels():
    assert is_stream([X]) and not is_stream([X], LABELS) and not is_stream({"x": X}) and not is_stream(X)
    assert first_batch([(X, LABELS)]) is X and first_batch(X) is X
    assert first_batch(list(X), LABELS).shape == (20, 6)


SHAPES = r"batch 1: needs inputs of shapes 0 \(8, 5\) .* as batch 0, got inputs of shapes 0 \(2, 4\)"
BAD = {
    "once": (
        Tokens,
        lambda: {"images": iter(BATCHES)},
        "several times, got list_iterator, which gives them once",
    ),
    "empty": (Tokens, lambda: {"images": []}, "needs at least one batch, got none"),
    "shapes": (Tokens, lambda: {"images": [BATCHES[0], Inputs(TOKENS[:2, :4], mask=MASK[:2, :4])]}, SHAPES),
    "others": (
        Dense,
        lambda: {"images": Reread(lambda number: [X[number : number + 8]])},
        "same batches in the same order each time, but in a later pass batch 0 differs",
    ),
    "fewer": (
        Dense,
        lambda: {"images": Reread(lambda number: [X[:8], X[8:]][: 3 - number])},
        "in a later pass 1 of 2 batches came",
    ),
    "labels beside": (
        Dense,
        lambda: {"images": Reread(lambda number: [X]), "labels": LABELS},
        r"needs labels in the batches, as pairs \(batch, labels\), got them beside Reread",
    ),
    "no batch": (
        Dense,
        lambda: {"images": ["text"]},
        r"batch 0: needs a batch, or \(batch, labels\), got str",
    ),
    "some labels": (Dense, lambda: {"images": [(X[:8], LABELS[:8]), X[8:]]}, "with every batch or with none"),
    "labels of a form": (
        Dense,
        lambda: {"images": X, "labels": {"a": LABELS}},
        r"needs labels \[N\], got dict",
    ),
    "too few targets": (
        Dense,
        lambda: {"images": X, "labels": {"a": LABELS[:3]}, "loss": next_given},
        r"an entry for each of 20 examples, got shapes \[\(3,\)\]",
    ),
    "one example": (Dense, lambda: {"images": X[:1]}, "needs at least two examples, got 1"),
    "coarse classes": (
        Dense,
        lambda: {"images": X, "classes": 2},
        r"classes needs labels \[N\] to make coarser",
    ),
    "nan": (
        Tokens,
        lambda: {"images": Inputs(TOKENS, mask=MASK * np.nan)},
        "input mask: needs numbers, got 100 NaN",
    ),
    "one axis": (Dense, lambda: {"images": X[:, 0]}, r"at least two axes, got shape \(20,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_examples_are_refused(case):
    network, arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        observe(network(), **arguments())


def test_gradients_without_labels_need_a_loss():
    observed = observe(Dense(), X)
    with pytest.raises(ValueError, match=r"needs? labels \[N\] or a loss of your own, got neither"):
        observed.with_gradients()
    with pytest.raises(ValueError, match="a loss that gives one number per example"):
        observe(Dense(), X, loss=lambda outputs, x: jnp.mean(outputs)).with_gradients()


def test_infinite_masks_are_allowed_beside_finite_inputs():
    infinite = np.where(MASK > 0, 0, -np.inf).astype(np.float32)
    examples = gather_examples(Tokens(), Inputs(TOKENS, mask=infinite), None, has_loss=False)
    assert np.isinf(examples.take(np.arange(20))[0][1]).any()
