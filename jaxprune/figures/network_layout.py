"""Where the layers and groups of a network stand in a drawing: a line for every layer, a rail for every group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.overview import kernels_of, layer_of

_LEAST_REPEATS = 4
_SHOWN_REPEATS = 2
_LONGEST_BLOCK = 24
INPUT, OUTPUT = "network input", "network output"
"""Names of the two ends; no path has a space."""


@dataclass(frozen=True)
class Line:
    """One line of the drawing: a layer, an end of the network, or a gap that stands for blocks like those above."""

    name: str
    shape: tuple[int, ...] = ()
    makes: tuple[str, ...] = ()
    """Groups whose channels the layer makes."""
    reads: tuple[str, ...] = ()
    frozen: str = ""
    """Why what the layer makes is never cut; empty if it can be."""
    is_gap: bool = False
    layers: tuple[str, ...] = ()
    """What the line stands for."""


@dataclass(frozen=True)
class Rail:
    """A group: from the line that first makes its channels to the last one that reads them."""

    group: str
    channels: int
    first: int
    last: int
    makers: tuple[int, ...]
    readers: tuple[int, ...]
    gaps: tuple[int, ...]
    """Gaps that it runs through, or ends in."""
    is_met: bool
    """Whether no layer with weights reads it, because its channels only meet other activations."""
    lane: int = 0


@dataclass(frozen=True)
class Diagram:
    """Lines from the input to the output, and rails with lanes such that no two of one lane touch."""

    lines: tuple[Line, ...]
    rails: tuple[Rail, ...]
    num_lanes: int = field(default=0)


def diagram_of(structure: Structure, *, is_folded: bool = True) -> Diagram:
    """The drawing's plan.

    Args:
      structure: of the network.
      is_folded: whether of four or more equal blocks in a row only the first two are shown.
    """
    lines = _layers(structure)
    if is_folded:
        lines = _with_gaps(structure, lines)
    shape = tuple(structure.example.shape[1:])
    first = Line(INPUT, shape, makes=(INPUT,), frozen="input of the network", layers=(INPUT,))
    last = Line(OUTPUT, reads=(OUTPUT,), layers=(OUTPUT,))
    lines = [first, *lines, last]
    return _with_rails(structure, lines)


def _layers(structure: Structure) -> list[Line]:
    trace = structure.families.trace
    made_axes: dict[Path, set[int]] = {}
    reads_input: set[Path] = set()
    order: dict[Path, None] = {}
    events = [(use.value, use.kernel) for use in trace.consumptions if use.kernel is not None]
    for use in trace.consumptions:
        if use.kernel is not None and not use.seen.producers:
            reads_input.add(use.kernel)
    for production in trace.productions:
        order[production.kernel] = None
        made_axes.setdefault(production.kernel, set()).update(production.axes)
    order.update(dict.fromkeys(kernel for _, kernel in events))
    makes: dict[str, list[str]] = {}
    reads: dict[str, list[str]] = {}
    for name, group in structure.groups.items():
        for producer in kernels_of(structure, group):
            makes.setdefault(producer, []).append(name)
        for consumer in group.consumers:
            reads.setdefault(consumer, []).append(name)
    lines = []
    for kernel in order:
        path = dotted(kernel)
        reasons = [
            structure.frozen[key]
            for key in (f"{path}[{axis}]" for axis in sorted(made_axes.get(kernel, ())))
            if key in structure.frozen
        ]
        own = (*makes.get(path, ()), *([OUTPUT] if _is_output(reasons) else []))
        used = (*([INPUT] if kernel in reads_input else []), *reads.get(path, ()))
        shape = structure.shapes[kernel]
        lines.append(Line(layer_of(path), shape, own, used, "; ".join(reasons), layers=(path,)))
    if lines and not reads_input:  # tokens are looked up
        lines[0] = replace(lines[0], reads=(INPUT, *lines[0].reads))
    if lines and not any(OUTPUT in line.makes for line in lines):  # of one channel, which has no label
        lines[-1] = replace(lines[-1], makes=(*lines[-1].makes, OUTPUT))
    return lines


def _is_output(reasons: Iterable[str]) -> bool:
    return any(reason.startswith("output of the network") for reason in reasons)


def _with_gaps(structure: Structure, lines: Sequence[Line]) -> list[Line]:
    """The lines, with one in place of all further blocks where four or more in a row are alike."""
    keys = [
        (
            re.sub(r"\d+", "*", line.name),
            line.shape,
            line.frozen,
            tuple(sorted((re.sub(r"\d+", "*", name), structure.widths.get(name)) for name in line.makes)),
        )
        for line in lines
    ]
    result: list[Line] = []
    at = 0
    while at < len(lines):
        length, repeats = _repeats(keys, at)
        if repeats < _LEAST_REPEATS:
            result.append(lines[at])
            at += 1
            continue
        shown, end = at + _SHOWN_REPEATS * length, at + repeats * length
        what = "layer" if length == 1 else "block"
        more = tuple(path for line in lines[shown:end] for path in line.layers)
        gap = Line(f"{repeats - _SHOWN_REPEATS} more {what}s like these", is_gap=True, layers=more)
        result += [*lines[at:shown], gap]
        at = end
    return result


def _repeats(keys: Sequence[object], at: int) -> tuple[int, int]:
    """The shortest block that begins here and comes again and again, and how often."""
    for length in range(1, _LONGEST_BLOCK + 1):
        block, repeats = keys[at : at + length], 1
        while keys[at + repeats * length : at + (repeats + 1) * length] == block and len(block) == length:
            repeats += 1
        if repeats >= _LEAST_REPEATS:
            return length, repeats
    return 1, 1


def _with_rails(structure: Structure, lines: Sequence[Line]) -> Diagram:
    place = {path: number for number, line in enumerate(lines) for path in line.layers}
    ends = {name: [number for number, line in enumerate(lines) if name in (*line.makes, *line.reads)]
            for name in (INPUT, OUTPUT)}  # fmt: skip
    rails = []
    for name, group in structure.groups.items():
        makers = sorted({place[path] for path in kernels_of(structure, group)})
        readers = sorted({place[path] for path in group.consumers if path in place})
        rails.append(_rail(lines, name, group.size, makers, readers))
    for name, own in ends.items():
        makers = [number for number in own if name in lines[number].makes]
        readers = [number for number in own if name in lines[number].reads]
        if makers and readers:
            rails.append(_rail(lines, name, 0, makers, readers))
    shown = [rail for rail in rails if rail.makers or rail.readers]
    placed, num_lanes = _in_lanes(shown)
    visible = {rail.group for rail in placed}
    return Diagram(tuple(_seen(line, visible) for line in lines), placed, num_lanes)


def _rail(
    lines: Sequence[Line], name: str, channels: int, makers: Sequence[int], readers: Sequence[int]
) -> Rail:
    touched = sorted({*makers, *readers})
    first, last = touched[0], touched[-1]
    return Rail(
        group=name,
        channels=channels,
        first=first,
        last=last,
        makers=tuple(number for number in makers if not lines[number].is_gap),
        readers=tuple(number for number in readers if not lines[number].is_gap),
        gaps=tuple(number for number in range(first, last + 1) if lines[number].is_gap),
        is_met=not readers,
    )


def _seen(line: Line, visible: set[str]) -> Line:
    return replace(
        line,
        makes=tuple(name for name in line.makes if name in visible),
        reads=tuple(name for name in line.reads if name in visible),
    )


def _in_lanes(rails: Sequence[Rail]) -> tuple[tuple[Rail, ...], int]:
    """Short rails near the layers, long ones further out; in one lane none begins where another ends."""
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[int, int] = {}
    for number in sorted(range(len(rails)), key=lambda at: (rails[at].last - rails[at].first, at)):
        first, last = rails[number].first, rails[number].last
        lane = next(
            (
                lane
                for lane, spans in enumerate(taken)
                if all(last < other_first or other_last < first for other_first, other_last in spans)
            ),
            len(taken),
        )
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        lanes[number] = lane
    return tuple(replace(rail, lane=lanes[number]) for number, rail in enumerate(rails)), len(taken)
