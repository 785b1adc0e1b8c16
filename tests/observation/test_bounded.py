"""Observation within a budget: pooled positions, several passes, counted memory, and errors before anything runs."""

import jax
import numpy as np
import pytest
from pruned_nets import IMAGES, LABELS, conv_norm_relu, mlp, residual

from jaxprune.language.parsing import parse
from jaxprune.observation import bounded
from jaxprune.observation.activations import activation_sites
from jaxprune.observation.memory import fit, live_entries, measure
from jaxprune.observation.observer import observe
from jaxprune.scoring.ranking import score
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import structure_of, trace_structure

SMALL = {"num_samples": 6, "batch_size": 8}


@pytest.fixture(scope="module")
def net():
    return conv_norm_relu()


@pytest.fixture(scope="module")
def unbounded(net):
    return observe(net, IMAGES, LABELS, **SMALL)


@pytest.fixture(scope="module")
def roomy(net):
    """What is observed within a budget that needs no pooling."""
    return observe(net, IMAGES, LABELS, max_bytes=1 << 40, **SMALL)


@pytest.fixture(scope="module")
def pooled(net):
    return observe(net, IMAGES, LABELS, positions=4, **SMALL)


def assert_alike(found, expected, rtol=1e-6):
    for name, operands in expected.items():
        own = found[name]
        for attribute in ("class_counts", "space", "sample_is_full"):
            assert getattr(own, attribute) == getattr(operands, attribute)
        for leaf, other in zip(jax.tree.leaves(own), jax.tree.leaves(operands), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=rtol, atol=1e-6)


def test_moments_are_those_of_pooled_maps(net, pooled):
    operands = observe(net, IMAGES, LABELS)["conv1.kernel"]
    maps = np.asarray(operands.samples, np.float64).reshape(24, 2, 4, 2, 4, 4).mean(axis=(2, 4))
    rows, labels, found = maps.reshape(24, 4, 4), np.sort(LABELS), pooled["conv1.kernel"]
    assert found.space == (2, 2) and found.samples.shape == (6, 4, 4)
    assert found.moments.count.tolist() == [8, 8, 8]
    mean = np.asarray(found.moments.pivot) + np.asarray(found.moments.offset)
    for k in range(3):
        np.testing.assert_allclose(mean[k], rows[labels == k].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(found.moments.m2[k], 8 * rows[labels == k].var(axis=0), atol=1e-4)


def test_a_budget_that_fits_everything_changes_nothing(roomy, unbounded):
    assert_alike(roomy, unbounded, rtol=1e-5)


def test_one_pass_and_one_for_each_group_are_equal(monkeypatch, net, pooled):
    passes = []
    observe_batch = bounded._observe_batch

    def counted(structure, memory, producers, arrays, images):
        passes.append(producers)
        return observe_batch(structure, memory, producers, arrays, images)

    monkeypatch.setattr(bounded, "_observe_batch", counted)
    least = least_bytes(sizes_of_batch(net), 4)
    found = observe(net, IMAGES, LABELS, positions=4, max_bytes=least, **SMALL)
    assert passes == [("conv1.kernel",), ("conv2.kernel",)]
    assert_alike(found, pooled)


def test_producers_of_one_group_are_observed_together():
    sizes = sizes_of_batch(residual())
    found = fit(sizes, 4, least_bytes(sizes, 4))
    groups = [{sizes.structure.sites[name].group for name in each.producers} for each in found.passes]
    assert len(groups) > 1 and not set.intersection(*groups)
    assert {name for each in found.passes for name in each.producers} == set(sizes.structure.sites)


def test_the_budget_pools_as_little_as_it_must():
    sizes = sizes_of_batch(conv_norm_relu())
    roomy = fit(sizes, None, None)
    assert (roomy.positions, len(roomy.passes)) == (None, 1)
    tight = fit(sizes, None, least_bytes(sizes, 9))
    assert tight.positions == 9 and tight.peak_bytes <= least_bytes(sizes, 9)
    assert fit(sizes, None, least_bytes(sizes, 9) - 1).positions < 9


def test_counted_operands_are_what_observe_returns(net, roomy, pooled):
    sizes = sizes_of_batch(net)
    for positions, observed in ((None, roomy), (4, pooled)):
        leaves = [leaf for operands in observed.values() for leaf in _arrays(operands)]
        counted, real = sizes.operand_bytes(positions), sum(leaf.nbytes for leaf in leaves)
        assert real <= counted <= 1.1 * real


def test_memory_of_the_operands_grows_linearly_with_classes():
    sizes = sizes_of_batch(conv_norm_relu())
    ten, hundred, thousand = (sizes.operand_bytes(4, k) for k in (10, 100, 1000))
    assert hundred < 10.5 * ten and thousand < 10.5 * hundred


def test_values_are_alive_until_they_are_read_for_the_last_time():
    structure = trace_structure(mlp(), IMAGES)
    wanted = [site.value for site in activation_sites(structure).values()]
    largest = max(np.prod(structure.program.shapes[n]) for n in structure.program.makers)
    assert largest <= live_entries(structure.program, wanted) <= 6 * largest


def test_means_over_positions_do_not_notice_even_pooling(pooled, unbounded):
    f = parse("abs(mean(P) - mean(Q))")
    for name, scores in score(f, unbounded).items():
        np.testing.assert_allclose(score(f, pooled)[name], scores, rtol=1e-4)


def test_gradients_and_covariances_can_be_read_within_a_budget(roomy, unbounded):
    assert_alike(roomy.with_gradients(), unbounded.with_gradients(), rtol=1e-4)
    for name, covariance in unbounded.covariances().items():
        np.testing.assert_allclose(roomy.covariances()[name].matrix, covariance.matrix, rtol=1e-6)


def test_a_budget_that_nothing_fits_says_what_would(net):
    with pytest.raises(
        ValueError, match=r"max_bytes of at least \d+ .* 3 classes at 1 position.*smaller batches"
    ):
        observe(net, IMAGES, LABELS, max_bytes=10)
    sizes = sizes_of_batch(net, num_classes=24)
    with pytest.raises(ValueError, match=r"At most \d+ coarse classes fit: classes=\d+"):
        fit(sizes, 64, least_bytes(sizes, 64) - 1)


@pytest.mark.parametrize("name", ["positions", "max_bytes"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got 0"):
        observe(conv_norm_relu(), IMAGES, LABELS, **{name: 0})


def sizes_of_batch(model, num_classes=3):
    """Sizes for batches of eight images."""
    graphdef, flat, rest = split_model(model)
    structure = structure_of(graphdef, flat, rest, IMAGES, trace_structure(model, IMAGES), batch=8)
    return measure(structure, flat, num_classes, SMALL["num_samples"], max_positions=64)


def least_bytes(sizes, positions):
    """The smallest budget for so many positions: one group at a time."""
    groups = {}
    for name, site in sizes.structure.sites.items():
        groups.setdefault(site.group, []).append(name)
    return sizes.operand_bytes(positions) + max(sizes.working_bytes(g, positions) for g in groups.values())


def _arrays(operands):
    """All arrays of operands, each once: `bank` is `filters`."""
    return {id(leaf): leaf for leaf in jax.tree.leaves(operands)}.values()
