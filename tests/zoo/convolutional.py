"""The convolutional networks of the zoo, by name."""

from __future__ import annotations

from . import concatenating, image_to_image, mobile, packaged, residual, special
from .entry import Entry

FAMILIES = (packaged, residual, mobile, concatenating, image_to_image, special)

CONVOLUTIONAL: dict[str, Entry] = {entry.name: entry for family in FAMILIES for entry in family.ENTRIES}
