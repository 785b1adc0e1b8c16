"""A task of tiny images and a network with batch norm, for `--task normed_task:normed`; ROWS_SEED makes other data."""

from __future__ import annotations

import os

import numpy as np

from jaxprune.datasets.dataset import Dataset
from jaxprune.nets import SmallConvNet
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES


def _images(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(num) % 3
    pixels = np.random.default_rng(seed).normal(size=(num, 8, 8, 1))
    pixels[np.arange(num), labels] += 1.0
    return pixels.astype(np.float32), labels


def normed() -> Task:
    """Three classes, told apart by which row is bright; half of 2 to 4 channels are kept."""
    recipe = RECIPES["adam_short"].replace(epochs=2, batch_size=20, learning_rate=1e-2)
    data = Dataset.from_arrays(
        "rows",
        train=_images(80, int(os.environ.get("ROWS_SEED", "0"))),
        validation=_images(60, 1),
        test=_images(60, 2),
        standardise=False,
    )
    return Task(
        "normed",
        model=lambda rngs: SmallConvNet(rngs, widths=(4, 4, 4, 4, 6), num_classes=3, image_shape=(8, 8, 1)),
        train=data.train,
        validation=data.validation,
        test=data.test,
        schedule=Schedule(kept_fraction=0.5),
        recipe=recipe,
        base_recipe=recipe.replace(epochs=6),
        bases=3,
        extra_bases=0,
        final_bases=2,
        calibration=40,
        num_samples=20,
        max_positions=4,
    )
