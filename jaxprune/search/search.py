"""Runs a search: `evolve` on tasks, or `evolve_problem` on any problem, generation by generation in a run directory.

One generation by hand is `tell(state, evaluate(state, ask(state)))`, from the state that `init_search` returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxprune.files import to_text
from jaxprune.hosts.agreement import check_one_folder, facts_of
from jaxprune.hosts.sharing import Hosts
from jaxprune.hosts.watching import HostsError
from jaxprune.interrupts import Interrupts
from jaxprune.language.expression import Expression
from jaxprune.language.parsing import parse
from jaxprune.search.bank import check_bank_fits
from jaxprune.search.callbacks import notify, notify_or_warn
from jaxprune.search.foreign_files import refuse_foreign_files
from jaxprune.search.generations import Generations
from jaxprune.search.problem import InfrastructureError, LandscapeProblem, Problem
from jaxprune.search.run_batching import Choose, settle_as_told, settle_batching
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import (
    Individual,
    SearchState,
    ending,
    guesses_without_operands,
)
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import Base
from jaxprune.tasks.batching_speed import choose_batching
from jaxprune.tasks.tasks import Task
from jaxprune.training.batching import Batching, Convolution, Strategy

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
      best: the leader with its expression and fitness: by mean minus standard error; on a landscape by the mean of what
        was predicted and what verification measured, minus the cost of its complexity.
      archive: the Pareto front of fitness and complexity, simplest first.
      journal: path of the journal; its folder is the run directory.
      state: the state after the last complete generation.
      stopped: why the search ended: "generations", "evaluations", "time" or "exhausted" (nothing new was found);
        `ending(state, stopped)` says it in a sentence.
    """

    best: Individual
    archive: tuple[Individual, ...]
    journal: Path
    state: SearchState
    stopped: str

    def to_dataframe(self) -> pandas.DataFrame:
        """Returns all evaluated candidates as a table, best first; needs pandas.

        Returns:
          One row per candidate: id, formula, mean, se, lower, complexity, origin, parents, generation,
          in_archive, and per task `TASK difference`, `TASK se`, `TASK bases`, `TASK accuracy`.
        """
        import pandas

        rows = []
        for individual in self.state.ranked():
            candidate, fitness = individual.candidate, individual.fitness
            row: dict[str, Any] = {
                "id": candidate.id,
                "formula": candidate.text,
                "mean": fitness.mean,
                "se": fitness.se,
                "lower": fitness.lower,
                "complexity": candidate.complexity,
                "origin": candidate.origin,
                "parents": candidate.parents,
                "generation": candidate.generation,
                "in_archive": candidate.id in self.state.archive,
            }
            for name, result in fitness.tasks.items():
                for column in ("difference", "se", "bases", "accuracy"):
                    row[f"{name} {column}"] = getattr(result, column)
            rows.append(row)
        return pandas.DataFrame(rows)


def evolve(
    tasks: Sequence[Task],
    config: EvolveConfig | None = None,
    run_dir: str | os.PathLike[str] = "runs/evolve",
    *,
    callbacks: Sequence[object] = (),
    guesses: Sequence[str | Expression] = (),
    resume: bool = False,
    strategy: Strategy = "auto",
    chunk: int | None = None,
    convolution: Convolution = "auto",
    settings: Mapping[str, Any] | None = None,
    hosts: Hosts | None = None,
) -> SearchResult:
    """Evolves pruning functions that are good on all of `tasks`.

    Base networks are trained first and stored in the run directory. Every fine-tuning is written to the journal when it
    is done, so that a stopped or killed run goes on with `resume=True` to the same result that it would have had.

    Args:
      tasks: the tasks that a function must be good at, see `Task`.
      config: how to search; by default `EvolveConfig()`.
      run_dir: where everything is written; created if missing.
      callbacks: objects with any of the methods of `Callback`, and `on_base(task_name, base)`.
      guesses: the user's own formulas, which join generation 0.
      resume: go on with the run in `run_dir`.
      strategy: how networks are batched; "auto" chooses by backend and network.
      chunk: networks on each device with "vmap". With neither strategy nor chunk, a new run on an accelerator measures
        which is best. A resumed run keeps what its config.json says.
      convolution: "library", or "patches" for convolutions as matrix products; "auto" chooses like `strategy`.
      settings: further plain values for `config.json`; a resumed run needs the same ones.
      hosts: the processes that share all training, see `jaxprune.hosts.joining`; all of them call this, and it returns
        on process 0 alone: the others end with status 0 when that leaves the context of `joined`.

    Returns:
      The best function with its fitness, the Pareto archive of fitness and complexity, and the journal.

    Raises:
      ValueError: for bad tasks, settings or guesses, or files in `run_dir` that no run wrote and a run would replace.
      RunDirectoryError: if the run directory is in use, not writable, full, or holds another run.
      SearchInterrupted: after Ctrl-C or SIGTERM; the run can be resumed.
      InfrastructureError: if a fine-tuning failed three times for reasons outside it.

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
    batching = Batching(strategy, chunk, convolution)
    if hosts is not None:
        hosts.agree("settings", facts_of(to_text(config.to_json() | batching._asdict())))
        check_one_folder(hosts, Path(run_dir))
    problem = make_problem(tasks, config, run_dir, callbacks=callbacks, hosts=hosts, **batching._asdict())
    if hosts is not None and not hosts.is_leader:
        hosts.serve()
    return evolve_problem(
        problem, config, run_dir, callbacks=callbacks, resume=resume, guesses=guesses, settings=settings
    )


def make_problem(
    tasks: Sequence[Task],
    config: EvolveConfig,
    run_dir: str | os.PathLike[str],
    *,
    callbacks: Sequence[object] = (),
    strategy: Strategy = "auto",
    chunk: int | None = None,
    convolution: Convolution = "auto",
    choose: Choose = choose_batching,
    hosts: Hosts | None = None,
) -> TaskProblem:
    """Makes the problem that `evolve` searches on, with base networks stored in `run_dir/bases`.

    Args:
      tasks: the tasks that a function must be good at.
      config: the settings of the search; the seed is used, and a landscape leaves out the tasks' extra bases.
      run_dir: the run directory.
      callbacks: their methods, if any, are called: `on_base(task_name, base)` for each base network that is ready,
        `on_message` for each stored one that is damaged.
      strategy, chunk, convolution: as for `evolve`.
      choose: chooses how a new run batches networks, by default by a short measurement on an accelerator.
      hosts: the processes that share all training; only process 0 reads and stores base networks.

    Raises:
      ValueError: for no tasks, two of one name, or networks that cannot be pruned; for several rounds of pruning on a
        landscape; for files in `run_dir` that a run would replace and that are of no run.
    """
    refuse_foreign_files(Path(run_dir))

    def on_base(task: str, base: Base) -> None:
        notify(callbacks, "on_base", task, base)

    if config.fitness == "landscape":  # where every function is judged on all bases
        tasks = [task.replace(extra_bases=0) for task in tasks]
    problem = TaskProblem(
        tasks,
        config.seed,
        folder=Path(run_dir) / "bases" if hosts is None or hosts.is_leader else None,
        strategy=strategy,
        chunk=chunk,
        convolution=convolution,
        on_base=on_base,
        on_message=partial(notify_or_warn, callbacks),
        hosts=hosts,
    )
    for pool in problem.pools.values() if config.fitness == "landscape" else ():
        check_bank_fits(pool.programs)
    if hosts is not None:
        hosts.agree("tasks", facts_of(to_text(problem.identities)))

    def on_message(message: str) -> None:
        notify(callbacks, "on_message", message)

    if hosts is None or hosts.is_leader:
        settle_batching(problem.programs, problem.tasks, config, Path(run_dir), choose, on_message)
    if hosts is not None:
        settle_as_told(problem.programs, hosts)
    return problem


def evolve_problem(
    problem: Problem,
    config: EvolveConfig,
    run_dir: str | os.PathLike[str],
    *,
    callbacks: Sequence[object] = (),
    resume: bool = False,
    guesses: Sequence[str | Expression] = (),
    settings: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Searches until a stop, with everything on the disk after every fine-tuning.

    A kill at any moment loses at most the fine-tunings under way (two for each training thread on a CPU, a chunk for
    each device and task on accelerators): a resumed run ends with the journal and archive that it would have had. The
    first Ctrl-C or SIGTERM lets the fine-tuning end that comes next in the journal.

    Args:
      problem: what to search on.
      config: how to search, and when to stop. The time limit counts from this call. A generation that it cuts short is
        not part of the result, but a resumed run goes on from there.
      run_dir: where journal, state and archive are written; created if missing.
      callbacks: objects with any of the methods of `Callback`.
      resume: go on with the run in `run_dir`; without a run there, start it.
      guesses: the user's own formulas for generation 0.
      settings: further plain values for `config.json`; a resumed run needs the same ones.

    Returns:
      The best candidate, the archive and the state.

    Raises:
      ValueError: for bad settings or guesses, or if the directory holds no run, but files that a run would replace.
      RunDirectoryError: if the directory is in use, not writable, full, or holds another run.
      SearchInterrupted: after Ctrl-C or SIGTERM.
      InfrastructureError: if training, scoring or a fine-tuning failed three times for reasons outside it.
    """
    start = init_search(problem, config, guesses)
    refuse_foreign_files(Path(run_dir))
    with RunDirectory(Path(run_dir), partial(notify_or_warn, callbacks)) as run, Interrupts() as interrupts:
        state = run.open_run(start, settings or {}, resume)
        run.event("resumed" if state.generation else "started", f"generation {state.generation}")
        notify(callbacks, "on_start", state)
        loop = Generations(run, interrupts, callbacks, config.time_limit_seconds)
        for text, absence in guesses_without_operands(state).items() if state.generation == 0 else ():
            run.notice(f"The guess {text} is left out: {absence}")
        try:
            state, stopped = loop.until_stopped(state)
        except (InfrastructureError, HostsError) as error:
            run.event("failed", str(error))
            raise InfrastructureError(
                f"{error}. Everything before it is saved in {run.path}; when the cause is gone, go on with "
                "resume=True (--resume)."
            ) from error
        run.event("stopped", stopped)
        if early := ending(state, stopped):
            notify(callbacks, "on_message", early)
        archive = tuple(state.individual(id_) for id_ in state.archive)
        return SearchResult(state.ranked()[0], archive, loop.journal.path, state, stopped)


def init_search(
    problem: Problem, config: EvolveConfig, guesses: Sequence[str | Expression] = ()
) -> SearchState:
    """Returns the state before generation 0.

    Args:
      problem: what to search on.
      config: how to search.
      guesses: the user's own formulas, which join generation 0.

    Returns:
      A state for `ask`.

    Raises:
      ValueError: if there are no tasks, two of one name, or a guess is not a pruning function.
    """
    tasks = tuple(problem.tasks)
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"a search needs one or more tasks with different names, got {names}.")
    if config.fitness == "landscape" and not isinstance(problem, LandscapeProblem):
        raise ValueError(
            "fitness 'landscape' needs a problem with fit_landscapes (see LandscapeProblem), got "
            f'{type(problem).__name__}. Use EvolveConfig(fitness="finetune").'
        )
    formulas = [guess if isinstance(guess, Expression) else parse(guess) for guess in guesses]
    arrays = [str(formula) for formula in formulas if formula.type != ()]
    if arrays:
        raise ValueError(
            f"a guess needs to give one number per channel, got an array from {'; '.join(arrays)}. "
            "Reduce it, as in sum(...)."
        )
    return SearchState(config, tasks, problem, tuple(str(formula) for formula in formulas))
