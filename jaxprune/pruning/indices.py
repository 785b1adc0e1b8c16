"""Kept indices of groups as arrays, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.types import Array, Kept

KeptIndices = Mapping[str, Sequence[int] | Array] | Kept
"""Group name -> kept indices, as a mapping or as the pairs of `types.Kept`; indices may be traced arrays."""


def index_arrays(structure: Structure, kept: KeptIndices) -> dict[str, Array]:
    """Kept indices as integer arrays, checked against the groups as far as their values are known.

    Returns:
      Group name -> [kept] int32; groups that `kept` leaves out are left out here too: they stay whole.

    Raises:
      ValueError: for unknown groups, no index at all, or indices out of order or range. Traced indices are not
        looked at.
    """
    pairs: Iterable[tuple[str, Sequence[int] | Array]] = kept.items() if isinstance(kept, Mapping) else kept
    result: dict[str, Array] = {}
    problems: list[str] = []
    for name, values in pairs:
        group = structure.groups.get(name)
        if group is None:
            problems.append(f"no group is called {name!r} (groups: {', '.join(structure.groups)})")
            continue
        if isinstance(values, jax.core.Tracer):
            result[name] = values
            continue
        index = np.asarray(values, np.int32)
        if index.ndim != 1 or not 1 <= index.size <= group.size:
            problems.append(f"{name} needs between 1 and {group.size} kept indices, got shape {index.shape}")
        elif (np.diff(index) <= 0).any() or index[0] < 0 or index[-1] >= group.size:
            problems.append(
                f"{name} needs rising indices between 0 and {group.size - 1}, got {index.tolist()}"
            )
        result[name] = index
    if problems:
        raise ValueError(f"needs kept indices that fit the network's groups: {'; '.join(problems)}.")
    return result
