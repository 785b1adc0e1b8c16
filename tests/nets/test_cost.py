"""MACs and parameters against hand-computed values, for the package's networks and for any other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.nets import (
    NETWORKS,
    VGG16,
    LeNet5,
    PlainConvNet,
    SmallConvNet,
    count_macs,
    count_parameters,
    with_patch_convolutions,
)


class Calls(nnx.Module):
    """A module around any function of a [3, 3] parameter and the input."""

    def __init__(self, function):
        self.weight = nnx.Param(jnp.eye(3))
        self.function = function

    def __call__(self, x):
        return self.function(self.weight[...], x)


def abstract(network, **settings):
    """The network with shapes for parameters: counting needs no values."""
    return nnx.eval_shape(lambda: network(nnx.Rngs(0), **settings))


def macs_of(function, shape=(2, 3)):
    return count_macs(Calls(function), jnp.zeros(shape))


class TestByHand:
    def test_lenet5(self):
        model = abstract(LeNet5)
        macs = 24 * 24 * 25 * 1 * 20 + 8 * 8 * 25 * 20 * 50 + 4 * 4 * 50 * 500 + 500 * 10
        assert macs == 2_293_000
        assert count_macs(model, jnp.zeros((1, 28, 28, 1))) == macs
        assert count_parameters(model) == 500 + 20 + 25_000 + 50 + 400_000 + 500 + 5_000 + 10

    def test_plain_conv_net(self):
        model = abstract(PlainConvNet)
        macs = 8 * 8 * 9 * 1 * 16 + 4 * 4 * 9 * 16 * 32 + 2 * 2 * 32 * 64 + 64 * 10
        assert count_macs(model, jnp.zeros((1, 8, 8, 1))) == macs == 91_776
        assert count_parameters(model) == 144 + 16 + 4_608 + 32 + 8_192 + 64 + 640 + 10

    def test_small_conv_net(self):
        model = abstract(SmallConvNet)
        macs = 64 * 9 * (16 + 16 * 16) + 16 * 9 * (16 * 32 + 32 * 32) + 2 * 2 * 32 * 64 + 64 * 10
        assert count_macs(model, jnp.zeros((1, 8, 8, 1))) == macs == 386_688
        kernels = 144 + 2_304 + 4_608 + 9_216 + 8_192 + 640
        biases, norms = 64 + 10, 2 * (16 + 16 + 32 + 32)
        assert count_parameters(model) == kernels + biases + norms

    def test_vgg16(self):
        model = abstract(VGG16)
        assert count_macs(model, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)) == 313_463_808
        convolutions, norms = 14_710_464 + 4_224, 2 * (4_224 + 512)
        assert count_parameters(model) == convolutions + norms + 512 * 512 + 512 + 512 * 10 + 10

    def test_strided_grouped_convolution(self):
        model = nnx.Conv(8, 12, (3, 3), strides=2, feature_group_count=4, rngs=nnx.Rngs(0))
        assert count_macs(model, jnp.zeros((1, 8, 8, 8))) == 4 * 4 * 12 * 9 * 2
        assert count_parameters(model) == 9 * 2 * 12 + 12

    def test_attention_counts_its_batched_products(self):
        model = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0))
        projections, products = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
        assert count_macs(model, jnp.zeros((1, 5, 8))) == projections + products


class TestAnyModel:
    def test_the_batch_size_does_not_matter(self):
        model = abstract(PlainConvNet)
        counts = {count_macs(model, jnp.zeros((n, 8, 8, 1))) for n in (1, 7, 64)}
        assert counts == {91_776}

    @pytest.mark.parametrize("name", ["plain_conv_net", "small_conv_net", "lenet5", "vgg16", "resnet18"])
    def test_patch_convolutions_count_the_same(self, name):
        model = abstract(NETWORKS[name])
        example = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
        assert count_macs(with_patch_convolutions(model), example) == count_macs(model, example)

    def test_halving_widths_of_a_dense_chain_quarters_its_inner_cost(self):
        wide, slim = (abstract(LeNet5, widths=widths) for widths in ((20, 50, 500), (10, 25, 250)))
        outer = 24 * 24 * 25 * 10 + 10 * 250
        example = jnp.zeros((1, 28, 28, 1))
        assert (count_macs(wide, example) - 2 * outer) == 4 * (count_macs(slim, example) - outer)

    def test_nested_calls_count_once(self):
        assert macs_of(lambda w, x: jax.jit(lambda x: x @ w)(x)) == 9
        assert macs_of(lambda w, x: jax.checkpoint(lambda x: x @ w)(x)) == 9
        assert macs_of(lambda w, x: jax.nn.relu(x @ w) + jax.nn.silu(x)) == 9

    def test_custom_derivatives_count_their_forward_pass_only(self):
        @jax.custom_vjp
        def product(w, x):
            return x @ w

        product.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))
        assert macs_of(product) == 9

        @jax.custom_jvp
        def squared(w, x):
            return x @ w

        squared.defjvp(lambda primals, tangents: (squared(*primals), tangents[1] @ primals[0]))
        assert macs_of(squared) == 9

    def test_a_scan_counts_each_turn(self):
        assert macs_of(lambda w, x: jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]) == 45

    def test_fixed_bounds_count_each_turn(self):
        assert macs_of(lambda w, x: jax.lax.fori_loop(0, 4, lambda _, x: x @ w, x)) == 36

    def test_a_branch_counts_its_costliest_case(self):
        def either(w, x):
            return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

        assert macs_of(either) == 18

    def test_a_loop_without_a_known_number_of_turns_is_refused(self):
        def until_large(w, x):
            return jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x @ w + 1, x)

        with pytest.raises(ValueError, match="known number of iterations, got products inside a while loop"):
            macs_of(until_large)

    def test_such_a_loop_without_products_is_free(self):
        def until_large(w, x):
            return jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x + 1, x) @ w

        assert macs_of(until_large) == 9

    def test_a_scalar_example_is_refused(self):
        with pytest.raises(ValueError, match=r"needs an example batch \[N, \.\.\.\], got a scalar"):
            count_macs(Calls(lambda w, x: x), jnp.float32(1))

    def test_shared_parameters_count_once(self):
        model = Calls(lambda w, x: x)
        model.again = model.weight
        assert count_parameters(model) == 9


class TestTheCallersModel:
    def test_it_is_not_changed(self, key):
        model = VGG16(nnx.Rngs(0), widths=(2,) * 14, dropout_rate=0.5)
        model.train()
        before = jax.tree.map(np.asarray, nnx.split(model, nnx.Param, nnx.BatchStat, ...)[1:3])
        count_macs(model, jax.random.normal(key, (4, 32, 32, 3)))
        count_parameters(model)
        after = jax.tree.map(np.asarray, nnx.split(model, nnx.Param, nnx.BatchStat, ...)[1:3])
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
        assert model.norms[0].use_running_average is False
        assert model.dropout.deterministic is False
        assert int(model.dropout.rngs.count[...]) == 0

    def test_it_is_counted_in_evaluation_mode(self):
        class OnlyInTraining(nnx.Module):
            def __init__(self):
                self.drop = nnx.Dropout(0.5)
                self.layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

            def __call__(self, x):
                return self.layer(self.drop(x))

        # In training mode this one raises: its dropout has no random stream.
        assert count_macs(OnlyInTraining(), jnp.zeros((2, 3))) == 9
