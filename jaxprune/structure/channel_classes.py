"""Sorts the labels of a finished trace into channels, and the channels into families, which become groups.

A channel is a class of united labels: everything that has one of them must be removed together. It is represented by
its root, the smallest of them. Channels that occur equally often on the same axes are alike; they make a family and are
ranked against each other. A family can be pruned if a kernel makes its channels and another one reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.structure.labels import distinct
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.trace import ChannelRead, Trace

_NOT_MADE = "no layer makes these indices"
_NOT_USED = "no output of the network depends on these weights"
_NOT_READ = "no layer with weights reads these channels"
_SINGLE = "a single channel, unlike all others"

ArrayRoots = Mapping[Path, Sequence[Sequence[np.ndarray]]]
"""Path of an array -> for each axis its factors, each with the root of the label at every index."""


@dataclass
class ChannelFamilies:
    """The families of channels that a network can be pruned by, in the order in which they are made.

    Lists have one entry for each family; arrays have one for each label, which is read at the roots.
    """

    trace: Trace
    roots: ArrayRoots
    channel_roots: list[np.ndarray]
    """The roots of a family's channels, [C], in the order of the kernel that first makes them."""
    family_of: np.ndarray
    """Root -> the family of the channel, -1 for one that cannot be removed."""
    channel_of: np.ndarray
    """Root -> the number of the channel within its family, or -1."""
    producer_uses: list[list[int]]
    """Indices of the producer uses of the trace that make a family's channels."""
    reads: list[list[int]]
    """Indices of the reads of the trace that read them."""
    refused: dict[int, str]
    """Root -> why the channel cannot be removed, for all that are in no family."""

    def on_axis(self, path: Path, axis: int) -> dict[int, list[np.ndarray]]:
        """Finds the channels on one axis of an array.

        Args:
          path: path of the array.
          axis: the axis.

        Returns:
          Family -> for each factor of the axis that has any of its channels, [axis length] int32: the number of the
          channel at each index, -1 where there is none of this family.
        """
        channels_of: dict[int, list[np.ndarray]] = {}
        for roots in self.roots[path][axis]:
            family_at, channel_at = self.locate(roots)
            for family in distinct(family_at[family_at >= 0]).tolist():
                channels = np.where(family_at == family, channel_at, -1).astype(np.int32)
                channels_of.setdefault(family, []).append(channels)
        return channels_of

    def locate(self, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the family, and the number in it, of the channel at each of some roots.

        Args:
          roots: roots, `FREE` and markers, of any shape.

        Returns:
          Two arrays of this shape, both -1 where there is no channel that can be removed.
        """
        is_root, index = roots >= 0, np.maximum(roots, 0)
        return np.where(is_root, self.family_of[index], -1), np.where(is_root, self.channel_of[index], -1)


def find_families(trace: Trace, never: Mapping[int, str] | None = None) -> ChannelFamilies:
    """Sorts the labels of a trace into families of channels.

    Args:
      trace: the finished trace; labels of `never` are frozen in it.
      never: label -> reason, for more labels that must not be removed.

    Returns:
      The families, in the order in which the network makes them.
    """
    trace.labels.freeze_each(never or {})
    roots = {
        path: [[trace.labels.find(labels) for labels in factors] for factors in axes]
        for path, axes in trace.array_labels.items()
    }
    refused = trace.labels.reason_by_root()
    num_labels = len(trace.labels)  # with those that the trace added
    likeness = _likeness(roots, refused, num_labels)
    producer_uses = _indices_by_likeness(
        likeness, [trace.labels.find(use.labels) for use in trace.producer_uses]
    )
    reads = _indices_by_likeness(likeness, [_roots_read(trace, read) for read in trace.reads])
    families = ChannelFamilies(
        trace, roots, [], np.full(num_labels, -1), np.full(num_labels, -1), [], [], refused
    )
    made = sorted(producer_uses, key=lambda number: (producer_uses[number][0], number))
    for number in made:
        channel_roots = _in_producer_order(families, likeness == number, producer_uses[number][0])
        if number not in reads or len(channel_roots) == 1:
            reason = _SINGLE if number in reads else _NOT_READ
            refused.update(dict.fromkeys(channel_roots.tolist(), reason))
            continue
        families.family_of[channel_roots] = len(families.channel_roots)
        families.channel_of[channel_roots] = np.arange(len(channel_roots))
        families.channel_roots.append(channel_roots)
        families.producer_uses.append(producer_uses[number])
        families.reads.append(reads[number])
    not_made = np.flatnonzero((likeness >= 0) & ~np.isin(likeness, made))
    refused.update(dict.fromkeys(not_made.tolist(), _NOT_MADE))
    unused = [path for path, number in trace.program.parameters.items() if number not in trace.live]
    on_unused = [roots for path in unused for factors in families.roots[path] for roots in factors]
    of_unused = np.intersect1d(not_made, np.concatenate([not_made[:0], *on_unused]))
    refused.update(dict.fromkeys(of_unused.tolist(), _NOT_USED))
    return families


def _likeness(roots: ArrayRoots, refused: Mapping[int, str], num_labels: int) -> np.ndarray:
    """[num_labels] a number for each root, equal for channels that are alike; -1 for those that are refused."""
    # Each axis adds a random number of 64 bits to its channels. Equal sums mean equal sets of axes.
    signature = np.zeros(num_labels, np.uint64)
    is_on_axis = np.zeros(num_labels, bool)
    rng = np.random.default_rng(0)
    for axes in roots.values():
        for factors in axes:
            for factor in factors:
                number = rng.integers(1, 1 << 63, dtype=np.uint64)
                on_axis = factor[factor >= 0]
                np.add.at(signature, on_axis, number)
                is_on_axis[on_axis] = True
    is_on_axis[list(refused)] = False
    likeness = np.full(num_labels, -1)
    likeness[is_on_axis] = np.unique(signature[is_on_axis], return_inverse=True)[1]
    return likeness


def _roots_read(trace: Trace, read: ChannelRead) -> np.ndarray:
    fields = [field for field in read.value.fields if not set(read.axes).isdisjoint(field.axes)]
    labels = distinct(
        np.concatenate([np.zeros(0, np.int64), *(field.labels.reshape(-1) for field in fields)])
    )
    return trace.labels.find(labels[labels >= 0])


def _indices_by_likeness(likeness: np.ndarray, roots: Sequence[np.ndarray]) -> dict[int, list[int]]:
    """Likeness -> indices of the arrays of roots that have channels of it."""
    indices: dict[int, list[int]] = {}
    for index, own_roots in enumerate(roots):
        own_likeness = distinct(likeness[own_roots])
        for number in own_likeness[own_likeness >= 0].tolist():
            indices.setdefault(number, []).append(index)
    return indices


def _in_producer_order(families: ChannelFamilies, is_member: np.ndarray, producer_use: int) -> np.ndarray:
    """Roots of the channels that are members, in the order in which they lie on the kernel that makes them."""
    kernel, axes, _ = families.trace.producer_uses[producer_use]
    factors = [roots for axis in sorted(axes) for roots in families.roots[kernel][axis]]
    on_kernel = np.concatenate([np.zeros(0, np.int64), *(roots[roots >= 0] for roots in factors)])
    on_kernel = on_kernel[is_member[on_kernel]]
    if not on_kernel.size:
        return np.flatnonzero(is_member)
    return on_kernel[np.sort(np.unique(on_kernel, return_index=True)[1])]


def name_families(families: ChannelFamilies) -> list[str]:
    """Names each family after the kernel that first makes it, with a mark if that kernel makes several families.

    The mark is the axis (`"query.kernel:axis1"`), the range of indices (`"qkv.kernel:0-63"`), or `outer` and `inner`
    for factors of one axis; the only family of a kernel has none (`"conv.kernel"`).
    """
    by_kernel: dict[Path, list[int]] = {}
    for family, uses in enumerate(families.producer_uses):
        by_kernel.setdefault(families.trace.producer_uses[uses[0]].kernel, []).append(family)
    names = [""] * len(families.producer_uses)
    for kernel, on_kernel in by_kernel.items():
        marks = [""] if len(on_kernel) == 1 else _marks(families, kernel, on_kernel)
        for family, mark in zip(on_kernel, marks, strict=True):
            names[family] = dotted(kernel) + (f":{mark}" if mark else "")
    return names


def _marks(families: ChannelFamilies, kernel: Path, on_kernel: Sequence[int]) -> list[str]:
    """What tells several families of one kernel apart: as much of axis, range and factor as is needed."""
    positions: list[tuple[int, tuple[int, int]]] = []  # axis, and first and last index on it
    block_sizes: list[int] = []  # neighbouring indices of one channel
    for family in on_kernel:
        axes = range(len(families.roots[kernel]))
        axis = next(axis for axis in axes if family in families.on_axis(kernel, axis))
        channels = families.on_axis(kernel, axis)[family][0]
        indices = np.flatnonzero(channels >= 0)
        positions.append((axis, (int(indices[0]), int(indices[-1]))))
        changes = np.flatnonzero(np.diff(channels[indices]) != 0)
        block_sizes.append(int(changes[0]) + 1 if changes.size else len(indices))
    marks = []
    for number, (axis, (first, last)) in enumerate(positions):
        parts = []
        if len({axis for axis, _ in positions}) > 1:
            parts.append(f"axis{axis}")
        if len({other for other in positions if other[0] == axis}) > 1:
            parts.append(f"{first}-{last}")
        rivals = [other for other, position in enumerate(positions) if position == positions[number]]
        if len(rivals) > 1:
            rank = sorted(rivals, key=lambda rival: -block_sizes[rival]).index(number)
            parts.append({0: "outer", len(rivals) - 1: "inner"}.get(rank, f"middle{rank}"))
        marks.append(":".join(parts))
    is_distinct = len(set(marks)) == len(marks)
    return marks if is_distinct else [f"{mark}:{number}" for number, mark in enumerate(marks)]
