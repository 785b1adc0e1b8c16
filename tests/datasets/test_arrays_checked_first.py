"""What shapes, dtypes and ranges of arrays tell is said when a dataset is made, before any cast changes them."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.datasets.dataset import Dataset
from jaxprune.datasets.example_files import load_examples
from jaxprune.datasets.guarded_split import GuardedSplit, Split

IMAGES = np.random.default_rng(0).uniform(size=(20, 4, 4, 1)).astype(np.float32)
BYTES = (IMAGES * 255).astype(np.uint8)
LABELS = np.arange(20) % 3
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [np.dtype(f"float{bits}") for bits in (16, 32, 64)] + [np.dtype(ml_dtypes.bfloat16)]


def replaced(value: int, dtype: np.dtype) -> np.ndarray:
    """The labels with another one in place 7."""
    labels = LABELS.astype(dtype)
    labels[7] = value
    return labels


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [2**32, 2**32 + 1, 2**31, -(2**32), -1])
def test_a_label_beyond_32_bits_is_refused_in_every_split(part: str, value: int) -> None:
    splits = dict.fromkeys(("train", "validation", "test"), (IMAGES, LABELS))
    splits[part] = (IMAGES, replaced(value, np.dtype(np.int64)))
    low, high = min(0, value), max(2, value)
    with pytest.raises(ValueError, match=rf"mine: needs labels from 0 to \d+, got .*{part} {low} to {high}"):
        Dataset.from_arrays("mine", **splits)


@given(st.sampled_from(INTEGERS), st.integers(-(2**63), 2**64 - 1))
def test_a_label_is_kept_or_refused_and_never_another_one(dtype: np.dtype, value: int) -> None:
    value = int(np.clip(value, np.iinfo(dtype).min, np.iinfo(dtype).max))
    labels = replaced(value, dtype)
    try:
        mine = Dataset.from_arrays("mine", train=(IMAGES, labels), validation=(IMAGES, LABELS))
    except ValueError as error:
        assert not 0 <= value < 2**31 - 1 and "needs labels from 0 to" in str(error)
    else:
        np.testing.assert_array_equal(mine.train.labels, labels)
        assert mine.num_classes == max(2, value) + 1


@pytest.mark.parametrize("count", [0, 1, -3, 2.5, 2**31])
def test_a_number_of_classes_that_cannot_be_is_refused(count: float) -> None:
    with pytest.raises(ValueError, match=r"mine: needs a whole number of classes from 2 to 2147483647, got"):
        Dataset.from_arrays("mine", train=(IMAGES, LABELS), num_classes=count)  # type: ignore[arg-type]


@given(st.sampled_from([*INTEGERS, *FLOATS]), st.sampled_from([*INTEGERS, *FLOATS]))
def test_whole_numbers_beside_floating_point_are_refused_and_nothing_else(
    train: np.dtype, validation: np.dtype
) -> None:
    splits = {"train": (BYTES // 4, LABELS), "validation": (BYTES // 4, LABELS)}
    splits = {
        name: (x.astype(dtype), y)
        for (name, (x, y)), dtype in zip(splits.items(), (train, validation), strict=True)
    }
    if (train in FLOATS) == (validation in FLOATS):
        Dataset.from_arrays("mine", **splits)
        return
    with pytest.raises(
        ValueError, match=rf"or floating-point ones in all, got train {train}, validation {validation}"
    ):
        Dataset.from_arrays("mine", **splits)


@pytest.mark.parametrize("standardise", [None, True, False])
def test_bytes_beside_fractions_are_refused_however_they_are_standardised(standardise: bool | None) -> None:
    with pytest.raises(ValueError, match=r"got train uint8, test float32\. Scale all splits alike"):
        Dataset.from_arrays("mine", train=(BYTES, LABELS), test=(IMAGES, LABELS), standardise=standardise)


def test_splits_of_another_size_of_values_are_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"mine: validation images need the scale of the training images, got a mean"
    ):
        Dataset.from_arrays("mine", train=(BYTES.astype(np.float32), LABELS), validation=(IMAGES, LABELS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (0.1, 1.0, 8.0):
            Dataset.from_arrays("mine", train=(IMAGES, LABELS), validation=(factor * IMAGES - 0.5, LABELS))
        Dataset.from_arrays("mine", train=(IMAGES, LABELS), validation=(0 * IMAGES, LABELS))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 1j, "train split: needs images that hold real numbers, got dtype complex"),
        (IMAGES.astype(str), "train split: needs images that hold numbers, got dtype <U"),
        (IMAGES.astype(object), "train split: needs images that hold numbers, got dtype object"),
        (IMAGES.astype(bytes), r"train split: needs images that hold numbers, got dtype \|S"),
        (BYTES.astype("datetime64[s]"), "train split: needs images that hold numbers, got dtype datetime64"),
        (
            np.zeros((20, 0, 4, 1)),
            r"train split: needs images with at least one pixel, got shape \(20, 0, 4, 1\)",
        ),
        (IMAGES * np.float64(1e300), "train split: needs finite images, got NaN or infinity in 20 of 20"),
    ],
)
def test_images_that_no_cast_keeps_are_refused(images: np.ndarray, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error")
        Dataset.from_arrays("mine", train=(images, LABELS))


def test_grey_images_fit_images_with_a_channel_axis() -> None:
    mine = Dataset.from_arrays("mine", train=(IMAGES[..., 0], LABELS), validation=(IMAGES, LABELS))
    assert mine.image_shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            IMAGES[:, :3],
            LABELS,
            r"test split: needs images of shape \[N, 4, 4, 1\] as in training, .* got shapes",
        ),
        (IMAGES, LABELS[:-1], r"a label for each, got shapes \(20, 4, 4, 1\) and \(19,\)"),
        (IMAGES[:0], LABELS[:0], r"got shapes \(0, 4, 4, 1\) and \(0,\)"),
        (BYTES, LABELS, "needs finite floating-point images, scaled as those of training, got dtype uint8"),
        (IMAGES * np.float32(np.inf), LABELS, "scaled as those of training, got NaN or infinity"),
        (IMAGES, LABELS * 2, "needs whole-number labels from 0 to 2, as in training, got 0 to 4"),
        (IMAGES, LABELS - 1, "as in training, got -1 to 1"),
        (IMAGES, LABELS.astype(float), r"got 0.0 to 2.0 \(float64\)"),
    ],
)
def test_a_test_split_that_does_not_fit_is_found_while_it_is_closed(
    images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    guarded = GuardedSplit("mine", Split(images, labels))
    with pytest.raises(ValueError, match=rf"mine, .*{message}"):
        guarded.check_fits((4, 4, 1), 3)
    assert "closed" in repr(guarded)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 1j, "needs images that hold real numbers, got dtype complex"),
        (IMAGES.astype(str), "needs images that hold numbers, got dtype <U"),
    ],
)
def test_a_file_of_other_things_than_numbers_is_refused(tmp_path, images: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "mine.npz", images=images, labels=LABELS)
    with pytest.raises(ValueError, match=rf"data .*mine\.npz: {message}"):
        load_examples(tmp_path / "mine.npz")
