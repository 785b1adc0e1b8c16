"""Residual networks, MobileNetV2 and VGG-19 against published counts, counted without weights."""

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
    VGG19,
    CifarResNet,
    EfficientNetLite0,
    ImageNetResNet,
    ImageNetVGG,
    MobileNetV2,
    PreActResNet,
    count_macs,
    count_parameters,
)
from jaxprune.nets.cost import parameter_sizes
from jaxprune.nets.factories import find_network
from jaxprune.nets.imagenet_vgg import mean_to_positions
from jaxprune.nets.resnets import BasicBlock, pad_channels

# By hand: convolutions with biases, their norms, the dense layer with bias and norm, the output.
VGG19_PARAMETERS = 20_024_384 + 2 * 5_504 + 512 * 512 + 512 + 2 * 512 + 512 * 10 + 10

PARAMETERS = {
    "vgg19": VGG19_PARAMETERS,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet164": 1_703_258,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "imagenet_vgg16": 138_357_544,
    "imagenet_vgg19": 143_667_240,
    "mobilenet_v2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
}
MACS = {
    "resnet20": 40_551_040,
    "resnet56": 125_485_696,
    "resnet18": 1_814_073_344,
    "resnet34": 3_663_761_408,
    "resnet50": 4_089_184_256,
    "imagenet_vgg16": 15_470_264_320,
    "imagenet_vgg19": 19_632_062_464,
    "mobilenet_v2": 300_774_272,
    "efficientnet_lite0": 385_187_552,
}


@functools.cache
def full(name):
    return abstract(NETWORKS[name])


def batch(model, count=1):
    return jax.ShapeDtypeStruct((count, *model.image_shape), jnp.float32)


def padded_block(rngs, *, c_in, c_out):
    return BasicBlock(c_in, c_out, 2, rngs, shortcut="A")


def run(model, images):
    """Output in evaluation mode, by one compiled call."""
    graphdef, state = nnx.split(nnx.view(model, use_running_average=True, raise_if_not_found=False))
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_default_sizes_run(name):
    model = full(name)
    logits = output_of(model, batch(model, count=2))
    assert logits.shape == (2, 1000 if model.image_shape == (224, 224, 3) else 10)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_published(name):
    assert count_parameters(full(name)) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "depth"), [("ResNet-20", 20), ("resnet_56", 56)])
def test_networks_of_a_depth_are_found_by_name(name, depth):
    model = nnx.eval_shape(lambda: find_network(name, num_classes=4))
    assert len(model.blocks) == (depth - 2) // 2
    assert model.output.out_features == 4


@pytest.mark.parametrize("name", MACS)
def test_macs_are_as_published(name):
    model = full(name)
    assert count_macs(model, batch(model)) == MACS[name]


@pytest.mark.parametrize(("depth", "count"), [(101, 44_549_160), (152, 60_192_808)])
def test_deeper_bottlenecks_have_their_published_parameters(depth, count):
    assert count_parameters(abstract(ImageNetResNet, depth=depth)) == count


@pytest.mark.parametrize(
    ("depth", "count"), [(11, 132_868_840), (13, 133_053_736), (16, 138_365_992), (19, 143_678_248)]
)
def test_vgg_networks_with_norms_have_their_published_parameters(depth, count):
    assert count_parameters(abstract(ImageNetVGG, depth=depth, has_norms=True)) == count


@pytest.mark.parametrize(("multiplier", "count"), [(0.5, 1_968_680), (1.4, 6_108_776)])
def test_the_multiplier_scales_to_the_published_sizes(multiplier, count):
    assert count_parameters(abstract(MobileNetV2, multiplier=multiplier)) == count


class TestShortcuts:
    def test_zeros_go_to_either_side_of_the_channels(self):
        x = jnp.arange(1.0, 4.0).reshape(1, 1, 1, 3)
        assert pad_channels(x, 7).ravel().tolist() == [0, 0, 1, 2, 3, 0, 0]
        assert pad_channels(x, 6).ravel().tolist() == [0, 1, 2, 3, 0, 0]

    def test_projections_add_their_parameters_at_the_two_stage_starts(self):
        plain, projected = (abstract(CifarResNet, depth=20, shortcut=kind) for kind in "AB")
        added = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
        assert count_parameters(projected) == count_parameters(plain) + added == 272_474

    def test_a_padded_block_with_silent_convolutions_subsamples_and_pads(self, key):
        block = randomise(abstract(padded_block, c_in=2, c_out=6), key)
        block.second.norm.scale[...] = jnp.zeros(6)
        block.second.norm.bias[...] = jnp.zeros(6)
        x = np.abs(np.random.default_rng(0).normal(size=(2, 5, 4, 2))).astype(np.float32)
        expected = np.zeros((2, 3, 2, 6), np.float32)
        expected[..., 2:4] = x[:, ::2, ::2]
        np.testing.assert_array_equal(run(block, x), expected)

    def test_a_padded_block_follows_its_arrays(self):
        """After channels are cut from the arrays, the same code pads to what is left."""
        graphdef, _ = nnx.split(abstract(padded_block, c_in=4, c_out=8))
        _, state = nnx.split(abstract(padded_block, c_in=3, c_out=5))
        x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
        assert jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x).shape == (2, 2, 2, 5)

    def test_preactivated_projections_read_the_activated_input(self):
        sizes = parameter_sizes(abstract(PreActResNet, depth=11))
        assert sizes["blocks.0.projection.kernel"] == 16 * 64
        assert not any("projection" in path and path.endswith(("scale", "bias")) for path in sizes)


class TestPositions:
    def test_means_are_over_overlapping_windows_where_the_side_does_not_divide(self):
        x = jnp.arange(5.0).reshape(1, 5, 1, 1) * jnp.ones((1, 1, 5, 1))
        means = mean_to_positions(x, 3)
        assert means[0, :, 0, 0].tolist() == [0.5, 2.0, 3.5]  # rows 0-1, 1-3, 3-4
        assert means.shape == (1, 3, 3, 1)

    def test_few_positions_are_repeated_and_fitting_ones_stay(self):
        x = jnp.arange(2.0).reshape(1, 1, 2, 1)
        assert mean_to_positions(x, 3)[0, 0, :, 0].tolist() == [0.0, 0.5, 1.0]
        fitting = jnp.ones((2, 3, 3, 4))
        assert mean_to_positions(fitting, 3) is fitting

    def test_same_padding_puts_the_stems_zeros_behind_even_images(self):
        published, equal = (
            abstract(EfficientNetLite0, padding=kind, repeats=(1,) * 7) for kind in ("SAME", "equal")
        )
        assert published.stem.conv.padding == "SAME"
        assert equal.stem.conv.padding == 1 and equal.blocks[2].depthwise.conv.padding == 2


class TestStems:
    def test_the_small_stem_keeps_the_size_of_the_image(self):
        model = abstract(ImageNetResNet, depth=18, stem="3x3", num_classes=10, image_shape=(32, 32, 3))
        assert count_parameters(model) == 11_173_962
        assert count_macs(model, batch(model)) == 555_422_720

    def test_smaller_strides_leave_more_positions(self):
        small = abstract(MobileNetV2, strides=(1, 1, 1, 2, 1, 2, 1), num_classes=10, image_shape=(32, 32, 3))
        usual = abstract(MobileNetV2, num_classes=10, image_shape=(32, 32, 3))
        assert count_macs(small, batch(small)) > 10 * count_macs(usual, batch(usual))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (CifarResNet, {"depth": 21}, r"depth of 6n \+ 2 \(8, 14, 20, \.\.\.\), got 21"),
        (CifarResNet, {"depth": 2}, r"depth of 6n \+ 2 .*, got 2\."),
        (CifarResNet, {"depth": 20.0}, r"got 20\.0"),
        (CifarResNet, {"depth": "20"}, r"got '20'"),
        (PreActResNet, {"depth": 56 + 1}, r"depth of 9n \+ 2 \(11, 20, 29, \.\.\.\), got 57"),
        (CifarResNet, {"shortcut": "C"}, r'shortcut "A" \(zero-padded\) or "B" \(projection\), got \'C\''),
        (CifarResNet, {"widths": (4, 8, 6)}, r'widths that do not fall, got \(4, 8, 6\)\. Order .*shortcut="B"'),
        (ImageNetResNet, {"depth": 20}, r"depth of 10, 18, 34 \(basic blocks\) or 14, 26, 50, 101, 152 .*got 20"),
        (ImageNetResNet, {"stem": "5x5"}, r'needs stem "7x7" or "3x3", got \'5x5\''),
        (MobileNetV2, {"multiplier": 0.0}, r"needs a multiplier > 0, got 0\.0"),
        (MobileNetV2, {"multiplier": float("nan")}, r"needs a multiplier > 0, got nan"),
        (MobileNetV2, {"repeats": (1, 2)}, r"needs repeats for seven stages, .*got \(1, 2\)"),
        (MobileNetV2, {"strides": (1, 0, 1, 1, 1, 1, 1)}, r"needs strides for seven stages, each a whole number"),
        (EfficientNetLite0, {"padding": "VALID"}, r'padding "SAME" \(as published\) or "equal" .*got \'VALID\''),
        (EfficientNetLite0, {"epsilon": 0.0}, r"EfficientNetLite0 needs an epsilon > 0, got 0\.0\. 0\.001 is as"),
        (EfficientNetLite0, {"repeats": (1, 2)}, r"EfficientNetLite0 needs repeats for seven stages, .*got \(1, 2\)"),
        (ImageNetVGG, {"depth": 12}, r"ImageNetVGG needs a depth of 11, 13, 16, 19, got 12"),
        (ImageNetVGG, {"dropout_rate": 1.0}, r"ImageNetVGG needs dropout_rate in \[0, 1\), the part dropped, got 1\.0"),
        (VGG19, {"dropout_rate": 1.0}, r"VGG19 needs dropout_rate in \[0, 1\)"),
        (VGG19, {"widths": (4,) * 14}, r"VGG19 needs 17 widths, one each for conv1, .*conv16, dense, got 14"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(nnx.Rngs(0), **settings)
