"""Weights that are normalised over channels that are pruned: found, said, and with one meaning for slim and mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.pruning.masking import channel_masks, mask
from jaxprune.pruning.planning import Plan, plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.overview import axes_of, overview_of
from jaxprune.structure.tracing import clear_structures, trace_structure

X = jax.random.normal(jax.random.key(0), (12, 6))


class Net(nnx.Module):
    """Three layers; the kernel of the second is computed from its parameter. Sigmoids are not zero at zero."""

    def __init__(self, weights):
        rngs = nnx.Rngs(1)
        self.first, self.second, self.head = (
            nnx.Linear(i, o, rngs=rngs) for i, o in ((6, 8), (8, 10), (10, 3))
        )
        for layer in (self.first, self.second, self.head):
            layer.bias[...] = jax.random.normal(rngs(), layer.bias.shape)
        self.weights = weights

    def __call__(self, x):
        x = nnx.sigmoid(self.first(x))
        x = nnx.sigmoid(x @ self.weights(self.second.kernel[...]) + self.second.bias[...][None])
        return self.head(x)


def norm(w, axis=0):
    return jnp.sqrt((w**2).sum(axis, keepdims=True))


def centred(w):
    return w - w.mean(0, keepdims=True)


def standardised(w):
    return centred(w) / jnp.sqrt(w.var(0, keepdims=True) + 1e-5)


def power_iteration(w):
    """The largest singular value by a vector of fixed numbers, turned twice."""
    u = w.sum(1)
    for _ in range(2):
        v = w.T @ u
        u = w @ (v / jnp.sqrt((v**2).sum() + 1e-6))
    return w / jnp.sqrt((u**2).sum() + 1e-6)


BOTH, FIRST, NONE = {"first.kernel", "second.kernel"}, {"first.kernel"}, set()
SAFE = {  # kernel -> groups over whose channels it is normalised
    "plain": (lambda w: w, NONE),
    "l2 over inputs": (lambda w: w / (norm(w) + 1e-6), FIRST),
    "l2 with rsqrt": (lambda w: w * jax.lax.rsqrt((w**2).sum(0, keepdims=True) + 1e-6), FIRST),
    "l2 over everything": (lambda w: w / jnp.sqrt((w**2).sum() + 1e-6), BOTH),
    "l2 of outputs": (lambda w: w / (norm(w, 1) + 1e-6), {"second.kernel"}),
    "l1": (lambda w: w / (jnp.abs(w).sum(0, keepdims=True) + 1e-6), FIRST),
    "largest": (lambda w: w / (jnp.abs(w).max(0, keepdims=True) + 1e-6), FIRST),
    "quantised": (lambda w: jnp.round(w / jnp.abs(w).max() * 15) / 15 * jnp.abs(w).max(), BOTH),
    "spectral": (power_iteration, BOTH),
    "scaled by a constant": (lambda w: 3 * w, NONE),
    "clipped": (lambda w: jnp.clip(w, -0.1, 0.2), NONE),
    "signs": (lambda w: jnp.sign(w) * 0.3, NONE),
    "squared": (lambda w: jnp.square(jnp.tanh(w)), NONE),
    "nonnegative": (lambda w: jnp.maximum(w, 0), NONE),
    "chosen": (lambda w: jnp.where(w > 0.1, w, 0.0), NONE),
    "powers": (lambda w: jnp.abs(w) ** 1.5, NONE),
    "l2, guarded": (lambda w: w / jnp.where(norm(w) == 0, 1.0, norm(w)), FIRST),
    "l1 as a product with ones": (lambda w: w / (jnp.ones((1, len(w))) @ jnp.abs(w) + 1e-6), FIRST),
}
UNSAFE = {
    "standardised": (standardised, FIRST),
    "centred": (centred, FIRST),
    "root mean square": (lambda w: w / jnp.sqrt((w**2).mean(0, keepdims=True) + 1e-6), FIRST),
    "softmax": (lambda w: jax.nn.softmax(w, axis=0), FIRST),
    "largest, with sign": (lambda w: w / (jnp.max(w, 0, keepdims=True) + 5), FIRST),
    "exponential": (jnp.exp, NONE),
    "softplus": (jax.nn.softplus, NONE),
    "shifted": (lambda w: w + 0.1, NONE),
    "chosen or one": (lambda w: jnp.where(w > 0.1, w, 1.0), NONE),
    "clamped away from zero": (lambda w: jax.lax.clamp(0.5, w, 2.0), NONE),
    "l2 of clamped": (lambda w: w / norm(jax.lax.clamp(0.5, w, 2.0)), FIRST),
    "softmax by a product with ones": (lambda w: jnp.exp(w) / (jnp.ones((1, len(w))) @ jnp.exp(w)), FIRST),
    "one or minus one": (lambda w: jnp.where(w >= 0, 1.0, -1.0) + 0 * w, NONE),
}
ALL = {**SAFE, **UNSAFE}


def half_of(model, groups=("first.kernel", "second.kernel")):
    structure = trace_structure(model, X)
    scores = {name: np.random.default_rng(3).random(size) for name, size in structure.widths.items()}
    counts = {name: structure.widths[name] // 2 for name in groups}
    return plan(model, scores, X, kept_counts=counts)


def built_smaller(model, half):
    """What a network of these few channels computes."""
    first, second = (np.asarray(half.kept[name]) for name in ("first.kernel", "second.kernel"))
    x = nnx.sigmoid(model.first(X))[:, first]
    kernel = model.weights(model.second.kernel[...][first][:, second])
    return (
        nnx.sigmoid(x @ kernel + model.second.bias[...][second][None]) @ model.head.kernel[...][second]
        + model.head.bias[...][None]
    )


@pytest.mark.parametrize("name", ALL)
class TestOneMeaning:
    def test_normalised_groups_are_found_and_stay_groups(self, name):
        weights, groups = ALL[name]
        structure = trace_structure(Net(weights), X)
        assert structure.widths == {"first.kernel": 8, "second.kernel": 10}
        found = {
            group
            for group, all_weights in structure.normalised.items()
            if any(w.is_norm for w in all_weights)
        }
        assert found == groups

    def test_slim_computes_what_a_network_built_smaller_does(self, name):
        model = Net(ALL[name][0])
        half = half_of(model)
        np.testing.assert_allclose(slim(model, half)(X), built_smaller(model, half), rtol=1e-4, atol=1e-5)

    def test_mask_computes_what_slim_does_or_is_refused(self, name):
        model = Net(ALL[name][0])
        half = half_of(model)
        if name in SAFE:
            np.testing.assert_allclose(mask(model, half)(X), slim(model, half)(X), rtol=1e-4, atol=1e-5)
            return
        message = (
            r"same with zeros .*group first\.kernel, over which second\.kernel is computed in .*Use slim"
        )
        with pytest.raises(ValueError, match=message):
            mask(model, half)
        with pytest.raises(ValueError, match=message):
            channel_masks(trace_structure(model, X), half.kept)

    def test_the_plan_and_why_say_it(self, name):
        weights, groups = ALL[name]
        model = Net(weights)
        half = half_of(model)
        assert {note.split("channels of ")[1].split(":")[0] for note in half.notes} == groups
        assert all(note.startswith("second.kernel is normalised over axis") for note in half.notes)
        assert Plan.from_json(half.to_json()) == half and Plan.from_json(half.to_json()).notes == half.notes
        structure = trace_structure(model, X)
        lines = axes_of(structure, "second.kernel")
        assert ["normalised over this axis" in line for line in lines] == [
            group in groups for group in ("first.kernel", "second.kernel")
        ]
        rows = overview_of(structure).rows
        said = {row.name for row in rows if any("are normalised over these channels" in n for n in row.notes)}
        assert said == groups


def test_a_plan_that_prunes_no_normalised_channels_has_no_notes_and_can_be_masked():
    model = Net(standardised)
    half = half_of(model, groups=("second.kernel",))
    assert half.notes == ()
    np.testing.assert_allclose(mask(model, half)(X), slim(model, half)(X), rtol=1e-4, atol=1e-5)


def test_mask_is_refused_rather_than_dividing_zero_by_zero():
    model = Net(lambda w: w / norm(w))
    np.testing.assert_allclose(
        mask(model, half_of(model, ("first.kernel",)))(X),
        slim(model, half_of(model, ("first.kernel",)))(X),
        rtol=1e-4,
    )
    with pytest.raises(
        ValueError, match=r"group second\.kernel, over which second\.kernel is computed in div"
    ):
        mask(model, half_of(model))
    assert np.isfinite(slim(model, half_of(model))(X)).all()


def test_a_norm_that_scales_activations_counts_too():
    class After(Net):
        def __call__(self, x):
            x = nnx.sigmoid(self.first(x))
            kernel = self.second.kernel[...]
            return self.head(nnx.sigmoid(x @ kernel / (norm(kernel) + 1e-6)))

    model = After(None)
    half = half_of(model)
    assert len(half.notes) == 1 and "channels of first.kernel" in half.notes[0]
    np.testing.assert_allclose(mask(model, half)(X), slim(model, half)(X), rtol=1e-4, atol=1e-5)


class Wrapped(nnx.Module):
    def __init__(self, wrap):
        rngs = nnx.Rngs(0)
        self.first, self.second = (
            wrap(nnx.Conv(i, o, (3, 3), rngs=rngs), rngs) for i, o in ((3, 12), (12, 10))
        )
        self.head = nnx.Linear(10, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))).mean((1, 2)))


@pytest.mark.parametrize(
    ("wrap", "num_notes"),
    [
        (lambda layer, rngs: nnx.WeightNorm(layer, rngs=rngs), 1),
        (lambda layer, rngs: nnx.WeightNorm(layer, feature_axes=None, use_scale=False, rngs=rngs), 3),
        (lambda layer, rngs: nnx.SpectralNorm(layer, rngs=rngs), 3),
        (lambda layer, rngs: layer, 0),
    ],
    ids=["weight norm", "weight norm of everything", "spectral norm", "none"],
)
def test_flax_own_wrappers_are_told(wrap, num_notes):
    model, images = Wrapped(wrap), jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    structure = trace_structure(model, images)
    scores = {name: np.arange(float(size)) for name, size in structure.widths.items()}
    half = plan(model, scores, images, kept_fraction=0.5)
    assert len(half.notes) == num_notes
    nets = [nnx.clone(net) for net in (slim(model, half), mask(model, half))]
    for net in nets:
        net.eval()
    np.testing.assert_allclose(nets[0](images), nets[1](images), rtol=1e-4, atol=1e-5)


UNARY = [jnp.abs, jnp.square, jnp.tanh, jnp.exp, jnp.sin, jnp.cos, jnp.negative, jax.nn.relu, jax.nn.sigmoid]
REDUCED = [jnp.sum, jnp.mean, jnp.max, jnp.min, jnp.var, jnp.linalg.norm]
BINARY = [jnp.multiply, jnp.add, jnp.subtract, lambda a, b: a / (1.5 + b**2), jnp.maximum]


def random_kernel(seed):
    """A function of a kernel, put together at random from sums over its entries and elementwise functions."""
    rng = np.random.default_rng(seed)

    def pick(functions):
        return functions[rng.integers(len(functions))]

    steps = [
        (pick(UNARY), pick(UNARY), pick(REDUCED), pick(BINARY), rng.random() < 0.7)
        for _ in range(rng.integers(1, 3))
    ]

    def weights(w):
        for inner, outer, reduced, binary, is_reduced in steps:
            other = reduced(inner(w), axis=0, keepdims=True) if is_reduced else inner(w)
            w = outer(binary(w, other))
        return w

    return weights


@pytest.mark.parametrize("seed", range(24))
def test_for_kernels_made_at_random_mask_equals_slim_or_is_refused(seed):
    clear_structures()
    model = Net(random_kernel(seed))
    half = half_of(model)
    smaller = slim(model, half)(X)
    np.testing.assert_allclose(smaller, built_smaller(model, half), rtol=1e-3, atol=1e-4)
    try:
        masked = mask(model, half)
    except ValueError as error:
        assert "same with zeros" in str(error)
    else:
        np.testing.assert_allclose(masked(X), smaller, rtol=1e-3, atol=1e-4)
