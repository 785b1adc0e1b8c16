"""Lays out a drawing of a network: a line for each layer in program order, and a rail for each group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.overview import kernels_of, layer_of

INPUT, OUTPUT = "network input", "network output"
"""Names of the two ends of a network; no path of an array has a space."""

_MIN_REPEATS = 4
"""At least this many equal blocks in a row are folded."""
_SHOWN_REPEATS = 2
_MAX_BLOCK = 24
"""Layers of the longest block that is looked for."""


@dataclass(frozen=True)
class Line:
    """One line of the drawing: a layer, an end of the network, or a gap that stands for blocks like those above.

    Args:
      name: of the layer, or what a gap stands for.
      shape: of the layer's kernel.
      makes: groups whose channels the layer makes.
      reads: groups whose channels the layer reads.
      frozen: why what the layer makes is never cut; empty if it can be.
      is_gap: whether the line stands for several layers.
      layers: paths of the arrays that the line stands for.
    """

    name: str
    shape: tuple[int, ...] = ()
    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    frozen: str = ""
    is_gap: bool = False
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rail:
    """A group, drawn from the line that first makes its channels to the last line that reads them.

    Args:
      group: its name, or that of an end of the network.
      channels: how many; 0 for an end of the network.
      first: number of the line where the rail begins.
      last: number of the line where it ends.
      makers: numbers of the lines that make its channels.
      readers: numbers of the lines that read them.
      gaps: numbers of the gaps that it runs through, or ends in.
      is_unread: whether no layer with weights reads it, because its channels only meet other activations.
      track: how far right it is drawn, from 0.
    """

    group: str
    channels: int
    first: int
    last: int
    makers: tuple[int, ...]
    readers: tuple[int, ...]
    gaps: tuple[int, ...]
    is_unread: bool
    track: int = 0


@dataclass(frozen=True)
class Diagram:
    """Lines from the input to the output, and rails on tracks such that no two rails of one track touch."""

    lines: tuple[Line, ...]
    rails: tuple[Rail, ...]
    num_tracks: int


def diagram_of(structure: Structure, *, is_folded: bool = True) -> Diagram:
    """Lays out a network: one line for each layer in program order, one rail for each group.

    Args:
      structure: of the network.
      is_folded: whether of four or more equal blocks in a row only the first two are shown.

    Returns:
      The diagram; rails without a visible maker or reader are left out.
    """
    layers = _layers(structure)
    if is_folded:
        layers = _folded(structure, layers)
    shape = tuple(structure.example.first.shape[1:])
    first = Line(INPUT, shape, makes=(INPUT,), frozen="input of the network", layers=(INPUT,))
    lines = [first, *layers, Line(OUTPUT, reads=(OUTPUT,), layers=(OUTPUT,))]
    rails = [rail for rail in _rails(structure, lines) if rail.makers or rail.readers]
    visible = {rail.group for rail in rails}
    shown = [
        replace(
            line,
            makes=tuple(name for name in line.makes if name in visible),
            reads=tuple(name for name in line.reads if name in visible),
        )
        for line in lines
    ]
    return Diagram(tuple(shown), *_on_tracks(rails))


def _layers(structure: Structure) -> list[Line]:
    """Returns a line for each kernel, in program order."""
    trace = structure.families.trace
    reads_input: dict[Path, bool] = {}
    for read in trace.reads:
        if read.kernel is not None:
            reads_input[read.kernel] = reads_input.get(read.kernel, False) or not read.value.producers
    made_axes: dict[Path, set[int]] = {}
    for use in trace.producer_uses:
        made_axes.setdefault(use.kernel, set()).update(use.axes)
    makes: dict[str, list[str]] = {}
    reads: dict[str, list[str]] = {}
    for name, group in structure.groups.items():
        for producer in kernels_of(structure, group):
            makes.setdefault(producer, []).append(name)
        for consumer in group.consumers:
            reads.setdefault(consumer, []).append(name)
    lines = []
    for kernel in dict.fromkeys([*made_axes, *reads_input]):
        path = dotted(kernel)
        axes = [f"{path}[{axis}]" for axis in sorted(made_axes.get(kernel, ()))]
        reasons = [structure.frozen[axis] for axis in axes if axis in structure.frozen]
        is_output = any(reason.startswith("output of the network") for reason in reasons)
        made = (*makes.get(path, ()), *([OUTPUT] if is_output else []))
        used = (*([INPUT] if reads_input.get(kernel) else []), *reads.get(path, ()))
        lines.append(
            Line(layer_of(path), structure.shapes[kernel], made, used, "; ".join(reasons), layers=(path,))
        )
    if lines and not any(reads_input.values()):  # the network looks up tokens
        lines[0] = replace(lines[0], reads=(INPUT, *lines[0].reads))
    if lines and not any(
        OUTPUT in line.makes for line in lines
    ):  # the output has one channel, which has no label
        lines[-1] = replace(lines[-1], makes=(*lines[-1].makes, OUTPUT))
    return lines


def _folded(structure: Structure, lines: Sequence[Line]) -> list[Line]:
    """Returns the lines, with one gap in place of all but the first blocks where many in a row are alike."""

    def pattern(name: str) -> str:
        return re.sub(r"\d+", "*", name)

    kinds = [
        (
            pattern(line.name),
            line.shape,
            line.frozen,
            tuple(sorted((pattern(name), structure.widths.get(name)) for name in line.makes)),
        )
        for line in lines
    ]
    folded: list[Line] = []
    start = 0
    while start < len(lines):
        length, repeats = _repeats(kinds, start)
        if repeats < _MIN_REPEATS:
            folded.append(lines[start])
            start += 1
            continue
        cut, end = start + _SHOWN_REPEATS * length, start + repeats * length
        hidden = tuple(path for line in lines[cut:end] for path in line.layers)
        what = "layer" if length == 1 else "block"
        gap = Line(f"{repeats - _SHOWN_REPEATS} more {what}s like these", is_gap=True, layers=hidden)
        folded += [*lines[start:cut], gap]
        start = end
    return folded


def _repeats(kinds: Sequence[object], start: int) -> tuple[int, int]:
    """Returns the length of the shortest block that begins at `start` and repeats often, and how often it does."""
    for length in range(1, _MAX_BLOCK + 1):
        block, repeats = kinds[start : start + length], 1
        while (
            kinds[start + repeats * length : start + (repeats + 1) * length] == block and len(block) == length
        ):
            repeats += 1
        if repeats >= _MIN_REPEATS:
            return length, repeats
    return 1, 1


def _rails(structure: Structure, lines: Sequence[Line]) -> list[Rail]:
    """Returns a rail for each group and for each end of the network, all on track 0."""
    line_of = {path: number for number, line in enumerate(lines) for path in line.layers}
    ends = []
    for name, group in structure.groups.items():
        makers = {line_of[path] for path in kernels_of(structure, group)}
        ends.append(
            (name, group.size, makers, {line_of[path] for path in group.consumers if path in line_of})
        )
    for name in (INPUT, OUTPUT):
        makers = {number for number, line in enumerate(lines) if name in line.makes}
        readers = {number for number, line in enumerate(lines) if name in line.reads}
        if makers and readers:
            ends.append((name, 0, makers, readers))
    gaps = {number for number, line in enumerate(lines) if line.is_gap}
    rails = []
    for name, channels, makers, readers in ends:
        first, last = min(makers | readers), max(makers | readers)
        shown_makers, shown_readers = (tuple(sorted(numbers - gaps)) for numbers in (makers, readers))
        crossed = tuple(sorted(number for number in gaps if first <= number <= last))
        rails.append(
            Rail(name, channels, first, last, shown_makers, shown_readers, crossed, is_unread=not readers)
        )
    return rails


def _on_tracks(rails: Sequence[Rail]) -> tuple[tuple[Rail, ...], int]:
    """Puts short rails near the layers and long ones further out; returns the rails and the number of tracks."""
    tracks: list[list[Rail]] = []
    track_of: dict[str, int] = {}
    for rail in sorted(rails, key=lambda rail: rail.last - rail.first):
        is_free = (
            all(rail.last < other.first or other.last < rail.first for other in others) for others in tracks
        )
        track = next((number for number, free in enumerate(is_free) if free), len(tracks))
        if track == len(tracks):
            tracks.append([])
        tracks[track].append(rail)
        track_of[rail.group] = track
    return tuple(replace(rail, track=track_of[rail.group]) for rail in rails), len(tracks)
