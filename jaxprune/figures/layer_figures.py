"""Draws what pruning functions do to every layer: which channels they keep, how scores fall, which metrics agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.figures.style import DARK, GREY, NAME_LENGTH, legend_below, looks_of, new_figure, panels
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from jaxprune.comparison.protocol import LayerView
    from jaxprune.scoring.rank_correlation import Correlations


def overlap_figure(views: Sequence[LayerView], title: str = "") -> Figure:
    """Draws, layer by layer, how many of the channels that one function keeps another keeps too.

    Args:
      views: from `layer_views`; the rows "random 1", "random 2", ... are averaged.
      title: a heading, such as the task and the base.

    Returns:
      A figure with one matrix per group, in percent of the kept channels, for `save_figure`.
    """
    names = list(dict.fromkeys("random" if name.startswith("random ") else name for name in views[0].kept))
    labels = [f"{shortened(name, NAME_LENGTH)}  {number}" for number, name in enumerate(names, start=1)]
    rows = math.ceil(len(views) / 4)
    columns = math.ceil(len(views) / rows)
    size = 0.42 * len(names) + 0.35
    left = 0.09 * max(len(shortened(name, NAME_LENGTH)) for name in names) + 0.3
    with new_figure(max(size * columns + left, 5.0), (size + 0.55) * rows + 0.4) as figure:
        for number, (axes, view) in enumerate(zip(panels(figure, len(views), columns), views, strict=True)):
            table = overlaps(view, names)
            axes.imshow(table, cmap="Blues", vmin=0, vmax=140)
            for (i, j), percent in np.ndenumerate(table):
                text = "" if math.isnan(percent) else f"{percent:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color=DARK)
            axes.set_xticks(range(len(names)), [str(number) for number in range(1, len(names) + 1)])
            axes.set_yticks(range(len(names)), labels if number % columns == 0 else [])
            _hide_frame(axes)
            axes.set_title(_layer(view.group), fontsize=10.5, pad=21)
            axes.text(
                0, 1.03, f"keeps {view.count} of {view.width}; by chance {100 * view.count / view.width:.0f}",
                transform=axes.transAxes, fontsize=8, color=GREY, va="bottom",
            )  # fmt: skip
        _write_heading(figure, "Channels kept by both (% of the kept)" + (f": {title}" if title else ""))
    return figure


def overlaps(view: LayerView, names: Sequence[str]) -> np.ndarray:
    """Computes the share of the kept channels that two functions have in common.

    Args:
      view: what every function keeps of one group.
      names: the functions; "random" is the mean over all random draws.

    Returns:
      [names, names] percent; NaN for a function with itself, and where there is nothing to compare, as with a single
      draw.
    """
    draws = [name for name in view.kept if name.startswith("random ")]
    table = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            rows, others = (draws if name == "random" else [name] for name in (first, second))
            pairs = (
                combinations(draws, 2)
                if first == second == "random"
                else [(a, b) for a in rows for b in others]
            )
            shared = [
                100 * len(set(view.kept[a]) & set(view.kept[b])) / len(view.kept[a])
                for a, b in pairs
                if a != b and a in view.kept and b in view.kept
            ]
            if shared:
                table[i, j] = np.mean(shared)
    return table


def scores_figure(views: Sequence[LayerView], title: str = "") -> Figure:
    """Draws the scores of every layer in falling order, each function scaled to its own range, with the cut.

    A steep fall at the cut means that a function is sure which channels to keep; a flat curve means that it hardly
    distinguishes them.

    Args:
      views: from `layer_views`.
      title: a heading, such as the task and the base.

    Returns:
      A figure with one panel per group, for `save_figure`.
    """
    looks = looks_of(list(dict.fromkeys(name for view in views for name in view.scores)))
    columns = min(3, len(views))
    with new_figure(max(3.3 * columns + 0.6, 5.6), 2.7 * math.ceil(len(views) / columns) + 0.7) as figure:
        from matplotlib.ticker import MaxNLocator

        handles: dict[str, Line2D] = {}
        axes_of = panels(figure, len(views), columns)
        for number, (axes, view) in enumerate(zip(axes_of, views, strict=True)):
            cut, x = view.count + 0.5, np.arange(1, view.width + 1)
            axes.axvspan(cut, view.width + 0.5, color="#f3f3f3", lw=0, zorder=0)
            axes.axvline(cut, color=GREY, lw=1.2, zorder=1)
            for name, scores in view.scores.items():
                y, look = np.asarray(scores, float), looks[name]
                span = y.max() - y.min()
                y = (y - y.min()) / span if span > 0 else np.full_like(y, 0.5)
                marker = look.marker if view.width <= 40 else ""
                (handles[name],) = axes.plot(
                    x, y, color=look.color, ls=look.line, lw=1.6, marker=marker, ms=4
                )
            axes.text(
                cut + 0.02 * view.width, 0.99, "pruned", color=GREY, fontsize=8.5, va="top",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            axes.set_xlim(0.5, view.width + 0.5)
            axes.set_ylim(-0.04, 1.12)
            axes.set_yticks([0, 0.5, 1], ["lowest", "", "highest"] if number % columns == 0 else [])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_title(f"{_layer(view.group)}, keeps {view.count} of {view.width}", fontsize=10)
            axes.grid(axis="y")
        for axes in axes_of[-columns:]:
            axes.set_xlabel("channels, by falling score")
        _write_heading(figure, "Sorted scores and the cut" + (f": {title}" if title else ""))
        legend_below(figure, handles)
    return figure


def correlation_figure(correlations: Correlations, title: str = "") -> Figure:
    """Draws how alike one function and every metric rank the channels: a heat map of metrics by layers.

    Red is the same order and blue the reverse; grey marks layers where one of the two gives all channels equal scores.

    Args:
      correlations: from `correlate`.
      title: a heading, such as the formula and the network.

    Returns:
      A figure for `save_figure`.
    """
    heads = [*map(_layer, correlations.groups), "mean of layers", "all together"]
    table = np.column_stack([correlations.by_group, correlations.mean, correlations.together])
    names = [shortened(name, NAME_LENGTH) for name in correlations.names]
    width = 0.5 * len(heads) + 0.085 * max(map(len, [*names, "metric"])) + 2.2
    with new_figure(max(width, 5.5), 0.27 * len(names) + 1.9) as figure:
        import matplotlib as mpl

        axes = figure.add_subplot()
        colors = mpl.colormaps["RdBu_r"].with_extremes(bad="#ececec")
        image = axes.imshow(table, cmap=colors, vmin=-1.5, vmax=1.5, aspect="auto")
        for (i, j), correlation in np.ndenumerate(table):
            if np.isfinite(correlation):
                size = 8 if len(heads) <= 20 else 6
                axes.text(j, i, f"{correlation:.2f}", ha="center", va="center", fontsize=size, color=DARK)
        axes.axvline(len(correlations.groups) - 0.5, color="white", lw=4)
        axes.set_xticks(range(len(heads)), heads, rotation=90)
        axes.set_yticks(range(len(names)), names)
        _hide_frame(axes)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=18, ticks=[-1, 0, 1])
        bar.ax.set_ylim(-1, 1)
        bar.set_ticks([-1, 0, 1], labels=["reverse order", "unrelated", "same order"])
        bar.outline.set_visible(False)
        _write_heading(figure, f"Rank correlation with every metric\n{shortened(title, 90)}".rstrip())
    return figure


def _layer(group: str) -> str:
    """Returns the name of the layer that makes a group."""
    return group.removesuffix(".kernel")


def _hide_frame(axes: Axes) -> None:
    """Removes the ticks and the frame of a matrix."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write_heading(figure: Figure, text: str) -> None:
    """Writes a heading at the upper left of a figure."""
    figure.suptitle(text, fontweight="bold", x=0.01, ha="left", fontsize=11)
