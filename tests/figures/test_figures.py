"""Figures: what they draw is what they were given, and nothing is written over anything else."""

from __future__ import annotations

import builtins
import dataclasses
from functools import cache

import numpy as np
import pytest
from made_up_runs import LEVELS, calibrated, compared, layers, searched

from jaxprune.comparison.protocol import LayerView
from jaxprune.figures.comparison_figures import (
    base_curves,
    calibration_figure,
    curves_figure,
    ranks_figure,
)
from jaxprune.figures.formula_tree import tree_figure
from jaxprune.figures.layer_figures import correlation_figure, overlap_figure, overlaps, scores_figure
from jaxprune.figures.search_figures import fitness_figure, pareto_figure
from jaxprune.figures.style import LOOKS, looks_of, new_figure, save_figure
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.scoring.rank_correlation import Correlations

PNG = b"\x89PNG\r\n\x1a\n"


def texts(figure):
    """Every text in a figure."""
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def overlapping(figure):
    """Pairs of texts of one panel that are drawn over each other."""
    import matplotlib.text

    pairs = []
    for axes in figure.axes:
        drawn = [
            text
            for text in axes.findobj(matplotlib.text.Text)
            if text.get_text().strip() and text.get_visible() and axes.get_window_extent().width > 1
        ]
        boxes = [text.get_window_extent() for text in drawn]
        for i, first in enumerate(boxes):
            for j in range(i):
                second = boxes[j]
                width = min(first.x1, second.x1) - max(first.x0, second.x0)
                height = min(first.y1, second.y1) - max(first.y0, second.y0)
                if width > 2 and height > 2 and drawn[i].get_text() != drawn[j].get_text():
                    pairs.append((drawn[i].get_text(), drawn[j].get_text()))
    return pairs


def correlations(num_names=3, num_groups=4):
    table = np.random.default_rng(0).uniform(-1, 1, (num_names, num_groups + 2))
    table[-1, 0] = np.nan
    names = tuple(f"a_metric_of_long_name_{i}" for i in range(num_names))
    groups = tuple(f"block{i}.conv.kernel" for i in range(num_groups))
    return Correlations(names, groups, table[:, :-2], table[:, -2], table[:, -1], {})


FIGURES = {
    "fitness": lambda: fitness_figure(searched().state),
    "pareto": lambda: pareto_figure(searched().state),
    "curves": lambda: curves_figure(compared(), steps={"digits": 63}),
    "ranks": lambda: ranks_figure(compared()),
    "overlap": lambda: overlap_figure(layers(), "digits, base 0"),
    "overlap of many layers": lambda: overlap_figure(layers(widths=(16,) * 5)),
    "correlation": lambda: correlation_figure(correlations(), "mean_shift_outgoing, digits, base 0"),
    "correlations of many layers": lambda: correlation_figure(correlations(30, 24)),
    "scores": lambda: scores_figure(layers(widths=(16, 64, 500, 20)), "digits, base 0"),
    "calibration": lambda: calibration_figure(calibrated()),
    "tree": lambda: tree_figure(library["evolved_eq3"], "evolved_eq3"),
}


@cache
def drawn(make):
    """The figure, laid out: made and drawn once for several tests."""
    figure = make()
    with new_figure(1, 1):
        figure.canvas.draw()
    return figure


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_figures_have_no_texts_over_each_other(make):
    assert overlapping(drawn(make)) == []


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_figures_are_saved_as_png(make, tmp_path):
    path = save_figure(drawn(make), tmp_path / "figures" / "it.png")
    content = path.read_bytes()
    assert content.startswith(PNG)
    width, height = (int.from_bytes(content[i : i + 4]) for i in (16, 20))
    assert 300 < width < 2600 and 200 < height < 2600
    assert [file.name for file in path.parent.iterdir()] == ["it.png"]


@pytest.mark.parametrize("make", [*FIGURES.values(), lambda: curves_figure(compared(tasks={"digits": 2}))])
def test_legends_lie_inside_the_picture(make):
    figure = drawn(make)
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for box in (legend.get_window_extent() for legend in legends):
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    paths = [save_figure(ranks_figure(compared()), tmp_path / name) for name in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_figures_leave_matplotlib_as_it_was():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    ranks_figure(compared())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", ["pareto", "ranks", "curves"])
def test_axes_have_units(name):
    joined = "\n".join(texts(drawn(FIGURES[name])))
    assert "(" in joined and any(
        unit in joined for unit in ("(%)", "points of accuracy", "standard deviations")
    )


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with (
        pytest.raises(
            ImportError, match=r'figures need matplotlib.*not installed. Run pip install "jaxprune\[report\]"'
        ),
        new_figure(1, 1),
    ):
        pass


def test_looks_are_fixed_for_the_usual_rows_and_differ_for_others():
    looks = looks_of(["fdr", "winner", "sym_div", "fdr"])
    assert looks["winner"] is LOOKS["winner"]
    assert len({look.color for look in looks.values()}) == 3


# Trees


@pytest.mark.parametrize("f", {**library, **own_seeds}.values(), ids={**library, **own_seeds})
def test_every_operand_of_a_formula_is_in_its_tree(f):
    assert f.operands <= set(texts(tree_figure(f)))


def test_a_chain_is_one_node_with_signs():
    written = texts(tree_figure(parse("mean(X) - (mean(P) - mean(Q)) - 2")))
    assert written.count("+") == 1
    assert written.count("−") == 2  # P and 2; Q is subtracted twice


def test_a_difference_of_two_is_a_minus():
    written = texts(tree_figure(parse("mean(P) - mean(Q)")))
    assert written.count("−") == 1 and "+" not in written


def test_parameters_are_in_the_node():
    written = texts(tree_figure(parse("mean(rbf(P, Q, 0.5)) + sum(slice(mX, 1, 5))")))
    assert "rbf 0.5" in written and "slice 1:5" in written


# Searches


def test_fitness_figure_names_the_best_start_formula_and_its_unit():
    joined = " ".join(texts(fitness_figure(searched().state)))
    assert "best start formula" in joined and "standard deviations of the library" in joined


def test_fitness_figure_of_accuracies_is_in_percent():
    state = searched().state
    changed = dataclasses.replace(state, config=state.config.replace(fitness="geometric"))
    assert "geometric" in " ".join(texts(fitness_figure(changed)))


def test_pareto_figure_writes_out_the_front():
    state = searched().state
    written = " ".join(texts(pareto_figure(state)))
    for id_ in state.archive:
        assert state.candidates[id_].text[:40] in written


def test_a_long_front_is_cut_to_its_best():
    state = searched().state
    written = " ".join(texts(pareto_figure(state, max_labels=1)))
    assert state.candidates[state.archive[-1]].text[:40] in written
    assert state.candidates[state.archive[0]].text not in written


# Comparisons


def test_base_curves_average_draws_by_hand():
    comparison = compared({"random": 68.0}, tasks={"t": 2}, points=1)
    values = [measurement.validation for measurement in comparison.measurements]
    np.testing.assert_allclose(
        base_curves(comparison, "random", "t"), [[np.mean(values[:2])], [np.mean(values[2:])]]
    )


def test_curves_have_a_band_and_end_where_the_steps_do():
    figure = curves_figure(compared(), ["winner", "l2"], {"digits": 63, "fashion": 60})
    first, second = figure.axes[:2]
    assert [line.get_xdata()[-1] for line in first.lines] == [63, 63]
    assert second.lines[0].get_xdata()[-1] == 60
    assert len(first.collections) == 2
    assert "n = 4 bases" in first.get_title(loc="left")


def test_curves_leave_out_rows_that_a_task_lacks():
    figure = curves_figure(compared(refused={"mean_shift": "fashion"}))
    assert len(figure.axes[0].lines) == len(figure.axes[1].lines) + 1


def test_ranks_are_in_falling_order_and_far_rows_at_the_edge():
    figure = ranks_figure(compared(spread=0.1))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["1  winner", "2  mean_shift", "3  l2", "4  l1", "5  random", "6  scratch"]
    assert figure.axes[0].get_xlim()[0] > -10
    assert sum(line.get_marker() == "<" for line in figure.axes[0].lines) == 2


def test_ranks_are_hollow_where_two_standard_errors_cannot_tell():
    figure = ranks_figure(compared({"l2": 80.0, "clear": 90.0, "unclear": 80.0}, tasks={"t": 9}, spread=1.0))
    filled = {
        int(line.get_ydata()[0]): line.get_markerfacecolor() != "white"
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
    }
    assert filled[0] and not filled[1] and not filled[2]


def test_rank_figures_work_on_one_base():
    assert "+" in " ".join(texts(ranks_figure(compared(tasks={"t": 1}))))


# Layers


def test_overlaps_by_hand():
    kept = {"a": (0, 1), "b": (1, 2), "random 1": (0, 1), "random 2": (2, 3)}
    table = overlaps(LayerView("conv", 4, 2, kept, {}), ["a", "b", "random"])
    np.testing.assert_allclose(table, [[np.nan, 50, 50], [50, np.nan, 50], [50, 50, 0]])


def test_overlap_figures_say_what_chance_gives():
    written = " ".join(texts(overlap_figure(layers())))
    assert "keeps 4 of 16; by chance 25" in written and "conv0" in written and ".kernel" not in written


def test_scores_are_scaled_and_cut_after_the_kept():
    figure = scores_figure(layers())
    axes = figure.axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 16]
    assert len(curves) == 3
    for line in curves:
        assert line.get_ydata()[0] == 1 and line.get_ydata()[-1] == 0
    assert any(list(line.get_xdata()) == [4.5, 4.5] for line in axes.lines)


def test_constant_scores_lie_in_the_middle():
    view = LayerView("conv", 4, 2, {}, {"flat": (1.0,) * 4})
    line = next(line for line in scores_figure([view]).axes[0].lines if len(line.get_xdata()) == 4)
    assert list(line.get_ydata()) == [0.5] * 4


# Calibrations


def test_calibration_figure_shows_controls_components_and_reliability():
    written = " ".join(texts(calibration_figure(calibrated())))
    for text in ("random", "scratch", "oracle", "function_4", "reliability", "on 4 search bases"):
        assert text in written


def test_calibration_figure_without_oracle_or_components():
    written = " ".join(texts(calibration_figure(calibrated(None, bases=1))))
    assert "oracle" not in written and "variance components need" in written


def test_levels_cover_the_usual_rows():
    assert {"winner", "l2", "l1", "random", "scratch"} <= LEVELS.keys() & LOOKS.keys()


def test_rank_correlations_are_written_where_they_are_defined():
    measured = correlations()
    figure = correlation_figure(measured, "mine")
    shown = texts(figure)
    assert f"{measured.by_group[0, 1]:.2f}" in shown and f"{measured.together[2]:.2f}" in shown
    assert not [text for text in shown if "nan" in text]
    assert {"block0.conv", "mean of layers", "all together"} <= {*shown} and "mine" in figure.get_suptitle()
