"""Tasks small enough to train in a test, with real images."""

from __future__ import annotations

import functools

from flax import nnx

from jaxprune.datasets.dataset import load_dataset
from jaxprune.nets import PlainConvNet
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES

DATA = load_dataset("digits").limited(num_train=200, num_validation=100)


def make_model(rngs: nnx.Rngs) -> nnx.Module:
    return PlainConvNet(rngs, widths=(4, 6, 8))


def tiny_task(name: str = "tiny", **changes: object) -> Task:
    """Digits, 4-6-8 to 2-3-4 channels, two epochs."""
    settings: dict[str, object] = {
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
    return Task(name, model=make_model, train=DATA.train, validation=DATA.validation, **(settings | changes))  # type: ignore[arg-type]


@functools.cache
def tiny_programs() -> TaskPrograms:
    """The compiled machinery of `tiny_task()`, shared by the tests of one process."""
    return TaskPrograms(tiny_task())
