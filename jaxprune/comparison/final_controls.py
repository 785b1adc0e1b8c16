"""Controls of a final comparison that take a search of their own: random formulas, and an oracle's plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxprune.comparison.final_rows import Rows
from jaxprune.comparison.oracle import Start, climb, oracle_entry
from jaxprune.comparison.protocol import RowEntry, measure
from jaxprune.comparison.results import Comparison
from jaxprune.search.callbacks import notify
from jaxprune.search.search import evolve_problem
from jaxprune.search.state import Individual, SearchState
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import BasePool
from jaxprune.types import Invalid

ORACLE_BASES = 3
"""Bases of each task on which an oracle climbs, at most."""

ORACLE_EVALUATIONS = 200
"""Fine-tunings of a climb."""


def random_search(
    run_dir: Path, problem: TaskProblem, state: SearchState, callbacks: Sequence[object]
) -> tuple[Individual, dict[str, Any]]:
    """Runs a random search of equal budget on the same problem, in `run_dir/random-search`.

    On landscapes the budget is the number of generations that the search completed, on the same bank, with the same
    verification; otherwise the number of fine-tunings.

    Args:
      run_dir: the run directory.
      problem: what was searched on.
      state: the finished search.
      callbacks: notified of the progress.

    Returns:
      The best candidate of the random search, and its numbers.
    """
    budget: dict[str, object] = {"generations": state.generation - 1}
    if not state.has_landscapes:  # enough generations, so that the fine-tunings end it
        budget = {
            "generations": 20 * max(1, state.config.generations),
            "max_evaluations": state.evaluations,
        }
    notify(callbacks, "on_message", "Random search of equal budget, as a control.")
    config = state.config.replace(strategy="random", time_limit_seconds=None, **budget)
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
        "generations": state.generation - 1,
    }


def with_oracle(
    comparison: Comparison,
    pools: Sequence[BasePool],
    rows: Rows,
    evaluations: int,
    on_message: Callable[[str], None],
) -> Comparison:
    """Adds the row "oracle": plans climbed to from the best function of each base, on a few bases of each task.

    Args:
      comparison: of the rows on the pools.
      pools: the bases of the tasks that get an oracle.
      rows: the functions.
      evaluations: number of points of the accuracy curves.
      on_message: called with the progress.

    Returns:
      The comparison with the plans of the oracle, measured on validation images only, by which they were chosen.
    """
    measurements = list(comparison.measurements)
    for pool in pools:
        task = pool.task.name
        by_base = {
            name: comparison.by_base(name, task) for name in rows.functions if name in comparison.names(task)
        }
        starts: dict[int, Start] = {}
        for base in range(min(pool.num_bases, ORACLE_BASES)):
            best = max(by_base, key=lambda name: by_base[name][base])
            plan = pool.plans([rows.functions[best]])[0][base]
            assert not isinstance(plan, Invalid)  # it was measured
            starts[base] = Start(best, plan.kept, rows.functions[best])
        climbs = climb(pool, starts, evaluations=ORACLE_EVALUATIONS, repeat=1, on_message=on_message)
        entries = [
            RowEntry("oracle", "oracle", "", oracle_entry(pool, starts[base], base, 0, done.kept), done.kept)
            for base, done in climbs.items()
        ]
        measurements += measure(pool, entries, evaluations=evaluations)
    return dataclasses.replace(comparison, measurements=tuple(measurements))
