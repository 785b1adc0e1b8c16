"""NumPy's kernels give what the compiled ones give."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.scoring import host_kernels, kernels

RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal(8192).astype(np.float32)


def mask(real, row, prefix=None):
    rows = np.broadcast_to(real, (8192 // row, row))
    return kernels.RowMask(
        rows.reshape(-1), rows.argmax(1).astype(np.int32), rows.sum(1).astype(np.float32), prefix
    )


@pytest.mark.parametrize(
    "geometry", [((1, 64, 128), (0, 128, 1), 0), ((64, 128), (1, 0), 5), ((3, 16), (7, 2), 8000)]
)
def test_gathering_is_the_same(geometry):
    numbers = kernels.make_geometry(*geometry)
    real = int(np.prod(geometry[0]))
    found = host_kernels.rearrange(VALUES, numbers, 8192, "entry")
    np.testing.assert_array_equal(
        found[:real], kernels._rearrange(VALUES, jnp.asarray(numbers), 8192, "entry")[:real]
    )
    for number in range(len(kernels.OVER)):
        over = host_kernels.binary_over(number, VALUES, VALUES, numbers, "entry")
        wanted = kernels._binary_over(number, jnp.asarray(VALUES), VALUES, jnp.asarray(numbers), "entry")
        np.testing.assert_allclose(over[:real], wanted[:real], rtol=1e-6)


@pytest.mark.parametrize("real", [np.arange(16) < 9, np.arange(16) % 3 == 1])
def test_rows_are_summed_up_alike(real):
    prefix = 9 if real[0] else None
    values = np.where(mask(real, 16).is_real, VALUES, np.nan)
    whole = host_kernels.sum_rows(values, mask(real, 16, prefix), 16, smallest=4096)
    np.testing.assert_allclose(whole, kernels._sum_rows(values, mask(real, 16), 16), rtol=1e-5, atol=1e-5)
    both = host_kernels.spread_rows(values, mask(real, 16, prefix), 16, smallest=4096)
    for own, other in zip(both, kernels._spread_rows(values, mask(real, 16), 16), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 4, 3, 8), (2, 4, 8, 5)),
        ((1, 4, 3, 8), (2, 4, 8, 1)),
        ((2, 4, 1, 8), (1, 1, 8, 5)),
        ((1, 1, 3, 8), (2, 4, 8, 1)),
        ((1, 1, 3, 8), (2, 4, 8, 5)),
        ((2, 1, 3, 8), (1, 4, 8, 2)),
    ],
)
@pytest.mark.parametrize("real", [np.arange(8) < 6, np.arange(8) % 3 == 1])
def test_products_leave_out_what_is_padding(left, right, real):
    lanes = (2, 4)
    first, second = (RNG.standard_normal(shape).astype(np.float32) for shape in (left, right))
    first[..., ~real], second[..., ~real, :] = np.nan, np.inf
    rows = np.broadcast_to(real, (8, 8))
    own = kernels.RowMask(
        rows.reshape(-1),
        rows.argmax(1).astype(np.int32),
        rows.sum(1).astype(np.float32),
        6 if real[0] else None,
    )
    found = np.zeros((*lanes, left[2], right[3]), np.float32)
    host_kernels.product(first, second, own, found)
    expected = np.matmul(first[..., real].astype(np.float64), second[..., real, :])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", [16, 2048, 8192])
def test_rows_of_equal_entries_have_no_variance_and_equal_rows_equal_sums(row):
    values = np.full(8192, 30.1, np.float32)
    whole = mask(np.ones(row, bool), row, row)
    mean, variance = host_kernels.spread_rows(values, whole, row, smallest=8)
    assert (mean[: 8192 // row] == np.float32(30.1)).all()
    assert (variance == 0).all()
    values = np.tile(VALUES[:row], 8192 // row)
    assert len(set(host_kernels.sum_rows(values, whole, row, smallest=8)[: 8192 // row].tolist())) == 1
