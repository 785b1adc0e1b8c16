"""Named tasks on the images in the package, and presets that combine them with search settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flax import nnx

from jaxprune.datasets.dataset import load_dataset
from jaxprune.evolution.settings import EvolveConfig
from jaxprune.nets import LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.factories import import_attribute
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES


class PresetUnavailableError(ValueError):
    """A preset whose data this version cannot read."""


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


@dataclass(frozen=True)
class Preset:
    """Tasks by name, and how to search on them."""

    name: str
    tasks: tuple[str, ...]
    config: EvolveConfig
    about: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "quick",
                ("digits", "digits-deep", "fashion"),
                EvolveConfig(generations=10, population=14),
                "three small tasks, about ten minutes on two CPU cores",
            ),
            Preset(
                "paper",
                ("mnist-lenet5", "cifar10-vgg16"),
                EvolveConfig(
                    generations=10,
                    population=40,
                    proposals_per_slot=1,
                    promote_fraction=1.0,
                    elites=6,
                    min_plan_distance=0.0,
                    guided_fraction=0.0,
                    vocabulary="paper",
                    fitness="geometric",
                    variation="paper",
                    seeds="paper",
                ),
                "the loop of arXiv 2110.10876; docs/paper.md says what differs",
            ),
        )
    }
)
"""Preset name -> preset."""


def find_preset(name: str, *, tasks: Sequence[str] = ()) -> Preset:
    """The preset of that name, with other tasks if any are given.

    Raises:
      ValueError: if there is no such preset.
      PresetUnavailableError: if its own tasks need data that this version cannot read.

    Example:
      >>> find_preset("paper", tasks=["digits"]).tasks
      ('digits',)
    """
    if name not in PRESETS:
        raise ValueError(
            f"a preset needs to be one of {', '.join(PRESETS)}, got {name!r}.{_closest(name, PRESETS)}"
        )
    preset = PRESETS[name]
    chosen = tuple(tasks) or preset.tasks
    missing = [task for task in chosen if task in ("mnist-lenet5", "cifar10-vgg16")]
    if missing:
        raise PresetUnavailableError(
            f"preset {name!r} needs the tasks {', '.join(missing)}, and with them the full MNIST and CIFAR-10, "
            f"which this version has no reader for yet. Its loop runs on other tasks: --preset {name} --task digits "
            "--task fashion (or --task module:factory for your own)."
        )
    return Preset(preset.name, chosen, preset.config, preset.about)


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
            f"a task needs to be one of {', '.join(TASKS)}, or module:factory, got {name!r}.{_closest(name, TASKS)}"
        )
    made = import_attribute("task", name)
    task = made() if callable(made) else made
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} needs to be, or return, a jaxprune Task, got {type(task).__name__}.")
    return task


def _packaged(name: str, dataset: str, model: Callable[[nnx.Rngs], nnx.Module], **settings: object) -> Task:
    data = load_dataset(dataset)
    return Task(name, model=model, train=data.train, validation=data.validation, test=data.test, **settings)  # type: ignore[arg-type]


def _closest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
