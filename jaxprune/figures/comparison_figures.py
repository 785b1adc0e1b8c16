"""Draws comparisons and calibrations of pruning functions.

Accuracies are in percent and differences in points of accuracy; every n and every interval counts base networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.comparison.measurements import REFERENCE
from jaxprune.comparison.results import Comparison, SummaryRow
from jaxprune.comparison.verdicts import critical_value
from jaxprune.figures.style import DARK, GREY, NAME_LENGTH, OTHERS, legend_below, looks_of, new_figure, panels
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from jaxprune.comparison.calibration import Calibration


def curves_figure(
    comparison: Comparison, names: Sequence[str] | None = None, steps: Mapping[str, int] | None = None
) -> Figure:
    """Draws validation accuracy over the fine-tuning: the mean over bases, with a band of one standard error.

    Args:
      comparison: measured at several points of the fine-tuning.
      names: the functions to draw; all by default.
      steps: task name -> number of optimiser steps; for other tasks the axis is the share of the fine-tuning.

    Returns:
      A figure with one panel per task, for `save_figure`.
    """
    tasks = comparison.task_names
    shown = list(dict.fromkeys(name for task in tasks for name in names or comparison.names(task)))
    looks = looks_of(shown)
    columns = min(3, len(tasks))
    with new_figure(max(5.6, 3.8 * columns), 3.5 * math.ceil(len(tasks) / columns) + 0.4) as figure:
        axes_of = panels(figure, len(tasks), columns)
        handles: dict[str, Line2D] = {}
        for axes, task in zip(axes_of, tasks, strict=True):
            num_bases = 0
            num_steps = (steps or {}).get(task)
            for name in [name for name in shown if name in comparison.names(task)]:
                curves = base_curves(comparison, name, task)
                num_bases = max(num_bases, len(curves))
                x = np.arange(1, curves.shape[1] + 1) / curves.shape[1] * (num_steps or 100)
                mean = curves.mean(0)
                se = (
                    curves.std(0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else np.zeros_like(mean)
                )
                look, is_winner = looks[name], name == "winner"
                axes.fill_between(x, mean - se, mean + se, color=look.color, alpha=0.15, lw=0)
                (handles[name],) = axes.plot(
                    x, mean, color=look.color, ls=look.line, marker=look.marker, ms=4.5,
                    lw=2.2 if is_winner else 1.5, zorder=4 if is_winner else 3,
                )  # fmt: skip
            axes.set_title(f"{task} (n = {num_bases} bases)")
            axes.set_xlabel("fine-tuning steps" if num_steps else "share of the fine-tuning (%)")
            axes.set_xlim(left=0)
            axes.grid()
        for axes in axes_of[::columns]:
            axes.set_ylabel("validation accuracy (%)")
        legend_below(figure, handles)
    return figure


def base_curves(comparison: Comparison, name: str, task: str) -> np.ndarray:
    """Averages the accuracies along the fine-tuning over draws and repeats.

    Args:
      comparison: holds the measurements.
      name: the function.
      task: the name of the task.

    Returns:
      [bases, evaluations] accuracies in percent.
    """
    by_base: dict[int, list[tuple[float, ...]]] = {}
    for measurement in comparison.of(name, task):
        by_base.setdefault(measurement.base, []).append(measurement.curve)
    return np.array([np.mean(by_base[base], axis=0) for base in sorted(by_base)])


def ranks_figure(comparison: Comparison) -> Figure:
    """Draws the functions in order of their paired difference to l2, with intervals of one standard error and of 95 %.

    A filled marker means that the function can be told from l2: its 95 % interval (Student's t over bases) leaves
    out 0.

    Args:
      comparison: on one or more tasks.

    Returns:
      A figure with one panel per task, for `save_figure`.
    """
    by_task = {
        task: [row for row in comparison.summary() if row.task == task and row.difference is not None]
        for task in comparison.task_names
    }
    looks = looks_of(["winner", "random", "scratch", "oracle"])
    columns = min(2, len(by_task))
    longest = max(len(rows) for rows in by_task.values())
    panel_rows = math.ceil(len(by_task) / columns)
    with new_figure(5.9 * columns, (0.27 * longest + 1.25) * panel_rows + 0.2) as figure:
        for axes, (task, rows) in zip(panels(figure, len(by_task), columns), by_task.items(), strict=True):
            rows = sorted(rows, key=lambda row: -(row.difference or 0.0))
            left, right = _rank_limits(rows)
            for y, row in enumerate(rows):
                _draw_rank(axes, y, row, looks[row.name].color if row.name in looks else DARK, left)
            axes.axvline(0.0, color="black", ls="--", lw=1, zorder=1)
            axes.set_xlim(left, right + 0.32 * (right - left))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            names = [f"{rank}  {shortened(row.name, NAME_LENGTH)}" for rank, row in enumerate(rows, start=1)]
            axes.set_yticks(range(len(rows)), names)
            for label, row in zip(axes.get_yticklabels(), rows, strict=True):
                if row.name in looks:
                    label.set_color(looks[row.name].color)
                if row.name == "winner":
                    label.set_fontweight("bold")
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
            axes.set_title(f"{task} (n = {max(row.n for row in rows)} bases)")
            axes.set_xlabel(f"paired difference to {REFERENCE} (points of accuracy), ± 1 SE and 95 %")
    return figure


def _rank_limits(rows: Sequence[SummaryRow]) -> tuple[float, float]:
    """Returns limits of the axis that show most intervals; rows far below are drawn at the edge."""
    intervals = [(row.kind == "metric", row.difference or 0.0, _half_width(row)) for row in rows]
    top = max(0.5, *(mean + half for _, mean, half in intervals))
    lows = sorted((mean - half for is_metric, mean, half in intervals if is_metric), reverse=True)
    controls = sorted((mean - half for is_metric, mean, half in intervals if not is_metric), reverse=True)
    left = min(-0.5, *lows[:3])
    for gap, further in ((2.2, lows[3:]), (1.5, controls)):  # go further down as long as no gap is large
        for low in further:
            left = low if top - gap * (top - left) < low < left else left
    span = top - left
    return left - 0.06 * span, top + 0.04 * span


def _half_width(row: SummaryRow) -> float:
    """Returns half the width of the 95 % interval; 0 where there is no standard error."""
    return critical_value(row.n - 1) * row.difference_se if row.difference_se and row.n > 1 else 0.0


def _draw_rank(axes: Axes, y: int, row: SummaryRow, color: str, left: float) -> None:
    """Draws one row of a rank diagram: marker, intervals and numbers."""
    assert row.difference is not None
    mean, se = row.difference, row.difference_se or 0.0
    half = _half_width(row)
    if mean < left:
        axes.plot(0.018, y, "<", ms=7, color=color, transform=axes.get_yaxis_transform(), zorder=3)
    else:
        axes.plot([max(left, mean - half), mean + half], [y, y], color=color, lw=1.0, zorder=2)
        axes.plot([max(left, mean - se), mean + se], [y, y], color=color, lw=3.0, zorder=2)
        fill = color if row.n > 1 and abs(mean) > half else "white"
        axes.plot(mean, y, "o", ms=6.5, mec=color, mew=1.4, mfc=fill, zorder=3)
    text = f"{mean:+.1f}" + (f" ± {se:.1f}" if row.difference_se else "")
    axes.text(
        0.995, y, "0 (reference)" if row.name == REFERENCE else text, transform=axes.get_yaxis_transform(),
        ha="right", va="center", fontsize=8.5, color=color, bbox={"fc": "white", "ec": "none", "pad": 1.5},
    )  # fmt: skip


def calibration_figure(calibration: Calibration) -> Figure:
    """Draws how far a task can tell functions apart: their accuracies on every base, the controls, and the variation.

    Args:
      calibration: of one task.

    Returns:
      A figure for `save_figure`.
    """
    comparison, task = calibration.comparison, calibration.task
    names = sorted(calibration.functions, key=lambda name: calibration.means[name])
    looks = looks_of(["random", "scratch", "oracle"])
    colors = [look.color for look in OTHERS]
    with new_figure(10.8, max(4.2, 0.27 * len(names) + 1.7)) as figure:
        axes, bars = figure.subplots(1, 2, width_ratios=[2.4, 1])
        for y, name in enumerate(names):
            by_base = comparison.by_base(name, task)
            extremes = [min(by_base.values()), max(by_base.values())]
            axes.plot(extremes, [y, y], color="#d5d5d5", lw=1.2, zorder=1)
            for base, accuracy in by_base.items():
                axes.plot(accuracy, y, "o", ms=4.5, color=colors[base % len(colors)], alpha=0.8, zorder=2)
            axes.plot(calibration.means[name], y, "|", ms=15, mew=2.4, color=DARK, zorder=3)
        for name, look in looks.items():
            if name in calibration.means:
                mean, line = calibration.means[name], look.line if name != "oracle" else "-"
                axes.axvline(mean, color=look.color, ls=line, lw=1.8, zorder=1, label=f"{name} {mean:.1f} %")
        axes.plot([], [], "|", ms=12, mew=2.4, color=DARK, ls="", label="mean over bases")
        for base in range(min(calibration.bases, len(colors))):
            axes.plot([], [], "o", ms=4.5, color=colors[base], ls="", label=f"base {base}")
        axes.set_yticks(range(len(names)), [shortened(name, NAME_LENGTH) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="x")
        axes.set_xlabel("validation accuracy after pruning and fine-tuning (%)")
        axes.set_title(f"{task}: functions on {calibration.bases} bases")
        if calibration.shares:
            low, gap = calibration.means["random"], calibration.means["oracle"] - calibration.means["random"]
            to_share, to_accuracy = lambda x: 100 * (x - low) / gap, lambda share: low + share * gap / 100
            top = axes.secondary_xaxis("top", functions=(to_share, to_accuracy))
            top.set_xlabel("share of the way from random plans to the oracle (%)", fontsize=9, color=GREY)
            top.tick_params(labelsize=8, colors=GREY)
            top.spines["top"].set_visible(False)
        below = (0.45, -0.055 - 0.85 / len(names))
        axes.legend(loc="upper center", bbox_to_anchor=below, ncols=4, columnspacing=1.2)
        _draw_components(bars, calibration)
    return figure


def _draw_components(axes: Axes, calibration: Calibration) -> None:
    """Draws the three standard deviations as bars, and writes the reliability that follows from them."""
    components = calibration.components
    if components is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "variance components need\n2 bases and 2 functions", ha="center", color=GREY)
        return
    deviations = [components.function_sd, components.interaction_sd, components.seed_sd]
    axes.bar(range(3), deviations, width=0.62, color=[OTHERS[1].color, OTHERS[0].color, "#b9b9b9"])
    for x, deviation in enumerate(deviations):
        axes.text(x, deviation, f"{deviation:.1f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(3), ["function\n(signal)", "function\n× base", "seed"])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("standard deviation (points)")
    axes.margins(y=0.12)
    axes.set_title("Sources of variation", fontsize=10.5, pad=23)
    reliability = calibration.search_reliability
    text = (
        ""
        if reliability is None
        else f"reliability {reliability:.2f} on {calibration.search_bases} search bases"
    )
    axes.text(0, 1.02, text, transform=axes.transAxes, fontsize=9, color=GREY, va="bottom")
