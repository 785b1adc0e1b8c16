"""Which array of a network is called what, and lies how, in files of torchvision, timm and other PyTorch libraries.

There kernels of convolutions are [c_out, c_in, kh, kw], those of dense layers [c_out, c_in], and a dense layer behind
images reads channel by channel, [C, H, W]. Here they are [kh, kw, c_in, c_out], [c_in, c_out] and [H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx

from jaxprune.nets.efficientnet import EfficientNetLite0
from jaxprune.nets.imagenet_vgg import POOLED_SIDE, ImageNetVGG
from jaxprune.nets.mobilenet import MobileNetV2
from jaxprune.nets.resnets import BasicBlock, CifarResNet, ImageNetResNet
from jaxprune.structure.model_state import Path, dotted, take_apart

Layout = Literal["torchvision", "timm", "efficientnet_pytorch", "pytorch_cifar"]
"""Whose names: those of the libraries torchvision, timm and efficientnet_pytorch, or those of the widespread
repositories of ResNets for CIFAR-10, which call the output `linear` and projections `shortcut`."""

_PARTS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Our name of a layer's array -> theirs."""

IGNORED = "num_batches_tracked"
"""What batch normalisations store besides, and nobody needs for running or training on."""


class LayerName(NamedTuple):
    """What a layer is called elsewhere."""

    name: str
    side: int = 1
    """Of a dense layer: the side of the square of positions that it reads."""
    is_convolution: bool = False
    """Whether a dense layer is stored as a convolution over these positions."""


@dataclass(frozen=True)
class StoredTensor:
    """An array of a network, and where it is found in a file.

    Example:
      >>> tensor = StoredTensor(("dense", "kernel"), "classifier.0.weight", (49 * 512, 4096), side=7)
      >>> tensor.stored_shape
      (4096, 25088)
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    """In the network."""
    side: int = 1
    is_convolution: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.to_stored(np.broadcast_to(np.zeros((), np.int8), self.shape)).shape

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Returns the network's array as it lies in the file."""
        if self.path[-1] != "kernel":
            return array
        is_dense = array.ndim == 2
        kernel = array.reshape(self.side, self.side, -1, self.shape[-1]) if is_dense else array
        kernel = kernel.transpose(3, 2, 0, 1)
        return kernel.reshape(self.shape[-1], -1) if is_dense and not self.is_convolution else kernel

    def to_network(self, stored: np.ndarray) -> np.ndarray:
        """Returns the file's array as it lies in the network."""
        if self.path[-1] != "kernel":
            return stored
        kernel = stored.reshape(self.shape[-1], -1, self.side, self.side) if stored.ndim == 2 else stored
        return kernel.transpose(2, 3, 1, 0).reshape(self.shape)


def stored_tensors(model: nnx.Module, layout: Layout) -> list[StoredTensor]:
    """Lists the arrays of a network with their names in a layout.

    Args:
      model: a network of ours, dense or slim; its arrays may be abstract.
      layout: one of `layouts_of(model)`.

    Returns:
      One entry for each array.

    Example:
      >>> from jaxprune.nets import find_network
      >>> model = find_network("resnet18", has_weights=False)
      >>> stored_tensors(model, "torchvision")[0].name
      'layer1.0.conv1.weight'
    """
    names = _LAYOUTS[type(model)][layout](model)
    tensors = []
    for path, array in take_apart(model).flat.items():
        layer = names[dotted(path[:-1])]
        name = f"{layer.name}.{_PARTS[str(path[-1])]}"
        tensors.append(StoredTensor(path, name, tuple(array.shape), layer.side, layer.is_convolution))
    return tensors


def layouts_of(model: nnx.Module) -> tuple[Layout, ...]:
    """Returns the layouts that know a network's kind; none for other networks.

    Example:
      >>> from jaxprune.nets import find_network
      >>> layouts_of(find_network("mobilenet_v2", has_weights=False))
      ('torchvision', 'timm')
    """
    return tuple(_LAYOUTS.get(type(model), ()))


def known_kinds() -> list[str]:
    """Returns the names of the classes of networks that have a layout."""
    return [kind.__name__ for kind in _LAYOUTS]


def fitting_tensors(model: nnx.Module, names: Collection[str]) -> tuple[Layout, list[StoredTensor]]:
    """Returns the layout that has most names in common with a file, and the network's arrays in it.

    Args:
      model: a network that has layouts.
      names: names of the arrays in the file.
    """
    listed = {layout: stored_tensors(model, layout) for layout in layouts_of(model)}
    best = max(listed, key=lambda layout: sum(tensor.name in names for tensor in listed[layout]))
    return best, listed[best]


def _conv_norm(ours: str, conv: str, norm: str) -> dict[str, LayerName]:
    """Names of a convolution and the normalisation after it."""
    return {f"{ours}.conv": LayerName(conv), f"{ours}.norm": LayerName(norm)}


def _resnet(
    model: ImageNetResNet | CifarResNet, *, projection: str = "downsample", output: str = "fc"
) -> dict[str, LayerName]:
    """Names of a residual network; strides of 2 begin a stage."""
    names = {**_conv_norm("stem", "conv1", "bn1"), "output": LayerName(output)}
    parts: tuple[str, ...]
    stage, number = 1, 0
    for index, block in enumerate(model.blocks):
        if isinstance(block, BasicBlock):
            strided, parts = block.first, ("first", "second")
        else:
            strided, parts = block.middle, ("reduce", "middle", "expand")
        if strided.conv.strides not in (1, (1, 1)):
            stage, number = stage + 1, 0
        theirs = f"layer{stage}.{number}"
        for place, part in enumerate(parts, 1):
            names |= _conv_norm(f"blocks.{index}.{part}", f"{theirs}.conv{place}", f"{theirs}.bn{place}")
        names |= _conv_norm(
            f"blocks.{index}.projection", f"{theirs}.{projection}.0", f"{theirs}.{projection}.1"
        )
        number += 1
    return names


def _vgg(
    model: ImageNetVGG, *, dense: tuple[str, str, str], are_convolutions: bool = False
) -> dict[str, LayerName]:
    """Names of a VGG network: everything before the dense layers is counted in one sequence, ReLU and pooling too."""
    names, place = {}, 0
    for index in range(len(model.convs)):
        names[f"convs.{index}"] = LayerName(f"features.{place}")
        if model.norms is not None:
            place += 1
            names[f"norms.{index}"] = LayerName(f"features.{place}")
        place += 3 if index + 1 in model.pooled_after else 2
    first, second, output = dense
    names["dense1"] = LayerName(first, POOLED_SIDE, are_convolutions)
    names["dense2"] = LayerName(second, 1, are_convolutions)
    names["output"] = LayerName(output)
    return names


def _torchvision_mobilenet(model: MobileNetV2) -> dict[str, LayerName]:
    """Names of MobileNetV2 in torchvision: stem, blocks and head are one sequence, as are the layers of a block."""
    head = f"features.{len(model.blocks) + 1}"
    names = _conv_norm("stem", "features.0.0", "features.0.1") | _conv_norm("head", f"{head}.0", f"{head}.1")
    for index, block in enumerate(model.blocks):
        ours, theirs, place = f"blocks.{index}", f"features.{index + 1}.conv", count()
        for part in ("depthwise",) if block.expand is None else ("expand", "depthwise"):
            number = next(place)
            names |= _conv_norm(f"{ours}.{part}", f"{theirs}.{number}.0", f"{theirs}.{number}.1")
        names |= _conv_norm(f"{ours}.project", f"{theirs}.{next(place)}", f"{theirs}.{next(place)}")
    return {**names, "output": LayerName("classifier.1")}


def _timm_inverted(model: MobileNetV2 | EfficientNetLite0) -> dict[str, LayerName]:
    """Names of networks of inverted residuals in timm, stage by stage."""
    names = _conv_norm("stem", "conv_stem", "bn1") | _conv_norm("head", "conv_head", "bn2")
    places = [(stage, number) for stage, times in enumerate(model.repeats) for number in range(times)]
    for index, (block, (stage, number)) in enumerate(zip(model.blocks, places, strict=True)):
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if block.expand is None:
            parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        theirs = f"blocks.{stage}.{number}"
        for place, (part, name) in enumerate(parts.items(), 1):
            names |= _conv_norm(f"blocks.{index}.{part}", f"{theirs}.{name}", f"{theirs}.bn{place}")
    return {**names, "output": LayerName("classifier")}


def _efficientnet_pytorch(model: EfficientNetLite0) -> dict[str, LayerName]:
    """Names of EfficientNets in the package efficientnet_pytorch and its forks."""
    names = _conv_norm("stem", "_conv_stem", "_bn0") | _conv_norm("head", "_conv_head", "_bn1")
    parts = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
    for index in range(len(model.blocks)):
        theirs = f"_blocks.{index}"
        for place, (part, name) in enumerate(parts.items()):
            names |= _conv_norm(f"blocks.{index}.{part}", f"{theirs}.{name}", f"{theirs}._bn{place}")
    return {**names, "output": LayerName("_fc")}


_pytorch_cifar = partial(_resnet, projection="shortcut", output="linear")

_LAYOUTS: Mapping[type, Mapping[Layout, Callable[[Any], dict[str, LayerName]]]] = MappingProxyType(
    {
        ImageNetResNet: {"torchvision": _resnet, "timm": _resnet, "pytorch_cifar": _pytorch_cifar},
        CifarResNet: {"torchvision": _resnet, "pytorch_cifar": _pytorch_cifar},
        ImageNetVGG: {
            "torchvision": partial(_vgg, dense=("classifier.0", "classifier.3", "classifier.6")),
            "timm": partial(
                _vgg, dense=("pre_logits.fc1", "pre_logits.fc2", "head.fc"), are_convolutions=True
            ),
        },
        MobileNetV2: {"torchvision": _torchvision_mobilenet, "timm": _timm_inverted},
        EfficientNetLite0: {"efficientnet_pytorch": _efficientnet_pytorch, "timm": _timm_inverted},
    }
)
"""Kind of network -> layout -> function from a network to layer -> name; it may name layers that are not there."""
