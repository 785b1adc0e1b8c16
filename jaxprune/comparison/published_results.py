"""Published results of pruned networks, to be shown beside ours where network and images are the same.

Recipes, base networks and budgets differ from paper to paper, so that a table of them is an orientation and no
comparison: what is paired and equal is only what one transfer trained itself.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published result.

    Attributes:
      method: its name there.
      top1: accuracy of the pruned network on test images, in percent.
      dense: accuracy of the network that was pruned, or None if it is not told.
      cost: what was left of the multiply-adds, in the words of the source.
      source: where the numbers are from.
    """

    method: str
    top1: float
    dense: float | None
    cost: str
    source: str


_GREG = "Wang et al. 2021, GReg, table 3"
_TORCH_PRUNING = "Torch-Pruning, table of its reproduction (Fang et al. 2023)"
_RESREP = "Ding et al. 2021, ResRep, README of its code"
_HRANK = "HRank+ (Lin et al. 2020), README of its code"
_CHIP = "Sui et al. 2021, CHIP, logs of its code"
_META = "Liu et al. 2019, MetaPruning"
_AMC = "He et al. 2018, AMC"

_RESNET50 = (
    Published("SFP", 74.61, 76.15, "1.72x faster", _GREG),
    Published("HRank", 74.98, 76.15, "1.78x faster", _GREG),
    Published("Taylor-FO", 74.50, 76.18, "1.82x faster", _GREG),
    Published("CCP-AC", 75.32, 76.15, "2.18x faster", _GREG),
    Published("DCP", 74.95, 76.01, "2.25x faster", _GREG),
    Published("GReg-1", 75.16, 76.13, "2.31x faster", _GREG),
    Published("GReg-2", 75.36, 76.13, "2.31x faster", _GREG),
    Published("GReg-2", 74.93, 76.13, "2.56x faster", _GREG),
    Published("GReg-2", 73.90, 76.13, "3.06x faster", _GREG),
    Published("ResRep", 76.15, 76.15, "45.5 % left", _RESREP),
    Published("MetaPruning, from scratch", 75.4, 76.6, "2.0 G of 4.1 G", _META),
    Published("MetaPruning, from scratch", 73.4, 76.6, "1.0 G of 4.1 G", _META),
    Published("uniform width .75", 74.8, 76.6, "2.3 G of 4.1 G", _META),
    Published("HRank+, steps", 74.19, 76.15, "1.52 G of 4.11 G", _HRANK),
    Published("HRank+, cosine and smoothed labels", 75.83, 76.15, "1.52 G of 4.11 G", _HRANK),
    Published("CHIP", 76.35, 76.15, "2.19 G of 4.11 G", _CHIP),
    Published("CHIP", 75.26, 76.15, "1.52 G of 4.11 G", _CHIP),
    Published("AutoBot", 76.63, None, "48 % left", "Castells and Yeom 2021, arXiv 2111.09635, abstract"),
)
_RESNET56_CIFAR10 = (
    Published("group L1", 92.93, 93.53, "2.1x faster", _TORCH_PRUNING),
    Published("group batch norm", 93.29, 93.53, "2.1x faster", _TORCH_PRUNING),
    Published("group norm", 93.46, 93.53, "2.1x faster", _TORCH_PRUNING),
    Published("GReg", 93.55, 93.53, "2.1x faster", _TORCH_PRUNING),
    Published("group norm, sparse training", 93.77, 93.53, "2.1x faster", _TORCH_PRUNING),
    Published("ResRep", 93.71, 93.71, "2.1x faster", _RESREP),
    Published("HRank+", 93.57, 93.26, "53 % left", _HRANK),
    Published("CHIP", 94.16, 93.26, "53 % left", _CHIP),
)
_VGG19_CIFAR100 = (
    Published("EigenDamage", 65.18, 73.34, "8.8x faster", _TORCH_PRUNING),
    Published("GReg-1", 67.55, 74.02, "8.8x faster", _TORCH_PRUNING),
    Published("GReg-2", 67.75, 74.02, "8.8x faster", _TORCH_PRUNING),
    Published("group norm", 67.60, 73.50, "8.8x faster", _TORCH_PRUNING),
    Published("group norm, sparse training", 70.39, 73.50, "8.8x faster", _TORCH_PRUNING),
)
_MOBILENET = (
    Published("AMC", 70.85, None, "70 % left", _AMC),
    Published("uniform width .75", 69.8, None, "70 % left", _AMC),
    Published("MetaPruning, own recipe", 72.7, None, "303 M", _META),
    Published("MetaPruning, own recipe", 68.2, None, "140 M", _META),
)

_RESULTS = {
    ("resnet50", "imagenet2012"): _RESNET50,
    ("resnet56", "cifar10"): _RESNET56_CIFAR10,
    ("vgg19", "cifar100"): _VGG19_CIFAR100,
    ("mobilenet_v2", "imagenet2012"): _MOBILENET,
}
"""(network, set of TensorFlow Datasets) -> results."""

_NUM_IMAGES = {"imagenet2012": 1_281_167, "cifar10": 50_000, "cifar100": 50_000}
"""Training images of the sets; a set of the same name with fewer is a rehearsal."""


def published_results(network: str, data: str, num_images: int) -> tuple[Published, ...]:
    """Returns published results for a network and a set of images, where there are any.

    Args:
      network: a name of `NETWORKS`.
      data: as `load_dataset` takes it. Only sets of TensorFlow Datasets are what papers report on.
      num_images: number of training and validation images; all that the set has, or nothing is comparable.

    Example:
      >>> [each.method for each in published_results("vgg19", "tfds:cifar100", 50_000)][:2]
      ['EigenDamage', 'GReg-1']
      >>> published_results("vgg19", "tfds:cifar100", 500), published_results("vgg19", "cifar100", 50_000)
      ((), ())
    """
    if not data.startswith("tfds:"):
        return ()
    name = data.removeprefix("tfds:").partition(":")[0].partition("/")[0]
    return _RESULTS.get((network, name), ()) if _NUM_IMAGES.get(name) == num_images else ()
