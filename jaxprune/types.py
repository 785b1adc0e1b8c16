"""Records and aliases that every part of the package shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""A NumPy or a JAX array; public functions accept both."""

Namespace = Any
"""`numpy` or `jax.numpy`: what a function that serves both computes with."""

Scores = Mapping[str, np.ndarray]
"""Group name -> [C] scores; the lowest score is pruned first."""

Kept = tuple[tuple[str, tuple[int, ...]], ...]
"""(group name, sorted kept channel indices) pairs in program order: a plan's content, hashable."""


@dataclass(frozen=True)
class Invalid:
    """A failed evaluation as a value: it is recorded with its reason and never enters the archive."""

    reason: str

    def __str__(self) -> str:
        return f"invalid: {self.reason}"
