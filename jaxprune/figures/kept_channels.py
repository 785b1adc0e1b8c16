"""Draws how many channels of each group of a network stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.figures.style import GREY, LIGHT, NAME_LENGTH, new_figure
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMED_GROUPS = 60
"""Groups whose names a figure shows; of more it shows numbers."""

_MOST_COUNTED_GROUPS, _MOST_FLAT = 24, 8
"""Groups of which a figure writes how many channels stay, and those with room to write it across."""


def kept_channels_figure(widths: Mapping[str, int], kept: Mapping[str, int], title: str) -> Figure:
    """Draws the number of channels of every group, and how many of them stay.

    Args:
      widths: group -> number of channels, in program order.
      kept: group -> number of channels that stay; groups left out stay whole.
      title: a heading.

    Returns:
      A figure for `save_figure`.
    """
    groups = list(widths)
    with new_figure(max(6.0, 0.16 * len(groups) + 2.0), 3.6) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(groups))
        counts = [kept.get(group, widths[group]) for group in groups]
        bars = axes.bar(places, [widths[group] for group in groups], color=LIGHT, label="removed")
        axes.bar(places, counts, color="#0072B2", label="kept")
        if len(groups) <= _MOST_COUNTED_GROUPS:  # narrow groups are hard to read beside wide ones
            labels = [f"{count} of {widths[group]}" for group, count in zip(groups, counts, strict=True)]
            axes.bar_label(
                bars, labels, fontsize=7, padding=2, rotation=0 if len(groups) <= _MOST_FLAT else 90
            )
            axes.margins(y=0.12 if len(groups) <= _MOST_FLAT else 0.25)
        names = [group.removesuffix(".kernel") for group in groups]
        if len(groups) <= _MOST_NAMED_GROUPS:
            axes.set_xticks(places, [shortened(name, NAME_LENGTH) for name in names], rotation=90, fontsize=7)
        else:
            axes.set_xlabel("group of channels, in program order")
        axes.set_xlim(-0.7, len(groups) - 0.3)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("channels")
        axes.grid(axis="y", color=GREY, alpha=0.25)
        axes.set_title(title)
        axes.legend(loc="best")
    return figure
