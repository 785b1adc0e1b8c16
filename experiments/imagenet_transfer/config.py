"""What the experiment runs: ResNet-50 and MobileNetV2 on ILSVRC-2012."""

from __future__ import annotations

CASES = {
    "resnet50": (
        *("resnet50", "--macs-fraction", "0.5", "--multiple-of", "8"),
        *("--recipe", "imagenet_finetune", "--base-recipe", "imagenet_base"),
    ),
    "mobilenet_v2": (
        *("mobilenet_v2", "--macs-fraction", "0.7", "--multiple-of", "8"),
        *("--recipe", "imagenet_mobilenet", "--base-recipe", "imagenet_base"),
    ),
}
"""Case -> network, budget and recipes. Widths that are no multiples of 8 save multiply-adds, but no time."""

OBSERVED = ("--classes", "50", "--calibration-images", "5000")
"""Channels are scored on 50 clusters of the 1,000 classes, found by the base network itself."""

DATA = "tfds:imagenet2012"

REHEARSAL = (
    *("--image-size", "32", "--bases", "1", "--epochs", "1", "--base-epochs", "1", "--batch-size", "50"),
    *("--no-scratch", "--against", "l2"),
)
"""The whole path in minutes: 32 pixels, one epoch of a few batches, one base network."""

REHEARSAL_OBSERVED = ("--classes", "20", "--calibration-images", "1000")

REHEARSAL_IMAGES = (2000, 100)
"""Training and test images that the rehearsal writes; of two of each class, one becomes a validation image."""
