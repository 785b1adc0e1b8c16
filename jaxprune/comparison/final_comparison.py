"""The final comparison of a run: the winner against the start formulas, on base networks that the search never saw."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxprune.comparison.measurements import Measurement
from jaxprune.comparison.protocol import LayerView, compare, layer_views
from jaxprune.comparison.results import Comparison
from jaxprune.files import RunDirectoryError, sealed, to_text, write_atomically
from jaxprune.language.expression import Expression
from jaxprune.language.library import library, own_seeds
from jaxprune.search.callbacks import notify
from jaxprune.search.run_files import FORMAT, REMEDIES, read_run_file
from jaxprune.search.search import evolve_problem
from jaxprune.search.state import Individual, SearchState, origin_name, start_formulas
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import Base

Controls = Literal["standard", "full"]

EVALUATIONS = 5
"""Number of points of the accuracy curves, if a fine-tuning has as many steps."""

DRAWS = 3
"""Number of random plans per base."""

WINNER, GUESS, RANDOM_SEARCH = "winner", "best guess", "random search"
"""Row names that stand for different formulas in different runs."""


@dataclass(frozen=True)
class Finals:
    """The content of `final.json`: what the final comparison measured, and which functions it compared and why.

    Args:
      winner_id: id of the winner among the run's candidates.
      formulas: row name -> formula of every function.
      roles: row name -> what the row is, if its name does not say it.
      best_start: row of the library function or own seed that was best on the search bases; "winner" if that is the
        winner itself.
      controls: "standard" or "full".
      comparison: the measurements.
      views: task -> what functions keep on final base 0, layer by layer.
      steps: task -> number of optimiser steps of the last round's fine-tuning.
      seconds: time of the comparison, training of the final bases included.
      random_search: numbers of the random search of equal budget, or None if it was not run.
    """

    winner_id: int
    formulas: Mapping[str, str]
    roles: Mapping[str, str]
    best_start: str
    controls: Controls
    comparison: Comparison
    views: Mapping[str, tuple[LayerView, ...]]
    steps: Mapping[str, int]
    seconds: float
    random_search: Mapping[str, Any] | None = None

    @property
    def figure_rows(self) -> tuple[str, ...]:
        """The rows for figures with few lines: winner, l2, the best start formula, random plans, scratch."""
        return tuple(dict.fromkeys((WINNER, "l2", self.best_start, "random", "scratch")))

    def to_json(self) -> str:
        """Returns JSON text for `from_json`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["comparison"] = json.loads(self.comparison.to_json())
        plain["views"] = {
            task: [dataclasses.asdict(view) for view in views] for task, views in self.views.items()
        }
        return to_text(sealed({"format": FORMAT, **plain}), indent=1) + "\n"

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], path: Path) -> Finals:
        """Returns what `to_json` wrote, from the content that `read_run_file` returns.

        Args:
          plain: the content.
          path: the file, for messages.

        Raises:
          RunDirectoryError: if the content is no final comparison.
        """
        try:
            values = {field.name: plain[field.name] for field in dataclasses.fields(cls)}
            values["comparison"] = Comparison.from_json(json.dumps(values["comparison"]))
            values["views"] = {
                task: tuple(_view_from_json(view) for view in views)
                for task, views in values["views"].items()
            }
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RunDirectoryError(
                f"{path} needs a final comparison as write_report stores it, but it is damaged ({error!r}). "
                f"{REMEDIES[path.name]}"
            ) from error


def load_finals(run_dir: Path) -> Finals | None:
    """Returns the final comparison that a run directory holds, or None.

    Raises:
      RunDirectoryError: if it is damaged or of a newer format.
    """
    path = run_dir / "final.json"
    return Finals.from_json(read_run_file(path), path) if path.exists() else None


@dataclass(frozen=True)
class Rows:
    """The functions that are compared: row name -> function, and row name -> what it is."""

    functions: dict[str, Expression]
    roles: dict[str, str]
    best_start: str


def choose_rows(state: SearchState, winner: Individual, controls: Controls = "standard") -> Rows:
    """Chooses the functions of the final comparison by their results on the search bases.

    Args:
      state: the finished search.
      winner: its winner.
      controls: "standard" for l1, l2, the best library function and the best own seed; "full" for all of them.

    Returns:
      The rows, without random plans and training from scratch, which the comparison adds.

    Raises:
      ValueError: for other controls.
    """
    if controls not in ("standard", "full"):
        raise ValueError(f'controls needs to be "standard" or "full", got {controls!r}.')
    start = start_formulas(state)
    functions = {WINNER: winner.expression, "l2": library["l2"]}
    if winner.expression is not library["l1"]:
        functions["l1"] = library["l1"]
    roles = {WINNER: "winner of the search"}
    for prefix, role in (("library", "best library function"), ("seed", "best own seed")):
        best = next(
            (individual for individual in start if individual.candidate.origin.startswith(f"{prefix}:")), None
        )
        if best is not None:
            name = origin_name(best)
            if best.expression is winner.expression:
                roles[WINNER] += f", the {role} {name} itself"
                continue
            functions[name] = best.expression
            roles[name] = f"{role} on the search bases"
    guess = next(
        (individual for individual in state.ranked() if individual.candidate.origin == "guess"), None
    )
    if guess is not None:
        functions[GUESS], roles[GUESS] = guess.expression, "best of the given formulas on the search bases"
    if controls == "full":
        functions |= {
            name: f
            for name, f in {**library, **own_seeds}.items()
            if name not in functions and f is not winner.expression
        }
    best_start = origin_name(start[0]) if start else "l2"
    return Rows(functions, roles, best_start if best_start in functions else WINNER)


def run_finals(
    run_dir: Path,
    problem: TaskProblem,
    state: SearchState,
    winner: Individual,
    *,
    controls: Controls = "standard",
    callbacks: Sequence[object] = (),
) -> Finals:
    """Trains the final bases, compares on them, and stores `final.json`; uses a stored one that is still valid.

    Args:
      run_dir: the run directory, where it is also recorded that test images were opened.
      problem: the problem that was searched on.
      state: the finished search.
      winner: its winner.
      controls: see `choose_rows`; "full" also runs a random search of equal budget in `run_dir/random-search`.
      callbacks: notified of progress by `on_message`, `on_status` and `on_base`, if they have these methods.

    Returns:
      The final comparison.
    """
    rows = choose_rows(state, winner, controls)
    stored = load_finals(run_dir)
    if stored is not None and _is_current(stored, rows, problem, controls):
        message = "The final comparison is stored already; only the report is written again."
        notify(callbacks, "on_message", message)
        return stored
    started = time.monotonic()
    random_search = None
    if controls == "full":
        best, random_search = _random_search(run_dir, problem, state, callbacks)
        rows.functions[RANDOM_SEARCH] = best.expression
        rows.roles[RANDOM_SEARCH] = "best of a random search of equal budget"
    steps = {name: programs.num_steps for name, programs in problem.programs.items()}
    finals = Finals(
        winner_id=winner.candidate.id,
        formulas={name: str(f) for name, f in rows.functions.items()},
        roles=rows.roles,
        best_start=rows.best_start,
        controls=controls,
        comparison=_compare(run_dir, problem, rows, min(EVALUATIONS, *steps.values()), callbacks),
        views=_views(problem, rows),
        steps=steps,
        seconds=time.monotonic() - started,
        random_search=random_search,
    )
    write_atomically(run_dir / "final.json", finals.to_json())
    return finals


def _compare(
    run_dir: Path, problem: TaskProblem, rows: Rows, evaluations: int, callbacks: Sequence[object]
) -> Comparison:
    """Compares the rows on the final bases of all tasks, test images included."""
    tasks = [programs.task for programs in problem.programs.values()]
    bases = {task.name: task.final_bases for task in tasks}
    counts = ", ".join(f"{count} for {name}" for name, count in bases.items())
    message = f"Final comparison of {len(rows.functions)} functions on new base networks: {counts}."
    notify(callbacks, "on_message", message)
    numbers = itertools.count(1)

    def on_row(row: Measurement) -> None:
        status = f"final comparison: {row.name} on {row.task}, {next(numbers)} networks fine-tuned"
        notify(callbacks, "on_status", status)

    def on_base(task: str, base: Base) -> None:
        notify(callbacks, "on_base", task, base)

    return compare(
        rows.functions,
        tasks,
        bases,
        seed=problem.seed,
        draws=DRAWS,
        evaluations=evaluations,
        folder=problem.folder,
        test_records=run_dir,
        reopen_test=True,  # after an interruption or a resumed search; every opening is on record and in the report
        on_row=on_row,
        on_base=on_base,
        on_message=problem.on_message,
        programs=problem.programs,
    )


def _random_search(
    run_dir: Path, problem: TaskProblem, state: SearchState, callbacks: Sequence[object]
) -> tuple[Individual, dict[str, Any]]:
    """Runs a random search with as many fine-tunings as the search had; returns its best candidate and its numbers."""
    config = state.config.replace(
        strategy="random",
        max_evaluations=state.evaluations,
        generations=20 * max(1, state.config.generations),  # enough, so that the budget ends it
        time_limit_seconds=None,
    )
    result = evolve_problem(
        problem, config, run_dir / "random-search", callbacks=callbacks, resume=True, guesses=state.guesses
    )
    best = result.best
    return best, {
        "formula": best.candidate.text,
        "origin": best.candidate.origin,
        "mean": best.fitness.mean,
        "se": best.fitness.se,
        "evaluations": result.state.evaluations,
        "candidates": sum(candidate.status == "ok" for candidate in result.state.candidates),
        "differences": {name: on_task.difference for name, on_task in best.fitness.tasks.items()},
    }


def _views(problem: TaskProblem, rows: Rows) -> dict[str, tuple[LayerView, ...]]:
    """Collects what the functions shown in figures keep on final base 0 of every task."""
    shown = dict.fromkeys((WINNER, "l2", rows.best_start, *rows.roles))
    functions = {name: rows.functions[name] for name in shown}
    return {
        name: tuple(layer_views(problem.final_pool(name, 1), functions, DRAWS)) for name in problem.programs
    }


def _is_current(stored: Finals, rows: Rows, problem: TaskProblem, controls: Controls) -> bool:
    """Whether a stored comparison has the rows, bases, controls and seed that are needed now."""
    needed_formulas = {name: str(f) for name, f in rows.functions.items()}
    formulas = {name: text for name, text in stored.formulas.items() if name != RANDOM_SEARCH}
    bases = {facts.name: len(facts.base_accuracies) for facts in stored.comparison.tasks}
    needed = {name: programs.task.final_bases for name, programs in problem.programs.items()}
    is_same = (stored.controls, stored.comparison.seed) == (controls, problem.seed) and bases == needed
    return (
        is_same
        and formulas == needed_formulas
        and all(
            problem.programs[facts.name].is_known_as(facts.fingerprint) for facts in stored.comparison.tasks
        )
    )


def _view_from_json(plain: Mapping[str, Any]) -> LayerView:
    kept = {name: tuple(index) for name, index in plain["kept"].items()}
    scores = {name: tuple(values) for name, values in plain["scores"].items()}
    return LayerView(plain["group"], plain["width"], plain["count"], kept, scores)
