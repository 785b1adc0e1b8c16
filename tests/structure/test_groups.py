import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, NETWORKS, Net, conv, conv_relu_norm, flat, linear, plain, residual

from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.structure.tracing import trace_structure


def groups_of(net, images=IMAGES):
    return trace_structure(net, images)


def test_plain_network_has_one_group_per_hidden_layer():
    structure = groups_of(plain())
    assert structure.widths == {"conv1.kernel": 4, "conv2.kernel": 6, "dense.kernel": 5}
    group = structure.groups["conv2.kernel"]
    assert [str(member) for member in group.members] == [
        "conv2.bias axis 0",
        "conv2.kernel axis 3",
        "dense.kernel axis 0 as 4 x channel x 1",
    ]
    assert (group.producers, group.consumers) == (("conv2.kernel",), ("dense.kernel",))


def test_inputs_and_outputs_are_frozen_with_reasons():
    structure = groups_of(plain())
    assert structure.why_frozen("head.kernel") == "head.kernel[1]: output of the network"
    assert "image axis" in structure.frozen["conv1.kernel[0]"]
    assert structure.why_frozen("conv1.bias") == "nothing of conv1.bias is frozen"


def test_why_frozen_names_the_known_arrays():
    with pytest.raises(ValueError, match="needs the dotted path of an array"):
        groups_of(plain()).why_frozen("conv9.kernel")


def test_addition_joins_producers_and_finds_each_norm():
    structure = groups_of(residual())
    assert structure.groups["stem.kernel"].producers == ("stem.kernel", "conv2.kernel")
    assert structure.groups["stem.kernel"].consumers == ("conv1.kernel", "head.kernel")
    sites = structure.sites
    gammas = [sites[name].gamma[0] for name in ("stem.kernel", "conv2.kernel")]
    betas = [sites[name].beta[0] for name in ("stem.kernel", "conv2.kernel")]
    assert gammas == [("norm0", "scale"), ("norm2", "scale")]
    assert betas == [("norm0", "bias"), ("norm2", "bias")]
    assert (sites["stem.kernel"].consumer[0], sites["conv2.kernel"].consumer[0]) == ("conv1", "head")


def test_norm_after_the_activation_is_found_and_a_later_one_is_not():
    sites = groups_of(conv_relu_norm()).sites
    assert sites["conv1.kernel"].gamma[0] == ("norm1", "scale")
    assert sites["conv1.kernel"].beta[0] == ("norm1", "bias")
    assert sites["dense.kernel"].gamma[0] == ("norm2", "scale")


def test_layers_in_lists_have_numbered_names():
    assert list(groups_of(NETWORKS["listed"]()).groups) == ["convs.0.kernel", "convs.1.kernel"]


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_equal_those_of_the_network(name):
    net = NETWORKS[name]()
    structure = groups_of(net)
    assert structure.count_macs() == count_macs(net, IMAGES[:1])
    assert structure.count_parameters() == count_parameters(net)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_size_and_values_do_not_matter(name):
    net = NETWORKS[name]()
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    assert groups_of(net, shape).groups == groups_of(net).groups


def head(width, seed=5):
    return linear(width, 3, seed)


CUT = {
    "concatenate": (
        {"a": conv(1, 4), "b": conv(1, 4, 1), "head": head(8)},
        lambda net, x: net.head(jnp.concatenate([net.a(x), net.b(x)], -1).mean((1, 2))),
        {"a.kernel": "head.kernel axis 0 at 0-3", "b.kernel": "head.kernel axis 0 at 4-7"},
    ),
    "split": (
        {"a": conv(1, 4), "head": head(2)},
        lambda net, x: net.head((lambda parts: parts[0] * parts[1])(jnp.split(net.a(x), 2, -1)).mean((1, 2))),
        {"a.kernel": "a.kernel axis 3 as 2 x channel x 1"},
    ),
    "pad in front": (
        {"a": conv(1, 4), "head": head(5)},
        lambda net, x: net.head(jnp.pad(net.a(x), ((0, 0), (0, 0), (0, 0), (1, 0))).mean((1, 2))),
        {"a.kernel": "head.kernel axis 0 at 1-4"},
    ),
    "reverse": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(jnp.flip(net.a(x), -1).mean((1, 2))),
        {"a.kernel": "head.kernel axis 0 at 4 indices"},
    ),
    "grouped": (
        {"a": conv(1, 4), "b": conv(4, 4, 1, feature_group_count=2), "head": head(4)},
        lambda net, x: net.head(net.b(net.a(x)).mean((1, 2))),
        {
            "a.kernel:inner": "b.kernel axis 2",
            "a.kernel:outer": "b.kernel axis 3 as 1 x channel x 2",
            "b.kernel": "b.kernel axis 3 as 2 x channel x 1",
        },
    ),
    "depthwise": (
        {"a": conv(1, 4), "b": conv(4, 4, 1, feature_group_count=4), "head": head(4)},
        lambda net, x: net.head(net.b(net.a(x)).mean((1, 2))),
        {"a.kernel": "b.kernel axis 3"},
    ),
    "layer norm": (
        {"a": conv(1, 4), "norm": nnx.LayerNorm(4, rngs=nnx.Rngs(0)), "head": head(4)},
        lambda net, x: net.head(net.norm(net.a(x)).mean((1, 2))),
        {"a.kernel": "norm.scale axis 0"},
    ),
    "group norm": (
        {"a": conv(1, 6), "norm": nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0)), "head": head(6)},
        lambda net, x: net.head(net.norm(net.a(x)).mean((1, 2))),
        {
            "a.kernel:inner": "norm.scale axis 0 as 2 x channel x 1",
            "a.kernel:outer": "norm.scale axis 0 as 1 x channel x 3",
        },
    ),
    "product of activations": (
        {"a": linear(8, 4), "b": linear(8, 4, 1), "head": head(8)},
        lambda net, x: net.head((net.a(x[..., 0]) @ net.b(x[..., 0]).transpose(0, 2, 1)).mean(1)),
        {"a.kernel": "b.kernel axis 1"},
    ),
    "loop": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(jax.lax.fori_loop(0, 2, lambda i, v: jnp.tanh(v), net.a(x)).mean((1, 2))),
        {"a.kernel": "head.kernel axis 0"},
    ),
    "branch": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(
            jax.lax.cond(x.sum() > 0, lambda v: jnp.tanh(v), lambda v: v * 2, net.a(x)).mean((1, 2))
        ),
        {"a.kernel": "head.kernel axis 0"},
    ),
    "several output axes": (
        {"a": nnx.LinearGeneral(1, (2, 2), rngs=nnx.Rngs(0)), "head": head(4)},
        lambda net, x: net.head(net.a(x).mean((1, 2)).reshape(x.shape[0], -1)),
        {
            "a.kernel:axis1": "head.kernel axis 0 as 1 x channel x 2",
            "a.kernel:axis2": "head.kernel axis 0 as 2 x channel x 1",
        },
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_operations_on_channels_are_followed(case):
    layers, forward, expected = CUT[case]
    groups = groups_of(Net(layers, forward)).groups
    assert set(groups) == set(expected)
    for name, member in expected.items():
        assert member in [str(own_member) for own_member in groups[name].members]


FROZEN = {
    "part of the channels": (
        {"a": conv(1, 4), "head": head(2)},
        lambda net, x: net.head(net.a(x)[..., 1:3].mean((1, 2))),
        "counts on their number",
    ),
    "padded by a fixed number": (
        {"b": conv(1, 6, 1), "head": head(6)},
        lambda net, x: net.head((jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 3))) + net.b(x)).mean((1, 2))),
        "counts on their number",
    ),
    "running sum": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(jnp.cumsum(net.a(x), -1).mean((1, 2))),
        "cumsum",
    ),
    "pooled channels": (
        {"a": linear(8, 4), "head": head(2)},
        lambda net, x: net.head(nnx.max_pool(net.a(x[:, :, :, 0]).transpose(0, 2, 1), (2,), (2,)).mean(2)),
        "reduce_window",
    ),
    "constant": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(
            (net.a(x) * jnp.asarray(np.arange(4.0, dtype=np.float32))[None, None, None]).mean((1, 2))
        ),
        "fixed size",
    ),
    "counted": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head((net.a(x) * jnp.arange(net.a.bias.shape[0])[None, None, None]).mean((1, 2))),
        "counted by iota",
    ),
    "one channel by its number": (
        {"a": conv(1, 4), "head": head(8)},
        lambda net, x: net.head(net.a(x)[..., 2].mean(1)),
        "picked by its place",
    ),
    "place of the largest": (
        {"a": conv(1, 4), "head": head(8)},
        lambda net, x: net.head(jnp.argmax(net.a(x), -1).mean(1)),
        "the place of a channel is the result",
    ),
    "sort": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(jnp.sort(net.a(x), -1).mean((1, 2))),
        "sort",
    ),
    "fourier": (
        {"a": conv(1, 4), "head": head(4)},
        lambda net, x: net.head(jnp.abs(jnp.fft.fft(net.a(x), axis=-1)).mean((1, 2))),
        "mixed by fft",
    ),
    "mixed weights": (
        {"a": linear(64, 4), "b": linear(64, 4, 1), "head": head(4)},
        lambda net, x: net.head(flat(x) @ (net.a.kernel[...] * net.b.kernel[...])),
        "not one parameter",
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_what_has_no_exact_rule_is_frozen_with_its_reason(case):
    layers, forward, reason = FROZEN[case]
    structure = groups_of(Net(layers, forward))
    assert not structure.groups
    assert any(reason in text for text in structure.frozen.values())
    with pytest.raises(ValueError, match="needs a network with at least one channel") as caught:
        structure.require_groups()
    assert reason in str(caught.value)


def test_a_reason_names_operation_and_source_line():
    layers, forward, _ = FROZEN["fourier"]
    reason = groups_of(Net(layers, forward)).frozen["a.kernel[3]"]
    assert "mixed by fft" in reason
    assert "test_groups.py:" in reason


def test_shared_layer_is_one_producer():
    layers = {"stem": conv(1, 4), "body": conv(4, 4, 1), "head": head(4)}
    net = Net(layers, lambda net, x: net.head(net.body(nnx.relu(net.body(net.stem(x)))).mean((1, 2))))
    structure = groups_of(net)
    assert structure.widths == {"stem.kernel": 4}
    assert structure.groups["stem.kernel"].producers == ("stem.kernel", "body.kernel")


def test_channels_that_only_leave_the_network_are_frozen():
    structure = groups_of(Net({"a": conv(1, 4)}, lambda net, x: net.a(x)))
    assert structure.frozen["a.kernel[3]"] == "output of the network"


def test_channels_that_nothing_reads_are_frozen():
    layers = {"a": conv(1, 4), "head": head(64)}
    net = Net(layers, lambda net, x: net.head(flat(x)) + net.a(x).mean((1, 2, 3))[:, None])
    assert "no layer with weights reads" in groups_of(net).frozen["a.kernel[3]"]
    net = Net(layers, lambda net, x: (net.head(flat(x)), net.a(x))[0])
    assert "no output of the network depends on" in groups_of(net).frozen["a.kernel[3]"]


def test_a_network_that_does_not_run_on_the_example_says_so():
    message = r"needs a network that runs on images of shape \(2, 9, 8, 3\).*has to take any number of them"
    with pytest.raises(ValueError, match=message):
        groups_of(plain(), np.zeros((4, 9, 8, 3), np.float32))


def test_an_example_without_batch_axis_is_refused():
    with pytest.raises(ValueError, match="needs an example with a batch axis"):
        groups_of(plain(), np.zeros((), np.float32))


def test_only_modules_are_traced():
    with pytest.raises(TypeError, match=r"needs a Flax NNX module .*, got function"):
        groups_of(lambda x: x)
