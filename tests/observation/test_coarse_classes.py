"""Coarse classes: given mappings, and clusters of class means."""

import numpy as np
import pytest
from pruned_nets import IMAGES, LABELS, conv_norm_relu

from jaxprune.observation.coarse_classes import class_means, cluster_classes
from jaxprune.observation.observer import observe


def blobs(rng, num_clusters=4, size=6):
    """Class means around some directions, in mixed order, and where they belong."""
    truth = rng.permutation(np.repeat(np.arange(num_clusters), size))
    return 5 * np.eye(num_clusters)[truth] @ rng.normal(size=(num_clusters, 16)) + 0.3, truth


def test_two_directions_by_hand():
    means = np.array([[9.0, 0.1], [0.0, 7.0], [8.0, 0.0], [0.2, 9.0]])
    assert cluster_classes(means, 2).tolist() == [0, 1, 0, 1]
    assert cluster_classes(means, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_classes_with_alike_means_fall_together(seed):
    rng = np.random.default_rng(seed)
    means, truth = blobs(rng)
    found = cluster_classes(means + 0.1 * rng.normal(size=means.shape), 4)
    assert len(set(zip(found, truth, strict=True))) == 4
    assert found[0] == 0 and sorted(set(found)) == [0, 1, 2, 3]


def test_the_same_means_give_the_same_clusters():
    means = np.random.default_rng(0).normal(size=(40, 8))
    assert np.array_equal(cluster_classes(means, 7), cluster_classes(means.copy(), 7))


def test_no_cluster_is_empty_even_if_all_means_are_equal():
    assert sorted(set(cluster_classes(np.ones((9, 3)), 4))) == [0, 1, 2, 3]


def test_means_of_classes_by_hand():
    assert class_means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1]), 2).tolist() == [[2.0], [5.0]]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([0, 1], r"coarse class of each of the 3 classes that occur, got shape \(2,\)"),
        ([0, 1, -1], "whole numbers >= 0"),
        ([0.0, 1.0, 1.0], "whole numbers >= 0"),
        ([0, 3, 1], "got none in 2. Number them without gaps"),
        ([0, 0, 0], "at least two coarse classes"),
        (1, "from 2 to the 3 classes of the labels, got 1"),
        (4, "from 2 to the 3 classes of the labels, got 4"),
        (True, "from 2 to the 3 classes of the labels, got True"),
    ],
)
def test_bad_coarse_classes_are_refused_before_anything_runs(mapping, message):
    with pytest.raises(ValueError, match=message):
        observe(conv_norm_relu(), IMAGES, LABELS, classes=mapping)


def test_a_mapping_equals_coarse_labels():
    net, mapping = conv_norm_relu(), np.array([1, 0, 1])
    found = observe(net, IMAGES, LABELS, classes=mapping, num_samples=8)
    expected = observe(net, IMAGES, mapping[LABELS], num_samples=8)
    for name, operands in expected.items():
        assert found[name].class_counts == operands.class_counts
        assert np.array_equal(found[name].samples, operands.samples)
        assert np.array_equal(found[name].moments.m2, operands.moments.m2)


@pytest.fixture(scope="module")
def plain():
    return observe(conv_norm_relu(), IMAGES, LABELS)


def test_gradients_are_of_the_loss_on_the_labels_themselves(plain):
    found = observe(conv_norm_relu(), IMAGES, LABELS, classes=[1, 0, 1]).with_gradients()
    for name, expected in plain.with_gradients().items():
        np.testing.assert_allclose(found[name].gradients.weights, expected.gradients.weights, atol=1e-6)


def test_clusters_are_those_of_the_class_means_at_the_last_producer(plain):
    last = list(plain.values())[-1].moments
    means = (np.asarray(last.pivot, np.float64) + np.asarray(last.offset)).mean(axis=1)
    mapping = cluster_classes(means, 2)
    found = observe(conv_norm_relu(), IMAGES, LABELS, classes=np.int64(2), batch_size=7)
    order = np.argsort(mapping[LABELS], kind="stable")
    by_image_of = np.argsort(np.argsort(LABELS, kind="stable"))
    for name, operands in found.items():
        assert operands.class_counts == tuple(np.bincount(mapping[LABELS]).tolist())
        expected = np.asarray(plain[name].samples)[by_image_of][order]
        np.testing.assert_allclose(operands.samples, expected, atol=1e-5)
