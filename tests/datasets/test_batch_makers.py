"""Batches on the host: which rows a host makes, shifts and mirror images, and what stands in for a missing image."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from images_in_memory import some_images

from jaxprune.datasets.batch_makers import (
    MARGIN,
    ArrayTesting,
    ArrayTraining,
    EncodedTesting,
    EncodedTraining,
    Rows,
    shift_and_mirror,
)

CENTRE, STRAIGHT, MIRRORED = 0.5, 0.5, 0.49


class TestShiftAndMirrorByHand:
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)

    def shifted(self, *draws):
        return shift_and_mirror(self.image, np.array([draws]))[0, :, :, 0].tolist()

    def test_the_middle_of_the_range_leaves_an_image_as_it_is(self):
        assert self.shifted(CENTRE, CENTRE, STRAIGHT) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]

    def test_shifts_bring_in_black_pixels(self):
        one_further = (MARGIN + 1.5) / (2 * MARGIN + 1)
        assert self.shifted(one_further, CENTRE, STRAIGHT) == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
        assert self.shifted(CENTRE, one_further, STRAIGHT) == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]

    def test_images_are_mirrored_after_the_shift(self):
        assert self.shifted(CENTRE, CENTRE, MIRRORED) == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_shifted_images_are_pieces_of_the_padded_ones(count, height, width, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, size=(count, height, width, 2), dtype=np.uint8)
    draws = rng.random((count, 3))
    padded = np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    for image, source, (down, right, mirror) in zip(
        shift_and_mirror(images, draws), padded, draws, strict=True
    ):
        top, left = int(down * (2 * MARGIN + 1)), int(right * (2 * MARGIN + 1))
        piece = source[top : top + height, left : left + width]
        assert np.array_equal(image, piece[:, ::-1] if mirror < 0.5 else piece)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 20), st.integers(0, 40))
def test_hosts_cover_every_batch_exactly_once(hosts, rows_each, step, extra):
    batch_size = hosts * rows_each
    shards = [Rows(batch_size, host, hosts) for host in range(hosts)]
    count = batch_size + extra
    places = [rows.places(step, count) for rows in shards]
    epoch, first, _ = Rows(batch_size).places(step, count)
    assert [place for e, low, high in places for place in range(low, high) if e == epoch] == list(
        range(first, first + batch_size)
    )
    in_order = np.concatenate([rows.in_order(step, count) for rows in shards])
    assert np.array_equal(in_order, Rows(batch_size).in_order(step, count))


def test_an_epoch_leaves_out_its_incomplete_batch():
    assert [Rows(4).places(step, 10) for step in range(4)] == [(0, 0, 4), (0, 4, 8), (1, 0, 4), (1, 4, 8)]


class TestEncoded:
    def test_a_damaged_image_is_black_and_counts_for_nothing(self):
        make = EncodedTesting(some_images(5, damaged=[2]), Rows(4), 8, 9, "simplejpeg")
        batch = make(0)
        assert batch.labels.tolist() == [0, 1, -1, 1] and batch.weights.tolist() == [1, 1, 0, 1]
        assert not batch.images[2].any() and batch.images[[0, 1, 3]].any()
        assert [failure.name for failure in batch.failures] == ["image 2"]

    def test_the_last_test_batch_is_filled_up(self):
        batch = EncodedTesting(some_images(5), Rows(4), 8, 9, "simplejpeg")(1)
        assert batch.images.shape == (4, 8, 8, 3)
        assert batch.labels.tolist() == [0, -1, -1, -1] and batch.weights.tolist() == [1, 0, 0, 0]
        assert not batch.failures

    def test_a_host_without_an_image_in_the_last_batch_has_padding_only(self):
        source = some_images(5)
        batch = EncodedTesting(source, Rows(4, 1, 2), 8, 9, "simplejpeg")(1)
        assert batch.weights.tolist() == [0, 0] and not source.read_log

    def test_training_images_keep_their_labels(self):
        source = some_images(6)
        batch = EncodedTraining(source, Rows(4), 0, 8, "pillow")(2)
        assert batch.labels.tolist() == [index % 2 for index in source.read_log]

    def test_crops_differ_from_epoch_to_epoch(self):
        make = EncodedTraining(some_images(1), Rows(1), 0, 8, "simplejpeg")
        assert len({make(step).images.tobytes() for step in range(5)}) == 5


def test_the_text_of_a_maker_does_not_grow_with_its_images():
    """Grain asks for it at every start; with the names of a million files it would take a second."""
    assert len(repr(EncodedTraining(some_images(1), Rows(1), 0, 8, "pillow"))) < 200
    assert len(repr(ArrayTesting(TestArrays.images, TestArrays.labels, Rows(1)))) < 200


class TestArrays:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 9, 9, 1), np.uint8)
    labels = np.arange(5, dtype=np.int32)

    def test_an_epoch_shows_each_image_once(self):
        make = ArrayTraining(self.images, self.labels, Rows(1), 0, augment=False)
        batches = [make(step) for step in range(5)]
        assert sorted(int(batch.labels[0]) for batch in batches) == [0, 1, 2, 3, 4]
        assert all((batch.images == batch.labels[0]).all() for batch in batches)

    def test_test_batches_are_in_order_and_filled_up(self):
        batch = ArrayTesting(self.images, self.labels, Rows(3))(1)
        assert batch.images[:, 0, 0, 0].tolist() == [3, 4, 0]
        assert batch.labels.tolist() == [3, 4, -1] and batch.weights.tolist() == [1, 1, 0]
