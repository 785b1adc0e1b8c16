"""Networks of Linen, Equinox and raw JAX prune as exactly as NNX modules, through their pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.language.parsing import parse
from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.function_network import FunctionNetwork
from jaxprune.nets.inputs import Inputs
from jaxprune.observation.observer import observe
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import Plan, plan
from jaxprune.pruning.slimming import slim, slim_params
from jaxprune.scoring.ranking import score
from jaxprune.structure.tracing import trace_params

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 8, 8, 1)).astype(np.float32)
SEQUENCES = RNG.normal(size=(4, 5, 8)).astype(np.float32)
VECTORS = RNG.normal(size=(4, 6)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (4, 5)).astype(np.int32)


def shaken(tree):
    """Every array of floats away from its zeros and ones; variances stay positive."""

    def shake(leaf):
        if not isinstance(leaf, jax.Array | np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return np.asarray(leaf) + np.abs(RNG.normal(size=leaf.shape) * 0.1).astype(leaf.dtype)

    return jax.tree.map(shake, tree)


class Convolutional(nn.Module):
    """Plain, depthwise and dense layers with a batch norm."""

    widths: tuple[int, int, int] = (8, 12, 10)

    @nn.compact
    def __call__(self, x):
        first, second, third = self.widths
        x = nn.relu(nn.Conv(first, (3, 3))(x))
        x = nn.Conv(first, (3, 3), feature_group_count=first)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.avg_pool(nn.relu(nn.Conv(second, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(nn.Dense(third)(x.reshape(x.shape[0], -1))))


class Transformer(nn.Module):
    """Attention and a block of dense layers given as a list."""

    heads: int = 4
    qkv: int = 12
    width: int = 16

    def setup(self):
        self.attention = nn.MultiHeadDotProductAttention(num_heads=self.heads, qkv_features=self.qkv)
        self.mlp = nn.Sequential([nn.Dense(self.width), nn.gelu, nn.Dense(8)])
        self.norm = nn.LayerNorm()

    def __call__(self, x):
        x = x + self.attention(x, x)
        return x + self.mlp(self.norm(x))


class Language(nn.Module):
    """Tokens and a mask; general dense layers."""

    @nn.compact
    def __call__(self, tokens, mask=None):
        x = nn.Embed(9, 6)(tokens)
        hidden = nn.gelu(nn.DenseGeneral((2, 5))(x))
        x = x + nn.DenseGeneral(6, axis=(-2, -1))(hidden)
        return nn.Dense(9)(x if mask is None else x * mask[..., None])


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    """A dense layer as Equinox writes it: sizes beside arrays, features first."""

    weight: Any
    bias: Any
    features: int = field(metadata={"static": True}, default=0)

    def __call__(self, x):
        return self.weight @ x + self.bias


@jax.tree_util.register_dataclass
@dataclass
class Perceptron:
    """Layers in a list, and an activation function among the leaves."""

    layers: list[Layer]
    activation: Any

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def layer(n_in, n_out):
    return Layer(
        RNG.normal(size=(n_out, n_in)).astype(np.float32), RNG.normal(size=n_out).astype(np.float32), n_out
    )


def residual(params, x):
    """A residual stream of raw arrays."""
    x = x @ params["in"]
    for block in params["blocks"]:
        x = x + jax.nn.relu(x @ block[0] + block[1][None]) @ block[2]
    return {"out": x @ params["out"]}


def convolved(params, x):
    """Raw convolutions."""
    for kernel, shift in params["layers"]:
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + shift[None, None, None])
    return x.mean((1, 2)) @ params["head"]


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def vmapped(model, x):
    return jax.vmap(model)(x)


class Case(NamedTuple):
    fn: Any
    params: Any
    inputs: tuple[Any, ...]
    options: dict[str, str] = {}


def initialised(module, *inputs):
    """Random variables, made by one program."""
    return jax.jit(module.init)(jax.random.key(0), *inputs)


def linen(module, *inputs, **options):
    return Case(module.apply, shaken(initialised(module, *inputs)), inputs, options)


CASES = {
    "linen convolutional": lambda: linen(Convolutional(), IMAGES),
    "linen transformer": lambda: linen(Transformer(), SEQUENCES, factor="outer"),
    "linen language": lambda: linen(Language(), TOKENS, np.ones((4, 5), np.float32)),
    "dataclasses": lambda: Case(
        vmapped, Perceptron([layer(6, 10), layer(10, 8), layer(8, 2)], jax.nn.relu), (VECTORS,)
    ),
    "raw residual": lambda: Case(
        residual,
        {
            "in": normal(6, 8),
            "blocks": [(normal(8, 10), normal(10), normal(10, 8)) for _ in range(2)],
            "out": normal(8, 3),
        },
        (VECTORS,),
    ),
    "raw convolutions": lambda: Case(
        convolved,
        {"layers": [(normal(3, 3, 1, 6), normal(6)), (normal(3, 3, 6, 8), normal(8))], "head": normal(8, 3)},
        (IMAGES,),
    ),
    "equinox convolutional": lambda: equinox_convolutional(),
    "equinox perceptron": lambda: equinox_perceptron(),
}


def equinox_convolutional():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: Any
        depthwise: Any
        hidden: Any
        head: Any

        def __init__(self, key):
            keys = jax.random.split(key, 4)
            self.first = eqx.nn.Conv2d(1, 6, 3, key=keys[0])
            self.depthwise = eqx.nn.Conv2d(6, 6, 3, groups=6, key=keys[1])
            self.hidden, self.head = eqx.nn.Linear(6, 10, key=keys[2]), eqx.nn.Linear(10, 3, key=keys[3])

        def __call__(self, x):
            x = jax.nn.relu(self.depthwise(jax.nn.relu(self.first(x)))).mean((1, 2))
            return self.head(jax.nn.relu(self.hidden(x)))

    return Case(vmapped, Net(jax.random.key(0)), (np.moveaxis(IMAGES, -1, 1),))


def equinox_perceptron():
    eqx = pytest.importorskip("equinox")
    return Case(vmapped, eqx.nn.MLP(6, 3, 12, 2, key=jax.random.key(0)), (VECTORS,))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


def run(fn, params, case):
    """What a function returns, computed by one program."""
    arrays, treedef = jax.tree.flatten(params)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in arrays]

    def called(given, inputs):
        rest = iter(given)
        leaves = [next(rest) if one else leaf for one, leaf in zip(is_array, arrays, strict=True)]
        return fn(jax.tree.unflatten(treedef, leaves), *inputs)

    given = [leaf for one, leaf in zip(is_array, arrays, strict=True) if one]
    return jax.jit(called)(given, case.inputs)


def planned(case):
    structure = trace_params(case.fn, case.params, *case.inputs)
    scores = {name: np.random.default_rng(1).random(size) for name, size in structure.widths.items()}
    network = FunctionNetwork(case.fn, case.params)
    chosen = plan(network, scores, Inputs(*case.inputs), kept_fraction=0.5, **case.options)
    return structure, network, Plan.from_json(chosen.to_json())


def test_slim_equals_masked_and_counts_are_exact(case):
    structure, network, chosen = planned(case)
    smaller, masked = slim_params(case.fn, case.params, chosen), mask(network, chosen)
    assert jax.tree.structure(masked.parameters) == jax.tree.structure(case.params)
    pair = (run(smaller.fn, smaller.params, case), run(case.fn, masked.parameters, case))
    for found, expected in zip(*map(jax.tree.leaves, pair), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    slim_network = slim(network, chosen)
    assert count_parameters(slim_network) == structure.count_parameters(chosen.kept_counts)
    assert count_parameters(slim_network) < 0.75 * count_parameters(network)
    assert count_macs(slim_network, Inputs(*case.inputs)) == structure.count_macs(chosen.kept_counts)


def test_groups_are_named_by_paths_and_the_params_are_left_alone(case):
    before = jax.tree.map(np.array, [leaf for leaf in jax.tree.leaves(case.params) if hasattr(leaf, "shape")])
    structure, _, chosen = planned(case)
    slim_params(case.fn, case.params, chosen)
    after = [leaf for leaf in jax.tree.leaves(case.params) if hasattr(leaf, "shape")]
    assert all(map(np.array_equal, before, after))
    paths = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_flatten_with_path(case.params)[0]
    }
    assert {name.split(":")[0] for name in structure.groups} <= paths


def test_linen_modules_are_built_anew_from_the_listed_sizes():
    case = CASES["linen convolutional"]()
    _, _, chosen = planned(case)
    smaller = slim_params(case.fn, case.params, chosen)
    assert smaller.features == {
        "Conv_0": {"features": 4},
        "Conv_1": {"features": 4, "feature_group_count": 4},
        "Conv_2": {"features": 6},
        "Dense_1": {"features": 5},
    }
    built = run(Convolutional((4, 6, 5)).apply, smaller.params, case)
    np.testing.assert_allclose(built, run(smaller.fn, smaller.params, case), atol=1e-6)


@pytest.mark.parametrize("factor", ["inner", "outer"])
def test_attention_of_linen_keeps_heads_of_one_length(factor):
    case = CASES["linen transformer"]()._replace(options={"factor": factor})
    _, _, chosen = planned(case)
    smaller = slim_params(case.fn, case.params, chosen)
    sizes = {"qkv_features": 8} if factor == "inner" else {"num_heads": 2, "qkv_features": 6}
    assert smaller.features["attention"] == sizes and smaller.features["mlp.layers_0"] == {"features": 8}
    module = Transformer(sizes.get("num_heads", 4), sizes["qkv_features"], 8)
    built = run(module.apply, smaller.params, case)
    np.testing.assert_allclose(built, run(smaller.fn, smaller.params, case), atol=1e-6)


class Looped(nn.Module):
    """A loop whose end depends on values."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(nn.relu(nn.Dense(10)(x)))
        return jax.lax.while_loop(lambda y: (y > 1).any(), lambda y: y / 2, x)


@pytest.mark.parametrize("module", [Looped(), nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(3)])])
def test_compiled_functions_hide_no_layers(module):
    params = initialised(module, VECTORS)
    compiled = jax.jit(module.apply)
    structure = trace_params(compiled, params, VECTORS)
    ((name, _),) = structure.widths.items()
    for _ in range(2):  # the second time it has been compiled for these shapes
        smaller = slim_params(compiled, params, structure, {name: range(4)})
        layer = name.removeprefix("params.").removesuffix(".kernel")
        assert smaller.features in ({layer: {"features": 4}}, {}) and smaller.fn is not compiled
        assert smaller.fn(smaller.params, VECTORS).shape == (4, 3)


def test_a_layer_of_linen_is_as_before_after_a_run():
    module = nn.Dense(5)
    params = {"params": {"kernel": normal(6, 3), "bias": normal(3)}}
    network = FunctionNetwork(module.apply, params)
    assert network(VECTORS).shape == (4, 3) and module.features == 5


def test_attention_without_a_size_of_its_own_gets_one():
    case = linen(nn.MultiHeadDotProductAttention(num_heads=4), SEQUENCES, SEQUENCES, factor="outer")
    _, _, chosen = planned(case)
    smaller = slim_params(case.fn, case.params, chosen)
    assert smaller.features == {"": {"num_heads": 2, "qkv_features": 4}}
    built = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
    found = run(built.apply, smaller.params, case)
    np.testing.assert_allclose(found, run(smaller.fn, smaller.params, case), atol=1e-6)


def test_equinox_layers_store_their_new_sizes():
    case = equinox_convolutional()
    _, _, chosen = planned(case)
    net = slim_params(case.fn, case.params, chosen).params
    assert (net.depthwise.in_channels, net.depthwise.groups, net.depthwise.out_channels) == (3, 3, 3)
    assert (net.hidden.in_features, net.hidden.out_features) == (3, 5)
    assert case.params.hidden.out_features == 10


def test_functions_are_observed_and_scored():
    case = CASES["raw residual"]()
    network = FunctionNetwork(case.fn, case.params)
    observed = observe(network, Inputs(VECTORS), loss=lambda outputs, batch: (outputs["out"] ** 2).sum(-1))
    assert {name: scores.shape for name, scores in score(parse("mean(abs(X*GX))"), observed).items()} == {
        "in": (8,),
        "blocks.0.0": (10,),
        "blocks.1.0": (10,),
    }


def test_a_structure_with_kept_indices_is_a_plan():
    case = CASES["raw convolutions"]()
    structure = trace_params(case.fn, case.params, *case.inputs)
    smaller = slim_params(case.fn, case.params, structure, {"layers.0.0": (1, 3)})
    assert smaller.params["layers"][0][0].shape == (3, 3, 1, 2) and smaller.fn is case.fn
    with pytest.raises(
        TypeError, match=r"slim_params needs kept=\{group: indices\} with a structure, got none"
    ):
        slim_params(case.fn, case.params, structure)


def fixed(params, x):
    hidden = jax.nn.relu(x @ params["first"])
    return hidden.reshape(hidden.shape[0], 12) @ params["second"]


def test_a_width_from_a_constant_freezes_with_its_line():
    params = {"first": normal(6, 12), "second": normal(12, 2)}
    structure = trace_params(fixed, params, VECTORS)
    assert not structure.groups
    message = r"counts on their number: .* failed with TypeError.* at .*test_pure_functions.py:\d+ \(fixed\)"
    assert re.search(message, structure.why_frozen("first"))


class Halves(nn.Module):
    """Code that counts on a number of channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12)(x)
        return nn.Dense(2)(nn.relu(x.reshape(x.shape[0], 3, 4)).sum(1))


def test_a_number_in_linen_code_freezes_with_its_line():
    structure = trace_params(Halves().apply, initialised(Halves(), VECTORS), VECTORS)
    assert not structure.groups
    reason = structure.why_frozen("params.Dense_0.kernel")
    assert (
        "counts on their number" in reason and "test_pure_functions.py:" in reason and "(__call__)" in reason
    )


def test_statistics_are_no_parameters():
    case = CASES["linen convolutional"]()
    statistics = sum(leaf.size for leaf in jax.tree.leaves(case.params["batch_stats"]))
    everything = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    assert count_parameters(FunctionNetwork(case.fn, case.params)) == everything - statistics


def test_an_array_alone_and_names_of_modules_have_paths():
    assert trace_params(lambda w, x: x @ w, normal(6, 2), VECTORS).frozen.keys() == {"array[0]", "array[1]"}
    params = {"train": normal(6, 4), "eval": normal(4, 2)}
    structure = trace_params(lambda p, x: x @ p["train"] @ p["eval"], params, VECTORS)
    assert structure.widths == {"train_": 4}


@pytest.mark.parametrize(
    ("fn", "params", "error", "message"),
    [
        (None, {"w": normal(2, 2)}, TypeError, r"needs a function fn\(params, \*inputs\), got NoneType"),
        (fixed, {"w": "text"}, ValueError, "needs params that hold arrays, got {'w': 'text'}"),
        (
            fixed,
            {"train": normal(2), "train_": normal(2)},
            ValueError,
            "keys differ as text, got several arrays",
        ),
        (fixed, {"first": normal(5, 12)}, ValueError, "needs a network that runs on inputs of shapes 0"),
    ],
)
def test_bad_functions_and_params_are_refused(fn, params, error, message):
    with pytest.raises(error, match=message):
        trace_params(fn, params, VECTORS)


def test_a_state_of_optax_is_cut_along():
    """A state for all variables, or for Linen's parameters among them, keeps the entries of the channels that stay."""
    case = linen(Convolutional(), IMAGES)
    structure, _, chosen = planned(case)
    trained = case.params["params"]
    moments = jax.tree.map(lambda leaf: np.random.default_rng(2).random(np.shape(leaf)), trained)
    state = {"mu": moments, "count": np.int32(3)}
    smaller, cut = slim_params(case.fn, case.params, chosen, optimizer=state)
    assert jax.tree.map(np.shape, cut["mu"]) == jax.tree.map(np.shape, smaller.params["params"])
    name = next(iter(structure.groups))
    kept = list(chosen.kept[name])
    np.testing.assert_allclose(cut["mu"]["Conv_0"]["bias"], moments["Conv_0"]["bias"][kept], rtol=1e-6)
    _, whole = slim_params(case.fn, case.params, chosen, optimizer={"params": moments})
    assert jax.tree.all(jax.tree.map(np.array_equal, whole["params"], cut["mu"])) and cut["count"] == 3
    with pytest.raises(ValueError, match="needs an optimizer that was made for this network"):
        slim_params(case.fn, case.params, chosen, optimizer={"mu": {"Conv_0": {"bias": np.ones(9)}}})
