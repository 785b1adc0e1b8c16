"""Operands from batches: whatever the stream is cut into, and errors that name the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from class_moments import class_sets
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation import streaming
from jaxprune.observation.observer import observe
from jaxprune.observation.operands import Operands
from jaxprune.observation.sample import pool_positions
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population

CHANNELS = 3
KERNEL = np.random.default_rng(5).standard_normal((3, 3, 2, CHANNELS)).astype(np.float32)


def examples(seed=0, count=60, space=(4, 4), num_classes=3, level=0.0):
    """Features, labels and feature gradients; every class comes, channel 0 is constant."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes)
    features = (
        level + rng.standard_normal((count, *space, CHANNELS)) + labels.reshape(-1, *[1] * len(space), 1)
    )
    features[..., 0] = 0.3
    return features.astype(np.float32), labels, rng.standard_normal(features.shape).astype(np.float32)


def cut(arrays, sizes):
    """The arrays in batches of these sizes, the last of what is left."""
    places = [0, *np.cumsum(sizes)]
    places = [place for place in places if place < len(arrays[0])] + [len(arrays[0])]
    return [
        tuple(array[start:stop] for array in arrays)
        for start, stop in zip(places[:-1], places[1:], strict=True)
    ]


def streamed(batches, **options):
    return Operands.from_batches(batches, **({"kernel": KERNEL} | options))


def statistics(moments):
    """Per set: means by position and over all entries, variances over all entries and by position."""
    return {
        name: (
            found.mean,
            found.entry_mean,
            found.entry_variance,
            found.m2 / found.num_examples[:, None, None],
        )
        for name, found in class_sets(moments).items()
    }


def assert_same_moments(found, expected):
    """As the docstring of `from_batches` states it."""
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.active, expected.active, rtol=1e-6)
    mine, theirs = statistics(found), statistics(expected)
    variance = float(theirs["X"][2].max())
    largest = float(np.abs(theirs["X"][0]).max()) + variance**0.5
    for name, sets in mine.items():
        for one, same, scale in zip(sets, theirs[name], (largest, largest, variance, variance), strict=True):
            np.testing.assert_allclose(one, same, rtol=0, atol=scale * (1e-6 if scale is largest else 1e-5))


def test_three_examples_by_hand():
    batches = [([[1.0, 0.0]], ["b"]), ([[3.0, 0.0], [8.0, 2.0]], ["b", "a"])]
    ops = Operands.from_batches(iter(batches), kernel=np.eye(2), num_samples=2)
    sets = class_sets(ops.moments)
    assert sets["P"].mean[:, 0, 0].tolist() == [8.0, 2.0]
    assert sets["P"].m2[:, 0, 0].tolist() == [0.0, 2.0]
    assert ops.moments.active.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert ops.samples[:, 0].tolist() == [[8.0, 2.0], [1.0, 0.0]]  # the first of each class, sorted
    assert ops.class_counts == (1, 1) and not ops.sample_is_full and ops.space == ()


@pytest.mark.parametrize("sizes", [[60], [20, 20], [7] * 8, [1] * 59])
def test_what_the_sample_holds_whole_equals_from_arrays(sizes):
    arrays = examples()
    optional = {"outgoing": np.ones((CHANNELS, 5)), "gamma": np.arange(3.0), "beta": np.arange(3)}
    expected = Operands.from_arrays(
        features=arrays[0], labels=arrays[1], feature_gradient=arrays[2], kernel=KERNEL, **optional
    )
    found = streamed(cut(arrays, sizes), num_samples=60, **optional)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert found.sample_is_full and found.moments is found.sample_moments and found.space == (4, 4)
    assert_same_moments(found.moments, expected.moments)
    for name in ("samples", "filters", "outgoing", "gamma", "beta"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.gradients.samples, expected.gradients.samples)
    np.testing.assert_allclose(found.gradients.fisher, expected.gradients.fisher, rtol=1e-5)
    np.testing.assert_allclose(found.gradients.first_order, expected.gradients.first_order, rtol=1e-5)
    if sizes == [60]:  # room for classes yet to come changes the order of sums: here all are known
        known = streamed(
            cut(arrays, sizes), num_samples=60, num_classes=len(expected.class_counts), **optional
        )
        jax.tree.map(np.testing.assert_array_equal, known.moments, expected.moments)


@given(
    seed=st.integers(0, 3),
    sizes=st.lists(st.sampled_from([1, 16, 40]), max_size=8),  # each first size compiles
    num_samples=st.sampled_from([1, 5, 7, 60, 61]),  # each new size compiles
    max_positions=st.sampled_from([1, 4, 16]),
    num_classes=st.sampled_from([None, 5]),
    level=st.sampled_from([0.0, 100.0, -1e4]),
)
def test_any_split_equals_one_batch(seed, sizes, num_samples, max_positions, num_classes, level):
    arrays = examples(seed, num_classes=5, level=level)
    options = {"num_samples": num_samples, "max_positions": max_positions, "num_classes": num_classes}
    whole, found = streamed([arrays], **options), streamed(cut(arrays, sizes), **options)
    assert jax.tree.structure(found) == jax.tree.structure(whole)
    assert_same_moments(found.moments, whole.moments)
    np.testing.assert_array_equal(found.samples, whole.samples)
    np.testing.assert_array_equal(found.gradients.samples, whole.gradients.samples)
    np.testing.assert_allclose(found.gradients.fisher, whole.gradients.fisher, rtol=1e-4)


@given(seed=st.integers(0, 50), size=st.sampled_from([1, 7, 16, 30]), level=st.sampled_from([0.0, -1e4]))
def test_the_order_of_batches_changes_moments_by_rounding_only(seed, size, level):
    batches = cut(examples(level=level), [size] * 60)
    order = np.random.default_rng(seed).permutation(len(batches))
    found = streamed([batches[i] for i in order], num_samples=12)
    assert_same_moments(found.moments, streamed(batches, num_samples=12).moments)
    assert not found.moments.m2[..., 0].any()  # a constant channel stays exactly constant


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda found: len(set(found)) > 1),
    sizes=st.lists(st.sampled_from([1, 2, 5]), max_size=6),
    num_samples=st.integers(1, 30),
)
def test_the_sample_is_the_first_of_each_class(labels, sizes, num_samples):
    """Also where classes appear late or seldom, and there are more classes than samples."""
    features = np.arange(float(len(labels)))[:, None]
    found = Operands.from_batches(
        cut((features, np.array(labels)), sizes), kernel=np.ones((1, 1)), num_samples=num_samples
    )
    share = max(1, num_samples // len(set(labels)))
    first = [np.flatnonzero(np.array(labels) == k)[:share] for k in sorted(set(labels))]
    assert found.samples.ravel().tolist() == np.concatenate(first).tolist()
    assert found.class_counts == tuple(map(len, first))
    assert found.moments.count.tolist() == [labels.count(k) for k in sorted(set(labels))]
    assert found.sample_is_full == (len(found.samples) == len(labels))


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.head = (
            nnx.Conv(1, CHANNELS, (3, 3), rngs=rngs),
            nnx.Linear(30 * CHANNELS, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).reshape(len(x), -1))


def test_it_holds_what_observe_holds():
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((30, 6, 5, 1)).astype(np.float32), rng.permutation(np.arange(30) % 3)
    observed = observe(Net(), images, labels, num_samples=12, max_positions=9, batch_size=8)
    expected = observed.with_gradients()["conv.kernel"]
    every = observe(Net(), images, labels, max_positions=30).with_gradients()["conv.kernel"]
    back = np.argsort(np.argsort(labels, kind="stable"))  # the whole sample is sorted by class
    maps = [
        np.asarray(array).reshape(30, 6, 5, -1)[back] for array in (every.samples, every.gradients.samples)
    ]
    found = Operands.from_batches(
        cut((maps[0], labels, maps[1]), [8] * 4),
        kernel=np.asarray(expected.filters),
        weight_gradient=np.asarray(expected.gradients.weights),
        num_samples=12,
        max_positions=9,
    )
    assert (found.space, found.class_counts) == (expected.space, expected.class_counts) == ((3, 3), (4, 4, 4))
    assert_same_moments(found.moments, expected.moments)
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, (found.samples, found.gradients), (expected.samples, expected.gradients))
    functions = [parse(text) for text in ("var(P)/(var(Q) + 1)", "mean(rbf(P, Q, 1))")]
    np.testing.assert_allclose(
        score_population(functions, found), score_population(functions, expected), rtol=1e-4
    )


def test_scores_are_those_of_all_examples_and_of_the_sample():
    features, labels, _ = examples()
    found = streamed(cut((features, labels), [16] * 3), num_samples=9, max_positions=4)
    moments = Operands.from_arrays(features=features, labels=labels, kernel=KERNEL)
    rows = np.concatenate([np.flatnonzero(labels == k)[:3] for k in range(3)])
    pooled = np.asarray(pool_positions(jnp.asarray(features), 4))[rows]
    sample = Operands.from_arrays(features=pooled, labels=labels[rows], kernel=KERNEL)
    for text, expected in [("var(P) + mean(mX*mQ)", moments), ("mean(abs(P)) + N", sample)]:
        np.testing.assert_allclose(compile(parse(text))(found), compile(parse(text))(expected), rtol=1e-5)


def test_batches_of_one_size_and_a_smaller_last_one_compile_once():
    arrays = examples(count=70, space=(3, 2))
    streamed(cut(arrays, [32, 32]), num_samples=4, num_classes=3)
    before = streaming._add._cache_size()
    streamed(cut(examples(1, count=90, space=(3, 2)), [32] * 3), num_samples=4, num_classes=3)
    assert streaming._add._cache_size() == before


def test_bfloat16_batches_and_float32_weights_give_float32():
    features, labels, _ = examples()
    short = jnp.asarray(features, jnp.bfloat16)
    found = streamed([(short[:31], labels[:31]), (short[31:], labels[31:])], num_samples=60)
    wide = streamed([(np.asarray(short, np.float32), labels)], num_samples=60)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found.samples, wide.samples)
    assert_same_moments(found.moments, wide.moments)


def test_float64_stays_where_it_is_on():
    features, labels, _ = examples()
    with jax.enable_x64(True):
        found = streamed([(features.astype(np.float64), labels)])
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float64)}
        mixed = streamed([(features, labels)], kernel=KERNEL.astype(np.float64))
        assert mixed.samples.dtype == mixed.moments.offset.dtype == np.float64


@pytest.fixture
def by_channel():
    register_operand("pulse_test", type=(), read=lambda ops: ops.extras.get("pulse_test"))
    register_operand("trace_test", type=("NX",), read=lambda ops: ops.extras.get("trace_test"))
    yield
    del OPERANDS["pulse_test"], OPERANDS["trace_test"]


def test_extras_without_examples_are_taken(by_channel):
    batches = cut(examples(), [20])
    found = streamed(batches, extras={"pulse_test": [1.0, 2.0, 3.0]})
    assert compile(parse("2*pulse_test"))(found).tolist() == [2.0, 4.0, 6.0]
    with pytest.raises(
        ValueError, match=r"extras of from_batches must have no axis of examples, got trace_test"
    ):
        streamed(batches, extras={"trace_test": np.ones((3, 60))})
    with pytest.raises(ValueError, match="extras must be registered operands, got 'nonsense'"):
        streamed(batches, extras={"nonsense": np.ones(3)})


def changed(number, place, change):
    """Three batches of two arrays, one of them changed."""
    batches = [list(batch) for batch in cut(examples()[:2], [20, 20])]
    batches[number][place] = change(batches[number][place])
    return [tuple(batch) for batch in batches]


BAD = {
    "nothing": (
        [],
        {},
        r"from_batches needs at least one batch of \(features, labels\), got none.*make it anew",
    ),
    "no tuple": (
        examples()[:2],
        {},
        r"batch 0: needs \(features, labels\).*got ndarray.*\[\(features, labels\)\] for one batch",
    ),
    "four things": ([(1, 2, 3, 4)], {}, r"batch 0: needs \(features, labels\) or .*got 4 things"),
    "other space": (
        changed(1, 0, lambda x: x[:, :3]),
        {},
        r"batch 1: features must be \[N, 4, 4, 3\] as in batch 0, got shape \(20, 3, 4, 3\). Observe one layer",
    ),
    "other channels": (
        changed(2, 0, lambda x: x[..., :2]),
        {},
        r"batch 2: features must be \[N, 4, 4, 3\] as in batch 0, got shape \(20, 4, 4, 2\)",
    ),
    "other dtype": (
        changed(1, 0, lambda x: x.astype(np.float16)),
        {},
        "batch 1: features must be float32 as in batch 0, got float16. Cast all batches to one dtype",
    ),
    "labels of another length": (
        changed(2, 1, lambda y: y[:-1]),
        {},
        r"batch 2: needs one label for each of 20 examples, got labels of shape \(19,\)",
    ),
    "one-hot labels": (
        changed(0, 1, lambda y: np.eye(3)[y]),
        {},
        r"batch 0: needs one label for each of 20 examples, got labels of shape \(20, 3\)",
    ),
    "float labels": (
        changed(1, 1, lambda y: y + 0.5),
        {},
        "batch 1: labels must be whole numbers or strings",
    ),
    "words and numbers": (
        changed(1, 1, lambda y: y.astype(str)),
        {},
        r"batch 1: labels must be of one kind, got \['0', '1', '2'\] after \[0, 1, 2\]",
    ),
    "unknown class": (
        changed(1, 1, lambda y: np.where(y == 2, 7, y)),
        {"num_classes": 3},
        r"batch 1: labels must be class ids 0 .. 2, as num_classes says, got \[7\].*leave num_classes out",
    ),
    "named class": (
        changed(0, 1, lambda y: y.astype(str)),
        {"num_classes": 3},
        r"batch 0: labels must be class ids 0 .. 2, as num_classes says, got \['0', '1', '2'\]",
    ),
    "class without examples": (
        changed(0, 1, lambda y: y),
        {"num_classes": 5},
        r"each of the 5 classes needs an example, but \[3, 4\] have none. Add examples of these classes",
    ),
    "one class": (
        [(examples()[0], np.full(60, 4))] * 2,
        {},
        "scoring needs at least two classes, got only class 4 in 120 labels",
    ),
    "NaN": (
        changed(1, 0, lambda x: np.where(x > 2, np.nan, x)),
        {},
        r"batch 1: operands must be finite, got NaN or infinite values: \d+ of 960 in features",
    ),
    "NaN in the kernel": (
        changed(0, 0, lambda x: x),
        {"kernel": np.full((2, 3), np.nan)},
        "batch 0: operands must be finite.*6 of 6 in kernel",
    ),
    "empty batch": (changed(1, 0, lambda x: x[:0]), {}, "batch 1: features must be a non-empty"),
    "channels of the kernel": (
        changed(0, 0, lambda x: x),
        {"kernel": np.ones((2, 4))},
        "batch 0: all operands must have the 3 channels of features, got kernel with 4",
    ),
    "gradient now and then": (
        [examples(), examples()[:2]],
        {},
        "batch 1: all batches must have a feature gradient or none, got none unlike batch 0. Give",
    ),
    "gradient late": ([examples()[:2], examples()], {}, "got one unlike batch 0"),
    "gradient of another shape": (
        [(*examples()[:2], examples()[2][:, :2])],
        {},
        r"batch 0: feature_gradient must have the shape of features, \(60, 4, 4, 3\), got shape \(60, 2, 4, 3\)",
    ),
    "sample": (
        changed(0, 0, lambda x: x),
        {"num_samples": 0},
        "num_samples must be a whole number >= 1, got 0",
    ),
    "positions": (
        changed(0, 0, lambda x: x),
        {"max_positions": 0},
        "max_positions must be a whole number >= 1",
    ),
    "classes": (
        changed(0, 0, lambda x: x),
        {"num_classes": 1},
        "num_classes must be a whole number >= 2, got 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_are_named(case):
    batches, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        streamed(batches, **options)
