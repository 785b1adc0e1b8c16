"""The images of a transfer: in memory, or decoded batch by batch, with the same methods.

Validation images are cut from training images. Test images stay behind their guard until all networks are trained.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import jax
import numpy as np

from jaxprune.datasets.dataset import DATASETS, Dataset, load_dataset
from jaxprune.datasets.decoding import choose_decoder
from jaxprune.datasets.encoded_images import EncodedImages, SomeImages, cut_validation, read_folder
from jaxprune.datasets.guarded_split import GuardedSplit, Split
from jaxprune.datasets.input_pipeline import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batches,
    array_batches,
    array_evaluation_batches,
    evaluation_batches,
    train_batches,
)
from jaxprune.datasets.prepared_folders import find_prepared
from jaxprune.datasets.prepared_images import PreparedImages
from jaxprune.datasets.prepared_sets import PREFIX
from jaxprune.datasets.small_sets import MOST_BYTES, test_split
from jaxprune.observation.sample import balanced_sample
from jaxprune.training.data_parallel import Pixels

Part = Literal["validation", "test"]

IMAGE_SIZE = 224
"""Side of images of many sizes, unless another one is asked for."""

_NUM_VALIDATION = 10
"""Validation images of each class of a large set: 10,000 of ILSVRC-2012."""


class TransferData(Protocol):
    """Images with labels, in batches.

    Attributes:
      name: for tables.
      num_classes: labels are in [0, num_classes).
      image_shape: of one image in a batch.
      num_train: number of training images.
      num_validation: number of validation images.
      fingerprint: a short digest of what the images are.
      source: where they come from.
      test: the guarded test split, or None; what it guards is for `part_batches`.
      num_bytes: memory on the host that all of them take; 0 if they stay on the disk.
    """

    @property
    def name(self) -> str:
        """The name."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""

    @property
    def num_train(self) -> int:
        """Number of training images."""

    @property
    def num_validation(self) -> int:
        """Number of validation images."""

    @property
    def fingerprint(self) -> str:
        """A short digest."""

    @property
    def source(self) -> str:
        """Where the images come from."""

    @property
    def test(self) -> GuardedSplit | None:
        """The guarded test split."""

    @property
    def num_bytes(self) -> int:
        """Memory on the host."""

    @property
    def pixels(self) -> Pixels:
        """How the images of a batch become inputs of a network."""

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        start_step: int,
        sharding: jax.sharding.Sharding | None,
    ) -> Batches:
        """Returns the training batches from a step on."""

    def part_batches(
        self, part: Part, *, batch_size: int, sharding: jax.sharding.Sharding | None, opened: Split | None
    ) -> Batches:
        """Returns all validation or test images in batches; `opened` is what the guard of the test split gave."""

    def calibration(self, num_images: int) -> Split:
        """Returns training images to observe networks on, equally many of each class, as networks take them."""


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Images in memory, uint8 with a scaling or floating-point numbers as they are.

    Args:
      dataset: the images.
      name: for tables.
    """

    dataset: Dataset
    name: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.dataset.image_shape

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.dataset.train.labels)

    @property
    def num_validation(self) -> int:
        """Number of validation images."""
        return len(self.dataset.validation.labels)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the data set."""
        return self.dataset.fingerprint

    @property
    def source(self) -> str:
        """The source of the data set."""
        return self.dataset.source

    @property
    def test(self) -> GuardedSplit | None:
        """The guarded test split."""
        return self.dataset.test

    @property
    def num_bytes(self) -> int:
        """Memory of training and validation images."""
        return self.dataset.train.images.nbytes + self.dataset.validation.images.nbytes

    @property
    def pixels(self) -> Pixels:
        """The scaling of the data set; for standardised images one that changes nothing."""
        scaling = self.dataset.scaling
        if scaling is None:
            return Pixels((0.0,), (1 / 255,))
        mean, std = np.asarray(scaling.mean) / 255, 1 / (255 * np.asarray(scaling.scale))
        return Pixels(tuple(mean.tolist()), tuple(std.tolist()))

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        start_step: int,
        sharding: jax.sharding.Sharding | None,
    ) -> Batches:
        """Returns the training batches from a step on; the step of the training shifts and mirrors images."""
        images, labels = self.dataset.train
        return array_batches(
            images,
            labels,
            batch_size=batch_size,
            seed=seed,
            num_steps=num_steps,
            start_step=start_step,
            augment=False,
            sharding=sharding,
        )

    def part_batches(
        self, part: Part, *, batch_size: int, sharding: jax.sharding.Sharding | None, opened: Split | None
    ) -> Batches:
        """Returns all validation or test images in batches."""
        images, labels = self.dataset.validation if opened is None else opened
        return array_evaluation_batches(images, labels, batch_size=batch_size, sharding=sharding)

    def calibration(self, num_images: int) -> Split:
        """Returns training images to observe networks on."""
        images, labels = self.dataset.train
        rows = np.sort(balanced_sample(labels, num_images))
        return Split(_as_inputs(self.pixels, images[rows]), labels[rows])


@dataclass(frozen=True, eq=False)
class EncodedData:
    """Images that stay encoded on the disk, decoded and cropped batch by batch.

    Args:
      name: for tables.
      source: where they come from.
      train: training images.
      validation: validation images.
      held_out: test images, or None; read only through `test`.
      image_size: side of the images of a batch.
      workers: processes that decode, or 0 to use threads.
      threads: threads that decode if there are no processes; 0 decodes when a batch is asked for.
    """

    name: str
    source: str
    train: EncodedImages
    validation: EncodedImages
    held_out: EncodedImages | None
    image_size: int
    workers: int = 0
    threads: int = 0
    num_bytes: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.image_size, self.image_size, 3)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def num_validation(self) -> int:
        """Number of validation images."""
        return len(self.validation)

    @property
    def fingerprint(self) -> str:
        """A short digest of both parts, of the size, and of who decodes: pixels differ between decoders."""
        text = f"{self.train.fingerprint} {self.validation.fingerprint} {self.image_size} {choose_decoder()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def test(self) -> GuardedSplit | None:
        """Guards the rows of the test images."""
        if self.held_out is None:
            return None
        labels = self.held_out.labels
        return GuardedSplit(self.name, Split(np.arange(len(labels)), labels))

    @property
    def pixels(self) -> Pixels:
        """ImageNet's mean and standard deviation."""
        return Pixels(IMAGENET_MEAN, IMAGENET_STD)

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        start_step: int,
        sharding: jax.sharding.Sharding | None,
    ) -> Batches:
        """Returns the training batches from a step on, cropped at random and mirrored."""
        return train_batches(
            self.train,
            batch_size=batch_size,
            image_size=self.image_size,
            seed=seed,
            num_steps=num_steps,
            start_step=start_step,
            threads=self.threads,
            workers=self.workers,
            sharding=sharding,
        )

    def part_batches(
        self, part: Part, *, batch_size: int, sharding: jax.sharding.Sharding | None, opened: Split | None
    ) -> Batches:
        """Returns all validation or test images in batches, resized and cropped at the centre."""
        source = self.validation
        if opened is not None:
            assert self.held_out is not None, "the guard guards these"
            source = SomeImages(self.held_out, opened.images)
        return self._in_order(source, batch_size, sharding)

    def calibration(self, num_images: int) -> Split:
        """Returns training images to observe networks on, cropped at the centre, without damaged ones."""
        labels = self.train.labels
        rows = np.sort(balanced_sample(labels, num_images))
        found = []
        with self._in_order(SomeImages(self.train, rows), min(256, len(rows)), None) as batches:
            for images, batch_labels, weights in batches:
                is_real = np.asarray(weights) > 0
                inputs = _as_inputs(self.pixels, np.asarray(images)[is_real])
                found.append((inputs, np.asarray(batch_labels)[is_real]))
        return Split(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _in_order(
        self, source: EncodedImages, batch_size: int, sharding: jax.sharding.Sharding | None
    ) -> Batches:
        """Batches of images in their order."""
        return evaluation_batches(
            source,
            batch_size=batch_size,
            image_size=self.image_size,
            threads=self.threads,
            workers=self.workers,
            sharding=sharding,
        )


def _as_inputs(pixels: Pixels, images: np.ndarray) -> np.ndarray:
    """Images as a network takes them, on the host, where nothing compiles."""
    return np.asarray(pixels(cast(jax.Array, images)))


def open_data(
    data: str | Dataset,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    workers: int = 0,
) -> TransferData:
    """Opens the images of a transfer.

    Sets of images of one size that fit into memory are read whole. Others, and all for which `image_size` is given, are
    decoded batch by batch; ten of each class (a fifth of small classes) become validation images, unless a folder has
    validation images of its own.

    Args:
      data: a `Dataset`, or its name as `load_dataset` takes it.
      data_dir: where prepared sets are.
      image_size: side that images of many sizes get.
      workers: processes that decode images which stay on the disk; 0 uses as many threads as there are cores, up to 8.

    Returns:
      The images.

    Raises:
      ValueError: for a name that stands for nothing, images that are not prepared or damaged, or an image size for
        images in memory.
      ImportError: if packages for reading are missing.
    """
    if isinstance(data, Dataset):
        return ArrayData(data, data.name)
    threads = 0 if workers else min(8, os.cpu_count() or 1)
    if data.startswith(PREFIX):
        prepared = find_prepared(data, data_dir)
        sizes = [size for size in prepared.image_shape if size is not None]
        num_pixels = int(np.prod(sizes)) if len(sizes) == len(prepared.image_shape) == 3 else 0
        is_small = 0 < num_pixels * sum(prepared.num_examples.values()) <= MOST_BYTES
        if image_size is not None or not is_small:
            name = test_split(prepared)
            held_out = None if name is None else PreparedImages(prepared, name)
            source = f"TensorFlow Datasets, {prepared.full_name}"
            train = PreparedImages(prepared, "train")
            return _encoded(data, source, train, held_out, image_size or IMAGE_SIZE, workers, threads)
    elif image_size is not None and Path(data).is_dir() and data not in DATASETS:
        train_folder = read_folder(Path(data) / "train")
        validation, held_out_folder = (
            read_folder(folder, class_names=train_folder.class_names) if folder.is_dir() else None
            for folder in (Path(data) / "validation", Path(data) / "test")
        )
        name = Path(data).resolve().name
        if validation is not None:
            return EncodedData(
                name, name, train_folder, validation, held_out_folder, image_size, workers, threads
            )
        return _encoded(name, name, train_folder, held_out_folder, image_size, workers, threads)
    elif image_size is not None:
        raise ValueError(
            f"an image size is for images of many sizes, in a folder or a set of TensorFlow Datasets, got {image_size} "
            f"for {data!r}. Leave it out."
        )
    dataset = load_dataset(data, data_dir=data_dir)
    return ArrayData(dataset, dataset.name)


def _encoded(
    name: str,
    source: str,
    train: EncodedImages,
    held_out: EncodedImages | None,
    image_size: int,
    workers: int,
    threads: int,
) -> EncodedData:
    """Images on the disk, with validation images cut from those for training."""
    smallest = int(np.bincount(train.labels, minlength=train.num_classes)[np.unique(train.labels)].min())
    num_per_class = min(_NUM_VALIDATION, max(1, smallest // 5))
    rest, validation = cut_validation(train, num_per_class=num_per_class)
    return EncodedData(name, source, rest, validation, held_out, image_size, workers, threads)
