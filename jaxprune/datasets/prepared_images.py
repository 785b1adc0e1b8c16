"""The images of a prepared set one by one, still encoded: what is too large for memory, or of many sizes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.datasets.array_cache import cached_arrays
from jaxprune.datasets.prepared_sets import PreparedSet, Records

CHUNK = 1_000
"""Records that are read at a time: one by one takes eight times as long, all at once the memory of all."""


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """The images of one split of a prepared set; an `EncodedImages`.

    Its files are opened at the first read, and what is opened is not pickled.

    Args:
      prepared: the set, see `find_prepared`.
      split: one of its splits.

    Raises:
      ValueError: if there is no such split.
    """

    prepared: PreparedSet
    split: str

    def __post_init__(self) -> None:
        self.prepared.check_split(self.split)

    def __getstate__(self) -> Mapping[str, object]:
        return {"prepared": self.prepared, "split": self.split}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.prepared.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.prepared.class_names

    @property
    def fingerprint(self) -> str:
        """A short digest of what the images are, see `PreparedSet.fingerprint`."""
        return self.prepared.fingerprint(self.split)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[N] int32 labels, read-only; all records are read once, and the labels kept in the data directory."""
        file = self.prepared.cache_file(self.split, "labels")
        return cached_arrays(file, self._read_labels, {"labels": np.int32}, length=len(self))["labels"]

    def __len__(self) -> int:
        """Number of images."""
        return self.prepared.num_examples[self.split]

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the encoded image at an index in [0, N), and its label."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded images and labels at some indices, faster than one by one."""
        return self.prepared.read(self._records, indices)

    def name_of(self, index: int) -> str:
        """Says where an image is."""
        return f"example {index} of split {self.split} in {self.prepared.folder}"

    @functools.cached_property
    def _records(self) -> Records:
        """The opened files."""
        return self.prepared.open(self.split)

    def _read_labels(self) -> Mapping[str, np.ndarray]:
        """The labels of all records."""
        chunks = (range(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK))
        labels = [label for chunk in chunks for _, label in self.read_many(chunk)]
        return {"labels": np.array(labels, np.int32)}
