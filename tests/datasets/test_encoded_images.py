"""Folders of encoded images, and parts of them."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from jaxprune.datasets.encoded_images import SomeImages, cut_validation, read_folder


def make_folder(folder, **files):
    """A folder with a folder for each class; the content of each file is its name."""
    for name, names in files.items():
        (folder / name).mkdir(parents=True)
        for file in names.split():
            (folder / name / file).write_bytes(file.encode())
    return folder


def test_images_come_sorted_by_class_and_name(tmp_path):
    images = read_folder(make_folder(tmp_path, dog="b.jpg a.JPEG", cat="z.png"))
    assert images.class_names == ("cat", "dog") and images.num_classes == 2
    assert images.labels.tolist() == [0, 1, 1] and images.labels.dtype == np.int32
    assert images.read_many(range(3)) == [(b"z.png", 0), (b"a.JPEG", 1), (b"b.jpg", 1)]
    assert len(images) == 3


def test_hidden_files_and_folders_are_left_out(tmp_path):
    folder = make_folder(tmp_path, dog="1.jpg .hidden", cat="1.jpg", **{".thumbnails": "1.jpg"})
    (folder / "README.txt").write_text("beside the folders of classes")
    assert read_folder(folder).files == ("cat/1.jpg", "dog/1.jpg")


def test_a_copy_in_another_process_reads_the_same(tmp_path):
    images = read_folder(make_folder(tmp_path, dog="1.jpg", cat="1.jpg"))
    assert pickle.loads(pickle.dumps(images)).read(1) == images.read(1)  # noqa: S301


def test_the_fingerprint_follows_names_and_sizes(tmp_path):
    folder = make_folder(tmp_path, dog="1.jpg", cat="1.jpg")
    first = read_folder(folder).fingerprint
    assert read_folder(folder).fingerprint == first
    (folder / "cat" / "1.jpg").write_bytes(b"a longer one")
    assert read_folder(folder).fingerprint != first


def test_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"needs a folder with a folder for each class, got .*: nothing there"
    ):
        read_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"got .*file: a file\."):
        read_folder(tmp_path / "file")


def test_a_single_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder for each of two or more classes, got cat\. Put the images"):
        read_folder(make_folder(tmp_path, cat="1.jpg"))


def test_an_empty_class_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"at least one image of each class, got none in dog\. Remove empty"):
        read_folder(make_folder(tmp_path, cat="1.jpg", dog=""))


def test_files_that_are_no_images_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"dog: needs images named .* nothing else, got a.txt, b.gif\. Convert"
    ):
        read_folder(make_folder(tmp_path, cat="1.jpg", dog="1.jpg b.gif a.txt"))


def test_names_that_are_no_text_are_refused(tmp_path):
    folder = make_folder(tmp_path, cat="1.jpg", dog="1.jpg")
    (folder / "dog" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs names in UTF-8, got '\\udcff.jpg'\. Rename"):
        read_folder(folder)


def test_other_classes_than_those_of_training_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"same classes as the training images, got 2 instead of 2, .*: cow, dog"
    ):
        read_folder(make_folder(tmp_path, cat="1.jpg", dog="1.jpg"), class_names=("cat", "cow"))


class TestParts:
    def test_validation_images_are_the_last_of_each_class(self, tmp_path):
        source = read_folder(make_folder(tmp_path, cat="1.jpg 2.jpg 3.jpg", dog="1.jpg 2.jpg"))
        train, validation = cut_validation(source, num_per_class=1)
        assert train.rows.tolist() == [0, 1, 3] and validation.rows.tolist() == [2, 4]
        assert validation.labels.tolist() == [0, 1]
        assert validation.read_many([1, 0]) == [(b"2.jpg", 1), (b"3.jpg", 0)]
        assert (validation.num_classes, validation.class_names, len(validation)) == (2, ("cat", "dog"), 2)
        assert len({source.fingerprint, train.fingerprint, validation.fingerprint}) == 3

    @pytest.mark.parametrize("number", [0, 2])
    def test_a_class_without_training_images_is_refused(self, tmp_path, number):
        source = read_folder(make_folder(tmp_path, cat="1.jpg 2.jpg 3.jpg", dog="1.jpg 2.jpg"))
        with pytest.raises(ValueError, match=rf"at least one of each class, .* got {number} a class"):
            cut_validation(source, num_per_class=number)

    def test_a_class_without_any_image_has_no_validation_image(self, tmp_path):
        source = read_folder(make_folder(tmp_path, ant="1.jpg", cat="1.jpg 2.jpg", dog="1.jpg 2.jpg"))
        train, validation = cut_validation(SomeImages(source, np.arange(1, 5)), num_per_class=1)
        assert (train.labels.tolist(), validation.labels.tolist()) == ([1, 2], [1, 2])

    def test_a_part_of_a_part_keeps_its_order(self, tmp_path):
        source = read_folder(make_folder(tmp_path, cat="1.jpg 2.jpg", dog="3.jpg 4.jpg"))
        part = SomeImages(SomeImages(source, np.array([3, 1, 0])), np.array([2, 0]))
        assert part.read_many([0, 1]) == [(b"1.jpg", 0), (b"4.jpg", 1)]
        assert part.labels.tolist() == [0, 1]
        assert [part.name_of(index) for index in (0, 1)] == [
            str(tmp_path / file) for file in ("cat/1.jpg", "dog/4.jpg")
        ]
