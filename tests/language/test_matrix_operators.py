"""Vector and matrix operators, by hand and against float64."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toy_formulas

from jaxprune.language.axes import slice_bounds
from jaxprune.language.matrix_operators import squared_distances
from jaxprune.language.operators import OPERATORS


@pytest.fixture(autouse=True, params=[np, jnp], ids=["numpy", "jax"])
def xp(request, monkeypatch):
    """Every operator is tried with both array libraries."""
    monkeypatch.setattr(sys.modules[__name__], "XP", request.param)


XP = np


def compute(name, *arrays, masks=None, params=()):
    arrays = [np.asarray(array, np.float32) for array in arrays]
    return np.asarray(toy_formulas.compute(name, *arrays, masks=masks, params=params, xp=XP))


def test_products_by_hand():
    matrix = [[1.0, 2.0], [3.0, 4.0]]
    np.testing.assert_array_equal(compute("matmul", matrix, matrix), [[7.0, 10.0], [15.0, 22.0]])
    np.testing.assert_array_equal(compute("matmul", matrix, [1.0, 1.0]), [3.0, 7.0])
    np.testing.assert_array_equal(compute("matmul", [1.0, 1.0], matrix), [4.0, 6.0])
    assert compute("inner", [1.0, 2.0], [3.0, 4.0]) == 11.0
    np.testing.assert_array_equal(compute("outer", [1.0, 2.0], [3.0]), [[3.0], [6.0]])
    assert compute("trace", matrix) == 5.0
    np.testing.assert_array_equal(compute("transpose", matrix), [[1.0, 3.0], [2.0, 4.0]])


def test_inverse_is_of_the_ridged_matrix():
    np.testing.assert_allclose(
        compute("inverse", [[1.0, 0.0], [0.0, 0.0]]), np.diag([1 / 1.0001, 1e4]), rtol=1e-5
    )


def test_inverse_keeps_digits_when_positions_differ_in_scale():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 12)) * np.exp(2 * rng.normal(size=12))
    gram = (samples.T @ samples).astype(np.float32)
    expected = np.linalg.inv(gram.astype(np.float64) + 1e-4 * np.eye(12))
    scale = np.sqrt(np.diag(expected))
    assert np.max(np.abs(compute("inverse", gram) - expected) / np.outer(scale, scale)) < 1e-5


def test_inverse_takes_matrices_that_are_not_positive():
    matrix = np.asarray([[0.0, 2.0], [-1.0, -3.0]], np.float32)
    np.testing.assert_allclose(
        compute("inverse", matrix), np.linalg.inv(matrix + 1e-4 * np.eye(2)), rtol=1e-5
    )


def test_rbf_by_hand():
    kernel = compute("rbf", [[0.0], [1.0]], [[0.0], [3.0]], params=(2.0,))
    np.testing.assert_allclose(kernel, np.exp([[0.0, -9 / 8], [-1 / 8, -4 / 8]]), rtol=1e-6)
    np.testing.assert_allclose(
        compute("rbf", [[0.0], [1.0]], params=(1.0,)), np.exp([[0, -0.5], [-0.5, 0]]), rtol=1e-6
    )


def test_rbf_works_from_differences_so_that_large_means_do_no_harm():
    kernel = compute("rbf", [[1e4], [1e4 + 1]], params=(1.0,))
    np.testing.assert_allclose(kernel, np.exp([[0, -0.5], [-0.5, 0]]), rtol=1e-6)


def test_geometric_median_is_the_medoid_column():
    np.testing.assert_array_equal(compute("geometric_median", [[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]]), [1.0, 0.0])


def test_geometric_median_takes_the_first_column_on_ties():
    np.testing.assert_array_equal(compute("geometric_median", [[3.0, 4.0]]), [3.0])
    masks = [(None, np.asarray([False, True, True]))]
    np.testing.assert_array_equal(compute("geometric_median", [[np.nan, 3.0, 4.0]], masks=masks), [3.0])


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 5), (7, 8), (0, 8)])
def test_slices_keep_eighths_of_any_size(first, last):
    for size in range(1, 10):
        array = np.arange(2.0 * size).reshape(2, size)
        start, stop = slice_bounds(size, first, last)
        np.testing.assert_array_equal(compute("slice", array, params=(first, last)), array[:, start:stop])


def test_matrices_that_cannot_be_inverted_do_not_disturb_the_others():
    values = np.stack([np.eye(2), np.full((2, 2), -1e-4) * np.eye(2)]).astype(np.float32)
    inverses = np.asarray(OPERATORS["inverse"].implement(XP, XP.asarray(values)[None, None]))[0, 0]
    np.testing.assert_allclose(inverses[0], np.eye(2) / 1.0001, rtol=1e-6)
    assert not np.isfinite(inverses[1]).all()


def test_distances_are_exact_where_rows_are_equal_or_small_numbers():
    rows = np.array(
        [[1e4 + 1, 2.0] + [0.5] * 8, [1e4, 2.0] + [0.5] * 8, [1e4 + 1, 2.0] + [0.5] * 8], np.float32
    )
    distances = np.asarray(squared_distances(XP, XP.asarray(rows), XP.asarray(rows)))
    np.testing.assert_array_equal(distances, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_a_row_is_exactly_at_0_from_itself_and_distances_are_symmetric():
    rows = XP.asarray(np.random.default_rng(0).normal(50, 50, (256, 33)).astype(np.float32))
    distances = np.asarray(squared_distances(XP, rows, rows))
    assert not np.diagonal(distances).any()
    np.testing.assert_array_equal(distances, distances.T)
