"""The report of a run: the final comparison, then `report.md` with its figures, all in the run directory."""

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
    """Compares the winner of a search on base networks it never saw, and writes the report.

    Base networks of the final pool are trained (or read back), the winner, l1, l2, the best library function, the best
    own seed, random plans and training from scratch are fine-tuned on each, test images are opened and that is put on
    record. All of it is stored in `final.json`; a report of equal rows is only written again.

    Args:
      run_dir: the run directory.
      problem: what was searched on, as `make_problem` made it.
      result: what the search found.
      controls: "standard", or "full" for every library function and own seed, and the best of a random search of equal
        budget, which runs in `run_dir/random-search`.
      callbacks: told of progress by `on_message`, `on_status` and `on_base`, where they have these.

    Returns:
      The path of `report.md`; figures are beside it in `figures/`.

    Raises:
      ImportError: if matplotlib is missing, before anything is trained.
      ValueError: for other controls.
      RunDirectoryError: if something cannot be written.
    """
    with new_figure(1, 1):
        pass
    state = result.state if isinstance(result, SearchResult) else result
    winner: Individual = result.best if isinstance(result, SearchResult) else state.ranked()[0]
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    finals = run_finals(folder, problem, state, winner, controls=controls, callbacks=callbacks)
    return _written(folder, state, finals)


def render_report(run_dir: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and its figures again from the files of a run, without training anything.

    A run without a final comparison gets a report of its search, whose verdict says that nothing was checked.

    Args:
      run_dir: the run directory.

    Returns:
      The path of `report.md`.

    Raises:
      ImportError: if matplotlib is missing.
      RunDirectoryError: if there is no complete generation, or a file is damaged or of a newer format.
    """
    folder = Path(run_dir)
    nothing = cast(Problem, None)  # a state that is only read asks its problem nothing
    return _written(folder, load_run(folder, nothing), load_finals(folder))


def _written(folder: Path, state: SearchState, finals: Finals | None) -> Path:
    run = Run(folder.resolve().name, state, finals, _why_stopped(folder), _openings(folder, state))
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
    """The last reason that `events.jsonl` gives, "" where there is none."""
    path = folder / "events.jsonl"
    events = read_journal(path) if path.exists() else iter(())
    return next((event["message"] for event in reversed(list(events)) if event["event"] == "stopped"), "")


def _openings(folder: Path, state: SearchState) -> dict[str, tuple[str, ...]]:
    """Task -> when its test images were opened, from the records of that."""
    paths = {task.name: folder / f"test-{task.name}.json" for task in state.tasks}
    return {name: tuple(read_json(path)["opened"]) for name, path in paths.items() if path.exists()}
