"""The convolutional networks of the zoo."""

from __future__ import annotations

from .entry import Entry

CONVOLUTIONAL: dict[str, Entry] = {}
