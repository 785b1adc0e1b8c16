"""The training loop: hand-checked pieces, masks held at zero, dropout and augmentation seeded by the key."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.nets import PlainConvNet
from jaxprune.pruning.masking import channel_masks
from jaxprune.structure.tracing import trace_structure
from jaxprune.training.loop import (
    EVALUATION_BATCH,
    Examples,
    augment,
    batch_order,
    count_correct,
    segments,
    split_network,
    train,
)
from jaxprune.training.recipes import Recipe

ADAM = Recipe("test", "adam", 1e-2, epochs=2, batch_size=10)


class Identity(nnx.Module):
    """Logits are the inputs times one learned scale."""

    def __init__(self, rngs: nnx.Rngs, rate: float = 0.0) -> None:
        self.scale = nnx.Param(jnp.ones(3))
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(x * self.scale[...][None])


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    return Examples(
        jnp.asarray(rng.normal(size=(40, 3)) + np.eye(3)[labels], jnp.float32), jnp.asarray(labels)
    )


@pytest.fixture(scope="module")
def images() -> Examples:
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 3
    pixels = rng.normal(size=(40, 4, 4, 1)) + labels[:, None, None, None]
    return Examples(jnp.asarray(pixels, jnp.float32), jnp.asarray(labels))


def test_segments_end_evenly_and_at_the_last_step() -> None:
    assert segments(4, 1) == [(0, 4)]
    assert segments(4, 2) == [(0, 2), (2, 4)]
    assert segments(3, 3) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("evaluations", [0, 5])
def test_segments_refuse_more_evaluations_than_steps(evaluations: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to the number of training steps, 4, got {evaluations}"):
        segments(4, evaluations)


def test_batch_order_shows_every_example_once_an_epoch(key: jax.Array) -> None:
    order = batch_order(key, 40, ADAM)
    assert order.shape == (8, 10)
    assert sorted(order[:4].ravel()) == list(range(40)) == sorted(order[4:].ravel())
    assert not np.array_equal(order[:4], order[4:])


def test_batch_order_needs_one_whole_batch(key: jax.Array) -> None:
    with pytest.raises(ValueError, match="at least one batch of 10 examples, got 9"):
        batch_order(key, 9, ADAM)


def test_count_correct_pads_batches_without_counting_the_padding() -> None:
    network, weights = split_network(Identity(nnx.Rngs(0)))
    labels = jnp.arange(2 * EVALUATION_BATCH + 1) % 3
    logits = jax.nn.one_hot(labels, 3)
    wrong_first = Examples(logits, labels.at[0].set(2))
    assert int(count_correct(network, weights, wrong_first)) == 2 * EVALUATION_BATCH


def test_a_network_that_diverged_classifies_nothing() -> None:
    network, weights = split_network(Identity(nnx.Rngs(0)))
    logits = jnp.full((6, 3), jnp.nan)
    assert int(count_correct(network, weights, Examples(logits, jnp.zeros(6, jnp.int32)))) == 0


def test_training_learns_and_leaves_the_model_alone(examples: Examples, key: jax.Array) -> None:
    model = PlainConvNet(nnx.Rngs(0), widths=(2, 3, 4), num_classes=3, image_shape=(4, 4, 1))
    before = jax.tree.map(np.asarray, split_network(model)[1])
    labels = jnp.arange(40) % 3
    pixels = jnp.ones((40, 4, 4, 1)) * labels[:, None, None, None]
    network, weights = split_network(model)
    recipe = ADAM.replace(epochs=40)
    order = jnp.asarray(batch_order(key, 40, recipe))
    run = jax.jit(partial(train, network, recipe, evaluations=2))
    trained, counts = run(weights, Examples(pixels, labels), Examples(pixels, labels), order, key)
    assert counts.shape == (2,)
    assert int(counts[1]) == 40
    for path, array in split_network(model)[1].items():
        np.testing.assert_array_equal(array, before[path])
        assert trained[path].shape == array.shape


@pytest.mark.parametrize(
    "recipe",
    [
        ADAM,
        ADAM.replace(weight_decay=1e-2),
        Recipe("sgd", "sgd", 1e-2, epochs=2, batch_size=10, weight_decay=1e-2, nesterov=True),
    ],
    ids=["adam", "adam-decay", "sgd-nesterov-decay"],
)
def test_masked_channels_stay_exactly_zero(recipe: Recipe, images: Examples, key: jax.Array) -> None:
    model = PlainConvNet(nnx.Rngs(0), widths=(4, 4, 4), num_classes=3, image_shape=(4, 4, 1))
    structure = trace_structure(model, jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32))
    masks = channel_masks(
        structure, {"conv1.kernel": (0, 2), "conv2.kernel": (1,), "dense.kernel": (0, 1, 3)}
    )
    network, weights = split_network(model)
    order = jnp.asarray(batch_order(key, 40, recipe))
    trained, _ = jax.jit(partial(train, network, recipe, masks=masks))(weights, images, images, order, key)
    for path, is_kept in masks.items():
        assert not np.any(np.asarray(trained[path])[~np.asarray(is_kept)])
        moved = np.asarray(trained[path] != weights[path])[np.asarray(is_kept)]
        assert moved.any()


def test_the_key_decides_dropout(examples: Examples, key: jax.Array) -> None:
    network, weights = split_network(Identity(nnx.Rngs(0), rate=0.5))
    order = jnp.asarray(batch_order(key, 40, ADAM))
    run = jax.jit(partial(train, network, ADAM))
    first, again, other = (
        run(weights, examples, examples, order, jax.random.key(seed))[0][("scale",)] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_crops_and_mirrors_move_pixels_but_keep_their_values(key: jax.Array) -> None:
    images = jnp.arange(1.0, 65.0).reshape(1, 8, 8, 1) * jnp.ones((32, 1, 1, 1))
    changed = np.asarray(augment(key, images, "crop_flip"))
    assert changed.shape == images.shape
    assert len({image.tobytes() for image in changed}) > 8
    assert set(np.unique(changed)) <= {0.0, *range(1, 65)}


def test_augment_refuses_what_it_does_not_know(key: jax.Array) -> None:
    with pytest.raises(ValueError, match=r'augment must be "none" or "crop_flip", got \'blur\''):
        augment(key, jnp.ones((1, 8, 8, 1)), "blur")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"crop_flip needs images \[N, H, W, C\], got shape \(3, 4\)"):
        augment(key, jnp.ones((3, 4)), "crop_flip")


def test_networks_compare_by_their_static_parts() -> None:
    network = split_network(Identity(nnx.Rngs(0)))[0]
    assert network.trained == frozenset({("scale",)})
    assert dataclasses.is_dataclass(network)
