"""What the input pipeline costs: images per CPU second, against the bare decoder on the same files in the same run.

    python benchmarks/input.py [--images 192] [--rounds 3] [--batch 64] [--threads 0,2] [--workers 0] [--bulk 0]

Files are photo-like JPEGs of 500 x 400 pixels made in memory, about as large as ImageNet's; training images are random
crops of 224 pixels. The bare decoder is `decode_for_training` in a loop. *CPU seconds* are those of the whole process
with all its threads; rounds of both alternate, and the best of each counts. Worker processes have CPU seconds of their
own, which cannot be told from the time of their start, so `--workers` prints wall time. `--bulk 60000` writes a data
set of MNIST's size and format, which takes minutes, and times how long it takes to read it into memory.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from prepared_data import write_prepared

from jaxprune.datasets.decoding import NUM_DRAWS, Decoder, decode_for_training
from jaxprune.datasets.input_pipeline import array_batches, train_batches
from jaxprune.datasets.small_sets import read_prepared

WIDTH, HEIGHT, QUALITY, IMAGE_SIZE = 500, 400, 90, 224


@dataclass(frozen=True, eq=False)
class JpegImages:
    """A source of JPEG files in memory."""

    files: tuple[bytes, ...]
    labels: np.ndarray

    num_classes = 10
    class_names = tuple("0123456789")
    fingerprint = "made for a benchmark"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns a file and its label."""
        return self.files[index], int(self.labels[index])

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns files and labels."""
        return [self.read(index) for index in indices]

    def name_of(self, index: int) -> str:
        """Returns the number of a file."""
        return str(index)


def photo_like(count: int) -> JpegImages:
    """Colour images whose detail falls with its frequency as in photographs, and a little noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)
    size = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH) ** 1.1

    def plane() -> np.ndarray:
        return np.fft.irfft2(size * np.exp(2j * np.pi * rng.random(size.shape)), s=(HEIGHT, WIDTH))

    files = []
    for _ in range(count):
        brightness = plane()
        pixels = np.stack([brightness + 0.3 * plane() for _ in range(3)], axis=-1)
        pixels = 120 + 55 * (pixels - pixels.mean()) / pixels.std() + rng.normal(scale=3, size=pixels.shape)
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return JpegImages(tuple(files), np.arange(count, dtype=np.int32) % 10)


def rates(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images per CPU second of each run, the best of some rounds in which all take turns."""
    best = dict.fromkeys(runs, 0.0)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            count = run()
            best[name] = max(best[name], count / (time.process_time() - start))
    return best


def bare(source: JpegImages, decoder: Decoder) -> int:
    """Decodes every image once."""
    draws = np.random.default_rng(1).random((len(source), NUM_DRAWS)).tolist()
    for file, numbers in zip(source.files, draws, strict=True):
        decode_for_training(file, numbers, image_size=IMAGE_SIZE, decoder=decoder)
    return len(source)


def piped(source: JpegImages, decoder: Decoder, batch: int, threads: int) -> int:
    """Reads one epoch of training batches, up to the device."""
    steps = len(source) // batch
    with train_batches(
        source, batch_size=batch, seed=0, num_steps=steps, threads=threads, decoder=decoder
    ) as batches:
        for found in batches:
            found.images.block_until_ready()
    return steps * batch


def wall_rate(source: JpegImages, decoder: Decoder, batch: int, workers: int, epochs: int = 4) -> float:
    """Images per second of worker processes, once all have made a batch."""
    steps = epochs * len(source) // batch
    with train_batches(
        source, batch_size=batch, seed=0, num_steps=steps, workers=workers, decoder=decoder
    ) as batches:
        for _ in range(2 * workers):
            next(batches)
        start, left = time.perf_counter(), len(batches)
        for found in batches:
            found.images.block_until_ready()
        return left * batch / (time.perf_counter() - start)


def small_rate(count: int) -> float:
    """Images per CPU second of small images in memory, shifted and mirrored."""
    images = np.random.default_rng(0).integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)
    labels, steps = np.arange(count, dtype=np.int32) % 10, count // 128
    start = time.process_time()
    for found in array_batches(images, labels, batch_size=128, seed=0, num_steps=steps):
        found.images.block_until_ready()
    return steps * 128 / (time.process_time() - start)


def bulk_seconds(count: int) -> tuple[float, float]:
    """CPU seconds of reading so many small images into memory, for the first and for the second time."""
    with tempfile.TemporaryDirectory() as folder:
        write_prepared("mnist", Path(folder), num_train=count, num_test=10)
        seconds = []
        for _ in range(2):
            start = time.process_time()
            assert len(read_prepared("tfds:mnist", folder).splits["train"].labels) == count
            seconds.append(time.process_time() - start)
    return seconds[0], seconds[1]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", default="0,2", help="numbers of threads, with commas in between")
    parser.add_argument("--workers", type=int, default=0, help="also measure so many processes")
    parser.add_argument("--small", type=int, default=60_000, help="number of 32 x 32 images in memory")
    parser.add_argument("--bulk", type=int, default=0, help="also read so many images of a prepared set")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}")
    source = photo_like(options.images)
    kilobytes = sum(map(len, source.files)) / len(source) / 1024
    print(
        f"{len(source)} JPEG files of {WIDTH} x {HEIGHT}, {kilobytes:.0f} KiB each; batches of {options.batch}\n"
    )
    print("| decoder | images per CPU second | pipeline | images per CPU second | of the decoder |")
    print("|---|--:|---|--:|--:|")
    for decoder in get_args(Decoder):
        runs: dict[str, Callable[[], int]] = {"bare": lambda decoder=decoder: bare(source, decoder)}
        for threads in map(int, options.threads.split(",")):
            runs[f"{threads} threads"] = lambda decoder=decoder, threads=threads: piped(
                source, decoder, options.batch, threads
            )
        for run in runs.values():  # what is imported at first use
            run()
        found = rates(runs, options.rounds)
        for name in list(runs)[1:]:
            share = found[name] / found["bare"]
            print(
                f"| {decoder} | {found['bare']:.0f} | {name} | {found[name]:.0f} | {share:.2f} |", flush=True
            )
        if options.workers:
            rate = wall_rate(source, decoder, options.batch, options.workers)
            print(
                f"| {decoder} | {found['bare']:.0f} | {options.workers} processes | {rate:.0f} a second | |"
            )
    if options.small:
        rate = small_rate(options.small)
        print(f"\n{options.small} images of 32 x 32 in memory: {rate:,.0f} per CPU second")
    if options.bulk:
        first, second = bulk_seconds(options.bulk)
        print(
            f"\n{options.bulk} images of a prepared set: {first:.1f} CPU seconds at first, {second:.1f} later"
        )


if __name__ == "__main__":
    main()
