"""The state of an optimizer is cut along with its network: the next update is that of the masked network."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from pruned_nets import IMAGES, LABELS, conv_norm_relu, listed, mlp, plain, residual

from jaxprune.observation.observer import observe
from jaxprune.pruning.masking import channel_masks, keep_masked, mask
from jaxprune.pruning.optimizer_states import slim_tree
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim, slim_state
from jaxprune.pruning.tree_paths import Place, find_places, names_of
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure

KEPT = {"stem.kernel": (0, 2, 3), "conv1.kernel": (1, 2, 5)}


def made(net, kept=None):
    structure = trace_structure(net, IMAGES)
    return structure, make_plan(structure, kept or KEPT)


@nnx.jit
def one_step(net, optimizer):
    def loss(net):
        logits = net(jnp.asarray(IMAGES))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).mean()

    optimizer.update(net, nnx.grad(loss)(net))


def network():
    """A residual network; its convolutions have no biases, which the norms behind them would cancel to rounding."""
    net = residual()
    for layer in (net.stem, net.conv1, net.conv2):
        layer.bias, layer.use_bias = None, False
    return net


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(0.01),
    "chain": optax.chain(
        optax.clip_by_global_norm(0.05), optax.inject_hyperparams(optax.adam)(0.01), optax.ema(0.9)
    ),
    "masked": optax.multi_transform(
        {"kernel": optax.adamw(0.01), "other": optax.sgd(0.1, momentum=0.5)},
        partial(
            jax.tree_util.tree_map_with_path,
            lambda path, _: "kernel" if "kernel" in jax.tree_util.keystr(path) else "other",
        ),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_after_slimming_is_that_of_the_masked_network(name):
    """Gradients of pruned channels are zeroed in the masked run, so that they enter no global norm."""
    net, transformation = network(), OPTIMIZERS[name]
    optimizer = nnx.Optimizer(net, transformation, wrt=nnx.Param)
    one_step(net, optimizer)
    structure, plan = made(net)
    masked = mask(net, plan)
    smaller, cut = slim(net, plan, optimizer=optimizer)
    assert cut.tx is transformation and int(cut.step[...]) == 1

    masks = {path: jnp.asarray(array) for path, array in channel_masks(structure, plan.kept).items()}
    held = nnx.Optimizer(masked, keep_masked(masks, transformation), wrt=nnx.Param)
    nnx.update(held.opt_state, nnx.state(optimizer.opt_state))
    one_step(smaller, cut)
    one_step(masked, held)
    expected = slim_state(structure, jax.device_get(split_model(masked)[1]), plan.kept)
    for path, array in split_model(smaller)[1].items():
        np.testing.assert_allclose(array, expected[path], rtol=0, atol=1e-6)


class TestByHand:
    """Channels 1 and 3 of four stay; `dense` reads each at four positions of a map."""

    def cut(self, tree):
        structure, plan = made(plain(), {"conv1.kernel": (1, 3)})
        kept = {name: np.asarray(own, np.int32) for name, own in plan.kept.items() if name == "conv1.kernel"}
        return slim_tree(tree, structure, kept)

    def test_moments_of_a_bias(self):
        tree = {"mu": {"conv1": {"bias": jnp.arange(4.0)}, "conv2": {"bias": jnp.arange(6.0)}}}
        cut = self.cut(tree)["mu"]
        assert cut["conv1"]["bias"].tolist() == [1.0, 3.0]
        assert cut["conv2"]["bias"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]

    def test_a_flat_dictionary_of_paths(self):
        assert self.cut([{("conv1", "bias"): np.arange(4.0)}])[0]["conv1", "bias"].tolist() == [1.0, 3.0]

    def test_a_history_of_several_steps(self):
        history = np.arange(20.0, dtype=np.float32).reshape(5, 4)
        cut = self.cut({"past": {"conv1": {"bias": history}}})
        np.testing.assert_array_equal(cut["past"]["conv1"]["bias"], history[:, [1, 3]])

    def test_counts_keys_and_placeholders_are_kept(self):
        tree = {"count": 7, "rate": jnp.float32(0.1), "key": jax.random.key(0), "raw": jax.random.PRNGKey(0)}
        tree |= {"rows": {"conv1": {"kernel": np.zeros(1), "bias": optax.MaskedNode()}}}
        cut = self.cut(tree)
        assert cut["count"] == 7 and cut["rate"] == tree["rate"] and cut["key"] == tree["key"]
        assert jax.tree.structure(cut) == jax.tree.structure(tree)

    def test_an_axis_that_stays_whole_may_have_been_summed(self):
        sums = np.arange(36, dtype=np.float32).reshape(
            3, 3, 4
        )  # of conv2.kernel [3, 3, 4, 6], over its outputs
        cut = self.cut({"v": {"conv2": {"kernel": sums}}})["v"]["conv2"]["kernel"]
        np.testing.assert_array_equal(cut, sums[..., [1, 3]])


def test_an_optax_state_an_average_and_a_model_and_optimizer_give_the_same():
    net = residual()
    _, plan = made(net)
    owner = nnx.ModelAndOptimizer(net, OPTIMIZERS["adam"])
    smaller, cut = slim(net, plan, optimizer=owner)
    assert cut.model is smaller and owner.model is net
    params = nnx.state(net, nnx.Param)
    state = OPTIMIZERS["adam"].init(params)
    everything = nnx.state(net, (nnx.Param, nnx.BatchStat))
    _, (cut_state, average) = slim(net, plan, optimizer=(state, everything))
    shapes = [leaf.shape for leaf in jax.tree.leaves(cut_state[0].mu)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(nnx.state(smaller, nnx.Param))]
    jax.tree.map(np.testing.assert_array_equal, average, nnx.state(smaller, (nnx.Param, nnx.BatchStat)))
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.as_pure(cut.opt_state)[0].mu)] == shapes


def test_nothing_of_the_callers_changes_and_nothing_is_shared():
    net = listed()
    optimizer = nnx.Optimizer(net, OPTIMIZERS["adam"], wrt=nnx.Param)
    before = jax.tree.map(np.array, nnx.as_pure(nnx.state(optimizer)))
    _, plan = made(net, {"convs.0.kernel": (0, 1)})
    _, cut = slim(net, plan, optimizer=optimizer)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.as_pure(nnx.state(optimizer)))
    own = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(nnx.state(optimizer))}
    assert own.isdisjoint(leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(nnx.state(cut)))


def test_compensation_and_an_optimizer_go_together():
    net = mlp()
    _, plan = made(net, {"fc1.kernel": (0, 2, 5)})
    observed = observe(net, IMAGES, LABELS)
    optimizer = nnx.Optimizer(net, OPTIMIZERS["sgd"], wrt=nnx.Param)
    smaller, cut = slim(net, plan, compensate=observed, optimizer=optimizer)
    assert nnx.as_pure(cut.opt_state)[0].trace["fc2"]["kernel"].shape == smaller.fc2.kernel.shape == (3, 7)


class TestRefused:
    @pytest.mark.parametrize("optimizer", [optax.sgd(0.1), "sgd"])
    def test_a_transformation_without_its_state(self, optimizer):
        net = mlp()
        with pytest.raises(
            TypeError, match=r"needs an nnx.Optimizer or the state .* what transformation.init"
        ):
            slim(net, made(net, {"fc1.kernel": (0,)})[1], optimizer=optimizer)

    def test_an_optimizer_of_another_network(self):
        net = conv_norm_relu()
        optimizer = nnx.Optimizer(residual(), OPTIMIZERS["adam"], wrt=nnx.Param)
        plan = made(net, {"conv1.kernel": (0,)})[1]
        with pytest.raises(
            ValueError, match=r"made for this network, got .*conv1.*and \d+ others.*Pass the opt"
        ):
            slim(net, plan, optimizer=optimizer)

    @pytest.mark.parametrize(
        ("state", "what"),
        [
            ({"mu": {"conv1": {"bias": np.ones(5)}}}, r"\(5,\) where conv1.bias is \(4,\)"),
            (
                {"mu": {"conv1": {"bias": np.ones(4)}, "conv9": {"bias": np.ones(9)}}},
                "at no path of the network",
            ),
            ({"mu": {"other": np.ones(9)}}, "nothing at a path of the network"),
        ],
    )
    def test_a_state_of_another_network(self, state, what):
        net = conv_norm_relu()
        with pytest.raises(
            ValueError, match=rf"needs an optimizer that was made for this network, got .*{what}"
        ):
            slim(net, made(net, {"conv1.kernel": (0,)})[1], optimizer=state)

    def test_a_module_that_the_optimizer_does_not_hold(self):
        net, owner = mlp(), nnx.ModelAndOptimizer(mlp(), OPTIMIZERS["sgd"])
        with pytest.raises(ValueError, match=r"ModelAndOptimizer that holds another module.*optimizer.model"):
            slim(net, made(net, {"fc1.kernel": (0,)})[1], optimizer=owner)

    def test_an_array_that_may_follow_the_channels(self):
        net = mlp()
        state = {"mu": nnx.state(net, nnx.Param), "extra": np.ones((2, 8))}
        with pytest.raises(
            ValueError, match=r"'extra'.*\(2, 8\) has the size of something that is cut, but no"
        ):
            slim(net, made(net, {"fc1.kernel": (0, 1)})[1], optimizer=state)

    def test_matrices_of_a_vector_that_is_cut(self):
        net = mlp()
        state = {"mu": nnx.to_pure_dict(nnx.state(net, nnx.Param)), "m": {"fc1": {"bias": np.ones((8, 8))}}}
        with pytest.raises(ValueError, match=r"\(8, 8\) belongs to fc1.bias \(8,\) and is not of its shape"):
            slim(net, made(net, {"fc1.kernel": (0, 1)})[1], optimizer=state)

    def test_adafactors_factored_moments_of_a_kernel_that_is_cut(self):
        net = mlp()
        transformation = optax.adafactor(0.1, min_dim_size_to_factor=7)
        optimizer = nnx.Optimizer(net, transformation, wrt=nnx.Param)
        with pytest.raises(ValueError, match=r"'fc2'.*means over an axis that is cut, as Adafactor's"):
            slim(net, made(net, {"fc1.kernel": (0, 1)})[1], optimizer=optimizer)
        optimizer = nnx.Optimizer(net, optax.adafactor(0.1), wrt=nnx.Param)  # nothing here is that large
        _, cut = slim(net, made(net, {"fc1.kernel": (0, 1)})[1], optimizer=optimizer)
        assert cut.tx is optimizer.tx

    def test_moments_of_lower_rank(self):
        """As GaLore's: there is no such array for the smaller kernel."""

        def init(params):
            return {"fc2": {"kernel": jnp.zeros((4, 4))}}

        net, transformation = mlp(), optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
        optimizer = nnx.Optimizer(net, transformation, wrt=nnx.Param)
        with pytest.raises(
            ValueError, match=r"\(4, 4\) belongs to fc2.kernel \(8, 7\) and is not of its shape"
        ):
            slim(net, made(net, {"fc1.kernel": (0,)})[1], optimizer=optimizer)

    def test_a_state_whose_form_follows_from_sizes(self):
        def init(params):
            return {"fc1": {"bias": jnp.zeros(params["fc1"]["bias"].size // 8)}}

        net, transformation = mlp(), optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
        optimizer = nnx.Optimizer(net, transformation, wrt=nnx.Param)
        plan = made(net, {"fc1.kernel": (0,), "fc2.kernel": (0, 1)})[1]
        with pytest.raises(ValueError, match=r"another form for the smaller network: .*fc1"):
            slim(net, plan, optimizer=optimizer)


class TestPaths:
    def test_keys_become_text(self):
        tree = {"b": [nnx.Param(jnp.zeros(()))], "flat": {("a", 0): 1}}
        assert [names_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]] == [
            ("b", "0", "value"),
            ("flat", "a", "0"),
        ]

    def test_of_two_paths_that_fit_it_is_the_one_beside_others(self):
        """A network with `mu.kernel` and `kernel`: the field `mu` of the state comes before both."""
        leaves = [("0", "mu", "kernel"), ("0", "mu", "bias"), ("0", "mu", "mu", "kernel")]
        places = find_places(leaves, [("kernel",), ("bias",), ("mu", "kernel")])
        assert places == [
            Place(("kernel",), ("0", "mu"), ()),
            Place(("bias",), ("0", "mu"), ()),
            Place(("mu", "kernel"), ("0", "mu"), ()),
        ]
