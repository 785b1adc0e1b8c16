"""Draws sensitivities: accuracy against the kept fraction of one group, as lines or, for many groups, as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxprune.comparison.group_sensitivity import Sensitivity
from jaxprune.figures.style import (
    DARK,
    LIGHT,
    LOOKS,
    NAME_LENGTH,
    OTHERS,
    legend_below,
    new_figure,
)
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST_LINES = 8
"""Groups that are drawn as lines; more are rows of a map."""

_LINE_LOOKS = (*OTHERS, *(LOOKS[name] for name in ("winner", "random", "scratch")))


def sensitivity_figure(found: Sensitivity, title: str = "Sensitivity of each group") -> Figure:
    """Draws accuracy against the kept fraction, one group at a time.

    Up to eight groups are lines, with the accuracy of the whole network across. More are the rows of a map in program
    order, whose colour is the drop of accuracy in points.

    Args:
      found: of one network.
      title: above the drawing.

    Returns:
      A figure for `save_figure`.
    """
    return _lines(found, title) if len(found.widths) <= MOST_LINES else _map(found, title)


def _lines(found: Sensitivity, title: str) -> Figure:
    """Draws one line for each group."""
    handles: dict[str, Line2D] = {}
    with new_figure(7.2, 4.6) as figure:
        axes = figure.add_subplot()
        for (name, counts), look in zip(found.counts.items(), _LINE_LOOKS, strict=False):
            width = found.widths[name]
            fractions = [count / width for count in counts if count < width]
            accuracies = list(found.accuracies[name][: len(fractions)])
            (handles[f"{_label(name)} ({width})"],) = axes.plot(
                [*fractions, 1.0], [*accuracies, found.dense_accuracy],
                color=look.color, ls=look.line, marker=look.marker, ms=4.5, lw=1.6,
            )  # fmt: skip
        handles["whole network"] = axes.axhline(
            found.dense_accuracy, color=DARK, lw=1, ls=(0, (1, 2)), zorder=1
        )
        axes.set_xlabel("kept fraction of the group's channels")
        axes.set_ylabel("accuracy without fine-tuning (%)")
        axes.set_xlim(0, 1.02)
        axes.grid()
        axes.set_title(title)
        legend_below(figure, handles)
    return figure


def _map(found: Sensitivity, title: str) -> Figure:
    """Draws one row for each group, whose cells reach from one measured fraction half-way to the next."""
    names = list(found.widths)
    largest = max(
        1.0, *(found.dense_accuracy - accuracy for each in found.accuracies.values() for accuracy in each)
    )
    font = 8 if len(names) <= 30 else 6.5
    height = 1.5 + 0.022 * font * len(names)
    with new_figure(7.6, height) as figure:
        axes = figure.add_subplot()
        cells = [_draw_row(axes, row, found, name, largest) for row, name in enumerate(names)]
        axes.set_xlim(0, 1)
        axes.set_ylim(len(names) - 0.5, -0.5)
        labels = [f"{_label(name)} ({found.widths[name]})" for name in names]
        axes.set_yticks(range(len(names)), labels, fontsize=font)
        axes.tick_params(axis="y", length=0)
        axes.set_facecolor(LIGHT)
        axes.set_xlabel("kept fraction of the group's channels (grey: not measured)")
        axes.set_title(title)
        bar = figure.colorbar(cells[0], ax=axes, pad=0.02, shrink=min(1.0, 5 / height), anchor=(0.0, 1.0))
        bar.set_label(f"points below {found.dense_accuracy:.1f} %")
        bar.outline.set_visible(False)
    return figure


def _draw_row(axes: Axes, row: int, found: Sensitivity, name: str, largest: float) -> QuadMesh:
    """Draws the cells of a group."""
    width = found.widths[name]
    places = np.array(found.counts[name]) / width
    drops = found.dense_accuracy - np.array(found.accuracies[name])
    middles = (places[1:] + places[:-1]) / 2
    edges = np.array([max(0.0, 1.5 * places[0] - 0.5 * (places[1] if len(places) > 1 else 1.0)), *middles])
    edges = np.array([*edges, min(1.0, 2 * places[-1] - edges[-1])])
    return axes.pcolormesh(
        edges, [row - 0.46, row + 0.46], drops[None].clip(min=0), cmap="OrRd", vmin=0, vmax=largest
    )


def _label(name: str) -> str:
    """Returns a group's name, short enough for a figure."""
    return shortened(name.removesuffix(".kernel"), NAME_LENGTH)
