"""The final comparison of a run: the winner against known functions, on base networks that the search never saw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from jaxprune.comparison.final_controls import random_search, with_oracle
from jaxprune.comparison.final_rows import Rows, add_best_known, choose_rows
from jaxprune.comparison.finals import RANDOM_SEARCH, WINNER, Controls, Finals, load_finals
from jaxprune.comparison.measurements import Measurement
from jaxprune.comparison.protocol import compare_on, layer_views
from jaxprune.comparison.results import Comparison
from jaxprune.comparison.winner_checks import soundness, worth_of_parts
from jaxprune.files import write_atomically
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.search.callbacks import notify
from jaxprune.search.state import Individual, SearchState
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import Base, BasePool
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task, check_unique
from jaxprune.training.trainer import is_vmapped

EVALUATIONS = 3
"""Number of points of the accuracy curves, if a fine-tuning has as many steps."""

DRAWS = 3
"""Number of random plans per base."""


def run_finals(
    run_dir: Path,
    problem: TaskProblem,
    state: SearchState,
    winner: Individual,
    *,
    unseen: Sequence[Task] = (),
    controls: Controls = "standard",
    callbacks: Sequence[object] = (),
) -> Finals:
    """Trains the final bases, compares on them, and stores `final.json`; uses a stored one that is still valid.

    Args:
      run_dir: the run directory, where it is also recorded that test images were opened.
      problem: the problem that was searched on.
      state: the finished search.
      winner: its winner.
      unseen: tasks that were not searched on, which are compared on as well; nothing is chosen by them.
      controls: see `choose_rows`; "full" also adds an oracle. After a search on landscapes, and with "full", a random
        search of equal budget runs in `run_dir/random-search`.
      callbacks: notified of progress by `on_message`, `on_status` and `on_base`, if they have these methods.

    Returns:
      The final comparison.

    Raises:
      ValueError: for other controls, or a task that is both searched on and unseen.
    """
    rows = choose_rows(state, winner, controls)
    machines = machines_of(problem, unseen)
    stored = load_finals(run_dir)
    if stored is not None and _is_current(stored, rows, state, machines, problem, controls):
        message = "The final comparison is stored already; only the report is written again."
        notify(callbacks, "on_message", message)
        return stored
    started = time.monotonic()
    found = None
    if state.has_landscapes:
        add_best_known(rows, problem, state)
    if state.has_landscapes or controls == "full":
        best, found = random_search(run_dir, problem, state, callbacks)
        rows.functions[RANDOM_SEARCH] = best.expression
        rows.roles[RANDOM_SEARCH] = "best of a random search of equal budget"

    def on_status(message: str) -> None:
        notify(callbacks, "on_status", message)

    def on_base(task: str, base: Base) -> None:
        notify(callbacks, "on_base", task, base)

    parts = worth_of_parts(problem, state, winner, on_status) if state.has_landscapes else ()
    pools = {name: problem.final_pool(programs, on_base) for name, programs in machines.items()}
    steps = {name: programs.num_steps for name, programs in machines.items()}
    evaluations = min(EVALUATIONS, *steps.values())
    comparison = _compare(run_dir, pools, rows, evaluations, callbacks)
    if controls == "full":
        searched = [pools[name] for name in problem.programs]
        comparison = with_oracle(comparison, searched, rows, evaluations, on_status)
    finals = Finals(
        winner_id=winner.candidate.id,
        formulas=rows.formulas,
        roles=rows.roles,
        best_start=rows.best_start,
        controls=controls,
        comparison=comparison,
        views={name: tuple(layer_views(pool, _shown(rows), DRAWS)) for name, pool in pools.items()},
        steps=steps,
        seconds=time.monotonic() - started,
        random_search=found,
        unseen=tuple(task.name for task in unseen),
        known=rows.known if state.has_landscapes or controls == "full" else (),
        best_known=rows.best_known,
        parts=parts,
        soundness={name: soundness(pool, winner.expression) for name, pool in pools.items()},
        compensated=tuple(name for name, programs in machines.items() if programs.recipe().compensate),
    )
    write_atomically(run_dir / "final.json", finals.to_json())
    return finals


def machines_of(problem: TaskProblem, unseen: Sequence[Task]) -> dict[str, TaskPrograms]:
    """Returns the compiled machinery of all tasks, those that were searched on first.

    Args:
      problem: the problem that was searched on.
      unseen: further tasks.

    Raises:
      ValueError: for a task that is both searched on and unseen.
    """
    searched = problem.programs
    check_unique([*(programs.task for programs in searched.values()), *unseen])
    first = next(iter(searched.values())).batching
    # Rows are those of the search, which measured them or was resumed; one by one, each network decides as it would.
    is_open = first.strategy != "vmap" and not is_vmapped(problem.asked.strategy)
    batching = (problem.asked if is_open else first)._asdict()
    return {**searched, **{task.name: TaskPrograms(task, **batching) for task in unseen}}


def _compare(
    run_dir: Path, pools: dict[str, BasePool], rows: Rows, evaluations: int, callbacks: Sequence[object]
) -> Comparison:
    """Compares the rows on the final bases of all tasks, test images included."""
    counts = ", ".join(f"{pool.num_bases} for {name}" for name, pool in pools.items())
    message = f"Final comparison of {len(rows.functions)} functions on new base networks: {counts}."
    notify(callbacks, "on_message", message)
    numbers = itertools.count(1)

    def on_row(row: Measurement) -> None:
        status = f"final comparison: {row.name} on {row.task}, {next(numbers)} networks fine-tuned"
        notify(callbacks, "on_status", status)

    return compare_on(
        list(pools.values()),
        rows.functions,
        draws=DRAWS,
        evaluations=evaluations,
        test_records=run_dir,
        reopen_test=True,  # after an interruption or a resumed search; every opening is on record and in the report
        on_row=on_row,
    )


def _shown(rows: Rows) -> dict[str, PruningFunction]:
    """The functions that figures show: the winner, l2, and those with a role."""
    names = dict.fromkeys((WINNER, "l2", rows.best_start, *rows.roles))
    return {name: rows.functions[name] for name in names}


def _is_current(
    stored: Finals,
    rows: Rows,
    state: SearchState,
    machines: dict[str, TaskPrograms],
    problem: TaskProblem,
    controls: Controls,
) -> bool:
    """Whether a stored comparison has the rows, bases, controls and seed that are needed now."""
    further = {RANDOM_SEARCH, stored.best_known}
    formulas = {
        name: text for name, text in stored.formulas.items() if name not in further - rows.functions.keys()
    }
    bases = {facts.name: len(facts.base_accuracies) for facts in stored.comparison.tasks}
    needed = {name: programs.task.final_bases for name, programs in machines.items()}
    is_same = (stored.controls, stored.comparison.seed) == (controls, problem.seed) and bases == needed
    has_budget = not state.has_landscapes or (
        stored.random_search is not None and stored.random_search["generations"] == state.generation - 1
    )
    return (
        is_same
        and has_budget
        and formulas == rows.formulas
        and all(machines[facts.name].is_known_as(facts.fingerprint) for facts in stored.comparison.tasks)
    )
