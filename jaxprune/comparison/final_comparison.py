"""The final comparison of a run: the winner against what the search started from, on base networks it never saw."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxprune.comparison.measurements import Measurement
from jaxprune.comparison.protocol import LayerView, compare, layer_views
from jaxprune.comparison.results import Comparison
from jaxprune.files import RunDirectoryError, read_json, to_text, write_atomically
from jaxprune.language.expression import Expression
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.search.search import evolve_problem
from jaxprune.search.state import Individual, SearchState, origin_name, start_formulas
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import Base

Controls = Literal["standard", "full"]

FORMAT = 1
EVALUATIONS = 5
"""Points of the accuracy curves, where a fine-tuning has as many steps."""

DRAWS = 3
"""Random plans per base."""

WINNER, GUESS, RANDOM_SEARCH = "winner", "best guess", "random search"
"""Row names that stand for different formulas in different runs."""


@dataclass(frozen=True)
class Finals:
    """What the final comparison measured, with who was compared and why; all of `final.json`.

    Args:
      winner_id: id of the winner among the run's candidates.
      formulas: row name -> formula of every function.
      roles: row name -> what it is, for rows whose name does not say it.
      best_start: row of the best function that the search started from (library or own seed), on the search bases;
        "winner" where that is the winner itself.
      controls: "standard" or "full".
      comparison: the measurements.
      views: task -> what functions keep on final base 0, layer by layer.
      steps: task -> optimiser steps of the last round's fine-tuning.
      seconds: time of the comparison, training of the final bases included.
      random_search: numbers of the random search of equal budget, or None where it was not run.
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
        """The rows that figures of few lines show: winner, l2, the best start formula, random plans, scratch."""
        return tuple(dict.fromkeys((WINNER, "l2", self.best_start, "random", "scratch")))

    def to_json(self) -> str:
        """As JSON text, to be read back by `from_json`."""
        plain = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        plain["comparison"] = json.loads(self.comparison.to_json())
        plain["views"] = {
            task: [dataclasses.asdict(view) for view in views] for task, views in self.views.items()
        }
        return to_text({"format": FORMAT, **plain}, indent=1) + "\n"

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Finals:
        """The finals that `to_json` wrote, from the parsed JSON.

        Raises:
          RunDirectoryError: if it is not one, or of a newer format.
        """
        version = plain.get("format")
        if not isinstance(version, int) or version > FORMAT:
            raise RunDirectoryError(
                f"final.json needs format {FORMAT} or older, got {version!r}. Upgrade jaxprune."
            )
        try:
            found = {field.name: plain[field.name] for field in dataclasses.fields(cls)}
            found["comparison"] = Comparison.from_json(json.dumps(found["comparison"]))
            found["views"] = {
                task: tuple(_view_from_json(view) for view in views) for task, views in found["views"].items()
            }
            return cls(**found)
        except (KeyError, TypeError, ValueError) as error:
            raise RunDirectoryError(
                f"final.json needs a final comparison as write_report stores it, but it is damaged ({error!r}). "
                "Delete it and write the report again."
            ) from error


def load_finals(run_dir: Path) -> Finals | None:
    """The final comparison that a run directory holds, or None."""
    path = run_dir / "final.json"
    return Finals.from_json(read_json(path)) if path.exists() else None


@dataclass(frozen=True)
class Rows:
    """Who is compared: row name -> function, and what each one is."""

    functions: dict[str, Expression]
    roles: dict[str, str]
    best_start: str


def choose_rows(state: SearchState, winner: Individual, controls: Controls = "standard") -> Rows:
    """The functions of the final comparison, as the search bases chose them.

    Args:
      state: the finished search.
      winner: its winner.
      controls: "standard" for l1, l2, the best library function and the best own seed; "full" for all of them.

    Returns:
      The rows; random plans and training from scratch are added by the comparison itself.

    Raises:
      ValueError: for other controls.
    """
    if controls not in ("standard", "full"):
        raise ValueError(f'controls needs to be "standard" or "full", got {controls!r}.')
    ranked = state.ranked()
    started = start_formulas(state)
    functions = {WINNER: winner.expression, "l2": library["l2"]}
    if winner.expression is not library["l1"]:
        functions["l1"] = library["l1"]
    roles = {WINNER: "winner of the search"}
    for prefix, role in (("library", "best library function"), ("seed", "best own seed")):
        best = next((m for m in started if m.candidate.origin.startswith(f"{prefix}:")), None)
        if best is not None:
            name = origin_name(best)
            if best.expression is winner.expression:
                roles[WINNER] += f", the {role} {name} itself"
                continue
            functions[name] = best.expression
            roles[name] = f"{role} on the search bases"
    guess = next((member for member in ranked if member.candidate.origin == "guess"), None)
    if guess is not None:
        functions[GUESS], roles[GUESS] = guess.expression, "best of the given formulas on the search bases"
    if controls == "full":
        known = {**library, **own_seeds}
        functions |= {
            name: f for name, f in known.items() if name not in functions and f is not winner.expression
        }
    best_start = origin_name(started[0]) if started else "l2"
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
    """Trains the final bases, compares on them, and stores `final.json`; an equal stored one is taken as it is.

    Args:
      run_dir: the run directory; the openings of test images are recorded there.
      problem: what was searched on.
      state: the finished search.
      winner: its winner.
      controls: see `choose_rows`; "full" also runs a random search of equal budget in `run_dir/random-search`.
      callbacks: told of progress by `on_message`, `on_status` and `on_base`, where they have these.

    Returns:
      The final comparison.
    """
    rows = choose_rows(state, winner, controls)
    tell = _teller(callbacks)
    tasks = [programs.task for programs in problem.programs.values()]
    stored = load_finals(run_dir)
    if stored is not None and _is_current(stored, rows, problem, controls):
        tell("on_message", "The final comparison is stored already; only the report is written again.")
        return stored
    started = time.monotonic()
    random_search = None
    if controls == "full":
        best, random_search = _random_search(run_dir, problem, state, callbacks)
        rows.functions[RANDOM_SEARCH] = best.expression
        rows.roles[RANDOM_SEARCH] = "best of a random search of equal budget"
    bases = {task.name: task.final_bases for task in tasks}
    steps = {
        name: programs.recipe().num_steps(len(programs.task.train[1]))
        for name, programs in problem.programs.items()
    }
    tell(
        "on_message",
        f"Final comparison of {len(rows.functions)} functions on new base networks: {_list(bases)}.",
    )
    counted = {"number": 0}

    def on_row(row: Measurement) -> None:
        counted["number"] += 1
        tell(
            "on_status",
            f"final comparison: {row.name} on {row.task}, {counted['number']} networks fine-tuned",
        )

    comparison = compare(
        rows.functions,
        tasks,
        bases,
        seed=problem.seed,
        draws=DRAWS,
        evaluations=min(EVALUATIONS, *steps.values()),
        folder=problem.folder,
        test_records=run_dir,
        reopen_test=True,  # after an interruption or a resumed search; every opening is on record and in the report
        on_row=on_row,
        on_base=lambda task, base: tell("on_base", task, base),
        programs=problem.programs,
    )
    finals = Finals(
        winner_id=winner.candidate.id,
        formulas={name: str(f) for name, f in rows.functions.items()},
        roles=rows.roles,
        best_start=rows.best_start,
        controls=controls,
        comparison=comparison,
        views=_views(problem, rows),
        steps=steps,
        seconds=time.monotonic() - started,
        random_search=random_search,
    )
    write_atomically(run_dir / "final.json", finals.to_json())
    return finals


def _random_search(
    run_dir: Path, problem: TaskProblem, state: SearchState, callbacks: Sequence[object]
) -> tuple[Individual, dict[str, Any]]:
    """The best of a random search that may run as many fine-tunings as the search did."""
    config = state.config.replace(
        strategy="random",
        max_evaluations=state.evaluations,
        generations=20 * max(1, state.config.generations),  # the budget ends it, not the generations
        time_limit_seconds=None,
    )
    found = evolve_problem(
        problem, config, run_dir / "random-search", callbacks=callbacks, resume=True, guesses=state.guesses
    )
    best = found.best
    return best, {
        "formula": best.candidate.text,
        "origin": best.candidate.origin,
        "mean": best.fitness.mean,
        "se": best.fitness.se,
        "evaluations": found.state.evaluations,
        "candidates": sum(candidate.status == "ok" for candidate in found.state.candidates),
        "differences": {name: result.difference for name, result in best.fitness.tasks.items()},
    }


def _views(problem: TaskProblem, rows: Rows) -> dict[str, tuple[LayerView, ...]]:
    """What the few functions of the figures keep on final base 0 of every task."""
    shown = dict.fromkeys((WINNER, "l2", rows.best_start, *rows.roles))
    functions = {name: rows.functions[name] for name in shown}
    return {
        name: tuple(layer_views(problem.final_pool(name, 1), functions, DRAWS)) for name in problem.programs
    }


def _is_current(stored: Finals, rows: Rows, problem: TaskProblem, controls: Controls) -> bool:
    wanted = {name: str(f) for name, f in rows.functions.items()}
    found = {name: text for name, text in stored.formulas.items() if name != RANDOM_SEARCH}
    measured = {
        facts.name: (facts.fingerprint, len(facts.base_accuracies)) for facts in stored.comparison.tasks
    }
    needed = {
        name: (programs.fingerprint, programs.task.final_bases) for name, programs in problem.programs.items()
    }
    is_same = (stored.controls, stored.comparison.seed) == (controls, problem.seed)
    return is_same and found == wanted and measured == needed


def _view_from_json(plain: Mapping[str, Any]) -> LayerView:
    kept = {name: tuple(index) for name, index in plain["kept"].items()}
    scores = {name: tuple(found) for name, found in plain["scores"].items()}
    return LayerView(plain["group"], plain["width"], plain["count"], kept, scores)


def _teller(callbacks: Sequence[object]) -> Callable[..., None]:
    """Calls a method of every callback that has it."""

    def tell(name: str, *arguments: str | Base) -> None:
        for callback in callbacks:
            method = getattr(callback, name, None)
            if method is not None:
                method(*arguments)

    return tell


def _list(bases: Mapping[str, int]) -> str:
    return ", ".join(f"{count} for {name}" for name, count in bases.items())


def expression_of(finals: Finals, name: str) -> Expression:
    """The function of a row."""
    return parse(finals.formulas[name])
