"""What a network keeps in its variables: stored values count, not what they read as; what is no array is passed on."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxprune.language.parsing import parse
from jaxprune.nets.cost import count_macs, count_parameters, parameter_sizes
from jaxprune.observation.observer import observe
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim
from jaxprune.scoring.ranking import score
from jaxprune.structure.model_state import merge_model, split_model
from jaxprune.structure.tracing import clear_structures, trace_structure
from jaxprune.training.loop import make_step, split_network
from jaxprune.training.recipes import RECIPES

X = jax.random.normal(jax.random.key(0), (12, 6))
LABELS = np.arange(12) % 3


class Squared(nnx.Param):
    """A weight that is squared whenever it is read, by the hook of a class."""

    def on_get_value(self, value):
        return jnp.square(value)


class Tripled(nnx.Param):
    """A weight that is tripled whenever it is read, by a method that Flax recommends in place of hooks."""

    def get_value(self, **options):
        return 3 * super().get_value(**options)


def doubled(value):
    """A weight with a hook of its own."""
    return nnx.Param(value, on_get_value=lambda variable, value: 2 * value)


class Plain(nnx.Module):
    def __init__(self, make=nnx.Param):
        rngs = nnx.Rngs(0)
        self.a, self.b = make(jax.random.normal(rngs(), (6, 16))), make(jax.random.normal(rngs(), (16, 3)))

    def __call__(self, x):
        return nnx.relu(x @ self.a[...]) @ self.b[...]


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flax calls hooks deprecated
        return Plain(make)


HOOKS = {"class": Squared, "variable": doubled, "method": Tripled}


@pytest.mark.parametrize("make", HOOKS.values(), ids=HOOKS)
class TestValuesThatChangeWhenTheyAreRead:
    def test_taking_apart_and_merging_changes_nothing(self, make):
        model = quietly(make)
        again = merge_model(*split_model(model))
        np.testing.assert_array_equal(again(X), model(X))
        np.testing.assert_array_equal(split_model(model)[1][("a",)], model.a.get_raw_value())

    @pytest.mark.parametrize("function", [slim, mask])
    def test_a_plan_that_keeps_everything_changes_nothing(self, make, function):
        model = quietly(make)
        whole = plan(model, {"a": np.arange(16.0)}, X, kept_fraction=1.0)
        np.testing.assert_allclose(function(model, whole)(X), model(X), rtol=1e-5)
        np.testing.assert_array_equal(function(model, whole).a.get_raw_value(), model.a.get_raw_value())

    def test_slim_and_mask_are_the_network_without_those_channels(self, make):
        model = quietly(make)
        half = plan(model, {"a": np.arange(16.0)}, X, kept_fraction=0.5)
        kept = np.asarray(half.kept["a"])
        expected = nnx.relu(X @ model.a[...][:, kept]) @ model.b[...][kept]
        np.testing.assert_allclose(slim(model, half)(X), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mask(model, half)(X), expected, rtol=1e-5, atol=1e-5)

    def test_activations_are_read_and_weights_are_stored_values(self, make):
        model = quietly(make)
        observed = observe(model, X, LABELS)
        activations = jnp.abs(nnx.relu(X @ model.a[...])).mean(0)
        scores = score(parse("mean(abs(X))"), observed)["a"]
        np.testing.assert_allclose(scores / np.mean(scores), activations / jnp.mean(activations), rtol=1e-5)
        np.testing.assert_array_equal(observed["a"].filters.reshape(-1, 16), model.a.get_raw_value())
        np.testing.assert_array_equal(observed["a"].outgoing.reshape(-1, 16), model.b.get_raw_value().T)

    def test_training_changes_stored_values(self, make):
        model = quietly(make)
        network, weights = split_network(model)
        np.testing.assert_array_equal(network.logits(weights, X), model(X))
        init, step = make_step(network, RECIPES["adam_short"], 5)
        state = step(init(weights), X, jnp.asarray(LABELS), jax.random.key(0))

        def loss(flat):
            logits = merge_model(*split_model(model)[:1], flat, {})(X)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).mean()

        gradient = jax.grad(loss)(weights)[("a",)]
        change = state.weights[("a",)] - weights[("a",)]
        moved = jnp.abs(gradient) > 1e-6
        assert (jnp.sign(change) == -jnp.sign(gradient))[moved].all()


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem, self.mid, self.head = (
            nnx.Linear(i, o, rngs=rngs) for i, o in ((6, 16), (16, 16), (16, 3))
        )

    def __call__(self, x):
        return self.head(nnx.relu(self.mid(nnx.relu(self.stem(x)))))


def tree_of(value):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tolist() if hasattr(leaf, "shape") else leaf, value)


VALUES = {
    "whole number": 3,
    "number": 0.5,
    "boolean": True,
    "nothing": None,
    "text": "hello",
    "bytes": b"hello",
    "complex": 2j,
    "function": nnx.relu,
    "tuple": (jnp.ones(3), jnp.ones(2)),
    "empty tuple": (),
    "list": [1, jnp.ones(2)],
    "dictionary": {"a": jnp.ones(3), "b": {"c": "text"}},
}


CASES = [(nnx.Variable, value) for value in VALUES.values()] + [
    (kind, VALUES["tuple"]) for kind in (nnx.Param, nnx.Cache, nnx.BatchStat, nnx.Intermediate)
]


@pytest.mark.parametrize(
    ("kind", "value"), CASES, ids=[*VALUES, "param", "cache", "statistic", "intermediate"]
)
def test_what_is_no_array_is_passed_on_untouched(kind, value):
    model, plain = Net(), Net()
    model.extra = kind(value)
    structure = trace_structure(model, X)
    assert structure.widths == trace_structure(plain, X).widths
    scores = {name: np.arange(16.0) for name in structure.groups}
    half = plan(model, scores, X, kept_fraction=0.5)
    assert half == plan(plain, scores, X, kept_fraction=0.5)
    for function in (slim, mask):
        result = function(model, half)
        assert tree_of(result.extra.get_raw_value()) == tree_of(value)
        assert type(result.extra) is kind and result.extra is not model.extra
        np.testing.assert_array_equal(result(X), function(plain, half)(X))
    assert tree_of(model.extra.get_raw_value()) == tree_of(value)
    assert count_parameters(model) == count_parameters(plain) == structure.count_parameters()
    assert parameter_sizes(model) == parameter_sizes(plain)
    assert count_macs(model, X) == count_macs(plain, X)


class Scaled(Net):
    """Reads a number and a pair of arrays that are held in variables."""

    def __init__(self, factor, pair):
        super().__init__()
        self.factor, self.pair = nnx.Variable(factor), nnx.Variable(pair)

    def __call__(self, x):
        first, second = self.pair.get_value()
        return super().__call__(x * self.factor.get_value() + first) + second


def test_a_network_computes_with_the_values_that_it_keeps():
    models = [
        Scaled(factor, (jnp.full((1, 6), 0.1), jnp.full((1, 3), shift)))
        for factor, shift in ((2, 1.0), (3, 5.0))
    ]
    for model in models:
        whole = plan(
            model, {"stem.kernel": np.arange(16.0), "mid.kernel": np.arange(16.0)}, X, kept_fraction=1.0
        )
        observed = observe(model, X, LABELS)
        expected = nnx.relu(model.stem(X * model.factor.get_value() + 0.1)).mean(0)
        np.testing.assert_allclose(
            score(parse("mean(X)"), observed)["stem.kernel"] * expected.mean(), expected, rtol=1e-4
        )
        np.testing.assert_allclose(slim(model, whole)(X), model(X), rtol=1e-5)


class Branching(Net):
    """Leaves its second layer out, as a variable says."""

    def __init__(self, depth):
        super().__init__()
        self.depth = nnx.Variable(depth)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        return self.head(nnx.relu(self.mid(x)) if self.depth.get_value() > 1 else x)


def test_networks_with_other_values_have_structures_of_their_own():
    clear_structures()
    assert list(trace_structure(Branching(2), X).groups) == ["stem.kernel", "mid.kernel"]
    assert list(trace_structure(Branching(1), X).groups) == ["stem.kernel"]


class Sowing(Net):
    def __init__(self, kind=nnx.Intermediate, **options):
        super().__init__()
        self.kind, self.options = kind, options

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        self.sow(self.kind, "seen", x, **self.options)
        return self.head(nnx.relu(self.mid(x)))


class Seen(nnx.Variable):
    """A kind of variable of one's own."""


ADDED = {"init_fn": lambda: 0.0, "reduce_fn": lambda before, now: before + now}
LATEST = {"init_fn": lambda: None, "reduce_fn": lambda before, now: now}
SOWING = {
    "appended": lambda: Sowing(),
    "added": lambda: Sowing(**ADDED),
    "latest": lambda: Sowing(**LATEST),
    "of its own kind": lambda: Sowing(Seen),
}


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("num_runs", [0, 2])
@pytest.mark.parametrize("make", SOWING.values(), ids=SOWING)
def test_what_a_network_sowed_before_is_passed_on_and_training_drops_more(make, num_runs):
    model = make()
    for _ in range(num_runs):
        model(X[:5])
    sown = tree_of(model.seen.get_raw_value()) if num_runs else None
    plain = Net()
    half = plan(plain, {"stem.kernel": np.arange(16.0), "mid.kernel": np.arange(16.0)}, X, kept_fraction=0.5)
    assert (
        plan(model, {"stem.kernel": np.arange(16.0), "mid.kernel": np.arange(16.0)}, X, kept_fraction=0.5)
        == half
    )
    smaller = slim(model, half)
    assert tree_of(smaller.seen.get_raw_value()) == sown if num_runs else not hasattr(smaller, "seen")
    results = []
    for net in (model, plain):
        network, weights = split_network(net)
        init, step = make_step(network, RECIPES["adam_short"], 2)

        def both(state, network_step=step):
            def body(state, number):
                return network_step(state, X, jnp.asarray(LABELS), jax.random.key(number)), None

            return jax.lax.scan(body, state, jnp.arange(2))[0]

        state = both(init(weights))
        assert state.weights.keys() == weights.keys()
        results.append(network.logits(state.weights, X))
    np.testing.assert_array_equal(*results)
    assert sown is None or tree_of(model.seen.get_raw_value()) == sown
