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
        axes.bar(places, [widths[group] for group in groups], color=LIGHT, label="removed")
        axes.bar(places, [kept.get(group, widths[group]) for group in groups], color="#0072B2", label="kept")
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
        axes.legend(loc="upper left")
    return figure
