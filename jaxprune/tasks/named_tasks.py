"""The named tasks on the images in the package, and how a name becomes a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flax import nnx

from jaxprune.datasets.dataset import load_dataset
from jaxprune.nets import LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.factories import import_attribute
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.text import closest
from jaxprune.training.recipes import RECIPES


def digits() -> Task:
    """8x8 digits, a plain convolutional network cut from 16-32-64 to 6-12-24 channels."""
    return _packaged(
        "digits",
        "digits",
        lambda rngs: PlainConvNet(rngs, widths=(16, 32, 64)),
        schedule=Schedule(kept_counts=((6, 12, 24),)),
        recipe="adam_short",
        base_recipe="adam_base_digits",
    )


def digits_deep() -> Task:
    """8x8 digits, four convolutions with batch norm cut from 16-16-32-32-64 to 6-6-12-12-24 channels."""
    return _packaged(
        "digits-deep",
        "digits",
        lambda rngs: SmallConvNet(rngs, widths=(16, 16, 32, 32, 64)),
        schedule=Schedule(kept_counts=((6, 6, 12, 12, 24),)),
        recipe=RECIPES["adam_short"].replace(epochs=2),
        base_recipe="adam_base_digits",
    )


def fashion() -> Task:
    """28x28 Fashion-MNIST, LeNet-5 cut from 20-50-500 to 8-20-100 channels."""
    return _packaged(
        "fashion",
        "fashion",
        lambda rngs: LeNet5(rngs, widths=(20, 50, 500)),
        schedule=Schedule(kept_counts=((8, 20, 100),)),
        recipe="adam_fashion",
        base_recipe="adam_base_fashion",
        bases=2,
        extra_bases=0,
        final_bases=5,
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {"digits": digits, "digits-deep": digits_deep, "fashion": fashion}
)
"""Task name -> a function that makes it."""


def find_task(name: str) -> Task:
    """The task of that name, or what a factory `module:function` of one's own returns.

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
    made = import_attribute("task", name)
    task = made() if callable(made) else made
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} needs to be, or return, a jaxprune Task, got {type(task).__name__}.")
    return task


def _packaged(name: str, dataset: str, model: Callable[[nnx.Rngs], nnx.Module], **settings: object) -> Task:
    data = load_dataset(dataset)
    return Task(name, model=model, train=data.train, validation=data.validation, test=data.test, **settings)  # type: ignore[arg-type]
