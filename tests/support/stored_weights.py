"""Weights and images that a name and a shape determine, the same in every environment; needs NumPy alone."""

from __future__ import annotations

import math
import zlib

import numpy as np

IMAGE_SHAPE = (64, 80, 3)
"""(H, W, C): strided layers meet even and odd sizes, and VGG's dense layers means of overlapping windows."""


def random_array(name: str, shape: tuple[int, ...], norm_scale: float = 1.0) -> np.ndarray:
    """Float32 values for an array of that name; scales of norms lie around `norm_scale`."""
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    if name.endswith("running_var"):
        return (0.5 + uniform).astype(np.float32)
    if name.endswith("weight") and len(shape) == 1:
        return ((0.5 + uniform) * norm_scale).astype(np.float32)
    scale = math.sqrt(6 / math.prod(shape[1:])) if name.endswith("weight") else 0.3
    return ((2 * uniform - 1) * scale).astype(np.float32)


def random_images(count: int) -> np.ndarray:
    """[N, H, W, C] float32 images between -1 and 1."""
    return random_array("images", (count, *IMAGE_SHAPE)) / np.float32(0.3)
