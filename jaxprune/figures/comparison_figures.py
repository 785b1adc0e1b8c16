"""The figures of comparisons and calibrations.

`save_figure` of `drawing` writes them. Accuracies are in percent, differences in points of accuracy; what is
called n or an interval counts base networks.
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
    """Validation accuracy over the fine-tuning, mean over bases with a band of one standard error.

    Args:
      comparison: measured with several evaluations.
      names: the rows to draw; by default all.
      steps: task -> number of optimiser steps; without it the axis is the share of the fine-tuning.

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
            is_in_steps = steps is not None and task in steps
            for name in [name for name in shown if name in comparison.names(task)]:
                rows = base_curves(comparison, name, task)
                num_bases = max(num_bases, len(rows))
                x = np.arange(1, rows.shape[1] + 1) / rows.shape[1]
                x = x * (steps[task] if steps is not None and is_in_steps else 100)
                mean = rows.mean(0)
                se = rows.std(0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.zeros_like(mean)
                look, is_winner = looks[name], name == "winner"
                axes.fill_between(x, mean - se, mean + se, color=look.color, alpha=0.15, lw=0)
                (handles[name],) = axes.plot(
                    x, mean, color=look.color, ls=look.line, marker=look.marker, ms=4.5,
                    lw=2.2 if is_winner else 1.5, zorder=4 if is_winner else 3,
                )  # fmt: skip
            axes.set_title(f"{task} (n = {num_bases} bases)")
            axes.set_xlabel("fine-tuning steps" if is_in_steps else "share of the fine-tuning (%)")
            axes.set_xlim(left=0)
            axes.grid()
        for axes in axes_of[::columns]:
            axes.set_ylabel("validation accuracy (%)")
        legend_below(figure, handles)
    return figure


def base_curves(comparison: Comparison, name: str, task: str) -> np.ndarray:
    """[bases, evaluations] accuracies along the fine-tuning in percent, averaged over draws and repeats."""
    by_base: dict[int, list[tuple[float, ...]]] = {}
    for found in comparison.of(name, task):
        by_base.setdefault(found.base, []).append(found.curve)
    return np.array([np.mean(by_base[base], axis=0) for base in sorted(by_base)])


def ranks_figure(comparison: Comparison) -> Figure:
    """Rows in order of their paired difference to l2, with intervals of one standard error and of 95 %.

    A filled marker is distinguishable from l2 (its 95 % interval, by Student's t over bases, leaves out 0).

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
    rows_of_panels = math.ceil(len(by_task) / columns)
    with new_figure(5.9 * columns, (0.27 * longest + 1.25) * rows_of_panels + 0.2) as figure:
        for axes, (task, rows) in zip(panels(figure, len(by_task), columns), by_task.items(), strict=True):
            rows = sorted(rows, key=lambda row: -(row.difference or 0.0))
            left, right = _rank_limits(rows)
            for place, row in enumerate(rows):
                color = looks[row.name].color if row.name in looks else DARK
                _draw_rank(axes, place, row, color, left)
            axes.axvline(0.0, color="black", ls="--", lw=1, zorder=1)
            axes.set_xlim(left, right + 0.32 * (right - left))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_yticks(
                range(len(rows)),
                [f"{place}  {shortened(row.name, NAME_LENGTH)}" for place, row in enumerate(rows, start=1)],
            )
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
    """Limits that show most intervals; rows far below are drawn at the edge."""
    reach = [(row.kind, row.difference or 0.0, _reach(row)) for row in rows]
    top = max(0.5, *(mean + error for _, mean, error in reach))
    lows = sorted((mean - error for kind, mean, error in reach if kind == "metric"), reverse=True)
    controls = sorted((mean - error for kind, mean, error in reach if kind != "metric"), reverse=True)
    left = min(-0.5, *lows[:3])
    for gap, further in ((2.2, lows[3:]), (1.5, controls)):  # as far down as there is no large gap
        for low in further:
            left = low if top - gap * (top - left) < low < left else left
    span = top - left
    return left - 0.06 * span, top + 0.04 * span


def _reach(row: SummaryRow) -> float:
    """Half the width of the 95 % interval; 0 where there is no standard error."""
    return critical_value(row.n - 1) * row.difference_se if row.difference_se and row.n > 1 else 0.0


def _draw_rank(axes: Axes, place: int, row: SummaryRow, color: str, left: float) -> None:
    assert row.difference is not None
    mean, se = row.difference, row.difference_se or 0.0
    reach = _reach(row)
    is_far = mean < left
    if not is_far:
        axes.plot([max(left, mean - reach), mean + reach], [place, place], color=color, lw=1.0, zorder=2)
        axes.plot([max(left, mean - se), mean + se], [place, place], color=color, lw=3.0, zorder=2)
        is_clear = row.n > 1 and abs(mean) > reach
        axes.plot(mean, place, "o", ms=6.5, mec=color, mew=1.4, mfc=color if is_clear else "white", zorder=3)
    else:
        axes.plot(0.018, place, "<", ms=7, color=color, transform=axes.get_yaxis_transform(), zorder=3)
    text = (
        "0 (reference)"
        if row.name == REFERENCE
        else f"{mean:+.1f}" + (f" ± {se:.1f}" if row.difference_se else "")
    )
    axes.text(
        0.995, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5, color=color,
        bbox={"fc": "white", "ec": "none", "pad": 1.5},
    )  # fmt: skip


def calibration_figure(calibration: Calibration) -> Figure:
    """What a task can tell: every function on every base, the controls, and where the variation comes from.

    Args:
      calibration: of one task.

    Returns:
      A figure for `save_figure`.
    """
    found, task = calibration.comparison, calibration.task
    names = sorted(calibration.functions, key=lambda name: calibration.means[name])
    looks = looks_of(["random", "scratch", "oracle"])
    with new_figure(10.8, max(4.2, 0.27 * len(names) + 1.7)) as figure:
        axes, bars = figure.subplots(1, 2, width_ratios=[2.4, 1])
        colors = [look.color for look in OTHERS]
        for place, name in enumerate(names):
            by_base = found.by_base(name, task)
            axes.plot(
                [min(by_base.values()), max(by_base.values())],
                [place, place],
                color="#d5d5d5",
                lw=1.2,
                zorder=1,
            )
            for base, accuracy in by_base.items():
                axes.plot(accuracy, place, "o", ms=4.5, color=colors[base % len(colors)], alpha=0.8, zorder=2)
            axes.plot(calibration.means[name], place, "|", ms=15, mew=2.4, color=DARK, zorder=3)
        for name, look in looks.items():
            if name in calibration.means:
                mean = calibration.means[name]
                axes.axvline(
                    mean, color=look.color, ls=look.line if name != "oracle" else "-", lw=1.8, zorder=1,
                    label=f"{name} {mean:.1f} %",
                )  # fmt: skip
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
            top = axes.secondary_xaxis(
                "top", functions=(lambda x: 100 * (x - low) / gap, lambda share: low + share * gap / 100)
            )
            top.set_xlabel("share of the way from random plans to the oracle (%)", fontsize=9, color=GREY)
            top.tick_params(labelsize=8, colors=GREY)
            top.spines["top"].set_visible(False)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.45, -0.055 - 0.85 / len(names)), ncols=4, columnspacing=1.2
        )
        _draw_components(bars, calibration)
    return figure


def _draw_components(axes: Axes, calibration: Calibration) -> None:
    """Bars of the three standard deviations, and the reliability that follows from them."""
    components = calibration.components
    if components is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "variance components need\n2 bases and 2 functions", ha="center", color=GREY)
        return
    values = {
        "function": components.function_sd,
        "function × base": components.interaction_sd,
        "seed": components.seed_sd,
    }
    axes.bar(range(3), list(values.values()), width=0.62, color=[OTHERS[1].color, OTHERS[0].color, "#b9b9b9"])
    for place, value in enumerate(values.values()):
        axes.text(place, value, f"{value:.1f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(3), ["function\n(signal)", "function\n× base", "seed"])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("standard deviation (points)")
    axes.margins(y=0.12)
    reliability = calibration.search_reliability
    line = (
        ""
        if reliability is None
        else f"reliability {reliability:.2f} on {calibration.search_bases} search bases"
    )
    axes.set_title("Sources of variation", fontsize=10.5, pad=23)
    axes.text(0, 1.02, line, transform=axes.transAxes, fontsize=9, color=GREY, va="bottom")
