import jax.numpy as jnp
import numpy as np
from flax import nnx
from pruned_nets import IMAGES, NETWORKS, conv_relu_norm

from jaxprune.nets.small_nets import PlainConvNet
from jaxprune.structure.model_state import (
    dotted,
    fingerprint,
    merge_model,
    modules_of,
    parameter_paths,
    split_model,
)


def test_random_state_stays_apart():
    _, flat, rest = split_model(conv_relu_norm())
    assert {dotted(path) for path in rest} == {"drop.rngs.count", "drop.rngs.key"}
    assert ("norm1", "mean") in flat
    assert ("norm1", "mean") not in parameter_paths(conv_relu_norm())


def test_equal_architectures_have_equal_graphs_and_fingerprints():
    first, second = (split_model(PlainConvNet(rngs=nnx.Rngs(seed)), "evaluation") for seed in range(2))
    assert first[0] == second[0]
    assert hash(first[0]) == hash(second[0])
    assert fingerprint(first[1]) == fingerprint(second[1])
    assert fingerprint(first[1]) != fingerprint(split_model(conv_relu_norm())[1])


def test_modes_switch_norm_and_dropout_without_touching_the_model():
    net = conv_relu_norm()
    before = (net.norm1.use_running_average, net.drop.deterministic)
    graphdef, flat, rest = split_model(net, "training")
    mean = np.asarray(net.norm1.mean[...])
    count = int(net.drop.rngs.count[...])
    trained = merge_model(graphdef, flat, rest)
    trained(jnp.asarray(IMAGES))
    assert not np.allclose(np.asarray(trained.norm1.mean[...]), mean)
    assert np.array_equal(np.asarray(net.norm1.mean[...]), mean)
    assert int(net.drop.rngs.count[...]) == count
    assert (net.norm1.use_running_average, net.drop.deterministic) == before


def test_splitting_and_merging_gives_the_same_model_back():
    for build in NETWORKS.values():
        net = build()
        again = merge_model(*split_model(net))
        assert isinstance(again, nnx.Module)
        assert fingerprint(split_model(again)[1]) == fingerprint(split_model(net)[1])


def test_modules_are_those_that_flax_finds():
    class Holder(nnx.Module):
        def __init__(self):
            self.first = conv_relu_norm()
            self.again = self.first
            self.listed = nnx.List(
                [nnx.Dropout(0.5), nnx.Dict({"inner": nnx.LayerNorm(2, rngs=nnx.Rngs(0))})]
            )
            self.name, self.function, self.nothing, self.sizes = "x", nnx.relu, None, (1, 2)

    model = Holder()
    module_ids = [id(module) for module in modules_of(model)]
    assert len(module_ids) == len(set(module_ids))
    assert set(module_ids) == {id(module) for _, module in nnx.iter_modules(model)}
