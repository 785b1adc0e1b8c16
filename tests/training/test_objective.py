"""The loss by hand, and what bfloat16 changes: the passes inside the network, not the statistics or the weights."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.nets import SmallConvNet
from jaxprune.training.loop import Teacher, make_measured_step, split_network
from jaxprune.training.objective import distillation_loss, mean_loss, training_pass
from jaxprune.training.recipes import Recipe

PLAIN = Recipe("plain", "sgd", 0.1, epochs=1, batch_size=4, momentum=0.0)
LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
LABELS = np.array([0, 2])


@partial(jax.jit, static_argnums=0)
def loss_of(smoothing, logits, counted):
    return mean_loss(logits, LABELS, smoothing, counted)


class Scale(nnx.Module):
    """Logits are the inputs times one learned scale per class."""

    def __init__(self) -> None:
        self.scale = nnx.Param(np.ones(2, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...][None]


class Loose(nnx.Module):
    """A network that keeps a statistic in the type of its inputs."""

    def __init__(self) -> None:
        self.scale = nnx.Param(np.ones(2, np.float32))
        self.last = nnx.BatchStat(np.zeros(2, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.last[...] = x[0]
        return x * self.scale[...][None]


class TestMeanLoss:
    def test_cross_entropy(self):
        assert float(loss_of(0.0, LOGITS, None)) == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)

    def test_smoothing_spreads_a_share_of_the_label_over_all_classes(self):
        first = -(0.8 * math.log(0.5) + 0.2 * math.log(0.25))
        second = -(0.8 * math.log(0.1) + 0.1 * math.log(0.1) + 0.1 * math.log(0.8))
        assert float(loss_of(0.3, LOGITS, None)) == pytest.approx((first + second) / 2)

    def test_weights_weigh_and_examples_of_weight_zero_do_not_count(self):
        found = [float(loss_of(0.0, LOGITS, np.array(w, np.float32))) for w in ([0, 1], [3, 1])]
        assert found == pytest.approx([-math.log(0.1), -(0.75 * math.log(0.5) + 0.25 * math.log(0.1))])

    def test_a_batch_in_which_nothing_counts_has_no_loss(self):
        spoilt = np.array([[np.nan, 0, 0], [0, 0, 0]], np.float32)
        assert float(loss_of(0.0, spoilt, np.zeros(2, np.float32))) == 0.0


class TestBfloat16:
    def test_the_network_computes_in_it_and_keeps_statistics_in_float32(self):
        network, weights = split_network(
            nnx.eval_shape(lambda: SmallConvNet(nnx.Rngs(0), widths=(2, 2, 2, 2, 4)))
        )

        def run(weights, x):
            return training_pass(network.training, network.trained, weights, network.rest, x, "bfloat16")

        x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
        text = jax.make_jaxpr(run)(weights, x).pretty_print(use_color=False)
        kinds = (" conv_general_dilated[", " dot_general[")
        products = [line for line in text.splitlines() if any(kind in line for kind in kinds)]
        assert len(products) == 6
        assert all(":bf16" in line for line in products), products
        logits, after = jax.eval_shape(run, weights, x)
        assert logits.dtype == jnp.float32
        assert all(after[path].dtype == jnp.float32 for path in weights)

    def test_statistics_are_as_exact_as_their_inputs(self):
        """The mean over a batch of bfloat16 values is not itself rounded to bfloat16."""
        norm = nnx.BatchNorm(1, momentum=0.0, use_running_average=False, rngs=nnx.Rngs(0))
        network, weights = split_network(norm)
        run = partial(training_pass, network.training, network.trained, rest=network.rest, compute="bfloat16")
        x = np.random.default_rng(0).normal(size=(32, 1)).astype(np.float32) + 1
        _, after = jax.jit(lambda weights, x: run(weights, x=x))(weights, x)
        short = x.astype(jnp.bfloat16).astype(np.float64)
        np.testing.assert_allclose(after[("mean",)], short.mean(0), rtol=1e-5)
        np.testing.assert_allclose(after[("var",)], short.var(0), rtol=1e-5)

    def test_a_statistic_of_another_type_becomes_float32_again(self):
        network, weights = split_network(Loose())
        run = partial(training_pass, network.training, network.trained, rest=network.rest, compute="bfloat16")
        _, after = jax.eval_shape(lambda weights, x: run(weights, x=x), weights, np.ones((1, 2), np.float32))
        assert after[("last",)].dtype == jnp.float32

    def test_steps_smaller_than_bfloat16_can_show_add_up_in_the_master_weights(self, key):
        network, weights = split_network(Scale())
        recipe = PLAIN.replace(compute="bfloat16", learning_rate=1e-3)
        init, step = make_measured_step(network, recipe, 8)
        state, run, x = jax.jit(init)(weights), jax.jit(step), np.array([[1, 0]], np.float32)
        for _ in range(4):
            state, measures = run(state, x, np.array([0]), key)
        assert measures.loss.dtype == jnp.float32
        moved = float(state.weights[("scale",)][0]) - 1.0
        assert state.weights[("scale",)].dtype == jnp.float32
        assert moved == pytest.approx(4 * 1e-3 / (1 + math.e), rel=2e-2)  # bfloat16 next to 1 is 1.0078


class TestMeasuredStep:
    def test_loss_and_counts_are_those_before_the_update_and_the_average_moves_by_its_share(self, key):
        network, weights = split_network(Scale())
        init, step = make_measured_step(network, PLAIN.replace(ema=0.75), 1, prepare=lambda x: x / 10)
        x, labels = np.array([[10, 0], [10, 0], [0, 10]], np.float32), np.array([0, 1, 0])
        counted = np.array([1, 1, 0], np.float32)
        state, measures = jax.jit(lambda weights: step(init(weights), x, labels, key, None, counted))(weights)
        assert float(measures.loss) == pytest.approx(math.log(1 + math.e) - 0.5)
        assert (int(measures.num_correct), int(measures.num_examples)) == (1, 2)
        moved = float(state.weights[("scale",)][0]) - 1.0
        assert moved == pytest.approx(-0.1 * (math.e / (1 + math.e) - 0.5), rel=1e-4)
        assert float(state.result[("scale",)][0]) == pytest.approx(1.0 + 0.25 * moved, rel=1e-6)


class TestDistillation:
    TEACHER = np.array([[2.0, -2.0], [0.0, 0.0]], np.float32)

    def test_by_hand(self):
        """T = 2: the teacher's probabilities are s = 1 / (1 + exp(-2)) and 1 - s, the network's one half each."""
        s = 1 / (1 + math.exp(-2))
        expected = 4 * (s * math.log(2 * s) + (1 - s) * math.log(2 * (1 - s)))
        logits = np.zeros((2, 2), np.float32)
        counted = jnp.array([1.0, 0.0])
        assert math.isclose(distillation_loss(logits, self.TEACHER, 2.0, counted), expected, rel_tol=1e-5)
        assert math.isclose(distillation_loss(logits, self.TEACHER, 2.0), expected / 2, rel_tol=1e-5)
        assert float(distillation_loss(self.TEACHER, self.TEACHER, 2.0)) == 0.0

    def test_a_step_weighs_labels_and_teacher(self):
        network, weights = split_network(Scale())
        x, labels = np.array([[1.0, 0.5], [-1.0, 1.0]], np.float32), np.array([1, 1])
        teacher_weights = {("scale",): jnp.array([3.0, -1.0])}
        _, step = make_measured_step(network, PLAIN, 1, teacher=Teacher(network, 3.0, 0.25))
        init, _ = make_measured_step(network, PLAIN, 1)
        key = jax.random.key(0)
        state, measures = jax.jit(step)(init(weights), x, labels, key, None, None, teacher_weights)

        def total(scale):
            soft = distillation_loss(x * scale[None], x * np.float32([[3.0, -1.0]]), 3.0)
            return 0.75 * mean_loss(x * scale[None], labels) + 0.25 * soft

        loss, gradient = jax.value_and_grad(total)(jnp.ones(2))
        np.testing.assert_allclose(measures.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(state.weights["scale",], 1 - 0.1 * gradient, rtol=1e-5)

    def test_a_teacher_of_other_classes(self):
        with pytest.raises(
            ValueError, match=r"teacher with the outputs of the network, \[N, K\], got \(2, 3\) of"
        ):
            distillation_loss(jnp.zeros((2, 2)), jnp.zeros((2, 3)), 1.0)
