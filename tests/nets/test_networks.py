"""The networks: their shapes, their parameters by hand, one contract for all, and what they refuse."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from zoo.abstract import abstract, output_of
from zoo.randomise import randomise

from jaxprune.nets import (
    NETWORKS,
    VGG16,
    VGG16_WIDTHS,
    DepthwiseNet,
    LeNet5,
    PlainConvNet,
    SmallConvNet,
    with_patch_convolutions,
)
from jaxprune.nets.cost import parameter_sizes

NARROW = {
    "plain_conv_net": (3, 4, 5),
    "small_conv_net": (3, 4, 5, 6, 7),
    "depthwise_net": (3, 4, 5, 6),
    "lenet5": (3, 4, 5),
    "vgg16": (3,) * 13 + (4,),
    "resnet56": (3, 4, 7),
    "resnet164": (2, 3, 4),
    "resnet18": (3, 4, 5, 6, 7),
    "resnet50": (3, 2, 3, 2, 3),
    "imagenet_vgg16": (3,) * 8 + (4, 5),
    "mobilenet_v2": (3, 4, 4, 5, 4, 3, 4, 5, 6),
    "efficientnet_lite0": (3, 4, 4, 5, 4, 3, 4, 5, 6),
}
"""One network of each kind, with widths to test it at. What differs in depth only is in `test_published_sizes`."""

SMALLEST = {
    "plain_conv_net": 4, "small_conv_net": 4, "depthwise_net": 4, "lenet5": 16, "vgg16": 32, "resnet56": 4,
    "resnet164": 4, "resnet18": 32, "resnet50": 32, "imagenet_vgg16": 32, "mobilenet_v2": 8, "efficientnet_lite0": 8,
}  # fmt: skip

SHALLOW = {
    "resnet56": {"depth": 8},
    "resnet164": {"depth": 11},
    "resnet18": {"depth": 10},
    "resnet50": {"depth": 14},
    "imagenet_vgg16": {"depth": 11},
    "mobilenet_v2": {"repeats": (1, 2, 1, 1, 1, 1, 1), "strides": (1, 2, 1, 1, 1, 2, 1)},
    "efficientnet_lite0": {"repeats": (1, 2, 1, 1, 1, 1, 1), "strides": (1, 2, 1, 1, 1, 2, 1)},
}

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}

FIRST_AND_LAST = {
    "depthwise_net": ("stem", "pointwise3"),
    "resnet56": ("stage1", "stage3"),
    "resnet164": ("stage1", "stage3"),
    "resnet18": ("stem", "stage4"),
    "resnet50": ("stem", "stage4"),
    "imagenet_vgg16": ("conv1", "dense2"),
    "mobilenet_v2": ("stem", "head"),
    "efficientnet_lite0": ("stem", "head"),
}


def build(name, rngs=None, **changes):
    side = SMALLEST[name]
    settings = {"widths": NARROW[name], "num_classes": 3, "image_shape": (side, side, 2), **changes}
    return NETWORKS[name](rngs or nnx.Rngs(0), **SHALLOW.get(name, {}), **settings)


@functools.cache
def built(name):
    """The network with the weights that its initialisers draw, shared by tests that do not change it."""
    return build(name)


def build_quickly(name, key=None, **changes):
    """The network without running its initialisers: shapes only, or with a key random values of all arrays."""
    model = abstract(lambda rngs: build(name, rngs, **changes))
    return model if key is None else randomise(model, key)


def images_for(model, key, count=4):
    return jax.random.normal(key, (count, *model.image_shape))


def batch_for(model, count=4):
    return jax.ShapeDtypeStruct((count, *model.image_shape), jnp.float32)


def run(model, images):
    """Logits by one compiled call: layer by layer each operation would compile on its own."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, images)


def in_evaluation(model):
    return nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))]


class TestByHand:
    def test_lenet5_kernels_hold_500_25000_400000_and_5000_weights(self):
        sizes = parameter_sizes(nnx.eval_shape(lambda: LeNet5(nnx.Rngs(0))))
        assert sizes == {
            "conv1.kernel": 500, "conv1.bias": 20, "conv2.kernel": 25_000, "conv2.bias": 50,
            "dense.kernel": 400_000, "dense.bias": 500, "output.kernel": 5_000, "output.bias": 10,
        }  # fmt: skip

    def test_plain_conv_net_kernels_hold_144_4608_8192_and_640_weights(self):
        sizes = parameter_sizes(nnx.eval_shape(lambda: PlainConvNet(nnx.Rngs(0))))
        kernels = {path: size for path, size in sizes.items() if path.endswith("kernel")}
        assert kernels == {
            "conv1.kernel": 9 * 1 * 16, "conv2.kernel": 9 * 16 * 32,
            "dense.kernel": 2 * 2 * 32 * 64, "output.kernel": 640,
        }  # fmt: skip

    def test_small_conv_net_has_a_norm_after_each_convolution(self):
        sizes = parameter_sizes(nnx.eval_shape(lambda: SmallConvNet(nnx.Rngs(0))))
        assert [sizes[f"conv{i}.kernel"] for i in (1, 2, 3, 4)] == [144, 2_304, 4_608, 9_216]
        assert [sizes[f"norm{i}.scale"] for i in (1, 2, 3, 4)] == [16, 16, 32, 32]
        assert sizes["dense.kernel"] == 2 * 2 * 32 * 64

    def test_depthwise_net_has_nine_weights_per_channel_in_depthwise_kernels(self):
        sizes = parameter_sizes(nnx.eval_shape(lambda: DepthwiseNet(nnx.Rngs(0))))
        kernels = {path: size for path, size in sizes.items() if path.endswith("kernel")}
        assert kernels == {
            "stem.conv.kernel": 9 * 16,
            "depthwise1.conv.kernel": 9 * 16, "pointwise1.conv.kernel": 16 * 32,
            "depthwise2.conv.kernel": 9 * 32, "pointwise2.conv.kernel": 32 * 32,
            "depthwise3.conv.kernel": 9 * 32, "pointwise3.conv.kernel": 32 * 64,
            "output.kernel": 2 * 2 * 64 * 10,
        }  # fmt: skip
        assert [sizes[f"depthwise{i}.norm.scale"] for i in (1, 2, 3)] == [16, 32, 32]

    def test_vgg16_has_13_convolutions_and_one_dense_layer_of_512(self):
        sizes = parameter_sizes(nnx.eval_shape(lambda: VGG16(nnx.Rngs(0))))
        inputs = (3, *VGG16_WIDTHS[:-2])
        convolutions = [sizes[f"convs.{i}.kernel"] for i in range(13)]
        assert convolutions == [
            9 * c_in * c_out for c_in, c_out in zip(inputs, VGG16_WIDTHS[:-1], strict=True)
        ]
        assert sizes["dense.kernel"] == 512 * 512
        assert sizes["output.kernel"] == 5_120

    def test_vgg16_normalises_after_the_relu_so_that_features_are_signed(self, key):
        model = build("vgg16")
        images = images_for(model, key, count=16)
        after_relu = jax.nn.relu(model.convs[0](images))
        features = np.asarray(model.norms[0](after_relu))
        assert float(after_relu.min()) == 0
        assert features.min() < 0
        np.testing.assert_allclose(features.mean(axis=(0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize("name", NARROW)
class TestContract:
    def test_images_become_finite_logits(self, name, key):
        model = built(name)
        logits = run(model, images_for(model, key))
        assert logits.shape == (4, 3)
        assert logits.dtype == jnp.float32
        assert bool(jnp.isfinite(logits).all())

    def test_one_channel_everywhere_still_runs(self, name):
        model = build_quickly(name, widths=(1,) * len(NARROW[name]))
        assert output_of(model, batch_for(model)).shape == (4, 3)

    def test_odd_and_oblong_images_run(self, name):
        side = SMALLEST[name]
        model = build_quickly(name, image_shape=(side + 1, side + 3, 1))
        assert output_of(model, batch_for(model)).shape == (4, 3)

    def test_same_seed_gives_the_same_network_and_another_seed_another(self, name):
        first, again, other = built(name), build(name), build(name, nnx.Rngs(1))
        assert all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))
        assert any(not np.array_equal(a, b) for a, b in zip(leaves(first), leaves(other), strict=True))

    def test_state_holds_parameters_and_statistics_only(self, name):
        _, _, _, rest = nnx.split(build_quickly(name), nnx.Param, nnx.BatchStat, ...)
        assert jax.tree.leaves(rest) == []

    def test_every_parameter_gets_a_gradient(self, name, key):
        model = build_quickly(name, key)
        images = images_for(model, key, count=16)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            logits = nnx.merge(graphdef, params, rest, copy=True)(images)
            return -jnp.sum(jax.nn.log_softmax(logits)[:, 0] * jnp.arange(16))

        # At XLA's optimisation level 0 the gradient of pooling to one position is NaN on CPUs (jaxlib 0.10).
        options = OPTIMISED if name == "vgg16" else {}
        for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss), compiler_options=options)(params)):
            values = np.asarray(gradient[...])
            assert np.isfinite(values).all(), path
            # Nothing but 1x1 convolutions into norms follows these, and those take any constant away.
            if name in ("mobilenet_v2", "efficientnet_lite0") and path[-3:] == ("project", "norm", "bias"):
                continue
            assert np.abs(values).max() > 1e-5, path

    def test_patch_convolutions_give_the_same_logits_and_paths(self, name, key):
        model = in_evaluation(build_quickly(name, key))
        patched = with_patch_convolutions(model)
        images = images_for(model, key)
        np.testing.assert_allclose(run(patched, images), run(model, images), rtol=1e-4, atol=1e-5)
        assert parameter_sizes(patched) == parameter_sizes(model)

    def test_the_code_of_a_wide_network_runs_on_the_arrays_of_a_narrow_one(self, name):
        """Forward passes read widths from arrays, so that a network whose arrays were cut still runs."""
        wide = build_quickly(name, widths=[3 * width for width in NARROW[name]])
        narrow = build_quickly(name)
        graphdef, _ = nnx.split(wide)
        cut = nnx.merge(graphdef, nnx.split(narrow)[1])
        for (_, layer), (_, like) in zip(nnx.iter_modules(cut), nnx.iter_modules(narrow), strict=True):
            if isinstance(layer, nnx.Conv):
                layer.in_features, layer.feature_group_count = like.in_features, like.feature_group_count
        assert output_of(cut, batch_for(cut)) == output_of(narrow, batch_for(narrow))

    def test_zero_and_negative_widths_are_refused_all_at_once(self, name):
        widths = (0, *NARROW[name][1:-1], -2)
        first, last = FIRST_AND_LAST.get(name, ("conv1", "dense"))
        with pytest.raises(
            ValueError, match=rf"whole numbers >= 1, got {first}: 0, {last}: -2\. Keep at least"
        ):
            build(name, widths=widths)

    @pytest.mark.parametrize("width", [2.5, True, "8", None])
    def test_widths_that_are_no_whole_numbers_are_refused(self, name, width):
        first, _ = FIRST_AND_LAST.get(name, ("conv1", "dense"))
        with pytest.raises(ValueError, match=f"whole numbers >= 1, got {first}: {width!r}"):
            build(name, widths=(width, *NARROW[name][1:]))

    def test_a_wrong_number_of_widths_is_refused(self, name):
        count = len(NARROW[name])
        first, last = FIRST_AND_LAST.get(name, ("conv1", "dense"))
        with pytest.raises(
            ValueError, match=rf"needs {count} widths, one each for {first}, .*{last}, got {count + 1}"
        ):
            build(name, widths=(*NARROW[name], 4))
        with pytest.raises(ValueError, match=rf"needs {count} widths, .*, got 0: \(\)"):
            build(name, widths=())

    def test_images_that_pooling_would_use_up_are_refused(self, name):
        side = SMALLEST[name]
        with pytest.raises(ValueError, match=rf"at least {side}x{side}, got {side - 1}x{side}\. Enlarge"):
            build(name, image_shape=(side - 1, side, 1))

    @pytest.mark.parametrize("shape", [(32, 32), (32, 32, 0), (32, -1, 3), (32.0, 32, 3), (1, 32, 32, 3)])
    def test_image_shapes_that_are_not_three_sizes_are_refused(self, name, shape):
        with pytest.raises(
            ValueError, match=r"needs image_shape = \(H, W, C\), three whole numbers >= 1, got"
        ):
            build(name, image_shape=shape)

    @pytest.mark.parametrize("num_classes", [1, 0, -3, 2.0])
    def test_fewer_than_two_classes_are_refused(self, name, num_classes):
        with pytest.raises(ValueError, match=f"num_classes to be a whole number >= 2, got {num_classes}"):
            build(name, num_classes=num_classes)

    def test_batches_of_another_shape_are_refused_with_the_fix(self, name):
        model = build_quickly(name, image_shape=(32, 32, 1))
        with pytest.raises(ValueError, match=r"\[N, 32, 32, 1\], got \(4, 32, 32\)\. Add the channel axis"):
            model(jnp.zeros((4, 32, 32)))
        with pytest.raises(ValueError, match=r"got \(32, 32, 1\)\. Add the batch axis"):
            model(jnp.zeros((32, 32, 1)))
        with pytest.raises(ValueError, match=r"got \(4, 28, 28, 1\)\. Build the network with image_shape="):
            model(jnp.zeros((4, 28, 28, 1)))


class TestDropout:
    def test_vgg16_drops_in_training_and_not_in_evaluation(self, key):
        model = build("vgg16", dropout_rate=0.5)
        images = images_for(model, key, count=16)
        evaluated = in_evaluation(model)
        np.testing.assert_array_equal(run(evaluated, images), run(evaluated, images))
        first = run(model, images)
        model.dropout.rngs.count[...] += 1
        assert not np.array_equal(first, run(model, images))

    @pytest.mark.parametrize("rate", [-0.1, 1.0])
    def test_a_rate_outside_0_to_1_is_refused(self, rate):
        with pytest.raises(ValueError, match=rf"dropout_rate in \[0, 1\), the part dropped, got {rate}"):
            build("vgg16", dropout_rate=rate)
