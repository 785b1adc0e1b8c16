"""Running statistics of batch norm from images, without training."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, Net, conv, flat, linear, mlp, norm, run

from jaxprune.structure.model_state import split_model
from jaxprune.training.recalibration import recalibrate


def deep():
    """Two norms, the second one behind the first, and dropout that would change its input."""
    layers = {"conv": conv(1, 4), "norm1": norm(4), "drop": nnx.Dropout(0.5, rngs=nnx.Rngs(3))}
    layers |= {"fc": linear(256, 5, 1), "norm2": norm(5, 1), "head": linear(5, 3, 2)}
    return Net(layers, lambda n, x: n.head(n.norm2(n.fc(n.drop(flat(nnx.relu(n.norm1(n.conv(x)))))))))


def normalised(rows, scale, bias):
    return (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * np.asarray(scale) + np.asarray(bias)


@pytest.fixture(scope="module")
def net():
    return deep()


@pytest.fixture(scope="module")
def whole(net):
    return recalibrate(net, IMAGES)


def test_by_hand():
    """Images (0, 1) and (2, 1): means 1 and 1, variances 1 and 0; in two batches just as in one."""
    layer = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    for batch_size in (1, 2):
        new = recalibrate(layer, np.array([[0.0, 1.0], [2.0, 1.0]], np.float32), batch_size=batch_size)
        assert new.mean[...].tolist() == [1.0, 1.0] and new.var[...].tolist() == [1.0, 0.0]
    assert layer.mean[...].tolist() == [0.0, 0.0] and layer.var[...].tolist() == [1.0, 1.0]


def test_one_batch_gives_the_statistics_of_the_population_in_every_layer(net, whole):
    first = np.asarray(net.conv(jnp.asarray(IMAGES)), np.float64)
    rows = first.reshape(-1, 4)
    np.testing.assert_allclose(whole.norm1.mean[...], rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole.norm1.var[...], rows.var(0), rtol=1e-4)
    after = np.maximum(normalised(rows, net.norm1.scale[...], net.norm1.bias[...]), 0).reshape(
        len(IMAGES), -1
    )
    second = after @ np.asarray(net.fc.kernel[...], np.float64) + np.asarray(net.fc.bias[...])
    np.testing.assert_allclose(whole.norm2.mean[...], second.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole.norm2.var[...], second.var(0), rtol=1e-4)


def test_several_batches_are_exact_in_the_first_layer_and_near_behind_it(net, whole):
    parts = recalibrate(net, IMAGES, batch_size=10)  # 8, 8 and 8
    np.testing.assert_allclose(parts.norm1.mean[...], whole.norm1.mean[...], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.norm1.var[...], whole.norm1.var[...], rtol=1e-5)
    np.testing.assert_allclose(parts.norm2.var[...], whole.norm2.var[...], rtol=0.3)
    assert not np.array_equal(parts.norm2.var[...], whole.norm2.var[...])


def test_nothing_but_statistics_changes_and_nothing_of_the_callers(net, whole):
    before = split_model(net)[1]
    for path, array in split_model(whole)[1].items():
        assert np.array_equal(array, before[path]) == (path[-1] not in ("mean", "var"))
        assert array.dtype == before[path].dtype
    assert np.isfinite(run(whole)).all()
    broken = deep()
    broken.norm1.mean[...] = jnp.full(4, jnp.nan)  # is replaced, as everything else
    np.testing.assert_array_equal(recalibrate(broken, IMAGES).norm1.mean[...], whole.norm1.mean[...])


def test_other_inputs_and_iterables_are_what_one_array_is(net, whole):
    split = deep()
    split.forward = lambda n, batch: net.forward(n, jnp.concatenate([batch["left"], batch["right"]], 2))
    batch = {"left": IMAGES[:, :, :4], "right": IMAGES[:, :, 4:]}
    expected, found = split_model(whole)[1], split_model(recalibrate(split, batch))[1]
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])
    parts = recalibrate(net, IMAGES, batch_size=8)
    listed = recalibrate(net, iter([(IMAGES[:8], np.arange(8)), IMAGES[8:16], IMAGES[16:]]))
    for path, array in split_model(listed)[1].items():
        np.testing.assert_array_equal(array, split_model(parts)[1][path])


class TestRefused:
    def test_an_iterable_without_batches(self):
        with pytest.raises(ValueError, match=r"recalibrate needs at least one batch, got none"):
            recalibrate(norm(1), iter([]))

    def test_a_network_without_batch_norm(self):
        with pytest.raises(ValueError, match=r"needs a network with batch norm .* got none"):
            recalibrate(mlp(), IMAGES)

    def test_batch_norms_that_code_fixes(self):
        layers = {"one": linear(64, 4), "norm": norm(4), "head": linear(4, 3, 1)}
        net = Net(layers, lambda n, x: n.head(n.norm(n.one(flat(x)), use_running_average=True)))
        with pytest.raises(ValueError, match=r"code of the network makes norm use running ones. Leave"):
            recalibrate(net, IMAGES)
        net.other = norm(64)
        net.forward = lambda n, x: n.head(n.norm(n.one(n.other(flat(x))), use_running_average=True))
        with pytest.warns(UserWarning, match=r"norm saw no batch and keep their statistics"):
            recalibrate(net, IMAGES)

    def test_no_images(self):
        with pytest.raises(
            ValueError, match=r"needs images \[N, ...\], got an array of shape \(0, 8, 8, 1\)"
        ):
            recalibrate(norm(1), IMAGES[:0])

    def test_batch_sizes(self):
        with pytest.raises(ValueError, match=r"batch_size must be a whole number >= 1, got 0"):
            recalibrate(norm(1), IMAGES, batch_size=0)

    def test_images_that_are_not_finite(self):
        with pytest.raises(
            ValueError, match=r"needs finite activations, got NaN or infinite .* in mean, var"
        ):
            recalibrate(norm(1), np.full((4, 1), np.nan, np.float32))
