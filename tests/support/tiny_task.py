"""The task of the tests: real images, and networks small enough to train in a test."""

from __future__ import annotations

import functools
from typing import Any

from jaxprune.datasets.dataset import load_dataset
from jaxprune.nets import PlainConvNet
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES

DATA = load_dataset("digits").limited(num_train=200, num_validation=100)


def tiny_task(name: str = "tiny", **changes: Any) -> Task:
    """Digits, 4-6-8 channels of which half are kept, fine-tuned for two epochs; `changes` are fields of `Task`."""
    settings: dict[str, Any] = {
        "test": DATA.test,
        "schedule": Schedule(kept_fraction=0.5),
        "recipe": RECIPES["adam_short"].replace(epochs=2, batch_size=20, learning_rate=3e-3),
        "base_recipe": RECIPES["adam_short"].replace(epochs=20, batch_size=20, learning_rate=1e-2),
        "bases": 2,
        "extra_bases": 1,
        "final_bases": 2,
        "calibration": 100,
        "num_samples": 20,
        "max_positions": 4,
    }
    return Task(
        name,
        model=lambda rngs: PlainConvNet(rngs, widths=(4, 6, 8)),
        train=DATA.train,
        validation=DATA.validation,
        **(settings | changes),
    )


@functools.cache
def tiny_programs() -> TaskPrograms:
    """The compiled machinery of `tiny_task()`, shared by the tests of one process."""
    return TaskPrograms(tiny_task())
