"""The search: `init_search`, `ask`, `evaluate`, `tell` by hand, or `evolve_problem` with a run directory."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxprune.language.expression import Expression
from jaxprune.language.parsing import parse
from jaxprune.search.evaluation import (
    FAILURES,
    RETRIES,
    Proposal,
    Record,
    SearchStopped,
    TrialRecord,
    evaluate,
)
from jaxprune.search.interrupts import Interrupts, SearchInterrupted
from jaxprune.search.problem import InfrastructureError, Problem
from jaxprune.search.proposals import Asked, ask, propose
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.serialization import candidate_to_json
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import Candidate, GenerationSummary, Individual, SearchState, ancestry
from jaxprune.search.task_problem import TaskProblem
from jaxprune.search.update import tell
from jaxprune.tasks.base_networks import Base
from jaxprune.tasks.tasks import Task
from jaxprune.training.trainer import Strategy

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Callback",
    "EvolveConfig",
    "GenerationSummary",
    "Proposal",
    "SearchInterrupted",
    "SearchResult",
    "SearchState",
    "TrialRecord",
    "ancestry",
    "ask",
    "evaluate",
    "evolve_problem",
    "init_search",
    "tell",
]


class Callback:
    """What a search tells while it runs. Override what is of interest; every method does nothing."""

    def on_start(self, state: SearchState) -> None:
        """Called once, with a fresh state or the one that the run goes on from."""

    def on_evaluation(self, record: TrialRecord) -> None:
        """Called after every fine-tuning, cached ones included."""

    def on_generation(self, summary: GenerationSummary) -> None:
        """Called after every generation, when its checkpoint is on the disk."""

    def on_message(self, message: str) -> None:
        """Called with what a user should know: repairs, retries, why the search ended."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
      best: the leader by mean minus standard error, with its expression and fitness.
      archive: the Pareto front of fitness and complexity, simplest first.
      journal: path of the journal; its folder is the run directory.
      state: the state after the last complete generation.
      stopped: why it ended: "generations", "evaluations", "time" or "exhausted" (nothing new was found).
    """

    best: Individual
    archive: tuple[Individual, ...]
    journal: Path
    state: SearchState
    stopped: str

    def to_dataframe(self) -> pandas.DataFrame:
        """All evaluated candidates as a table, best first; needs pandas.

        Returns:
          One row per candidate: id, formula, mean, se, lower, complexity, origin, parents, generation,
          in_archive, and per task `TASK difference`, `TASK se`, `TASK bases`, `TASK accuracy`.
        """
        import pandas

        rows = []
        for member in self.state.ranked():
            candidate, fitness = member.candidate, member.fitness
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


def init_search(
    problem: Problem, config: EvolveConfig, guesses: Sequence[str | Expression] = ()
) -> SearchState:
    """The state before generation 0.

    Args:
      problem: what to search on.
      config: how.
      guesses: one's own formulas, which join generation 0.

    Returns:
      A state for `ask`.

    Raises:
      ValueError: if there are no tasks, two of one name, or a guess is not a pruning function.
    """
    tasks = tuple(problem.tasks)
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"a search needs one or more tasks with different names, got {names}.")
    parsed = [guess if isinstance(guess, Expression) else parse(guess) for guess in guesses]
    arrays = [str(guess) for guess in parsed if guess.type != ()]
    if arrays:
        raise ValueError(
            f"a guess needs to give one number per channel, got an array from {'; '.join(arrays)}. "
            "Reduce it, as in sum(...)."
        )
    return SearchState(config, tasks, problem, tuple(str(guess) for guess in parsed))


def evolve_problem(
    problem: Problem,
    config: EvolveConfig,
    run_dir: Path | str,
    *,
    callbacks: Sequence[object] = (),
    resume: bool = False,
    guesses: Sequence[str | Expression] = (),
    settings: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Searches until a stop, with everything on the disk after every fine-tuning.

    A kill at any moment loses at most the fine-tuning under way: resumed, the run ends with the journal and
    archive that it would have had. The first Ctrl-C or SIGTERM lets the fine-tuning under way end.

    Args:
      problem: what to search on.
      config: how, and when to stop. The time limit counts from this call and is kept between two
        fine-tunings; a generation it cuts short is not part of the result, but a resume goes on from there.
      run_dir: where journal, state and archive are written; created if missing.
      callbacks: objects with any of the methods of `Callback`.
      resume: go on with the run that is in `run_dir`; without one, start it.
      guesses: one's own formulas for generation 0.
      settings: further plain values for `config.json`, which a resume must repeat.

    Returns:
      The best candidate, the archive and the state.

    Raises:
      RunDirectoryError: if the directory is in use, not writable, full, or holds another run.
      SearchInterrupted: after Ctrl-C or SIGTERM.
      InfrastructureError: if training, scoring or a fine-tuning failed three times for reasons of its surroundings.
    """
    start = init_search(problem, config, guesses)
    tellers = _Tellers(callbacks)
    with RunDirectory(run_dir, tellers.message) as run, Interrupts() as interrupts:
        state = run.open_run(start, settings or {}, resume)
        run.event("resumed" if state.generation else "started", f"generation {state.generation}")
        tellers.start(state)
        loop = _Loop(run, interrupts, tellers, config.time_limit_seconds)
        try:
            state, stopped = loop.until_stopped(state)
        except InfrastructureError as error:
            run.event("failed", str(error))
            raise InfrastructureError(
                f"{error}. Everything before it is saved in {run.path}; when the cause is gone, go on with "
                "resume=True (--resume)."
            ) from error
        run.event("stopped", stopped)
        assert run.journal is not None
        archive = tuple(state.member(id_) for id_ in state.archive)
        return SearchResult(state.ranked()[0], archive, run.journal.path, state, stopped)


class _Loop:
    """Asks, evaluates, tells and checkpoints, generation by generation."""

    def __init__(
        self, run: RunDirectory, interrupts: Interrupts, tellers: _Tellers, time_limit_seconds: float | None
    ) -> None:
        self.run, self.interrupts, self.tellers = run, interrupts, tellers
        self.deadline = None if time_limit_seconds is None else time.monotonic() + time_limit_seconds

    def until_stopped(self, state: SearchState) -> tuple[SearchState, str]:
        while state.generation <= state.config.generations:
            try:
                told = self._generation(state)
            except SearchStopped as stop:
                self._raise_if_interrupted(state)
                return state, str(stop)
            except KeyboardInterrupt:
                self._raise_if_interrupted(state)
                raise
            if told is None:
                limit = state.config.max_evaluations
                return state, "exhausted" if limit is None else "evaluations"
            state = told
        return state, "generations"

    def _generation(self, state: SearchState) -> SearchState | None:
        """One generation, journaled and checkpointed; None if there is nothing left to evaluate."""
        journal = self.run.journal
        assert journal is not None
        started = time.monotonic()
        if reason := self._reason_to_stop(state):
            raise SearchStopped(reason)
        with self.interrupts.at_once():  # nothing is lost: it is a pure function of the state
            asked = self._asked(state)
        if not asked.proposals:
            return None
        records = evaluate(
            state,
            asked.proposals,
            on_record=self._keep,
            on_retry=self.run.notice,
            should_stop=lambda: self._reason_to_stop(state),
            recorded=journal.recorded_outcomes(),
        )
        told = tell(state, records, tally=asked.tally, seconds=time.monotonic() - started)
        summary = told.summaries[-1]
        journal.write({"kind": "generation", **dataclasses.asdict(summary)})
        self.run.checkpoint(told)
        self.tellers.generation(summary)
        return told

    def _asked(self, state: SearchState) -> Asked:
        """`propose`, tried again after a failure of its surroundings: it scores, and trains base networks."""
        failures = 0
        while True:
            try:
                return propose(state)
            except FAILURES as error:
                failures += 1
                told = f"training base networks or scoring for generation {state.generation} failed"
                cause = f"{type(error).__name__}: {error}"
                if failures > RETRIES:
                    raise InfrastructureError(
                        f"{told} {failures} times, the last time with {cause}"
                    ) from error
                self.run.notice(f"{told} ({cause}); trying again, {failures} of {RETRIES}")
            gc.collect()  # frees device buffers that the traceback held

    def _keep(self, record: Record) -> None:
        journal = self.run.journal
        assert journal is not None
        if isinstance(record, Candidate):
            journal.write({"kind": "candidate", **candidate_to_json(record)})
            return
        if not record.is_cached:
            plain = dataclasses.asdict(record)
            del plain["is_cached"]
            journal.write({"kind": "trial", **plain})
        self.tellers.evaluation(record)

    def _reason_to_stop(self, state: SearchState) -> str | None:
        if self.interrupts.received is not None:
            return "interrupted"
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        return "time" if is_late and state.generation > 0 else None

    def _raise_if_interrupted(self, state: SearchState) -> None:
        number = self.interrupts.received
        if number is None:
            return
        message = (
            f"stopped by signal {number} after {state.generation} complete generation(s) and {state.evaluations} "
            f"fine-tunings in them. Everything is saved in {self.run.path}; go on with resume=True (--resume)."
        )
        self.run.event("interrupted", message)
        raise SearchInterrupted(message, number)


class _Tellers:
    """All callbacks as one; a callback may lack any method."""

    def __init__(self, callbacks: Sequence[object]) -> None:
        self.callbacks = callbacks

    def start(self, state: SearchState) -> None:
        self._call("on_start", state)

    def evaluation(self, record: TrialRecord) -> None:
        self._call("on_evaluation", record)

    def generation(self, summary: GenerationSummary) -> None:
        self._call("on_generation", summary)

    def message(self, message: str) -> None:
        if not self._call("on_message", message):
            warnings.warn(message, stacklevel=2)

    def _call(self, name: str, argument: object) -> bool:
        methods = [getattr(callback, name) for callback in self.callbacks if hasattr(callback, name)]
        for method in methods:
            method(argument)
        return bool(methods)


# === merged: """`evolve`: tasks in, evolved pruning functions out."""


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
