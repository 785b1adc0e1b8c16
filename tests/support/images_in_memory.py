"""Encoded images in memory, for tests of the input pipeline: photo-like pixels, files of several kinds, a source."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


def smooth_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """[height, width, 3] uint8 without sharp edges, so that decoders and resamplers agree on it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(
        file, kind, **({"quality": 95} if kind == "JPEG" else {}), **options
    )
    return file.getvalue()


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
    """A source of images, see `EncodedImages`; keeps note of what was read."""

    files: tuple[bytes, ...]
    labels: np.ndarray
    num_classes: int = 2
    read_log: list[int] = field(default_factory=list)

    class_names = ("cat", "dog")
    fingerprint = "in memory"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        self.read_log.append(index)
        return self.files[index], int(self.labels[index])

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        return [self.read(index) for index in indices]

    def name_of(self, index: int) -> str:
        return f"image {index}"


def some_images(
    count: int, *, damaged: Sequence[int] = (), width: int = 24, height: int = 20
) -> ImagesInMemory:
    """Different small JPEG images of two classes in turn; the damaged ones are no images."""
    files = tuple(
        b"\xff\xd8 damaged" if index in damaged else encoded(smooth_pixels(width, height, seed=index))
        for index in range(count)
    )
    return ImagesInMemory(files, (np.arange(count) % 2).astype(np.int32))
