import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, LABELS, flat, mlp, plain, pool, residual

from jaxprune.observation.covariances import add_to_sums, to_covariance, zero_sums
from jaxprune.observation.observed import LazyValues
from jaxprune.observation.observer import make_observer, observe
from jaxprune.structure.model_state import split_model


def add_all(features, *sizes, dtype=jnp.float32):
    """The covariance of examples that come in batches of these sizes, each filled up with NaN."""
    sums, start, largest = zero_sums(features.shape[-1]), 0, max(sizes)
    for size in sizes:
        batch = np.full((largest, *features.shape[1:]), np.nan)
        batch[:size] = features[start : start + size]
        sums = add_to_sums(sums, jnp.asarray(batch, dtype), jnp.arange(largest) < size)
        start += size
    assert start == len(features)
    return to_covariance(sums)


@pytest.mark.parametrize("shape", [(30, 3), (30, 4, 3), (30, 2, 5, 3)])
def test_covariances_are_numpys_however_examples_are_batched(shape):
    features = np.random.default_rng(0).normal(size=shape) @ np.random.default_rng(1).normal(size=(3, 3))
    rows = features.reshape(-1, 3)
    for sizes in [(30,), (12, 12, 6), (1, 29)]:
        mean, matrix = add_all(features, *sizes)
        np.testing.assert_allclose(mean, rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(matrix, np.cov(rows.T, bias=True), atol=1e-5)
        assert mean.dtype == matrix.dtype == np.float64


def test_large_means_do_not_swallow_small_variances():
    features = np.random.default_rng(0).integers(0, 8, size=(64, 9, 4)) / 64 + 1e4
    rows = features.reshape(-1, 4) - 1e4
    mean, matrix = add_all(features, 20, 20, 20, 4)
    np.testing.assert_allclose(mean - 1e4, rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(matrix, np.cov(rows.T, bias=True), atol=1e-7)


def test_constant_channels_have_no_variance():
    features = np.broadcast_to(np.array([0.1, 1e6 / 3, 0.0]), (20, 7, 3))
    mean, matrix = add_all(features, 12, 8)
    np.testing.assert_allclose(mean, features[0, 0], rtol=1e-7)
    assert not matrix.any()


def test_half_precision_is_added_up_in_single():
    features = np.random.default_rng(0).normal(size=(400, 8, 2)).astype(jnp.bfloat16).astype(np.float64)
    mean, matrix = add_all(features, 100, 100, 100, 100, dtype=jnp.bfloat16)
    np.testing.assert_allclose(matrix, np.cov(features.reshape(-1, 2).T, bias=True), atol=1e-5)
    np.testing.assert_allclose(mean, features.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_samples": 6, "batch_size": 7}])
def test_each_consumer_has_the_covariance_of_what_enters_it(options):
    net = plain()
    first = pool(nnx.relu(net.conv1(jnp.asarray(IMAGES))))
    second = pool(nnx.relu(net.conv2(first)))
    third = nnx.relu(net.dense(flat(second)))
    found = observe(net, IMAGES, LABELS, **options).covariances()
    names = ["conv1.kernel -> conv2.kernel", "conv2.kernel -> dense.kernel", "dense.kernel -> head.kernel"]
    assert list(found) == names
    for name, values in zip(names, (first, second, third), strict=True):
        rows = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        np.testing.assert_allclose(found[name].mean, rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(found[name].matrix, np.cov(rows.T, bias=True), atol=1e-5)


def test_consumers_of_one_group_that_read_other_values_have_other_covariances():
    found = observe(residual(), IMAGES, LABELS).covariances()
    before, after = found["stem.kernel -> conv1.kernel"], found["stem.kernel -> head.kernel"]
    assert before.matrix.shape == after.matrix.shape == (4, 4)
    assert not np.allclose(before.mean, after.mean)


def test_nothing_is_computed_before_they_are_asked_for_and_then_once(monkeypatch):
    calls = []

    def counted(structure, batches):
        def compute(arrays):
            calls.append(1)
            return {}

        return compute

    monkeypatch.setattr("jaxprune.observation.observer.make_covariances", counted)
    net = mlp()
    observed = make_observer(net, IMAGES, LABELS)(split_model(net)[1])
    stacked = observed.stack([observed, observed])
    assert calls == []
    observed.covariances()
    observed.covariances()
    stacked.member(1).covariances()
    assert calls == [1]
    assert isinstance(observed.covariance_source, LazyValues)
