"""Types that every part of the package shares: arrays, scores, kept channels, invalid results, stacked records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
"""A NumPy or a JAX array; public functions accept both."""

Namespace = Any
"""The array library, `numpy` or `jax.numpy`, that a function serving both computes with."""

Scores = Mapping[str, np.ndarray]
"""Group name -> [C] scores; the channel with the lowest score is pruned first."""

Kept = tuple[tuple[str, tuple[int, ...]], ...]
"""The content of a plan in hashable form: (group name, sorted indices of kept channels) pairs in program order."""

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Invalid:
    """A failed evaluation, as a value with its reason; it is recorded but never enters the archive."""

    reason: str

    def __str__(self) -> str:
        return f"invalid: {self.reason}"


def is_whole(value: object, *, smallest: int | None = None) -> TypeGuard[int]:
    """Tells whether a value is a whole number of Python or NumPy; booleans and floats are none.

    Args:
      value: any value.
      smallest: a number below it does not count either.

    Example:
      >>> [is_whole(value) for value in (3, np.int32(3), 3.0, True, np.True_, "3")]
      [True, True, False, False, False, False]
      >>> is_whole(0, smallest=1)
      False
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        return False
    return smallest is None or bool(value >= smallest)


def stack_pytrees(members: Sequence[_Record], caller: str) -> _Record:
    """Stacks pytrees of equal structure and shapes along a new leading axis.

    Args:
      members: the pytrees, at least one.
      caller: name of the calling function, for error messages.

    Returns:
      One pytree whose leaves are the members' leaves, stacked: [M, ...] for M members.

    Raises:
      ValueError: if there are no members, or they differ in structure or shapes.
    """
    if not members:
        raise ValueError(f"{caller} needs at least one member, got none.")
    structures: list[object] = [jax.tree.structure(member) for member in members]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(member)] for member in members]
    for number in range(1, len(members)):
        if structures[number] != structures[0] or shapes[number] != shapes[0]:
            raise ValueError(
                f"{caller} needs members of one structure, class counts and shapes; member {number} differs "
                f"from member 0: {shapes[number]} against {shapes[0]}, or in which operands are present. "
                "Observe all members on the same examples."
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
