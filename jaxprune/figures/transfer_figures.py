"""Draws transfers: accuracy over the epochs of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.comparison.transfer_records import DENSE
from jaxprune.comparison.transfer_results import Transfer
from jaxprune.figures.style import DARK, NAME_LENGTH, Look, legend_below, looks_of, new_figure
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


def transfer_curves_figure(transfer: Transfer) -> Figure:
    """Draws validation accuracy over the epochs: the mean over base networks, with a band of one standard error.

    Each curve starts with the accuracy right after pruning. The dense networks are a line across.

    Args:
      transfer: a finished one.

    Returns:
      A figure for `save_figure`.
    """
    looks = row_looks(transfer)
    handles: dict[str, Line2D] = {}
    bases = range(transfer.settings.bases)
    with new_figure(7.2, 4.4) as figure:
        axes = figure.add_subplot()
        for name in transfer.names:
            rows = [transfer.row(base, name) for base in bases]
            epochs = [0.0, *(epoch for epoch, _ in rows[0].curve)]
            curves = np.array(
                [
                    [row.before.top1 if row.before else math.nan, *(top1 for _, top1 in row.curve)]
                    for row in rows
                ]
            )
            mean = curves.mean(0)
            se = curves.std(0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.zeros_like(mean)
            look, is_first = looks[name], name == transfer.names[0]
            axes.fill_between(epochs, mean - se, mean + se, color=look.color, alpha=0.15, lw=0)
            (handles[shortened(name, NAME_LENGTH)],) = axes.plot(
                epochs, mean, color=look.color, ls=look.line, marker=look.marker if len(epochs) < 20 else "",
                ms=4.5, lw=2.2 if is_first else 1.5, zorder=4 if is_first else 3,
            )  # fmt: skip
        dense = float(np.mean([transfer.row(base, DENSE).after.top1 for base in bases]))
        handles["dense network"] = axes.axhline(dense, color=DARK, lw=1, ls=(0, (1, 2)), zorder=1)
        axes.set_xlabel("epochs of fine-tuning")
        axes.set_ylabel("validation accuracy, top-1 (%)")
        axes.set_xlim(left=0)
        axes.grid()
        settings = transfer.settings
        axes.set_title(f"{settings.title} (n = {settings.bases} bases)")
        legend_below(figure, handles)
    return figure


def row_looks(transfer: Transfer) -> Mapping[str, Look]:
    """Returns how each row is drawn: the function that is transferred looks like the winner of a search.

    Args:
      transfer: a finished one.
    """
    first, *others = transfer.names
    looks = looks_of(["winner", *others])
    return {first: looks["winner"], **{name: looks[name] for name in others}}
