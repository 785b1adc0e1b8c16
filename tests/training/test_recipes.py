"""Recipes: the updates and learning rates they give, by hand, and settings they refuse."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.training.recipes import RECIPES, Recipe, find_recipe

PLAIN = Recipe("plain", "sgd", 0.1, epochs=2, batch_size=10, momentum=0.0)
PARAMS = {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([3.0, 3.0])}
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def updates_of(recipe, *, gradients=ONES, steps=1, num_steps=10):
    transformation = recipe.transformation(num_steps)
    state = transformation.init(PARAMS)
    for _ in range(steps):
        updates, state = transformation.update(gradients, state, PARAMS)
    return jax.tree.map(np.asarray, updates)


class TestTransformation:
    def test_plain_descent_steps_by_the_learning_rate(self):
        np.testing.assert_allclose(updates_of(PLAIN)["kernel"], [[-0.1, -0.1]], rtol=1e-6)

    def test_momentum_adds_up(self):
        found = updates_of(PLAIN.replace(momentum=0.5), steps=3)
        np.testing.assert_allclose(found["bias"], -0.1 * (1 + 0.5 + 0.25), rtol=1e-6)

    def test_nesterov_looks_one_step_ahead(self):
        found = updates_of(PLAIN.replace(momentum=0.5, nesterov=True))
        np.testing.assert_allclose(found["bias"], -0.1 * (1 + 0.5), rtol=1e-6)

    def test_weight_decay_pulls_kernels_and_not_biases(self):
        found = updates_of(PLAIN.replace(weight_decay=0.5))
        np.testing.assert_allclose(found["kernel"], [[-0.1 * (1 + 1), -0.1 * (1 - 2)]], rtol=1e-6)
        np.testing.assert_allclose(found["bias"], -0.1, rtol=1e-6)

    def test_weight_decay_is_a_ridge_that_adam_rescales_too(self):
        adam = PLAIN.replace(optimizer="adam", weight_decay=0.5)
        zeros = jax.tree.map(jnp.zeros_like, PARAMS)
        np.testing.assert_allclose(updates_of(adam, gradients=zeros)["kernel"], [[-0.1, 0.1]], rtol=1e-4)

    def test_adams_first_step_is_the_learning_rate_for_any_gradient(self):
        adam = PLAIN.replace(optimizer="adam")
        gradients = jax.tree.map(lambda ones: 1e-3 * ones, ONES)
        np.testing.assert_allclose(updates_of(adam, gradients=gradients)["bias"], -0.1, rtol=1e-4)

    def test_weight_decay_on_all_pulls_biases_too(self):
        found = updates_of(PLAIN.replace(weight_decay=0.5, decay_on="all"))
        np.testing.assert_allclose(found["kernel"], [[-0.1 * (1 + 1), -0.1 * (1 - 2)]], rtol=1e-6)
        np.testing.assert_allclose(found["bias"], -0.1 * (1 + 1.5), rtol=1e-6)

    def test_the_schedule_reaches_the_updates(self):
        falling = PLAIN.replace(schedule="steps", milestones=(0.5,), drop_factor=0.1)
        np.testing.assert_allclose(updates_of(falling, steps=5)["bias"], -0.1, rtol=1e-6)
        np.testing.assert_allclose(updates_of(falling, steps=7)["bias"], -0.01, rtol=1e-6)

    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_members_under_vmap_equal_members_one_by_one(self, recipe):
        transformation = recipe.transformation(10)
        members = jax.tree.map(lambda array: jnp.stack([array, 2 * array]), PARAMS)

        def step(params):
            return transformation.update(ONES, transformation.init(params), params)[0]

        stacked = jax.vmap(step)(members)
        for index in range(2):
            alone = step(jax.tree.map(lambda array, i=index: array[i], members))
            for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(stacked), strict=True):
                np.testing.assert_allclose(one, other[index], rtol=1e-6)

    def test_no_steps_are_refused(self):
        with pytest.raises(ValueError, match="transformation needs num_steps >= 1, got 0"):
            PLAIN.transformation(0)


class TestLearningRates:
    def rates(self, recipe, *steps, num_steps=100):
        rates = recipe.learning_rates(num_steps)
        return [pytest.approx(float(rates(step)), abs=1e-7) for step in steps]

    def test_constant(self):
        assert self.rates(PLAIN, 0, 99) == [0.1, 0.1]

    def test_cosine_ends_at_zero(self):
        assert self.rates(PLAIN.replace(schedule="cosine"), 0, 50, 100) == [0.1, 0.05, 0.0]

    def test_steps_multiply(self):
        recipe = PLAIN.replace(schedule="steps", milestones=(0.4, 0.8), drop_factor=0.5)
        assert self.rates(recipe, 0, 39, 40, 79, 80) == [0.1, 0.1, 0.05, 0.05, 0.025]

    def test_exponential_falls_after_each_epoch(self):
        recipe = PLAIN.replace(epochs=4, schedule="exponential", drop_factor=0.5)
        assert self.rates(recipe, 0, 24, 25, 49, 50, 99) == [0.1, 0.1, 0.05, 0.05, 0.025, 0.0125]

    def test_warmup_rises_in_equal_steps(self):
        recipe = PLAIN.replace(warmup=0.2)  # 10 of the 50 steps of an epoch
        assert self.rates(recipe, 0, 1, 5, 10, 99) == [0.0, 0.01, 0.05, 0.1, 0.1]

    def test_cosine_falls_over_the_steps_after_the_warmup(self):
        recipe = PLAIN.replace(warmup=0.4, schedule="cosine")
        assert self.rates(recipe, 0, 10, 20, 60, 100) == [0.0, 0.05, 0.1, 0.05, 0.0]

    def test_milestones_count_from_the_start_of_the_warmup(self):
        recipe = PLAIN.replace(warmup=0.4, schedule="steps", milestones=(0.5,))
        assert self.rates(recipe, 10, 49, 50) == [0.05, 0.1, 0.01]

    def test_milestones_that_fall_on_one_step_both_count(self):
        recipe = PLAIN.replace(schedule="steps", milestones=(0.49, 0.51), drop_factor=0.5)
        assert self.rates(recipe, 0, 1, num_steps=2) == [0.1, 0.025]


class TestNumSteps:
    def test_incomplete_batches_are_left_out(self):
        assert PLAIN.num_steps(29) == 4
        assert PLAIN.num_steps(10) == 2

    @pytest.mark.parametrize("count", [9, 0])
    def test_less_than_a_batch_is_refused(self, count):
        fix = max(count, 1)
        with pytest.raises(ValueError, match=rf"one batch of 10 examples, got {count}\. .*batch_size={fix}"):
            PLAIN.num_steps(count)


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optimizer": "rmsprop"}, "optimizer adam or sgd, got 'rmsprop'"),
            ({"schedule": "linear"}, "schedule constant, cosine, steps or exponential, got 'linear'"),
            ({"augment": "mixup"}, "augment none or crop_flip, got 'mixup'"),
            ({"learning_rate": 0.0}, "learning_rate > 0, got 0.0"),
            ({"learning_rate": float("nan")}, "learning_rate > 0, got nan"),
            ({"epochs": 0}, "epochs a whole number >= 1, got 0"),
            ({"epochs": 1.5}, "epochs a whole number >= 1, got 1.5"),
            ({"batch_size": 0}, "batch_size a whole number >= 1, got 0"),
            ({"batch_size": True}, "batch_size a whole number >= 1, got True"),
            ({"weight_decay": -1.0}, "weight_decay >= 0, got -1.0"),
            ({"momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
            ({"schedule": "steps"}, "milestones for schedule='steps'.* got none"),
            ({"milestones": (0.8, 0.4)}, r"milestones increasing in \(0, 1\), got \(0.8, 0.4\)"),
            ({"milestones": (0.5, 1.0)}, r"milestones increasing in \(0, 1\), got \(0.5, 1.0\)"),
            ({"compensate": 1}, "compensate True or False, got 1"),
            ({"drop_factor": 1.0}, r"drop_factor in \(0, 1\), got 1.0"),
            ({"warmup": -1}, "warmup in epochs, at least 0 and less than the 2 of the run, got -1"),
            ({"warmup": 2}, "warmup in epochs, at least 0 and less than the 2 of the run, got 2"),
            ({"label_smoothing": 1.0}, r"label_smoothing in \[0, 1\), got 1.0"),
            ({"decay_on": "biases"}, "decay_on kernels or all, got 'biases'"),
            ({"ema": 1.0}, r"ema in \[0, 1\), such as 0.9999, got 1.0"),
            ({"compute": "float16"}, "compute float32 or bfloat16, got 'float16'"),
        ],
    )
    def test_a_setting_out_of_range_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=f"Recipe 'plain' needs {message}"):
            PLAIN.replace(**changes)

    def test_all_bad_settings_are_named_at_once(self):
        with pytest.raises(
            ValueError, match=r"learning_rate > 0, got -1; epochs .* got 0; momentum .* got 2"
        ):
            PLAIN.replace(learning_rate=-1, epochs=0, momentum=2)

    def test_an_unknown_setting_is_refused(self):
        with pytest.raises(
            ValueError, match=r"Recipe has the settings name, .*, got lr\. Check the spelling"
        ):
            PLAIN.replace(lr=0.1)

    def test_later_settings_are_named_only_if_they_are_not_the_default(self):
        later = {"warmup": 1.0, "label_smoothing": 0.1, "decay_on": "all", "ema": 0.9, "compute": "bfloat16"}
        assert not later.keys() & PLAIN.settings.keys()
        for name, value in later.items():
            changed = PLAIN.replace(**{name: value}).settings
            assert changed == {**PLAIN.settings, name: value}

    def test_the_learning_rate_follows_the_batch_size(self):
        scaled = PLAIN.scaled_to(40)
        assert (scaled.batch_size, scaled.learning_rate) == (40, 0.4)
        with pytest.raises(ValueError, match="batch_size a whole number >= 1, got 0"):
            PLAIN.scaled_to(0)

    def test_a_recipe_survives_json(self):
        for recipe in RECIPES.values():
            again = Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe))))
            assert again == recipe
            assert hash(again) == hash(recipe)
            assert Recipe(**json.loads(json.dumps(recipe.settings))) == recipe


class TestFindRecipe:
    def test_names_and_recipes(self):
        assert find_recipe("paper_vgg") is RECIPES["paper_vgg"]
        assert find_recipe(PLAIN) is PLAIN

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(ValueError, match=r"got 'adam_shrt'\. Did you mean 'adam_short'\?"):
            find_recipe("adam_shrt")
        with pytest.raises(ValueError, match=r"one of adam_short, .*, got 'zzz'\. Pass a Recipe"):
            find_recipe("zzz")

    def test_every_recipe_is_under_its_own_name(self):
        assert all(name == recipe.name for name, recipe in RECIPES.items())

    def test_the_papers_settings(self):
        lenet, vgg = RECIPES["paper_lenet"], RECIPES["paper_vgg"]
        assert (lenet.optimizer, lenet.learning_rate, lenet.batch_size, lenet.epochs) == (
            "adam",
            5e-4,
            200,
            100,
        )
        assert (lenet.weight_decay, vgg.weight_decay) == (7e-5, 1e-3)
        assert (vgg.optimizer, vgg.nesterov, vgg.momentum, vgg.batch_size) == ("sgd", True, 0.9, 128)
        assert (vgg.milestones, vgg.drop_factor, vgg.augment) == ((0.4, 0.8), 0.28, "crop_flip")

    def test_published_settings_for_large_networks(self):
        flax, torch = RECIPES["imagenet_base"], RECIPES["imagenet_finetune"]
        assert (flax.learning_rate / (flax.batch_size / 256), flax.warmup, flax.decay_on) == (
            0.1,
            5,
            "kernels",
        )
        rates = torch.learning_rates(900)
        assert [round(float(rates(step)), 5) for step in (299, 300, 600)] == [0.08, 0.008, 0.0008]
        rates = RECIPES["imagenet_mobilenet"].learning_rates(1500)
        assert [round(float(rates(step)), 6) for step in (9, 10, 20)] == [0.036, 0.03528, 0.034574]
        rates = RECIPES["paper_resnet"].learning_rates(200)
        assert [round(float(rates(epoch)), 4) for epoch in (79, 80, 160)] == [0.1, 0.01, 0.001]


def test_numbers_of_numpy_become_python_s():
    recipe = RECIPES["adam_short"].replace(epochs=np.int64(4), batch_size=np.int32(10))
    assert recipe == RECIPES["adam_short"].replace(epochs=4, batch_size=10)
    assert json.dumps([recipe.epochs, recipe.batch_size]) == "[4, 10]"
