"""Statistics of the rows of all classes at once, against NumPy class by class, with NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.observation.moments import Moments
from jaxprune.scoring import set_statistics
from jaxprune.scoring.set_statistics import (
    BlockedStatistics,
    ClassRows,
    SetStatistics,
    pair_statistics,
    row_statistics,
)

NAMES = {"mean": np.mean, "var": np.var, "std": np.std, "sum": np.sum, "count": np.size}


@pytest.fixture(params=[np, jnp], ids=["numpy", "jax"])
def xp(request):
    return request.param


def all_of(statistics, xp, rows, *arrays):
    """Every statistic by name; those of JAX from one program, as scorers have them."""

    def compute(values, *masks):
        return dict(statistics(xp, values, rows, *masks))

    return (compute if xp is np else jax.jit(compute))(*arrays)


def sets(rows, k):
    """Name -> numbers of the rows of a set for class k."""
    own = rows.class_ids == k
    return {"X": np.arange(len(own)), "P": np.flatnonzero(own), "Q": np.flatnonzero(~own)}


@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 1, 2)])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_every_set_has_the_statistics_of_its_rows(xp, counts, shift):
    rows = ClassRows(counts)
    values = (np.random.default_rng(0).normal(shift, 1, (2, 1, 4, sum(counts), 5))).astype(np.float32)
    found = all_of(row_statistics, xp, rows, values)
    for k in range(len(counts)):
        for name, own in sets(rows, k).items():
            row = 0 if name == "X" else k
            selected = values[:, 0, :, own].astype(np.float64).transpose(1, 2, 0, 3)  # [M, C, n, D]
            for operator, function in NAMES.items():
                expected = [[function(channel) for channel in member] for member in selected]
                np.testing.assert_allclose(
                    found[f"{operator}({name})"][:, row],
                    expected,
                    rtol=2e-5,
                    atol=1e-5,
                    err_msg=f"{operator}({name})",
                )
            np.testing.assert_allclose(
                found[f"mean_samples({name})"][:, row], selected.mean(2), rtol=1e-5, atol=1e-6
            )


def test_positions_that_are_filled_up_play_no_part():
    rows = ClassRows((2, 3))
    values = np.random.default_rng(1).normal(0, 1, (1, 1, 2, 5, 6)).astype(np.float32)
    expected = row_statistics(np, values[..., :4], rows)
    values[..., 4:] = np.nan
    is_position = (np.arange(6) < 4).reshape(1, 1, 1, 6)
    found = all_of(row_statistics, jnp, rows, values, is_position)
    for name, value in expected.items():
        own = found[name][..., :4] if name.startswith("mean_samples") else found[name]
        np.testing.assert_allclose(own, value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_equal_rows_are_exact(xp):
    """A class that is constant has no variance, and what the other classes leave at 0 has a mean of exactly 0."""
    values = np.zeros((1, 1, 1, 6, 1), np.float32)
    values[..., :2, :] = 0.1
    found = all_of(row_statistics, xp, ClassRows((2, 2, 2)), values)
    assert np.asarray(found["var(P)"]).max() == 0
    np.testing.assert_array_equal(np.asarray(found["mean(Q)"])[0, 0], [0])
    np.testing.assert_array_equal(np.asarray(found["mean_samples(P)"])[0, :, 0, 0], np.float32([0.1, 0, 0]))


@pytest.mark.parametrize("counts", [(2, 2), (3, 1, 2)])
def test_pairs_of_sets(xp, counts):
    rows = ClassRows(counts)
    values = np.random.default_rng(2).normal(0, 1, (1, 1, 2, sum(counts), sum(counts))).astype(np.float32)
    found = all_of(pair_statistics, xp, rows, values)
    for k in range(len(counts)):
        for first, own in sets(rows, k).items():
            for second, other in sets(rows, k).items():
                selected = values[0, 0][:, own][:, :, other]
                row = 0 if first == second == "X" else k
                for operator, function in (("sum", np.sum), ("mean", np.mean)):
                    value = np.asarray(found[f"{operator}({first},{second})"])
                    np.testing.assert_allclose(
                        value[0, row], function(selected, (1, 2)), rtol=1e-4, atol=1e-5
                    )


def test_rows_of_classes_are_selected_in_any_axes(xp):
    rows = ClassRows((2, 1, 2))
    values = np.arange(2 * 25, dtype=np.float32).reshape(1, 1, 2, 5, 5)
    found = np.asarray(rows.select(xp, xp.asarray(values), ("N", "NQ")))
    assert found.shape == (1, 3, 2, 2, 4)
    for k in range(3):
        own, other = np.flatnonzero(rows.class_ids == k), np.flatnonzero(rows.class_ids != k)
        np.testing.assert_array_equal(
            found[0, k, :, : len(own), : len(other)], values[0, 0][:, own][:, :, other]
        )
    balanced = ClassRows((2, 2))
    values = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 2, 4)
    np.testing.assert_array_equal(
        np.asarray(balanced.select(xp, xp.asarray(values), ("D", "N")))[0, 1, 0], values[0, 0, 0][:, 2:]
    )


def test_blocks_of_channels_give_the_same_bits_and_keep_no_positions(monkeypatch):
    rng = np.random.default_rng(0)
    pivot, offset, spread = (
        rng.normal(size=shape).astype(np.float32) for shape in ((1, 4, 20), (1, 5, 4, 20), (1, 5, 4, 20))
    )
    moments = Moments(np.arange(1, 6, dtype=np.float32)[None], pivot, offset, np.square(spread), pivot)
    expected = SetStatistics(np, moments, lambda: moments.m2)
    whole = BlockedStatistics(moments)
    monkeypatch.setattr(set_statistics, "_LARGE_BYTES", 1)
    monkeypatch.setattr(set_statistics, "_BLOCK_BYTES", 1)
    blocked = BlockedStatistics(moments)
    for name in expected:
        np.testing.assert_array_equal(whole[name], expected[name])
        np.testing.assert_array_equal(blocked[name], expected[name])
    assert not [name for name in blocked._values if "samples" in name]
    with pytest.raises(KeyError):
        blocked["mean(W)"]
