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


MODELS = {  # name -> (divisor of the widths, scale of the norms, network)
    "torchvision resnet18": (16, 0.6, lambda: torchvision.models.resnet18(num_classes=CLASSES)),
    "torchvision resnet50": (16, 0.6, lambda: torchvision.models.resnet50(num_classes=CLASSES)),
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
