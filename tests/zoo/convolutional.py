"""The convolutional networks of the zoo, by name."""

from __future__ import annotations

from . import mobile, residual
from .entry import Entry

CONVOLUTIONAL: dict[str, Entry] = {
    entry.name: entry for family in (residual, mobile) for entry in family.ENTRIES
}
