from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from class_moments import class_sets
from flax import nnx
from pruned_nets import (
    IMAGES,
    LABELS,
    channels_first,
    conv_norm_relu,
    conv_relu_norm,
    flat,
    plain,
    pool,
    residual,
)

from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import make_observer, observe
from jaxprune.observation.sample import balanced_sample, pool_positions
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import split_model


def as_samples(features, order):
    features = np.asarray(features)
    return features.reshape(len(features), -1, features.shape[-1])[order]


@contextmanager
def count_compilations():
    """Names of the events of compilation that happen inside."""
    events = []
    is_on = [True]

    def listen(name, *args, **kwargs):
        if is_on and "backend_compile" in name:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        is_on.clear()


ORDER = np.argsort(LABELS, kind="stable")


def test_activations_are_what_the_next_layer_sees():
    net = plain()
    observed = observe(net, IMAGES, LABELS)
    first = pool(nnx.relu(net.conv1(jnp.asarray(IMAGES))))
    second = pool(nnx.relu(net.conv2(first)))
    third = nnx.relu(net.dense(flat(second)))
    expected = {"conv1.kernel": first, "conv2.kernel": second, "dense.kernel": third[:, None, None]}
    for name, features in expected.items():
        assert np.allclose(observed[name].samples, as_samples(features, ORDER), atol=1e-5)
    assert observed.groups == {name: (name,) for name in expected}


def test_batch_norm_after_relu_is_part_of_the_activations():
    net = conv_relu_norm()
    observed = observe(net, IMAGES, LABELS)
    net.norm1.use_running_average = True
    features = pool(pool(net.norm1(nnx.relu(net.conv1(jnp.asarray(IMAGES))))))
    assert np.allclose(observed["conv1.kernel"].samples, as_samples(features, ORDER), atol=1e-5)
    assert np.array_equal(observed["conv1.kernel"].gamma, net.norm1.scale[...])
    assert np.array_equal(observed["conv1.kernel"].beta, net.norm1.bias[...])


def test_weights_by_hand():
    net = plain()
    observed = observe(net, IMAGES, LABELS)
    conv1, conv2, dense = observed["conv1.kernel"], observed["conv2.kernel"], observed["dense.kernel"]
    assert np.array_equal(conv1.filters, net.conv1.kernel[...].reshape(9, 4))
    assert np.array_equal(conv1.outgoing[:, 1].reshape(3, 3, 6), net.conv2.kernel[...][:, :, 1])
    assert np.array_equal(conv2.outgoing[:, 2].reshape(4, 5), net.dense.kernel[...][2::6])
    assert np.array_equal(dense.outgoing[:, 3], net.head.kernel[...][3])
    assert conv1.gamma is None


def test_channels_first_flattening_reads_rows_of_one_channel_together():
    net = channels_first()
    operands = observe(net, IMAGES, LABELS)["conv1.kernel"]
    features = pool(pool(nnx.relu(net.conv1(jnp.asarray(IMAGES)))))
    assert np.allclose(operands.samples, as_samples(features, ORDER), atol=1e-5)
    assert np.array_equal(operands.outgoing[:, 1], net.dense.kernel[...][4:8].reshape(-1))


def test_residual_group_is_observed_at_each_producer():
    observed = observe(residual(), IMAGES, LABELS)
    assert observed.groups["stem.kernel"] == ("stem.kernel", "conv2.kernel")
    assert observed["stem.kernel"].outgoing.shape == (9 * 6, 4)
    assert observed["conv2.kernel"].outgoing.shape == (3, 4)


def test_moments_stream_over_all_images_whatever_the_batches():
    net = conv_norm_relu()
    whole = observe(net, IMAGES, LABELS)
    streamed = observe(net, IMAGES, LABELS, num_samples=6, batch_size=7)
    for name in whole:
        assert whole[name].sample_is_full
        assert not streamed[name].sample_is_full
        assert streamed[name].class_counts == (2, 2, 2)
        for letter, expected in class_sets(whole[name].moments).items():
            found = class_sets(streamed[name].moments)[letter]
            assert np.array_equal(found[0], expected[0])
            assert np.allclose(found.mean, expected.mean, atol=1e-5)
            assert np.allclose(found.m2, expected.m2, atol=1e-4)
        assert np.allclose(streamed[name].moments.active, whole[name].moments.active, atol=1e-6)


def test_samples_are_pooled_and_moments_are_not():
    operands = observe(conv_norm_relu(), IMAGES, LABELS, max_positions=16)["conv1.kernel"]
    assert operands.samples.shape == (24, 16, 4)
    assert operands.moments.pivot.shape == (64, 4)
    assert operands.space == (4, 4)
    assert not operands.sample_is_full


def test_uneven_windows_average_what_they_hold():
    features = jnp.arange(25.0).reshape(1, 5, 5, 1)
    pooled = pool_positions(features, 9)
    assert pooled.shape == (1, 3, 3, 1)
    assert float(pooled[0, 0, 0, 0]) == pytest.approx((0 + 1 + 5 + 6) / 4)
    assert float(pooled[0, 2, 2, 0]) == 24.0


def test_sample_takes_the_first_of_each_class_in_order():
    assert balanced_sample(np.array([2, 0, 0, 1, 0, 2, 2]), 6).tolist() == [1, 2, 3, 0, 5]
    assert balanced_sample(np.array([0, 1, 0, 1]), 1).tolist() == [0, 1]


def test_one_observer_serves_all_networks_of_a_shape_without_compiling():
    first, second = conv_norm_relu(), conv_norm_relu()
    second.conv1.kernel[...] = 2 * second.conv1.kernel[...]
    observer = make_observer(first, IMAGES, LABELS, num_samples=6)
    one = observer(split_model(first)[1])
    with count_compilations() as compiled:
        two = observer(split_model(second)[1])
    assert compiled == []
    with count_compilations() as control:
        jax.jit(lambda x: x * 3.25 + 1.5)(jnp.ones(3))
    assert control
    assert not np.allclose(one["conv1.kernel"].samples, two["conv1.kernel"].samples)
    expected = observe(second, IMAGES, LABELS, num_samples=6)
    assert np.allclose(two["conv2.kernel"].samples, expected["conv2.kernel"].samples, atol=1e-5)
    stacked = Observed.stack([one, two])
    assert stacked.num_members == 2


def test_slim_networks_are_observed_too():
    net = conv_norm_relu()
    smaller = slim(
        net,
        plan(
            net, {"conv1.kernel": np.arange(4.0), "conv2.kernel": np.arange(6.0)}, IMAGES, kept_fraction=0.5
        ),
    )
    assert observe(smaller, IMAGES, LABELS)["conv1.kernel"].num_channels == 2


def test_observing_never_changes_the_callers_model():
    net = conv_relu_norm()
    before = jax.tree.map(np.array, split_model(net)[1])
    observe(net, IMAGES, LABELS)
    after = split_model(net)[1]
    assert all(np.array_equal(after[path], before[path]) for path in before)
    assert net.norm1.use_running_average is False


def test_labels_may_be_any_whole_numbers():
    shifted = observe(plain(), IMAGES, LABELS * 7 - 3)
    assert shifted["conv1.kernel"].class_counts == (8, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:-1], "one label for each"),
        (IMAGES, np.eye(3)[LABELS], "one label for each"),
        (IMAGES, np.zeros(24, int), "at least two classes, got only class 0 in 24 labels"),
        (IMAGES, LABELS + 0.5, "labels must be whole numbers"),
        (IMAGES.astype(object), LABELS, "needs images that hold numbers, got dtype object"),
        (np.full(IMAGES.shape, 1e39), LABELS, "needs finite images, got 1536 NaN or infinite"),
        (
            np.where(np.arange(24)[:, None, None, None] == 3, np.nan, IMAGES),
            LABELS,
            "needs finite images, got 64 NaN",
        ),
    ],
)
def test_bad_examples_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        observe(plain(), images, labels)


@pytest.mark.parametrize("name", ["num_samples", "max_positions", "batch_size"])
def test_bad_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got 0"):
        observe(plain(), IMAGES, LABELS, **{name: 0})


def test_arrays_of_another_network_are_refused():
    observer = make_observer(plain(), IMAGES, LABELS)
    with pytest.raises(ValueError, match="needs the arrays of a network of fingerprint"):
        observer(split_model(conv_norm_relu())[1])
