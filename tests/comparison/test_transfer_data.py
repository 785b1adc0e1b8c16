"""Images in memory and images on the disk offer the same: batches from any step on, parts in order, calibration."""

from __future__ import annotations

import numpy as np
import pytest
from images_in_memory import some_images
from prepared_data import made_up_image
from toy_transfer import small_data

from jaxprune.comparison import transfer_data
from jaxprune.comparison.transfer_data import ArrayData, EncodedData, open_data
from jaxprune.datasets.dataset import Dataset


def whole_numbers() -> Dataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8), np.arange(20) % 2
    return Dataset.from_arrays("bytes", train=(images, labels), test=(images[:6], labels[:6]))


@pytest.fixture
def folder(tmp_path):
    """An image folder with images of two sizes."""
    image = pytest.importorskip("PIL.Image")
    for part, count in (("train", 10), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "animals" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = made_up_image(label, (12 + i % 2, 12, 3), i)
                image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "animals"


@pytest.fixture(params=["floats", "bytes", "disk"])
def data(request):
    if request.param == "disk":
        return open_data(str(request.getfixturevalue("folder")), image_size=8)
    return ArrayData(small_data() if request.param == "floats" else whole_numbers(), request.param)


def all_of(batches):
    with batches:
        return [tuple(map(np.asarray, batch)) for batch in batches]


def test_batches_from_a_step_on_are_those_of_the_whole_run(data):
    some = {"batch_size": 4, "seed": 3, "num_steps": 6, "sharding": None}
    whole, rest = (all_of(data.train_batches(start_step=step, **some)) for step in (0, 4))
    assert len(whole) == 6 and len(rest) == 2
    for one, other in zip(whole[4:], rest, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
    assert whole[0][0].shape == (4, *data.image_shape)


def test_parts_come_once_and_padded(data):
    some = {"batch_size": 3, "sharding": None}
    found = all_of(data.part_batches("validation", opened=None, **some))
    weights = np.concatenate([batch[2] for batch in found])
    assert weights.sum() == data.num_validation and len(weights) == 3 * len(found)
    labels = np.concatenate([batch[1] for batch in found])
    assert set(labels[weights == 0]) <= {-1} and set(labels[weights > 0]) == {0, 1}


def test_test_images_come_through_their_guard(data, tmp_path):
    assert "closed" in repr(data.test)
    opened = data.test.open(tmp_path / "record.json")
    found = all_of(data.part_batches("test", batch_size=4, sharding=None, opened=opened))
    assert sum(batch[2].sum() for batch in found) == data.test.num_examples


def test_calibration_images_are_balanced_and_as_networks_take_them(data):
    images, labels = data.calibration(6)
    assert images.dtype == np.float32 and images.shape == (6, *data.image_shape)
    assert np.bincount(labels).tolist() == [3, 3] and np.abs(images).max() < 10


def test_bytes_become_what_the_data_set_says():
    dataset = whole_numbers()
    images, labels = dataset.standardised().train
    found = ArrayData(dataset, "bytes").calibration(len(labels))
    np.testing.assert_allclose(found.images, images, atol=1e-5)
    assert found.labels.tolist() == labels.tolist()


def test_images_of_many_sizes_come_from_the_disk(folder):
    data = open_data(str(folder), image_size=8)
    assert isinstance(data, EncodedData) and data.num_bytes == 0
    assert (data.num_train, data.num_validation, data.test.num_examples) == (16, 4, 8)
    assert data.fingerprint != open_data(str(folder), image_size=9).fingerprint


def test_images_decoded_by_another_program_are_other_images(monkeypatch):
    images = some_images(4)

    def fingerprint(size=8):
        return EncodedData("mine", "", images, images, None, size).fingerprint

    found = {fingerprint(), fingerprint(), fingerprint(16)}
    monkeypatch.setattr(transfer_data, "choose_decoder", lambda: "pillow")
    assert len(found | {fingerprint()}) == 3


def test_an_image_size_is_for_images_on_the_disk():
    with pytest.raises(ValueError, match="an image size is for images of many sizes"):
        open_data("digits", image_size=8)
