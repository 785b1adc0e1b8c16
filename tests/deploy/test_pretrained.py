"""Weights of other libraries: the same logits as there, and all that does not fit at once."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from stored_weights import IMAGE_SHAPE, random_array, random_images

from jaxprune import load_pretrained
from jaxprune.deploy.tensor_files import write_tensors

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "pretrained.json").read_text())

RESNET = {"widths": (4, 4, 8, 16, 32)}
VGG = {"widths": (4, 4, 8, 8, *(16,) * 3, *(32,) * 6, 256, 256)}
MOBILE = {"widths": (4, 2, 3, 4, 8, 12, 20, 40, 160)}
LITE = {"widths": (4, 2, 3, 5, 10, 14, 24, 40, 160)}
CASES = {
    "torchvision resnet18": ("resnet18", RESNET),
    "torchvision resnet50": ("resnet50", RESNET),
    "torchvision vgg16": ("vgg16", VGG),
    "timm vgg16_bn": ("vgg16_bn", VGG),
    "torchvision mobilenet_v2": ("mobilenet_v2", MOBILE),
    "timm mobilenetv2_100": ("mobilenet_v2", MOBILE),
    "efficientnet_lite_pytorch efficientnet-lite0": ("efficientnet_lite0", LITE),
    "timm efficientnet_lite0": ("efficientnet_lite0", {**LITE, "padding": "equal", "epsilon": 1e-5}),
    "timm tf_efficientnet_lite0": ("efficientnet_lite0", LITE),
}


@partial(jax.jit, static_argnums=0)
def logits_of(graphdef, state, x):
    return nnx.merge(graphdef, state)(x)


def run(model, images):
    return logits_of(*nnx.split(nnx.view(model, use_running_average=True, raise_if_not_found=False)), images)


def arrays_of(name):
    golden = GOLDEN[name]
    return {
        key: random_array(key, tuple(shape), golden["norm_scale"]) for key, shape in golden["shapes"].items()
    }


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_other_library(name, tmp_path):
    network, settings = CASES[name]
    path = tmp_path / "model.safetensors"
    write_tensors(path, arrays_of(name), {"format": "pt"})
    model = load_pretrained(network, path, image_shape=IMAGE_SHAPE, **settings)
    np.testing.assert_allclose(run(model, random_images(2)), GOLDEN[name]["logits"], rtol=1e-4, atol=1e-4)
