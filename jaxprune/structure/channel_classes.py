"""From labels to families: the classes of labels that are cut together, and which of them are alike.

Labels united with each other fall together: they are one channel of the network. Channels whose labels sit on the same
axes equally often are alike and are ranked together: they make a family, which becomes a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.structure.labels import distinct
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.trace import Trace

_NOT_MADE = "no layer makes these indices"
_NOT_READ = "no layer with weights reads these channels"


@dataclass
class ChannelFamilies:
    """Families of a trace.

    `members[f]` lists the representatives of family f, one for each channel; `family_of` and `channel_of` go back, by
    representative (-1 where there is none). `makers[f]` numbers the productions that make its channels, `readers[f]`
    the consumptions that read them. `refused` says for other representatives why they are never cut.
    """

    trace: Trace
    roots: Mapping[Path, Sequence[Sequence[np.ndarray]]]
    """The labels' representatives of every array, axis and factor."""
    channel_roots: list[np.ndarray]
    family_of: np.ndarray
    channel_of: np.ndarray
    producer_uses: list[list[int]]
    reads: list[list[int]]
    refused: dict[int, str]

    def on_axis(self, path: Path, axis: int) -> dict[int, list[np.ndarray]]:
        """Family -> for each factor of the axis that holds any of it, its channel at each index or -1."""
        found: dict[int, list[np.ndarray]] = {}
        for roots in self.roots[path][axis]:
            families, channels = self.locate(roots)
            for family in distinct(families[families >= 0]).tolist():
                found.setdefault(family, []).append(
                    np.where(families == family, channels, -1).astype(np.int32)
                )
        return found

    def locate(self, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Family and channel at each place, -1 where there is none."""
        places = np.maximum(roots, 0)
        is_label = roots >= 0
        return np.where(is_label, self.family_of[places], -1), np.where(is_label, self.channel_of[places], -1)


def find_families(trace: Trace, never: Mapping[int, str] | None = None) -> ChannelFamilies:
    """The families of a finished walk, in program order.

    Args:
      trace: of the network.
      never: further labels that are not cut, with the reason.
    """
    trace.labels.freeze_each(never or {})
    roots = {
        path: [[trace.labels.find(own) for own in axis] for axis in axes]
        for path, axes in trace.seeds.items()
    }
    refused = trace.labels.reason_by_root()
    family_of = _alike(roots, refused, len(trace.labels))  # fill beside channels has labels of its own
    makers = _numbered(family_of, [trace.labels.find(own.labels) for own in trace.producer_uses])
    readers = _numbered(family_of, [_read_labels(trace, index) for index in range(len(trace.reads))])
    families = ChannelFamilies(trace, roots, [], family_of, np.full(len(family_of), -1), [], [], refused)
    _keep_usable(families, makers, readers)
    return families


def _alike(
    roots: Mapping[Path, Sequence[Sequence[np.ndarray]]], refused: Mapping[int, str], size: int
) -> np.ndarray:
    """[size] a number for each representative, equal where they sit on the same axes; -1 for those never cut."""
    # The sum of a random number for each axis that a label sits on tells sets of axes apart (64 bits).
    signature = np.zeros(size, np.uint64)
    is_there = np.zeros(size, bool)
    rng = np.random.default_rng(0)
    for axes in roots.values():
        for axis in axes:
            for own in axis:
                number = rng.integers(1, 1 << 63, dtype=np.uint64)
                labels = own[own >= 0]
                np.add.at(signature, labels, number)
                is_there[labels] = True
    is_there[list(refused)] = False
    numbers = np.full(size, -1)
    numbers[is_there] = np.unique(signature[is_there], return_inverse=True)[1]
    return numbers


def _read_labels(trace: Trace, index: int) -> np.ndarray:
    use = trace.reads[index]
    own = [each.labels.reshape(-1) for each in use.value.fields if set(each.axes) & set(use.axes)]
    labels = distinct(np.concatenate(own)) if own else np.zeros(0, np.int64)
    return trace.labels.find(labels[labels >= 0])


def _numbered(family_of: np.ndarray, by_number: Sequence[np.ndarray]) -> dict[int, list[int]]:
    """Family -> the numbers of what touches it, rising."""
    found: dict[int, list[int]] = {}
    for number, roots in enumerate(by_number):
        for family in distinct(family_of[roots]).tolist():
            found.setdefault(family, []).append(number)
    return found


def _keep_usable(
    families: ChannelFamilies, makers: Mapping[int, list[int]], readers: Mapping[int, list[int]]
) -> None:
    """Numbers the families that are made and read in program order; says of the others why they stay."""
    old = families.family_of
    order = sorted((own[0], family) for family, own in makers.items() if family >= 0)
    usable: list[tuple[int, np.ndarray]] = []
    for _, family in order:
        members = _in_order(families, family, makers[family])
        reason = _NOT_READ if family not in readers else None
        if reason is None and len(members) == 1:
            reason = "a single channel, unlike all others"
        if reason is None:
            usable.append((family, members))
        else:
            families.refused.update(dict.fromkeys(members.tolist(), reason))
    others = set(old[old >= 0].tolist()) - {family for _, family in order}
    for family in others:
        families.refused.update(dict.fromkeys(np.flatnonzero(old == family).tolist(), _NOT_MADE))
    families.family_of = np.full(len(old), -1)
    by_place = sorted(usable, key=lambda pair: makers[pair[0]][0])
    for number, (family, members) in enumerate(by_place):
        families.channel_roots.append(members)
        families.family_of[members] = number
        families.channel_of[members] = np.arange(len(members))
        families.producer_uses.append(makers[family])
        families.reads.append(readers[family])


def _in_order(families: ChannelFamilies, family: int, makers: Sequence[int]) -> np.ndarray:
    """Representatives of a family in the order in which they sit on the first kernel that makes them."""
    production = families.trace.producer_uses[makers[0]]
    found: list[np.ndarray] = []
    for axis in sorted(production.axes):
        for roots in families.roots[production.kernel][axis]:
            own = roots[(roots >= 0) & (families.family_of[np.maximum(roots, 0)] == family)]
            found.append(own)
    everything = np.concatenate(found) if found else np.zeros(0, np.int64)
    if not everything.size:
        return np.flatnonzero(families.family_of == family)
    _, first = np.unique(everything, return_index=True)
    return everything[np.sort(first)]


def name_families(families: ChannelFamilies) -> list[str]:
    """A name for each family: the kernel that first makes it, and which part of it where it makes several.

    `"qkv.kernel"` alone names a kernel's only family; else the axis (`"query.kernel:axis1"`), the indices
    (`"qkv.kernel:0-63"`), or `outer` and `inner` for factors of one axis.
    """
    firsts = [families.trace.producer_uses[makers[0]] for makers in families.producer_uses]
    by_kernel: dict[Path, list[int]] = {}
    for family, production in enumerate(firsts):
        by_kernel.setdefault(production.kernel, []).append(family)
    names = [""] * len(firsts)
    for path, own in by_kernel.items():
        marks = [""] if len(own) == 1 else _marks(families, path, own)
        for family, mark in zip(own, marks, strict=True):
            names[family] = dotted(path) + (f":{mark}" if mark else "")
    return names


def _marks(families: ChannelFamilies, path: Path, own: Sequence[int]) -> list[str]:
    axes: list[int] = []
    spans: list[tuple[int, int]] = []
    blocks: list[int] = []
    for family in own:
        axis = next(
            axis for axis in range(len(families.roots[path])) if family in families.on_axis(path, axis)
        )
        channels = families.on_axis(path, axis)[family][0]
        places = np.flatnonzero(channels >= 0)
        axes.append(axis)
        spans.append((int(places[0]), int(places[-1])))
        changes = np.flatnonzero(np.diff(channels[places]) != 0)
        blocks.append(int(changes[0]) + 1 if changes.size else len(places))
    if len(set(axes)) == len(own):
        return [f"axis{axis}" for axis in axes]
    if len(set(spans)) == len(own) and len(set(axes)) == 1:
        return [f"{first}-{last}" for first, last in spans]
    marks = []
    for index, (axis, span) in enumerate(zip(axes, spans, strict=True)):
        rivals = [other for other in range(len(own)) if (axes[other], spans[other]) == (axis, span)]
        parts = [f"axis{axis}"] if len(set(axes)) > 1 else []
        parts += (
            [f"{span[0]}-{span[1]}"]
            if len({s for a, s in zip(axes, spans, strict=True) if a == axis}) > 1
            else []
        )
        if len(rivals) > 1:
            ranked = sorted(rivals, key=lambda other: (-blocks[other], other))
            place = ranked.index(index)
            parts.append({0: "outer", len(ranked) - 1: "inner"}.get(place, f"middle{place}"))
        marks.append(":".join(parts) or str(index))
    return (
        marks if len(set(marks)) == len(marks) else [f"{mark}:{number}" for number, mark in enumerate(marks)]
    )
