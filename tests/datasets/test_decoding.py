"""Decoding: every kind of file gives the same square image, boxes stay inside, damage is a value."""

from __future__ import annotations

import importlib.util
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_in_memory import encoded, smooth_pixels
from PIL import Image

from jaxprune.datasets.decoding import (
    LONGEST_SIDE,
    NUM_ATTEMPTS,
    NUM_DRAWS,
    SMALLEST_AREA,
    Box,
    Unreadable,
    centre_box,
    choose_decoder,
    decode_for_testing,
    decode_for_training,
    random_box,
)

DECODERS = ("simplejpeg", "pillow")
WHOLE = [0.999999] + [0.0] * (NUM_ATTEMPTS - 1) + [0.5] * NUM_ATTEMPTS + [0.0, 0.0]
"""Draws that take all of a square image; the next one says whether it is mirrored."""

draws = st.lists(st.floats(0, 1, exclude_max=True), min_size=NUM_DRAWS, max_size=NUM_DRAWS)
sizes = st.integers(1, 400)


def far(image, pixels):
    """The largest difference of grey levels."""
    return np.abs(image.astype(int) - pixels.astype(int)).max()


def files():
    """Name -> (the bytes of a file of 40 x 32 pixels, the pixels it shows)."""
    pixels = smooth_pixels(40, 32)
    grey = np.repeat(np.asarray(pixels).mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    few = pixels // 128 * 255
    jpeg = encoded(pixels)
    return {
        "jpeg": (jpeg, pixels),
        "progressive jpeg": (encoded(pixels, progressive=True), pixels),
        "grey jpeg": (encoded(grey, mode="L"), grey),
        "CMYK jpeg": (encoded(pixels, mode="CMYK"), pixels),
        "jpeg with bytes after its end": (jpeg + b"more" * 50, pixels),
        "png": (encoded(pixels, "PNG"), pixels),
        "grey png": (encoded(grey, "PNG", mode="L"), grey),
        "palette png": (encoded(few, "PNG", mode="P"), few),
        "transparent png": (encoded(pixels, "PNG", mode="RGBA"), pixels),
        "16-bit png": (sixteen_bits(grey), grey),
        "webp": (encoded(pixels, "WEBP", lossless=True), pixels),
    }


def sixteen_bits(grey):
    file = io.BytesIO()
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(file, "PNG")
    return file.getvalue()


class TestBoxesByHand:
    def test_the_centre_of_an_image(self):
        assert centre_box(500, 400, 224 / 256) == Box(75, 25, 350, 350)
        assert centre_box(1, 3, 0.1) == Box(0, 1, 1, 1)

    def test_the_first_box_that_fits_is_taken(self):
        # 36 % of 100 x 50 pixels: 42 x 42 fits; 81 % as a square, 64 x 64, does not.
        areas = [(0.81 - 0.08) / 0.92, (0.36 - 0.08) / 0.92] + [0.0] * 8
        assert random_box([*areas, *[0.5] * 10, 0.999, 0.0], 100, 50) == Box(58, 0, 42, 42)

    def test_long_images_give_the_largest_box_at_the_centre(self):
        assert random_box([0.5] * NUM_DRAWS, 1000, 30) == Box(480, 0, 40, 30)
        assert random_box([0.5] * NUM_DRAWS, 30, 1000) == Box(0, 480, 30, 40)

    def test_the_sides_have_ratios_of_3_to_4_up_to_4_to_3(self):
        box = random_box([0.2] * 10 + [0.0] * 12, 400, 400)
        assert box.width / box.height == pytest.approx(3 / 4, abs=0.01)


@given(draws, sizes, sizes)
def test_random_boxes_lie_inside_and_have_allowed_shapes(numbers, width, height):
    box = random_box(numbers, width, height)
    assert box.left >= 0 and box.top >= 0 and box.width >= 1 and box.height >= 1
    assert box.left + box.width <= width and box.top + box.height <= height
    # Sides are rounded to whole pixels.
    assert (box.width - 0.5) / (box.height + 0.5) <= LONGEST_SIDE
    assert (box.height - 0.5) / (box.width + 0.5) <= LONGEST_SIDE
    if max(width, height) <= 2 * min(width, height):
        assert (box.width + 0.5) * (box.height + 0.5) >= SMALLEST_AREA * width * height


@given(sizes, sizes, st.floats(0.01, 1))
def test_centre_boxes_lie_inside(width, height, fraction):
    left, top, box_width, box_height = centre_box(width, height, fraction)
    assert box_width == box_height >= 1
    assert abs(2 * left + box_width - width) <= 1 and abs(2 * top + box_height - height) <= 1


@pytest.mark.parametrize("decoder", DECODERS)
class TestEveryDecoder:
    @pytest.mark.parametrize("kind", files())
    def test_files_of_all_kinds_show_their_pixels(self, kind, decoder):
        content, pixels = files()[kind]
        image = decode_for_testing(content, image_size=32, resize=32, decoder=decoder)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert far(image, pixels[:, 4:36]) <= 12

    @pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (7, 3), (301, 200)])
    def test_odd_sizes_become_square(self, shape, decoder):
        content = encoded(smooth_pixels(*shape))
        for image in (
            decode_for_testing(content, image_size=8, resize=9, decoder=decoder),
            decode_for_training(content, [0.3] * NUM_DRAWS, image_size=8, decoder=decoder),
        ):
            assert image.shape == (8, 8, 3) and image.dtype == np.uint8

    def test_training_images_are_mirrored_where_the_last_draw_is_below_a_half(self, decoder):
        content = encoded(smooth_pixels(32, 32), "PNG")
        straight, mirrored = (
            decode_for_training(content, [*WHOLE, last], image_size=16, decoder=decoder)
            for last in (0.5, 0.49)
        )
        assert np.array_equal(straight[:, ::-1], mirrored) and not np.array_equal(straight, mirrored)

    def test_the_same_draws_give_the_same_image(self, decoder):
        content, numbers = encoded(smooth_pixels(50, 40)), np.random.default_rng(0).random(NUM_DRAWS).tolist()
        first, second = (
            decode_for_training(content, numbers, image_size=16, decoder=decoder) for _ in range(2)
        )
        assert np.array_equal(first, second)

    def test_shrinking_takes_means_of_all_pixels(self, decoder):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, ::2] = 255
        image = decode_for_testing(encoded(stripes, "PNG"), image_size=8, resize=8, decoder=decoder)
        assert far(image, np.full_like(image, 127)) <= 8

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda content: b"", "not an image"),
            (lambda content: b"hello", "not an image"),
            (lambda content: content[:200], "premature end"),
            (lambda content: content[: len(content) * 3 // 4], "truncated|premature"),
            (lambda content: content[:2000] + b"\xff\xd5" + content[2002:4000], "truncated|premature"),
            (lambda content: encoded(smooth_pixels(40, 32), "PNG")[:200], "truncated"),
        ],
        ids=["empty", "text", "header only", "most of a jpeg", "with another damage", "some of a png"],
    )
    def test_damaged_files_are_values_with_a_reason(self, damage, reason, decoder):
        content = damage(encoded(smooth_pixels(200, 150)))
        for result in (
            decode_for_testing(content, image_size=8, resize=8, decoder=decoder),
            decode_for_training(content, [0.5] * NUM_DRAWS, image_size=8, decoder=decoder),
        ):
            assert isinstance(result, Unreadable)
            assert re.search(reason, result.reason, re.IGNORECASE)

    @given(st.binary(max_size=60), st.integers(0, 600), st.booleans())
    def test_no_bytes_at_all_raise(self, decoder, noise, place, is_png):
        content = encoded(smooth_pixels(24, 20), "PNG" if is_png else "JPEG")
        content = content[:place] + noise + content[place + len(noise) :]
        result = decode_for_testing(content, image_size=8, resize=8, decoder=decoder)
        assert isinstance(result, Unreadable) or result.shape == (8, 8, 3)


def test_the_decoders_agree_up_to_resampling():
    content, numbers = encoded(smooth_pixels(300, 200)), np.random.default_rng(1).random(NUM_DRAWS).tolist()
    one, other = (decode_for_training(content, numbers, image_size=32, decoder=name) for name in DECODERS)
    assert far(one, other) <= 4


class TestChoosingTheDecoder:
    def hide(self, monkeypatch, *names):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))

    def test_the_faster_one_is_chosen_where_it_is_installed(self):
        assert choose_decoder() == "simplejpeg"

    def test_pillow_is_chosen_without_opencv(self, monkeypatch):
        self.hide(monkeypatch, "cv2")
        assert choose_decoder() == "pillow"

    def test_a_missing_package_is_named_with_the_extra(self, monkeypatch):
        self.hide(monkeypatch, "simplejpeg", "cv2", "PIL")
        with pytest.raises(ImportError, match=r"simplejpeg, cv2, PIL.*pip install 'jaxprune\[data\]'"):
            choose_decoder("simplejpeg")
        with pytest.raises(ImportError, match=r"with pillow needs the modules PIL.*jaxprune\[data\]"):
            choose_decoder()

    def test_an_unknown_decoder_is_refused(self):
        with pytest.raises(ValueError, match='must be "auto", "simplejpeg" or "pillow", got \'tf\''):
            choose_decoder("tf")
