"""Writes the report of a run: runs the final comparison, then writes `report.md` and its figures beside the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from jaxprune.comparison.final_comparison import run_finals
from jaxprune.comparison.finals import Controls, Finals, load_finals
from jaxprune.datasets.guarded_split import read_openings
from jaxprune.figures.comparison_figures import curves_figure, ranks_figure
from jaxprune.figures.formula_tree import tree_figure
from jaxprune.figures.layer_figures import overlap_figure, scores_figure
from jaxprune.figures.search_figures import fitness_figure, pareto_figure
from jaxprune.figures.style import new_figure, save_figure
from jaxprune.files import write_atomically
from jaxprune.report.pooled_sections import pooled_section, ranks_section, why_not_pooled
from jaxprune.report.result_sections import Run, optimism_section, results_section, verdict_section
from jaxprune.report.search_sections import search_section
from jaxprune.report.winner_sections import behaviour_section, formula_section, parts_section
from jaxprune.search.callbacks import notify_or_warn
from jaxprune.search.problem import Problem
from jaxprune.search.run_directory import RunDirectory, load_run
from jaxprune.search.run_files import read_events
from jaxprune.search.search import SearchResult
from jaxprune.search.state import Individual, SearchState
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.tasks import Task

_HEAD = "# Run "
"""How every report begins."""


def write_report(
    run_dir: str | os.PathLike[str],
    problem: TaskProblem,
    result: SearchResult | SearchState,
    *,
    unseen: Sequence[Task] = (),
    controls: Controls = "standard",
    callbacks: Sequence[object] = (),
) -> Path:
    """Compares the winner of a search on base networks that it never saw, and writes the report.

    Base networks of the final pool are trained or read back. On each, the winner, l1, l2, the best library function,
    the best own seed, random plans and training from scratch are fine-tuned; after a search on landscapes also a dozen
    known functions, the best known one, and the best of a random search of equal budget, which runs in
    `run_dir/random-search`. Test images are opened, which is recorded. All results are stored in `final.json`; if they
    are there already, for equal rows, only the report is written again. No other process may use the run directory in
    the meantime.

    Args:
      run_dir: the run directory.
      problem: what was searched on, as `make_problem` made it.
      result: what the search found.
      unseen: tasks that were not searched on, to report on as well; nothing is chosen by them.
      controls: "standard"; or "full" to add every known function (after a search that fine-tuned each function, every
        library function and own seed), the random search in any case, and an oracle.
      callbacks: get progress by `on_message`, `on_status` and `on_base`, where they have these.

    Returns:
      The path of `report.md`; figures are beside it in `figures/`.

    Raises:
      ImportError: if matplotlib is missing, before anything is trained.
      ValueError: for other controls, a task that is both searched on and unseen, or a `report.md` that is no report.
      RunDirectoryError: if the directory is in use, a file of it is damaged, or something cannot be written.
    """
    with new_figure(1, 1):  # raises early without matplotlib
        pass
    _check_replaceable(Path(run_dir) / "report.md")
    state = result.state if isinstance(result, SearchResult) else result
    winner: Individual = result.best if isinstance(result, SearchResult) else state.ranked()[0]
    folder = Path(run_dir)

    with RunDirectory(folder, partial(notify_or_warn, callbacks)):
        finals = run_finals(
            folder, problem, state, winner, unseen=unseen, controls=controls, callbacks=callbacks
        )
        return _write(folder, state, finals)


def render_report(run_dir: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and its figures again from the files of a run, without training anything.

    Without a final comparison, the report covers the search, and its verdict says that nothing was checked. The run may
    be under way: nothing but the report and its figures is written.

    Args:
      run_dir: the run directory.

    Returns:
      The path of `report.md`.

    Raises:
      ImportError: if matplotlib is missing.
      ValueError: if there is a `report.md` that is no report.
      RunDirectoryError: if there is no complete generation, or a file is damaged or of a newer format.
    """
    folder = Path(run_dir)
    _check_replaceable(folder / "report.md")
    no_problem = cast(Problem, None)  # a state that is only read asks its problem nothing
    return _write(folder, load_run(folder, no_problem), load_finals(folder))


def _write(folder: Path, state: SearchState, finals: Finals | None) -> Path:
    """Writes the report and its figures; returns the path of the report."""
    openings = _openings(folder, state, finals)
    run = Run(folder.resolve().name, state, finals, _why_stopped(folder, state), openings)
    _save_figures(run, folder / "figures")
    sections = [f"{_HEAD}{run.name}", verdict_section(run)]
    if finals is not None:
        if finals.known:
            sections.append(pooled_section(finals))
        if finals.known and not why_not_pooled(finals):
            sections.append(ranks_section(finals))
        sections += [results_section(run), optimism_section(run)]
    sections.append(formula_section(run))
    if finals is not None:
        if finals.parts:
            sections.append(parts_section(run))
        sections.append(behaviour_section(run))
    sections.append(search_section(run))
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n", again="write the report again (jaxprune report)")
    return path


def _check_replaceable(path: Path) -> None:
    """Refuses to replace a file that is no report."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() or not path.read_bytes().startswith(_HEAD.encode()):
            raise ValueError(
                f"a report replaces only what jaxprune wrote, and {path} is no report. Rename it."
            )


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


def _openings(folder: Path, state: SearchState, finals: Finals | None) -> dict[str, tuple[str, ...]]:
    """Returns when the test images of each task were opened; says so if they were and the record of it is missing."""
    openings = {}
    tasks = [task.name for task in state.tasks] if finals is None else finals.comparison.task_names
    for task in tasks:
        path = folder / f"test-{task}.json"
        rows = [] if finals is None else finals.comparison.measurements
        if path.exists():
            openings[task] = read_openings(path)
        elif any(row.task == task and row.test is not None for row in rows):
            openings[task] = (f"an unknown time ({path.name} is missing)",)
    return openings


def _why_stopped(folder: Path, state: SearchState) -> str:
    """Returns why the search ended: its last generation, or the last event of `events.jsonl`; "" if it has not."""
    if state.generation > state.config.generations:
        return "generations"
    events = read_events(folder / "events.jsonl")
    turns = ("started", "resumed", "stopped", "interrupted", "failed")
    last = [event for event in events if event["event"] in turns][
        -1:
    ]  # a resumed run has not stopped any more
    return last[0]["message"] if last and last[0]["event"] == "stopped" else ""
