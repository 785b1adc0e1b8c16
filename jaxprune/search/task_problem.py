"""Tasks of networks and images as a `Problem`: turns functions into behaviours and trials into accuracies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from jaxprune.hosts.sharing import Hosts
from jaxprune.language.canonical import canonical_form
from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS, Vocabulary
from jaxprune.observation.observed import Observed
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.search.bank import measure_bank, reference_scores
from jaxprune.search.landscape import Landscape, channel_features, fit_landscape, held_out_correlation
from jaxprune.search.led_problem import SharedTrials
from jaxprune.search.problem import (
    SEARCH_POOL,
    BankFacts,
    Behaviour,
    Outcome,
    Prediction,
    RowUse,
    TaskInfo,
    Trial,
    TrialKey,
    as_kept,
    pack_kept,
    unpack_kept,
)
from jaxprune.tasks.base_networks import Base, BasePool, Entry, Pool
from jaxprune.tasks.round_plans import StackedPlan
from jaxprune.tasks.shared_pool import SharedPool
from jaxprune.tasks.task_identity import Identity
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task, check_unique
from jaxprune.training.batching import Batching, Convolution, Strategy
from jaxprune.training.trainer import Row, Trained, default_workers, map_in_order
from jaxprune.types import Invalid, Kept


class TaskProblem:
    """Tasks with their search bases, a `Problem` for `init_search`.

    Nothing is trained or compiled before it is needed.

    Args:
      tasks: the tasks that a function must be good at, with different names.
      seed: determines base networks and data orders.
      folder: where trained bases are stored between runs; None stores none.
      strategy, chunk, convolution: how networks are batched, see `Trainer`.
      on_base: called with (task name, base) for each base network that is ready.
      on_message: called with a sentence about each stored base network that is damaged; by default a warning.
      hosts: the processes that share all training; all of them make the problem, and only process 0 has a folder.

    Raises:
      ValueError: for no tasks, two of one name, or networks that cannot be pruned.
    """

    _shared: SharedTrials | None = None
    """How several processes run trials."""

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int = 0,
        *,
        folder: str | os.PathLike[str] | None = None,
        strategy: Strategy = "auto",
        chunk: int | None = None,
        convolution: Convolution = "auto",
        on_base: Callable[[str, Base], None] = lambda task, base: None,
        on_message: Callable[[str], None] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        check_unique(tasks)
        self._hosts = hosts
        self.seed, self.folder, self.on_base, self.on_message = seed, folder, on_base, on_message
        self.asked = Batching(strategy, chunk, convolution)
        self.programs = {task.name: TaskPrograms(task, **self.asked._asdict()) for task in tasks}
        fingerprints = {name: f"{programs.fingerprint}-{seed}" for name, programs in self.programs.items()}
        self.tasks = tuple(
            TaskInfo(task.name, task.weight, task.bases, task.extra_bases, fingerprints[task.name])
            for task in tasks
        )
        counts = {task.name: task.bases + task.extra_bases for task in tasks}
        self.pools = {
            name: self._pool(self.programs[name], "search", count, on_base) for name, count in counts.items()
        }
        self._landscapes: dict[str, Landscape] = {}
        self._banks: dict[str, BankFacts] = {}
        self._l2_predictions: dict[str, np.ndarray] = {}
        # What a search, its random control and the ablations of its winner have in common is fine-tuned once.
        self._outcomes: dict[TrialKey, Outcome] = {}
        if hosts is not None:
            self._shared = SharedTrials(hosts, self._run_here, self._capacity)

    @property
    def identities(self) -> dict[str, Identity]:
        """Task name -> what its fingerprint is made of: data, network and settings."""
        return {name: programs.identity for name, programs in self.programs.items()}

    def is_known_as(self, task: str, fingerprint: str) -> bool:
        """Tells whether a fingerprint, with any seed, is that of a task, also by the rule of earlier versions."""
        return self.programs[task].is_known_as(fingerprint.rpartition("-")[0])

    @property
    def batching(self) -> dict[str, dict[str, Any]]:
        """Task name -> how its fine-tunings are batched, as plain data with nothing left open."""
        return {name: programs.batching._asdict() for name, programs in self.programs.items()}

    @property
    def earlier_batching(self) -> dict[str, dict[str, Any]]:
        """The same as versions chose it that did not note it: rows of one length, convolutions by backend."""
        earlier = Batching(self.asked.strategy)
        return {name: programs.batching_of(earlier)._asdict() for name, programs in self.programs.items()}

    def take_row_use(self) -> RowUse:
        """Returns how rows of fine-tunings were used since the last call, see `row_use`."""
        rows: list[Row] = []
        for programs in self.programs.values():
            taken, programs.rows[:] = list(programs.rows), []
            rows += taken
        return row_use(rows)

    def absence(self, function: Expression) -> str:
        """Says which operands a function reads that the network of some task lacks; trains nothing."""
        reasons = {name: programs.absence(function) for name, programs in self.programs.items()}
        return next((f"on task {name}, {reason}" for name, reason in reasons.items() if reason), "")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The default vocabulary and registered operands, without those that some producer of some task lacks."""
        available = [available_operands(pool.observed(0)) for pool in self.pools.values()]
        registered = tuple(name for name, operand in OPERANDS.items() if operand.read is not None)
        everything = replace(DEFAULT_VOCABULARY, operands=(*DEFAULT_VOCABULARY.operands, *registered))
        return everything.restrict(frozenset.intersection(*available))

    def fit_landscapes(
        self, num_plans: int, on_status: Callable[[str], None] = lambda message: None
    ) -> dict[str, BankFacts]:
        """Measures what is missing in the banks of all tasks and fits their landscapes, see `LandscapeProblem`.

        Args:
          num_plans: number of plans for each base network.
          on_status: called with what is going on.

        Raises:
          ValueError: for a task of several rounds, or too few plans.
          RunDirectoryError: if a bank cannot be read or written.
        """
        for name, pool in self.pools.items():
            if name in self._banks and self._banks[name].plans == num_plans * pool.num_bases:
                continue

            def on_plan(done: int, total: int, name: str = name) -> None:
                on_status(f"bank of {name}: {done} of {total} plans fine-tuned")

            bank = measure_bank(pool, num_plans, on_plan=on_plan)
            features = channel_features(reference_scores(pool))
            self._landscapes[name] = landscape = fit_landscape(bank, features)
            (l2,) = pool.stacked_plans([library["l2"]])
            if isinstance(l2, Invalid):
                raise ValueError(
                    f"every difference is to l2, so task {name!r} needs a network that l2 can score; it is {l2}."
                )
            self._l2_predictions[name] = landscape.predict(l2.is_kept)
            content = np.packbits(bank.is_kept).tobytes() + bank.accuracies.tobytes()
            self._banks[name] = BankFacts(
                bank.accuracies.size,
                held_out_correlation(bank, features),
                hashlib.sha256(content).hexdigest()[:16],
            )
        return dict(self._banks)

    def behaviours(self, functions: Sequence[PruningFunction]) -> list[Behaviour | Invalid]:
        """Plans with every function on every search base; predicts their accuracies if landscapes are fitted.

        Args:
          functions: the functions.

        Returns:
          One behaviour per function; `Invalid` if the function is invalid on any base.
        """
        by_task = {name: pool.stacked_plans(functions) for name, pool in self.pools.items()}
        return [
            self._behaviour(function, {name: plans[i] for name, plans in by_task.items()})
            for i, function in enumerate(functions)
        ]

    def predict(self, functions: Sequence[PruningFunction]) -> list[Mapping[str, Prediction] | Invalid]:
        """Predicts what any pruning functions reach on the search bases, metrics without a formula among them.

        Args:
          functions: the functions.

        Returns:
          Per function task name -> prediction; `Invalid` if the function is invalid on any base.

        Raises:
          ValueError: if `fit_landscapes` was not called before.
        """
        if len(self._landscapes) < len(self.pools):
            raise ValueError(
                "predict needs landscapes of all tasks, got none yet. Call fit_landscapes before."
            )
        return [
            behaviour if isinstance(behaviour, Invalid) else behaviour.predicted
            for behaviour in self.behaviours(functions)
        ]

    def run(self, trial: Trial) -> Outcome:
        """Prunes and fine-tunes one network; returns its validation accuracy in percent."""
        if trial.key not in self._outcomes:
            trained = self.pools[trial.task].finetune_one(self._entry(trial))
            self._outcomes[trial.key] = _outcome(trained)
        return self._outcomes[trial.key]

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs many trials: on threads on a CPU, in vmapped rows per task on accelerators, on all processes.

        Args:
          trials: the trials.

        Returns:
          Their outcomes, in order.
        """
        if self._shared is None:
            yield from self._run_here(trials)
            return
        for pool in self.pools.values():
            pool.bases  # noqa: B018 - everybody needs them before
        missing = {trial.key: trial for trial in trials if trial.key not in self._outcomes}
        outcomes = self._shared.outcomes(list(missing.values()))
        for trial in trials:
            if trial.key in missing:
                self._outcomes[trial.key] = next(outcomes)
                del missing[trial.key]
            yield self._outcomes[trial.key]

    def _run_here(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs many trials in this process."""
        if not any(programs.is_vmapped for programs in self.programs.values()):
            yield from map_in_order(self.run, trials)
            return
        missing = {trial.key: trial for trial in trials if trial.key not in self._outcomes}
        # Each task trains a row when one of its results is needed, so that no more than that is lost by a kill.
        results = {
            name: pool.finetune([self._entry(trial) for trial in missing.values() if trial.task == name])
            for name, pool in self.pools.items()
        }
        for trial in trials:
            if trial.key not in self._outcomes:
                self._outcomes[trial.key] = _outcome(next(results[trial.task]))
            yield self._outcomes[trial.key]

    def final_pool(self, programs: TaskPrograms, on_base: Callable[[str, Base], None]) -> BasePool:
        """Returns the bases of the final report: networks from other initialisations, which no search sees.

        Args:
          programs: the machinery of a task, which need not be one of the problem's.
          on_base: called with (task name, base) for each base network that is ready.
        """
        return self._pool(programs, "final", programs.task.final_bases, on_base)

    def _pool(
        self, programs: TaskPrograms, pool: Pool, num_bases: int, on_base: Callable[[str, Base], None]
    ) -> BasePool:
        """Base networks of a task, stored where all of the problem are."""
        kind = BasePool if self._hosts is None else partial(SharedPool, hosts=self._hosts)
        return kind(
            programs,
            self.seed,
            pool,
            num_bases,
            folder=self.folder,
            on_base=on_base,
            on_message=self.on_message,
            again="go on with resume=True (--resume)",
        )

    def _capacity(self) -> int:
        """Returns how many trials one process runs well together: where they are vmapped, a row of each task."""
        rows = [programs.row_size for programs in self.programs.values() if programs.is_vmapped]
        return sum(rows) or 2 * default_workers()

    def _behaviour(
        self, function: PruningFunction, plans: dict[str, StackedPlan | Invalid]
    ) -> Behaviour | Invalid:
        """Joins the plans of one function on all tasks into its behaviour, with what landscapes predict."""
        digests: dict[str, tuple[str, ...]] = {}
        predicted: dict[str, Prediction] = {}
        is_kept: list[np.ndarray] = []
        fallbacks = ties = 0
        for name, plan in plans.items():
            if isinstance(plan, Invalid):
                return Invalid(f"task {name}, {plan.reason}")
            digests[name] = self._digests(name, function, plan.is_kept)
            if name in self._landscapes:
                accuracies = self._landscapes[name].predict(plan.is_kept)
                predicted[name] = _prediction(accuracies, self._l2_predictions[name])
            is_kept.append(plan.is_kept)
            fallbacks, ties = fallbacks + plan.num_fallbacks, ties + plan.num_ties
        return Behaviour(digests, fallbacks, ties, pack_kept(is_kept), predicted)

    def _digests(self, name: str, function: PruningFunction, is_kept: np.ndarray) -> tuple[str, ...]:
        """Returns a digest of a function's plan on each base; on a landscape, for speed, the bits themselves."""
        if name in self._landscapes:
            return tuple(bits.tobytes().hex() for bits in np.packbits(is_kept, axis=1))
        num_rounds, widths = len(self.programs[name].rounds), self._widths(name)
        return tuple(_digest(function, as_kept(bits, widths), num_rounds) for bits in is_kept)

    def _widths(self, name: str) -> dict[str, int]:
        """Group -> number of channels, of the groups that a task prunes."""
        programs = self.programs[name]
        return {group: programs.structure.widths[group] for group in programs.rounds[0].counts}

    def _entry(self, trial: Trial) -> Entry:
        if trial.pool != SEARCH_POOL:
            raise ValueError(f"a search's trials are on the pool {SEARCH_POOL!r}, got {trial.pool!r}.")
        kept = self._kept(trial) if trial.kept else None
        return Entry(trial.base, trial.repeat, trial.function, kept)

    def _kept(self, trial: Trial) -> Kept:
        """The first plan of a trial, from its packed plans on all bases."""
        widths = {name: self._widths(name) for name in self.pools}
        layout = [(name, base) for name, pool in self.pools.items() for base in range(pool.num_bases)]
        plans = unpack_kept(trial.kept, [sum(widths[name].values()) for name, _ in layout])
        return as_kept(plans[layout.index((trial.task, trial.base))], widths[trial.task])


def row_use(rows: Sequence[Row]) -> RowUse:
    """Sums up how devices used rows of members, each row weighted by the time that a row of its program takes.

    The rows of a program take equally long but for the first one, which compiles; so the fastest counts for all.

    Args:
      rows: of any programs.

    Example:
      >>> row_use([Row(1, 8, 8, 9.0), Row(1, 2, 8, 1.0), Row(2, 4, 8, 2.0)])
      RowUse(seconds=4.0, idle_seconds=1.75)
    """
    fastest: dict[int, float] = {}
    for row in rows:
        fastest[row.program] = min(row.seconds, fastest.get(row.program, row.seconds))
    seconds = sum(fastest[row.program] for row in rows)
    idle = sum(fastest[row.program] * (1 - row.num_members / row.size) for row in rows)
    return RowUse(float(seconds), float(idle))


def available_operands(observed: Observed) -> frozenset[str]:
    """Returns the names of the operands that every producer has."""
    has_gradients = observed.has_gradients or observed.gradient_source is not None
    absent = set() if has_gradients else {"GW", "GX"}
    for operands in observed.values():
        absent |= {name for name in ("gamma", "beta") if getattr(operands, name) is None}
        absent |= {"WO"} if operands.outgoing is None else set()
        absent |= {
            name for name, operand in OPERANDS.items() if operand.read and operand.read(operands) is None
        }
    return frozenset(OPERANDS) - absent


def kept_digest(kept: Kept) -> str:
    """Returns a short hash of a plan.

    Example:
      >>> kept_digest((("conv", (0, 2)),)) == kept_digest((("conv", (0, 2)),))
      True
    """
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:12]


def _outcome(trained: Trained) -> Outcome:
    """The validation accuracy in percent and the time of a fine-tuning."""
    return Outcome(float(trained.accuracies[-1]), trained.seconds)


def _prediction(accuracies: np.ndarray, of_l2: np.ndarray) -> Prediction:
    """Sums up [B] predicted accuracies beside those of l2."""
    differences = accuracies - of_l2
    num_bases = len(differences)
    se = float(np.std(differences, ddof=1)) / num_bases**0.5 if num_bases > 1 else 0.0
    return Prediction(float(np.mean(differences)), se, float(np.mean(accuracies)))


def _digest(function: PruningFunction, kept: Kept, num_rounds: int) -> str:
    """Returns the digest of a plan; with several rounds, that of the function too, which makes the later plans."""
    form = canonical_form(function) if isinstance(function, Expression) else function
    later: Kept = ((name_of(form), ()),) if num_rounds > 1 else ()
    return kept_digest(kept + later)
