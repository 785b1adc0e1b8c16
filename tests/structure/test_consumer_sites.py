import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, NETWORKS, Net, conv, linear, norm, plain, residual

from jaxprune.nets import NETWORKS as PACKAGED
from jaxprune.nets.factories import find_network
from jaxprune.structure.consumer_sites import Shift, find_consumers
from jaxprune.structure.tracing import trace_structure


def consumers_of(net, images=IMAGES):
    return find_consumers(trace_structure(net, images))


def test_a_chain_is_read_layer_by_layer():
    sites, problems = consumers_of(plain())
    assert not problems
    assert [site.name for group in sites.values() for site in group] == [
        "conv1.kernel -> conv2.kernel",
        "conv2.kernel -> dense.kernel",
        "dense.kernel -> head.kernel",
    ]
    assert [site.axis for (site,) in sites.values()] == [2, 0, 0]
    assert [site.shift for (site,) in sites.values()] == [
        Shift(("conv2", "bias"), 1, 3),
        Shift(("dense", "bias"), 1, 1),
        Shift(("head", "bias"), 1, 1),
    ]
    assert sites["conv2.kernel"][0].positions.tolist() == [[c, c + 6, c + 12, c + 18] for c in range(6)]


def test_a_residual_stream_has_several_consumers():
    sites, problems = consumers_of(residual())
    assert not problems
    first, last = sites["stem.kernel"]
    assert (first.kernel, last.kernel) == (("conv1", "kernel"), ("head", "kernel"))
    assert first.value != last.value


@pytest.mark.parametrize(
    ("between", "shift"),
    [
        (lambda n, y: n.norm(y), Shift(("norm", "mean"), -1, 3)),
        (lambda n, y: n.norm(nnx.relu(y)), None),
        (lambda n, y: n.norm(y) + y, None),
        (lambda n, y: n.norm(2 * y), None),
        (lambda n, y: n.norm(n.norm(y)), None),
        (lambda n, y: 0.5 - y + 0 * n.norm(y), None),
    ],
)
def test_only_a_norm_right_behind_a_layer_takes_its_constant(between, shift):
    layers = {"conv1": conv(1, 4), "conv2": conv(4, 6, 1, use_bias=False), "norm": norm(6)}
    layers["head"] = linear(6, 3, 2)
    net = Net(layers, lambda n, x: n.head(nnx.relu(between(n, n.conv2(n.conv1(x)))).mean((1, 2))))
    (site,) = consumers_of(net).sites["conv1.kernel"]
    assert site.shift == shift


def test_a_bias_that_is_read_twice_takes_no_constant():
    layers = {"fc1": linear(64, 8), "fc2": linear(8, 3, 1)}
    net = Net(layers, lambda n, x: n.fc2(n.fc1(x.reshape(len(x), -1))) * n.fc2.bias[...][None])
    (site,) = consumers_of(net).sites["fc1.kernel"]
    assert site.shift is None


def test_a_transposed_convolution_has_no_constant():
    layers = {"conv1": conv(1, 4), "up": nnx.ConvTranspose(4, 5, (2, 2), strides=(2, 2), rngs=nnx.Rngs(1))}
    layers["head"] = linear(5, 3, 2)
    net = Net(layers, lambda n, x: n.head(nnx.relu(n.up(n.conv1(x))).mean((1, 2))))
    (site,) = consumers_of(net).sites["conv1.kernel"]
    assert site.kernel == ("up", "kernel") and site.shift is None


def test_a_grouped_convolution_is_one_consumer_for_each_block():
    layers = {"conv1": conv(1, 8), "conv2": conv(8, 4, 1, feature_group_count=2), "head": linear(4, 3, 2)}
    net = Net(layers, lambda n, x: n.head(nnx.relu(n.conv2(nnx.relu(n.conv1(x)))).mean((1, 2))))
    sites, problems = consumers_of(net)
    assert not problems
    first, second = sites["conv1.kernel:inner"]
    assert first.name == "conv1.kernel:inner -> conv2.kernel block 1 of 2"
    assert first.positions.tolist() == second.positions.tolist() == [[0], [1], [2], [3]]
    assert (first.value_positions.tolist(), second.value_positions.tolist()) == (
        [[0], [1], [2], [3]], [[4], [5], [6], [7]],
    )  # fmt: skip
    assert second.own_outputs(np.arange(4), 0).tolist() == [2, 3]
    assert [site.kernel for site in sites["conv1.kernel:outer"]] == [("head", "kernel")]


def test_examples_that_are_cut_into_pieces_are_told():
    layers = {"conv1": conv(1, 6), "fc": linear(6, 4, 1), "head": linear(4, 3, 2)}

    def forward(n, x):
        rows = n.conv1(x)
        rows = rows.reshape(-1, 8, rows.shape[-1])  # of all images
        return n.head(nnx.relu(n.fc(nnx.relu(rows))).reshape(len(x), 64, 4).mean(1))

    sites, problems = consumers_of(Net(layers, forward))
    assert sites["conv1.kernel"] == ()
    assert problems["conv1.kernel"] == ("fc.kernel, whose input has no plain batch and channel axes",)


@pytest.mark.parametrize("name", NETWORKS)
def test_positions_are_those_of_the_kernel(name):
    net = NETWORKS[name]()
    structure = trace_structure(net, IMAGES)
    sites, problems = find_consumers(structure)
    assert not problems
    for group in structure.groups.values():
        assert {site.name.split(" -> ")[1] for site in sites[group.name]} == set(group.consumers)
        for site in sites[group.name]:
            (member,) = [own for own in group.members if (own.path, own.axis) == (site.kernel, site.axis)]
            assert np.array_equal(
                member.channels[site.positions],
                np.broadcast_to(np.arange(group.size)[:, None], site.positions.shape),
            )


@pytest.mark.parametrize(
    "name", [name for name in PACKAGED if name not in ("resnet110", "resnet164", "vgg19")]
)
def test_all_packaged_networks_can_be_compensated(name):
    net = find_network(name, has_weights=False)
    size = 224 if name in ("resnet18", "resnet34", "resnet50", "mobilenet_v2") else None
    shape = (size, size, 3) if size else net.image_shape
    sites, problems = consumers_of(net, np.zeros((1, *shape), np.float32))
    assert not problems and all(sites.values())
