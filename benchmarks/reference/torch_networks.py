"""The networks that Torch-Pruning is timed on, in PyTorch: same layers and widths as ours, random weights."""

from __future__ import annotations

import torch
from torch import nn


def conv_norm(c_in: int, c_out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(c_out)]


class Residual(nn.Module):
    """What a block computes, added to its input or to a projection of it."""

    def __init__(self, layers: list[nn.Module], c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        is_projected = stride > 1 or c_in != c_out
        self.shortcut = nn.Sequential(*conv_norm(c_in, c_out, 1, stride)) if is_projected else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return torch.relu(self.body(x) + self.shortcut(x))


def basic(c_in: int, width: int, stride: int) -> Residual:
    layers = [*conv_norm(c_in, width, 3, stride), nn.ReLU(), *conv_norm(width, width, 3)]
    return Residual(layers, c_in, width, stride)


def bottleneck(c_in: int, width: int, stride: int) -> Residual:
    layers = [*conv_norm(c_in, width, 1), nn.ReLU(), *conv_norm(width, width, 3, stride), nn.ReLU()]
    return Residual([*layers, *conv_norm(width, 4 * width, 1)], c_in, 4 * width, stride)


def resnet(
    block: object, depths: list[int], widths: list[int], stem: list[nn.Module], classes: int
) -> nn.Module:
    layers, c_in, grows = stem, stem[0].out_channels, 4 if block is bottleneck else 1
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for number in range(depth):
            layers.append(block(c_in, width, 2 if stage and not number else 1))
            c_in = grows * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


def imagenet_stem() -> list[nn.Module]:
    return [*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def lenet5() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    c_in = 3
    for width, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(number):
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            c_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)
    )


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        layers = [*conv_norm(c_in, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*conv_norm(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *conv_norm(hidden, c_out, 1)]
        self.body, self.is_residual = nn.Sequential(*layers), stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x + self.body(x) if self.is_residual else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [*conv_norm(3, 32, 3, 2), nn.ReLU6()]
    c_in = 32
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, width, number, stride in table:
        for turn in range(number):
            layers.append(Inverted(c_in, width, 1 if turn else stride, expansion))
            c_in = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *conv_norm(320, 1280, 1), nn.ReLU6(), *head)


class Dense(nn.Module):
    """DenseNet's layer: 32 new channels beside its input."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, 128, 1, bias=False)]
        second = [nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1, bias=False)]
        self.body = nn.Sequential(*first, *second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return torch.cat([x, self.body(x)], 1)


def densenet121() -> nn.Module:
    layers, width = imagenet_stem(), 64
    for stage, number in enumerate((6, 12, 24, 16)):
        for _ in range(number):
            layers.append(Dense(width))
            width += 32
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if stage < 3:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


MAKERS = {
    "lenet5": (lenet5, (1, 1, 28, 28)),
    "resnet56": (
        lambda: resnet(basic, [9, 9, 9], [16, 32, 64], [*conv_norm(3, 16, 3), nn.ReLU()], 10),
        (1, 3, 32, 32),
    ),
    "vgg16": (vgg16, (1, 3, 32, 32)),
    "resnet18": (
        lambda: resnet(basic, [2, 2, 2, 2], [64, 128, 256, 512], imagenet_stem(), 1000),
        (1, 3, 224, 224),
    ),
    "mobilenet_v2": (mobilenet_v2, (1, 3, 224, 224)),
    "resnet50": (
        lambda: resnet(bottleneck, [3, 4, 6, 3], [64, 128, 256, 512], imagenet_stem(), 1000),
        (1, 3, 224, 224),
    ),
    "densenet121": (densenet121, (1, 3, 224, 224)),
}
"""Name -> the network's maker and the shape of its input."""
