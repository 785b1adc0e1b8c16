"""Flax NNX networks of any width, and what they cost."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flax import nnx

from jaxprune.nets.blocks import convolve_by_patches, with_patch_convolutions
from jaxprune.nets.conv_nets import PlainConvNet, SmallConvNet
from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.lenet import LeNet5
from jaxprune.nets.vgg import VGG16, VGG16_WIDTHS

NETWORKS: Mapping[str, Callable[..., nnx.Module]] = MappingProxyType(
    {"plain_conv_net": PlainConvNet, "small_conv_net": SmallConvNet, "lenet5": LeNet5, "vgg16": VGG16}
)
"""Every network by name; each takes `rngs` and the keywords `widths`, `num_classes`, `image_shape`."""

__all__ = [
    "NETWORKS",
    "VGG16",
    "VGG16_WIDTHS",
    "LeNet5",
    "PlainConvNet",
    "SmallConvNet",
    "convolve_by_patches",
    "count_macs",
    "count_parameters",
    "with_patch_convolutions",
]
