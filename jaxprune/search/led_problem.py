"""A problem whose fine-tunings several processes share; the search around it runs on process 0 alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from jaxprune.hosts.sharing import Hosts
from jaxprune.language.expression import Expression
from jaxprune.language.parsing import parse
from jaxprune.language.vocabulary import Vocabulary
from jaxprune.search.problem import BatchProblem, Behaviour, Outcome, Problem, TaskInfo, Trial
from jaxprune.types import Invalid

CAPACITY = 4
"""Trials of a block for each process, where nobody knows better."""

_FURTHER = (
    "absence",
    "identities",
    "is_known_as",
    "fit_landscapes",
    "batching",
    "earlier_batching",
    "take_row_use",
)
"""What the protocols of structured, identified, landscape and batched problems ask for."""


class SharedTrials:
    """Trials that are dealt out to all processes of a job.

    Outcomes travel as JSON, which keeps floats exactly, so that the journal is that of one process.

    Args:
      hosts: the processes, all of which make this.
      run_many: runs the share of this process.
      capacity: returns the number of trials that one process runs well together.
    """

    def __init__(
        self,
        hosts: Hosts,
        run_many: Callable[[Sequence[Trial]], Iterable[Outcome]],
        capacity: Callable[[], int],
    ) -> None:
        self._hosts, self._run_many, self._capacity = hosts, run_many, capacity
        hosts.offer("trials", self._run_share)

    def outcomes(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs trials on all processes; for process 0.

        Args:
          trials: the trials.

        Yields:
          Their outcomes, in order.

        Raises:
          HostsError: if a process failed; trying again cannot help.
        """
        rows = [[*trial.key, str(trial.function), trial.kept] for trial in trials]
        for result in self._hosts.map("trials", rows, self._capacity(), [trial.task for trial in trials]):
            yield Outcome(*json.loads(result))

    def _run_share(self, rows: list[Any]) -> Iterator[bytes]:
        """Runs the trials of this process."""
        trials = [
            Trial(task, pool, base, repeat, digest, parse(text), kept)
            for task, pool, base, repeat, digest, text, kept in rows
        ]
        for _, outcome in zip(trials, self._run_many(trials), strict=False):
            yield json.dumps([outcome.accuracy, outcome.seconds]).encode()


class LedProblem:
    """Another problem, with its trials dealt out to all processes of a job.

    All processes make one around the same problem. Then process 0 searches on it, and the others `serve`. Everything
    but the trials, scoring for instance, happens on process 0. A `TaskProblem` shares more by itself, if it is given
    the processes.

    Args:
      problem: the problem. It is a structured, identified, landscape or batched problem here if it is one.
      hosts: the processes.
      capacity: number of trials that one process runs well together.
    """

    def __init__(self, problem: Problem, hosts: Hosts, *, capacity: int = CAPACITY) -> None:
        self._problem = problem
        for name in _FURTHER:  # in the instance, where the check of a protocol looks
            if hasattr(problem, name):
                setattr(self, name, getattr(problem, name))
        run_many = problem.run_many if isinstance(problem, BatchProblem) else partial(map, problem.run)
        self._shared = SharedTrials(hosts, run_many, lambda: capacity)

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of the problem."""
        return self._problem.tasks

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the problem."""
        return self._problem.vocabulary

    def behaviours(self, functions: Sequence[Expression]) -> Sequence[Behaviour | Invalid]:
        """Returns the behaviours of functions, computed here.

        Args:
          functions: the functions.
        """
        return self._problem.behaviours(functions)

    def run(self, trial: Trial) -> Outcome:
        """Runs one trial.

        Args:
          trial: the trial.
        """
        return next(self.run_many([trial]))

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs trials on all processes, see `SharedTrials`.

        Args:
          trials: the trials.
        """
        return self._shared.outcomes(trials)
