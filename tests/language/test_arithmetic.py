"""Elementwise operators, by hand."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toy_formulas

from jaxprune.language.parsing import parse


@pytest.fixture(autouse=True, params=[np, jnp], ids=["numpy", "jax"])
def xp(request, monkeypatch):
    """Every operator is tried with both array libraries."""
    monkeypatch.setattr(sys.modules[__name__], "XP", request.param)


XP = np


def compute(name, *arrays):
    arrays = [np.asarray(array, np.float32) for array in arrays]
    return np.asarray(toy_formulas.compute(name, *arrays, xp=XP))


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
