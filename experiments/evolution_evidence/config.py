"""What the experiment runs: searches by part and cell, and the networks that judge their winners."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import jaxprune as jp
from jaxprune.nets import PlainConvNet
from jaxprune.tasks.named_tasks import find_task
from jaxprune.training.recipes import RECIPES

SEEDS = (0, 1, 2, 3, 4)
"""Run seeds. Base networks, banks, data orders and proposals follow from them; the cells of one seed share its bank."""

SEARCHED = ("digits", "digits-deep", "digits-dw")

CELLS = {
    "evolution, handmade seeds": {"seeds": "handmade"},
    "random, handmade seeds": {"seeds": "handmade", "strategy": "random"},
    "evolution": {},
    "random": {"strategy": "random"},
    "evolution, paper": {"seeds": "paper", "vocabulary": "paper+WO"},
    "random, paper": {"seeds": "paper", "vocabulary": "paper+WO", "strategy": "random"},
}
"""Cell -> settings that differ from those of the preset quick."""

PARTS = {"plain": False, "compensated": True}
"""Part -> whether kept channels take over what least squares predicts of the removed ones."""

FINAL_SEED = 1000
"""Seed of the base networks that judge; no search uses them."""

FINAL_BASES = {
    "digits": 64,
    "digits-deep": 64,
    "digits-dw": 64,
    "digits-res": 48,
    "fashion": 8,
    "mnist": 8,
    "cifar": 8,
}
"""Task -> number of base networks that judge."""


def searched_tasks(compensate: bool) -> list[jp.Task]:
    """Returns the tasks that searches run on."""
    return [_compensated(find_task(name), compensate) for name in SEARCHED]


def judging_tasks(compensate: bool, images: Path | None) -> list[jp.Task]:
    """Returns the searched tasks and those that no search uses; with a folder of images also MNIST and CIFAR-10.

    Args:
      compensate: as in `PARTS`.
      images: a folder with `mnist_8k_2k.npz` and `cifar10_jpegbytes_8k_2k.npz`, or None.
    """
    tasks = [find_task(name) for name in (*SEARCHED, "digits-res", "fashion")]
    if images is not None:
        tasks += [_mnist(images), _cifar(images)]
    return [_compensated(task, compensate) for task in tasks]


def _compensated(task: jp.Task, compensate: bool) -> jp.Task:
    """Returns the task with compensation in its fine-tuning, or as it is."""
    return task.replace(recipe=task.recipe.replace(compensate=True)) if compensate else task


def _mnist(images: Path) -> jp.Task:
    """Part of MNIST at 14x14, the plain network of digits."""
    with np.load(images / "mnist_8k_2k.npz", allow_pickle=False) as data:
        x, y = data["x_train"].astype(np.float32) / 255.0, data["y_train"].astype(np.int32)
    return _task("mnist", x.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)), y)


def _cifar(images: Path) -> jp.Task:
    """Part of CIFAR-10, stored as JPEG and shrunk to 16x16; not to be reported as CIFAR-10."""
    import io

    from PIL import Image

    with np.load(images / "cifar10_jpegbytes_8k_2k.npz", allow_pickle=False) as data:
        content, ends, y = data["jpeg_train"], data["end_train"], data["y_train"].astype(np.int32)
    files = np.split(content, ends[:-1])
    x = np.stack([np.asarray(Image.open(io.BytesIO(file.tobytes())), np.float32) for file in files]) / 255.0
    return _task("cifar", x.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)), y)


def _task(name: str, x: np.ndarray, y: np.ndarray) -> jp.Task:
    """Returns a task of the first 4,000 images, 1,000 of them for validation, with the plain network of digits."""
    shape = x.shape[1:]
    return jp.Task(
        name,
        model=lambda rngs: PlainConvNet(rngs, widths=(16, 32, 64), image_shape=shape),
        train=(x[1000:4000], y[1000:4000]),
        validation=(x[:1000], y[:1000]),
        schedule=jp.Schedule(kept_counts=((6, 12, 24),)),
        recipe=RECIPES["adam_short"].replace(epochs=1),
        base_recipe=RECIPES["adam_base_digits"].replace(epochs=6),
    )
