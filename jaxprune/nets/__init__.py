"""Flax NNX networks of any width, and what they cost."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from flax import nnx

from jaxprune.nets.blocks import convolve_by_patches, with_patch_convolutions
from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.factories import without_weights
from jaxprune.nets.mobilenet import MOBILENET_V2_WIDTHS, MobileNetV2
from jaxprune.nets.resnets import CifarResNet, ImageNetResNet, PreActResNet
from jaxprune.nets.small_nets import LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.vgg import VGG16, VGG16_WIDTHS, VGG19, VGG19_WIDTHS

NETWORKS: Mapping[str, Callable[..., nnx.Module]] = MappingProxyType(
    {
        "plain_conv_net": PlainConvNet,
        "small_conv_net": SmallConvNet,
        "lenet5": LeNet5,
        "vgg16": VGG16,
        "vgg19": VGG19,
        "resnet20": partial(CifarResNet, depth=20),
        "resnet56": partial(CifarResNet, depth=56),
        "resnet110": partial(CifarResNet, depth=110),
        "resnet164": partial(PreActResNet, depth=164),
        "resnet18": partial(ImageNetResNet, depth=18),
        "resnet34": partial(ImageNetResNet, depth=34),
        "resnet50": partial(ImageNetResNet, depth=50),
        "mobilenet_v2": MobileNetV2,
    }
)
"""Every network by name; each takes `rngs` and the keywords `widths`, `num_classes`, `image_shape`."""

__all__ = [
    "MOBILENET_V2_WIDTHS",
    "NETWORKS",
    "VGG16",
    "VGG16_WIDTHS",
    "VGG19",
    "VGG19_WIDTHS",
    "CifarResNet",
    "ImageNetResNet",
    "LeNet5",
    "MobileNetV2",
    "PlainConvNet",
    "PreActResNet",
    "SmallConvNet",
    "convolve_by_patches",
    "count_macs",
    "count_parameters",
    "with_patch_convolutions",
    "without_weights",
]
