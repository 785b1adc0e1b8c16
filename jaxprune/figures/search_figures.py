"""Draws a search: fitness over generations, and the front of fitness and complexity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxprune.figures.style import DARK, GREY, OTHERS, looks_of, new_figure
from jaxprune.search.state import REFERENCE_ID, SearchState, origin_name, start_formulas
from jaxprune.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINNER = looks_of(["winner"])["winner"].color


def fitness_figure(state: SearchState) -> Figure:
    """Draws fitness over generations: the leader with its standard error, all candidates as dots, and the best seed.

    On a landscape the leader is the one by prediction, and candidates that were verified have a ring.

    Args:
      state: a state with one or more complete generations.

    Returns:
      A figure for `save_figure`.
    """
    summaries, individuals = state.summaries, state.ranked()
    generations = np.array([summary.generation for summary in summaries])
    means = np.array([summary.best_mean for summary in summaries])
    ses = np.array([summary.best_se for summary in summaries])
    x = np.array([individual.candidate.generation for individual in individuals], float)
    x += np.random.default_rng(0).uniform(-0.18, 0.18, len(x))
    fitness = np.array([individual.fitness.mean for individual in individuals])
    seed = start_formulas(state)[0]
    with new_figure(8, 4.6) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        low = _draw_candidates(axes, x, fitness, (means - ses).min(), size=14)
        axes.fill_between(generations, means - ses, means + ses, color=WINNER, alpha=0.18, lw=0, zorder=2)
        leader = "leader as predicted" if state.has_landscapes else "leader"
        axes.plot(
            generations,
            means,
            "o-",
            color=WINNER,
            lw=2,
            ms=5,
            label=f"{leader}, mean ± SE over bases",
            zorder=4,
        )
        is_verified = [state.has_landscapes and individual.is_verified for individual in individuals]
        if any(is_verified):
            axes.scatter(
                x[is_verified], fitness[is_verified], s=34, fc="none", ec=DARK, lw=1.2, zorder=5,
                label="verified by fine-tuning",
            )  # fmt: skip
        axes.axhline(state.fitnesses[REFERENCE_ID].mean, color="black", ls="--", lw=1.2, label="l2", zorder=3)
        axes.axhline(
            seed.fitness.mean, color=OTHERS[0].color, ls=":", lw=1.8, zorder=3,
            label=f"best start formula, as it ended: {origin_name(seed)}",
        )  # fmt: skip
        span = max(fitness.max(), (means + ses).max()) - low
        axes.set_ylim(low - 0.09 * span, low + 1.06 * span)
        axes.set_xlim(-0.5, max(generations[-1], 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("generation (0: library, own seeds, guesses)")
        axes.set_ylabel(fitness_label(state))
        axes.set_title("Fitness over generations, on the search bases")
        axes.grid(axis="y")
        below = (0.5, -0.16)
        columns = 2 if any(is_verified) else 4
        axes.legend(
            loc="upper center", bbox_to_anchor=below, ncols=columns, columnspacing=1.4, handlelength=1.8
        )
    return figure


def pareto_figure(state: SearchState, *, max_labels: int = 10) -> Figure:
    """Draws fitness against complexity: all candidates, and the front of those that no simpler one beats.

    Args:
      state: a state with one or more complete generations.
      max_labels: formulas written out below the plot; of a longer front the best ones.

    Returns:
      A figure for `save_figure`.
    """
    front, individuals = [state.individual(id_) for id_ in state.archive], state.ranked()
    labelled = front[-max_labels:]
    complexity = np.array([individual.candidate.complexity for individual in individuals])
    lower = np.array([individual.value for individual in individuals])
    x = np.array([individual.candidate.complexity for individual in front])
    y = np.array([individual.value for individual in front])
    height = 0.19 * len(labelled) + 0.25
    with new_figure(8, 4.3 + height) as figure:
        axes, below = figure.subplots(2, 1, height_ratios=[4.3, height])
        low = _draw_candidates(axes, complexity, lower, y.min(), size=16)
        right = max(complexity.max(), x.max()) * 1.03
        color = OTHERS[0].color
        axes.step([*x, right], [*y, y[-1]], where="post", color=color, lw=1.8, label="front", zorder=2)
        axes.scatter(x[:-1], y[:-1], s=42, color=color, zorder=3)
        axes.scatter(x[-1:], y[-1:], s=70, color=WINNER, zorder=4, label="winner")
        span = lower.max() - low or 1.0
        axes.set_ylim(low - 0.1 * span, low + 1.14 * span)
        axes.set_xlim(0, right)
        axes.set_xlabel("complexity (weighted number of nodes)")
        axes.set_ylabel(fitness_label(state, "mean" if state.has_landscapes else "mean − SE"))
        axes.set_title("Fitness and complexity")
        axes.grid()
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, columnspacing=1.2, handlelength=1.6)
        below.set_axis_off()
        for number, individual in enumerate(labelled, start=1):
            candidate, fitness, is_best = individual.candidate, individual.fitness, individual is front[-1]
            axes.annotate(
                str(number), (candidate.complexity, individual.value), xytext=(-4, 6), textcoords="offset points",
                ha="right", fontsize=9, fontweight="bold", color=WINNER if is_best else color,
            )  # fmt: skip
            value = f"{fitness.mean:+.2f} ± {fitness.se:.2f}"
            below.text(
                0.0, 1 - (number - 0.5) / len(labelled),
                f"{number:>2}  {value:>14}  {shortened(candidate.text, 78)}", transform=below.transAxes,
                va="center", fontsize=8, family="DejaVu Sans Mono", color=WINNER if is_best else DARK,
            )  # fmt: skip
    return figure


def fitness_label(state: SearchState, statistic: str = "mean") -> str:
    """Returns the label of a fitness axis, with its unit.

    Args:
      state: says which fitness was searched for.
      statistic: what of the fitness the axis shows.
    """
    if state.config.joint == "paired":
        return f"fitness, {statistic}: difference to l2\n(standard deviations of the library)"
    return f"fitness, {statistic}: {state.config.joint}\nmean of accuracies (%)"


def _draw_candidates(
    axes: Axes, x: np.ndarray, fitness: np.ndarray, lowest_shown: float, size: float
) -> float:
    """Draws candidates as grey dots, and returns the fitness at which the axis is cut.

    A few hopeless candidates would squeeze all others; they become triangles at the cut.
    """
    top, median = float(fitness.max()), float(np.median(fitness))
    low = max(float(fitness.min()), min(lowest_shown, top - 2.0 * (top - median)))
    is_below = fitness < low
    axes.scatter(
        x[~is_below], fitness[~is_below], s=size, color="#b9b9b9", lw=0, label="candidates", zorder=1
    )
    axes.scatter(x[is_below], np.full(is_below.sum(), low), s=16, marker="v", color="#d0d0d0", lw=0, zorder=1)
    if is_below.any():
        axes.text(
            0.995, 0.015, f"▾ {is_below.sum()} of {len(fitness)} candidates lie below", transform=axes.transAxes,
            ha="right", va="bottom", fontsize=8.5, color=GREY,
        )  # fmt: skip
    return low
