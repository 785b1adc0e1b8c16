"""Sets that fit into memory become datasets of uint8 pixels, whatever they are read from."""

from __future__ import annotations

import io
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from prepared_data import jpeg, made_up_image, write_prepared

from jaxprune.datasets import prepared_images, small_sets
from jaxprune.datasets.dataset import Dataset, load_dataset
from jaxprune.datasets.example_files import load_examples


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """An image folder of two classes with 5 + 1 PNG images each, 8 x 6 pixels."""
    for part, number in (("train", 5), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(number):
                write_image(tmp_path / "pets" / part / name / f"{i}.png", made_up_image(label, (8, 6, 3), i))
    return tmp_path / "pets"


@pytest.fixture
def archive(tmp_path):
    """A NumPy archive with 20 + 4 grey uint8 images."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 5, 5), np.uint8), "y_train": np.arange(20) % 2,
        "x_test": rng.integers(0, 256, (4, 5, 5), np.uint8), "y_test": np.arange(4) % 2,
    }  # fmt: skip
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz", arrays


class TestPreparedSets:
    def test_validation_is_every_fifth_training_image_of_each_class(self, tmp_path):
        write_prepared("mnist", tmp_path, num_train=100)
        data = load_dataset("tfds:mnist", data_dir=tmp_path)
        assert data.train.images.shape == (80, 28, 28, 1) and data.train.images.dtype == np.uint8
        assert np.bincount(data.validation.labels).tolist() == [2] * 10
        fifths = [made_up_image(i % 10, (28, 28, 1), i) for i in (*range(40, 50), *range(90, 100))]
        np.testing.assert_array_equal(data.validation.images, np.stack(fifths))
        assert not data.train.images.flags.writeable
        assert (data.name, data.num_classes, data.source) == ("mnist", 10, "TensorFlow Datasets, mnist/3.0.1")

    def test_the_test_split_stays_behind_its_guard(self, tmp_path):
        write_prepared("mnist", tmp_path, num_test=20)
        data = load_dataset("tfds:mnist", data_dir=tmp_path)
        assert repr(data.test) == "GuardedSplit('mnist', 20 examples, closed)"
        images, labels = data.test.open(tmp_path / "record.json")
        np.testing.assert_array_equal(images[3], made_up_image(3, (28, 28, 1), 100_003))
        standardised, same = data.standardised().test.open(tmp_path / "other.json")
        np.testing.assert_array_equal(standardised, data.scaling(images))
        np.testing.assert_array_equal(labels, same)

    def test_standardised_images_have_mean_zero_and_spread_one(self, tmp_path):
        write_prepared("cifar10", tmp_path)
        data = load_dataset("tfds:cifar10", data_dir=tmp_path)
        images = data.standardised().train.images
        assert images.dtype == np.float32
        np.testing.assert_allclose(images.mean(axis=(0, 1, 2), dtype=np.float64), 0, atol=1e-5)
        np.testing.assert_allclose(images.std(axis=(0, 1, 2), dtype=np.float64), 1, atol=1e-5)
        np.testing.assert_array_equal(load_examples("tfds:cifar10", data_dir=tmp_path).images, images)

    def test_the_fingerprint_reads_no_pixels(self, tmp_path):
        write_prepared("cifar100", tmp_path, num_train=500)
        data = load_dataset("tfds:cifar100", data_dir=tmp_path)
        coarse = load_dataset("tfds:cifar100/coarse_label", data_dir=tmp_path)
        small = data.limited(num_train=200)
        assert data.identity.startswith("tfds:train ")
        assert len({data.fingerprint, coarse.fingerprint, small.fingerprint}) == 3
        assert data.limited().fingerprint == data.standardised().fingerprint == data.fingerprint
        assert (coarse.num_classes, coarse.name) == (20, "cifar100-coarse_label")

    def test_coarse_and_fine_labels_are_of_the_same_images(self, tmp_path):
        write_prepared("cifar100", tmp_path, num_train=500)
        fine, coarse = (load_dataset(f"tfds:cifar100{x}", data_dir=tmp_path) for x in ("", "/coarse_label"))
        for part in ("train", "validation"):
            one, other = getattr(fine, part), getattr(coarse, part)
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.labels // 5, other.labels)

    def test_images_are_decoded_once(self, tmp_path, monkeypatch):
        write_prepared("svhn_cropped", tmp_path)
        first = load_dataset("tfds:svhn_cropped", data_dir=tmp_path)
        monkeypatch.setattr(prepared_images.PreparedImages, "read_many", None)
        again = load_dataset("tfds:svhn_cropped", data_dir=tmp_path)
        np.testing.assert_array_equal(first.train.images, again.train.images)

    def test_a_damaged_copy_of_the_arrays_is_made_anew(self, tmp_path):
        write_prepared("mnist", tmp_path)
        first = load_dataset("tfds:mnist", data_dir=tmp_path)
        for file in (tmp_path / "jaxprune_cache").iterdir():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        again = load_dataset("tfds:mnist", data_dir=tmp_path)
        np.testing.assert_array_equal(first.train.images, again.train.images)

    def test_sets_of_many_sizes_are_left_to_the_pipeline(self, tmp_path):
        write_prepared("imagenet2012", tmp_path)
        with pytest.raises(
            ValueError, match=r"needs images of one size .* \(any, any, 3\)\. Read it with the input"
        ):
            load_dataset("tfds:imagenet2012", data_dir=tmp_path)

    def test_sets_that_do_not_fit_are_refused_before_they_are_read(self, tmp_path, monkeypatch):
        write_prepared("mnist", tmp_path)
        monkeypatch.setattr(small_sets, "MOST_BYTES", 90_000)
        with pytest.raises(ValueError, match=r"tfds:mnist needs .* GiB as an array, got a limit of"):
            load_dataset("tfds:mnist", data_dir=tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (jpeg(made_up_image(1, (40, 40, 3), 0))[:300], r"needs a whole JPEG or PNG image, got 300 bytes"),
            (
                jpeg(made_up_image(1, (31, 32, 3), 0)),
                r"needs an image of size \(32, 32, 3\), .* got \(31, 32, 3\)",
            ),
        ],
    )
    def test_corrupt_and_odd_images_are_named(self, tmp_path, monkeypatch, content, message):
        write_prepared("cifar10", tmp_path)
        read = prepared_images.PreparedImages.read_many

        def with_one_replaced(self, indices):
            return [(content, 0) if index == 7 else pair for index, pair in enumerate(read(self, indices))]

        monkeypatch.setattr(prepared_images.PreparedImages, "read_many", with_one_replaced)
        with pytest.raises(ValueError, match=r"tfds:cifar10, split train, example 7: " + message):
            load_dataset("tfds:cifar10", data_dir=tmp_path)

    def test_records_damaged_in_the_middle_are_refused(self, tmp_path):
        for file in write_prepared("mnist", tmp_path).glob("mnist-train*"):
            content = bytearray(file.read_bytes())
            content[len(content) // 4 : len(content) // 4 + 2000] = bytes(2000)
            file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"tfds:mnist(, split train, example|.*needs whole files of records)"
        ):
            load_dataset("tfds:mnist", data_dir=tmp_path)


class TestDecoding:
    def encode(self, image, kind="PNG"):
        file = io.BytesIO()
        image.save(file, kind)
        return file.getvalue()

    def test_grey_becomes_coloured_where_the_others_are(self):
        grey = self.encode(Image.fromarray(np.full((2, 2), 7, np.uint8)))
        assert small_sets._open_image(grey, "x").shape == (2, 2)
        assert (small_sets._open_image(grey, "x", num_colours=3) == np.full((2, 2, 3), 7)).all()

    def test_grey_of_sixteen_bits_keeps_its_upper_eight(self):
        content = self.encode(Image.fromarray(np.full((2, 2), 100 * 256 + 9, np.uint16)))
        assert small_sets._open_image(content, "x").tolist() == [[100, 100], [100, 100]]
        assert small_sets._open_image(content, "x", num_colours=3).tolist() == [[[100] * 3] * 2] * 2

    def test_cmyk_becomes_red_green_blue(self):
        cmyk = self.encode(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "JPEG")
        assert small_sets._open_image(cmyk, "x", num_colours=3).shape == (4, 4, 3)

    def test_without_pillow_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(
            ImportError, match=r"needs Pillow, got no PIL\. Run pip install 'jaxprune\[data\]'"
        ):
            small_sets._open_image(b"", "x")

    @pytest.mark.parametrize("cut", [0, 3, 300])
    def test_a_corrupt_jpeg_is_named(self, cut):
        content = jpeg(made_up_image(1, (40, 40, 3), 0))[:cut]
        with pytest.raises(
            ValueError, match=rf"cat/1.jpg: needs a whole JPEG or PNG image, got {cut} bytes that"
        ):
            small_sets._open_image(content, "cat/1.jpg")


class TestImageFolders:
    def test_a_folder_becomes_a_dataset(self, folder):
        pets = load_dataset(str(folder))
        assert pets.train.images.shape == (8, 8, 6, 3) and pets.train.images.dtype == np.uint8
        np.testing.assert_array_equal(pets.train.images[1], made_up_image(0, (8, 6, 3), 1))
        assert (pets.name, pets.num_classes, pets.test.num_examples) == ("pets", 2, 2)
        assert pets.validation.labels.tolist() == [0, 1]
        np.testing.assert_array_equal(load_examples(folder).images, pets.standardised().train.images)

    def test_a_folder_for_validation_is_used(self, folder):
        (folder / "test").rename(folder / "validation")
        pets = load_dataset(str(folder))
        assert (len(pets.train.labels), len(pets.validation.labels), pets.test) == (10, 2, None)

    def test_grey_images_keep_one_colour(self, tmp_path):
        for name in ("a", "b"):
            for i in range(5):
                write_image(tmp_path / "train" / name / f"{i}.png", made_up_image(1, (5, 5, 1), i)[..., 0])
        assert load_dataset(str(tmp_path)).image_shape == (5, 5, 1)
        write_image(tmp_path / "train" / "b" / "4.png", made_up_image(1, (5, 5, 3), 0))
        with pytest.raises(
            ValueError, match=r"b/4.png: needs an image of size \(5, 5, 1\), .* got \(5, 5, 3\)"
        ):
            load_dataset(str(tmp_path))

    def test_the_fingerprint_follows_the_files(self, folder):
        first = load_dataset(str(folder)).fingerprint
        (folder / "train" / "cat" / "0.png").unlink()
        assert load_dataset(str(folder)).fingerprint != first

    def test_an_image_of_another_size_is_named(self, folder):
        write_image(folder / "train" / "dog" / "3.png", made_up_image(1, (8, 7, 3), 0))
        with pytest.raises(
            ValueError, match=r"dog/3.png: needs an image of size \(8, 6, 3\), .* got \(8, 7, 3\)"
        ):
            load_dataset(str(folder))

    def test_a_corrupt_image_is_named(self, folder):
        file = folder / "test" / "dog" / "0.png"
        file.write_bytes(file.read_bytes()[:40])
        with pytest.raises(
            ValueError, match=r"test/dog/0.png: needs a whole JPEG or PNG image, got 40 bytes"
        ):
            load_dataset(str(folder))

    def test_other_classes_in_the_test_folder_are_refused(self, folder):
        (folder / "test" / "dog").rename(folder / "test" / "cow")
        with pytest.raises(ValueError, match=r"needs the same classes as the training images"):
            load_dataset(str(folder))

    def test_a_folder_without_training_images_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"needs a folder train with a folder for each class, got none\. Put"
        ):
            load_dataset(str(tmp_path))

    def test_folders_that_do_not_fit_are_refused(self, folder, monkeypatch):
        monkeypatch.setattr(small_sets, "MOST_BYTES", 1_000)
        with pytest.raises(ValueError, match=r"pets needs .* GiB as an array, got a limit of"):
            load_dataset(str(folder))


class TestArchives:
    def test_whole_numbers_stay_as_they_are(self, archive):
        path, arrays = archive
        mine = load_dataset(str(path))
        assert mine.train.images.shape == (16, 5, 5, 1) and mine.train.images.dtype == np.uint8
        assert (mine.name, mine.num_classes, mine.test.num_examples) == ("mine", 2, 4)
        assert mine.scaling is not None and mine.identity == ""
        reference = Dataset.from_arrays(
            "mine", train=(arrays["x_train"], arrays["y_train"]), test=(arrays["x_test"], arrays["y_test"])
        )
        np.testing.assert_allclose(
            mine.standardised().validation.images, reference.validation.images, rtol=0.2
        )

    def test_the_fingerprint_is_that_of_the_pixels(self, archive):
        path, arrays = archive
        first = load_dataset(str(path)).fingerprint
        arrays["x_train"][0, 0, 0] += 1
        np.savez(path, **arrays)
        assert load_dataset(str(path)).fingerprint != first

    def test_floating_point_images_are_not_standardised(self, archive):
        path, arrays = archive
        np.savez(path, x_train=arrays["x_train"] / 255, y_train=arrays["y_train"])
        mine = load_dataset(str(path))
        assert mine.train.images.max() <= 1 and mine.scaling is None and mine.standardised() is mine

    def test_labels_out_of_range_are_refused(self, archive):
        path, arrays = archive
        arrays["y_test"] += 2
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=r"mine: needs labels from 0 to 1, got test 2 to 3"):
            load_dataset(str(path))

    def test_missing_arrays_are_named(self, archive):
        path, arrays = archive
        np.savez(path, x_train=arrays["x_train"], x_test=arrays["x_test"])
        with pytest.raises(
            ValueError, match=r"needs the arrays y_train, y_test, got x_train, x_test\. Write it"
        ):
            load_dataset(str(path))

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
    def test_what_is_no_archive_is_refused(self, tmp_path, content):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"x.npz needs to be a NumPy archive of plain arrays, got something"
        ):
            load_dataset(str(tmp_path / "x.npz"))

    def test_a_single_array_is_refused(self, tmp_path):
        with (tmp_path / "x.npz").open("wb") as file:
            np.save(file, np.zeros(3))
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"x.npz needs to be a NumPy archive"):
            load_dataset(str(tmp_path / "x.npz"))
