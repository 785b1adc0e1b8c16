"""The training step lowers for every kind of device, and what cannot be split among devices is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_training import IMAGES, LABELS, RECIPE, ToyNet

from jaxprune.datasets.input_pipeline import Batch
from jaxprune.training.data_parallel import DataParallel, Pixels, TopCounts, data_mesh, training_step
from jaxprune.training.loop import split_network

PIXELS = Pixels((0.5,), (0.25,))


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.replace(compute="bfloat16")], ids=["float32", "bfloat16"])
def test_the_step_lowers_for_cpu_cuda_and_tpu(recipe):
    network, weights = split_network(ToyNet())
    init, step = training_step(network, recipe, 10, PIXELS)
    shapes = {"images": (16, 8, 8, 1), "labels": (16,), "weights": (16,)}
    types = {"images": jnp.uint8, "labels": jnp.int32, "weights": jnp.float32}
    batch = Batch(**{name: jax.ShapeDtypeStruct(shapes[name], types[name]) for name in shapes})
    arguments = (jax.eval_shape(init, weights), batch, jax.ShapeDtypeStruct((), jnp.int32))
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert ("xbf16>" in exported.mlir_module()) == (recipe.compute == "bfloat16")
    state, measures, rate = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert [a.dtype for a in jax.tree.leaves(state)] == [a.dtype for a in jax.tree.leaves(arguments[0])]
    assert (measures.loss.shape, rate.dtype) == ((), jnp.float32)


def test_pixels_are_scaled_to_one_and_normalised():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(np.ravel(jax.jit(PIXELS)(images)), [-2.0, 2.0])


def test_images_of_floats_are_not_normalised_again():
    images = np.full((2, 1, 1, 1), -0.5, np.float32)
    assert PIXELS(images) is images


def test_percentages():
    counts = TopCounts(3, 4, 8)
    assert (counts.top1_percent, counts.top5_percent) == (37.5, 50.0)
    assert TopCounts(0, 0, 0).top1_percent == 0.0


def test_a_batch_on_the_devices_stays_as_it_is():
    devices = DataParallel(split_network(ToyNet())[0], PIXELS, data_mesh())
    once = devices.place(Batch(IMAGES[:4], LABELS[:4], np.ones(4, np.float32)))
    again = devices.place(once)
    assert all(
        one.unsafe_buffer_pointer() == other.unsafe_buffer_pointer()
        for one, other in zip(once, again, strict=True)
    )


def test_batches_whose_parts_have_other_lengths_are_refused():
    devices = DataParallel(split_network(ToyNet())[0], PIXELS, data_mesh())
    with pytest.raises(ValueError, match="batches need equally many images, labels and weights, got 4, 3, 4"):
        devices.place(Batch(IMAGES[:4], LABELS[:3], np.ones(4, np.float32)))
