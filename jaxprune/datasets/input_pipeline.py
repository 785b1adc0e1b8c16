"""Batches on the device, made ahead of time by threads or processes, the same ones however many there are.

    with train_batches(source, batch_size=1024, seed=0, num_steps=112_600, start_step=40_000, workers=16) as batches:
        for images, labels, weights in batches:
            state = step(state, normalised(images), labels, weights)

A batch is a pure function of seed and step, so the step's number is all the state there is: a run that starts at step
s gets what the uninterrupted run got from step s on. Grain runs the threads and processes; a batch is made by one of
them as a whole, and each may be ahead by two batches.
"""

from __future__ import annotations

import warnings
from collections import deque
from types import TracebackType
from typing import Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.datasets.batch_makers import (
    ArrayTesting,
    ArrayTraining,
    BatchMaker,
    EncodedTesting,
    EncodedTraining,
    HostBatch,
    Rows,
)
from jaxprune.datasets.decoding import Decoder, choose_decoder
from jaxprune.datasets.encoded_images import EncodedImages
from jaxprune.datasets.host_batches import HostBatches, check_helpers, host_batches
from jaxprune.datasets.input_checks import check_arrays, check_rows, check_source, check_steps
from jaxprune.datasets.input_speed import InputSpeed
from jaxprune.types import is_whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean red, green and blue of ImageNet's training images, where 1 is white."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviations of the same."""

_AHEAD = 2
"""Batches that are on the device: the one in use and the next."""

_NUM_NAMED = 5
"""Images that a warning names."""


class Batch(NamedTuple):
    """A batch on the device.

    Attributes:
      images: [B, H, W, C] uint8, as they were stored, see `normalised`; or as the images in memory are.
      labels: [B] int32, class ids; -1 where there is no image.
      weights: [B] float32, 1, or 0 where there is no image: padding of the last test batch, or a damaged file.
    """

    images: jax.Array
    labels: jax.Array
    weights: jax.Array


def normalised(
    images: jax.Array,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: jnp.dtype | type = jnp.float32,
) -> jax.Array:
    """Scales images to [0, 1], then shifts and scales each colour; part of the compiled step, on the device.

    Args:
      images: [B, H, W, C] uint8.
      mean: mean of each colour, C numbers, or one for all; 1 is the largest value of a pixel.
      std: standard deviations, likewise, > 0.
      dtype: type of the result, such as jnp.bfloat16; the arithmetic is float32.

    Returns:
      [B, H, W, C].

    Raises:
      ValueError: if there are not as many means or standard deviations as colours.

    Example:
      >>> normalised(jnp.full((1, 1, 1, 1), 255, jnp.uint8), mean=(0.5,), std=(0.25,)).item()
      2.0
    """
    channels = images.shape[-1]
    if {len(mean), len(std)} - {1, channels}:
        raise ValueError(
            f"normalised needs one mean and one std for each of the {channels} channels, or one for all, got "
            f"{len(mean)} and {len(std)}. Pass mean and std of these images."
        )
    shape = (1,) * (images.ndim - 1)
    centre = np.float32(255 * np.asarray(mean)).reshape(*shape, -1)
    factor = np.float32(1 / (255 * np.asarray(std))).reshape(*shape, -1)
    return ((images.astype(jnp.float32) - centre) * factor).astype(dtype)


class Batches:
    """An iterator over batches; close it, or use it in a `with`, if it may end before its last batch.

    Attributes:
      unreadable: name -> reason, of this host's images so far that could not be decoded. A warning names them at the
        end of the epoch in which they were met first.
      speed: images per second, and what the training loop waits for.
      decoder: who decodes, which belongs to the records of a run; None for images in memory.

    Args:
      make: number of a batch -> this host's rows of it.
      numbers: numbers of the batches.
      rows: which rows are this host's.
      per_epoch: batches of an epoch.
      sharding: where the batch goes; None is the default device.
      threads: see `train_batches`.
      workers: likewise.
      decoder: who decodes.
    """

    def __init__(
        self,
        make: BatchMaker,
        numbers: range,
        rows: Rows,
        *,
        per_epoch: int,
        sharding: jax.sharding.Sharding | None,
        threads: int = 0,
        workers: int = 0,
        decoder: Decoder | None = None,
    ) -> None:
        self.unreadable: dict[str, str] = {}
        self.speed = InputSpeed()
        self.decoder = decoder
        self._host_batches: HostBatches | None = host_batches(make, numbers, threads, workers)
        self._numbers, self._first = iter(numbers), numbers.start
        self._rows, self._per_epoch, self._sharding = rows, per_epoch, sharding
        self._on_device: deque[Batch] = deque()
        self._num_reported = 0
        self._num_left = len(numbers)

    def __len__(self) -> int:
        """Number of batches that are left."""
        return self._num_left

    def __iter__(self) -> Self:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch, and starts to send the one after it to the device.

        Raises:
          ValueError: if no image of the first batch could be decoded, or this iterator was closed before its end.
        """
        if not self._num_left:
            self.close()
            raise StopIteration
        if self._host_batches is None:
            raise ValueError(
                "these batches were closed. Make new ones with start_step=, the step to go on at."
            )
        try:
            with self.speed.input(images=self._rows.batch_size):
                while len(self._on_device) < min(_AHEAD, self._num_left):
                    self._on_device.append(self._read())
        except BaseException:
            self.close()
            raise
        self._num_left -= 1
        return self._on_device.popleft()

    def close(self) -> None:
        """Ends threads and processes and reports images that could not be decoded; does nothing the second time."""
        if self._host_batches is not None:
            self._host_batches.close()
        self._host_batches = None
        self._on_device.clear()
        self._report()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def _read(self) -> Batch:
        """Takes a batch from the host and sends it to the device."""
        assert self._host_batches is not None
        batch, number = next(self._host_batches), next(self._numbers)
        self.unreadable |= dict(batch.failures)
        if number == self._first and len(batch.failures) == self._rows.count > 1:
            self._num_reported = len(self.unreadable)
            raise ValueError(
                f"the input needs images that can be decoded, got none among the first {self._rows.count}: "
                f"{self._listed(list(self.unreadable))}. Check what the source holds."
            )
        if (number + 1) % self._per_epoch == 0:
            self._report()
        return self._put(batch)

    def _put(self, batch: HostBatch) -> Batch:
        """Starts to send a batch to the device."""
        arrays = (batch.images, batch.labels, batch.weights)
        if self._sharding is None or self._rows.shard_count == 1:
            return Batch(*jax.device_put(arrays, self._sharding))
        size = self._rows.batch_size
        return Batch(
            *(jax.make_array_from_process_local_data(self._sharding, x, (size, *x.shape[1:])) for x in arrays)
        )

    def _report(self) -> None:
        """Warns of images that could not be decoded and were not reported before."""
        new = list(self.unreadable)[self._num_reported :]
        self._num_reported = len(self.unreadable)
        if new:
            warnings.warn(
                f"could not decode {len(new)} of the images, which count for nothing (black, label -1, weight 0): "
                f"{self._listed(new)}. Replace these files, or prepare the data set anew."
            )

    def _listed(self, names: list[str]) -> str:
        """The first few of some images that could not be decoded, with reasons."""
        listed = [f"{name} ({self.unreadable[name]})" for name in names[:_NUM_NAMED]]
        rest = [f"{len(names) - _NUM_NAMED} more"] if len(names) > _NUM_NAMED else []
        return ", ".join(listed + rest)


def train_batches(
    source: EncodedImages,
    *,
    batch_size: int,
    image_size: int = 224,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    threads: int = 0,
    workers: int = 0,
    sharding: jax.sharding.Sharding | None = None,
    decoder: Decoder | Literal["auto"] = "auto",
) -> Batches:
    """Makes the training batches of encoded images: each epoch a new order, random crops, half of them mirrored.

    An epoch leaves out its last, incomplete batch. An image that cannot be decoded is a black image with label -1 and
    weight 0; a warning names it.

    Args:
      source: N encoded images with labels.
      batch_size: images per step on all hosts together, 1 to N.
      image_size: side of the images in pixels, >= 1.
      seed: of order and crops, in [0, 2**64).
      num_steps: steps of the whole run, >= start_step.
      start_step: the step to go on at, >= 0; its batch and all after it are those of an uninterrupted run.
      shard: this host's number from 0, and the number of hosts. Host h makes the h-th block of rows of each batch.
      threads: threads that make batches, >= 0; none makes each batch when it is asked for. Python's lock ends their
        use at some 2,000 images a second.
      workers: processes that make batches, >= 0, in place of threads. A script that uses them needs its code under
        `if __name__ == "__main__":`. Each holds up to two batches in shared memory.
      sharding: where batches go, their first axis over the devices of all hosts; by default to one device, and with
        several hosts, each its own rows.
      decoder: "auto", "simplejpeg" or "pillow"; see `choose_decoder`.

    Returns:
      Batches `start_step` to `num_steps - 1`; to be closed if it is left before its end.

    Raises:
      ValueError: if an argument is out of its range, the batch does not divide by the hosts or devices, labels are
        out of range, or shared memory is too small for the workers.
      ImportError: if a package that is needed is not installed.
    """
    rows = check_rows(batch_size, shard, sharding)
    check_source(source, image_size)
    numbers = check_steps(len(source), rows, seed, start_step, num_steps)
    check_helpers(threads, workers, rows.count * image_size**2 * 3)
    chosen = choose_decoder(decoder)
    return Batches(
        EncodedTraining(source, rows, seed, image_size, chosen),
        numbers,
        rows,
        per_epoch=len(source) // batch_size,
        sharding=sharding,
        threads=threads,
        workers=workers,
        decoder=chosen,
    )


def evaluation_batches(
    source: EncodedImages,
    *,
    batch_size: int,
    image_size: int = 224,
    resize: int | None = None,
    shard: tuple[int, int] = (0, 1),
    threads: int = 0,
    workers: int = 0,
    sharding: jax.sharding.Sharding | None = None,
    decoder: Decoder | Literal["auto"] = "auto",
) -> Batches:
    """Makes batches of encoded images to test on: each once and in order, resized and cropped at the centre.

    The last batch is filled up with black images of label -1 and weight 0.

    Args:
      source: N encoded images with labels.
      batch_size: images per batch on all hosts together, >= 1.
      image_size: side of the images in pixels, >= 1.
      resize: what the shorter side becomes before the crop, >= image_size; by default 8/7 of it, 256 for 224.
      shard: as in `train_batches`, like the arguments below.
      threads: likewise.
      workers: likewise.
      sharding: likewise.
      decoder: likewise.

    Returns:
      All batches; to be closed if it is left before its end.

    Raises:
      ValueError: as `train_batches`.
      ImportError: likewise.
    """
    rows = check_rows(batch_size, shard, sharding)
    check_source(source, image_size)
    resize = round(image_size * 8 / 7) if resize is None else resize
    if not (is_whole(resize) and resize >= image_size):
        raise ValueError(f"resize must be a whole number >= image_size, {image_size}, got {resize}.")
    check_helpers(threads, workers, rows.count * image_size**2 * 3)
    chosen = choose_decoder(decoder)
    num_batches = -(-len(source) // batch_size)
    return Batches(
        EncodedTesting(source, rows, image_size, resize, chosen),
        range(num_batches),
        rows,
        per_epoch=num_batches,
        sharding=sharding,
        threads=threads,
        workers=workers,
        decoder=chosen,
    )


def array_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    augment: bool = True,
    shard: tuple[int, int] = (0, 1),
    threads: int = 0,
    sharding: jax.sharding.Sharding | None = None,
) -> Batches:
    """Makes the training batches of images in memory, such as CIFAR's: each epoch a new order, shifted and mirrored.

    Args:
      images: [N, H, W, C] uint8 or float32; [N, ...] without augmentation.
      labels: [N] whole numbers >= 0.
      batch_size: as in `train_batches`, like those that are not named here.
      seed: likewise.
      num_steps: likewise.
      start_step: likewise.
      augment: whether images are shifted by up to four pixels and half of them mirrored, see `shift_and_mirror`.
      shard: likewise.
      threads: likewise.
      sharding: likewise.

    Returns:
      Batches `start_step` to `num_steps - 1`.

    Raises:
      ValueError: if images or labels are not of these types and shapes, and as `train_batches`.

    Example:
      >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10) % 2
      >>> batch = next(array_batches(images, labels, batch_size=4, seed=0, num_steps=5))
      >>> batch.images.shape, batch.weights.tolist()
      ((4, 8, 8, 1), [1.0, 1.0, 1.0, 1.0])
    """
    rows = check_rows(batch_size, shard, sharding)
    labels = check_arrays(images, labels, augment=augment)
    numbers = check_steps(len(images), rows, seed, start_step, num_steps)
    check_helpers(threads, 0, 0)
    make = ArrayTraining(images, labels, rows, seed, augment)
    return Batches(
        make, numbers, rows, per_epoch=len(images) // batch_size, sharding=sharding, threads=threads
    )


def array_evaluation_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    sharding: jax.sharding.Sharding | None = None,
) -> Batches:
    """Makes batches of images in memory to test on: each once, in order and as it is.

    Args:
      images: [N, ...] uint8 or float32.
      labels: [N] whole numbers >= 0.
      batch_size: images per batch on all hosts together, >= 1; the last one is filled up as in `evaluation_batches`.
      shard: as in `train_batches`.
      sharding: likewise.

    Returns:
      All batches.

    Raises:
      ValueError: as `array_batches`.

    Example:
      >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5)
      >>> [batch.labels.tolist() for batch in array_evaluation_batches(images, labels, batch_size=3)]
      [[0, 1, 2], [3, 4, -1]]
    """
    rows = check_rows(batch_size, shard, sharding)
    labels = check_arrays(images, labels, augment=False)
    num_batches = -(-len(images) // batch_size)
    make = ArrayTesting(images, labels, rows)
    return Batches(make, range(num_batches), rows, per_epoch=num_batches, sharding=sharding)
