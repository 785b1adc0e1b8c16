"""A task's base networks: independently trained, cached on disk, observed together; and what pruning does to them.

A pool is `"search"` (selection sees it) or `"final"` (trained after the search, for the report alone). Everything
random follows from (seed, task, pool, base, repeat), so that functions are compared on equal keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path as FilePath
from typing import Literal, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.files import explained
from jaxprune.keys import derive, generator
from jaxprune.language.library import library
from jaxprune.observation.observed import Observed
from jaxprune.pruning.planning import select
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.scoring.ranking import Ranking, rank_population
from jaxprune.structure.model_state import FlatState
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.checkpoint import load_network, save_network
from jaxprune.training.loop import batch_order, split_network
from jaxprune.training.trainer import Job, Trained, map_in_order
from jaxprune.types import Invalid, Kept

Pool = Literal["search", "final"]


@dataclass(frozen=True, eq=False)
class Base:
    """One trained network of a task, with its validation accuracy in percent."""

    index: int
    weights: FlatState
    accuracy: float


@dataclass(frozen=True)
class FirstRoundPlan:
    """A function's first-round plan on one base."""

    kept: Kept
    ranking: Ranking


@dataclass(frozen=True)
class Entry:
    """One network to prune and fine-tune.

    Args:
      base: which base.
      repeat: which data order and augmentation.
      function: plans every round; or None for a fixed or random plan, or a network from scratch.
      kept: the plan of the first round; None takes `function`'s, or random ones for `draw`, or starts from scratch.
      draw: number of a random draw.
    """

    base: int
    repeat: int = 0
    function: PruningFunction | None = None
    kept: Kept | None = None
    draw: int | None = None

    @property
    def is_scratch(self) -> bool:
        """Whether the slim shape is trained from a fresh initialisation."""
        return self.function is None and self.kept is None and self.draw is None


class BasePool:
    """The bases of one task and pool, ready to score, prune and fine-tune.

    Args:
      programs: the task's compiled machinery.
      seed: base networks and data orders follow from it.
      pool: "search" or "final".
      num_bases: how many; they are trained (or read back) at the first use of `bases`.
      folder: where trained bases are kept; None trains them anew each time.
      on_base: told about each base that is ready.
    """

    def __init__(
        self,
        programs: TaskPrograms,
        seed: int,
        pool: Pool,
        num_bases: int,
        *,
        folder: str | os.PathLike[str] | None = None,
        on_base: Callable[[str, Base], None] = lambda task, base: None,
    ) -> None:
        self.programs, self.task = programs, programs.task
        self.pool, self.num_bases, self.on_base = pool, num_bases, on_base
        self.key = derive(jax.random.key(seed), self.task.name, pool)
        self.folder = (
            None if folder is None else FilePath(folder) / f"{self.task.name}-{programs.fingerprint}-{seed}"
        )

    @cached_property
    def bases(self) -> tuple[Base, ...]:
        """The trained base networks."""
        found = {index: self._load(index) for index in range(self.num_bases)}
        missing = [index for index, base in found.items() if base is None]
        if self.programs.base_trainer.chosen == "vmap":
            trained: Iterator[Trained] = self.programs.base_trainer.run(
                self._base_job(index) for index in missing
            )
        else:
            trained = map_in_order(
                lambda i: next(self.programs.base_trainer.run([self._base_job(i)])), missing
            )
        for index, result in zip(missing, trained, strict=True):
            found[index] = base = Base(index, result.weights, float(result.accuracies[-1]))
            if self.folder is not None:
                with explained(f"save base network {self._path(index)}"):
                    save_network(self._path(index), base.weights, {"accuracy": base.accuracy})
            self.on_base(self.task.name, base)
        return tuple(base for base in found.values() if base is not None)

    def observed(self, base: int) -> Observed:
        """Operands of one base."""
        return self._stacks[base // self._stack_size].member(base % self._stack_size)

    def plans(self, functions: Sequence[PruningFunction]) -> list[list[FirstRoundPlan | Invalid]]:
        """First-round plans of every function on every base; one list per function, in base order."""
        counts = self.programs.rounds[0].counts
        found: list[list[FirstRoundPlan | Invalid]] = [[] for _ in functions]
        for stack in self._stacks if functions else ():
            ranked = cast(list[list[Ranking | Invalid]], rank_population(functions, stack))
            for plans, by_base in zip(found, ranked, strict=True):
                plans += [
                    one if isinstance(one, Invalid) else FirstRoundPlan(select(one.scores, counts), one)
                    for one in by_base
                ]
        return [plans[: self.num_bases] for plans in found]

    def random_kept(self, base: int, draw: int, round_index: int = 0) -> Kept:
        """A plan of uniformly random channels."""
        at = self.programs.rounds[round_index]
        rng = generator(derive(self.key, "random", base, draw, round_index))
        widths = at.structure.widths
        return tuple(
            (name, tuple(np.sort(rng.permutation(widths[name])[:count]).tolist()))
            for name, count in at.counts.items()
        )

    def finetune(self, entries: Sequence[Entry], *, evaluations: int = 1) -> Iterator[Trained]:
        """Prunes and fine-tunes every entry, all rounds; results in order, each as soon as it is known.

        `accuracies` holds `evaluations` of the last round. Members of one base and repeat share data order and keys.
        """
        if self.programs.is_vmapped:
            source = iter(entries)
            while chunk := list(islice(source, self.programs.chunk)):
                yield from self._finetune(chunk, evaluations)
        else:
            yield from map_in_order(lambda entry: self.finetune_one(entry, evaluations=evaluations), entries)

    def finetune_one(self, entry: Entry, *, evaluations: int = 1) -> Trained:
        """`finetune` of one entry, in the caller's thread."""
        return self._finetune([entry], evaluations)[0]

    @property
    def _stack_size(self) -> int:
        return self.task.bases + self.task.extra_bases

    @cached_property
    def _stacks(self) -> tuple[Observed, ...]:
        """Operands of all bases in stacks of one size, the last one padded, so that no pool compiles anew."""
        observer = self.programs.observer(0)
        members = [observer(base.weights) for base in self.bases]
        members += [members[-1]] * (-len(members) % self._stack_size)
        return tuple(
            Observed.stack(members[first : first + self._stack_size])
            for first in range(0, len(members), self._stack_size)
        )

    def _finetune(self, entries: Sequence[Entry], evaluations: int) -> list[Trained]:
        scratch = [entry for entry in entries if entry.is_scratch]
        pruned = [entry for entry in entries if not entry.is_scratch]
        trainer = self.programs.scratch_trainer(evaluations=evaluations) if scratch else None
        done = (
            dict(zip(scratch, trainer.run(map(self._scratch_job, scratch)), strict=True)) if trainer else {}
        )
        weights = [self.bases[entry.base].weights for entry in pruned]
        seconds = np.zeros(len(pruned))
        results: list[Trained] = []
        for r in range(len(self.programs.rounds)):
            last = r == len(self.programs.rounds) - 1
            kept = [self._kept(entry, r, array) for entry, array in zip(pruned, weights, strict=True)]
            jobs = [self._job(*each, r) for each in zip(pruned, weights, kept, strict=True)]
            results = list(self.programs.trainer(r, evaluations=evaluations if last else 1).run(jobs))
            seconds += [result.seconds for result in results]
            weights = [result.weights for result in results]
            if self.task.finetune == "masked":
                weights = [
                    self.programs.prune(r, array, plan) for array, plan in zip(weights, kept, strict=True)
                ]
        for entry, array, result, spent in zip(pruned, weights, results, seconds, strict=True):
            done[entry] = Trained(array, result.accuracies, float(spent))
        return [done[entry] for entry in entries]

    def _kept(self, entry: Entry, round_index: int, weights: FlatState) -> Kept:
        if round_index == 0 and entry.kept is not None:
            return entry.kept
        if entry.draw is not None:
            return self.random_kept(entry.base, entry.draw, round_index)
        counts = self.programs.rounds[round_index].counts
        if entry.function is None:
            raise ValueError(
                "an entry with a fixed plan is for tasks of one round; give a function or a draw."
            )
        if round_index == 0:
            plan = self.plans([entry.function])[0][entry.base]
            if isinstance(plan, Invalid):
                raise ValueError(
                    f"{name_of(entry.function)} needs to be valid on task {self.task.name!r}, base {entry.base}; "
                    f"it is {plan}."
                )
            return plan.kept
        observed = self.programs.observer(round_index)(weights)
        ranking, fallback = cast(
            list[Ranking | Invalid], rank_population([entry.function, library["l2"]], observed)
        )
        if isinstance(ranking, Invalid):
            # Valid on the base but not on what an earlier round left (a channel that died, say): ordered by l2, the
            # rule that also holds for a single group without a ranking.
            ranking = fallback
        if isinstance(ranking, Invalid):
            # The weights diverged in an earlier round: any plan will do, and its accuracy tells.
            return tuple((name, tuple(range(count))) for name, count in counts.items())
        return select(ranking.scores, counts)

    def _job(self, entry: Entry, weights: FlatState, kept: Kept, round_index: int) -> Job:
        key = derive(self.key, "finetune", entry.base, entry.repeat, round_index)
        order = batch_order(derive(key, "order"), self.programs.data.x.shape[0], self.programs.recipe())
        if self.task.finetune == "masked":
            return Job(weights, order, derive(key, "train"), self.programs.masks(round_index, kept))
        return Job(self.programs.prune(round_index, weights, kept), order, derive(key, "train"))

    def _scratch_job(self, entry: Entry) -> Job:
        key = derive(self.key, "scratch", entry.base, entry.repeat)
        programs = self.programs
        full = split_network(self.task.model(nnx.Rngs(derive(key, "init"))))[1]
        # a slice of a fresh network is a fresh slim network, but for its scale
        for r, at in enumerate(programs.rounds):
            full = programs.prune(
                r, full, tuple((name, tuple(range(count))) for name, count in at.counts.items())
            )
        recipe = programs.recipe(is_scratch=True)
        weights = _rescaled(full, programs)
        return Job(
            weights, batch_order(derive(key, "order"), programs.data.x.shape[0], recipe), derive(key, "train")
        )

    def _base_job(self, index: int) -> Job:
        key = derive(self.key, "base", index)
        recipe = self.programs.base_trainer.recipe
        weights = split_network(self.task.model(nnx.Rngs(derive(key, "init"))))[1]
        order = batch_order(derive(key, "order"), self.programs.data.x.shape[0], recipe)
        return Job(weights, order, derive(key, "train"))

    def _path(self, index: int) -> FilePath:
        assert self.folder is not None
        return self.folder / f"{self.pool}-{index}"

    def _load(self, index: int) -> Base | None:
        if self.folder is None:
            return None
        loaded = load_network(self._path(index), split_network(self.programs.model)[1])
        if loaded is None:
            return None
        base = Base(index, loaded[0], loaded[1]["accuracy"])
        self.on_base(self.task.name, base)
        return base


def _rescaled(weights: FlatState, programs: TaskPrograms) -> FlatState:
    """Kernels scaled to their smaller fan-in, as an initialiser for the slim shape would have drawn them."""
    full = split_network(programs.model)[1]

    def fan_in(shape: tuple[int, ...]) -> int:
        return int(np.prod(shape[:-1]))

    return {
        path: array * float(np.sqrt(fan_in(full[path].shape) / fan_in(array.shape)))
        if array.ndim >= 2
        else array
        for path, array in weights.items()
    }
