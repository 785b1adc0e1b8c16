"""Images of a prepared set are made smaller once, under another name and fingerprint."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from prepared_data import jpeg, made_up_image, write_prepared

from jaxprune.datasets import shrinking
from jaxprune.datasets.prepared_folders import find_prepared
from jaxprune.datasets.prepared_images import PreparedImages
from jaxprune.datasets.shrinking import shrink, shrunk_image


def size_of(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.size


def silent(line):
    """Tells nothing."""


class TestOneImage:
    @pytest.mark.parametrize(
        ("size", "smaller"),
        [((100, 50), (64, 32)), ((50, 100), (32, 64)), ((40, 41), (32, 33)), ((64, 64), (32, 32))],
    )
    def test_the_shorter_side_gets_the_limit_and_the_shape_stays(self, size, smaller):
        content = jpeg(made_up_image(1, (size[1], size[0], 3), 0))
        assert size_of(shrunk_image(content, 32)) == smaller

    def test_a_small_image_is_the_same_file(self):
        content = jpeg(made_up_image(1, (32, 90, 3), 0))
        assert shrunk_image(content, 32) is content

    def test_kinds_and_colours_stay(self):
        file = io.BytesIO()
        Image.fromarray(np.full((80, 80), 7, np.uint8)).save(file, "PNG")
        with Image.open(io.BytesIO(shrunk_image(file.getvalue(), 40))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (40, 40))
            assert (np.asarray(image) == 7).all()

    def test_grey_of_sixteen_bits_keeps_its_upper_eight(self):
        file = io.BytesIO()
        Image.fromarray(np.full((80, 80), 100 * 256 + 9, np.uint16)).save(file, "PNG")
        with Image.open(io.BytesIO(shrunk_image(file.getvalue(), 40))) as image:
            assert (np.asarray(image) == 100).all()

    def test_what_cannot_be_decoded_is_none(self):
        content = jpeg(made_up_image(1, (80, 80, 3), 0))
        assert shrunk_image(content[:200], 40) is None
        assert shrunk_image(b"", 40) is None


class TestSets:
    def test_only_the_images_change(self, tmp_path):
        write_prepared("imagenet2012", tmp_path, num_train=30, num_test=5)
        full = find_prepared("imagenet2012", tmp_path)
        lines: list[str] = []
        small = shrink(full, 48, tell=lines.append)
        assert small.full_name == "imagenet2012/shrunk48/5.1.0"
        assert (small.class_names, dict(small.num_examples)) == (full.class_names, dict(full.num_examples))
        assert small.fingerprint("train") != full.fingerprint("train")
        assert sum(small.num_bytes.values()) < sum(full.num_bytes.values())
        images = {
            name: PreparedImages(prepared, "train") for name, prepared in (("full", full), ("small", small))
        }
        assert images["small"].labels.tolist() == images["full"].labels.tolist()
        assert {min(size_of(content)) for content, _ in images["small"].read_many(range(30))} == {48}
        assert full.open("train")[3]["file_name"] == small.open("train")[3]["file_name"]
        assert "needs about" in lines[0] and "is prepared: 30 train" in lines[-1]

    def test_it_is_found_by_its_name_and_never_instead_of_the_full_set(self, tmp_path):
        write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
        shrink(find_prepared("imagenet2012", tmp_path), 48, tell=silent)
        assert find_prepared("tfds:imagenet2012", tmp_path).full_name == "imagenet2012/5.1.0"
        assert (
            find_prepared("tfds:imagenet2012/shrunk48", tmp_path).full_name == "imagenet2012/shrunk48/5.1.0"
        )

    def test_a_second_call_does_nothing(self, tmp_path):
        write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
        full = find_prepared("imagenet2012", tmp_path)
        place = shrink(full, 48, tell=silent).folder
        before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
        lines: list[str] = []
        shrink(full, 48, tell=lines.append)
        assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}
        assert len(lines) == 1 and "is prepared already" in lines[0]

    def test_images_that_cannot_be_decoded_are_counted_and_named(self, tmp_path, monkeypatch):
        write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
        monkeypatch.setattr(
            shrinking, "shrunk_image", lambda content, side: None if content.endswith(LAST) else content
        )
        full = find_prepared("imagenet2012", tmp_path)
        LAST = full.open("train")[2]["image"][-100:]
        lines: list[str] = []
        small = shrink(full, 48, tell=lines.append)
        assert "1 images could not be decoded and are copied: train 2." in lines
        assert small.open("train")[2]["image"] == full.open("train")[2]["image"]

    def test_a_failure_leaves_nothing(self, tmp_path, monkeypatch):
        write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
        full = find_prepared("imagenet2012", tmp_path)

        def fail(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(shrinking, "_write", fail)
        with pytest.raises(KeyboardInterrupt):
            shrink(full, 48, tell=silent)
        assert list((tmp_path / "imagenet2012" / "shrunk48").iterdir()) == []

    def test_too_small_a_limit_is_refused(self, tmp_path):
        write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
        with pytest.raises(
            ValueError, match=r"--shrink needs a side of at least 32 pixels, got 8\. Usual is 256"
        ):
            shrink(find_prepared("imagenet2012", tmp_path), 8)

    def test_smaller_images_are_not_made_smaller_again(self, tmp_path):
        write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
        small = shrink(find_prepared("imagenet2012", tmp_path), 48, tell=silent)
        with pytest.raises(
            ValueError, match=r"--shrink needs the images as they were prepared, got tfds:imagenet"
        ):
            shrink(small, 40)

    def test_images_of_one_size_are_refused(self, tmp_path):
        write_prepared("cifar10", tmp_path)
        with pytest.raises(
            ValueError, match=r"--shrink needs images of many sizes, .* size \(32, 32, 3\)\. Leave"
        ):
            shrink(find_prepared("cifar10", tmp_path), 32)
