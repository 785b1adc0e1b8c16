"""Images and labels to observe a network on: training images of a dataset, or a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jaxprune.datasets.array_cache import DAMAGES
from jaxprune.datasets.dataset import DATASETS, load_dataset
from jaxprune.datasets.guarded_split import Split
from jaxprune.datasets.prepared_sets import PREFIX, USUAL_SETS
from jaxprune.observation.checks import check_labels, check_real
from jaxprune.observation.sample import balanced_sample
from jaxprune.text import closest

IMAGE_NAMES = ("images", "x", "x_train")
LABEL_NAMES = ("labels", "y", "y_train")
"""Names that the arrays of a data file may have, the first one present counts."""


def load_examples(source: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None) -> Split:
    """Loads images and labels to observe a network on: training images of a dataset, or a NumPy archive.

    Args:
      source: one of `DATASETS`, a prepared set `tfds:NAME`, a folder of images (see `load_dataset`), or a `.npz` file
        with the arrays `images` [N, ...] and `labels` [N] (or `x`, `y`).
      data_dir: where prepared sets lie.

    Returns:
      The examples, standardised if they are of a dataset; images of a file become float32 unless they are float64, and
      are otherwise unchanged.

    Raises:
      ValueError: if there is no such dataset or file, or it lacks images or labels, or these do not fit together.

    Example:
      >>> load_examples("digits").images.shape
      (1097, 8, 8, 1)
    """
    name, path = str(source), Path(source)
    if _is_dataset(name):
        return load_dataset(name, data_dir=data_dir).standardised().train
    if path.suffix != ".npz" or not path.is_file():
        reason = "none of these" if path.suffix != ".npz" else "a folder" if path.is_dir() else "no such file"
        hint = closest(name, (*DATASETS, *(f"{PREFIX}{usual}" for usual in USUAL_SETS)))
        raise ValueError(
            f"data needs to be one of {', '.join(DATASETS)}, {PREFIX}NAME, a folder of images or a file FILE.npz, got "
            f"{name}: {reason}.{hint} Write a file with numpy.savez(file, images=images, labels=labels)."
        )
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is a single array, as numpy.save writes")
        with archive:
            arrays = {key: archive[key] for key in archive.files}
    except DAMAGES as error:
        raise ValueError(
            f"data needs a NumPy archive of plain arrays, got {name}: {_why(error)}. Write one with numpy.savez."
        ) from error
    images, labels = (_first_named(arrays, names, name) for names in (IMAGE_NAMES, LABEL_NAMES))
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(f"data needs images [N, ...], got shape {images.shape} in {name}.")
    labels = check_labels(labels, len(images), owner=f"data {name}: ")
    check_real(images, owner=f"data {name}: ")
    return Split(images if images.dtype == np.float64 else images.astype(np.float32), labels)


def load_validation(
    source: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None
) -> Split | None:
    """Loads the validation images of a dataset, standardised; None for a file, which has none.

    Args:
      source, data_dir: as for `load_examples`.

    Raises:
      ValueError: as `load_dataset` does.

    Example:
      >>> load_validation("digits").images.shape
      (350, 8, 8, 1)
    """
    name = str(source)
    return load_dataset(name, data_dir=data_dir).standardised().validation if _is_dataset(name) else None


def balanced(images: np.ndarray, labels: np.ndarray, count: int) -> Split:
    """Returns the first examples of each class, equally many of each as far as there are, in their old order.

    Args:
      images: [N, ...].
      labels: [N].
      count: number of examples in all, at least one for each class.

    Raises:
      ValueError: if `count` is below the number of classes.

    Example:
      >>> balanced(np.zeros((5, 2)), np.array([1, 1, 1, 0, 0]), 4).labels.tolist()
      [1, 1, 0, 0]
    """
    num_classes = len(np.unique(labels))
    if count < num_classes:
        raise ValueError(
            f"the number of images must be at least {num_classes}, one of each class, got {count}."
        )
    chosen = np.sort(balanced_sample(labels, count))
    return Split(images[chosen], labels[chosen])


def _is_dataset(name: str) -> bool:
    """Tells whether examples come from a dataset with splits, not from a file."""
    path = Path(name)
    return name in DATASETS or name.startswith(PREFIX) or (path.is_dir() and path.suffix != ".npz")


def _why(error: Exception) -> str:
    """What is wrong with a file, without NumPy's advice to load it in an unsafe way."""
    return (
        "it holds Python objects, or is no archive"
        if "allow_pickle" in str(error)
        else str(error).rstrip(".")
    )


def _first_named(arrays: dict[str, np.ndarray], names: tuple[str, ...], file: str) -> np.ndarray:
    """The array under the first of the names that the file has."""
    for name in names:
        if name in arrays:
            return arrays[name]
    raise ValueError(
        f"data needs an array {' or '.join(names[:2])}, got {file} with {', '.join(arrays) or 'no arrays'}. "
        f"Write numpy.savez(file, {IMAGE_NAMES[0]}=images, {LABEL_NAMES[0]}=labels)."
    )
