"""Images and labels to observe a network on, by the name of a packaged dataset or of a file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from jaxprune.datasets.dataset import DATASETS, load_dataset
from jaxprune.datasets.guarded_split import Split
from jaxprune.observation.observer import balanced_sample

IMAGE_NAMES = ("images", "x", "x_train")
LABEL_NAMES = ("labels", "y", "y_train")
"""What the arrays of a data file may be called."""


def load_examples(source: str | os.PathLike[str]) -> Split:
    """Images and labels to observe a network on: a packaged training split, or a NumPy archive as it is.

    Args:
      source: one of `DATASETS`, or a `.npz` file with the arrays `images` [N, ...] and `labels` [N] (or `x`, `y`).

    Returns:
      The examples; images of a file unchanged but for their dtype, float32 unless they were float64.

    Raises:
      ValueError: if there is no such dataset or file, or it lacks images or labels, or these do not fit together.

    Example:
      >>> load_examples("digits").images.shape
      (1097, 8, 8, 1)
    """
    name, path = str(source), Path(source)
    if name in DATASETS:
        return load_dataset(name).train
    if path.suffix != ".npz" or not path.is_file():
        lacks = "no such file" if path.suffix == ".npz" else "neither"
        raise ValueError(
            f"data needs to be one of {', '.join(DATASETS)} or a file FILE.npz, got {name}: {lacks}. "
            "Write one with numpy.savez(file, images=images, labels=labels)."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data needs a NumPy archive of plain arrays, got {name}: {error}. Write one with numpy.savez."
        ) from error
    images, labels = (_named(arrays, names, name) for names in (IMAGE_NAMES, LABEL_NAMES))
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels) or not len(labels):
        raise ValueError(
            f"data needs images [N, ...] and one label for each, [N], got shapes {images.shape} and {labels.shape} "
            f"in {name}. For one-hot labels write labels.argmax(-1)."
        )
    return Split(images if images.dtype == np.float64 else images.astype(np.float32), labels)


def _named(arrays: dict[str, np.ndarray], names: tuple[str, ...], file: str) -> np.ndarray:
    """The array under the first of some names."""
    found = next((arrays[name] for name in names if name in arrays), None)
    if found is None:
        raise ValueError(
            f"data needs an array {' or '.join(names[:2])}, got {file} with {', '.join(arrays) or 'no arrays'}. "
            f"Write numpy.savez(file, {IMAGE_NAMES[0]}=images, {LABEL_NAMES[0]}=labels)."
        )
    return found


def balanced(images: np.ndarray, labels: np.ndarray, count: int) -> Split:
    """The first examples of each class, equally many of each as far as there are, in their old order.

    Args:
      images: [N, ...].
      labels: [N].
      count: how many in all; at least one of each class is kept.

    Raises:
      ValueError: if `count` is below the number of classes.

    Example:
      >>> balanced(np.zeros((5, 2)), np.array([1, 1, 1, 0, 0]), 4).labels.tolist()
      [1, 1, 0, 0]
    """
    classes, class_ids = np.unique(labels, return_inverse=True)
    if count < len(classes):
        raise ValueError(
            f"the number of images must be at least {len(classes)}, one of each class, got {count}."
        )
    chosen = np.sort(balanced_sample(class_ids, count))
    return Split(images[chosen], labels[chosen])
