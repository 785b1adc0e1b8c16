"""The named tasks, on images in the package or on prepared sets, and how a name becomes a task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxprune.datasets.dataset import Dataset, load_dataset
from jaxprune.nets import VGG16, CifarResNet, DepthwiseNet, LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.factories import import_attribute, needed_parameters
from jaxprune.tasks.tasks import ModelFactory, Schedule, Task
from jaxprune.text import closest
from jaxprune.training.recipes import RECIPES

_SEARCHED = {"bases": 16, "extra_bases": 0, "final_bases": 32}
"""Numbers of base networks of the tasks that searches run on."""

_UNSEEN = {"bases": 6, "extra_bases": 0, "final_bases": 8}
"""Numbers of base networks of the tasks that tell how far what was found elsewhere carries."""


LENET_BASE = RECIPES["paper_lenet"].replace(
    name="paper_lenet_base", learning_rate=1e-3, schedule="cosine", epochs=30
)
"""How base networks of `mnist-lenet5` are trained; the paper's reach 99.26 % of the test images."""

VGG_BASE = RECIPES["paper_vgg"].replace(
    name="paper_vgg_base", learning_rate=0.05, weight_decay=5e-4, schedule="cosine", milestones=(), epochs=160
)
"""How base networks of `cifar10-vgg16` are trained; the paper's reach 93.92 % of the test images."""

_PAPER = {"bases": 1, "extra_bases": 3, "final_bases": 4}
"""Numbers of base networks of the paper's tasks: one for every function, as in the paper, further ones for leaders."""

_LENET_ROUNDS = ((10, 20, 100), (5, 12, 45), (5, 11, 40))
"""Kept channels of conv1, conv2 and the dense layer: 10/5/0 of 20, 30/8/1 of 50 and 400/55/5 of 500 are removed."""

_VGG_ROUNDS = (
    (52, 52, 103, 103, 205, 205, 205, *(410,) * 7),
    (40, 40, 78, 78, 154, 154, 154, *(308,) * 7),
)
"""Kept channels of 13 convolutions and the dense layer: rounds remove 12, 12, 25, 25, 51, 51, 51 and 7 times 102."""

DataDir = str | os.PathLike[str] | None
"""The data directory of prepared sets; None for `$TFDS_DATA_DIR`, else TensorFlow Datasets' own."""


def digits() -> Task:
    """8x8 digits, a plain convolutional network cut from 16-32-64 to 6-12-24 channels."""
    return _digits_task(
        "digits", lambda rngs: PlainConvNet(rngs, widths=(16, 32, 64)), (6, 12, 24), 3, _SEARCHED
    )


def digits_deep() -> Task:
    """8x8 digits, four convolutions with batch norm cut from 16-16-32-32-64 to 6-6-12-12-24 channels."""
    return _digits_task(
        "digits-deep",
        lambda rngs: SmallConvNet(rngs, widths=(16, 16, 32, 32, 64)),
        (6, 6, 12, 12, 24),
        2,
        _SEARCHED,
    )


def digits_dw() -> Task:
    """8x8 digits, depthwise and 1x1 convolutions with batch norm cut from 16-32-32-64 to 6-12-12-24 channels."""
    return _digits_task(
        "digits-dw", lambda rngs: DepthwiseNet(rngs, widths=(16, 32, 32, 64)), (6, 12, 12, 24), 2, _SEARCHED
    )


def digits_res() -> Task:
    """8x8 digits, a residual network of 8 layers cut from 16-32-64 to 6-12-24 channels; a task to report on."""
    return _digits_task(
        "digits-res",
        lambda rngs: CifarResNet(rngs, depth=8, shortcut="B", widths=(16, 32, 64), image_shape=(8, 8, 1)),
        (6, 6, 12, 12, 24, 24),
        2,
        _UNSEEN,
    )


def fashion() -> Task:
    """28x28 Fashion-MNIST, LeNet-5 cut from 20-50-500 to 8-20-100 channels; a task to report on."""
    data = load_dataset("fashion")
    return Task(
        "fashion",
        lambda rngs: LeNet5(rngs, widths=(20, 50, 500)),
        data.train,
        data.validation,
        Schedule(kept_counts=((8, 20, 100),)),
        recipe="adam_fashion",
        base_recipe="adam_base_fashion",
        test=data.test,
    ).replace(**_UNSEEN)


def mnist_lenet5(data_dir: DataDir = None) -> Task:
    """28x28 MNIST, LeNet-5 cut in three rounds from 20-50-500 to 5-11-40 channels, as in the paper (tfds:mnist)."""
    return lenet5_task("mnist-lenet5", load_dataset("tfds:mnist", data_dir=data_dir))


def cifar10_vgg16(data_dir: DataDir = None) -> Task:
    """32x32 CIFAR-10, VGG-16 cut in two rounds to 3/5 of each layer's channels, as in the paper (tfds:cifar10)."""
    return vgg16_task("cifar10-vgg16", load_dataset("tfds:cifar10", data_dir=data_dir))


def lenet5_task(name: str, data: Dataset) -> Task:
    """Makes the paper's task for LeNet-5, on MNIST or on other images of its kind.

    Args:
      name: of the task.
      data: images [N, 28, 28, 1] of ten classes.
    """
    return Task(
        name,
        lambda rngs: LeNet5(rngs, widths=(20, 50, 500)),
        data.train,
        data.validation,
        Schedule(kept_counts=_LENET_ROUNDS),
        recipe="paper_lenet",
        base_recipe=LENET_BASE,
        test=data.test,
        data_identity=data.identity,
    ).replace(**_PAPER)


def vgg16_task(name: str, data: Dataset) -> Task:
    """Makes the paper's task for VGG-16, on CIFAR-10 or on other images of its kind; layers are scored in sequence.

    Args:
      name: of the task.
      data: images [N, 32, 32, 3] of ten classes.
    """
    return Task(
        name,
        lambda rngs: VGG16(rngs, dropout_rate=0.15),
        data.train,
        data.validation,
        Schedule(kept_counts=_VGG_ROUNDS, scoring="sequential"),
        recipe="paper_vgg",
        base_recipe=VGG_BASE,
        test=data.test,
        data_identity=data.identity,
    ).replace(**_PAPER)


def _digits_task(
    name: str, model: ModelFactory, kept_counts: tuple[int, ...], epochs: int, counts: Mapping[str, int]
) -> Task:
    """Makes a task on the digits.

    Args:
      name: of the task.
      model: builds its network.
      kept_counts: how many channels each group keeps.
      epochs: of a fine-tuning.
      counts: numbers of base networks.
    """
    data = load_dataset("digits")
    return Task(
        name,
        model,
        data.train,
        data.validation,
        Schedule(kept_counts=(kept_counts,)),
        recipe=RECIPES["adam_short"].replace(epochs=epochs),
        base_recipe="adam_base_digits",
        test=data.test,
    ).replace(**counts)


PREPARED: Mapping[str, Callable[[DataDir], Task]] = MappingProxyType(
    {"mnist-lenet5": mnist_lenet5, "cifar10-vgg16": cifar10_vgg16}
)
"""Those of `TASKS` that read sets which `jaxprune prepare` writes: name -> function of the data directory."""

TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "digits": digits,
        "digits-deep": digits_deep,
        "digits-dw": digits_dw,
        "digits-res": digits_res,
        "fashion": fashion,
        "mnist-lenet5": mnist_lenet5,
        "cifar10-vgg16": cifar10_vgg16,
    }
)
"""Task name -> function that makes the task."""


def find_task(name: str, data_dir: DataDir = None) -> Task:
    """Returns the task of that name, or the task that your own `module:function` returns.

    Args:
      name: a key of `TASKS`, or `module:function`.
      data_dir: where prepared sets are, for the tasks of `PREPARED`.

    Raises:
      ValueError: if there is no such task, module or function, it returns something else, or its images are not
        prepared.
      ImportError: if the packages for reading prepared sets are missing.

    Example:
      >>> find_task("fashion").bases
      6
    """
    if name in PREPARED:
        return PREPARED[name](data_dir)
    if name in TASKS:
        return TASKS[name]()
    if ":" not in name:
        raise ValueError(
            f"a task needs to be one of {', '.join(TASKS)}, or module:factory, got {name!r}.{closest(name, TASKS)}"
        )
    factory = import_attribute("task", name)
    if callable(factory) and (needed := needed_parameters(factory)):
        raise ValueError(
            f"task {name!r} needs a function without arguments, got one that needs {', '.join(needed)}."
        )
    task = factory() if callable(factory) else factory
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} needs to be, or return, a jaxprune Task, got {type(task).__name__}.")
    return task
