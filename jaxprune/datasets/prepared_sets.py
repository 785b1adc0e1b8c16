"""Image sets that TensorFlow Datasets has prepared in a folder: described, and opened without TensorFlow."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from jaxprune.text import closest

PREFIX = "tfds:"
"""How names of sets of TensorFlow Datasets begin."""

USUAL_SETS = (
    "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn_cropped", "imagenette", "imagenet2012",
)  # fmt: skip
"""Sets that help texts and messages name; any other set of images with class labels can be read as well."""

CACHE = "jaxprune_cache"
"""Folder in the data directory for what took time to read; it can be deleted at any time."""

SHRUNK = re.compile(r"(?:(.+)-)?shrunk(\d+)")
"""Name of the configuration of a set whose images were made smaller: its own one, and the most pixels of a side."""


class Records(Protocol):
    """The examples of one split, each a dictionary with its image still encoded."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """One example."""

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[Mapping[str, Any]]:
        """Some examples, faster than one by one."""


@dataclass(frozen=True, eq=False)
class PreparedSet:
    """A prepared set of images with class labels.

    Attributes:
      name: as it was asked for, without `tfds:`.
      data_dir: the data directory.
      folder: where the set lies in it.
      full_name: name, configuration and version.
      image_key: the image in each example.
      label_key: the label in each example.
      labels: key of each label that the set has -> names of its classes, the usual label first.
      image_shape: [H, W, C], None where images differ.
      num_examples: split -> number of examples.
      num_bytes: split -> bytes of its examples.
      checksums: of the archives that the library prepares the set from, in order; none where it knows none.
      citation: how to cite the set, or where it comes from.
    """

    name: str
    data_dir: Path
    folder: Path
    full_name: str
    image_key: str
    label_key: str
    labels: Mapping[str, tuple[str, ...]] = field(repr=False)
    image_shape: tuple[int | None, ...]
    num_examples: Mapping[str, int]
    num_bytes: Mapping[str, int]
    checksums: tuple[str, ...] = field(repr=False)
    citation: str = field(repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.labels[self.label_key]

    @property
    def with_usual_label(self) -> PreparedSet:
        """The same set with its usual label."""
        return replace(self, label_key=next(iter(self.labels)))

    def fingerprint(self, split: str) -> str:
        """Returns a short digest of what the images of a split are, reading none of them.

        It is made of name, version, label, split, numbers of examples and bytes, and checksums of the archives.

        Args:
          split: one of `num_examples`.

        Raises:
          ValueError: if there is no such split.
        """
        self.check_split(split)
        parts = (self.full_name, self.label_key, split, self.num_examples[split], self.num_bytes[split])
        return hashlib.sha256(" ".join(map(str, parts + self.checksums)).encode()).hexdigest()[:16]

    def cache_file(self, split: str, content: str) -> Path:
        """Returns the file for what was read of a split, named after all that it depends on.

        Args:
          split: one of `num_examples`.
          content: what the file holds.
        """
        name = self.full_name.replace("/", "-")
        return self.data_dir / CACHE / f"{name}-{split}-{content}-{self.fingerprint(split)}.npz"

    def check_split(self, split: str) -> None:
        """Checks that there is such a split.

        Raises:
          ValueError: if there is none, or it is empty.
        """
        if not self.num_examples.get(split):
            filled = [name for name, count in self.num_examples.items() if count]
            raise ValueError(
                f"{PREFIX}{self.name} needs one of the splits {', '.join(filled)} with examples, got "
                f"{split!r}.{closest(split, filled)}"
            )

    def open(self, split: str) -> Records:
        """Opens the records of a split.

        Args:
          split: one of `num_examples`.

        Raises:
          ImportError: if the packages for reading are missing.
          ValueError: if there is no such split, or a file of it is missing or damaged.
        """
        self.check_split(split)
        tfds = import_tfds()
        undecoded = {self.image_key: tfds.decode.SkipDecoding()}
        try:
            builder = tfds.builder_from_directory(self.folder)
            records: Records = builder.as_data_source(split=split, decoders=undecoded)
            self.read(records, range(1))
        except (OSError, RuntimeError, IndexError) as error:
            raise self._damaged(error) from error
        if len(records) != self.num_examples[split]:
            raise self._damaged(f"{len(records)} examples of {split} instead of {self.num_examples[split]}")
        return records

    def read(self, records: Records, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded images and labels of some records that `open` has opened.

        Args:
          records: what `open` returned.
          indices: which of them.

        Raises:
          ValueError: if a label is out of range, or the file is damaged.
        """
        try:
            examples = records.__getitems__(list(indices))
        except (OSError, RuntimeError, IndexError, ValueError) as error:
            raise self._damaged(error) from error
        pairs = [(bytes(example[self.image_key]), int(example[self.label_key])) for example in examples]
        for index, (_, label) in zip(indices, pairs, strict=True):
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"{PREFIX}{self.name} needs labels from 0 to {len(self.class_names) - 1}, got {label} for example "
                    f"{index} in {self.folder}. Splits without labels, such as the test split of imagenet2012, "
                    "cannot be used; otherwise prepare the set anew."
                )
        return pairs

    def _damaged(self, reason: object) -> ValueError:
        """The error for files of records that cannot be read."""
        set_name, *config, _ = self.full_name.split("/")
        return ValueError(
            f"{PREFIX}{self.name} needs whole files of records, got damaged ones in "
            f"{self.folder}: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}. Delete that "
            f"folder, and {how_to_prepare(set_name, ''.join(config), self.data_dir)}"
        )


def import_tfds() -> ModuleType:
    """Imports TensorFlow Datasets, which does not import TensorFlow for reading.

    Raises:
      ImportError: if it, or what it needs for reading, is not installed.
    """
    try:
        import array_record  # type: ignore[import-untyped]  # noqa: F401 - without it TensorFlow Datasets would fail at the first read
        import importlib_resources  # noqa: F401 - likewise
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"Names that begin with {PREFIX} need TensorFlow Datasets and array_record, got no "
            f"{error.name or 'such package'}. Run pip install 'jaxprune[data]'; it brings no TensorFlow."
        ) from error
    module: ModuleType = tensorflow_datasets
    return module


def import_pillow() -> ModuleType:
    """Imports Pillow's `Image`, which decodes and encodes images.

    Raises:
      ImportError: if it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading images needs Pillow, got no PIL. Run pip install 'jaxprune[data]'."
        ) from error
    return Image


def how_to_prepare(set_name: str, config: str, root: Path, version: str = "") -> str:
    """Returns the end of a message: the command that prepares a set.

    Args:
      set_name: the set.
      config: its configuration, "" for none.
      root: the data directory.
      version: a version that is asked for.

    Example:
      >>> how_to_prepare("imagenet2012", "shrunk256", Path("data"))
      'run `jaxprune prepare imagenet2012 --shrink 256 --data-dir data`.'
    """
    shrunk = SHRUNK.fullmatch(config)
    own_config = (shrunk[1] or "") if shrunk else config
    name = f"{set_name}/{own_config}" if own_config else set_name
    name += f":{version}" if version else ""
    name += f" --shrink {shrunk[2]}" if shrunk else ""
    return f"run `jaxprune prepare {name} --data-dir {shlex.quote(str(root))}`."
