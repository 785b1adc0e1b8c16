"""A residual network for the digits in the package, to rehearse a transfer with in a minute."""

from __future__ import annotations

from flax import nnx

from jaxprune.nets import CifarResNet


def resnet8(rngs: nnx.Rngs) -> nnx.Module:
    """Eight layers for 8x8 grey images of ten classes."""
    return CifarResNet(rngs, depth=8, widths=(16, 32, 64), image_shape=(8, 8, 1))
