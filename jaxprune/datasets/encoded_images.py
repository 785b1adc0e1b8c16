"""Images that stay encoded until they are needed: the sources that an input pipeline reads from.

A source tells its labels and classes at once, and gives the bytes of one JPEG or PNG file after the other. It is small
to pickle and opens its files at the first read, so that worker processes can have copies of it.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxprune.observation.sample import rank_in_class

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Ends of the names of image files, in small or capital letters."""


class EncodedImages(Protocol):
    """A sequence of encoded images with labels.

    Attributes:
      num_classes: labels are in [0, num_classes).
      class_names: one name for each class.
      labels: [N] int32, read-only; read once, without decoding an image.
      fingerprint: a short digest of what the images are, without reading them.
    """

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""

    @property
    def labels(self) -> np.ndarray:
        """[N] int32 labels."""

    @property
    def fingerprint(self) -> str:
        """A short digest of what the images are."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the encoded image at an index in [0, N), and its label."""

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded images and labels at some indices, faster than one by one."""

    def name_of(self, index: int) -> str:
        """Says where an image is, for messages about it."""


@dataclass(frozen=True, eq=False)
class FolderImages:
    """The images of a folder that has a folder for each class, `folder/CLASS/*.jpg`; see `read_folder`.

    Args:
      folder: the folder.
      class_names: names of the folders inside, sorted; class k is the k-th.
      files: paths of the images inside the folder, by class and then by name.
      labels: [N] int32.
    """

    folder: Path
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short digest of the names and sizes of all files."""
        digest = hashlib.sha256(b"folder")
        for file in self.files:
            digest.update(f"{file} {(self.folder / file).stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the content of a file, and its label."""
        return (self.folder / self.files[index]).read_bytes(), int(self.labels[index])

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the contents of some files, and their labels."""
        return [self.read(index) for index in indices]

    def name_of(self, index: int) -> str:
        """Returns the path of a file."""
        return str(self.folder / self.files[index])


def read_folder(folder: str | os.PathLike[str], *, class_names: Sequence[str] | None = None) -> FolderImages:
    """Lists the images of a folder that has a folder for each class, without reading one.

    Hidden files, whose names begin with a dot, are left out; any other file has to be an image.

    Args:
      folder: a folder with `CLASS/*.jpg`, `.jpeg` or `.png`.
      class_names: the classes that there have to be, those of the training images say; by default those there are.

    Returns:
      The images, sorted by class and name.

    Raises:
      ValueError: if there is no such folder, it has fewer than two folders or others than `class_names`, one of these
        is empty, or something in them is no image or has a name that is no text.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name in ("cat", "dog"):
      ...     (folder / name).mkdir()
      ...     _ = (folder / name / "1.png").write_bytes(b"...")
      >>> images = read_folder(folder)
      >>> images.class_names, images.labels.tolist(), images.read(1)
      (('cat', 'dog'), [0, 1], (b'...', 1))
    """
    place = Path(folder)
    if not place.is_dir():
        reason = "a file" if place.exists() else "nothing there"
        raise ValueError(
            f"an image folder needs a folder with a folder for each class, got {place}: {reason}."
        )
    names = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(names) < 2:
        raise ValueError(
            f"{place}: needs a folder for each of two or more classes, got {', '.join(names) or 'none'}. "
            "Put the images into folders named after their classes."
        )
    if class_names is not None and list(class_names) != names:
        differing = sorted(set(class_names) ^ set(names))
        raise ValueError(
            f"{place}: needs the same classes as the training images, got {len(names)} instead of "
            f"{len(class_names)}, and in one of the two only: {_listed(differing)}."
        )
    files = {name: _image_files(place, name) for name in names}
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise ValueError(
            f"{place}: needs at least one image of each class, got none in {_listed(empty)}. Remove empty folders, or "
            f"add images named *{', *'.join(SUFFIXES)}."
        )
    labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(found) for found in files.values()])
    labels.flags.writeable = False
    return FolderImages(
        place, tuple(names), tuple(file for found in files.values() for file in found), labels
    )


def _image_files(folder: Path, class_name: str) -> list[str]:
    """Sorted paths, inside the folder, of the images of one class."""
    found = sorted(entry.name for entry in os.scandir(folder / class_name) if entry.name[0] != ".")
    unreadable = [repr(name) for name in (class_name, *found) if not _is_text(name)]
    if unreadable:
        raise ValueError(
            f"{folder}: needs names in UTF-8, got {_listed(unreadable)}. Rename these files or folders."
        )
    others = [name for name in found if not name.lower().endswith(SUFFIXES)]
    if others:
        raise ValueError(
            f"{folder / class_name}: needs images named *{', *'.join(SUFFIXES)} and nothing else, got "
            f"{_listed(others)}. Convert or remove what is no such image."
        )
    return [f"{class_name}/{name}" for name in found]


def _is_text(name: str) -> bool:
    """Whether a file's name can be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True, eq=False)
class SomeImages:
    """Some images of another source, in a given order.

    Args:
      source: the other source.
      rows: [N] whole numbers, indices into it.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name in ("cat", "dog"):
      ...     (folder / name).mkdir()
      ...     _ = (folder / name / "1.png").write_bytes(name.encode())
      >>> SomeImages(read_folder(folder), np.array([1])).read(0)
      (b'dog', 1)
    """

    source: EncodedImages
    rows: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray:
        """[N] int32 labels."""
        return self.source.labels[self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short digest of the source and of the rows."""
        rows = np.ascontiguousarray(self.rows, np.int64)
        return hashlib.sha256(self.source.fingerprint.encode() + rows.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the encoded image at an index in [0, N), and its label."""
        return self.source.read(int(self.rows[index]))

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded images and labels at some indices."""
        return self.source.read_many([int(self.rows[index]) for index in indices])

    def name_of(self, index: int) -> str:
        """Says where an image is."""
        return self.source.name_of(int(self.rows[index]))


def cut_validation(source: EncodedImages, *, num_per_class: int) -> tuple[SomeImages, SomeImages]:
    """Cuts validation images out of training images: the last ones of each class that has images, equally many.

    Args:
      source: the training images.
      num_per_class: number of validation images of each class, >= 1.

    Returns:
      The rest, and the validation images, both in their old order; the same ones on every machine.

    Raises:
      ValueError: if a class that has images would keep none for training.
    """
    labels = source.labels
    counts = np.bincount(labels, minlength=source.num_classes)
    small = [source.class_names[k] for k in np.flatnonzero((counts > 0) & (counts <= num_per_class))]
    if num_per_class < 1 or small:
        raise ValueError(
            f"validation images need to be at least one of each class, and fewer than there are, got {num_per_class} a "
            f"class{f', and no more of {_listed(small)}' if small else ''}."
        )
    is_validation = rank_in_class(labels) >= counts[labels] - num_per_class
    return (
        SomeImages(source, np.flatnonzero(~is_validation)),
        SomeImages(source, np.flatnonzero(is_validation)),
    )
