import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_nets import (
    IMAGES,
    NETWORKS,
    Net,
    conv,
    conv_norm_relu,
    linear,
    norm,
    plain,
    relative_error,
    residual,
    run,
    scores_of,
)

from jaxprune.nets.small_nets import LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.vgg import VGG16
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import make_plan, plan
from jaxprune.pruning.slimming import slim, slim_state
from jaxprune.structure.model_state import merge_model, set_mode, split_model, take_apart
from jaxprune.structure.tracing import trace_structure
from jaxprune.structure.verification import slim_graph


@pytest.mark.parametrize("fraction", [0.25, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_slim_equals_masked(name, fraction):
    net = NETWORKS[name]()
    structure = trace_structure(net, IMAGES)
    chosen_plan = plan(net, scores_of(structure), IMAGES, kept_fraction=fraction)
    masked, smaller = run(mask(net, chosen_plan)), run(slim(net, chosen_plan))
    assert relative_error(masked, smaller) < 1e-5
    assert relative_error(run(net), smaller) > 1e-3


@pytest.mark.parametrize(
    ("build", "widths", "shape"),
    [
        (PlainConvNet, (4, 6, 8), (8, 8, 1)),
        (SmallConvNet, (4, 4, 6, 6, 8), (8, 8, 1)),
        (LeNet5, (4, 6, 10), (28, 28, 1)),
        pytest.param(
            VGG16,
            (4, 4, 6, 6, 8, 8, 8, 10, 10, 10, 10, 10, 10, 12),
            (32, 32, 3),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_own_networks_prune_in_every_hidden_layer(build, widths, shape):
    net = build(rngs=nnx.Rngs(0), widths=widths)
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    structure = trace_structure(net, images)
    assert tuple(structure.widths.values()) == widths
    chosen_plan = plan(net, scores_of(structure), images, kept_fraction=0.5)
    assert relative_error(run(mask(net, chosen_plan), images), run(slim(net, chosen_plan), images)) < 1e-5


@pytest.mark.parametrize("name", ["conv_norm_relu", "residual", "channels_first"])
def test_several_rounds_in_a_row(name):
    net = NETWORKS[name]()
    for seed in range(2):
        structure = trace_structure(net, IMAGES)
        chosen_plan = plan(net, scores_of(structure, seed), IMAGES, kept_fraction=0.75)
        smaller = slim(net, chosen_plan)
        assert relative_error(run(mask(net, chosen_plan)), run(smaller)) < 1e-5
        assert trace_structure(smaller, IMAGES).widths == chosen_plan.kept_counts
        net = smaller


def test_one_channel_may_be_left():
    net = conv_norm_relu()
    structure = trace_structure(net, IMAGES)
    chosen_plan = plan(net, scores_of(structure), IMAGES, kept_fraction=0.01)
    smaller = slim(net, chosen_plan)
    assert relative_error(run(mask(net, chosen_plan)), run(smaller)) < 1e-5
    with pytest.raises(ValueError, match="needs a network with at least one channel"):
        trace_structure(smaller, IMAGES).require_groups()


def test_equals_an_independently_built_network():
    net = plain()
    kept = {"conv1.kernel": (1, 3), "conv2.kernel": (0, 2, 5), "dense.kernel": (0, 4)}
    a, b, d = (list(index) for index in kept.values())
    small = Net(
        {"conv1": conv(1, 2), "conv2": conv(2, 3), "dense": linear(12, 2), "head": linear(2, 3)}, net.forward
    )
    small.conv1.kernel[...] = net.conv1.kernel[...][..., jnp.array(a)]
    small.conv2.kernel[...] = net.conv2.kernel[...][:, :, jnp.array(a)][..., jnp.array(b)]
    rows = [position * 6 + channel for position in range(4) for channel in b]
    small.dense.kernel[...] = net.dense.kernel[...][jnp.array(rows)][:, jnp.array(d)]
    small.head.kernel[...] = net.head.kernel[...][jnp.array(d)]
    small.head.bias[...] = net.head.bias[...]
    smaller = slim(net, make_plan(trace_structure(net, IMAGES), kept))
    assert relative_error(run(small), run(smaller)) < 1e-6
    assert split_model(smaller)[0] == split_model(small)[0]


def test_attributes_follow_the_arrays():
    net = conv_norm_relu()
    chosen_plan = plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5)
    smaller = slim(net, chosen_plan)
    assert (smaller.conv1.out_features, smaller.norm1.num_features, smaller.conv2.in_features) == (2, 2, 2)
    assert smaller.conv2.kernel_shape == smaller.conv2.kernel[...].shape
    assert smaller.head.in_features == 3 * 64


def test_slim_network_trains_on():
    net = conv_norm_relu()
    smaller = slim(net, plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5))
    gradients = nnx.jit(nnx.grad(lambda model: (model(IMAGES) ** 2).mean()))(smaller)
    assert gradients["conv2"]["kernel"][...].shape == (3, 3, 2, 3)


def test_slimming_never_changes_the_callers_model():
    net = residual()
    before = jax.tree.map(np.array, split_model(net)[1])
    widths = (net.stem.out_features, net.norm0.num_features)
    smaller = slim(net, plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5))
    smaller.head.bias[...] = jnp.ones(3)
    assert (net.stem.out_features, net.norm0.num_features) == widths
    after = split_model(net)[1]
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_functional_path_under_vmap_equals_one_by_one():
    net = residual()
    structure = trace_structure(net, IMAGES)
    graphdef, flat, rest = split_model(net, "evaluation")
    candidates = {
        "stem.kernel": jnp.array([[0, 1], [1, 3]]),
        "conv1.kernel": jnp.array([[0, 1, 2], [1, 2, 5]]),
    }
    stacked = jax.jit(jax.vmap(lambda kept: slim_state(structure, flat, kept)))(candidates)
    counts = {"stem.kernel": np.arange(2), "conv1.kernel": np.arange(3)}
    small = slim_graph(take_apart(set_mode(net, "evaluation")), structure, counts)
    assert graphdef != small
    for member in range(2):
        kept = {name: tuple(np.asarray(index[member])) for name, index in candidates.items()}
        alone = slim(net, make_plan(structure, kept))
        model = merge_model(small, {path: value[member] for path, value in stacked.items()}, rest)
        assert split_model(alone, "evaluation")[0] == small
        assert np.array_equal(run(model), run(alone))


def test_shared_layer_stays_shared():
    layers = {"stem": conv(1, 4), "body": conv(4, 4, 1), "head": linear(4, 3, 2)}
    net = Net(layers, lambda net, x: net.head(net.body(nnx.relu(net.body(net.stem(x)))).mean((1, 2))))
    net.again = net.body
    chosen_plan = plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5)
    smaller = slim(net, chosen_plan)
    assert smaller.again is smaller.body
    assert relative_error(run(mask(net, chosen_plan)), run(smaller)) < 1e-5


def test_a_fixed_size_in_the_code_is_named():
    net = Net({"a": conv(1, 4), "head": linear(256, 3)}, lambda net, x: net.head(net.a(x).reshape(-1, 256)))
    with pytest.raises(
        ValueError, match=r"every axis is frozen \(a.bias\[0\]: .* when some are gone, it failed"
    ):
        plan(net, {}, IMAGES, kept_fraction=0.5)


def test_outputs_that_change_shape_are_refused():
    net = Net(
        {"a": linear(1, 4), "head": linear(4, 3)},
        lambda net, x: net.head(net.a(x)).mean((1, 2))[:, :, None] * jnp.ones((1, 1, net.a.out_features)),
    )
    with pytest.raises(
        ValueError, match=r"its outputs have shapes \[\(2, 3, 2\)\] instead of \[\(2, 3, 4\)\]"
    ):
        plan(net, {}, IMAGES, kept_fraction=0.5)


def test_a_number_of_channels_that_only_the_plan_meets_is_refused_with_the_guilty_group():
    def forward(net, x):
        x = net.b(nnx.relu(net.a(x)))
        if x.shape[-1] == 7:
            raise RuntimeError("seven is bad luck")
        return net.head(x.mean((1, 2)))

    net = Net({"a": linear(1, 8), "b": linear(8, 8, 1), "head": linear(8, 3, 2)}, forward)
    structure = trace_structure(net, IMAGES)
    assert structure.widths == {"a.kernel": 8, "b.kernel": 8}
    chosen_plan = plan(net, scores_of(structure), IMAGES, kept_counts={"a.kernel": 6, "b.kernel": 7})
    message = (
        r"after slimming \(b.kernel 8 -> 7\) it failed with RuntimeError: seven is bad luck at .* \(forward\)"
    )
    with pytest.raises(ValueError, match=message):
        slim(net, chosen_plan)


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from(["conv", "norm", "relu", "sigmoid", "skip"]), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_random_chains_are_exact(kinds, seed):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(2, 6))
    layers, steps = {"stem": conv(1, width, seed)}, []
    for number, kind in enumerate(kinds):
        name = f"layer{number}"
        if kind == "conv":
            after = int(rng.integers(2, 6))
            layers[name] = conv(width, after, seed + number)
            width = after
        elif kind == "skip":
            layers[name] = conv(width, width, seed + number)
        elif kind == "norm":
            layers[name] = norm(width, seed + number)
        steps.append((name, kind))
    layers["head"] = linear(width * 64, 3, seed)

    def forward(net, x):
        x = net.stem(x)
        for name, kind in steps:
            if kind in ("relu", "sigmoid"):
                x = getattr(nnx, kind)(x)
            else:
                y = getattr(net, name)(x)
                x = x + y if kind == "skip" else y
        return net.head(x.reshape(x.shape[0], -1))

    net = Net(layers, forward)
    chosen_plan = plan(net, scores_of(trace_structure(net, IMAGES), seed), IMAGES, kept_fraction=0.5)
    assert relative_error(run(mask(net, chosen_plan)), run(slim(net, chosen_plan))) < 1e-5
