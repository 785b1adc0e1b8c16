"""`evolve`: tasks in, evolved pruning functions out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune.evolution.problem import TaskProblem
from jaxprune.evolution.search import SearchResult, evolve_problem
from jaxprune.evolution.settings import EvolveConfig
from jaxprune.language.expression import Expression
from jaxprune.tasks.base_networks import Base
from jaxprune.tasks.tasks import Task
from jaxprune.training.trainer import Strategy


def evolve(
    tasks: Sequence[Task],
    config: EvolveConfig | None = None,
    run_dir: str | os.PathLike[str] = "runs/evolve",
    *,
    callbacks: Sequence[object] = (),
    guesses: Sequence[str | Expression] = (),
    resume: bool = False,
    strategy: Strategy = "auto",
    settings: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Evolves pruning functions that are good on all of `tasks`.

    Base networks are trained first and kept in the run directory; every fine-tuning is journaled when it is done, so
    that a run that was stopped, or killed, goes on with `resume=True` to the very result it would have had.

    Args:
      tasks: what a function must be good at, see `Task`.
      config: how to search; by default `EvolveConfig()`.
      run_dir: where everything is written; created if missing.
      callbacks: objects with any of the methods of `Callback`, and `on_base(task_name, base)`.
      guesses: formulas of one's own that join the first generation.
      resume: go on with the run in `run_dir`.
      strategy: how members of one program are batched; "auto" picks by backend and network.
      settings: further plain values for `config.json`, which a resume must repeat.

    Returns:
      The best function with its fitness, the Pareto archive of fitness and complexity, and the journal.

    Raises:
      ValueError: for bad tasks, settings or guesses.
      RunDirectoryError: if the run directory is in use, not writable, full, or holds another run.
      SearchInterrupted: after Ctrl-C or SIGTERM; the run can be resumed.
      InfrastructureError: if a fine-tuning failed three times for reasons of its surroundings.

    Example:
      >>> import numpy as np, tempfile
      >>> from jaxprune.nets import PlainConvNet
      >>> x, y = np.random.default_rng(0).normal(size=(60, 4, 4, 1)), np.arange(60) % 2
      >>> def make_model(rngs):
      ...     return PlainConvNet(rngs, widths=(4, 4, 4), num_classes=2, image_shape=(4, 4, 1))
      >>> task = Task("mine", model=make_model, train=(x, y), validation=(x, y), bases=1, extra_bases=0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = evolve([task], EvolveConfig(generations=0), folder)
      >>> result.best.expression.type
      ()

    Source:
      After Liu, Kung, Wentzlaff, Evolving Transferable Neural Pruning Functions, arXiv 2110.10876; docs/paper.md lists
      what differs.
    """
    config = config or EvolveConfig()
    problem = make_problem(tasks, config, run_dir, callbacks=callbacks, strategy=strategy)
    return evolve_problem(
        problem, config, Path(run_dir), callbacks=callbacks, resume=resume, guesses=guesses, settings=settings
    )


def make_problem(
    tasks: Sequence[Task],
    config: EvolveConfig,
    run_dir: str | os.PathLike[str],
    *,
    callbacks: Sequence[object] = (),
    strategy: Strategy = "auto",
) -> TaskProblem:
    """The problem that `evolve` searches on, with base networks kept in `run_dir/bases`."""

    def on_base(task: str, base: Base) -> None:
        for callback in callbacks:
            tell = getattr(callback, "on_base", None)
            if tell is not None:
                tell(task, base)

    return TaskProblem(tasks, config.seed, folder=Path(run_dir) / "bases", strategy=strategy, on_base=on_base)
