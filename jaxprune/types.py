"""Records and aliases that every part of the package shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
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


# === merged: """Records of several members, which are pytrees of equal shapes, joined along a new leadi

_Record = TypeVar("_Record")


def stack_pytrees(members: Sequence[_Record], caller: str) -> _Record:
    """Stacks the leaves of records with equal structure and shapes; `caller` is named in errors."""
    if not members:
        raise ValueError(f"{caller} needs at least one member, got none.")
    shapes = [leaf.shape for leaf in jax.tree.leaves(members[0])]
    for number, member in enumerate(members):
        found = [leaf.shape for leaf in jax.tree.leaves(member)]
        if not _same_structure(member, members[0]) or found != shapes:
            raise ValueError(
                f"{caller} needs members of one structure, class counts and shapes; member {number} differs "
                f"from member 0: {found} against {shapes}, or in which operands are present. "
                "Observe all members on the same examples."
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def _same_structure(first: object, second: object) -> bool:
    structures: list[object] = [jax.tree.structure(first), jax.tree.structure(second)]
    return structures[0] == structures[1]
