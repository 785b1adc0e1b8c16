"""Flax NNX networks of any width, and what they cost."""

from jaxprune.nets.blocks import convolve_by_patches, with_patch_convolutions
from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.efficientnet import EFFICIENTNET_LITE0_WIDTHS, EfficientNetLite0
from jaxprune.nets.factories import NETWORKS, find_network, without_weights
from jaxprune.nets.imagenet_vgg import ImageNetVGG
from jaxprune.nets.mobilenet import MOBILENET_V2_WIDTHS, MobileNetV2
from jaxprune.nets.resnets import CifarResNet, ImageNetResNet, PreActResNet
from jaxprune.nets.small_nets import DepthwiseNet, LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.vgg import VGG16, VGG16_WIDTHS, VGG19, VGG19_WIDTHS

__all__ = [
    "EFFICIENTNET_LITE0_WIDTHS",
    "MOBILENET_V2_WIDTHS",
    "NETWORKS",
    "VGG16",
    "VGG16_WIDTHS",
    "VGG19",
    "VGG19_WIDTHS",
    "CifarResNet",
    "DepthwiseNet",
    "EfficientNetLite0",
    "ImageNetResNet",
    "ImageNetVGG",
    "LeNet5",
    "MobileNetV2",
    "PlainConvNet",
    "PreActResNet",
    "SmallConvNet",
    "convolve_by_patches",
    "count_macs",
    "count_parameters",
    "find_network",
    "with_patch_convolutions",
    "without_weights",
]
