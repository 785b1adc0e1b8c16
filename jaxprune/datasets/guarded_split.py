"""The test split behind a guard: opened once, by the final report, and on record."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Examples and their labels: images [N, ...] float32, labels [N] int32, both read-only."""

    images: np.ndarray
    labels: np.ndarray


class AlreadyOpenedError(RuntimeError):
    """The test split was opened before, by the run that the record belongs to."""


class GuardedSplit:
    """A test split that only `open` hands out, leaving a record of it.

    Each look at test images makes their accuracy a little less of a test. So a run opens them once, at its end, and
    its record says when; a second opening under the same record must be asked for by name and is counted.

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

    def open(self, record: str | os.PathLike[str], *, reopen: bool = False) -> Split:
        """The test images and labels, after noting in the file `record` that they were opened.

        Args:
          record: a JSON file to write, one for each run and dataset; its folder must exist. It holds the dataset's
            name, number and digest of the test examples and the times of opening (UTC).
          reopen: whether an existing record is added to rather than refused, to render a report again, for instance.

        Returns:
          The images and labels, read-only.

        Raises:
          AlreadyOpenedError: if `record` exists and `reopen` is false.
          ValueError: if `record` exists and is not a record of this test split.
          OSError: if the record cannot be written; the split stays closed.
        """
        path = Path(record)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"dataset": self.name, "num_examples": self.num_examples, "digest": _digest(self.__split)}
        if reopen and path.exists():
            opened = self._earlier_openings(path, entry)
            _write(path, {**entry, "opened": [*opened, now]}, replace=True)
            return self.__split
        try:
            _write(path, {**entry, "opened": [now]}, replace=False)
        except FileExistsError:
            opened = self._earlier_openings(path, entry)
            raise AlreadyOpenedError(
                f"The test split of {self.name} needs to be opened once a run, got a record of {opened[0]} in {path}. "
                "Pass reopen=True to add to that record, knowing that tuning after a look at test images spoils them."
            ) from None
        return self.__split

    def _earlier_openings(self, path: Path, entry: dict[str, object]) -> list[str]:
        """Times of opening in the record at `path`, once it is one of this split."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        same = isinstance(found, dict) and all(found.get(key) == value for key, value in entry.items())
        if not same or not found.get("opened"):
            came = (
                f"one of {found['dataset']!r}"
                if isinstance(found, dict) and "dataset" in found
                else "another file"
            )
            raise ValueError(
                f"The test split of {self.name} needs a record of its own, got {came} in {path}. "
                "Name another file for the record."
            )
        return list(found["opened"])


def _digest(split: Split) -> str:
    """A short digest of images and labels."""
    digest = hashlib.sha256(np.ascontiguousarray(split.images).tobytes())
    digest.update(np.ascontiguousarray(split.labels).tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, content: dict[str, object], *, replace: bool) -> None:
    """Writes JSON as a whole or not at all; without `replace`, an existing file raises FileExistsError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
