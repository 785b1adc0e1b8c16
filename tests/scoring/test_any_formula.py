"""What holds for every formula: the engine, the compiled function and generated code agree, and channels do not mix.

In float64, where rounding is no excuse.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.language.sampling import Limits, random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population

CHANNELS = 4
FORMULAS = st.integers(0, 2**31 - 1).map(
    lambda seed: random_expression(jax.random.key(seed), DEFAULT_VOCABULARY, limits=Limits(20, 6))
)


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def arrays(seed=0):
    """One layer; its classes have 6, 4, 1 and 2 examples."""
    rng = np.random.default_rng(seed)
    return {
        "features": np.maximum(rng.normal(0.3, 1, (13, 2, 2, CHANNELS)), 0),
        "labels": np.repeat(np.arange(4), [6, 4, 1, 2])[np.random.default_rng(9).permutation(13)],
        "kernel": rng.normal(size=(3, 3, 1, CHANNELS)),
        "outgoing": rng.normal(size=(1, 1, CHANNELS, 5)),
        "gamma": rng.normal(size=CHANNELS),
        "beta": rng.normal(size=CHANNELS),
        "weight_gradient": rng.normal(size=(3, 3, 1, CHANNELS)),
        "feature_gradient": rng.normal(size=(13, 2, 2, CHANNELS)),
    }


def permuted(layer, order):
    """The layer with its channels in another order, the columns of its bank too."""
    return {
        name: value if name == "labels" else np.take(value, order, axis=-2 if name == "outgoing" else -1)
        for name, value in layer.items()
    }


def engine(f, layer):
    scores = score_population([f], Operands.from_arrays(**layer))[0]
    assert scores.dtype == np.float64
    return scores


def generated(f, backend, layer):
    scope = {}
    exec(f.code(backend), scope)
    return np.asarray(scope["pruning_function"](**layer))


def assert_same(actual, desired, f):
    desired, is_finite = np.asarray(desired), np.isfinite(desired)
    np.testing.assert_array_equal(np.isfinite(actual), is_finite, err_msg=str(f))
    scale = np.abs(desired[is_finite]).max(initial=0)
    np.testing.assert_allclose(
        np.asarray(actual)[is_finite],
        desired[is_finite],
        rtol=1e-6,
        atol=1e-9 * scale + 1e-12,
        err_msg=str(f),
    )


@given(f=FORMULAS)
@settings(max_examples=30)
def test_numpy_code_equals_the_engine(f):
    layer = arrays()
    assert_same(generated(f, "numpy", layer), engine(f, layer), f)


@given(f=FORMULAS)
@settings(max_examples=8)
def test_jax_code_equals_the_engine(f):
    layer = arrays()
    assert_same(generated(f, "jax", layer), engine(f, layer), f)


@given(f=FORMULAS, order=st.permutations(range(CHANNELS)))
@settings(max_examples=30)
def test_permuting_channels_permutes_scores(f, order):
    layer = arrays()
    assert_same(engine(f, permuted(layer, order)), engine(f, layer)[list(order)], f)


@given(f=FORMULAS)
@settings(max_examples=6)
def test_every_way_of_running_gives_the_same_scores(f):
    layers = [arrays(0), arrays(1)]
    members = [Operands.from_arrays(**layer) for layer in layers]
    stacked, run = Operands.stack(members), compile(f)
    expected = np.stack([engine(f, layer) for layer in layers])
    assert_same(score_population([f], stacked)[0], expected, f)
    assert_same(np.stack([run(ops) for ops in members]), expected, f)
    assert_same(run(stacked), expected, f)
    assert_same(jax.vmap(run)(stacked), expected, f)
    one_by_one = [np.asarray(run(members[0].take([channel])))[0] for channel in range(CHANNELS)]
    assert_same(np.stack(one_by_one), expected[0], f)
    with jax.disable_jit():
        assert_same(run(members[0]), expected[0], f)
