"""How arrays lie here and elsewhere, by hand, and that every array is named once."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from jaxprune.deploy.weight_names import StoredTensor, known_kinds, layouts_of, stored_tensors
from jaxprune.nets import find_network


def names_of(network, layout, **settings):
    model = find_network(network, has_weights=False, **settings)
    return [tensor.name for tensor in stored_tensors(model, layout)]


def test_kernels_of_convolutions_are_stored_outputs_first():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    tensor = StoredTensor(("conv", "kernel"), "conv.weight", kernel.shape)
    stored = tensor.to_stored(kernel)
    assert stored.shape == tensor.stored_shape == (5, 4, 2, 3)
    assert stored[4, 3, 1, 2] == kernel[1, 2, 3, 4]
    np.testing.assert_array_equal(tensor.to_network(stored), kernel)


def test_depthwise_kernels_are_stored_with_one_input_each():
    assert StoredTensor(("conv", "kernel"), "conv.weight", (3, 3, 1, 8)).stored_shape == (8, 1, 3, 3)


@pytest.mark.parametrize(("is_convolution", "shape"), [(False, (1, 8)), (True, (1, 2, 2, 2))])
def test_dense_layers_behind_images_are_stored_channel_by_channel(is_convolution, shape):
    """Two channels at 2x2 positions: here position by position, there channel by channel."""
    kernel = np.array([[0], [10], [1], [11], [2], [12], [3], [13]])  # 10 * channel + position
    tensor = StoredTensor(("dense", "kernel"), "fc.weight", (8, 1), side=2, is_convolution=is_convolution)
    stored = tensor.to_stored(kernel)
    assert stored.shape == tensor.stored_shape == shape
    assert stored.ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    np.testing.assert_array_equal(tensor.to_network(stored), kernel)


@pytest.mark.parametrize(
    ("network", "layout", "settings", "names"),
    [
        ("resnet50", "torchvision", {}, {"bn1.running_var", "layer2.0.downsample.1.weight", "layer4.2.conv3.weight"}),
        ("resnet34", "timm", {}, {"layer1.2.bn2.bias", "layer3.5.conv2.weight", "fc.bias"}),
        ("resnet56", "pytorch_cifar", {"shortcut": "B"}, {"layer3.0.shortcut.0.weight", "layer3.8.bn1.bias"}),
        ("imagenet_vgg19", "torchvision", {}, {"features.0.bias", "features.34.weight", "classifier.6.weight"}),
        ("imagenet_vgg19", "torchvision", {"has_norms": True}, {"features.1.running_mean", "features.49.weight"}),
        ("mobilenet_v2", "torchvision", {}, {"features.1.conv.1.weight", "features.17.conv.3.bias"}),
        ("mobilenet_v2", "timm", {}, {"blocks.0.0.conv_pw.weight", "blocks.6.0.conv_pwl.weight", "bn2.running_mean"}),
        ("efficientnet_lite0", "efficientnet_pytorch", {}, {"_blocks.0._bn1.bias", "_blocks.15._project_conv.weight"}),
    ],
)  # fmt: skip
def test_layers_have_the_names_that_the_libraries_give_them(network, layout, settings, names):
    found = names_of(network, layout, **settings)
    assert names <= set(found)
    assert len(set(found)) == len(found)


def test_networks_without_a_counterpart_have_no_layouts():
    assert layouts_of(find_network("vgg16", has_weights=False)) == ()
    assert layouts_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))) == ()
    assert known_kinds() == [
        "ImageNetResNet",
        "CifarResNet",
        "ImageNetVGG",
        "MobileNetV2",
        "EfficientNetLite0",
    ]
