"""Variance components by hand, on simulated data, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxprune.comparison.variance import VarianceComponents, rank_correlation, variance_components


def test_two_functions_on_two_bases_by_hand():
    # rows: functions; columns: bases; one repeat. Function means 2 and 6, base means 3 and 5, no interaction.
    components = variance_components(np.array([[[1.0], [3.0]], [[5.0], [7.0]]]))
    # mean squares: function 2*(4+4)/1 = 16, base 2*(1+1)/1 = 4, interaction 0
    assert components.mean == 4.0
    assert components.function_sd == pytest.approx(math.sqrt(16 / 2))
    assert components.base_sd == pytest.approx(math.sqrt(4 / 2))
    assert (components.interaction_sd, components.seed_sd, components.order_sd) == (0.0, 0.0, 0.0)


def test_interaction_and_seed_by_hand():
    # cells [function, base] of two repeats: means 1 5 / 5 1, so function and base means are all 3.
    y = np.array([[[0.0, 2.0], [4.0, 6.0]], [[6.0, 4.0], [2.0, 0.0]]])
    components = variance_components(y)
    # interaction deviations are -2 2 / 2 -2: mean square 2*16/1 = 32
    # order means are all 3 within a base, so seed deviations are those from the cells, -1 1 ..: 8 / (2*1*1) = 4
    assert components.interaction_sd == pytest.approx(math.sqrt((32 - 4) / 2))
    assert components.seed_sd == pytest.approx(2.0)
    assert (components.function_sd, components.base_sd, components.order_sd) == (0.0, 0.0, 0.0)


def test_what_all_functions_share_is_not_seed():
    # The second repeat of base 0 adds 4 for both functions, that of base 1 nothing.
    y = np.array([[[1.0, 5.0], [1.0, 1.0]], [[3.0, 7.0], [3.0, 3.0]]])
    components = variance_components(y)
    # order deviations within base 0 are -2 2: mean square 2*8/2 = 8, so variance 8/2
    assert components.order_sd == pytest.approx(2.0)
    assert (components.seed_sd, components.interaction_sd) == (0.0, 0.0)
    assert components.function_sd == pytest.approx(math.sqrt(2.0))


def test_shared_effects_leave_function_interaction_and_seed_alone():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 4, 3))
    shifted = y + 10 * rng.normal(size=(1, 4, 3)) + 50
    before, after = variance_components(y), variance_components(shifted)
    for name in ("function_sd", "interaction_sd", "seed_sd"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-9)


def test_simulated_components_are_found():
    rng = np.random.default_rng(1)
    functions, bases, repeats = 60, 60, 3
    y = (
        80
        + 4.0 * rng.normal(size=(functions, 1, 1))
        + 3.0 * rng.normal(size=(1, bases, 1))
        + 2.0 * rng.normal(size=(functions, bases, 1))
        + 1.0 * rng.normal(size=(1, bases, repeats))
        + 1.5 * rng.normal(size=(functions, bases, repeats))
    )
    components = variance_components(y)
    assert components.function_sd == pytest.approx(4.0, rel=0.2)
    assert components.base_sd == pytest.approx(3.0, rel=0.2)
    assert components.interaction_sd == pytest.approx(2.0, rel=0.05)
    assert components.order_sd == pytest.approx(1.0, rel=0.2)
    assert components.seed_sd == pytest.approx(1.5, rel=0.05)


def test_reliability_is_the_squared_correlation_of_measured_and_true_means():
    rng = np.random.default_rng(2)
    functions, bases = 4000, 4
    true = 4.6 * rng.normal(size=functions)
    noise = 3.1 * rng.normal(size=(functions, bases)) + 1.5 * rng.normal(size=(functions, bases))
    correlation = np.corrcoef(true, true + noise.mean(axis=1))[0, 1]
    stated = VarianceComponents(80.0, 4.6, 3.1, 1.5, 0.0, 0.0).reliability(bases=bases)
    assert correlation**2 == pytest.approx(stated, abs=0.02)


def test_reliability_by_hand():
    components = VarianceComponents(0.0, 2.0, 2.0, 2.0, 9.0, 9.0)
    assert components.reliability(bases=1, repeats=1) == pytest.approx(4 / 12)
    assert components.reliability(bases=2, repeats=2) == pytest.approx(4 / (4 + 2 + 1))
    assert VarianceComponents(0.0, 0.0, 0.0, 0.0, 0.0, 0.0).reliability(bases=3) == 0.0


def test_reliability_needs_positive_numbers():
    with pytest.raises(ValueError, match=r"bases >= 1 and repeats >= 1, got 0 and 1"):
        VarianceComponents(0.0, 1.0, 1.0, 1.0, 1.0, 1.0).reliability(bases=0)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3, 2), (3, 1, 2), (3, 3, 0)])
def test_too_little_data_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"needs accuracies \[functions >= 2, bases >= 2, repeats >= 1\], got shape"
    ):
        variance_components(np.zeros(shape))


def test_gaps_are_refused():
    with pytest.raises(ValueError, match=r"got 1 accuracies that are not finite. Leave out the functions"):
        variance_components(np.array([[[1.0], [np.nan]], [[5.0], [7.0]]]))


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # ranks 1 2.5 2.5 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert rank_correlation([1, 1], [1, 2]) == 0.0


def test_rank_correlation_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 6, size=20), rng.integers(0, 6, size=20)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_rank_correlation_needs_equal_lengths():
    with pytest.raises(ValueError, match=r"two sequences of one length >= 2, got 2 and 3"):
        rank_correlation([1, 2], [1, 2, 3])
