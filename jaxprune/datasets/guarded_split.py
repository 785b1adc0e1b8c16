"""A test split that is opened once, by the final report, and leaves a record of it."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune.datasets.scaling import Scaling
from jaxprune.files import RunDirectoryError, atomic_file, read_json, sealed, to_text, unsealed


class Split(NamedTuple):
    """Examples and their labels: images [N, ...] float32 (or uint8, to be scaled), labels [N] int32, both read-only."""

    images: np.ndarray
    labels: np.ndarray


class AlreadyOpenedError(RuntimeError):
    """The test split was opened before, by the run that the record belongs to."""


class GuardedSplit:
    """A test split that can be read only through `open`, which leaves a record.

    Each look at test images makes their accuracy a little less of a test. So a run opens them once, at its end, and
    its record says when; a second opening with the same record must be asked for and is added to it.

    Args:
      name: the dataset's name, written to the record.
      split: the images and labels to guard.

    Example:
      >>> import tempfile
      >>> guarded = GuardedSplit("mine", Split(np.zeros((3, 4), np.float32), np.arange(3)))
      >>> guarded
      GuardedSplit('mine', 3 examples, closed)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     images, labels = guarded.open(Path(folder) / "test_opened.json")
      >>> labels.tolist()
      [0, 1, 2]
    """

    def __init__(self, name: str, split: Split) -> None:
        self.name = name
        self.num_examples = len(split.labels)
        self.__split = split

    def __repr__(self) -> str:
        return f"GuardedSplit({self.name!r}, {self.num_examples} examples, closed)"

    def check_fits(self, image_shape: tuple[int, ...], num_classes: int, *, has_pixels: bool = False) -> None:
        """Checks shape, kind and labels of the test split without opening it, so that a run does not fail at its end.

        Args:
          image_shape: of one training image.
          num_classes: labels must be below it.
          has_pixels: whether training images are uint8 that get scaled; those of the test have to be alike.

        Raises:
          ValueError: if a network for such images and classes could not be measured on the test split.
        """
        images, labels = (np.asarray(array) for array in self.__split)
        owner = f"{self.name}, test split"
        if images.shape[1:] != image_shape or labels.shape != images.shape[:1] or len(labels) == 0:
            raise ValueError(
                f"{owner}: needs images of shape [N, {', '.join(map(str, image_shape))}] as in training, and a label "
                f"for each, got shapes {images.shape} and {labels.shape}."
            )
        if has_pixels:
            if images.dtype != np.uint8:
                raise ValueError(
                    f"{owner}: needs uint8 images, as those of training, which get scaled alike, got dtype "
                    f"{images.dtype}. Make all splits from one dataset."
                )
        elif not np.issubdtype(images.dtype, np.floating) or not np.isfinite(images).all():
            what = "NaN or infinity" if np.issubdtype(images.dtype, np.floating) else f"dtype {images.dtype}"
            raise ValueError(
                f"{owner}: needs finite floating-point images, scaled as those of training, got {what}. "
                "Make it with Dataset.from_arrays(train=..., validation=..., test=...), which scales all alike."
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{owner}: needs whole-number labels from 0 to {num_classes - 1}, as in training, got "
                f"{labels.min()} to {labels.max()} ({labels.dtype}). Number the classes alike in all splits."
            )

    def scaled(self, scaling: Scaling) -> GuardedSplit:
        """Returns the same test split with scaled images, as closed as this one.

        Args:
          scaling: what the images are scaled by.
        """
        images, labels = self.__split
        return GuardedSplit(self.name, Split(scaling(images), labels))

    def open(self, record: str | os.PathLike[str], *, reopen: bool = False) -> Split:
        """Returns the test images and labels, after noting in the file `record` that they were opened.

        Args:
          record: a JSON file to write, one for each run and dataset; its folder must exist. It holds the dataset's
            name, number and digest of the test examples and the times of opening (UTC).
          reopen: whether an existing record is added to instead of refused, to render a report again, for instance.

        Returns:
          The images and labels, read-only.

        Raises:
          AlreadyOpenedError: if `record` exists and `reopen` is false.
          ValueError: if `record` exists and is the record of another test split.
          RunDirectoryError: if it exists and is no record, is damaged or was changed.
          OSError: if the record cannot be written; the split stays closed.
        """
        path = Path(record)
        digest = hashlib.sha256(np.ascontiguousarray(self.__split.images).tobytes())
        digest.update(np.ascontiguousarray(self.__split.labels).tobytes())
        entry: dict[str, object] = {
            "dataset": self.name,
            "num_examples": self.num_examples,
            "digest": digest.hexdigest()[:16],
        }
        is_reopened = reopen and path.exists()
        times = self._earlier_openings(path, entry) if is_reopened else []
        times.append(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        try:
            with atomic_file(path, overwrite=is_reopened) as temporary:
                temporary.write_text(
                    to_text(sealed({**entry, "opened": times}), indent=2) + "\n", encoding="utf-8"
                )
        except FileExistsError:
            times = self._earlier_openings(path, entry)
            raise AlreadyOpenedError(
                f"The test split of {self.name} needs to be opened once a run, got a record of {times[0]} in {path}. "
                "Pass reopen=True to add to that record, knowing that tuning after a look at test images spoils them."
            ) from None
        return self.__split

    def _earlier_openings(self, path: Path, entry: Mapping[str, object]) -> list[str]:
        """Times of opening in the record at `path`, after checking that it is a record of this split."""
        record, times = _read_record(path)
        if any(record.get(key) != value for key, value in entry.items()):
            dataset = record.get("dataset")
            same_name = ", but with other images" if dataset == self.name else ""
            raise ValueError(
                f"The test split of {self.name} needs a record of its own, got one of {dataset!r}{same_name} in "
                f"{path}. Name another file for the record."
            )
        return times


def read_openings(path: Path) -> tuple[str, ...]:
    """Returns the times in a record that `GuardedSplit.open` has written.

    Args:
      path: the record.

    Raises:
      RunDirectoryError: if the file is no record, is damaged or was changed.
    """
    _, times = _read_record(path)
    return tuple(times)


def _read_record(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads a record; returns its content, and the times in it."""
    remedy = (
        "Restore it from a backup, or delete it: then nobody can tell any more when the test images were opened. If it "
        "never was a record, name another file for the record."
    )
    record = unsealed(read_json(path, remedy), path, remedy)
    times = record.get("opened")
    if not isinstance(times, list) or not times or not all(isinstance(time, str) for time in times):
        raise RunDirectoryError(
            f"{path} needs the times at which test images were opened, but it is damaged or another file (got "
            f"{times!r}). {remedy}"
        )
    return record, times
