"""Writes `pretrained.json`: logits that torchvision, timm and efficientnet_lite_pytorch compute of random weights.

Run `python tests/golden/write_pretrained.py` where these are installed; it needs nothing of jaxprune. The networks are
theirs, with every width divided, and weights that `stored_weights` makes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from stored_weights import IMAGE_SHAPE, random_array, random_images

CLASSES = 5
ONE_WIDTH = 16  # below it, sizes are those of kernels and colours


def efficientnet_lite0() -> torch.nn.Module:
    with contextlib.redirect_stdout(io.StringIO()):
        return EfficientNet.from_name("efficientnet-lite0", num_classes=CLASSES, image_size=IMAGE_SHAPE[:2])


class PaddedBlock(torch.nn.Module):
    """A basic block as in the repositories of ResNets for CIFAR-10, with a zero-padded shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(c_out)
        self.conv2 = torch.nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(c_out)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            missing = y.shape[1] - x.shape[1]
            x = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing // 2))
        return torch.relu(y + x)


class CifarResNet(torch.nn.Module):
    """He et al. 2016, sec. 4.2, under the names of these repositories; one block in each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(32)
        for stage, (c_in, c_out, stride) in enumerate(((32, 32, 1), (32, 64, 2), (64, 128, 2)), 1):
            setattr(self, f"layer{stage}", torch.nn.Sequential(PaddedBlock(c_in, c_out, stride)))
        self.linear = torch.nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean(dim=(2, 3)))


MODELS = {  # name -> (divisor of the widths, scale of the norms, network)
    "torchvision resnet18": (16, 0.6, lambda: torchvision.models.resnet18(num_classes=CLASSES)),
    "torchvision resnet50": (16, 0.6, lambda: torchvision.models.resnet50(num_classes=CLASSES)),
    "pytorch_cifar resnet8": (8, 1.0, CifarResNet),
    "torchvision vgg16": (16, 1.0, lambda: torchvision.models.vgg16(num_classes=CLASSES)),
    "timm vgg16_bn": (16, 1.0, lambda: timm.create_model("vgg16_bn", num_classes=CLASSES)),
    "torchvision mobilenet_v2": (8, 1.0, lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES)),
    "timm mobilenetv2_100": (8, 1.0, lambda: timm.create_model("mobilenetv2_100", num_classes=CLASSES)),
    "efficientnet_lite_pytorch efficientnet-lite0": (8, 1.0, efficientnet_lite0),
    "timm efficientnet_lite0": (8, 1.0, lambda: timm.create_model("efficientnet_lite0", num_classes=CLASSES)),
    "timm tf_efficientnet_lite0": (
        8,
        1.0,
        lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES),
    ),
}


def narrow(model: torch.nn.Module, divisor: int, norm_scale: float) -> dict[str, tuple[int, ...]]:
    """Replaces all arrays by narrower random ones, in place; returns their shapes by name."""
    shapes = {}
    for prefix, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for attribute, array in own.items():
            if attribute == "num_batches_tracked":
                continue
            name = f"{prefix}.{attribute}"
            shape = tuple(size // divisor if size >= ONE_WIDTH else size for size in array.shape)
            assert all(
                small * divisor == size or size < ONE_WIDTH
                for small, size in zip(shape, array.shape, strict=True)
            ), name
            shapes[name] = shape
            array.requires_grad_(False)
            array.data = torch.from_numpy(random_array(name, shape, norm_scale))
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
            module.groups = module.groups // divisor
    return shapes


def main() -> None:
    images = torch.from_numpy(random_images(2)).permute(0, 3, 1, 2)
    golden = {}
    for name, (divisor, norm_scale, make) in MODELS.items():
        model = make().eval()
        shapes = narrow(model, divisor, norm_scale)
        with torch.no_grad():
            logits = model(images).double()
        assert math.isfinite(float(logits.sum()))
        rows = [[round(value, 7) for value in row] for row in logits.tolist()]
        golden[name] = {"norm_scale": norm_scale, "logits": rows, "shapes": shapes}
    text = json.dumps(golden, separators=(",", ":"))
    (HERE / "pretrained.json").write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
