"""The named tasks, on images in the package, and how a name becomes a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxprune.datasets.dataset import load_dataset
from jaxprune.nets import LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.factories import import_attribute, needed_parameters
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.text import closest
from jaxprune.training.recipes import RECIPES


def digits() -> Task:
    """8x8 digits, a plain convolutional network cut from 16-32-64 to 6-12-24 channels."""
    data = load_dataset("digits")
    return Task(
        "digits",
        lambda rngs: PlainConvNet(rngs, widths=(16, 32, 64)),
        data.train,
        data.validation,
        Schedule(kept_counts=((6, 12, 24),)),
        recipe="adam_short",
        base_recipe="adam_base_digits",
        test=data.test,
    )


def digits_deep() -> Task:
    """8x8 digits, four convolutions with batch norm cut from 16-16-32-32-64 to 6-6-12-12-24 channels."""
    data = load_dataset("digits")
    return Task(
        "digits-deep",
        lambda rngs: SmallConvNet(rngs, widths=(16, 16, 32, 32, 64)),
        data.train,
        data.validation,
        Schedule(kept_counts=((6, 6, 12, 12, 24),)),
        recipe=RECIPES["adam_short"].replace(epochs=2),
        base_recipe="adam_base_digits",
        test=data.test,
    )


def fashion() -> Task:
    """28x28 Fashion-MNIST, LeNet-5 cut from 20-50-500 to 8-20-100 channels."""
    data = load_dataset("fashion")
    return Task(
        "fashion",
        lambda rngs: LeNet5(rngs, widths=(20, 50, 500)),
        data.train,
        data.validation,
        Schedule(kept_counts=((8, 20, 100),)),
        recipe="adam_fashion",
        base_recipe="adam_base_fashion",
        bases=2,
        extra_bases=0,
        final_bases=5,
        test=data.test,
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {"digits": digits, "digits-deep": digits_deep, "fashion": fashion}
)
"""Task name -> function that makes the task."""


def find_task(name: str) -> Task:
    """Returns the task of that name, or the task that your own `module:function` returns.

    Raises:
      ValueError: if there is no such task, module or function, or it returns something else.

    Example:
      >>> find_task("fashion").bases
      2
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
