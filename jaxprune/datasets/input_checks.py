"""Checks of what an input pipeline is asked for, made before any work."""

from __future__ import annotations

import jax
import numpy as np

from jaxprune.datasets.batch_makers import Rows
from jaxprune.datasets.encoded_images import EncodedImages
from jaxprune.datasets.epoch_order import MAX_SEED
from jaxprune.observation.checks import check_labels
from jaxprune.types import is_whole


def check_rows(batch_size: int, shard: tuple[int, int], sharding: jax.sharding.Sharding | None) -> Rows:
    """Returns this host's rows of a batch, after checking that it can be split among hosts and devices.

    Args:
      batch_size: rows on all hosts together.
      shard: this host's number from 0, and the number of hosts.
      sharding: where the batch goes, or None.

    Raises:
      ValueError: if a number is out of its range or the batch does not divide.
    """
    index, count = shard
    if not (is_whole(batch_size) and batch_size >= 1):
        raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size}.")
    if not (is_whole(index) and is_whole(count) and 0 <= index < count):
        raise ValueError(f"shard must be (host, number of hosts) with 0 <= host < number, got {shard}.")
    if batch_size % count:
        raise ValueError(
            f"batch_size must be a multiple of the number of hosts, {count}, got {batch_size}. "
            f"Use {max(1, round(batch_size / count)) * count}."
        )
    if sharding is not None:
        try:
            sharding.shard_shape((batch_size,))
        except ValueError as error:
            num_devices = len(sharding.device_set)
            raise ValueError(
                f"batch_size must be divisible among the {num_devices} devices of sharding, got {batch_size}. "
                f"Use {max(1, round(batch_size / num_devices)) * num_devices}."
            ) from error
    return Rows(int(batch_size), int(index), int(count))


def check_source(source: EncodedImages, image_size: int) -> None:
    """Checks encoded images and the size that they shall get.

    Args:
      source: the images.
      image_size: side in pixels.

    Raises:
      ValueError: if there are no images, a label is out of range, or the size is below 1.
    """
    if not (is_whole(image_size) and image_size >= 1):
        raise ValueError(f"image_size must be a whole number >= 1, got {image_size}.")
    if not len(source):
        raise ValueError("source must hold at least one image, got none. Check the folder or the split.")
    low, high = int(source.labels.min()), int(source.labels.max())
    if low < 0 or high >= source.num_classes:
        raise ValueError(
            f"source must have labels from 0 to {source.num_classes - 1}, got {low} to {high}. "
            "Prepare the data set anew, or number the classes from 0."
        )


def check_arrays(images: np.ndarray, labels: np.ndarray, *, augment: bool) -> np.ndarray:
    """Checks images and labels in memory and returns the labels as int32.

    Args:
      images: [N, H, W, C] uint8 or float32; [N, ...], or tokens [N, T] int32, if they are not to be shifted.
      labels: [N] whole numbers from 0.
      augment: whether images are to be shifted and mirrored.

    Raises:
      ValueError: if they have other types or shapes, are empty, or labels are out of range.
    """
    is_shaped = images.ndim == 4 or (images.ndim >= 2 and not augment)
    is_tokens = images.dtype == np.int32 and images.ndim == 2 and not augment
    if not (is_tokens or images.dtype in (np.uint8, np.float32)) or not is_shaped or not images.size:
        raise ValueError(
            f"images must be [N, H, W, C] of uint8 or float32 and not empty, got {images.dtype} {images.shape}. Pass "
            "pixels as they are stored, 0 to 255; grey images need a last axis of size 1, features augment=False."
        )
    labels = check_labels(labels, len(images), owner="", allow_strings=False)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**31:
        raise ValueError(
            f"labels must be from 0 to 2**31 - 1, got {low} to {high}. Number the classes from 0."
        )
    return labels.astype(np.int32)


def check_steps(num_examples: int, rows: Rows, seed: int, start_step: int, num_steps: int) -> range:
    """Returns the numbers of the steps to make batches for, after checking them.

    Args:
      num_examples: number of training images.
      rows: rows of a batch.
      seed: seed of order and crops.
      start_step: first step.
      num_steps: steps of the whole run.

    Raises:
      ValueError: if there is less than one batch of images, or a number is out of its range.
    """
    if rows.batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of images, {num_examples}, got {rows.batch_size}. "
            "Use a smaller batch_size or more images."
        )
    if not (is_whole(seed) and 0 <= seed <= MAX_SEED):
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed}.")
    if not (is_whole(start_step) and is_whole(num_steps) and 0 <= start_step <= num_steps):
        raise ValueError(
            f"start_step and num_steps must be whole numbers with 0 <= start_step <= num_steps, got {start_step} "
            f"and {num_steps}. num_steps counts the whole run, not what is left of it."
        )
    return range(int(start_step), int(num_steps))
