"""The figures of a search: fitness over generations, and the front of fitness and complexity.

`save_figure` of `drawing` writes them; `charts.py` has those of comparisons and calibrations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxprune.figures.style import DARK, GREY, OTHERS, looks_of, new_figure
from jaxprune.search.state import REFERENCE_ID, SearchState, origin_name, start_formulas
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINNER = looks_of(["winner"])["winner"].color


def fitness_figure(state: SearchState) -> Figure:
    """Fitness over generations: the leader with its standard error, every candidate as a dot, the best seed.

    Args:
      state: a state with one or more complete generations.

    Returns:
      A figure for `save_figure`.
    """
    summaries, members = state.summaries, state.ranked()
    generations = np.array([summary.generation for summary in summaries])
    means = np.array([summary.best_mean for summary in summaries])
    ses = np.array([summary.best_se for summary in summaries])
    at = np.array([member.candidate.generation for member in members], float)
    found = np.array([member.fitness.mean for member in members])
    at += np.random.default_rng(0).uniform(-0.18, 0.18, len(at))
    seed = start_formulas(state)[0]
    with new_figure(8, 4.6) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        low = _bottom(found, (means - ses).min())
        is_below = found < low
        axes.scatter(
            at[~is_below], found[~is_below], s=14, color="#b9b9b9", lw=0, label="candidates", zorder=1
        )
        axes.scatter(
            at[is_below], np.full(is_below.sum(), low), s=16, marker="v", color="#d0d0d0", lw=0, zorder=1
        )
        axes.fill_between(generations, means - ses, means + ses, color=WINNER, alpha=0.18, lw=0, zorder=2)
        axes.plot(
            generations, means, "o-", color=WINNER, lw=2, ms=5, label="leader, mean ± SE over bases", zorder=4
        )
        axes.axhline(state.fitnesses[REFERENCE_ID].mean, color="black", ls="--", lw=1.2, label="l2", zorder=3)
        axes.axhline(
            seed.fitness.mean, color=OTHERS[0].color, ls=":", lw=1.8, zorder=3,
            label=f"best start formula, as it ended: {origin_name(seed)}",
        )  # fmt: skip
        if is_below.any():
            axes.text(
                0.995, 0.015, f"▾ {is_below.sum()} of {len(found)} candidates lie below", transform=axes.transAxes,
                ha="right", va="bottom", fontsize=8.5, color=GREY,
            )  # fmt: skip
        span = max(found.max(), (means + ses).max()) - low
        axes.set_ylim(low - 0.09 * span, low + 1.06 * span)
        axes.set_xlim(-0.5, max(generations[-1], 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("generation (0: library, own seeds, guesses)")
        axes.set_ylabel(fitness_label(state))
        axes.set_title("Fitness over generations, on the search bases")
        axes.grid(axis="y")
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, columnspacing=1.4, handlelength=1.8
        )
    return figure


def pareto_figure(state: SearchState, *, max_labels: int = 10) -> Figure:
    """Fitness against complexity: all candidates, and the front of those that no simpler one beats.

    Args:
      state: a state with one or more complete generations.
      max_labels: formulas written out below the plot; of a longer front the best ones.

    Returns:
      A figure for `save_figure`.
    """
    front = [state.member(id_) for id_ in state.archive]
    members = state.ranked()
    best = front[-1]
    named = front[-max_labels:]
    complexity = np.array([member.candidate.complexity for member in members])
    lower = np.array([member.fitness.lower for member in members])
    x = np.array([member.candidate.complexity for member in front])
    y = np.array([member.fitness.lower for member in front])
    rows = 0.19 * len(named) + 0.25
    with new_figure(8, 4.3 + rows) as figure:
        axes, below = figure.subplots(2, 1, height_ratios=[4.3, rows])
        low = _bottom(lower, y.min())
        is_below = lower < low
        axes.scatter(complexity[~is_below], lower[~is_below], s=16, color="#b9b9b9", lw=0, label="candidates")
        axes.scatter(
            complexity[is_below], np.full(is_below.sum(), low), s=16, marker="v", color="#d0d0d0", lw=0
        )
        right = max(complexity.max(), x.max()) * 1.03
        axes.step(
            [*x, right], [*y, y[-1]], where="post", color=OTHERS[0].color, lw=1.8, label="front", zorder=2
        )
        axes.scatter(x[:-1], y[:-1], s=42, color=OTHERS[0].color, zorder=3)
        axes.scatter(x[-1:], y[-1:], s=70, color=WINNER, zorder=4, label="winner")
        for number, member in enumerate(named, start=1):
            axes.annotate(
                str(number), (member.candidate.complexity, member.fitness.lower), xytext=(-4, 6),
                textcoords="offset points", ha="right", fontsize=9, fontweight="bold",
                color=WINNER if member is best else OTHERS[0].color,
            )  # fmt: skip
        if is_below.any():
            axes.text(
                0.995, 0.015, f"▾ {is_below.sum()} of {len(lower)} candidates lie below", transform=axes.transAxes,
                ha="right", va="bottom", fontsize=8.5, color=GREY,
            )  # fmt: skip
        span = lower.max() - low or 1.0
        axes.set_ylim(low - 0.1 * span, low + 1.14 * span)
        axes.set_xlim(0, right)
        axes.set_xlabel("complexity (weighted number of nodes)")
        axes.set_ylabel(fitness_label(state, "mean − SE"))
        axes.set_title("Fitness and complexity")
        axes.grid()
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, columnspacing=1.2, handlelength=1.6)
        below.set_axis_off()
        for number, member in enumerate(named, start=1):
            value = f"{member.fitness.mean:+.2f} ± {member.fitness.se:.2f}"
            text = f"{number:>2}  {value:>14}  {shortened(member.candidate.text, 78)}"
            below.text(
                0.0, 1 - (number - 0.5) / len(named), text, transform=below.transAxes, va="center",
                fontsize=8, family="DejaVu Sans Mono", color=WINNER if member is best else DARK,
            )  # fmt: skip
    return figure


def fitness_label(state: SearchState, statistic: str = "mean") -> str:
    """What the fitness of a state is, with its unit, for an axis."""
    if state.config.fitness == "paired":
        return f"fitness, {statistic}: difference to l2\n(standard deviations of the library)"
    return f"fitness, {statistic}: {state.config.fitness}\nmean of accuracies (%)"


def _bottom(found: np.ndarray, needed: float) -> float:
    """Where to cut an axis so that a few hopeless candidates do not squeeze all others."""
    top = float(found.max())
    middle = float(np.median(found))
    return max(float(found.min()), min(needed, top - 2.0 * (top - middle)))
