"""Input pipelines: the same batches however they are made, damaged images, places on devices, and bad arguments."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from images_in_memory import ImagesInMemory, some_images
from jax.sharding import NamedSharding, PartitionSpec
from prepared_data import write_prepared

from jaxprune.datasets.encoded_images import read_folder
from jaxprune.datasets.input_pipeline import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    array_batches,
    array_evaluation_batches,
    evaluation_batches,
    normalised,
    train_batches,
)
from jaxprune.datasets.prepared_folders import find_prepared
from jaxprune.datasets.prepared_images import PreparedImages

SETTINGS = {"batch_size": 4, "image_size": 8, "seed": 3, "num_steps": 7}
SOURCE = some_images(10)
ARRAYS = (
    np.random.default_rng(0).integers(0, 256, size=(10, 8, 8, 3), dtype=np.uint8),
    (np.arange(10) % 3).astype(np.int32),
)


def read(batches):
    """All batches as NumPy arrays, closed at the end."""
    with batches:
        return [tuple(np.array(array) for array in batch) for batch in batches]


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def expected():
    return read(train_batches(SOURCE, **SETTINGS))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_prepared("imagenet2012", folder, num_train=12, num_test=3, side=24)
    return PreparedImages(find_prepared("tfds:imagenet2012", folder), "train")


class TestTrainBatches:
    def test_batches_have_one_shape_and_the_promised_types(self, expected):
        for images, labels, weights in expected:
            assert images.shape == (4, 8, 8, 3) and images.dtype == np.uint8
            assert labels.shape == (4,) and labels.dtype == np.int32
            assert weights.shape == (4,) and weights.dtype == np.float32

    def test_each_image_is_seen_at_most_once_an_epoch(self):
        source = some_images(10)
        read(train_batches(source, **SETTINGS | {"num_steps": 4}))
        assert len(set(source.read_log[:8])) == len(set(source.read_log[8:])) == 8
        assert source.read_log[:8] != source.read_log[8:]

    @pytest.mark.parametrize("threads", [1, 3])
    def test_threads_make_the_same_batches(self, threads, expected):
        assert_same(read(train_batches(SOURCE, **SETTINGS, threads=threads)), expected)

    @pytest.mark.slow
    def test_processes_make_the_same_batches_and_go_on_at_a_step(self, expected):
        assert_same(read(train_batches(SOURCE, **SETTINGS, workers=2, start_step=2)), expected[2:])

    @pytest.mark.parametrize("start", range(8))
    def test_going_on_at_a_step_equals_never_stopping(self, start, expected):
        assert_same(read(train_batches(SOURCE, **SETTINGS, start_step=start)), expected[start:])

    def test_hosts_together_make_the_whole_batch(self, expected):
        hosts = [read(train_batches(SOURCE, **SETTINGS, shard=(host, 2))) for host in range(2)]
        joined = [
            tuple(np.concatenate(pair) for pair in zip(one, other, strict=True))
            for one, other in zip(*hosts, strict=True)
        ]
        assert_same(joined, expected)

    def test_another_seed_makes_other_batches(self, expected):
        others = read(train_batches(SOURCE, **SETTINGS | {"seed": 4}))
        assert not any(np.array_equal(x[0], y[0]) for x, y in zip(others, expected, strict=True))

    def test_the_decoder_is_told(self):
        assert train_batches(SOURCE, **SETTINGS).decoder == "simplejpeg"
        assert train_batches(SOURCE, **SETTINGS, decoder="pillow").decoder == "pillow"

    def test_the_speed_counts_all_images(self):
        batches = train_batches(SOURCE, **SETTINGS)
        read(batches)
        facts = batches.speed.take()
        assert facts.images == 28 and 0 < facts.input_seconds <= facts.seconds


class TestEvaluationBatches:
    def test_every_image_is_there_once_and_in_order(self):
        batches = read(evaluation_batches(SOURCE, batch_size=4, image_size=8))
        labels, weights = (np.concatenate([batch[part] for batch in batches]) for part in (1, 2))
        assert labels.tolist() == [0, 1] * 5 + [-1, -1]
        assert weights.tolist() == [1.0] * 10 + [0.0] * 2

    def test_one_batch_may_be_larger_than_the_data(self):
        ((_, _, weights),) = read(evaluation_batches(SOURCE, batch_size=12, image_size=8))
        assert weights.sum() == 10

    def test_hosts_together_test_every_image_once(self):
        hosts = [read(evaluation_batches(SOURCE, batch_size=4, image_size=8, shard=(h, 2))) for h in range(2)]
        assert [len(batches) for batches in hosts] == [3, 3]
        assert sum(batch[2].sum() for batches in hosts for batch in batches) == 10

    def test_the_shorter_side_is_resized_to_eight_sevenths_by_default(self):
        default, explicit, other = (
            read(evaluation_batches(SOURCE, batch_size=10, image_size=14, resize=resize))[0][0]
            for resize in (None, 16, 20)
        )
        assert np.array_equal(default, explicit) and not np.array_equal(default, other)


class TestSourcesOnDisk:
    def test_prepared_sets_are_read_alike_in_threads(self, prepared):
        expected = read(train_batches(prepared, **SETTINGS))
        assert expected[0][0].any()
        assert_same(read(train_batches(prepared, **SETTINGS, threads=3)), expected)

    @pytest.mark.slow
    def test_prepared_sets_are_read_alike_in_processes(self, prepared):
        expected = read(train_batches(prepared, **SETTINGS))
        assert_same(read(train_batches(prepared, **SETTINGS, workers=2)), expected)

    def test_a_damaged_file_of_a_folder_is_named(self, tmp_path):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            for number in range(2):
                (tmp_path / name / f"{number}.jpg").write_bytes(SOURCE.files[number])
        (tmp_path / "dog" / "1.jpg").write_bytes(b"no image")
        with pytest.warns(
            UserWarning, match=r"^could not decode 1 .*/dog/1\.jpg \(not an image that Pillow knows\)\."
        ):
            read(evaluation_batches(read_folder(tmp_path), batch_size=4, image_size=8))


class TestDamagedImages:
    def test_they_are_counted_named_and_warned_of_once(self):
        batches = train_batches(some_images(8, damaged=[1, 6]), **SETTINGS | {"num_steps": 8})
        message = r"^could not decode 2 of the images, .*: image [16] \(.+\), image [16] \("
        with pytest.warns(UserWarning, match=message) as caught:
            arrays = read(batches)
        assert len(caught) == 1
        assert sorted(batches.unreadable) == ["image 1", "image 6"]
        for epoch in range(4):
            weights = np.concatenate([batch[2] for batch in arrays[2 * epoch : 2 * epoch + 2]])
            labels = np.concatenate([batch[1] for batch in arrays[2 * epoch : 2 * epoch + 2]])
            assert weights.sum() == 6 and ((labels == -1) == (weights == 0)).all()

    def test_the_first_five_are_named(self):
        with pytest.warns(UserWarning, match=r"^could not decode 7 .*image 7 \([^)]+\), 2 more\. Replace"):
            read(evaluation_batches(some_images(16, damaged=range(3, 10)), batch_size=16, image_size=8))

    def test_leaving_early_reports_them_too(self):
        batches = evaluation_batches(some_images(8, damaged=[0]), batch_size=2, image_size=8)
        with batches:
            next(batches)
            with pytest.warns(UserWarning, match="^could not decode 1 of the images"):
                batches.close()

    @pytest.mark.parametrize("threads", [0, 2])
    def test_a_first_batch_without_an_image_stops_the_run(self, threads):
        batches = evaluation_batches(
            some_images(8, damaged=range(8)), batch_size=4, image_size=8, threads=threads
        )
        with (
            pytest.raises(
                ValueError, match=r"needs images that can be decoded, got none among the first 4: im"
            ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            next(batches)


class TestArrayBatches:
    def test_going_on_and_threads_change_nothing(self):
        settings = {"batch_size": 4, "seed": 1, "num_steps": 6}
        expected = read(array_batches(*ARRAYS, **settings))
        assert_same(read(array_batches(*ARRAYS, **settings, start_step=3)), expected[3:])
        assert_same(read(array_batches(*ARRAYS, **settings, threads=2)), expected)

    def test_hosts_together_make_the_whole_batch(self):
        settings = {"batch_size": 4, "seed": 1, "num_steps": 1}
        (whole,) = read(array_batches(*ARRAYS, **settings))
        (one,), (other,) = (read(array_batches(*ARRAYS, **settings, shard=(host, 2))) for host in range(2))
        assert_same([whole], [tuple(np.concatenate(pair) for pair in zip(one, other, strict=True))])

    def test_without_augmentation_images_stay_as_they_are(self):
        (images, labels, _), *_ = read(
            array_batches(*ARRAYS, batch_size=10, seed=1, num_steps=1, augment=False)
        )
        order = [int(np.flatnonzero((ARRAYS[0] == image).all(axis=(1, 2, 3)))[0]) for image in images]
        assert sorted(order) == list(range(10)) and np.array_equal(labels, ARRAYS[1][order])

    def test_numbers_that_are_no_pixels_keep_their_type(self):
        features = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
        for batches in (
            array_batches(features, ARRAYS[1], batch_size=4, seed=1, num_steps=2, augment=False),
            array_evaluation_batches(features, ARRAYS[1], batch_size=4),
        ):
            assert all(
                images.dtype == np.float32 and images.shape == (4, 5) for images, _, _ in read(batches)
            )

    def test_evaluation_shows_every_image_once(self):
        batches = read(array_evaluation_batches(*ARRAYS, batch_size=4))
        assert np.array_equal(np.concatenate([images for images, _, _ in batches])[:10], ARRAYS[0])
        assert sum(weights.sum() for _, _, weights in batches) == 10


class TestPlaces:
    def test_a_sharding_says_where_batches_go(self):
        sharding = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
        batch = next(train_batches(SOURCE, **SETTINGS, sharding=sharding))
        assert all(array.sharding == sharding for array in batch)

    def test_two_batches_are_made_ahead_at_most(self):
        source = some_images(10)
        batches = train_batches(source, **SETTINGS)
        next(batches)
        assert len(source.read_log) == 8
        next(batches)
        assert len(source.read_log) == 12


class TestClosing:
    def test_closed_batches_say_how_to_go_on(self):
        batches = train_batches(SOURCE, **SETTINGS, threads=2)
        next(batches)
        batches.close()
        batches.close()
        with pytest.raises(ValueError, match=r"were closed\. Make new ones with start_step="):
            next(batches)

    def test_they_know_how_many_are_left_and_end_once(self):
        batches = train_batches(SOURCE, **SETTINGS, start_step=5)
        assert len(batches) == 2
        assert len(list(batches)) == 2 and list(batches) == [] and len(batches) == 0

    def test_an_error_of_the_source_comes_through(self):
        class Gone(ImagesInMemory):
            def read(self, index):
                raise OSError("the disk is gone")

        source = Gone(SOURCE.files, SOURCE.labels)
        with pytest.raises(OSError, match="the disk is gone"):
            next(train_batches(source, **SETTINGS, threads=2))

    @pytest.mark.slow
    @pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
    def test_worker_processes_end_with_the_one_that_started_them(self, stop, tmp_path, root):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import multiprocessing, time
                from images_in_memory import some_images
                from jaxprune.datasets.input_pipeline import train_batches

                if __name__ == "__main__":
                    batches = train_batches(
                        some_images(8), batch_size=4, image_size=8, seed=0, num_steps=10**6, workers=2
                    )
                    next(batches)
                    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                    time.sleep(60)
                """
            )
        )
        paths = os.pathsep.join(str(root / place) for place in (".", "tests/support"))
        process = subprocess.Popen(
            [sys.executable, script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) == 2, process.stderr.read()
        process.send_signal(stop)
        process.communicate(timeout=90)
        deadline = time.monotonic() + 60
        while any(os.path.exists(f"/proc/{pid}") for pid in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


class TestNormalised:
    def test_by_hand(self):
        images = jnp.array([0, 255, 51], jnp.uint8).reshape(1, 3, 1, 1)
        assert normalised(images, (0.2,), (0.4,)).ravel().tolist() == pytest.approx([-0.5, 2.0, 0.0])

    def test_each_colour_has_its_own_scale_and_the_type_is_the_one_asked_for(self):
        images = jnp.full((2, 3, 3, 3), 255, jnp.uint8)
        result = normalised(images, dtype=jnp.bfloat16)
        assert result.dtype == jnp.bfloat16 and result.shape == images.shape
        colours = (1 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        assert np.asarray(result[0, 0, 0], np.float32) == pytest.approx(colours, rel=0.01)

    def test_the_number_of_colours_has_to_fit(self):
        with pytest.raises(
            ValueError, match=r"for each of the 1 channels, or one for all, got 3 and 3\. Pass"
        ):
            normalised(jnp.zeros((1, 2, 2, 1), jnp.uint8))


class TestBadArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
            ({"batch_size": 2.0}, "batch_size must be a whole number >= 1, got 2.0"),
            ({"batch_size": 11}, "at most the number of images, 10, got 11. Use a smaller batch_size"),
            ({"image_size": 0}, "image_size must be a whole number >= 1, got 0"),
            ({"seed": -1}, "seed must be a whole number from 0 to 2**64 - 1, got -1"),
            ({"start_step": 8}, "0 <= start_step <= num_steps, got 8 and 7. num_steps counts the whole run"),
            ({"shard": (2, 2)}, "shard must be (host, number of hosts) with 0 <= host < number, got (2, 2)"),
            ({"shard": (0, 3)}, "batch_size must be a multiple of the number of hosts, 3, got 4. Use 3."),
            (
                {"threads": -1},
                "threads and workers must be whole numbers >= 0, and one of them 0, got -1 and 0",
            ),
            ({"threads": 1, "workers": 1}, "one of them 0, got 1 and 1. Use threads for a few CPU cores"),
        ],
    )
    def test_numbers_out_of_range_are_named(self, change, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            train_batches(SOURCE, **SETTINGS | change)

    def test_a_source_without_images_is_refused(self):
        with pytest.raises(ValueError, match="source must hold at least one image, got none"):
            evaluation_batches(ImagesInMemory((), np.zeros(0, np.int32)), batch_size=2)

    @pytest.mark.parametrize("bad", [-1, 2])
    def test_labels_out_of_range_are_refused(self, bad):
        labels = SOURCE.labels.copy()
        labels[3] = bad
        with pytest.raises(
            ValueError, match=r"source must have labels from 0 to 1, got (-1 to 1|0 to 2)\. Prep"
        ):
            train_batches(dataclasses.replace(SOURCE, labels=labels), **SETTINGS)

    def test_a_resize_below_the_image_size_is_refused(self):
        with pytest.raises(ValueError, match="resize must be a whole number >= image_size, 8, got 7"):
            evaluation_batches(SOURCE, batch_size=2, image_size=8, resize=7)

    def test_a_batch_that_does_not_divide_by_the_devices_is_refused(self):
        class Three:
            device_set = (0, 1, 2)

            def shard_shape(self, shape):
                raise ValueError("not divisible")

        with pytest.raises(ValueError, match=r"among the 3 devices of sharding, got 4\. Use 3\."):
            train_batches(SOURCE, **SETTINGS, sharding=Three())

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (
                ARRAYS[0] / 255,
                ARRAYS[1],
                r"must be \[N, H, W, C\] of uint8 or float32 and not empty, got float64",
            ),
            (ARRAYS[1], ARRAYS[1], r"got int32 \(10,\)\. Pass pixels as they are stored"),
            (ARRAYS[0][:0], ARRAYS[1][:0], r"not empty, got uint8 \(0, 8, 8, 3\)"),
            (ARRAYS[0], ARRAYS[1] - 1, r"labels must be from 0 to 2\*\*31 - 1, got -1 to 1"),
            (ARRAYS[0], ARRAYS[1][:5], "labels"),
        ],
        ids=["float64", "no axes", "empty", "negative labels", "too few labels"],
    )
    def test_arrays_of_other_kinds_are_refused(self, images, labels, message):
        with pytest.raises(ValueError, match=message):
            array_batches(images, labels, batch_size=2, seed=0, num_steps=1)
        with pytest.raises(ValueError, match=message):
            array_evaluation_batches(images, labels, batch_size=2)

    def test_what_is_no_image_cannot_be_shifted(self):
        settings = {"batch_size": 2, "seed": 0, "num_steps": 1}
        with pytest.raises(ValueError, match=r"got uint8 \(10, 8, 8\)\. .* features augment=False"):
            array_batches(ARRAYS[0][..., 0], ARRAYS[1], **settings)
        array_batches(ARRAYS[0][..., 0], ARRAYS[1], **settings, augment=False)

    def test_a_missing_package_is_named_with_the_extra(self, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "grain" else find(name))
        with pytest.raises(ImportError, match=r"need the package grain.*pip install 'jaxprune\[data\]'"):
            train_batches(SOURCE, **SETTINGS, workers=2)
        assert len(read(train_batches(SOURCE, **SETTINGS))) == 7

    def test_too_little_shared_memory_is_found_before_the_start(self, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**26, 0, 2**26))
        with pytest.raises(
            ValueError, match=r"8 workers need 147 MiB of shared memory, got 64 MiB free in /dev/sh"
        ):
            train_batches(SOURCE, **SETTINGS | {"image_size": 895}, workers=8)
