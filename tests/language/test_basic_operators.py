"""Elementwise operators and reductions, by hand and where float32 is treacherous."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toy_formulas

from jaxprune.language.basic_operators import real_entries, zero_padding
from jaxprune.language.parsing import parse


@pytest.fixture(autouse=True, params=[np, jnp], ids=["numpy", "jax"])
def xp(request, monkeypatch):
    """Every operator is tried with both array libraries."""
    monkeypatch.setattr(sys.modules[__name__], "XP", request.param)


XP = np


def compute(name, *arrays, masks=None):
    arrays = [np.asarray(array, np.float32) for array in arrays]
    return np.asarray(toy_formulas.compute(name, *arrays, masks=masks, xp=XP))


def test_arithmetic_by_hand():
    assert compute("+", 2.0, 3.0) == 5.0
    assert compute("-", 2.0, 3.0) == -1.0
    assert compute("*", 2.0, 3.0) == 6.0
    assert compute("/", 3.0, 2.0) == 1.5
    assert compute("abs", -3.0) == compute("sqrt", 9.0) == 3.0
    assert compute("square", -3.0) == 9.0


def test_positions_meet_samples_row_by_row():
    samples, positions = [[1.0, 2.0], [3.0, 4.0]], [1.0, 10.0]
    np.testing.assert_array_equal(compute("-", samples, positions), [[0.0, -8.0], [2.0, -6.0]])
    np.testing.assert_array_equal(compute("-", positions, samples), [[0.0, 8.0], [-2.0, 6.0]])


def test_a_scalar_meets_anything():
    np.testing.assert_array_equal(compute("*", 2.0, [[1.0, 2.0]]), [[2.0, 4.0]])
    np.testing.assert_array_equal(compute("/", [1.0, 2.0], 2.0), [0.5, 1.0])


def test_division_and_square_root_are_plain_ieee():
    assert (
        np.isinf(compute("/", 1.0, 0.0))
        and np.isnan(compute("/", 0.0, 0.0))
        and np.isnan(compute("sqrt", -1.0))
    )


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("N/(NQ + 1)", r"\frac{N_{k}}{N_{\bar{k}} + 1}"),
        ("N*(NQ - 1)", r"N_{k} \cdot \left(N_{\bar{k}} - 1\right)"),
        ("mX*mX", r"\bar{x} \odot \bar{x}"),
        ("X - mX", r"X - \mathbf{1} \bar{x}^{\top}"),
        ("square(gamma)", r"{\gamma}^{2}"),
        ("square(WI)", r"{w}^{\circ 2}"),
        ("sqrt(abs(beta))", r"\sqrt{\left|\beta\right|}"),
    ],
)
def test_latex_by_hand(text, latex):
    assert parse(text).latex() == latex


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
    masks = [(np.asarray([False, True, True]), np.asarray([True, False, True]))]
    assert compute(name, array, masks=masks) == pytest.approx(compute(name, [[1.0, 2.0], [3.0, 5.0]]))


def test_masked_rows_play_no_part_in_mean_samples():
    masks = [(np.asarray([False, True, True]), None)]
    np.testing.assert_array_equal(compute("mean_samples", [[np.nan], [1.0], [4.0]], masks=masks), [2.5])


def test_all_real_needs_no_mask():
    array = jnp.ones((1, 1, 1, 2, 3))
    assert real_entries(XP, array, None) is None and real_entries(XP, array, (None, None)) is None
    assert zero_padding(XP, array, None) is array
