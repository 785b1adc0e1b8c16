"""Sets that fit into memory, read at once to uint8 arrays: prepared sets, image folders, and NumPy archives."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxprune.datasets.array_cache import DAMAGES, cached_arrays
from jaxprune.datasets.decoding import with_eight_bits
from jaxprune.datasets.encoded_images import EncodedImages, FolderImages, read_folder
from jaxprune.datasets.guarded_split import Split
from jaxprune.datasets.prepared_folders import find_prepared
from jaxprune.datasets.prepared_images import CHUNK, PreparedImages
from jaxprune.datasets.prepared_sets import PREFIX, PreparedSet, import_pillow

MOST_BYTES = 4 * 2**30
"""Sets whose pixels take more are not read into memory: CIFAR takes 0.2 GiB, ImageNet at 224 pixels 180."""

PARTS = ("train", "validation", "test")
"""Folders of an image folder, and ends of the names of arrays."""


@dataclass(frozen=True, eq=False)
class RawSet:
    """Images and labels as they were read.

    Attributes:
      name: for records and tables.
      splits: "train" and perhaps "validation" and "test" -> images and labels.
      num_classes: labels are below it; None where only the labels tell.
      strata: [N] classes by which validation images are cut evenly from the training ones; None for their labels.
      identity: what the images are, without reading them: what a fingerprint is made of; "" where only they tell.
      source: where they come from.
    """

    name: str
    splits: Mapping[str, Split]
    num_classes: int | None = None
    strata: np.ndarray | None = None
    identity: str = ""
    source: str = ""


def read_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> RawSet:
    """Reads the training and test images of a prepared set into memory.

    The first time, all images are decoded and then kept as arrays in the data directory, to be read in a moment later.

    Args:
      name: as in `find_prepared`.
      data_dir: the data directory.

    Returns:
      uint8 images [N, H, W, C] and int32 labels, without validation images: those are to be cut from the training ones.
      A set without a test split, such as `imagenette`, has its validation split as test. Whatever the label, validation
      images are cut by the usual one, so that coarse and fine labels are of the same images.

    Raises:
      ImportError, ValueError: as `find_prepared` does; if images differ in size or do not fit into memory; if an
        image or label cannot be read.
    """
    prepared = find_prepared(name, data_dir)
    splits = {"train": "train", "test": test_split(prepared)}
    used = {part: split for part, split in splits.items() if split is not None}
    for split in used.values():
        prepared.check_split(split)
    _check_small(prepared, sum(prepared.num_examples[split] for split in used.values()))
    identity = " ".join(f"{part} {prepared.fingerprint(split)}" for part, split in used.items())
    usual = prepared.with_usual_label
    raw = {part: _read_split(usual, split) for part, split in used.items()}
    strata = raw["train"].labels
    if prepared.label_key != usual.label_key:
        raw = {part: Split(raw[part].images, PreparedImages(prepared, used[part]).labels) for part in used}
    short = prepared.name.partition(":")[0].replace("/", "-")
    source = f"TensorFlow Datasets, {prepared.full_name}"
    return RawSet(short, raw, len(prepared.class_names), strata, f"{PREFIX}{identity}", source)


def test_split(prepared: PreparedSet) -> str | None:
    """Returns the name of the split whose images are for the final report: "test", else "validation", else None.

    The test split of `imagenet2012` has no labels: there, "validation" is what everybody tests on.

    Args:
      prepared: a prepared set.
    """
    is_unlabelled = prepared.full_name.split("/")[0] == "imagenet2012"
    names = ("validation",) if is_unlabelled else ("test", "validation")
    return next((name for name in names if prepared.num_examples.get(name)), None)


def read_archive(path: Path) -> RawSet:
    """Reads a NumPy archive with the arrays `x_train` and `y_train`, and perhaps `x_validation`, `x_test` and labels.

    Args:
      path: the archive.

    Returns:
      Images and labels as they are.

    Raises:
      ValueError: if it is no archive of plain arrays, or arrays are missing.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (*DAMAGES, AttributeError) as error:  # the last for a single array, as numpy.save writes it
        raise ValueError(
            f"{path} needs to be a NumPy archive of plain arrays, got something else or a damaged one. Write it with "
            "numpy.savez(file, x_train=images, y_train=labels, x_test=..., y_test=...)."
        ) from error
    wanted = [part for part in PARTS if part == "train" or {f"x_{part}", f"y_{part}"} & arrays.keys()]
    missing = [key for part in wanted for key in (f"x_{part}", f"y_{part}") if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} needs the arrays {', '.join(missing)}, got {', '.join(arrays) or 'none'}. Write it with "
            "numpy.savez(file, x_train=images, y_train=labels, x_test=..., y_test=...)."
        )
    splits = {part: Split(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in wanted}
    return RawSet(path.stem, splits, source=path.name)


def read_image_folder(folder: Path) -> RawSet:
    """Reads images of one size from `folder/train/CLASS/*.png`, and perhaps `validation/` and `test/` beside it.

    Args:
      folder: the folder; images are JPEG or PNG files, grey ones if the first is grey.

    Returns:
      uint8 images [N, H, W, C] and int32 labels.

    Raises:
      ImportError: if Pillow is missing.
      ValueError: if there is no folder `train`, classes differ, an image cannot be read or has another size, or they
        do not fit into memory.
    """
    if not (folder / "train").is_dir():
        raise ValueError(
            f"{folder} needs a folder train with a folder for each class, got none. Put the images into train/CLASS/, "
            "and those to test on, if any, into test/CLASS/."
        )
    train = read_folder(folder / "train")
    sources = {"train": train} | {
        part: read_folder(folder / part, class_names=train.class_names)
        for part in PARTS[1:]
        if (folder / part).is_dir()
    }
    first = _open_image(train.read(0)[0], str(folder / "train" / train.files[0]))
    shape = (*first.shape[:2], 1 if first.ndim == 2 else 3)
    num_bytes = sum(map(len, sources.values())) * int(np.prod(shape))
    if num_bytes > MOST_BYTES:
        raise ValueError(_too_large(str(folder), num_bytes))
    splits = {
        part: Split(*_decode_all(source, shape, functools.partial(_file_name, source)))
        for part, source in sources.items()
    }
    digest = hashlib.sha256(" ".join(source.fingerprint for source in sources.values()).encode())
    return RawSet(
        folder.resolve().name,
        splits,
        train.num_classes,
        None,
        f"folder {digest.hexdigest()}",
        str(folder.name),
    )


def _file_name(source: FolderImages, row: int) -> str:
    """The path of one image of a folder, for messages."""
    return str(source.folder / source.files[row])


def _check_small(prepared: PreparedSet, num_images: int) -> None:
    """Checks that images have one size and fit into memory."""
    sizes = [size for size in prepared.image_shape if size is not None]
    if len(sizes) < 3:
        raise ValueError(
            f"{PREFIX}{prepared.name} needs images of one size to be read into memory, got shape "
            f"({', '.join('any' if size is None else str(size) for size in prepared.image_shape)}). Read it with "
            "the input pipeline, which crops and resizes them (`jaxprune transfer` does)."
        )
    num_bytes = num_images * int(np.prod(sizes))
    if num_bytes > MOST_BYTES:
        raise ValueError(_too_large(f"{PREFIX}{prepared.name}", num_bytes))


def _too_large(name: str, num_bytes: int) -> str:
    """The message about a set that does not fit into memory."""
    return (
        f"{name} needs {num_bytes / 2**30:.1f} GiB as an array, got a limit of {MOST_BYTES / 2**30:.0f} GiB. Read it "
        "with the input pipeline (`jaxprune transfer --image-size 224` does)."
    )


def _read_split(prepared: PreparedSet, split: str) -> Split:
    """One split as arrays, from the cache if it was read before."""
    source = PreparedImages(prepared, split)
    shape = tuple(int(size or 0) for size in prepared.image_shape)
    where = f"{PREFIX}{prepared.name}, split {split}, example"

    def read() -> Mapping[str, np.ndarray]:
        images, labels = _decode_all(source, shape, lambda row: f"{where} {row}")
        return {"images": images, "labels": labels}

    dtypes: dict[str, type[np.generic]] = {"images": np.uint8, "labels": np.int32}
    arrays = cached_arrays(prepared.cache_file(split, "arrays"), read, dtypes, length=len(source))
    return Split(arrays["images"], arrays["labels"])


def _decode_all(
    source: EncodedImages, shape: tuple[int, ...], name: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """All images of a source, [N, H, W, C] uint8, and labels, in chunks so that few are encoded at a time."""
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), CHUNK):
        rows = range(start, min(start + CHUNK, len(source)))
        for row, (content, label) in zip(rows, source.read_many(rows), strict=True):
            pixels = _open_image(content, name(row), num_colours=shape[-1])
            pixels = (
                pixels[..., None] if pixels.ndim == 2 else pixels
            )  # coloured ones among grey ones are refused
            if pixels.shape != shape:
                raise ValueError(
                    f"{name(row)}: needs an image of size {shape}, as the others, got {pixels.shape}. Resize it; "
                    "`jaxprune transfer --image-size 224` crops and resizes images of many sizes."
                )
            images[row], labels[row] = pixels, label
    return images, labels


def _open_image(content: bytes, name: str, *, num_colours: int | None = None) -> np.ndarray:
    """Decodes an image to [H, W] or [H, W, 3] uint8: grey ones become coloured where `num_colours` is 3."""
    pillow = import_pillow()
    try:
        with pillow.open(io.BytesIO(content)) as stored:
            image = with_eight_bits(stored)
            is_grey = image.mode in ("1", "L", "LA")
            mode = "L" if is_grey and num_colours != 3 else "RGB"
            return np.asarray(image if image.mode == mode else image.convert(mode))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make Pillow raise errors of many types
        raise ValueError(
            f"{name}: needs a whole JPEG or PNG image, got {len(content)} bytes that cannot be decoded "
            f"({str(error).partition(chr(10))[0]}). Replace or remove it."
        ) from error
