"""Runs a search: `evolve` on tasks, or `evolve_problem` on any problem, generation by generation in a run directory.

One generation by hand is `tell(state, evaluate(state, ask(state)))`, from the state that `init_search` returns.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxprune.language.expression import Expression
from jaxprune.language.parsing import parse
from jaxprune.search.evaluation import (
    FAILURES,
    Record,
    SearchStopped,
    TrialRecord,
    evaluate,
    report_failure,
    stop_if_asked,
)
from jaxprune.search.foreign_files import refuse_foreign_files
from jaxprune.search.interrupts import Interrupts, SearchInterrupted, look_for_interrupts
from jaxprune.search.problem import InfrastructureError, Problem
from jaxprune.search.proposals import ProposalBatch, propose
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.serialization import candidate_to_json
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import (
    Candidate,
    GenerationSummary,
    Individual,
    SearchState,
    ending,
    guesses_without_operands,
    lost_guesses,
)
from jaxprune.search.task_problem import TaskProblem
from jaxprune.search.update import tell
from jaxprune.tasks.base_networks import Base, warn
from jaxprune.tasks.tasks import Task
from jaxprune.training.trainer import Strategy

if TYPE_CHECKING:
    import pandas


class Callback:
    """Receives the progress of a search. Every method does nothing; override those of interest."""

    def on_start(self, state: SearchState) -> None:
        """Called once, with the initial state or the one that a resumed run goes on from."""

    def on_evaluation(self, record: TrialRecord) -> None:
        """Called after every fine-tuning, cached ones included."""

    def on_generation(self, summary: GenerationSummary) -> None:
        """Called after every generation, when its checkpoint is on the disk."""

    def on_message(self, message: str) -> None:
        """Called with messages for the user: repairs, retries, why the search ended."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
      best: the leader by mean minus standard error, with its expression and fitness.
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
    settings: Mapping[str, Any] | None = None,
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
      settings: further plain values for `config.json`; a resumed run needs the same ones.

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
    problem = make_problem(tasks, config, run_dir, callbacks=callbacks, strategy=strategy)
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
) -> TaskProblem:
    """Makes the problem that `evolve` searches on, with base networks stored in `run_dir/bases`.

    Args:
      tasks: the tasks that a function must be good at.
      config: the settings of the search; only the seed is used.
      run_dir: the run directory.
      callbacks: their methods, if any, are called: `on_base(task_name, base)` for each base network that is ready,
        `on_message` for each stored one that is damaged.
      strategy: how networks are batched; "auto" chooses by backend and network.

    Raises:
      ValueError: for no tasks, two of one name, or networks that cannot be pruned; for files in `run_dir` that a run
        would replace and that are of no run.
    """
    refuse_foreign_files(Path(run_dir))

    def on_base(task: str, base: Base) -> None:
        notify(callbacks, "on_base", task, base)

    return TaskProblem(
        tasks,
        config.seed,
        folder=Path(run_dir) / "bases",
        strategy=strategy,
        on_base=on_base,
        on_message=partial(notify_or_warn, callbacks),
    )


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

    A kill at any moment loses at most the fine-tunings under way (two for each training thread on a CPU, a chunk of 16
    for each task on an accelerator): a resumed run ends with the journal and archive that it would have had. The first
    Ctrl-C or SIGTERM lets the fine-tuning end that comes next in the journal.

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
        loop = _Loop(run, interrupts, callbacks, config.time_limit_seconds)
        for text, absence in guesses_without_operands(state).items() if state.generation == 0 else ():
            run.notice(f"The guess {text} is left out: {absence}")
        try:
            state, stopped = loop.until_stopped(state)
        except InfrastructureError as error:
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
    formulas = [guess if isinstance(guess, Expression) else parse(guess) for guess in guesses]
    arrays = [str(formula) for formula in formulas if formula.type != ()]
    if arrays:
        raise ValueError(
            f"a guess needs to give one number per channel, got an array from {'; '.join(arrays)}. "
            "Reduce it, as in sum(...)."
        )
    return SearchState(config, tasks, problem, tuple(str(formula) for formula in formulas))


def notify(callbacks: Sequence[object], method: str, *arguments: object) -> bool:
    """Calls a method of every callback that has it, unless the run was asked to stop.

    Args:
      callbacks: any objects.
      method: the name of the method.
      arguments: its arguments.

    Returns:
      Whether any callback has the method.

    Raises:
      KeyboardInterrupt: if a signal came while work was done that may be dropped (see `look_for_interrupts`).
    """
    look_for_interrupts()
    methods = [getattr(callback, method) for callback in callbacks if hasattr(callback, method)]
    for call in methods:
        call(*arguments)
    return bool(methods)


def notify_or_warn(callbacks: Sequence[object], message: str) -> None:
    """Tells a message to the callbacks by `on_message`, or shows it as a warning if none has that method.

    Args:
      callbacks: any objects.
      message: the message.

    Raises:
      KeyboardInterrupt: as `notify`.
    """
    if not notify(callbacks, "on_message", message):
        warn(message)


class _Loop:
    """Asks, evaluates, tells and saves a checkpoint, generation by generation."""

    def __init__(
        self,
        run: RunDirectory,
        interrupts: Interrupts,
        callbacks: Sequence[object],
        time_limit_seconds: float | None,
    ) -> None:
        assert run.journal is not None, "open_run comes first"
        self.run, self.journal, self.interrupts, self.callbacks = run, run.journal, interrupts, callbacks
        self.deadline = None if time_limit_seconds is None else time.monotonic() + time_limit_seconds

    def until_stopped(self, state: SearchState) -> tuple[SearchState, str]:
        """Runs generations until a stop; returns the last complete state and the reason."""
        while state.generation <= state.config.generations:
            try:
                state = self._generation(state)
            except SearchStopped as stop:
                self._raise_if_interrupted(state)
                return state, str(stop)
            except KeyboardInterrupt:
                self._raise_if_interrupted(state)
                raise
        return state, "generations"

    def _generation(self, state: SearchState) -> SearchState:
        """Runs one generation, writes it to the journal and saves it."""
        started = time.monotonic()
        reason_to_stop = partial(self._reason_to_stop, state)
        stop_if_asked(reason_to_stop)
        limited = self._limited_as_recorded(state)
        with self.interrupts.at_once(partial(stop_if_asked, reason_to_stop)):  # lost proposals come again
            batch = self._propose(limited)
        if not batch.proposals:
            raise SearchStopped("exhausted" if batch.tally.proposed else "evaluations")
        self._tell_lost_guesses(state, batch)
        records = evaluate(
            state,
            batch.proposals,
            on_record=self._save,
            on_retry=self.run.notice,
            should_stop=reason_to_stop,
            recorded=self.journal.recorded_outcomes(),
        )
        after = tell(state, records, tally=batch.tally, seconds=time.monotonic() - started)
        summary = after.summaries[-1]
        limit = limited.config.max_evaluations
        self.journal.write({"kind": "generation", **dataclasses.asdict(summary), "max_evaluations": limit})
        self.run.checkpoint(after)
        notify(self.callbacks, "on_generation", summary)
        return after

    def _limited_as_recorded(self, state: SearchState) -> SearchState:
        """The state with the limit on fine-tunings that the next generation had, if the journal holds it already."""
        line = self.journal.next_generation() or {}
        if line.get("generation") != state.generation or "max_evaluations" not in line:
            return state
        config = state.config.replace(max_evaluations=line["max_evaluations"])
        return dataclasses.replace(state, config=config)

    def _propose(self, state: SearchState) -> ProposalBatch:
        """Calls `propose`, which scores and trains base networks; tries again after an infrastructure error."""
        failures = 0
        while True:
            try:
                return propose(state, lambda: self._reason_to_stop(state))
            except FAILURES as error:
                failures += 1
                action = f"training base networks or scoring for generation {state.generation}"
                report_failure(action, failures, error, self.run.notice)
            gc.collect()  # frees device buffers that the traceback held

    def _tell_lost_guesses(self, state: SearchState, batch: ProposalBatch) -> None:
        """Tells the user which others of the given formulas cannot be scored, and why."""
        for guess in lost_guesses([proposal.candidate for proposal in batch.proposals]):
            if guess.text not in guesses_without_operands(state):  # which were told before the training
                self.run.notice(f"The guess {guess.text} is left out, because it is invalid: {guess.reason}.")

    def _save(self, record: Record) -> None:
        """Writes a record to the journal and reports fine-tunings."""
        if isinstance(record, Candidate):
            self.journal.write({"kind": "candidate", **candidate_to_json(record)})
            return
        if not record.is_cached:
            plain = dataclasses.asdict(record)
            del plain["is_cached"]
            self.journal.write({"kind": "trial", **plain})
        notify(self.callbacks, "on_evaluation", record)

    def _reason_to_stop(self, state: SearchState) -> str | None:
        if self.interrupts.hung_up:
            self.interrupts.hung_up = False
            self.run.event("hung up", "the terminal was closed; the run goes on")
        if self.interrupts.received is not None:
            return "interrupted"
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        return "time" if is_late and state.generation > 0 else None

    def _raise_if_interrupted(self, state: SearchState) -> None:
        if (number := self.interrupts.received) is None:
            return
        message = (
            f"stopped by signal {number} after {state.generation} complete generation(s) and {state.evaluations} "
            f"fine-tunings in them. Everything is saved in {self.run.path}; go on with resume=True (--resume)."
        )
        self.run.event("interrupted", message)
        raise SearchInterrupted(message, number)
