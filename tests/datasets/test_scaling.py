"""Pixels are standardised with the same bits on the host and on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.datasets.scaling import Scaling, scaling_of


def test_three_pixels_by_hand():
    pixels = np.array([[1, 10], [2, 10], [3, 10]], np.uint8).reshape(3, 1, 1, 2)
    scaling = scaling_of(pixels)
    np.testing.assert_allclose(scaling.mean, [2, 10])
    np.testing.assert_allclose(scaling.scale, [1 / np.sqrt(2 / 3), 1])
    np.testing.assert_allclose(scaling(pixels)[:, 0, 0, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-6)
    assert scaling(pixels).dtype == np.float32
    assert (scaling(pixels)[..., 1] == 0).all(), "one value only: shifted, not scaled"


def test_it_is_the_mean_and_deviation_of_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 4, 5, 3), np.uint8)
    scaling = scaling_of(pixels)
    np.testing.assert_allclose(scaling.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(1 / scaling.scale, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_host_and_compiled_program_agree_in_every_bit():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 4, 5, 3), np.uint8)
    scaling = scaling_of(pixels)
    on_device = jax.jit(lambda scaling, images: scaling(images))(Scaling(*map(jnp.asarray, scaling)), pixels)
    np.testing.assert_array_equal(np.asarray(on_device), scaling(pixels))
