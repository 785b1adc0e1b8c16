"""The moments of the other classes: sums over these classes, in time that grows with the number of classes alone."""

import jax
import numpy as np
import pytest
from class_moments import class_sets

from jaxprune.observation.moments import Moments, sample_moments, set_moments


class Counted(np.ndarray):
    """An array whose operations count the numbers that they compute."""

    computed = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(value) if isinstance(value, Counted) else value for value in inputs]
        results = None if out is None else tuple(np.asarray(value) for value in out)
        found = getattr(ufunc, method)(*plain, **options, **({} if results is None else {"out": results}))
        Counted.computed += np.size(found)
        return found.view(Counted) if isinstance(found, np.ndarray) else found


def made_up(num_classes, rng, num_positions=3, num_channels=2):
    """Moments in float32 around a mean that is large beside the spread; of three classes or more, one is empty."""
    shape = (num_classes, num_positions, num_channels)
    count = rng.integers(1, 9, num_classes).astype(np.float32)
    count[num_classes // 2] *= num_classes < 3
    pivot = rng.normal(1e3, 1, shape[1:]).astype(np.float32)
    offset = rng.normal(size=shape).astype(np.float32)
    return Moments(count, pivot, offset, rng.uniform(0, 5, shape).astype(np.float32), count[:, None])


def summed_directly(moments, k):
    """Number of examples, mean minus pivot and squared deviations of all classes but k, in float64."""
    others = np.arange(len(moments.count)) != k
    count, offset, m2 = (np.asarray(moments[i], np.float64)[others] for i in (0, 2, 3))
    weights = count[:, None, None]
    mean = (weights * offset).sum(0) / count.sum()
    return count.sum(), mean, (m2 + weights * (offset - mean) ** 2).sum(0)


@pytest.mark.parametrize("num_classes", [2, 3, 17, 100])
def test_sums_over_the_other_classes_equal_the_direct_ones(num_classes):
    moments = made_up(num_classes, np.random.default_rng(num_classes))
    found = set_moments(moments, "Q")
    for k in range(num_classes):
        count, mean, m2 = summed_directly(moments, k)
        assert found.num_examples[k] == count
        np.testing.assert_allclose(found.offset[k], mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.m2[k], m2, rtol=1e-6)


def test_arrays_of_jax_give_the_same_sums():
    moments = made_up(17, np.random.default_rng(5))
    found, expected = class_sets(moments)["Q"], set_moments(moments, "Q")
    np.testing.assert_allclose(found.m2, expected.m2, rtol=2e-6)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=2e-7)


def test_constant_channels_stay_exactly_constant_with_many_classes():
    features = np.full((40, 3, 2), 0.1, np.float32)
    moments = jax.device_get(sample_moments(features, np.arange(40) % 20, num_classes=20))
    found = set_moments(moments, "Q")
    assert not found.m2.any() and not found.entry_variance.any()
    assert (found.entry_mean == np.float32(0.1)).all()


def test_a_single_class_has_no_others():
    moments = made_up(1, np.random.default_rng(0))
    found = set_moments(moments, "Q")
    assert found.num_examples.tolist() == [0]
    assert not found.offset.any() and not found.m2.any()


def test_the_work_grows_linearly_with_the_number_of_classes():
    computed = []
    for num_classes in (50, 100, 200):
        moments = made_up(num_classes, np.random.default_rng(1))
        Counted.computed = 0
        set_moments(Moments(*(array.view(Counted) for array in moments)), "Q")
        computed.append(Counted.computed)
    assert computed[1] < 2.1 * computed[0] and computed[2] < 2.1 * computed[1]
    assert computed[0] > 50 * 3 * 2


def test_the_compiled_work_grows_linearly_too():
    computed = []
    for num_classes in (64, 128, 256):
        moments = made_up(num_classes, np.random.default_rng(1))
        jaxpr = jax.make_jaxpr(lambda *arrays: set_moments(Moments(*arrays), "Q")[2:4])(*moments).jaxpr
        computed.append(sum(np.prod(value.aval.shape) for each in jaxpr.eqns for value in each.outvars))
    assert computed[1] < 2.3 * computed[0] and computed[2] < 2.3 * computed[1]
