"""Axes of a slim network with the labels of the full one: which indices stay, in order, and what each of them means.

A group that keeps a single channel is a trap for any comparison of shapes: an axis of length one could be any, and two
heads of which one is gone look like one head in two halves. So meaning is compared with several twins of that channel,
each with labels of its own, side by side wherever the channel sits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.structure.labels import FREE
from jaxprune.structure.layouts import axis_keep
from jaxprune.structure.model_state import Path


class AxisCut(NamedTuple):
    """One axis of an array: old places in their new order, and the labels there."""

    places: np.ndarray
    labels: tuple[np.ndarray, ...]


def cut_shape(axes: Sequence[AxisCut]) -> tuple[int, ...]:
    """The shape of a cut array."""
    return tuple(len(axis.places) for axis in axes)


def cut_arrays(
    structure: Structure, kept: Mapping[str, np.ndarray], *, copies: int = 1
) -> dict[Path, tuple[AxisCut, ...]]:
    """Every array's axes after a cut, with so many copies of each channel that is alone."""
    single = [name for name, own in kept.items() if len(own) == 1] if copies > 1 else []
    size = len(structure.families.family_of)
    return {
        path: tuple(
            _cut_axis(structure, path, axis, length, kept, single, size, copies)
            for axis, length in enumerate(shape)
        )
        for path, shape in structure.shapes.items()
    }


def num_copies(structure: Structure, kept: Mapping[str, np.ndarray]) -> int:
    """How many stand for one: a number that code does not hold by chance as often as two, nor any that was there.

    With as many as the group has channels the network would look as if nothing were gone.
    """
    taken = {structure.widths[name] for name, own in kept.items() if len(own) == 1}
    return next((count for count in (3, 5, 7, 11) if count not in taken), 13) if taken else 1


def _cut_axis(
    structure: Structure,
    path: Path,
    axis: int,
    length: int,
    kept: Mapping[str, np.ndarray],
    single: Sequence[str],
    size: int,
    copies: int,
) -> AxisCut:
    fields, roots = structure.layouts[path][axis], structure.families.roots[path][axis]
    if not fields:
        return AxisCut(np.arange(length), tuple(roots))
    stays = np.flatnonzero(np.asarray(axis_keep(fields, length, kept)))
    cut = AxisCut(stays, tuple(own[stays] for own in roots))
    runs = {number: _runs(own.channels)[stays] for number, own in enumerate(fields) if own.group in single}
    coarse_first = sorted(runs, key=lambda number: int(_runs(fields[number].channels).max()))
    for number in coarse_first:  # twins of a head hold its places side by side
        family = list(structure.groups).index(fields[number].group)
        cut, runs = _with_twins(structure, cut, runs, number, family, size, copies)
    return cut


def _runs(channels: np.ndarray) -> np.ndarray:
    """A number for each run of neighbours of one channel."""
    starts = np.concatenate([[True], channels[1:] != channels[:-1]])
    return np.where(channels >= 0, np.cumsum(starts), FREE)


def _with_twins(
    structure: Structure,
    cut: AxisCut,
    runs: dict[int, np.ndarray],
    number: int,
    family: int,
    size: int,
    times: int,
) -> tuple[AxisCut, dict[int, np.ndarray]]:
    """Repeats every run of a channel; the labels of the group are those of twins in the repeats."""
    order: list[np.ndarray] = []
    copies: list[np.ndarray] = []
    own = runs[number]
    edges = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1], [True]]))
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        for copy in range(times if own[start] >= 0 else 1):
            order.append(np.arange(start, stop))
            copies.append(np.full(stop - start, copy))
    places = np.concatenate(order) if order else np.zeros(0, np.int64)
    copy_of = np.concatenate(copies) if copies else np.zeros(0, np.int64)
    labels = []
    for each in cut.labels:
        found = each[places]
        is_own = structure.families.locate(np.where(found >= 0, found % size, FREE))[0] == family
        labels.append(np.where(is_own, found + copy_of * size, found))
    most = 1 + max(int(each.max(initial=0)) for each in runs.values())
    grown = {
        key: np.where(each[places] >= 0, each[places] + copy_of * most, FREE) for key, each in runs.items()
    }
    return AxisCut(cut.places[places], tuple(labels)), grown
