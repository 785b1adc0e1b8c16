"""A real task that trains in a fraction of a second, and its compiled machinery, shared by tests of one process."""

from __future__ import annotations

from functools import cache

from jaxprune.datasets.dataset import load_dataset
from jaxprune.nets import PlainConvNet
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES


def tiny_task(name: str = "tiny", rounds: int = 1) -> Task:
    """Digits with so few images and channels that accuracies mean little."""
    data = load_dataset("digits").limited(num_train=100, num_validation=50)
    recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=20)
    return Task(
        name,
        model=lambda rngs: PlainConvNet(rngs, widths=(4, 4, 8)),
        train=data.train,
        validation=data.validation,
        test=data.test,
        schedule=Schedule(kept_fraction=0.5, rounds=rounds),
        recipe=recipe,
        base_recipe=recipe.replace(epochs=3, learning_rate=5e-3),
        calibration=40,
        num_samples=20,
    )


@cache
def tiny_programs() -> TaskPrograms:
    """Compiled once per process."""
    return TaskPrograms(tiny_task())
