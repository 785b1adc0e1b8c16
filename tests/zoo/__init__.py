"""Networks with random weights, one of each structure that users prune, in two sizes."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType

from .entry import Entry


def _collect() -> dict[str, Entry]:
    """The entries of every family whose module is there."""
    entries: dict[str, Entry] = {}
    for family in ("convolutional", "attention"):
        if importlib.util.find_spec(f"{__name__}.{family}") is not None:
            found = getattr(importlib.import_module(f"{__name__}.{family}"), family.upper())
            if twice := entries.keys() & found.keys():
                raise ValueError(f"the zoo has two networks named {', '.join(sorted(twice))}.")
            entries |= found
    return entries


ZOO: Mapping[str, Entry] = MappingProxyType(_collect())

__all__ = ["ZOO", "Entry"]
