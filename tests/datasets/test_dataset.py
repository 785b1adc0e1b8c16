"""Datasets: what is in them, that splits never mix, the guard of the test split, and bad arrays."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.datasets import guarded_split as guard
from jaxprune.datasets.dataset import DATASETS, Dataset, load_dataset
from jaxprune.datasets.guarded_split import AlreadyOpenedError, GuardedSplit, Split
from jaxprune.files import RunDirectoryError

SIZES = {"digits": (1097, 350, 350, (8, 8, 1)), "fashion": (6000, 2000, 2000, (28, 28, 1))}


def some_images(count=20, shape=(6, 6, 1), seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def some_split(count=20, classes=2, **options):
    return some_images(count, **options), np.arange(count) % classes


def rows(images):
    return {image.tobytes() for image in images}


@pytest.fixture
def guarded():
    return GuardedSplit("mine", Split(some_images(), np.arange(20, dtype=np.int32) % 2))


@pytest.mark.parametrize("name", DATASETS)
class TestPackagedDatasets:
    def test_sizes_and_types(self, name, tmp_path):
        num_train, num_validation, num_test, shape = SIZES[name]
        dataset = load_dataset(name)
        test = dataset.test.open(tmp_path / "record.json")
        for split, count in (
            (dataset.train, num_train),
            (dataset.validation, num_validation),
            (test, num_test),
        ):
            assert split.images.shape == (count, *shape)
            assert split.labels.shape == (count,)
            assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
        assert (dataset.image_shape, dataset.num_classes) == (shape, 10)

    def test_no_image_is_in_two_splits(self, name, tmp_path):
        dataset = load_dataset(name)
        parts = [rows(dataset.train.images), rows(dataset.validation.images)]
        parts.append(rows(dataset.test.open(tmp_path / "record.json").images))
        assert len(set.union(*parts)) == sum(len(part) for part in parts) == sum(SIZES[name][:3])

    def test_held_out_splits_are_balanced_and_training_nearly(self, name, tmp_path):
        dataset = load_dataset(name)
        for split in (dataset.validation, dataset.test.open(tmp_path / "record.json")):
            assert len(set(np.bincount(split.labels).tolist())) == 1
        counts = np.bincount(dataset.train.labels)
        assert counts.max() - counts.min() <= 10

    def test_training_images_have_mean_0_and_deviation_1(self, name):
        images = load_dataset(name).train.images
        assert abs(float(images.mean(dtype=np.float64))) < 1e-5
        assert abs(float(images.std(dtype=np.float64)) - 1) < 1e-5

    def test_images_are_in_shuffled_order(self, name):
        labels = load_dataset(name).train.labels[:100]
        assert len(np.unique(labels)) == 10
        assert np.bincount(labels).max() <= 20

    def test_arrays_cannot_be_written_to(self, name):
        dataset = load_dataset(name)
        with pytest.raises(ValueError, match="read-only"):
            dataset.train.images[0] = 0

    def test_the_source_names_a_licence_that_is_in_the_package(self, name):
        licences = {
            "digits": ("CC BY 4.0", "LICENSE-digits.txt"),
            "fashion": ("MIT", "LICENSE-fashion-mnist.txt"),
        }
        short, filename = licences[name]
        text = importlib.resources.files("jaxprune").joinpath("data", filename).read_text(encoding="utf-8")
        assert short in load_dataset(name).source
        assert short in text


class TestLoadDataset:
    def test_the_splits_are_the_same_for_everyone(self):
        # Digests of the very arrays: a change here makes earlier results incomparable.
        assert load_dataset("digits").fingerprint == "0efb97d680f2e810"
        assert load_dataset("fashion").fingerprint == "f876a4cc44670469"

    def test_an_unknown_name_is_refused_with_the_known_ones(self):
        known = r"needs one of digits, fashion, tfds:NAME, a file FILE.npz or a folder of images, got 'mnist'"
        with pytest.raises(
            ValueError, match=known + r"\. Did you mean 'tfds:mnist'\? .* Dataset.from_arrays"
        ):
            load_dataset("mnist")


class TestLimited:
    def test_it_takes_classes_in_turn_and_keeps_order(self):
        dataset = load_dataset("digits")
        small = dataset.limited(num_train=103, num_validation=50)
        assert sorted(np.bincount(small.train.labels).tolist()) == [10] * 7 + [11] * 3
        assert np.bincount(small.validation.labels).tolist() == [5] * 10
        places = {image.tobytes(): place for place, image in enumerate(dataset.train.images)}
        order = [places[image.tobytes()] for image in small.train.images]
        assert order == sorted(order)
        assert small.test is dataset.test
        assert small.fingerprint != dataset.fingerprint

    def test_nothing_asked_changes_nothing(self):
        dataset = load_dataset("digits")
        assert dataset.limited().fingerprint == dataset.fingerprint

    @pytest.mark.parametrize(
        ("argument", "count"), [("num_train", 9), ("num_train", 1098), ("num_validation", 351)]
    )
    def test_too_few_or_too_many_are_refused(self, argument, count):
        with pytest.raises(
            ValueError, match=rf"needs {argument} between 10, one a class, and \d+, .* got {count}"
        ):
            load_dataset("digits").limited(**{argument: count})


class TestFromArrays:
    def test_floating_images_are_kept_as_they_are(self):
        images, labels = some_split()
        mine = Dataset.from_arrays("mine", train=(images, labels), validation=some_split(seed=1))
        np.testing.assert_array_equal(mine.train.images, images)
        assert (mine.num_classes, mine.test) == (2, None)

    def test_whole_number_images_are_standardised_by_the_training_split(self):
        train = np.array([[[0, 0]], [[10, 10]]], np.uint8)[..., None] * np.array([1, 2], np.uint8)
        validation = np.full((1, 1, 2, 2), 10, np.uint8)
        mine = Dataset.from_arrays(
            "mine", train=(train, np.array([0, 1])), validation=(validation, np.array([0]))
        )
        assert mine.train.images[:, 0, 0].tolist() == [[-1.0, -1.0], [1.0, 1.0]]
        assert mine.validation.images[0, 0, 0].tolist() == [1.0, 0.0]

    def test_standardising_can_be_asked_for_or_declined(self):
        images, labels = some_split()
        asked = Dataset.from_arrays("mine", train=(images * 9 + 4, labels), standardise=True)
        assert abs(float(asked.train.images.mean())) < 1
        declined = Dataset.from_arrays("mine", train=((images * 9).astype(int), labels), standardise=False)
        assert declined.train.images.max() == declined.train.images.max().round() > 9

    def test_a_constant_colour_becomes_zero_and_not_nan(self):
        images, labels = np.full((10, 2, 2), 7, np.uint8), np.arange(10) % 2
        assert not Dataset.from_arrays("mine", train=(images, labels)).train.images.any()

    def test_grey_images_get_a_channel_axis_and_features_do_not(self):
        grey = Dataset.from_arrays("mine", train=some_split(shape=(6, 6)))
        features = Dataset.from_arrays("mine", train=some_split(shape=(5,)))
        assert (grey.image_shape, features.image_shape) == ((6, 6, 1), (5,))

    @given(st.lists(st.integers(0, 3), min_size=20, max_size=60))
    def test_without_validation_every_fifth_image_of_each_class_is_cut_out(self, labels):
        labels = np.array([*range(4), *labels])
        images = np.arange(len(labels), dtype=np.float32)[:, None]
        mine = Dataset.from_arrays("mine", train=(images, labels))
        found = np.sort(np.concatenate([mine.train.images, mine.validation.images])[:, 0])
        assert found.tolist() == list(range(len(labels)))
        expected = np.bincount(labels, minlength=4) // 5
        assert np.bincount(mine.validation.labels, minlength=4).tolist() == expected.tolist()

    def test_the_callers_arrays_stay_writable(self):
        images, labels = some_split()
        Dataset.from_arrays("mine", train=(images, labels))
        images[0] = 0
        labels[0] = 0

    def test_a_test_split_is_guarded(self, tmp_path):
        images, labels = some_split(seed=2)
        mine = Dataset.from_arrays("mine", train=some_split(), test=(images, labels))
        assert repr(mine.test) == "GuardedSplit('mine', 20 examples, closed)"
        np.testing.assert_array_equal(mine.test.open(tmp_path / "record.json").images, images)

    def test_it_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            load_dataset("digits").name = "other"


class TestBadArrays:
    def refuse(self, message, *, train=None, **options):
        with pytest.raises(ValueError, match=message):
            Dataset.from_arrays("mine", train=some_split() if train is None else train, **options)

    def test_labels_that_do_not_match_in_number(self):
        self.refuse(
            r"mine, train split: needs one label for each of 20 examples, got labels of shape \(19,\)",
            train=(some_images(), np.zeros(19, int)),
        )

    def test_one_hot_labels(self):
        message = r"labels of shape \(20, 2\)\..* one-hot labels become numbers by labels\.argmax"
        self.refuse(message, train=(some_images(), np.eye(2)[np.arange(20) % 2]))

    def test_fractional_labels(self):
        message = r"labels must be whole numbers, got dtype float64\. Use labels\.astype\(int\)"
        self.refuse(message, train=(some_images(), np.zeros(20)))

    def test_one_class_only(self):
        message = r"training images of at least two classes, got only label 3"
        self.refuse(message, train=(some_images(), np.full(20, 3)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity(self, bad):
        images, labels = some_split()
        images[3, 0, 0, 0] = images[5, 1] = bad
        message = r"mine, validation split: needs finite images, got NaN or infinity in 2 of 20"
        self.refuse(message, validation=(images, labels))

    def test_other_ranks(self):
        self.refuse(
            r"needs images \[N, H, W, C\], .* got shape \(20,\)", train=(np.zeros(20), np.zeros(20, int))
        )

    def test_no_images(self):
        message = "test split: needs at least one image, got none"
        self.refuse(message, test=(np.zeros((0, 6, 6, 1)), np.zeros(0, int)))

    def test_splits_of_different_shapes(self):
        message = r"one shape in all splits, got train \(6, 6, 1\), validation \(7, 7, 1\)\. Resize"
        self.refuse(message, validation=some_split(shape=(7, 7, 1)))

    def test_labels_beyond_the_number_of_classes(self):
        message = r"needs labels from 0 to 1, got validation 0 to 2\. Number the classes from 0, or pass num_classes"
        self.refuse(message, validation=some_split(classes=3))
        self.refuse(r"needs labels from 0 to 1, got train 0 to 2", train=some_split(classes=3), num_classes=2)

    def test_negative_labels(self):
        self.refuse(r"got train -1 to 0", train=(some_images(), -(np.arange(20) % 2)))

    def test_too_few_images_to_cut_validation_from(self):
        self.refuse(
            r"at least five training images of some class .* got 8 images in all", train=some_split(8)
        )


class TestGuardedSplit:
    def test_opening_is_recorded(self, guarded, tmp_path):
        record = tmp_path / "test_opened.json"
        images, labels = guarded.open(record)
        assert (len(images), len(labels)) == (20, 20)
        content = json.loads(record.read_text())
        assert (content["dataset"], content["num_examples"], len(content["opened"])) == ("mine", 20, 1)
        assert os.listdir(tmp_path) == ["test_opened.json"]

    def test_a_second_opening_is_refused_and_leaves_the_record(self, guarded, tmp_path):
        record = tmp_path / "test_opened.json"
        guarded.open(record)
        before = record.read_text()
        with pytest.raises(
            AlreadyOpenedError, match=r"opened once a run, got a record of .* Pass reopen=True"
        ):
            guarded.open(record)
        assert record.read_text() == before

    def test_reopening_is_counted(self, guarded, tmp_path):
        record = tmp_path / "test_opened.json"
        for _ in range(3):
            guarded.open(record, reopen=True)
        assert len(json.loads(record.read_text())["opened"]) == 3

    @pytest.mark.parametrize("reopen", [False, True])
    def test_the_record_of_another_split_is_refused(self, guarded, tmp_path, reopen):
        record = tmp_path / "test_opened.json"
        GuardedSplit("other", Split(some_images(5), np.zeros(5, np.int32))).open(record)
        with pytest.raises(ValueError, match=r"needs a record of its own, got one of 'other' in"):
            guarded.open(record, reopen=reopen)

    @pytest.mark.parametrize("text", ["not json", "[]", "{}"])
    def test_a_file_that_is_no_record_is_refused_and_kept(self, guarded, tmp_path, text):
        record = tmp_path / "notes.txt"
        record.write_text(text)
        with pytest.raises(
            RunDirectoryError, match=r"notes\.txt needs .* If it never was a record, name another"
        ):
            guarded.open(record)
        assert record.read_text() == text

    def test_the_record_of_other_images_of_that_name_is_refused_as_such(self, guarded, tmp_path):
        record = tmp_path / "test_opened.json"
        GuardedSplit("mine", Split(some_images(5), np.zeros(5, np.int32))).open(record)
        with pytest.raises(
            ValueError, match=r"got one of 'mine', but with other images in .*Name another file"
        ):
            guarded.open(record)

    def test_without_a_record_there_are_no_images(self, guarded, tmp_path):
        with pytest.raises(FileNotFoundError):
            guarded.open(tmp_path / "missing" / "record.json")

    def test_a_failed_write_leaves_no_trace(self, guarded, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(guard.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            guarded.open(tmp_path / "record.json")
        assert os.listdir(tmp_path) == []

    def test_nothing_public_holds_the_images(self, guarded):
        public = {name: value for name, value in vars(guarded).items() if not name.startswith("_")}
        assert public == {"name": "mine", "num_examples": 20}
