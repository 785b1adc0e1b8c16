"""Finds which numbers in the user's own classes may have to change with the channels of some groups.

A class may store how many channels a layer has, how many heads there are, or how wide all of them are together. Each of
these is the length of an axis, or of one factor of it, so a number that equals such a length is a candidate: its new
value is what is left of that length.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, islice, takewhile
from typing import NamedTuple

import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.structure.labels import distinct
from jaxprune.structure.layouts import Field, axis_terms
from jaxprune.structure.model_state import Path


class AttributeAxis(NamedTuple):
    """What a number may be the length of: an axis of an array, or some indices of it, such as one for each head."""

    path: Path
    axis: int
    indices: np.ndarray

    def fields(self, structure: Structure) -> tuple[Field, ...]:
        """Returns the groups along it."""
        factors = (labels[self.indices] for labels in structure.families.roots[self.path][self.axis])
        return structure.fields_of([labels for labels in factors if np.ptp(labels)])


_MAX_SINGLE, _MAX_PAIRS = 5, 10
"""How many numbers are tried alone, and how many pairs of them."""


def attribute_sets(
    numbers: Mapping[str, int], structure: Structure, names: Sequence[str]
) -> Iterator[Mapping[str, AttributeAxis]]:
    """Yields sets of numbers that may have to follow groups, the most likely first.

    Args:
      numbers: those that the network's own classes store, from `stored_numbers`.
      structure: the network's groups.
      names: groups that lose channels.

    Yields:
      Dotted path of a number -> the axis whose length it may be. Numbers of alike blocks go together.
    """
    candidates = {path: size for path, size in numbers.items() if path not in structure.attribute_axes}
    axes = {name: _axes_of(structure, name, frozenset(candidates.values())) for name in names}
    lengths = {len(axis.indices) for own_axes in axes.values() for axis in own_axes}
    variants: dict[str, dict[str, list[AttributeAxis]]] = {}  # pattern of the path -> path -> possible axes
    nearness: dict[str, int] = {}
    for path, size in candidates.items():
        if size not in lengths:
            continue
        fitting = {name: [axis for axis in axes[name] if len(axis.indices) == size] for name in names}
        nearest = max((name for name in names if fitting[name]), key=lambda name: _num_shared(path, name))
        pattern = unnumbered(path)
        variants.setdefault(pattern, {})[path] = fitting[nearest]
        nearness[pattern] = max(nearness.get(pattern, 0), _num_shared(path, nearest))
    patterns = sorted(variants, key=lambda pattern: (-nearness[pattern], pattern.count(".")))

    def chosen(patterns: Sequence[str], number: int = 0) -> dict[str, AttributeAxis]:
        return {
            path: own_axes[min(number, len(own_axes) - 1)]
            for pattern in patterns
            for path, own_axes in variants[pattern].items()
        }

    for pattern in patterns[:_MAX_SINGLE]:
        for number in range(max(map(len, variants[pattern].values()))):
            yield chosen([pattern], number)
    nearest_ones = [pattern for pattern in patterns if nearness[pattern] == max(nearness.values())]
    for pair in islice(combinations(nearest_ones, 2), _MAX_PAIRS):
        yield chosen(pair)
    if len(patterns) > 2:
        yield chosen(patterns)


def _axes_of(structure: Structure, name: str, lengths: Collection[int]) -> list[AttributeAxis]:
    """Returns axes, and factors of axes, of some lengths that change with the number of channels of a group."""
    family = list(structure.groups).index(name)
    axes: dict[object, AttributeAxis] = {}
    for member in structure.groups[name].members:
        factors = structure.families.roots[member.path][member.axis]
        for own in factors:
            indices = np.flatnonzero(structure.families.locate(own)[0] == family)
            if not indices.size:
                continue
            others = [factor for factor in factors if factor is not own]
            picks = [np.arange(len(own)), _first_of_each([own, *others], indices)]
            picks += [np.flatnonzero(other == other[indices[0]]) for other in others]
            picks.append(_first_of_each([own], indices))
            for pick in (pick for pick in picks if len(pick) in lengths):
                axis = AttributeAxis(member.path, member.axis, pick)
                key = (len(pick), _terms(structure, axis))
                if key[1] is not None:
                    axes.setdefault(key, axis)
    return list(axes.values())


def _first_of_each(factors: Sequence[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Returns those of some indices at which a combination of labels occurs first."""
    combined = np.stack([factor[indices] for factor in factors])
    return indices[np.sort(np.unique(combined, axis=1, return_index=True)[1])]


def _terms(structure: Structure, axis: AttributeAxis) -> object:
    """Returns what decides the length of an axis; None if that is not how many channels of groups are kept."""
    fields = axis.fields(structure)
    if any(len(distinct(own[own >= 0])) < structure.widths[group] for group, own in fields):
        return None  # only some of the group's channels
    try:
        return axis_terms(fields, len(axis.indices))
    except ValueError:  # it depends on which channels are kept
        return None


def unnumbered(path: str) -> str:
    """Returns a dotted path with a star for each number.

    Example:
      >>> unnumbered("blocks.12.heads")
      'blocks.*.heads'
    """
    return re.sub(r"\d+", "*", path)


def _num_shared(path: str, name: str) -> int:
    """Counts the parts that two dotted paths have in common at the front."""
    pairs = zip(path.split("."), name.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
