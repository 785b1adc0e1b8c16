"""What the experiment runs: one transfer for each network and set of images."""

from __future__ import annotations

_PAPER = ("--kept-fraction", "0.6", "--recipe", "paper_resnet")
"""The paper's own transfer: 40 % of the channels of each layer are removed in one step, 200 epochs."""

_DEPGRAPH = ("--recipe", "cifar_finetune", "--base-recipe", "cifar_base")
"""Recipes of Torch-Pruning's reproduction, whose table has published results at these budgets."""

CASES = {
    "resnet56-cifar10": ("resnet56", "tfds:cifar10", "--macs-fraction", "0.476", *_DEPGRAPH),
    "vgg19-cifar100": ("vgg19", "tfds:cifar100", "--macs-fraction", "0.1136", *_DEPGRAPH),
    "resnet56-cifar100": ("resnet56", "tfds:cifar100", *_PAPER),
    "resnet110-cifar10": ("resnet110", "tfds:cifar10", *_PAPER),
    "resnet164-cifar100": ("resnet164", "tfds:cifar100", *_PAPER),
    "resnet56-svhn": ("resnet56", "tfds:svhn_cropped", *_PAPER),
}
"""Case -> network, images, budget and recipes."""

PART = (
    *("--macs-fraction", "0.5", "--recipe", "cifar_finetune", "--base-recipe", "cifar_base"),
    *("--base-epochs", "30", "--epochs", "8", "--bases", "3"),
)
"""ResNet-20 at half its multiply-adds on 8,000 images, with epochs that two CPU cores can do in hours."""

PART_NETWORK = "resnet20"

REHEARSAL = (
    *("--bases", "1", "--epochs", "1", "--base-epochs", "1", "--batch-size", "100", "--classes", "10"),
    *("--calibration-images", "200"),
)
"""The whole path in minutes: one epoch of a few batches, one base network."""

REHEARSED = ("vgg19-cifar100", "resnet56-cifar10")
"""Cases of the rehearsal, and the sets that it writes."""

REHEARSAL_IMAGES = {"cifar10": (400, 100), "cifar100": (500, 100)}
"""Set -> training and test images that the rehearsal writes."""
