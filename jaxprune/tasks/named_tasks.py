"""The named tasks, on images in the package, and how a name becomes a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxprune.datasets.dataset import load_dataset
from jaxprune.nets import CifarResNet, DepthwiseNet, LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.factories import import_attribute, needed_parameters
from jaxprune.tasks.tasks import ModelFactory, Schedule, Task
from jaxprune.text import closest
from jaxprune.training.recipes import RECIPES

_SEARCHED = {"bases": 16, "extra_bases": 0, "final_bases": 32}
"""Numbers of base networks of the tasks that searches run on."""

_UNSEEN = {"bases": 6, "extra_bases": 0, "final_bases": 8}
"""Numbers of base networks of the tasks that tell how far what was found elsewhere carries."""


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


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "digits": digits,
        "digits-deep": digits_deep,
        "digits-dw": digits_dw,
        "digits-res": digits_res,
        "fashion": fashion,
    }
)
"""Task name -> function that makes the task."""


def find_task(name: str) -> Task:
    """Returns the task of that name, or the task that your own `module:function` returns.

    Raises:
      ValueError: if there is no such task, module or function, or it returns something else.

    Example:
      >>> find_task("fashion").bases
      6
    """
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
