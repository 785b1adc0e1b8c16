"""Prepared sets are found by their names and read without TensorFlow; what cannot be read is named."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from prepared_data import CIFAR10, SIZES, made_up_image, write_prepared

from jaxprune.datasets.dataset import load_dataset
from jaxprune.datasets.prepared_folders import data_directory, find_prepared, parse_name
from jaxprune.datasets.prepared_images import PreparedImages


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data directory with three sets; tests that damage one make a copy."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("mnist", "cifar10", "imagenet2012"):
        write_prepared(name, folder)
    write_prepared("cifar100", folder, num_train=500)
    return folder


@pytest.fixture
def mnist(tmp_path):
    """A fresh data directory with mnist, to be damaged, and the folder of the set in it."""
    return tmp_path, write_prepared("mnist", tmp_path)


class TestNames:
    def test_a_name_has_a_set_parts_and_a_version(self):
        assert parse_name("mnist") == ("mnist", [], "")
        assert parse_name("tfds:cifar100/coarse_label") == ("cifar100", ["coarse_label"], "")
        assert parse_name("tfds:a/b-1/c:1.2.3") == ("a", ["b-1", "c"], "1.2.3")

    @pytest.mark.parametrize(
        "name", ["tfds:", "tfds:no such", "tfds:../mnist", "tfds:mnist/", "tfds:mnist:3"]
    )
    def test_what_is_no_name_is_refused(self, name):
        with pytest.raises(ValueError, match=r"name of a set needs to look like tfds:mnist, .* got 'tfds:"):
            parse_name(name)

    def test_the_newest_version_is_taken_unless_one_is_named(self, mnist):
        data_dir, place = mnist
        info = json.loads((place / "dataset_info.json").read_text()) | {"version": "3.0.10"}
        shutil.copytree(place, place.with_name("3.0.10"))
        (place.with_name("3.0.10") / "dataset_info.json").write_text(json.dumps(info))
        assert find_prepared("tfds:mnist", data_dir).full_name == "mnist/3.0.10"
        assert find_prepared("tfds:mnist:3.0.1", data_dir).full_name == "mnist/3.0.1"

    def test_configurations_are_named_where_there_are_several(self, mnist):
        data_dir, place = mnist
        for config in ("one", "two", "shrunk64"):
            shutil.copytree(place, place.parent / config / place.name)
        assert find_prepared("tfds:mnist", data_dir).folder == place
        assert find_prepared("tfds:mnist/two", data_dir).folder == place.parent / "two" / place.name
        shutil.rmtree(place)
        with pytest.raises(
            ValueError, match=r"needs a configuration, .* Say one of tfds:mnist/one, tfds:mnist/sh"
        ):
            find_prepared("tfds:mnist", data_dir)
        shutil.rmtree(place.parent / "one")
        assert find_prepared("tfds:mnist", data_dir).folder == place.parent / "two" / place.name
        shutil.rmtree(place.parent / "two")
        with pytest.raises(ValueError, match=r"tfds:mnist needs to be prepared"):
            find_prepared("tfds:mnist", data_dir)  # smaller images are never taken unasked

    def test_the_data_directory_comes_from_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        assert data_directory() == tmp_path and data_directory("x").name == "x"
        monkeypatch.delenv("TFDS_DATA_DIR")
        assert data_directory().name == "tensorflow_datasets"


class TestDescription:
    def test_a_set_tells_its_classes_shapes_and_splits(self, data_dir):
        cifar = find_prepared("tfds:cifar10", data_dir)
        assert cifar.class_names == tuple(CIFAR10)
        assert (cifar.image_shape, cifar.full_name) == ((32, 32, 3), "cifar10/3.0.2")
        assert dict(cifar.num_examples) == {"train": 100, "test": 20}
        assert "cifar10" in repr(cifar) and "airplane" not in repr(cifar)
        assert find_prepared("imagenet2012", data_dir).image_shape == (None, None, 3)

    def test_coarse_and_fine_labels_are_told_apart(self, data_dir):
        fine, coarse = (find_prepared(f"tfds:cifar100{part}", data_dir) for part in ("", "/coarse_label"))
        assert (len(fine.class_names), len(coarse.class_names)) == (100, 20)
        assert fine.fingerprint("train") != coarse.fingerprint("train")
        assert find_prepared("tfds:cifar100/label", data_dir).fingerprint("test") == fine.fingerprint("test")

    def test_fingerprints_follow_splits_and_what_is_in_them(self, data_dir, tmp_path):
        write_prepared("mnist", tmp_path, num_train=101)
        first, second = (find_prepared("tfds:mnist", folder) for folder in (data_dir, tmp_path))
        assert first.fingerprint("test") == second.fingerprint("test")
        assert len({first.fingerprint("train"), second.fingerprint("train"), first.fingerprint("test")}) == 3

    def test_fingerprints_follow_the_checksums_of_the_archives(self, mnist, monkeypatch):
        import tensorflow_datasets as tfds

        prepared = find_prepared("mnist", mnist[0])
        train_images = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        assert len(prepared.checksums) == 4 and train_images in prepared.checksums
        monkeypatch.setattr(tfds, "list_builders", lambda **_: [])
        of_its_own = find_prepared("mnist", mnist[0])
        assert of_its_own.checksums == ()
        assert of_its_own.fingerprint("train") != prepared.fingerprint("train")


class TestImages:
    @pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
    def test_the_pixels_are_those_that_were_written(self, data_dir, name):
        data = load_dataset(f"tfds:{name}", data_dir=data_dir)
        assert data.train.labels[:40].tolist() == [i % data.num_classes for i in range(40)]
        images = [made_up_image(i % data.num_classes, SIZES[name], i) for i in range(40)]
        np.testing.assert_array_equal(data.train.images[:40], np.stack(images))

    def test_encoded_images_come_with_their_labels(self, data_dir):
        images = PreparedImages(find_prepared("tfds:imagenet2012", data_dir), "train")
        assert len(images) == 100 and images.num_classes == len(images.class_names) == 1000
        content, label = images.read(13)
        assert content[:2] == b"\xff\xd8" and label == 3
        assert images.read_many([13, 2])[0] == (content, label)
        assert images.name_of(13) == f"example 13 of split train in {images.prepared.folder}"
        assert images.labels.tolist() == [i % 10 for i in range(100)]
        assert images.labels.dtype == np.int32 and not images.labels.flags.writeable
        assert images.fingerprint == images.prepared.fingerprint("train")

    def test_labels_are_read_once_and_kept(self, data_dir, monkeypatch):
        images = PreparedImages(find_prepared("tfds:imagenet2012", data_dir), "validation")
        labels = images.labels
        again = PreparedImages(images.prepared, "validation")
        monkeypatch.setattr(PreparedImages, "read_many", None)
        assert again.labels.tolist() == labels.tolist()

    def test_a_copy_in_another_process_opens_files_of_its_own(self, data_dir):
        images = PreparedImages(find_prepared("tfds:imagenet2012", data_dir), "train")
        before = images.read(3)
        copy = pickle.loads(pickle.dumps(images))  # noqa: S301
        assert set(vars(copy)) == {"prepared", "split"}
        assert copy.read(3) == before

    def test_nothing_imports_tensorflow(self, data_dir):
        program = """
import sys
from jaxprune.datasets.dataset import load_dataset
from jaxprune.datasets.prepared_folders import find_prepared
from jaxprune.datasets.prepared_images import PreparedImages
load_dataset("tfds:mnist", data_dir=sys.argv[1]).standardised()
PreparedImages(find_prepared("tfds:imagenet2012", sys.argv[1]), "train").labels
print("tensorflow" in sys.modules, "jax" in sys.modules)
"""
        command = [sys.executable, "-c", program, str(data_dir)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert run.stdout.split() == ["False", "True"]


class TestWhatCannotBeRead:
    def test_an_unknown_set_gets_the_closest_name(self, data_dir):
        with pytest.raises(ValueError, match=r"tfds:cifar11 needs to be a set .* Did you mean 'cifar10.*'\?"):
            find_prepared("tfds:cifar11", data_dir)

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("kmnist", "kmnist"),
            ("mnist:1.0.0", "mnist:1.0.0"),
            ("imagenet2012/shrunk256:5.1.0", "imagenet2012:5.1.0 --shrink 256"),
            ("imagenette/320px-v2", "imagenette/320px-v2"),
            ("imagenet2012/shrunk256", "imagenet2012 --shrink 256"),
        ],
    )
    def test_what_is_not_prepared_gets_the_command_that_prepares_it(self, data_dir, name, command):
        with pytest.raises(
            ValueError, match=rf"first, got .* run `jaxprune prepare {command} --data-dir {data_dir}`\."
        ):
            find_prepared(f"tfds:{name}", data_dir)

    def test_an_unfinished_preparation_is_none(self, tmp_path):
        (tmp_path / "mnist" / "incomplete.AB_3.0.1").mkdir(parents=True)
        with pytest.raises(
            ValueError, match=r"first, got a preparation that did not end\. To do so, run `jaxprune"
        ):
            find_prepared("tfds:mnist", tmp_path)

    def test_a_wrong_data_directory_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"first, got no such folder\. To do so"):
            find_prepared("tfds:mnist", tmp_path / "absent")
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"data directory needs to be a folder, got the file .*file\."):
            find_prepared("tfds:mnist", tmp_path / "file")
        with pytest.raises(
            ValueError, match=r"needs to be a folder, got gs://bucket/tfds\. Mount the bucket"
        ):
            find_prepared("tfds:mnist", "gs://bucket/tfds")

    def test_unknown_labels_and_splits_get_those_there_are(self, data_dir):
        with pytest.raises(
            ValueError, match=r"label or coarse_label, .* got 'coarse_lable'\. Did you mean 'coa"
        ):
            find_prepared("tfds:cifar100/coarse_lable", data_dir)
        with pytest.raises(ValueError, match=r"needs at most one key of a label, got label, label\."):
            find_prepared("tfds:cifar100/label/label", data_dir)
        with pytest.raises(
            ValueError, match=r"splits train, test with examples, got 'trian'\. Did you mean 'train'"
        ):
            PreparedImages(find_prepared("tfds:mnist", data_dir), "trian")

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    def test_a_missing_description_is_named(self, mnist, name):
        data_dir, place = mnist
        (place / name).unlink()
        with pytest.raises(
            ValueError, match=rf"needs {name} in .*3.0.1, got none\. Restore it, or delete .* run"
        ):
            find_prepared("tfds:mnist", data_dir)

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    def test_a_damaged_description_is_refused(self, mnist, name):
        data_dir, place = mnist
        (place / name).write_text('{"damaged')
        with pytest.raises(
            ValueError, match=r"needs readable descriptions in .*3.0.1, got .*Error: .* Restore it"
        ):
            find_prepared("tfds:mnist", data_dir)

    def test_a_missing_file_of_records_is_named(self, mnist):
        data_dir, place = mnist
        (place / "mnist-train.array_record-00001").unlink()
        with pytest.raises(
            ValueError, match=r"needs 3 files of records in .*, got 2: mnist-train.* is missing\."
        ):
            find_prepared("tfds:mnist", data_dir)

    def test_a_file_of_records_that_was_cut_short_is_refused(self, mnist):
        data_dir, place = mnist
        for file in place.glob("mnist-train*"):
            file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(
            ValueError, match=r"needs whole files of records, got damaged ones in .*mnist/3.0.1: "
        ):
            load_dataset("tfds:mnist", data_dir=data_dir)

    def test_tfrecords_are_refused(self, mnist):
        data_dir, place = mnist
        info = json.loads((place / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
        (place / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(
            ValueError, match=r"needs files of array_record, .* got tfrecord in .* another folder, and"
        ):
            find_prepared("tfds:mnist", data_dir)

    def test_labels_out_of_range_are_refused(self, mnist):
        data_dir, place = mnist
        features = (place / "features.json").read_text()
        (place / "features.json").write_text(features.replace('"numClasses": "10"', '"numClasses": "7"'))
        with pytest.raises(ValueError, match=r"tfds:mnist needs labels from 0 to 6, got 7 for example 7 in"):
            load_dataset("tfds:mnist", data_dir=data_dir)

    def test_sets_without_images_or_labels_are_refused(self, mnist):
        data_dir, place = mnist
        features = json.loads((place / "features.json").read_text())
        del features["featuresDict"]["features"]["label"]
        (place / "features.json").write_text(json.dumps(features))
        with pytest.raises(ValueError, match=r"needs images with class labels, got image\. Read it"):
            find_prepared("tfds:mnist", data_dir)

    def test_images_of_sixteen_bits_are_refused(self, mnist):
        data_dir, place = mnist
        features = (place / "features.json").read_text()
        (place / "features.json").write_text(features.replace('"uint8"', '"uint16"'))
        with pytest.raises(
            ValueError, match=r"needs images of 8 bits a colour, got .*uint16.*\. Read it yourself"
        ):
            find_prepared("tfds:mnist", data_dir)

    @pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record", "importlib_resources"])
    def test_without_the_packages_the_extra_is_named(self, monkeypatch, data_dir, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"got no {package}\. Run pip install 'jaxprune\[data\]'"):
            find_prepared("tfds:mnist", data_dir)
