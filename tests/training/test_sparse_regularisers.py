"""Regularisers that make whole channels small."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from pruned_nets import IMAGES, Net, conv_norm_relu, linear, mlp, residual_dense

from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure
from jaxprune.training.sparse_regularisers import group_lasso, group_norms, scale_l1


def traced(net):
    return trace_structure(net, IMAGES), {
        path: jnp.asarray(array) for path, array in split_model(net)[1].items()
    }


def gradients_of(regulariser, params):
    zeros = {path: jnp.zeros(array.shape) for path, array in params.items()}
    return regulariser.update(zeros, regulariser.init(params), params)[0]


class TestGroupLasso:
    def test_by_hand(self):
        """A channel with weights 3 (made), 0 (bias) and 4 (read) has norm 5; the other one is zero."""
        net = Net({"one": linear(1, 2), "two": linear(2, 1)}, lambda net, x: net.two(nnx.relu(net.one(x))))
        structure = trace_structure(net, np.ones((2, 1), np.float32))
        params = {("one", "kernel"): jnp.array([[3.0, 0.0]]), ("one", "bias"): jnp.zeros(2)}
        params |= {("two", "kernel"): jnp.array([[4.0], [0.0]]), ("two", "bias"): jnp.ones(1)}
        assert group_norms(structure, params)["one.kernel"].tolist() == [5.0, 0.0]
        gradients = gradients_of(group_lasso(structure, 10.0), params)
        np.testing.assert_allclose(gradients["one", "kernel"], [[6.0, 0.0]], rtol=1e-6)
        np.testing.assert_allclose(gradients["two", "kernel"], [[8.0], [0.0]], rtol=1e-6)
        assert gradients["two", "bias"].tolist() == [0.0]

    @pytest.mark.parametrize("build", [mlp, residual_dense, conv_norm_relu])
    def test_it_is_the_gradient_of_the_sum_of_norms(self, build):
        structure, params = traced(build())

        def penalty(params):
            total = 0.0
            for group in structure.groups.values():
                squares = jnp.zeros(group.size)
                for member in group.members:
                    if member.path in structure.trained:
                        rows = jnp.moveaxis(params[member.path], member.axis, 0).reshape(
                            len(member.channels), -1
                        )
                        is_of = member.channels[None] == np.arange(group.size)[:, None]
                        squares += is_of @ (rows**2).sum(1)
                total += jnp.sqrt(squares).sum()
            return 0.5 * total

        expected = jax.jit(jax.grad(penalty))(params)
        gradients = jax.jit(lambda params: gradients_of(group_lasso(structure, 0.5), params))(params)
        for path, array in gradients.items():
            np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-6)

    def test_an_optimizer_of_nnx_makes_weights_small(self):
        net = mlp()
        structure = trace_structure(net, IMAGES)
        transformation = optax.chain(group_lasso(structure, 0.1), optax.sgd(1.0))
        optimizer = nnx.Optimizer(net, transformation, wrt=nnx.Param)
        before = group_norms(structure, split_model(net)[1])["fc1.kernel"]

        @nnx.jit
        def step(net, optimizer):
            optimizer.update(net, jax.tree.map(jnp.zeros_like, nnx.state(net, nnx.Param)))

        step(net, optimizer)
        after = group_norms(structure, split_model(net)[1])["fc1.kernel"]
        assert (after < before).all()


class TestScaleL1:
    def test_signs_of_scales_and_nothing_else(self):
        structure, params = traced(conv_norm_relu())
        params["norm1", "scale"] = jnp.array([2.0, -3.0, 0.0, 0.5])
        gradients = gradients_of(scale_l1(structure, 0.25), params)
        assert gradients["norm1", "scale"].tolist() == [0.25, -0.25, 0.0, 0.25]
        assert not gradients["norm1", "bias"].any() and not gradients["conv1", "kernel"].any()

    def test_a_network_without_normalisation(self):
        with pytest.raises(
            ValueError, match=r"scale_l1 needs .* normalisations with trained scales.*group_lasso"
        ):
            scale_l1(trace_structure(mlp(), IMAGES), 1e-4)


class TestRefused:
    @pytest.mark.parametrize("penalty", [group_lasso, scale_l1])
    def test_a_model_in_place_of_its_structure(self, penalty):
        with pytest.raises(TypeError, match=r"a penalty needs a Structure, got Net. Pass jp.trace_structure"):
            penalty(mlp(), 1e-3)

    @pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), "much"])
    def test_strengths(self, strength):
        with pytest.raises(ValueError, match=r"group_lasso needs a finite strength >= 0, got"):
            group_lasso(trace_structure(mlp(), IMAGES), strength)

    def test_no_parameters(self):
        structure, params = traced(mlp())
        regulariser = group_lasso(structure, 1e-4)
        with pytest.raises(ValueError, match=r"group_lasso needs the parameters in update, got none"):
            regulariser.update(params, regulariser.init(params))

    def test_parameters_of_another_network(self):
        structure, params = traced(mlp())
        params["fc2", "kernel"] = jnp.zeros((9, 7))
        del params["fc1", "bias"]
        with pytest.raises(
            ValueError, match=r"fc1.bias missing instead of \(8,\); fc2.kernel \(9, 7\) instead of"
        ):
            gradients_of(group_lasso(structure, 1e-4), params)

    def test_many_problems_are_cut_short(self):
        structure, _ = traced(conv_norm_relu())
        with pytest.raises(ValueError, match=r"others. Trace this network"):
            gradients_of(group_lasso(structure, 1e-4), {("a",): jnp.zeros(1)})
