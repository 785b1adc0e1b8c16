"""From a step's number to its batch on the host, as NumPy arrays.

A maker is a pure function of the number and can be pickled, so threads and processes can make batches in any order.
Every batch has the same shape: what is missing in the last batch of a test, and every image that cannot be decoded, is
a black image with label -1 and weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxprune.datasets.decoding import (
    NUM_DRAWS,
    Decoder,
    Unreadable,
    decode_for_testing,
    decode_for_training,
)
from jaxprune.datasets.encoded_images import EncodedImages
from jaxprune.datasets.epoch_order import epoch_draws, epoch_order

MARGIN = 4
"""Pixels by which images in memory are padded on each side before they are cropped at a random place."""

_NUM_SHIFT_DRAWS = 3
"""Uniform numbers for one image in memory: shift down, shift to the right, whether to mirror."""


class Failure(NamedTuple):
    """An image that could not be decoded: where it is, and the reason."""

    name: str
    reason: str


class HostBatch(NamedTuple):
    """One host's rows of a batch.

    Attributes:
      images: [B, H, W, C] uint8, or as the images in memory are; zeros where there is no image.
      labels: [B] int32, -1 where there is no image.
      weights: [B] float32, 1, or 0 where there is no image.
      failures: the images that could not be decoded.
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    failures: tuple[Failure, ...] = ()


BatchMaker = Callable[[int], HostBatch]
"""Makes the batch of a number from 0; a pure function."""


@dataclass(frozen=True)
class Rows:
    """Which rows of each batch a host makes: a block of them, and the blocks of all hosts in order are the batch.

    Args:
      batch_size: rows of the batch on all hosts together.
      shard_index: number of the host, from 0.
      shard_count: number of hosts.

    Example:
      >>> rows = Rows(8, 1, 2)
      >>> rows.first, rows.last, rows.count
      (4, 8, 4)
    """

    batch_size: int
    shard_index: int = 0
    shard_count: int = 1

    @property
    def count(self) -> int:
        """Number of rows of this host."""
        return self.batch_size // self.shard_count

    @property
    def first(self) -> int:
        """The first row of this host."""
        return self.shard_index * self.count

    @property
    def last(self) -> int:
        """The row after the last one of this host."""
        return self.first + self.count

    def places(self, step: int, num_examples: int) -> tuple[int, int, int]:
        """Finds a training step: its epoch, and this host's first place and place after the last in it.

        Each epoch leaves out its last, incomplete batch.

        Args:
          step: number of the step, from 0.
          num_examples: number of examples, >= batch_size.

        Example:
          >>> Rows(8, 1, 2).places(3, num_examples=20)
          (1, 12, 16)
        """
        epoch, batch = divmod(step, num_examples // self.batch_size)
        return epoch, batch * self.batch_size + self.first, batch * self.batch_size + self.last

    def in_order(self, number: int, num_examples: int) -> np.ndarray:
        """Lists the examples of this host in a batch of a test, fewer than `count` in the last one.

        Args:
          number: number of the batch, from 0.
          num_examples: number of examples, >= 1.

        Example:
          >>> Rows(8, 1, 2).in_order(2, num_examples=22).tolist()
          [20, 21]
        """
        first, last = number * self.batch_size + self.first, number * self.batch_size + self.last
        return np.arange(first, min(last, num_examples))


# Grain asks for the text of what it runs, which would hold all files' names or pixels: no `repr` of the fields.


@dataclass(frozen=True, eq=False, repr=False)
class EncodedTraining:
    """Makes training batches of encoded images: shuffled, cropped at random, mirrored in half of the cases."""

    source: EncodedImages
    rows: Rows
    seed: int
    image_size: int
    decoder: Decoder

    def __call__(self, step: int) -> HostBatch:
        """Makes the batch of a step."""
        epoch, first, last = self.rows.places(step, len(self.source))
        draws = epoch_draws(self.seed, epoch, first, last, NUM_DRAWS).tolist()
        indices = epoch_order(self.seed, epoch, len(self.source))[first:last]

        def decode(row: int, encoded: bytes) -> np.ndarray | Unreadable:
            return decode_for_training(encoded, draws[row], image_size=self.image_size, decoder=self.decoder)

        return _decoded(self.source, indices, decode, self.rows.count, self.image_size)


@dataclass(frozen=True, eq=False, repr=False)
class EncodedTesting:
    """Makes test batches of encoded images: in order, resized and cropped at the centre."""

    source: EncodedImages
    rows: Rows
    image_size: int
    resize: int
    decoder: Decoder

    def __call__(self, number: int) -> HostBatch:
        """Makes a batch."""

        def decode(row: int, encoded: bytes) -> np.ndarray | Unreadable:
            return decode_for_testing(
                encoded, image_size=self.image_size, resize=self.resize, decoder=self.decoder
            )

        indices = self.rows.in_order(number, len(self.source))
        return _decoded(self.source, indices, decode, self.rows.count, self.image_size)


def _decoded(
    source: EncodedImages,
    indices: np.ndarray,
    decode: Callable[[int, bytes], np.ndarray | Unreadable],
    count: int,
    image_size: int,
) -> HostBatch:
    """Reads and decodes the examples of a batch of `count` rows."""
    batch = _empty(count, (image_size, image_size, 3))
    failures = []
    examples = [int(index) for index in indices]
    for row, (encoded, label) in enumerate(source.read_many(examples)):
        image = decode(row, encoded)
        if isinstance(image, Unreadable):
            failures.append(Failure(source.name_of(examples[row]), image.reason))
        else:
            batch.images[row], batch.labels[row], batch.weights[row] = image, label, 1
    return batch._replace(failures=tuple(failures))


@dataclass(frozen=True, eq=False, repr=False)
class ArrayTraining:
    """Makes training batches of images in memory: shuffled, and shifted and mirrored at random if `augment` says so."""

    images: np.ndarray
    labels: np.ndarray
    rows: Rows
    seed: int
    augment: bool

    def __call__(self, step: int) -> HostBatch:
        """Makes the batch of a step."""
        epoch, first, last = self.rows.places(step, len(self.images))
        indices = epoch_order(self.seed, epoch, len(self.images))[first:last]
        images = self.images[indices]
        if self.augment:
            images = shift_and_mirror(images, epoch_draws(self.seed, epoch, first, last, _NUM_SHIFT_DRAWS))
        return HostBatch(images, self.labels[indices], np.ones(len(indices), np.float32))


@dataclass(frozen=True, eq=False, repr=False)
class ArrayTesting:
    """Makes test batches of images in memory, in order and as they are."""

    images: np.ndarray
    labels: np.ndarray
    rows: Rows

    def __call__(self, number: int) -> HostBatch:
        """Makes a batch."""
        indices = self.rows.in_order(number, len(self.images))
        batch = _empty(self.rows.count, self.images.shape[1:], self.images.dtype)
        batch.images[: len(indices)] = self.images[indices]
        batch.labels[: len(indices)] = self.labels[indices]
        batch.weights[: len(indices)] = 1
        return batch


def shift_and_mirror(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Pads each image with four black pixels on all sides, crops it back at some place, mirrors it or not.

    Args:
      images: [N, H, W, C] of any type.
      draws: [N, 3] numbers in [0, 1): the place from top to bottom and from left to right; mirrored if the third is
        below a half.

    Returns:
      [N, H, W, C] of the same type.

    Example:
      >>> image = np.arange(4).reshape(1, 1, 4, 1)
      >>> shift_and_mirror(image, np.array([[0.5, 0.9, 0.7]])).ravel().tolist()
      [0, 0, 0, 0]
      >>> shift_and_mirror(image, np.array([[0.5, 0.6, 0.2]])).ravel().tolist()
      [0, 3, 2, 1]

    Source:
      He et al., Deep Residual Learning for Image Recognition, 2016, sec. 4.2.
    """
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    corners = (draws[:, :2] * (2 * MARGIN + 1)).astype(int)
    down = corners[:, 0, None] + np.arange(height)
    right = corners[:, 1, None] + np.arange(width)
    right = np.where(draws[:, 2, None] < 0.5, right[:, ::-1], right)
    rows = np.arange(len(images))[:, None, None]
    return padded[rows, down[:, :, None], right[:, None, :]]


def _empty(count: int, shape: tuple[int, ...], dtype: np.dtype | type = np.uint8) -> HostBatch:
    """A batch without any image."""
    return HostBatch(
        np.zeros((count, *shape), dtype), np.full(count, -1, np.int32), np.zeros(count, np.float32)
    )
