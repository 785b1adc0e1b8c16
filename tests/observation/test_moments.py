import jax
import jax.numpy as jnp
import numpy as np
import pytest
from class_moments import class_sets

from jaxprune.observation import moments as uncompiled
from jaxprune.observation.moments import balanced_moments, sample_moments, zero_moments

# Compiled whole: one by one, every operation would compile on its own.
add_examples = jax.jit(uncompiled.add_examples)
merge_moments = jax.jit(uncompiled.merge_moments)


def in_float64(features, labels, num_classes):
    """Mean and variance per position and over all entries, for X, P and Q."""
    features = features.astype(np.float64)
    picks = {
        "X": [np.ones(len(labels), bool)],
        "P": [labels == k for k in range(num_classes)],
        "Q": [labels != k for k in range(num_classes)],
    }
    return {name: [features[rows] for rows in sets] for name, sets in picks.items()}


def assert_equal_to_float64(moments, features, labels, rtol):
    expected = in_float64(features, labels, moments.count.shape[0])
    for name, found in class_sets(moments).items():
        for row, examples in enumerate(expected[name]):
            scale = np.abs(examples).max()
            np.testing.assert_allclose(found.num_examples[row], len(examples))
            np.testing.assert_allclose(found.mean[row], examples.mean(0), rtol=2e-7, atol=2e-7 * scale)
            np.testing.assert_allclose(
                found.entry_mean[row], examples.mean((0, 1)), rtol=2e-7, atol=2e-7 * scale
            )
            variance = examples.var((0, 1))
            np.testing.assert_allclose(
                found.entry_variance[row], variance, rtol=rtol, atol=rtol * variance.max()
            )
            spread = found.m2[row] / found.num_examples[row]
            np.testing.assert_allclose(spread, examples.var(0), rtol=rtol, atol=rtol * variance.max())


def test_three_numbers_by_hand():
    features = np.array([1.0, 3.0, 8.0], np.float32)[:, None, None]
    sets = class_sets(sample_moments(features, np.array([0, 0, 1]), num_classes=2))
    assert sets["P"].mean[:, 0, 0].tolist() == [2.0, 8.0]
    assert sets["P"].m2[:, 0, 0].tolist() == [2.0, 0.0]
    assert sets["Q"].mean[:, 0, 0].tolist() == [8.0, 2.0]
    assert sets["X"].mean[0, 0, 0] == 4.0
    assert sets["X"].m2[0, 0, 0] == 26.0


def test_the_share_of_active_entries_by_hand():
    features = np.array([[1.0, 0.0], [0.0, 0.0], [-0.5, 2.0]], np.float32)[:, :, None]
    moments = sample_moments(features, np.array([0, 0, 1]), num_classes=3)
    assert np.asarray(moments.active)[:, 0].tolist() == [0.25, 1.0, 0.0]


def test_a_large_mean_keeps_a_small_variance_in_float32():
    rng = np.random.default_rng(0)
    features = (1e4 + 0.1 * rng.standard_normal((600, 4, 3))).astype(np.float32)
    labels = rng.integers(0, 5, 600)
    moments = sample_moments(features, labels, num_classes=5)
    assert moments.m2.dtype == jnp.float32
    assert_equal_to_float64(moments, features, labels, rtol=1e-5)


def test_positions_of_different_level_keep_their_variance():
    rng = np.random.default_rng(1)
    level = np.array([1e4, -1e4])[None, :, None]
    features = (level + 0.1 * rng.standard_normal((200, 2, 2))).astype(np.float32)
    labels = rng.integers(0, 2, 200)
    sets = class_sets(sample_moments(features, labels, num_classes=2))
    spread = sets["Q"].m2[1] / sets["Q"].num_examples[1]
    np.testing.assert_allclose(spread, features[labels != 1].astype(np.float64).var(0), rtol=1e-5)


def test_a_constant_channel_has_exactly_no_variance():
    features = np.full((7, 3, 2), 0.1, np.float32)
    for found in class_sets(sample_moments(features, np.arange(7) % 3, num_classes=3)).values():
        assert not found.m2.any()
        assert not found.entry_variance.any()
        assert (found.entry_mean == jnp.float32(0.1)).all()


def test_a_class_of_one_example_has_no_variance_and_its_value_as_mean():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((5, 2, 2)).astype(np.float32)
    moments = sample_moments(features, np.array([0, 0, 1, 0, 0]), num_classes=2)
    assert not np.asarray(moments.m2)[1].any()
    np.testing.assert_allclose(class_sets(moments)["P"].mean[1], features[2], rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_in_any_order_equal_one_pass(batch_size):
    rng = np.random.default_rng(3)
    features = (50 + rng.standard_normal((100, 3, 2))).astype(np.float32)
    features *= rng.random(features.shape) < 0.6  # a share of zeros
    labels = rng.integers(0, 4, 100)
    moments = zero_moments(features[0], 4)
    for start in range(0, 100, batch_size):
        rows = np.full((batch_size, 3, 2), np.nan, np.float32)
        ids, is_real = np.full(batch_size, 99), np.zeros(batch_size, bool)
        part = slice(start, min(start + batch_size, 100))
        size = part.stop - start
        rows[:size], ids[:size], is_real[:size] = features[part], labels[part], True
        moments = add_examples(moments, rows, ids, is_real)
    assert_equal_to_float64(moments, features, labels, rtol=1e-5)
    for k in range(4):
        np.testing.assert_allclose(
            np.asarray(moments.active)[k],
            (features[labels == k] != 0).mean((0, 1)),
            rtol=1e-6,
            err_msg=str(k),
        )


def test_merging_two_halves_equals_the_whole():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((40, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    empty = zero_moments(features[0], 3)
    halves = [add_examples(empty, features[part], labels[part]) for part in (slice(0, 15), slice(15, 40))]
    assert_equal_to_float64(merge_moments(*halves), features, labels, rtol=1e-5)
    whole = merge_moments(empty, merge_moments(*halves))
    np.testing.assert_allclose(whole.m2, merge_moments(*halves).m2)


@pytest.mark.parametrize("batch_size", [7, 2])
def test_what_some_classes_leave_at_zero_has_moments_of_exactly_zero(batch_size):
    rng = np.random.default_rng(3)
    labels = np.array([0, 1, 2, 1, 2, 1, 2])
    features = np.where((labels == 0)[:, None, None], rng.uniform(0.1, 2, (7, 5, 6)), 0).astype(np.float32)
    moments = zero_moments(features[0], 3)
    for start in range(0, 7, batch_size):
        part = slice(start, start + batch_size)
        moments = add_examples(moments, features[part], labels[part])
    sets = class_sets(moments)
    for found in (sets["P"].mean[1:], sets["Q"].mean[0], sets["P"].m2[1:], sets["Q"].m2[0]):
        np.testing.assert_array_equal(found, 0)
    for found in (sets["P"].entry_mean[1:], sets["P"].entry_variance[1:], sets["Q"].entry_variance[0]):
        np.testing.assert_array_equal(found, 0)
    assert (sets["Q"].mean >= 0).all() and (sets["X"].mean >= 0).all()


def test_balanced_rows_have_the_moments_of_the_sample():
    rng = np.random.default_rng(6)
    rows = (rng.normal(100, 1, (130, 3, 2)) * (rng.random((130, 3, 2)) < 0.7)).astype(np.float32)
    found = balanced_moments(rows, num_classes=65)
    expected = sample_moments(rows, np.repeat(np.arange(65), 2), num_classes=65)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)
    assert not np.asarray(balanced_moments(np.full((4, 1, 1), 0.1, np.float32), num_classes=2).m2).any()
