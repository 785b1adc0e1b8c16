"""Figures of what functions do to every layer: which channels they keep, how their scores fall, and who ranks alike.

`save_figure` of `drawing` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.figures.style import DARK, GREY, NAME_LENGTH, legend_below, looks_of, new_figure, panels
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from jaxprune.comparison.protocol import LayerView
    from jaxprune.scoring.rank_correlation import Correlations


def overlap_figure(views: Sequence[LayerView], title: str = "") -> Figure:
    """How many of the channels that one function keeps another keeps too, layer by layer.

    Args:
      views: from `layer_views`; the rows "random 1", "random 2", ... are averaged.
      title: a heading, such as the task and the base.

    Returns:
      A figure with one matrix per group, in percent of the kept channels, for `save_figure`.
    """
    names = list(dict.fromkeys("random" if name.startswith("random ") else name for name in views[0].kept))
    rows = math.ceil(len(views) / 4)
    columns = math.ceil(len(views) / rows)
    size = 0.42 * len(names) + 0.35
    left = 0.09 * max(len(shortened(name, NAME_LENGTH)) for name in names) + 0.3
    with new_figure(max(size * columns + left, 5.0), (size + 0.55) * rows + 0.4) as figure:
        for number, (axes, view) in enumerate(zip(panels(figure, len(views), columns), views, strict=True)):
            table = overlaps(view, names)
            axes.imshow(table, cmap="Blues", vmin=0, vmax=140)
            for i in range(len(names)):
                for j in range(len(names)):
                    text = "" if math.isnan(table[i, j]) else f"{table[i, j]:.0f}"
                    axes.text(j, i, text, ha="center", va="center", fontsize=9, color=DARK)
            is_first = number % columns == 0
            labels = [f"{shortened(name, NAME_LENGTH)}  {place}" for place, name in enumerate(names, start=1)]
            axes.set_xticks(range(len(names)), [str(place) for place in range(1, len(names) + 1)])
            axes.set_yticks(range(len(names)), labels if is_first else [])
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set_title(_layer(view.group), fontsize=10.5, pad=21)
            axes.text(
                0, 1.03, f"keeps {view.count} of {view.width}; by chance {100 * view.count / view.width:.0f}",
                transform=axes.transAxes, fontsize=8, color=GREY, va="bottom",
            )  # fmt: skip
        heading = "Channels kept by both (% of the kept)"
        figure.suptitle(
            f"{heading}: {title}" if title else heading, fontweight="bold", x=0.01, ha="left", fontsize=11
        )
    return figure


def overlaps(view: LayerView, names: Sequence[str]) -> np.ndarray:
    """[names, names] percent of the kept channels that two rows share; "random" is the mean over draws.

    NaN for a row with itself, and where there is nothing to compare, as with a single draw.
    """
    draws = [name for name in view.kept if name.startswith("random ")]

    def members(name: str) -> list[str]:
        return draws if name == "random" else [name]

    table = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            if first == second == "random":
                pairs = list(combinations(draws, 2))
            else:
                pairs = [(a, b) for a in members(first) for b in members(second) if a != b]
            shared = [
                100 * len(set(view.kept[a]) & set(view.kept[b])) / len(view.kept[a])
                for a, b in pairs
                if a in view.kept and b in view.kept
            ]
            if shared:
                table[i, j] = np.mean(shared)
    return table


def scores_figure(views: Sequence[LayerView], title: str = "") -> Figure:
    """Scores of every layer in falling order, each function scaled to its own range, with the cut.

    A steep fall at the cut means that a function is sure which channels to keep; a flat one that it hardly
    distinguishes them.

    Args:
      views: from `layer_views`.
      title: a heading, such as the task and the base.

    Returns:
      A figure with one panel per group, for `save_figure`.
    """
    names = list(dict.fromkeys(name for view in views for name in view.scores))
    looks = looks_of(names)
    columns = min(3, len(views))
    with new_figure(max(3.3 * columns + 0.6, 5.6), 2.7 * math.ceil(len(views) / columns) + 0.7) as figure:
        from matplotlib.ticker import MaxNLocator

        handles: dict[str, Line2D] = {}
        axes_of = panels(figure, len(views), columns)
        for number, (axes, view) in enumerate(zip(axes_of, views, strict=True)):
            x = np.arange(1, view.width + 1)
            axes.axvspan(view.count + 0.5, view.width + 0.5, color="#f3f3f3", lw=0, zorder=0)
            axes.axvline(view.count + 0.5, color=GREY, lw=1.2, zorder=1)
            for name, scores in view.scores.items():
                found = np.asarray(scores, float)
                span = found.max() - found.min()
                scaled = (found - found.min()) / span if span > 0 else np.full_like(found, 0.5)
                (handles[name],) = axes.plot(
                    x, scaled, color=looks[name].color, ls=looks[name].line, lw=1.6,
                    marker=looks[name].marker if view.width <= 40 else "", ms=4,
                )  # fmt: skip
            axes.text(
                view.count + 0.5 + 0.02 * view.width, 0.99, "pruned", color=GREY, fontsize=8.5, va="top",
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
        heading = "Sorted scores and the cut"
        figure.suptitle(
            f"{heading}: {title}" if title else heading, fontweight="bold", x=0.01, ha="left", fontsize=11
        )
        legend_below(figure, handles)
    return figure


def correlation_figure(found: Correlations, title: str = "") -> Figure:
    """How alike one function and every metric rank the channels: a heat map of metrics by layers.

    Red is the same order, blue the reverse; grey where the scores of either are all equal.

    Args:
      found: from `correlate`.
      title: a heading, such as the formula and the network.

    Returns:
      A figure for `save_figure`.
    """
    heads = [*map(_layer, found.groups), "mean of layers", "all together"]
    table = np.column_stack([found.by_group, found.mean, found.together])
    gap = len(found.groups)
    names = [shortened(name, NAME_LENGTH) for name in found.names]
    width = 0.5 * len(heads) + 0.085 * max(map(len, [*names, "metric"])) + 2.2
    with new_figure(max(width, 5.5), 0.27 * len(names) + 1.9) as figure:
        import matplotlib as mpl

        axes = figure.add_subplot()
        colors = mpl.colormaps["RdBu_r"].with_extremes(bad="#ececec")
        image = axes.imshow(table, cmap=colors, vmin=-1.5, vmax=1.5, aspect="auto")
        for i, j in np.ndindex(*table.shape):
            if np.isfinite(table[i, j]):
                size = 8 if len(heads) <= 20 else 6
                axes.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=size, color=DARK)
        axes.axvline(gap - 0.5, color="white", lw=4)
        axes.set_xticks(range(len(heads)), heads, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=18, ticks=[-1, 0, 1])
        bar.ax.set_ylim(-1, 1)
        bar.set_ticks([-1, 0, 1], labels=["reverse order", "unrelated", "same order"])
        bar.outline.set_visible(False)
        figure.suptitle(
            f"Rank correlation with every metric\n{shortened(title, 90)}".rstrip(), fontweight="bold", x=0.01,
            ha="left", fontsize=11,
        )  # fmt: skip
    return figure


def _layer(group: str) -> str:
    return group.removesuffix(".kernel")
