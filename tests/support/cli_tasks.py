"""Tasks that a user could write, for `--task cli_tasks:NAME`: one that trains in no time, and some that cannot work."""

from __future__ import annotations

import numpy as np
from flax import nnx

from jaxprune.datasets.dataset import Dataset
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES


class SmallNet(nnx.Module):
    """Two dense layers; the 8 channels between them can be pruned."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.second = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def _arrays(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(num) % 2
    noise = np.random.default_rng(seed).normal(size=(num, 5))
    return (noise + labels[:, None]).astype(np.float32), labels


def small(**changes) -> Task:
    """Two classes of noisy vectors; 4 of 8 channels are kept."""
    recipe = RECIPES["adam_short"].replace(epochs=3, batch_size=20)
    data = Dataset.from_arrays(
        "small", train=_arrays(60, 0), validation=_arrays(40, 1), test=_arrays(40, 2), standardise=False
    )
    settings = {
        "train": data.train,
        "validation": data.validation,
        "schedule": Schedule(kept_fraction=0.5),
        "bases": 2,
        "extra_bases": 0,
        "final_bases": 2,
    }
    return Task(
        "small", model=SmallNet, test=data.test, recipe=recipe, base_recipe=recipe, **(settings | changes)
    )


def mislabelled() -> Task:
    x, y = _arrays(60, 0)
    return small(train=(x, y[:-1]))


def one_class() -> Task:
    x, y = _arrays(60, 0)
    return small(train=(x, np.zeros_like(y)))


def infinite() -> Task:
    x, y = _arrays(60, 0)
    x[3, 2] = np.inf
    return small(train=(x, y))


def keeps_none() -> Task:
    return small(schedule=Schedule(kept_counts=((0,),)))


def keeps_too_many() -> Task:
    return small(schedule=Schedule(kept_counts=((9,),)))


def no_task() -> int:
    return 3
