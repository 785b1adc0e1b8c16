"""Datasets as arrays in three splits that never mix: training, validation and test.

Training images are for fitting. Validation images, taken out of the training part, serve every choice. Test images
are for the final report alone and stay behind a guard (`GuardedSplit`). Images are float32 [N, H, W, C] and
standardised: divided by their largest possible value, then shifted and scaled by the mean and standard deviation of
each colour over the training split. Sets that are read from files keep their uint8 pixels and the scaling beside them,
a quarter of the memory: `standardised` makes float32 of them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import io
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxprune.datasets.guarded_split import GuardedSplit, Split
from jaxprune.datasets.prepared_sets import PREFIX, USUAL_SETS
from jaxprune.datasets.scaling import Scaling, scaling_of
from jaxprune.datasets.small_sets import RawSet, read_archive, read_image_folder, read_prepared
from jaxprune.observation.checks import check_labels, check_real
from jaxprune.observation.sample import rank_in_class
from jaxprune.text import closest
from jaxprune.types import Array

MAX_CLASSES = 2**31 - 1
"""Labels are stored as int32, and a cast would make class 0 of label 2**32."""

SCALE_FACTOR = 30.0
"""Splits whose values differ in size by more than this have not been scaled alike: 0 to 255 and 0 to 1, say."""

_NUM_LOOKED_AT = 500
"""Images of each split that its scale is measured on."""

DATASETS = ("digits", "fashion")
"""Names of the datasets in the package, which `load_dataset` reads."""

Arrays = tuple[Array, Array]
"""Images [N, ...] and labels [N]."""

_DIGITS_SOURCE = (
    "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), "
    "UCI Machine Learning Repository, CC BY 4.0"
)
_FASHION_SOURCE = (
    "Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), Zalando SE, MIT licence; 8,000 + 2,000 class-balanced images"
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset: images and labels in splits for training, validation and (guarded) test.

    Attributes:
      name: the dataset's name in records and tables.
      train: images [N, ...] float32, or uint8 with a `scaling` beside them, and labels [N] int32.
      validation: in the same form; every accuracy that a search or a comparison uses is measured here.
      test: the test split behind its guard, or None.
      num_classes: labels are in [0, num_classes).
      source: where the images come from, and their licence.
      scaling: standardises the images where they are uint8, as most sets from files are; None where they are
        standardised already.
      identity: what the images are, told without reading them; "" where the fingerprint is made of the images.
    """

    name: str
    train: Split
    validation: Split
    test: GuardedSplit | None
    num_classes: int
    source: str = ""
    scaling: Scaling | None = None
    identity: str = ""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one example, (H, W, C) for images."""
        return tuple(int(size) for size in self.train.images.shape[1:])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short digest of the training and validation arrays, or of what they are; cached fitness depends on it."""
        digest = hashlib.sha256(f"{self.name}{self.identity}".encode())
        if self.identity:
            return digest.hexdigest()[:16]
        for array in (*self.train, *self.validation):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def limited(self, *, num_train: int | None = None, num_validation: int | None = None) -> Dataset:
        """Returns a smaller dataset of the first examples of each class, spread evenly over the classes.

        Args:
          num_train: number of training examples, at least one per class; None takes all.
          num_validation: number of validation examples, likewise.

        Returns:
          The dataset with fewer examples, in their old order, and the same test split.

        Raises:
          ValueError: if a number is below the number of classes or above the number of examples.

        Example:
          >>> load_dataset("digits").limited(num_train=100).train.images.shape
          (100, 8, 8, 1)
        """
        train = _first(self.train, num_train, self.num_classes, "num_train")
        validation = _first(self.validation, num_validation, self.num_classes, "num_validation")
        identity, sizes = self.identity, (len(train.labels), len(validation.labels))
        if identity and sizes != (len(self.train.labels), len(self.validation.labels)):
            identity += f" limited to {sizes[0]} and {sizes[1]}"
        return replace(self, train=train, validation=validation, identity=identity)

    def standardised(self) -> Dataset:
        """Returns the dataset with float32 images, for code that knows nothing of scalings; itself if they are that.

        Example:
          >>> digits = load_dataset("digits")
          >>> digits.standardised() is digits
          True
        """
        scaling = self.scaling
        if scaling is None:
            return self
        train, validation = (
            _read_only(Split(scaling(split.images), split.labels)) for split in (self.train, self.validation)
        )
        test = None if self.test is None else self.test.scaled(scaling)
        return replace(self, train=train, validation=validation, test=test, scaling=None)

    @staticmethod
    def from_arrays(
        name: str,
        *,
        train: Arrays,
        validation: Arrays | None = None,
        test: Arrays | None = None,
        num_classes: int | None = None,
        standardise: bool | None = None,
        source: str = "",
    ) -> Dataset:
        """Makes a dataset of your own arrays and checks them.

        Args:
          name: the dataset's name in records and tables.
          train: images [N, H, W, C], [N, H, W] (a channel axis is added) or features [N, F], and whole-number
            labels [N] from 0.
          validation: in the same form; without it, every fifth training image of each class becomes validation.
          test: in the same form, to be guarded; optional.
          num_classes: number of classes; by default the largest training label plus one.
          standardise: whether to shift and scale images by the mean and standard deviation of each colour over the
            training split; by default true for whole-number images and false for floating-point ones.
          source: where the images come from, and their licence.

        Returns:
          The dataset, with read-only float32 images and int32 labels.

        Raises:
          ValueError: if labels and images do not match in number, shapes differ between splits, some splits are whole
            numbers and others are not, labels are not whole numbers in [0, num_classes), training images show one
            class only, or images hold NaN or infinity.

        Example:
          >>> images = np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32)
          >>> mine = Dataset.from_arrays("mine", train=(images, np.arange(20) % 2))
          >>> mine.train.images.shape, mine.validation.images.shape, mine.num_classes
          ((16, 8, 8, 1), (4, 8, 8, 1), 2)
        """
        if standardise is None:
            standardise = np.issubdtype(np.asarray(train[0]).dtype, np.integer)
        parts = {"train": train, "validation": validation, "test": test}
        given = {part: arrays for part, arrays in parts.items() if arrays is not None}
        checked = {part: _check_split(name, part, arrays) for part, arrays in given.items()}
        classes = _check_splits(name, checked, num_classes)
        splits = {part: _as_split(name, part, split) for part, split in checked.items()}
        _check_scales(name, splits)
        if "validation" not in splits:
            splits["train"], splits["validation"] = _cut_validation(name, splits["train"])
        splits = _standardised(splits) if standardise else splits
        splits = {part: _read_only(split) for part, split in splits.items()}
        guarded = GuardedSplit(name, splits["test"]) if "test" in splits else None
        return Dataset(name, splits["train"], splits["validation"], guarded, classes, source)


def load_dataset(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a set of images: one from the package, one that is prepared on this machine, or your own files.

    - "digits": 8x8 handwritten digits, 1,097 for training, 350 for validation, 350 for test.
    - "fashion": 28x28 Fashion-MNIST, 6,000 for training, 2,000 for validation, 2,000 for test.
    - "tfds:NAME", such as "tfds:cifar10" or "tfds:cifar100/coarse_label": what `jaxprune prepare NAME` has prepared.
    - a file FILE.npz with arrays `x_train`, `y_train`, and perhaps `x_test`, `y_test`, `x_validation`, `y_validation`.
    - an image folder with `train/CLASS/*.png`, and perhaps `test/` and `validation/`.

    Validation and test split of the packaged sets hold equally many images of each class, the same ones on every
    machine. Of the other sets, every fifth training image of each class becomes a validation image, unless files or
    folders for validation are there.

    Args:
      name: as above.
      data_dir: where prepared sets lie, by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The dataset: standardised float32 images from the package, in shuffled order; of the other sets uint8 images as
      they are stored, with a `scaling` beside them (see `Dataset.standardised`). Floating-point arrays of a file stay
      as they are.

    Raises:
      ValueError: if there is no such set, it is not prepared, does not fit into memory, or is damaged.
      ImportError: if packages for reading are missing.

    Example:
      >>> digits = load_dataset("digits")
      >>> digits.train.images.shape, digits.validation.labels.shape, digits.test
      ((1097, 8, 8, 1), (350,), GuardedSplit('digits', 350 examples, closed))
    """
    path = Path(name)
    if name in DATASETS:
        return _packaged(name)
    if name.startswith(PREFIX):
        return dataset_of(read_prepared(name, data_dir))
    if path.suffix == ".npz" and path.is_file():
        return dataset_of(read_archive(path))
    if path.is_dir():
        return dataset_of(read_image_folder(path))
    known = (*DATASETS, *(f"{PREFIX}{usual}" for usual in USUAL_SETS))
    raise ValueError(
        f"load_dataset needs one of {', '.join(DATASETS)}, {PREFIX}NAME, a file FILE.npz or a folder of images, got "
        f"{name!r}.{closest(name, known)} For other images read them yourself and pass them to Dataset.from_arrays."
    )


@functools.cache
def _packaged(name: str) -> Dataset:
    """One of the datasets in the package."""
    if name == "digits":
        archive = _read_archive("digits_8x8.npz")
        train = Split(archive["x"][..., None] / np.float32(16), archive["y"].astype(np.int32))
        train, test = _hold_out(name, "test", train, num_per_class=35)
        num_validation, source = 35, _DIGITS_SOURCE
    else:
        archive = _read_archive("fashion_8k_2k.npz")
        pixels = np.float32(255)
        train = Split(archive["x_train"][..., None] / pixels, archive["y_train"].astype(np.int32))
        test = Split(archive["x_test"][..., None] / pixels, archive["y_test"].astype(np.int32))
        num_validation, source = 200, _FASHION_SOURCE
    train, validation = _hold_out(name, "validation", train, num_per_class=num_validation)
    return Dataset.from_arrays(
        name, train=train, validation=validation, test=test, standardise=True, source=source
    )


def dataset_of(raw: RawSet) -> Dataset:
    """Makes a dataset of images as they were read: uint8 ones stay uint8 and get a scaling.

    Args:
      raw: images and labels; without validation images, these are cut from the training images.

    Returns:
      The dataset; images other than uint8 become what `Dataset.from_arrays` makes of them.

    Raises:
      ValueError: as `Dataset.from_arrays` does.
    """
    checked = {part: _check_split(raw.name, part, split) for part, split in raw.splits.items()}
    if any(split.images.dtype != np.uint8 or split.images.ndim == 2 for split in checked.values()):
        data = Dataset.from_arrays(
            raw.name,
            train=raw.splits["train"],
            validation=raw.splits.get("validation"),
            test=raw.splits.get("test"),
            num_classes=raw.num_classes,
            source=raw.source,
        )
        return replace(data, identity=raw.identity)
    classes = _check_splits(raw.name, checked, raw.num_classes)
    _check_scales(raw.name, checked)
    parts = {
        part: Split(images[..., None] if images.ndim == 3 else images, labels.astype(np.int32))
        for part, (images, labels) in checked.items()
    }
    if "validation" not in parts:
        parts["train"], parts["validation"] = _cut_validation(raw.name, parts["train"], raw.strata)
    train, validation = (_read_only(parts[part]) for part in ("train", "validation"))
    guarded = GuardedSplit(raw.name, _read_only(parts["test"])) if "test" in parts else None
    scaling = scaling_of(train.images)
    return Dataset(raw.name, train, validation, guarded, classes, raw.source, scaling, raw.identity)


def _read_archive(filename: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive in the package."""
    content = importlib.resources.files("jaxprune").joinpath("data", filename).read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _hold_out(name: str, purpose: str, split: Split, *, num_per_class: int) -> tuple[Split, Split]:
    """Splits examples into the rest and a held-out part with equally many of each class, both shuffled."""
    order = _shuffled(f"{name} {purpose}", len(split.labels))
    held_out = order[rank_in_class(split.labels[order]) < num_per_class]
    # In this order the rest would start without the rarest class, so it is shuffled anew.
    order = _shuffled(f"{name} without {purpose}", len(split.labels))
    return _pick(split, order[~np.isin(order, held_out)]), _pick(split, held_out)


def _shuffled(purpose: str, count: int) -> np.ndarray:
    """Indices 0 .. count - 1 ordered by digests: the same on every machine and with every NumPy version."""
    digests = [
        hashlib.blake2b(f"{purpose} {index}".encode(), digest_size=8).digest() for index in range(count)
    ]
    return np.array(sorted(range(count), key=digests.__getitem__))


def _cut_validation(name: str, train: Split, strata: np.ndarray | None = None) -> tuple[Split, Split]:
    """Splits training examples: every fifth of each class, or stratum, becomes a validation example."""
    is_validation = rank_in_class(train.labels if strata is None else strata) % 5 == 4
    if not is_validation.any():
        raise ValueError(
            f"{name}: needs at least five training images of some class to cut validation images from, "
            f"got {len(train.labels)} images in all. Pass validation=(images, labels)."
        )
    return _pick(train, np.flatnonzero(~is_validation)), _pick(train, np.flatnonzero(is_validation))


def _pick(split: Split, chosen: np.ndarray) -> Split:
    """The examples at the chosen indices, in the order of the indices."""
    return Split(split.images[chosen], split.labels[chosen])


def _first(split: Split, count: int | None, num_classes: int, argument: str) -> Split:
    """The first `count` examples, taken from each class in turn, in their old order."""
    if count is None:
        return split
    if not num_classes <= count <= len(split.labels):
        raise ValueError(
            f"Dataset.limited needs {argument} between {num_classes}, one a class, and {len(split.labels)}, "
            f"all there are, got {count}."
        )
    chosen = np.sort(np.argsort(rank_in_class(split.labels), kind="stable")[:count])
    return _read_only(_pick(split, chosen))


def _check_split(name: str, part: str, arrays: Arrays) -> Split:
    """Returns images and labels of one split as they are given, after checking what can be told without the others."""
    images = np.asarray(arrays[0])
    where = f"{name}, {part} split"
    if images.ndim not in (2, 3, 4):
        raise ValueError(
            f"{where}: needs images [N, H, W, C], [N, H, W] or features [N, F], got shape {images.shape}."
        )
    labels = check_labels(arrays[1], len(images), owner=f"{where}: ", allow_strings=False)
    if len(labels) == 0:
        raise ValueError(f"{where}: needs at least one image, got none.")
    if images.size == 0:
        raise ValueError(f"{where}: needs images with at least one pixel, got shape {images.shape}.")
    check_real(images, owner=f"{where}: ")
    return Split(images, labels)


def _as_split(name: str, part: str, split: Split) -> Split:
    """Returns images as finite float32 with a channel axis, labels as int32, of a split that was checked."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        images = split.images.astype(np.float32)
    num_bad = len(images) - int(np.isfinite(images.reshape(len(images), -1)).all(axis=1).sum())
    if num_bad:
        raise ValueError(
            f"{name}, {part} split: needs finite images, got NaN or infinity in {num_bad} of {len(images)}. "
            "Drop or repair them."
        )
    return Split(images[..., None] if images.ndim == 3 else images, split.labels.astype(np.int32))


def _check_splits(name: str, splits: dict[str, Split], num_classes: int | None) -> int:
    """Checks that splits agree in shape and kind and labels fit, before any cast; returns the number of classes."""
    shapes = {part: split.images.shape[1:] for part, split in splits.items()}
    shapes = {part: (*shape, 1) if len(shape) == 2 else shape for part, shape in shapes.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
        raise ValueError(f"{name}: needs images of one shape in all splits, got {listed}. Resize them first.")
    dtypes = {part: split.images.dtype for part, split in splits.items()}
    if len({jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes.values()}) > 1:
        listed = ", ".join(f"{part} {dtype}" for part, dtype in dtypes.items())
        raise ValueError(
            f"{name}: needs whole-number images in all splits, or floating-point ones in all, got {listed}. "
            "Scale all splits alike: divide whole numbers as the others were, or give them all as they were read."
        )
    labels = np.unique(splits["train"].labels)
    if len(labels) < 2:
        raise ValueError(
            f"{name}: needs training images of at least two classes, got only label {labels[0]}."
        )
    if num_classes is None:
        num_classes = min(int(labels[-1]) + 1, MAX_CLASSES)
    elif not 2 <= num_classes <= MAX_CLASSES or num_classes != int(num_classes):
        raise ValueError(
            f"{name}: needs a whole number of classes from 2 to {MAX_CLASSES}, got {num_classes}."
        )
    ranges = {part: (int(split.labels.min()), int(split.labels.max())) for part, split in splits.items()}
    bad = [
        f"{part} {low} to {high}" for part, (low, high) in ranges.items() if low < 0 or high >= num_classes
    ]
    if bad:
        raise ValueError(
            f"{name}: needs labels from 0 to {num_classes - 1}, got {', '.join(bad)}. "
            "Number the classes from 0, or pass num_classes."
        )
    return int(num_classes)


def _check_scales(name: str, splits: dict[str, Split]) -> None:
    """Warns about splits whose values are of another size than those of the training images."""
    some = {part: np.abs(split.images[:_NUM_LOOKED_AT]) for part, split in splits.items()}
    sizes = {part: float(values.mean(dtype=np.float64)) for part, values in some.items()}
    for part, size in sizes.items():
        low, high = sorted((size, sizes["train"]))
        if 0 < low * SCALE_FACTOR < high:
            warnings.warn(
                f"{name}: {part} images need the scale of the training images, got a mean size of {size:.3g} beside "
                f"{sizes['train']:.3g}. Scale all splits alike, for example by 1 / 255.",
                stacklevel=3,
            )


def _standardised(splits: dict[str, Split]) -> dict[str, Split]:
    """Shifts and scales every split by the mean and standard deviation of each colour over the training split."""
    train = splits["train"].images
    axes = tuple(range(train.ndim - 1)) if train.ndim == 4 else (0,)
    # Rounded to float32, so that machines that sum in another order still get the same images and fingerprint.
    mean = train.mean(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32).astype(np.float64)
    spread = train.std(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32).astype(np.float64)
    spread = np.where(spread > 0, spread, 1.0)
    return {
        part: Split(((split.images - mean) / spread).astype(np.float32), split.labels)
        for part, split in splits.items()
    }


def _read_only(split: Split) -> Split:
    """Read-only views of the arrays."""
    images, labels = split.images.view(), split.labels.view()
    images.flags.writeable = labels.flags.writeable = False
    return Split(images, labels)
