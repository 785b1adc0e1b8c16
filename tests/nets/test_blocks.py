"""Pooling, and convolution by shifted views, against the library."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxprune.nets.blocks import convolve_by_patches, max_pool, with_patch_convolutions

AXES = ("NHWC", "HWIO", "NHWC")


class TestMaxPool:
    def test_each_window_gives_its_maximum(self):
        images = jnp.array([[1.0, 2, 0, 0], [3, 4, 0, -1], [-5, -6, 7, 7], [-7, -8, 7, 7]])[None, :, :, None]
        assert max_pool(images)[0, :, :, 0].tolist() == [[4.0, 0.0], [-5.0, 7.0]]

    @pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 7, 2), (3, 2, 3, 1)])
    def test_it_equals_the_libraries_pooling(self, shape, key):
        images = jax.random.normal(key, shape)
        np.testing.assert_array_equal(max_pool(images), nnx.max_pool(images, (2, 2), strides=(2, 2)))

    def test_its_derivative_is_the_libraries_and_divides_by_nothing(self, key):
        """XLA may compute the images a second time and round otherwise; dividing by a count of maxima fails then."""
        images = jax.random.normal(key, (2, 4, 4, 3))

        def loss(x, pool):
            return jnp.sum(pool(x) * jnp.arange(24.0).reshape(2, 2, 2, 3))

        def library_pool(x):
            return nnx.max_pool(x, (2, 2), strides=(2, 2))

        gradient = jax.grad(loss)(images, max_pool)
        np.testing.assert_array_equal(gradient, jax.grad(loss)(images, library_pool))
        operations = str(jax.make_jaxpr(jax.grad(lambda x: loss(x, max_pool)))(images))
        assert "select_n" in operations and " div" not in operations

    def test_of_equal_values_the_first_one_gets_the_derivative(self):
        gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.ones((1, 2, 2, 1)))
        assert gradient[0, :, :, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]

    @pytest.mark.parametrize("shape", [(4, 4, 3), (2, 1, 4, 3), (2, 4, 1, 3)])
    def test_too_few_positions_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"max_pool needs \[N, H, W, C\] with H, W >= 2, got shape"):
            max_pool(jnp.zeros(shape))


class TestConvolveByPatches:
    @pytest.mark.parametrize(
        ("kernel_shape", "strides", "padding"),
        [
            ((3, 3), (1, 1), "SAME"),
            ((5, 5), (1, 1), "VALID"),
            ((5, 2), (2, 3), "SAME"),
            ((1, 1), (2, 1), "VALID"),
            ((3, 2), (1, 2), ((0, 1), (2, 0))),
        ],
    )
    def test_it_equals_the_libraries_convolution(self, kernel_shape, strides, padding, key):
        images = jax.random.normal(key, (2, 7, 8, 3))
        kernel = jax.random.normal(jax.random.fold_in(key, 1), (*kernel_shape, 3, 4))
        expected = lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=AXES)
        found = convolve_by_patches(images, kernel, strides, padding)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_gradients_equal_the_libraries(self, key):
        images = jax.random.normal(key, (2, 6, 6, 3))
        kernel = jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 3, 4))

        def loss(convolve):
            return lambda x, w: jnp.sum(jnp.sin(convolve(x, w, (1, 1), "SAME", dimension_numbers=AXES)))

        found = jax.grad(loss(convolve_by_patches), argnums=(0, 1))(images, kernel)
        expected = jax.grad(loss(lax.conv_general_dilated), argnums=(0, 1))(images, kernel)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("channels", [1, 5])
    @pytest.mark.parametrize(
        ("kernel_shape", "padding"),
        [((3, 3), "SAME"), ((5, 2), "VALID"), ((1, 1), "SAME"), ((3, 2), ((0, 1), (2, 0)))],
    )
    def test_depthwise_convolutions_and_their_gradients_equal_the_libraries(
        self, kernel_shape, padding, channels, key
    ):
        images = jax.random.normal(key, (2, 7, 8, channels))
        kernel = jax.random.normal(jax.random.fold_in(key, 1), (*kernel_shape, 1, channels))
        options = {"dimension_numbers": AXES, "feature_group_count": channels}

        def result(convolve):
            def loss(x, w):
                y = convolve(x, w, (1, 1), padding, **options)
                return jnp.sum(jnp.sin(y)), y

            gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(images, kernel)
            return y, *gradients

        assert "conv_general_dilated" not in str(jax.make_jaxpr(lambda: result(convolve_by_patches))())
        for one, other in zip(result(convolve_by_patches), result(lax.conv_general_dilated), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "strides", "num_filters"),
        [
            ({"rhs_dilation": (2, 2)}, (1, 1), 6),
            ({"lhs_dilation": (2, 1)}, (1, 1), 6),
            ({"feature_group_count": 2}, (1, 1), 6),
            ({"feature_group_count": 4}, (1, 1), 8),
            ({"feature_group_count": 4}, (2, 1), 4),
            ({"feature_group_count": 4, "rhs_dilation": (2, 1)}, (1, 1), 4),
        ],
    )
    def test_what_it_does_not_cover_goes_to_the_library(self, options, strides, num_filters, key):
        c_in = 4 // options.get("feature_group_count", 1)
        images = jax.random.normal(key, (2, 8, 8, 4))
        kernel = jax.random.normal(key, (3, 3, c_in, num_filters))
        options = {
            **options,
            "dimension_numbers": lax.conv_dimension_numbers(images.shape, kernel.shape, AXES),
        }
        expected = lax.conv_general_dilated(images, kernel, strides, ((1, 1), (1, 1)), **options)
        found = convolve_by_patches(images, kernel, strides, ((1, 1), (1, 1)), **options)
        np.testing.assert_array_equal(found, expected)


class TestWithPatchConvolutions:
    def test_it_copies_and_leaves_the_callers_model_alone(self, key):
        model = nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0))
        patched = with_patch_convolutions(model)
        assert model.conv_general_dilated is lax.conv_general_dilated
        assert patched.conv_general_dilated is convolve_by_patches
        patched.kernel[...] = jnp.zeros_like(patched.kernel[...])
        assert float(jnp.abs(model.kernel[...]).sum()) > 0

    def test_a_convolution_of_ones_own_is_kept(self):
        def own(*args, **options):
            return lax.conv_general_dilated(*args, **options)

        model = nnx.Conv(2, 3, (3, 3), conv_general_dilated=own, rngs=nnx.Rngs(0))
        assert with_patch_convolutions(model).conv_general_dilated is own

    def test_one_dimensional_convolutions_still_run(self, key):
        model = nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0))
        series = jax.random.normal(key, (4, 9, 2))
        np.testing.assert_array_equal(with_patch_convolutions(model)(series), model(series))
