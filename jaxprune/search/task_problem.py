"""Real tasks as a problem that can be searched on: functions to behaviours, trials to validation accuracies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from jaxprune.language.canonical import canonical_form
from jaxprune.language.expression import Expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS, Vocabulary
from jaxprune.observation.observed import Observed
from jaxprune.search.problem import SEARCH_POOL, Behaviour, Outcome, TaskInfo, Trial, pack_kept
from jaxprune.tasks.base_networks import Base, BasePool, Entry, FirstRoundPlan
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task, check_unique
from jaxprune.training.trainer import Strategy, map_in_order
from jaxprune.types import Invalid, Kept


class TaskProblem:
    """Tasks with their search bases: a `Problem` for `init_search`.

    Nothing is trained or compiled before the first question.

    Args:
      tasks: what a function must be good at; different names.
      seed: base networks and data orders follow from it.
      folder: where trained bases are kept between runs; None keeps none.
      strategy: how members are batched, see `training/trainer.py`.
      on_base: told (task name, base) about each base network that is ready.

    Raises:
      ValueError: for no tasks, two of one name, or networks that cannot be pruned.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int = 0,
        *,
        folder: str | os.PathLike[str] | None = None,
        strategy: Strategy = "auto",
        on_base: Callable[[str, Base], None] = lambda task, base: None,
    ) -> None:
        check_unique(tasks)
        self.seed, self.folder, self.on_base = seed, folder, on_base
        self._kept: dict[tuple[str, int, str], Kept] = {}
        self.programs = {task.name: TaskPrograms(task, strategy=strategy) for task in tasks}
        self.tasks = tuple(
            TaskInfo(
                task.name,
                task.weight,
                task.bases,
                task.extra_bases,
                f"{self.programs[task.name].fingerprint}-{seed}",
            )
            for task in tasks
        )
        self.pools = {
            task.name: BasePool(
                self.programs[task.name],
                seed,
                "search",
                task.bases + task.extra_bases,
                folder=folder,
                on_base=on_base,
            )
            for task in tasks
        }

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The default vocabulary and one's own operands, less what some producer of some task lacks."""
        names = [available_operands(pool.observed(0)) for pool in self.pools.values()]
        own = tuple(name for name, operand in OPERANDS.items() if operand.read is not None)
        everything = replace(DEFAULT_VOCABULARY, operands=(*DEFAULT_VOCABULARY.operands, *own))
        return everything.restrict(frozenset.intersection(*names))

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        """The plans of every function on every search base, as digests; invalid if it is so on any base."""
        by_task = {name: pool.plans(functions) for name, pool in self.pools.items()}
        for name, plans in by_task.items():
            self._kept |= {
                (name, base, _digest(function, plan, self.programs[name])): plan.kept
                for function, by_base in zip(functions, plans, strict=True)
                for base, plan in enumerate(by_base)
                if isinstance(plan, FirstRoundPlan)
            }
        return [
            _behaviour(function, {name: plans[i] for name, plans in by_task.items()}, self.programs)
            for i, function in enumerate(functions)
        ]

    def run(self, trial: Trial) -> Outcome:
        """Prunes and fine-tunes one network: the validation accuracy in percent."""
        trained = self.pools[trial.task].finetune_one(self._entry(trial))
        return Outcome(float(trained.accuracies[-1]), trained.seconds)

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """`run` on each, in order: on threads on a CPU, in vmapped chunks per task on an accelerator."""
        if not any(programs.is_vmapped for programs in self.programs.values()):
            yield from map_in_order(self.run, trials)
            return
        outcomes: dict[int, Outcome] = {}
        for name, pool in self.pools.items():
            numbers = [i for i, trial in enumerate(trials) if trial.task == name]
            for i, trained in zip(
                numbers, pool.finetune([self._entry(trials[i]) for i in numbers]), strict=True
            ):
                outcomes[i] = Outcome(float(trained.accuracies[-1]), trained.seconds)
        yield from (outcomes[i] for i in range(len(trials)))

    def final_pool(self, name: str, num_bases: int | None = None) -> BasePool:
        """The bases of the final report, which no search sees: other networks from other initialisations."""
        programs = self.programs[name]
        count = programs.task.final_bases if num_bases is None else num_bases
        return BasePool(programs, self.seed, "final", count, folder=self.folder, on_base=self.on_base)

    def _entry(self, trial: Trial) -> Entry:
        if trial.pool != SEARCH_POOL:
            raise ValueError(f"a search's trials are on the pool {SEARCH_POOL!r}, got {trial.pool!r}.")
        kept = self._kept.get(
            (trial.task, trial.base, trial.digest)
        )  # None in a process that did not ask for it
        return Entry(trial.base, trial.repeat, trial.function, kept)


def available_operands(observed: Observed) -> frozenset[str]:
    """Names of the operands that every producer has."""
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
    """A short hash of a plan.

    Example:
      >>> kept_digest((("conv", (0, 2)),)) == kept_digest((("conv", (0, 2)),))
      True
    """
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:12]


def _behaviour(
    function: Expression, plans: dict[str, list[FirstRoundPlan | Invalid]], programs: dict[str, TaskPrograms]
) -> Behaviour | Invalid:
    digests: dict[str, tuple[str, ...]] = {}
    packed: list[np.ndarray] = []
    fallbacks = ties = 0
    for name, by_base in plans.items():
        good: list[FirstRoundPlan] = []
        for index, plan in enumerate(by_base):
            if isinstance(plan, Invalid):
                return Invalid(f"task {name}, base {index}: {plan.reason}")
            good.append(plan)
        digests[name] = tuple(_digest(function, plan, programs[name]) for plan in good)
        widths = programs[name].structure.widths
        for plan in good:
            fallbacks += len(plan.ranking.fallback_groups)
            ties += plan.ranking.num_ties
            for group, kept in plan.kept:
                packed.append(np.isin(np.arange(widths[group]), kept))
    return Behaviour(digests, fallbacks, ties, pack_kept(packed))


def _digest(function: Expression, plan: FirstRoundPlan, programs: TaskPrograms) -> str:
    """Equal plans of the first round say nothing about those of later ones: there only equal functions are equal."""
    later: Kept = ((str(canonical_form(function)), ()),) if len(programs.rounds) > 1 else ()
    return kept_digest(plan.kept + later)
