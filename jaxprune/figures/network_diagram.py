"""Draws a network as its groups: layers in program order, and beside them the channels that fall together."""

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
"""The colours that groups take in turn."""

_ROW, _TRACK, _BOX, _MARGIN, _MIN_WIDTH = 0.34, 0.21, 0.25, 0.2, 5.4
"""Inches from line to line, from track to track, of a layer's box, of the margin, and of the narrowest figure."""
_LETTER, _NOTE, _LEGEND = 0.073, 0.069, 0.058
"""Inches of a letter in a box, beside it and in the legend."""
_READ, _MADE = 0.055, -0.055
"""Inches above a layer's middle where the channels that it reads come in, and those that it makes go out."""
_NAME_LENGTH, _REASON_LENGTH = 40, 64


def groups_figure(structure: Structure, title: str = "", *, is_folded: bool = True) -> Figure:
    """Draws layers in program order with a coloured rail for every group: who makes its channels, and who reads them.

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
    shapes = ["×".join(map(str, line.shape)) for line in diagram.lines]
    names = [_name(line) for line in diagram.lines]
    notes = [_notes(structure, diagram, number, colors) for number in range(len(diagram.lines))]
    left = _MARGIN + _LETTER * max(map(len, shapes)) + 0.1
    box = 0.25 + _LETTER * max(map(len, names))
    rails = 0.3 + _TRACK * diagram.num_tracks
    right = max(_NOTE * sum(len(text) + 3 for text, _ in note) for note in notes)
    width = max(left + box + rails + right + _MARGIN, _MIN_WIDTH, _MARGIN * 2 + 0.1 * len(title))
    legend = _legend(diagram, width - 2 * _MARGIN)
    top = _MARGIN + (0.4 if title else 0.0) + _ROW / 2
    bottom = 0.55 + 0.24 * (1 + legend[-1][1])
    height = top + _ROW * (len(diagram.lines) - 1) + bottom
    with new_figure(width, height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # in inches, with the upper left layer at (0, 0)
        axes.set_axis_off()
        axes.set_xlim(-left, width - left)
        axes.set_ylim(top - height, top)
        for rail in diagram.rails:
            _draw_rail(axes, rail, box, colors[rail.group])
        for number, line in enumerate(diagram.lines):
            y, x = -number * _ROW, box + rails
            axes.text(-0.1, y, shapes[number], ha="right", va="center", fontsize=7.5, color=GREY)
            _draw_layer(axes, y, line, names[number], box, [colors[name] for name in line.makes])
            for text, color in notes[number]:
                axes.text(x, y, text, ha="left", va="center", fontsize=8, color=color)
                x += _NOTE * (len(text) + 3)
        _draw_legend(axes, legend, _MARGIN - left, top - height + bottom - 0.5)
        if title:
            axes.text(_MARGIN - left, top - 0.3, title, fontsize=11, fontweight="bold", va="center")
    return figure


def _colors(diagram: Diagram) -> dict[str, str]:
    """Returns a colour for each group that differs from those of the groups beside it."""
    colors = {INPUT: GREY, OUTPUT: GREY}
    groups = [rail for rail in diagram.rails if rail.channels]
    rails = sorted(groups, key=lambda rail: (rail.first, rail.track))
    for number, rail in enumerate(rails):
        near = [
            colors[other.group]
            for other in rails[:number]
            if other.first <= rail.last + 1 and rail.first - 2 <= other.last
        ]
        in_turn = [COLORS[(number + shift) % len(COLORS)] for shift in range(len(COLORS))]
        colors[rail.group] = next((color for color in in_turn if color not in near), in_turn[0])
    return colors


def _name(line: Line) -> str:
    """Returns the text in a layer's box."""
    if line.is_gap:
        return f"⋮  {line.name}"
    return line.name if len(line.name) <= _NAME_LENGTH else f"…{line.name[1 - _NAME_LENGTH :]}"


def _notes(
    structure: Structure, diagram: Diagram, number: int, colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Returns what stands beside a line, with colours: the size of groups that begin there, or why nothing is cut."""
    line = diagram.lines[number]
    notes = [
        (_size(structure, rail.group, line.layers[0]), colors[rail.group])
        for rail in diagram.rails
        if rail.channels and rail.makers[:1] == (number,)
    ]
    if line.frozen and line.layers != (INPUT,):
        reason = re.sub(r" at (\S+):", lambda match: f" at {os.path.basename(match[1])}:", line.frozen)
        reason = reason.partition(" (")[0].partition(": when")[0]
        notes.append((shortened(f"never cut: {reason}", _REASON_LENGTH), GREY))
    if not notes and not line.makes and line.shape:
        notes.append(("never cut: a single channel", GREY))
    return notes


def _size(structure: Structure, name: str, kernel: str) -> str:
    """Returns how many channels a group has, and how many indices of its first kernel each of them takes."""
    group = structure.groups[name]
    members = [member for member in group.members if dotted(member.path) == kernel]
    indices = max((int((member.channels >= 0).sum()) // group.size for member in members), default=1)
    text = f"{group.size:,} channels" + (f" × {indices}" if indices > 1 else "")
    return f"{text}, stays whole" if name in structure.shared_groups("inner") else text


def _draw_rail(axes: Axes, rail: Rail, box: float, color: str) -> None:
    """Draws a rail to the right of the boxes, with its connections to the layers."""
    x = box + 0.25 + _TRACK * rail.track
    top = -rail.first * _ROW + (_MADE if rail.first in rail.makers else 0.0)
    bottom = -rail.last * _ROW + (_READ if rail.last in rail.readers else -0.02)
    if rail.is_unread and rail.last not in rail.gaps:
        bottom = min(bottom, -rail.last * _ROW - _ROW / 2)
        axes.plot(x, bottom, "D", ms=4.5, color=color, zorder=5)
    if rail.last in rail.makers:
        bottom = min(bottom, -rail.last * _ROW + _MADE)
    axes.plot([x, x], [top, bottom], color="white", lw=4.5, zorder=2, solid_capstyle="butt")
    axes.plot([x, x], [top, bottom], color=color, lw=2.4, zorder=3, solid_capstyle="round")
    for gap in rail.gaps:
        y = -gap * _ROW
        axes.plot([x, x], [y + 0.1, y - 0.1], color="white", lw=3, ls=(0, (0.7, 0.7)), zorder=4)
    for number in rail.makers:
        y = -number * _ROW + _MADE
        axes.plot([box, x], [y, y], color=color, lw=1.3, zorder=2)
        axes.plot(x, y, "o", ms=5, color=color, zorder=5)
    for number in rail.readers:
        y = -number * _ROW + _READ
        axes.plot([box + 0.04, x], [y, y], color=color, lw=1.3, zorder=2)
        axes.plot(box + 0.055, y, "<", ms=4.5, color=color, zorder=6)


def _draw_layer(axes: Axes, y: float, line: Line, name: str, box: float, colors: list[str]) -> None:
    """Draws the box of a layer, with a stripe for each group that it makes, or the text of a gap."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch, Rectangle

    if line.is_gap:
        axes.text(0.1, y, name, ha="left", va="center", fontsize=8, color=GREY, style="italic")
        return
    is_end = line.layers in ((INPUT,), (OUTPUT,))
    edges = [color for color in colors if color != GREY] or [GREY]
    fills = [tuple(0.75 + 0.25 * part for part in to_rgb(color)) for color in edges]
    pad = 0.03
    patch = FancyBboxPatch(
        (pad, y - _BOX / 2 + pad), box - 2 * pad, _BOX - 2 * pad, boxstyle=f"round,pad={pad},rounding_size=0.06",
        fc="white" if is_end else fills[0], ec=edges[0], lw=1.1, zorder=4,
    )  # fmt: skip
    axes.add_patch(patch)
    for number, fill in enumerate(fills[1:], start=1):
        corner = (box * number / len(fills), y - _BOX / 2)
        stripe = Rectangle(corner, box / len(fills), _BOX, fc=fill, ec="none", zorder=4.5)
        stripe.set_clip_path(patch)
        axes.add_patch(stripe)
    color = GREY if is_end else DARK
    axes.text(0.1, y - 0.005, name, ha="left", va="center", fontsize=8.5, color=color, zorder=6)


def _legend(diagram: Diagram, width: float) -> list[tuple[float, int, str, str]]:
    """Returns the legend's entries: x in inches, row, marker and text."""
    entries = [("-", "channels that fall together"), ("o", "made here"), ("<", "read here")]
    if any(rail.is_unread for rail in diagram.rails):
        entries.append(("D", "meet other channels"))
    if any(line.is_gap for line in diagram.lines):
        entries.append(("⋮", "more of the same"))
    entries.append(("s", "never cut"))
    legend, x, row = [], 0.0, 0
    for marker, text in entries:
        length = 0.4 + _LEGEND * len(text)
        if x > 0 and x + length > width:
            x, row = 0.0, row + 1
        legend.append((x, row, marker, text))
        x += length + 0.1
    return legend


def _draw_legend(axes: Axes, legend: list[tuple[float, int, str, str]], left: float, top: float) -> None:
    """Draws the legend below the layers."""
    for shift, row, marker, text in legend:
        x, y = left + shift + 0.1, top - 0.24 * row
        if marker in "-⋮":
            style = "-" if marker == "-" else (0, (0.7, 0.7))
            axes.plot([x - 0.1, x + 0.1], [y, y], color=COLORS[0], lw=2.4, ls=style)
        elif marker == "s":
            axes.plot(x, y, "s", ms=8, color=LIGHT, mec=GREY)
        else:
            axes.plot(x, y, marker, ms=5, color=COLORS[0])
        axes.text(x + 0.17, y, text, ha="left", va="center", fontsize=8, color=DARK)
