"""A transfer that takes a second: two classes of noisy vectors, a network of two dense layers, two base networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.datasets.dataset import Dataset
from jaxprune.training.recipes import RECIPES

RECIPE = RECIPES["adam_short"].replace(epochs=2, batch_size=20)

FUNCTION = "mean(X)*2"


def vectors(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy [N, 5] vectors and [N] labels."""
    labels = np.arange(num) % 2
    noise = np.random.default_rng(seed).normal(size=(num, 5))
    return (noise + labels[:, None]).astype(np.float32), labels


def small_data(**changes: Any) -> Dataset:
    """The data set."""
    parts = {"train": vectors(60, 0), "validation": vectors(40, 1), "test": vectors(40, 2)} | changes
    return Dataset.from_arrays("small", **parts, standardise=False)


def write_archive(path: Path) -> Path:
    """Writes the data set as a file that commands read."""
    parts = {"train": vectors(60, 0), "validation": vectors(40, 1), "test": vectors(40, 2)}
    arrays = {f"{letter}_{part}": pair[i] for part, pair in parts.items() for i, letter in enumerate("xy")}
    np.savez(path, **arrays)
    return path


def settings(**changes: Any) -> dict[str, Any]:
    """Arguments of `transfer`, but for the function and the folder."""
    return {
        "network": "cli_tasks:SmallNet",
        "data": small_data(),
        "kept_fraction": 0.5,
        "recipe": RECIPE,
        "base_recipe": RECIPE.replace(epochs=3),
        "against": ("l1", "random"),
        "bases": 2,
    } | changes
