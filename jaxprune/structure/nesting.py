"""Which groups share indices: groups of whole blocks, such as heads, and the finer groups within each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations

import numpy as np

from jaxprune.structure.channel_classes import ChannelFamilies
from jaxprune.structure.layouts import Layout
from jaxprune.structure.model_state import Path


def is_of_blocks(families: ChannelFamilies, family: int) -> bool:
    """Whether the channels of a family are blocks of neighbouring indices on the first kernel that makes them."""
    use = families.trace.producer_uses[families.producer_uses[family][0]]
    for axis in sorted(use.axes):
        for channels in families.on_axis(use.kernel, axis).get(family, []):
            num_repeats = (np.diff(channels[channels >= 0]) == 0).sum()
            return bool(num_repeats >= len(families.channel_roots[family]))
    return False


def inner_groups(
    families: ChannelFamilies, names: Sequence[str], layouts: Mapping[Path, Layout]
) -> dict[str, tuple[str, ...]]:
    """Group -> finer groups that share indices with it, on an axis or on a later axis of a kernel that makes both."""
    pairs: dict[tuple[str, str], None] = {}  # (outer, inner), in order
    for layout in layouts.values():
        for fields in layout:
            first_field = {field.group: field for field in reversed(fields)}
            for outer, inner in permutations(dict.fromkeys(field.group for field in fields), 2):
                if _is_finer(first_field[inner].channels, first_field[outer].channels):
                    pairs[outer, inner] = None
    for use in families.trace.producer_uses:
        groups_by_axis = [
            dict.fromkeys(field.group for field in layouts[use.kernel][axis]) for axis in sorted(use.axes)
        ]
        for earlier, later in combinations(groups_by_axis, 2):
            pairs.update({(outer, inner): None for outer in earlier for inner in later if inner != outer})
    return {
        name: tuple(inner for outer, inner in pairs if outer == name and (inner, outer) not in pairs)
        for name in names
    }


def _is_finer(channels: np.ndarray, others: np.ndarray) -> bool:
    """Whether channels share indices of an axis with those of another group, and change faster along it."""
    is_shared = (channels >= 0) & (others >= 0)
    num_changes, num_other_changes = (
        int((np.diff(values[is_shared]) != 0).sum()) for values in (channels, others)
    )
    return num_changes > num_other_changes
