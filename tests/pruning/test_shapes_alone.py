"""Networks and optimizers of shapes alone are planned, slimmed and masked as those with weights are."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from pruned_nets import IMAGES, NETWORKS, residual

from jaxprune.nets.factories import without_weights
from jaxprune.nets.function_network import FunctionNetwork
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import make_plan, plan
from jaxprune.pruning.slimming import slim, slim_params
from jaxprune.structure.tracing import trace_structure

PLACE = jax.sharding.NamedSharding(
    jax.sharding.Mesh(np.array(jax.devices()[:1]), ("columns",)), jax.sharding.PartitionSpec(None, "columns")
)
ABSTRACT = {
    "nnx.eval_shape": lambda make: nnx.eval_shape(make),
    "without_weights": lambda make: without_weights(lambda rngs: make()),
    "merged shapes": lambda make: (lambda graph, state: nnx.merge(graph, jax.eval_shape(lambda: state)))(
        *nnx.split(make())
    ),
}


class Attention(nnx.Module):
    """What has sizes of its own kinds: random state, statistics, heads."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem, self.norm = nnx.Linear(8, 12, rngs=rngs), nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(self.drop(self.norm(self.stem(x[..., 0])))).mean(1))


def halved(model):
    structure = trace_structure(model, IMAGES)
    return make_plan(structure, {name: tuple(range(width // 2)) for name, width in structure.widths.items()})


def shapes_of(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}


def is_abstract(tree):
    return all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("abstract", ABSTRACT.values(), ids=ABSTRACT)
@pytest.mark.parametrize("make", [Attention, NETWORKS["conv_norm_relu"]])
def test_slim_and_masked_shapes_are_those_of_the_network_with_weights(make, abstract):
    real, bare = make(), abstract(make)
    chosen = halved(real)
    for smaller, expected in (
        (slim(bare, chosen), slim(real, chosen)),
        (mask(bare, chosen), mask(real, chosen)),
    ):
        assert is_abstract(nnx.state(smaller, nnx.Param, nnx.BatchStat))
        assert shapes_of(nnx.state(smaller, nnx.Param, nnx.BatchStat)) == shapes_of(
            nnx.state(expected, nnx.Param, nnx.BatchStat)
        )
    assert slim(bare, chosen).head.in_features == slim(real, chosen).head.in_features


def test_a_plan_is_made_from_shapes_alone():
    bare = nnx.eval_shape(residual)
    structure = trace_structure(bare, IMAGES)
    scores = {name: np.arange(float(width)) for name, width in structure.widths.items()}
    chosen = plan(bare, scores, IMAGES, kept_fraction=0.5)
    assert slim(bare, chosen).stem.kernel.shape == (3, 3, 1, 2)


def test_the_state_of_an_optimizer_may_be_of_shapes_alone():
    def training():
        net = residual()
        return net, nnx.Optimizer(net, optax.adam(0.01), wrt=nnx.Param)

    (net, optimizer), (bare, bare_optimizer) = training(), nnx.eval_shape(training)
    chosen = halved(net)
    _, expected = slim(net, chosen, optimizer=optimizer)
    _, found = slim(bare, chosen, optimizer=bare_optimizer)
    assert is_abstract(nnx.state(found))
    assert shapes_of(nnx.state(found)) == shapes_of(nnx.state(expected))
    assert bare_optimizer.opt_state[0].mu["stem"]["kernel"].shape == (
        3,
        3,
        1,
        4,
    )  # what was given is as before


def test_slim_shapes_keep_their_shardings():
    params = {
        "a": jax.ShapeDtypeStruct((3, 8), "float32", sharding=PLACE),
        "b": jax.ShapeDtypeStruct((8, 2), "bfloat16"),
    }

    def forward(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"].astype("float32")

    network, x = FunctionNetwork(forward, params), jax.ShapeDtypeStruct((4, 3), "float32")
    chosen = make_plan(trace_structure(network, x), {"a": (0, 2, 3)})
    state = jax.eval_shape(optax.adam(0.01).init, params)
    smaller, state = slim_params(forward, params, chosen, optimizer=state)
    assert smaller.params == {
        "a": jax.ShapeDtypeStruct((3, 3), "float32", sharding=PLACE),
        "b": jax.ShapeDtypeStruct((3, 2), "bfloat16"),
    }
    assert state[0].mu["b"] == jax.ShapeDtypeStruct((3, 2), "bfloat16")
    assert mask(network, chosen).parameters == params


def test_compensation_needs_weights():
    bare = nnx.eval_shape(residual)
    with pytest.raises(
        ValueError, match="needs a network with weights to compensate, got one of shapes alone"
    ):
        slim(bare, halved(bare), compensate=())
