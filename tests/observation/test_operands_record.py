import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted_compilations

from jaxprune.observation.moments import sample_moments, zero_moments
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands


def make(seed=0, channels=3, **changes):
    rng = np.random.default_rng(seed)
    arguments = {
        "features": rng.standard_normal((12, 2, 2, channels)).astype(np.float32),
        "labels": np.arange(12) % 3,
        "kernel": rng.standard_normal((3, 3, 2, channels)).astype(np.float32),
        "outgoing": rng.standard_normal((3, 3, channels, 5)).astype(np.float32),
        "gamma": rng.standard_normal(channels).astype(np.float32),
        "beta": rng.standard_normal(channels).astype(np.float32),
    }
    return Operands.from_arrays(**(arguments | changes))


def test_shapes_and_order_of_the_record():
    rng = np.random.default_rng(1)
    features, outgoing = rng.random((4, 1, 2, 3)), rng.random((2, 2, 3, 5))
    ops = make(features=features, labels=["b", "a", "b", "a"], outgoing=outgoing)
    assert (ops.num_channels, ops.num_classes, ops.class_counts) == (3, 2, (2, 2))
    np.testing.assert_allclose(ops.samples, features.reshape(4, 2, 3)[[1, 3, 0, 2]], rtol=1e-6)
    np.testing.assert_allclose(ops.outgoing[:, 1], outgoing[:, :, 1].reshape(-1), rtol=1e-6)
    assert ops.moments is ops.sample_moments
    assert ops.sample_is_full
    assert ops.space == (1, 2)


def test_arrays_of_a_new_shape_compile_the_moments_and_nothing_else():
    with counted_compilations() as seen:
        ops = make(channels=29, labels=np.arange(12) // 4)
    assert len(seen) == 1
    assert ops.samples.shape == (12, 4, 29) and ops.outgoing.shape == (9 * 5, 29)


def test_a_dense_layer_has_one_position():
    ops = Operands.from_arrays(features=np.eye(4), labels=[0, 1, 0, 1], kernel=np.ones((5, 4)))
    assert ops.samples.shape == (4, 1, 4)
    assert ops.space == ()
    assert ops.outgoing is None and ops.gamma is None


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.int32, np.float32, np.float64])
def test_every_dtype_becomes_at_least_float32(dtype):
    ops = make(features=np.arange(12 * 4 * 3).reshape(12, 2, 2, 3).astype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(ops)} == {np.dtype(np.float32)}


def test_take_keeps_the_whole_bank():
    ops = make()
    part = ops.take([2, 0])
    np.testing.assert_array_equal(part.filters, ops.filters[:, jnp.array([2, 0])])
    np.testing.assert_array_equal(part.bank, ops.bank)
    np.testing.assert_array_equal(part.moments.offset, ops.moments.offset[..., jnp.array([2, 0])])
    np.testing.assert_array_equal(part.moments.active, ops.moments.active[..., jnp.array([2, 0])])
    assert part.moments.count is ops.moments.count and part.space == ops.space
    np.testing.assert_array_equal(part.gamma, ops.gamma[jnp.array([2, 0])])
    stacked = Operands.stack([ops, make(1)]).take([1])
    np.testing.assert_array_equal(stacked.member(0).outgoing, ops.take([1]).outgoing)


def test_stacking_then_taking_a_member_changes_nothing():
    members = [make(seed) for seed in range(3)]
    stacked = Operands.stack(members)
    assert stacked.is_stacked and stacked.num_members == 3 and not members[0].is_stacked
    jax.tree.map(np.testing.assert_array_equal, stacked.member(1), members[1])


def test_build_works_inside_jit_and_sorts_the_sample():
    labels = np.array([1, 0, 1, 0, 2, 2])

    @jax.jit
    def build(rows):
        moments = sample_moments(rows, labels, num_classes=3)
        return Operands.build(
            moments=moments, samples=rows[:, :1], sample_labels=labels, kernel=jnp.ones((4, 2))
        )

    rows = jnp.arange(24.0).reshape(6, 2, 2)
    ops = build(rows)
    np.testing.assert_array_equal(ops.samples[:, 0], rows[jnp.array([1, 3, 0, 2, 4, 5]), 0])
    assert ops.sample_moments.pivot.shape == (1, 2) and ops.moments.pivot.shape == (2, 2)
    assert ops.space == (1,)


def test_observed_is_a_mapping_and_a_pytree():
    observed = Observed(
        {"conv1.kernel": make(), "conv2.kernel": make(1)}, {"conv1.kernel": ("conv1.kernel",)}
    )
    assert list(observed) == ["conv1.kernel", "conv2.kernel"] and len(observed) == 2
    assert not observed.is_stacked and observed.num_members == 1
    stacked = Observed.stack([observed, observed])
    assert stacked.is_stacked and stacked.num_members == 2
    again = jax.tree.map(lambda leaf: leaf, stacked).member(1)
    assert again.groups == observed.groups
    np.testing.assert_array_equal(again["conv2.kernel"].samples, observed["conv2.kernel"].samples)


BAD = {
    "labels do not match": (
        {"labels": np.arange(11) % 3},
        r"needs one label for each of 12 examples, got labels of shape \(11,\)",
    ),
    "one-hot labels": (
        {"labels": np.eye(12)},
        r"one label for each of 12 examples, got labels of shape \(12, 12\).*argmax",
    ),
    "float labels": (
        {"labels": np.arange(12.0)},
        "labels must be whole numbers or strings, got dtype float64",
    ),
    "one class": ({"labels": np.full(12, 7)}, "at least two classes, got only class .*7.* in 12 labels"),
    "NaN features": (
        {"features": np.full((12, 2, 2, 3), np.nan)},
        "must be finite, got NaN.*144 of 144 in features",
    ),
    "too large for float32": (
        {"features": np.full((12, 2, 2, 3), 1e39)},
        "must be finite, got .*144 of 144 in features.* all fit float32",
    ),
    "infinite kernel": ({"kernel": np.full((2, 3), np.inf)}, "must be finite.*6 of 6 in kernel"),
    "features rank": (
        {"features": np.ones(12)},
        r"features must be a non-empty \[N, H, W, C\].*got shape \(12,\)",
    ),
    "kernel rank": ({"kernel": np.ones(3)}, "kernel must be a non-empty .* The channel axis is last"),
    "outgoing rank": ({"outgoing": np.ones(3)}, "outgoing must be a non-empty .* axis is last but one"),
    "gamma rank": ({"gamma": np.ones((3, 1))}, r"gamma must be a non-empty \[C\]"),
    "empty": ({"features": np.ones((0, 3))}, "features must be a non-empty"),
    "channels first": (
        {"kernel": np.ones((3, 2, 3, 4))},
        "have the 3 channels of features, got kernel with 4",
    ),
    "words": ({"gamma": np.array(["a", "b", "c"])}, "gamma must hold numbers"),
    "complex": ({"beta": np.ones(3, np.complex64)}, "beta must hold real numbers"),
    "unknown extra": (
        {"extras": {"nonsense": np.ones(3)}},
        "extras must be registered operands, got 'nonsense'",
    ),
    "extra width": ({"extras": {"width_test": np.ones((2, 18))}}, r"got extras\['width_test'\] with 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_take_outside_the_layer_is_named():
    with pytest.raises(ValueError, match=r"channel indices in 0 .. 2, got \[3\]"):
        make().take([3])


def test_stacking_unlike_members_is_named():
    with pytest.raises(ValueError, match=r"Operands.stack needs at least one member"):
        Operands.stack([])
    with pytest.raises(ValueError, match=r"Operands.stack needs members of one structure.*member 1 differs"):
        Operands.stack([make(), make(channels=4)])
    with pytest.raises(ValueError, match=r"which operands are present"):
        Operands.stack([make(), make(gamma=None)])
    with pytest.raises(ValueError, match=r"member.* needs stacked operands"):
        make().member(0)


def test_build_names_absent_classes_and_wrong_shapes():
    rows, labels = jnp.ones((4, 1, 2)), np.array([0, 0, 1, 1])
    good = {
        "moments": sample_moments(rows, labels, num_classes=2),
        "samples": rows,
        "sample_labels": labels,
        "kernel": jnp.ones((3, 2)),
    }
    absent = sample_moments(rows, labels, num_classes=3)
    empty = zero_moments(rows[0], 1)
    for changes, message in [
        ({"moments": absent}, r"each of the 3 classes needs an example, but \[2\] have none"),
        ({"moments": absent, "sample_labels": labels + 1}, r"but \[0, 2\] have none"),
        ({"moments": empty, "sample_labels": labels * 0}, "at least two classes, got 1"),
        ({"sample_labels": labels + 1}, r"class ids 0 .. 1, got 1 .. 2"),
        ({"sample_labels": labels[:3]}, r"samples \[n, D, C\] with sample_labels \[n\]"),
        ({"kernel": jnp.ones((3, 5))}, "needs kernel with two axes, the last of 2 channels"),
        ({"space": (2, 3)}, r"space must hold the 1 positions of samples, got \(2, 3\) with 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            Operands.build(**(good | changes))
