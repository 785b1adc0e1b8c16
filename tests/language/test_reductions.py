"""Reductions, by hand and where float32 is treacherous."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toy_formulas

from jaxprune.language.basic_operators import real_entries, zero_padding


@pytest.fixture(autouse=True, params=[np, jnp], ids=["numpy", "jax"])
def xp(request, monkeypatch):
    """Every operator is tried with both array libraries."""
    monkeypatch.setattr(sys.modules[__name__], "XP", request.param)


XP = np


def compute(name, array, masks=None):
    return np.asarray(toy_formulas.compute(name, np.asarray(array, np.float32), masks=masks, xp=XP))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sum", 10.0), ("product", 24.0), ("mean", 2.5), ("var", 1.25), ("std", 1.25**0.5), ("count", 4.0)],
)
def test_summaries_of_one_to_four(name, expected):
    assert compute(name, [[1.0, 2.0], [3.0, 4.0]]) == pytest.approx(expected)


def test_mean_samples_keeps_positions():
    np.testing.assert_array_equal(compute("mean_samples", [[1.0, 2.0], [3.0, 6.0]]), [2.0, 4.0])


def test_a_scalar_is_its_own_sum_and_varies_by_nothing():
    assert compute("sum", 3.0) == compute("mean", 3.0) == 3.0
    assert compute("var", 3.0) == 0.0 and compute("count", 3.0) == 1.0


@pytest.mark.parametrize("constant", [0.1, 1e4, -7.3e6])
def test_a_constant_is_exact(constant):
    samples = np.full((37, 13), constant, np.float32)
    assert compute("var", samples) == compute("std", samples) == 0.0
    assert compute("mean", samples) == np.float32(constant)
    np.testing.assert_array_equal(compute("mean_samples", samples), samples[0])


def test_a_large_mean_does_not_swallow_a_small_variance():
    samples = np.asarray(1e4 + 0.1 * np.random.default_rng(0).normal(size=(500, 9)), np.float32)
    assert compute("var", samples) == pytest.approx(np.var(samples.astype(np.float64)), rel=1e-5)


@pytest.mark.parametrize("name", ["sum", "product", "mean", "var", "std", "count"])
def test_masked_entries_play_no_part_wherever_they_are(name):
    array = np.asarray([[np.nan, np.nan, np.nan], [1.0, np.nan, 2.0], [3.0, np.inf, 5.0]])
    masks = [(jnp.asarray([False, True, True]), jnp.asarray([True, False, True]))]
    assert compute(name, array, masks) == pytest.approx(compute(name, [[1.0, 2.0], [3.0, 5.0]]))


def test_masked_rows_play_no_part_in_mean_samples():
    masks = [(jnp.asarray([False, True, True]), None)]
    np.testing.assert_array_equal(compute("mean_samples", [[np.nan], [1.0], [4.0]], masks), [2.5])


def test_all_real_needs_no_mask():
    array = jnp.ones((1, 1, 1, 2, 3))
    assert real_entries(XP, array, None) is None and real_entries(XP, array, (None, None)) is None
    assert zero_padding(XP, array, None) is array
