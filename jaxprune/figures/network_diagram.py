"""A network drawn as its groups: layers in program order, and beside them the channels that fall together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxprune.figures.network_layout import INPUT, OUTPUT, Diagram, Line, Rail, diagram_of
from jaxprune.figures.style import DARK, GREY, LIGHT, new_figure
from jaxprune.structure.model_state import dotted
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxprune.structure.groups import Structure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a5195", "#a07800")
"""Of groups, in their order, again and again."""

_ROW, _LANE, _BOX, _MARGIN, _LEAST_WIDTH = 0.34, 0.21, 0.25, 0.2, 5.4
_LETTER, _NOTE, _KEY = 0.073, 0.069, 0.058
"""Inches of a letter in a box, beside it and in the key."""

_READ, _MADE = 0.055, -0.055
"""How far above and below a layer's middle its channels come in and go out, in inches."""

_MOST_LETTERS = 40
_MOST_REASON = 64


def groups_figure(structure: Structure, title: str = "", *, is_folded: bool = True) -> Figure:
    """Layers in program order with a coloured rail for every group: who makes its channels, and who reads them.

    A layer has the colour of the channels that it makes; grey ones are never cut.

    Args:
      structure: of the network (`trace_structure`).
      title: a heading; empty for none.
      is_folded: whether of four or more equal blocks in a row only the first two are drawn.

    Returns:
      A figure for `save_figure`.

    Raises:
      ImportError: if matplotlib is missing.
    """
    diagram = diagram_of(structure, is_folded=is_folded)
    colors = _colors(diagram)
    shapes = [_shape(line) for line in diagram.lines]
    names = [_name(line) for line in diagram.lines]
    notes = [_note(structure, diagram, number, colors) for number in range(len(diagram.lines))]
    left = _MARGIN + _LETTER * max(map(len, shapes)) + 0.1
    box = 0.25 + _LETTER * max(map(len, names))
    rails = 0.3 + _LANE * diagram.num_lanes
    right = max(_NOTE * sum(len(text) + 3 for text, _ in note) for note in notes)
    width = max(left + box + rails + right + _MARGIN, _LEAST_WIDTH, _MARGIN * 2 + 0.1 * len(title))
    key = _placed_key(diagram, width - 2 * _MARGIN)
    top = _MARGIN + (0.4 if title else 0.0) + _ROW / 2
    bottom = 0.55 + 0.24 * (1 + key[-1][1])
    height = top + _ROW * (len(diagram.lines) - 1) + bottom
    with new_figure(width, height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # in inches: the layers begin at (0, 0)
        axes.set_axis_off()
        axes.set_xlim(-left, width - left)
        axes.set_ylim(top - height, top)
        for rail in diagram.rails:
            _draw_rail(axes, rail, box, colors[rail.group])
        for number, line in enumerate(diagram.lines):
            axes.text(-0.1, -number * _ROW, shapes[number], ha="right", va="center", fontsize=7.5, color=GREY)
            _draw_layer(axes, number, line, names[number], box, [colors[name] for name in line.makes])
            _write_note(axes, number, notes[number], box + rails)
        _draw_key(axes, key, _MARGIN - left, top - height + bottom - 0.5)
        if title:
            axes.text(_MARGIN - left, top - 0.3, title, fontsize=11, fontweight="bold", va="center")
    return figure


def _colors(diagram: Diagram) -> dict[str, str]:
    """A colour for every group, another one than those of the groups beside it."""
    colors = {INPUT: GREY, OUTPUT: GREY}
    rails = sorted(
        (rail for rail in diagram.rails if rail.channels), key=lambda rail: (rail.first, rail.lane)
    )
    for number, rail in enumerate(rails):
        near = [
            colors[other.group]
            for other in rails[:number]
            if other.first <= rail.last + 1 and rail.first - 2 <= other.last
        ]
        turned = [COLORS[(number + step) % len(COLORS)] for step in range(len(COLORS))]
        colors[rail.group] = next((color for color in turned if color not in near), turned[0])
    return colors


def _shape(line: Line) -> str:
    return "×".join(map(str, line.shape))


def _name(line: Line) -> str:
    if line.is_gap:
        return f"⋮  {line.name}"
    return line.name if len(line.name) <= _MOST_LETTERS else f"…{line.name[1 - _MOST_LETTERS :]}"


def _note(
    structure: Structure, diagram: Diagram, number: int, colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What stands beside a line, in parts with colours: the size of groups that begin there, or why nothing does."""
    line = diagram.lines[number]
    parts = []
    for rail in diagram.rails:
        if rail.channels and rail.makers[:1] == (number,):
            parts.append((_size(structure, rail.group, line.layers[0]), colors[rail.group]))
    if line.frozen and line.layers != (INPUT,):
        where = re.sub(r" at (\S+):", lambda found: f" at {os.path.basename(found[1])}:", line.frozen)
        where = where.partition(" (")[0].partition(": when")[0]
        parts.append((shortened(f"never cut: {where}", _MOST_REASON), GREY))
    if not parts and not line.makes and line.shape:
        parts.append(("never cut: a single channel", GREY))
    return parts


def _size(structure: Structure, name: str, kernel: str) -> str:
    """How many channels a group has, and how many indices of its first kernel each of them is."""
    group = structure.groups[name]
    own = [member for member in group.members if dotted(member.path) == kernel]
    times = max((int((member.channels >= 0).sum()) // group.size for member in own), default=1)
    text = f"{group.size:,} channels" + (f" × {times}" if times > 1 else "")
    return f"{text}, stays whole" if name in structure.shared_groups("inner") else text


def _draw_rail(axes: Axes, rail: Rail, box: float, color: str) -> None:
    x = box + 0.25 + _LANE * rail.lane
    top = -rail.first * _ROW + (_MADE if rail.first in rail.makers else 0.0)
    bottom = -rail.last * _ROW + (_READ if rail.last in rail.readers else -0.02)
    if rail.is_met and rail.last not in rail.gaps:
        bottom = min(bottom, -rail.last * _ROW - _ROW / 2)
        axes.plot(x, bottom, "D", ms=4.5, color=color, zorder=5)
    if rail.last in rail.makers:
        bottom = min(bottom, -rail.last * _ROW + _MADE)
    axes.plot([x, x], [top, bottom], color="white", lw=4.5, zorder=2, solid_capstyle="butt")
    axes.plot([x, x], [top, bottom], color=color, lw=2.4, zorder=3, solid_capstyle="round")
    for gap in rail.gaps:
        axes.plot(
            [x, x], [-gap * _ROW + 0.1, -gap * _ROW - 0.1], color="white", lw=3, ls=(0, (0.7, 0.7)), zorder=4
        )
    for number in rail.makers:
        y = -number * _ROW + _MADE
        axes.plot([box, x], [y, y], color=color, lw=1.3, zorder=2)
        axes.plot(x, y, "o", ms=5, color=color, zorder=5)
    for number in rail.readers:
        y = -number * _ROW + _READ
        axes.plot([box + 0.04, x], [y, y], color=color, lw=1.3, zorder=2)
        axes.plot(box + 0.055, y, "<", ms=4.5, color=color, zorder=6)


def _draw_layer(axes: Axes, number: int, line: Line, name: str, box: float, colors: list[str]) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch, Rectangle

    y = -number * _ROW
    if line.is_gap:
        axes.text(0.1, y, name, ha="left", va="center", fontsize=8, color=GREY, style="italic")
        return
    is_end = line.layers in ((INPUT,), (OUTPUT,))
    own = [color for color in colors if color != GREY] or [GREY]
    shade = [tuple(0.75 + 0.25 * part for part in to_rgb(color)) for color in own]
    pad = 0.03
    patch = FancyBboxPatch(
        (pad, y - _BOX / 2 + pad), box - 2 * pad, _BOX - 2 * pad,
        boxstyle=f"round,pad={pad},rounding_size=0.06", fc="white" if is_end else shade[0], ec=own[0], lw=1.1, zorder=4,
    )  # fmt: skip
    axes.add_patch(patch)
    for at, color in enumerate(shade[1:], start=1):  # a stripe for each further group
        start = box * at / len(shade)
        stripe = Rectangle((start, y - _BOX / 2), box / len(shade), _BOX, fc=color, ec="none", zorder=4.5)
        stripe.set_clip_path(patch)
        axes.add_patch(stripe)
    axes.text(
        0.1, y - 0.005, name, ha="left", va="center", fontsize=8.5, color=GREY if is_end else DARK, zorder=6
    )


def _write_note(axes: Axes, number: int, parts: list[tuple[str, str]], x: float) -> None:
    for text, color in parts:
        axes.text(x, -number * _ROW, text, ha="left", va="center", fontsize=8, color=color)
        x += _NOTE * (len(text) + 3)


def _placed_key(diagram: Diagram, width: float) -> list[tuple[float, int, str, str]]:
    """The key's entries, each with its place (inches, row), marker and text."""
    entries = [("-", "channels that fall together"), ("o", "made here"), ("<", "read here")]
    if any(rail.is_met for rail in diagram.rails):
        entries.append(("D", "meet other channels"))
    if any(line.is_gap for line in diagram.lines):
        entries.append(("⋮", "more of the same"))
    entries.append(("s", "never cut"))
    placed, x, row = [], 0.0, 0
    for marker, text in entries:
        length = 0.4 + _KEY * len(text)
        if x > 0 and x + length > width:
            x, row = 0.0, row + 1
        placed.append((x, row, marker, text))
        x += length + 0.1
    return placed


def _draw_key(axes: Axes, key: list[tuple[float, int, str, str]], x: float, y: float) -> None:
    for shift, row, marker, text in key:
        at, level = x + shift + 0.1, y - 0.24 * row
        if marker == "-":
            axes.plot([at - 0.1, at + 0.1], [level, level], color=COLORS[0], lw=2.4)
        elif marker == "⋮":
            axes.plot([at - 0.1, at + 0.1], [level, level], color=COLORS[0], lw=2.4, ls=(0, (0.7, 0.7)))
        elif marker == "s":
            axes.plot(at, level, "s", ms=8, color=LIGHT, mec=GREY)
        else:
            axes.plot(at, level, marker, ms=5, color=COLORS[0])
        axes.text(at + 0.17, level, text, ha="left", va="center", fontsize=8, color=DARK)
