"""Preparing says what it needs before, and how to go on after a failure; what is prepared stays."""

from __future__ import annotations

import errno
import importlib.util
import sys
import tarfile
import types

import pytest
from imagenet_archives import tar, write_archives
from prepared_data import write_prepared

from jaxprune.datasets import preparation
from jaxprune.datasets.preparation import check_disk, prepare, tell_leftovers
from jaxprune.datasets.prepared_folders import find_prepared
from jaxprune.datasets.prepared_images import PreparedImages


@pytest.fixture
def tensorflow(monkeypatch):
    """Pretends that TensorFlow is there, for what is checked before it is used."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow" or find(name))


@pytest.fixture
def failing(monkeypatch, tensorflow):
    """A function that makes every preparation fail with an error."""
    import tensorflow_datasets as tfds

    def fail_with(error):
        def fail(self, **_):
            raise error

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)

    return fail_with


def error_named(name, module="library"):
    """An error of a type with some name, as of a library that is not imported here."""
    return type(name, (Exception,), {"__module__": module})("first line\nsecond line")


class TestPrepared:
    def test_what_is_prepared_stays_and_needs_no_tensorflow(self, tmp_path):
        place = write_prepared("mnist", tmp_path)
        before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
        lines: list[str] = []
        prepared = prepare("tfds:mnist", data_dir=tmp_path, tell=lines.append)
        assert prepared.folder == place and "tensorflow" not in sys.modules
        assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}
        assert lines == [
            f"tfds:mnist is prepared already: 100 train, 20 test images, 10 classes, 0 MiB in {place}."
        ]

    def test_a_damaged_set_is_refused_and_kept(self, tmp_path):
        place = write_prepared("mnist", tmp_path)
        (place / "features.json").unlink()
        with pytest.raises(ValueError, match=r"needs features.json in .*, got none\. Restore it, or delete"):
            prepare("mnist", data_dir=tmp_path)

    def test_tfrecords_are_refused(self, tmp_path):
        place = write_prepared("mnist", tmp_path)
        info = place / "dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
        with pytest.raises(
            ValueError, match=r"needs files of array_record, .* got tfrecord .* name another folder"
        ):
            prepare("mnist", data_dir=tmp_path)


class TestRefusedBefore:
    def test_without_tensorflow_the_extra_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        with pytest.raises(
            ImportError, match=r"tfds:mnist needs TensorFlow, .* pip install 'jaxprune\[prepare\]'"
        ):
            prepare("mnist", data_dir=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_set_gets_the_closest_name(self, tmp_path):
        with pytest.raises(ValueError, match=r"tfds:mnits needs to be a set .* Did you mean 'mnist'\?"):
            prepare("mnits", data_dir=tmp_path)

    def test_unknown_configurations_are_refused(self, tmp_path, tensorflow):
        with pytest.raises(
            ValueError, match=r"one of the configurations full-size-v2, .*, got 'big'\. All labels"
        ):
            prepare("imagenette/big", data_dir=tmp_path)
        with pytest.raises(
            ValueError, match=r"is prepared with no configuration, got 'coarse_label'\. All labels"
        ):
            prepare("cifar100/coarse_label", data_dir=tmp_path)

    def test_smaller_images_are_asked_for_with_an_option(self, tmp_path, tensorflow):
        with pytest.raises(
            ValueError,
            match=r"made with an option: run `jaxprune prepare imagenet2012 --shrink 64 --data-dir",
        ):
            prepare("imagenet2012/shrunk64", data_dir=tmp_path)

    def test_unknown_versions_are_refused(self, tmp_path, tensorflow):
        with pytest.raises(ValueError, match=r"tfds:mnist cannot be prepared: .*"):
            prepare("mnist:77.0.0", data_dir=tmp_path)

    def test_sets_without_images_are_refused(self, tmp_path, tensorflow):
        with pytest.raises(
            ValueError, match=r"needs images with class labels .* kinds ClassLabel, Text\. Prepare"
        ):
            prepare("ag_news_subset", data_dir=tmp_path)

    def test_a_folder_of_no_known_set_is_refused(self, tmp_path, tensorflow):
        (tmp_path / "own").mkdir()
        with pytest.raises(
            ValueError, match=r"to be prepared, got a folder that holds no version of it, .*own\."
        ):
            prepare("own", data_dir=tmp_path)

    def test_a_missing_archive_comes_with_the_page_that_has_it(self, tmp_path, tensorflow):
        names = r"ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar in .*manual, got no such folder"
        with pytest.raises(
            ValueError, match=names + r"\. .* https://image-net.org/download-images, then name"
        ):
            prepare("imagenet2012", data_dir=tmp_path)
        write_archives(tmp_path)
        (tmp_path / "ILSVRC2012_img_val.tar").unlink()
        with pytest.raises(ValueError, match=r"needs ILSVRC2012_img_val.tar in .*, got a folder without"):
            prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path)

    def test_an_archive_without_its_end_is_refused_before_the_work(self, tmp_path, tensorflow):
        write_archives(tmp_path)
        file = tmp_path / "ILSVRC2012_img_train.tar"
        file.write_bytes(file.read_bytes()[:2_000])
        with pytest.raises(
            ValueError, match=r"train.tar needs to be a whole archive, .* its end is missing\. Fetch"
        ):
            prepare("imagenet2012", data_dir=tmp_path / "data", manual_dir=tmp_path)

    def test_a_disk_that_is_too_small_is_refused(self, tmp_path, tensorflow, monkeypatch):
        usage = types.SimpleNamespace(free=10 * 2**20)
        monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(
            ValueError, match=r"tfds:mnist needs about 33 MiB of disk in .*, got 10 MiB free\. Free"
        ):
            prepare("mnist", data_dir=tmp_path)

    def test_the_disk_needed_is_told(self, tmp_path):
        lines: list[str] = []
        check_disk("this", 2**20, tmp_path / "not" / "there", lines.append)
        check_disk("that", 0, tmp_path, lines.append)
        assert "this needs about 1 MiB of disk in" in lines[0] and "are free." in lines[0]
        assert "that needs an unknown amount of disk in" in lines[1]

    def test_left_over_folders_are_told(self, tmp_path):
        (tmp_path / "incomplete.X_3.0.1").mkdir()
        (tmp_path / "shrunk64" / "3.0.1.incompleteY").mkdir(parents=True)
        lines: list[str] = []
        tell_leftovers(tmp_path, lines.append)
        assert len(lines) == 2 and "did not end left" in lines[0] and "delete it, unless" in lines[1]


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (
                error_named("NonMatchingChecksumError"),
                r"checksums that .* knows, got another one\. first line\. The",
            ),
            (
                error_named("DownloadError"),
                r"files from the network, got DownloadError: first line\. What was down",
            ),
            (
                error_named("ConnectionError", "requests.exceptions"),
                r"from the network, got ConnectionError: first",
            ),
            (
                tarfile.ReadError("bad checksum"),
                r"to be a whole archive, got a damaged one: bad checksum\. Fetch it",
            ),
            (
                OSError(errno.ENOSPC, "No space left"),
                r"needs more disk than .* has: it is full\. Free some space",
            ),
            (
                KeyError("n01"),
                r"prepares it from, which failed with KeyError: 'n01'\. If archives were fetched",
            ),
        ],
    )
    def test_errors_of_the_library_say_how_to_go_on(self, tmp_path, failing, error, message):
        failing(error)
        with pytest.raises(ValueError, match=message):
            prepare("mnist", data_dir=tmp_path, tell=lambda line: None)

    def test_a_missing_package_is_named(self, tmp_path, failing):
        failing(ImportError("No module named 'apache_beam'"))
        with pytest.raises(
            ImportError, match=r"needs another package: No module named 'apache_beam'\. Install"
        ):
            prepare("mnist", data_dir=tmp_path, tell=lambda line: None)

    def test_ctrl_c_goes_through(self, tmp_path, failing):
        failing(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare("mnist", data_dir=tmp_path, tell=lambda line: None)


@pytest.mark.slow
class TestRealBuilder:
    """Needs TensorFlow, of the extra `prepare`."""

    @pytest.fixture(autouse=True)
    def needs_tensorflow(self):
        pytest.importorskip("tensorflow")

    def test_a_tiny_imagenet_is_prepared_and_read(self, tmp_path):
        write_archives(tmp_path)
        lines: list[str] = []
        prepared = prepare("imagenet2012", data_dir=tmp_path / "data", manual_dir=tmp_path, tell=lines.append)
        assert dict(prepared.num_examples) == {"train": 12, "validation": 6}
        images = PreparedImages(find_prepared("tfds:imagenet2012", tmp_path / "data"), "train")
        assert sorted(images.labels.tolist()) == sorted(list(set(images.labels.tolist())) * 4)
        assert all(content[:2] == b"\xff\xd8" for content, _ in images.read_many(range(12)))
        assert "needs about" in lines[0] and "is prepared: 12 train, 6 validation" in lines[-1]
        again: list[str] = []
        prepare("imagenet2012", data_dir=tmp_path / "data", tell=again.append)
        assert "is prepared already" in again[0]

    def test_a_damaged_archive_is_refused_and_leaves_nothing(self, tmp_path):
        write_archives(tmp_path)
        file = tmp_path / "ILSVRC2012_img_train.tar"
        content = bytearray(file.read_bytes())
        content[512 + 100 : 512 + 200] = (
            b"x" * 100
        )  # in the header of the first image of the first inner archive
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"tfds:imagenet2012 .* to be a whole archive, got a damaged one"
        ):
            prepare("imagenet2012", data_dir=tmp_path / "data", manual_dir=tmp_path, tell=lambda line: None)
        with pytest.raises(ValueError, match=r"needs to be prepared"):
            find_prepared("tfds:imagenet2012", tmp_path / "data")

    def test_an_archive_of_something_else_is_refused(self, tmp_path):
        write_archives(tmp_path)
        (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar({"cats.tar": tar({"1.JPEG": b"no image"})}))
        with pytest.raises(
            ValueError, match=r"tfds:imagenet2012 needs what TensorFlow Datasets prepares it from"
        ):
            prepare("imagenet2012", data_dir=tmp_path / "data", manual_dir=tmp_path, tell=lambda line: None)
