"""Encoded images to square uint8 images: a random crop, mirrored or not, for training, the centre for testing.

Nothing is drawn here: random numbers are arguments, so the same bytes and numbers give the same image in any thread
or process. Bytes that are no whole image give an `Unreadable`, a value.

JPEG files are decoded by simplejpeg and resized by OpenCV, about twice as fast as Pillow. Pillow does it all where
these are missing, and decodes what is not JPEG (PNG and others). The two resample differently, so pixels differ by a
few grey levels: a run keeps to one of them.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

    from PIL import Image

Decoder = Literal["simplejpeg", "pillow"]
"""Who decodes: simplejpeg with OpenCV, or Pillow alone."""

NUM_ATTEMPTS = 10
"""How many random boxes are tried before the largest one at the centre is taken."""

NUM_DRAWS = 2 * NUM_ATTEMPTS + 3
"""Uniform numbers for one training image: areas and shapes of the boxes, the place (two), and whether to mirror."""

SMALLEST_AREA = 0.08
"""The smallest part of an image that a random box covers."""

LONGEST_SIDE = 4 / 3
"""The largest ratio of the sides of a random box."""

_END_OF_JPEG = b"\xff\xd9"

_MODULES = {"simplejpeg": ("simplejpeg", "cv2", "PIL"), "pillow": ("PIL",)}


class Box(NamedTuple):
    """A rectangle of pixels: its left upper corner and its size."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Unreadable:
    """In place of an image: the reason why bytes could not be decoded."""

    reason: str


def choose_decoder(name: Decoder | Literal["auto"] = "auto") -> Decoder:
    """Chooses who decodes images, before any work is done.

    Args:
      name: "auto" takes simplejpeg and OpenCV where both are installed, else Pillow.

    Returns:
      The decoder to use; which one belongs to the records of a run.

    Raises:
      ValueError: if there is no such decoder.
      ImportError: if what the decoder needs is not installed.

    Example:
      >>> choose_decoder("pillow")
      'pillow'
    """
    if name != "auto" and name not in get_args(Decoder):
        raise ValueError(f'decoder must be "auto", "simplejpeg" or "pillow", got {name!r}.')
    names: tuple[Decoder, ...] = get_args(Decoder) if name == "auto" else (name,)
    for decoder in names:
        if not _missing(decoder):
            return decoder
    raise ImportError(
        f"decoding images with {names[-1]} needs the modules {', '.join(_MODULES[names[-1]])}, could not find "
        f"{', '.join(_missing(names[-1]))}. Install them with pip install 'jaxprune[data]'."
    )


def _missing(decoder: Decoder) -> list[str]:
    """Names of the modules that a decoder needs and that are not installed."""
    return [module for module in _MODULES[decoder] if importlib.util.find_spec(module) is None]


def decode_for_training(
    encoded: bytes, draws: Sequence[float], *, image_size: int, decoder: Decoder
) -> np.ndarray | Unreadable:
    """Decodes an image, crops a random box and resizes it, mirrored in half of the cases.

    Args:
      encoded: the bytes of a JPEG, PNG or other file that Pillow reads.
      draws: `NUM_DRAWS` numbers in [0, 1), see `random_box`; the image is mirrored if the last one is below a half.
      image_size: side of the result in pixels, >= 1.
      decoder: from `choose_decoder`.

    Returns:
      [image_size, image_size, 3] uint8 red, green, blue; or why the bytes could not be decoded.

    Source:
      Szegedy et al., Going Deeper with Convolutions, 2015, sec. 6; as in torchvision.
    """
    pixels = _pixels(encoded, decoder)
    if isinstance(pixels, Unreadable):
        return pixels
    height, width = pixels.shape[:2]
    image = _resized(pixels, random_box(draws, width, height), image_size, decoder)
    return image[:, ::-1] if draws[NUM_DRAWS - 1] < 0.5 else image


def decode_for_testing(
    encoded: bytes, *, image_size: int, resize: int, decoder: Decoder
) -> np.ndarray | Unreadable:
    """Decodes an image, resizes its shorter side to `resize` and crops a square from the centre.

    Only the square is resized, which costs less and differs by less than a pixel at its edge.

    Args:
      encoded: the bytes of a JPEG, PNG or other file that Pillow reads.
      image_size: side of the result in pixels, >= 1; 224 is usual for ImageNet.
      resize: what the shorter side would become, >= image_size; 256 is usual.
      decoder: from `choose_decoder`.

    Returns:
      [image_size, image_size, 3] uint8 red, green, blue; or why the bytes could not be decoded.
    """
    pixels = _pixels(encoded, decoder)
    if isinstance(pixels, Unreadable):
        return pixels
    height, width = pixels.shape[:2]
    return _resized(pixels, centre_box(width, height, image_size / resize), image_size, decoder)


def random_box(draws: Sequence[float], width: int, height: int) -> Box:
    """Picks a box inside an image, of 8 to 100 % of its area and with sides of ratio 3:4 to 4:3.

    The first of ten boxes that fits is taken. If none fits, as in long narrow images, the largest box of an allowed
    ratio at the centre is taken.

    Args:
      draws: numbers in [0, 1): ten areas, ten ratios of the sides (both evenly spread, ratios by their logarithm),
        the place from left to right, and from top to bottom.
      width: width of the image in pixels, >= 1.
      height: its height.

    Example:
      >>> random_box([0.999] + 9 * [0.0] + 10 * [0.5] + [0.0, 0.5], 100, 100)
      Box(left=0, top=0, width=100, height=100)
    """
    for attempt in range(NUM_ATTEMPTS):
        area = width * height * (SMALLEST_AREA + (1 - SMALLEST_AREA) * draws[attempt])
        ratio = LONGEST_SIDE ** (2 * draws[NUM_ATTEMPTS + attempt] - 1)
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(draws[2 * NUM_ATTEMPTS] * (width - box_width + 1))
            top = int(draws[2 * NUM_ATTEMPTS + 1] * (height - box_height + 1))
            return Box(left, top, box_width, box_height)
    return _centred(
        width, height, min(width, round(height * LONGEST_SIDE)), min(height, round(width * LONGEST_SIDE))
    )


def centre_box(width: int, height: int, fraction: float) -> Box:
    """Returns the square at the centre of an image whose side is a fraction of the shorter side.

    Args:
      width: width of the image in pixels, >= 1.
      height: its height.
      fraction: in (0, 1].

    Example:
      >>> centre_box(500, 400, 224 / 256)
      Box(left=75, top=25, width=350, height=350)
    """
    side = max(1, round(min(width, height) * fraction))
    return _centred(width, height, side, side)


def with_eight_bits(image: Image.Image) -> Image.Image:
    """Returns an image with 8 bits a colour: grey ones of 16 bits keep the upper eight; Pillow would clip at 255.

    Args:
      image: an image of Pillow, decoded or not.
    """
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _centred(width: int, height: int, box_width: int, box_height: int) -> Box:
    """A box of the given size at the centre."""
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def _pixels(encoded: bytes, decoder: Decoder) -> np.ndarray | Unreadable:
    """Decodes an image as it is, [H, W, 3] uint8; its EXIF orientation is ignored, as everywhere with ImageNet."""
    is_jpeg = encoded[:2] == b"\xff\xd8"
    if is_jpeg and _END_OF_JPEG not in encoded:  # decoders may tell of another damage alone, or of none
        return Unreadable("premature end of JPEG file")
    if is_jpeg and decoder == "simplejpeg":
        return _jpeg_pixels(encoded)
    return _pillow_pixels(encoded)


def _jpeg_pixels(encoded: bytes) -> np.ndarray | Unreadable:
    """Decodes a JPEG file with simplejpeg; small damage is overlooked, but not that the file ends early."""
    import simplejpeg  # type: ignore[import-untyped]

    try:
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError as error:
        if "Premature end" in str(error):  # what is missing would be grey
            return Unreadable(str(error))
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB", strict=False)
    except ValueError:
        return _pillow_pixels(encoded)  # which reads a few more kinds, and says what is wrong


def _pillow_pixels(encoded: bytes) -> np.ndarray | Unreadable:
    """Decodes an image of any kind with Pillow."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(with_eight_bits(image).convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make Pillow raise errors of many types
        reason = "not an image that Pillow knows" if "cannot identify" in str(error) else str(error)
        return Unreadable(reason or type(error).__name__)


def _resized(pixels: np.ndarray, box: Box, image_size: int, decoder: Decoder) -> np.ndarray:
    """Resizes a box of an image to a square; each new pixel is a mean of all that it covers."""
    left, top, width, height = box
    if decoder == "pillow":
        from PIL import Image

        corners = (left, top, left + width, top + height)
        resized = Image.fromarray(pixels).resize(
            (image_size, image_size), Image.Resampling.BILINEAR, box=corners
        )
        return np.asarray(resized)
    cv2 = _opencv()
    is_shrinking = min(width, height) > image_size
    return cv2.resize(
        pixels[top : top + height, left : left + width],
        (image_size, image_size),
        interpolation=cv2.INTER_AREA if is_shrinking else cv2.INTER_LINEAR,
    )


@functools.cache
def _opencv() -> ModuleType:
    """OpenCV on one thread: images are shared out to threads or processes as wholes."""
    import cv2

    cv2.setNumThreads(1)
    return cv2
