"""Writes the report of a run: runs the final comparison, then writes `report.md` and its figures beside the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jaxprune.comparison.final_comparison import Controls, Finals, load_finals, run_finals
from jaxprune.figures.comparison_figures import curves_figure, ranks_figure
from jaxprune.figures.formula_tree import tree_figure
from jaxprune.figures.layer_figures import overlap_figure, scores_figure
from jaxprune.figures.search_figures import fitness_figure, pareto_figure
from jaxprune.figures.style import new_figure, save_figure
from jaxprune.files import read_json, write_atomically
from jaxprune.report.result_sections import Run, optimism_section, results_section, verdict_section
from jaxprune.report.search_sections import behaviour_section, formula_section, search_section
from jaxprune.search.journal import read_journal
from jaxprune.search.problem import Problem
from jaxprune.search.run_directory import load_run
from jaxprune.search.search import SearchResult
from jaxprune.search.state import Individual, SearchState
from jaxprune.search.task_problem import TaskProblem


def write_report(
    run_dir: str | os.PathLike[str],
    problem: TaskProblem,
    result: SearchResult | SearchState,
    *,
    controls: Controls = "standard",
    callbacks: Sequence[object] = (),
) -> Path:
    """Compares the winner of a search on base networks that it never saw, and writes the report.

    Base networks of the final pool are trained or read back. On each, the winner, l1, l2, the best library function,
    the best own seed, random plans and training from scratch are fine-tuned. Test images are opened, which is recorded.
    All results are stored in `final.json`; if they are there already, for equal rows, only the report is written again.

    Args:
      run_dir: the run directory.
      problem: what was searched on, as `make_problem` made it.
      result: what the search found.
      controls: "standard"; or "full" to add every library function and own seed, and the best of a random search of
        equal budget, which runs in `run_dir/random-search`.
      callbacks: get progress by `on_message`, `on_status` and `on_base`, where they have these.

    Returns:
      The path of `report.md`; figures are beside it in `figures/`.

    Raises:
      ImportError: if matplotlib is missing, before anything is trained.
      ValueError: for other controls.
      RunDirectoryError: if something cannot be written.
    """
    with new_figure(1, 1):  # raises early without matplotlib
        pass
    state = result.state if isinstance(result, SearchResult) else result
    winner: Individual = result.best if isinstance(result, SearchResult) else state.ranked()[0]
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    finals = run_finals(folder, problem, state, winner, controls=controls, callbacks=callbacks)
    return _write(folder, state, finals)


def render_report(run_dir: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and its figures again from the files of a run, without training anything.

    Without a final comparison, the report covers the search, and its verdict says that nothing was checked.

    Args:
      run_dir: the run directory.

    Returns:
      The path of `report.md`.

    Raises:
      ImportError: if matplotlib is missing.
      RunDirectoryError: if there is no complete generation, or a file is damaged or of a newer format.
    """
    folder = Path(run_dir)
    no_problem = cast(Problem, None)  # a state that is only read asks its problem nothing
    return _write(folder, load_run(folder, no_problem), load_finals(folder))


def _write(folder: Path, state: SearchState, finals: Finals | None) -> Path:
    """Writes the report and its figures; returns the path of the report."""
    paths = {task.name: folder / f"test-{task.name}.json" for task in state.tasks}
    openings = {name: tuple(read_json(path)["opened"]) for name, path in paths.items() if path.exists()}
    run = Run(folder.resolve().name, state, finals, _why_stopped(folder), openings)
    _save_figures(run, folder / "figures")
    sections = [f"# Run {run.name}", verdict_section(run)]
    if finals is not None:
        sections += [results_section(run), optimism_section(run)]
    sections.append(formula_section(run))
    if finals is not None:
        sections.append(behaviour_section(run))
    sections.append(search_section(run))
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


def _save_figures(run: Run, folder: Path) -> None:
    """Draws everything that the sections show."""
    save_figure(fitness_figure(run.state), folder / "fitness.png")
    save_figure(pareto_figure(run.state), folder / "pareto.png")
    save_figure(tree_figure(run.winner.expression), folder / "tree.png")
    finals = run.finals
    if finals is None:
        return
    save_figure(ranks_figure(finals.comparison), folder / "ranks.png")
    save_figure(curves_figure(finals.comparison, finals.figure_rows, finals.steps), folder / "curves.png")
    for task, views in finals.views.items():
        title = f"{task}, final base 0"
        save_figure(overlap_figure(views, title), folder / f"overlap-{task}.png")
        save_figure(scores_figure(views, title), folder / f"scores-{task}.png")


def _why_stopped(folder: Path) -> str:
    """Returns the last reason in `events.jsonl`; empty if there is none."""
    path = folder / "events.jsonl"
    events = list(read_journal(path)) if path.exists() else []
    reasons = [event["message"] for event in events if event["event"] == "stopped"]
    return reasons[-1] if reasons else ""
