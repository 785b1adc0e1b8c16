"""Base networks of a task: trained independently, cached on disk, observed together, then pruned and fine-tuned.

A pool is `"search"` (used for selection) or `"final"` (trained after the search, for the report alone). Everything
random follows from (seed, task, pool, base, repeat), so that all functions are compared on equal keys.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from pathlib import Path as FilePath
from typing import Literal, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.files import check_writable, explained, put_aside
from jaxprune.keys import derive, generator
from jaxprune.observation.covariances import Covariance
from jaxprune.observation.observed import Observed
from jaxprune.pruning.planning import highest, select
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.scoring.ranking import Ranking, rank_population, rank_stack
from jaxprune.structure.model_state import FlatState
from jaxprune.tasks.round_plans import (
    FirstRoundPlan,
    StackedPlan,
    later_kept,
    plan_sequentially,
    stack_plans,
)
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.checkpoint import DamagedNetworkError, load_network, save_network
from jaxprune.training.loop import batch_order, split_network
from jaxprune.training.recipes import Recipe
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
class Entry:
    """One network to prune and fine-tune.

    Args:
      base: number of the base network.
      repeat: number of the data order and augmentation.
      function: chooses the channels of every round; None for fixed or random channels, or training from scratch.
      kept: channels kept in the first round; None to take those of `function`, or random ones if there is a `draw`,
        or to train from scratch.
      draw: number of a random draw of channels.
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
    """The base networks of one task and pool, ready to score, prune and fine-tune.

    Args:
      programs: the task's compiled programs.
      seed: determines base networks and data orders.
      pool: "search" or "final".
      num_bases: number of base networks; they are trained (or read from disk) at the first use of `bases`.
      folder: where trained base networks are cached; None trains them again each time.
      on_base: called with (task name, base) for each base network that is ready.
      on_message: called with a sentence about each stored base network that is damaged; by default a warning.
      again: how to go on after a base network could not be stored, for the message.

    Raises:
      RunDirectoryError: if a base network is not stored yet, and it cannot be stored in the folder.
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
        on_message: Callable[[str], None] | None = None,
        again: str = "start again",
    ) -> None:
        self.programs, self.task, self.seed = programs, programs.task, seed
        self.pool, self.num_bases, self.on_base = pool, num_bases, on_base
        self.on_message = on_message or warn
        self.key = derive(jax.random.key(seed), self.task.name, pool)
        self.folder = (
            None if folder is None else FilePath(folder) / f"{self.task.name}-{programs.fingerprint}-{seed}"
        )
        self._again = again
        if self.folder is not None:
            self._check_folder()

    @cached_property
    def bases(self) -> tuple[Base, ...]:
        """The trained base networks."""
        bases = {index: base for index in range(self.num_bases) if (base := self._load(index)) is not None}
        missing = [index for index in range(self.num_bases) if index not in bases]
        for index, result in zip(missing, self._train_missing(missing), strict=True):
            bases[index] = base = Base(index, result.weights, float(result.accuracies[-1]))
            if self.folder is not None:
                with self._storing(f"save base network {self.folder / f'{self.pool}-{index}'}"):
                    self._save(base)
            self.on_base(self.task.name, base)
        return tuple(bases[index] for index in range(self.num_bases))

    def observed(self, base: int) -> Observed:
        """Returns the operands of one base network."""
        return self._stacks[base // self._stack_size].member(base % self._stack_size)

    def plans(self, functions: Sequence[PruningFunction]) -> list[list[FirstRoundPlan | Invalid]]:
        """Plans the first round of every function on every base network.

        Args:
          functions: the pruning functions.

        Returns:
          For each function a list with its plan, or why there is none, on each base network in order.
        """
        if self._is_sequential:
            weights = [base.weights for base in self.bases]
            return [[plan_sequentially(self.programs, f, own) for own in weights] for f in functions]
        counts = self.programs.rounds[0].counts
        plans: list[list[FirstRoundPlan | Invalid]] = [[] for _ in functions]
        for stack in self._stacks if functions else ():
            ranked = cast(list[list[Ranking | Invalid]], rank_population(functions, stack))
            for function_plans, rankings in zip(plans, ranked, strict=True):
                function_plans += [
                    ranking
                    if isinstance(ranking, Invalid)
                    else FirstRoundPlan(select(ranking.scores, counts), ranking)
                    for ranking in rankings
                ]
        return [function_plans[: self.num_bases] for function_plans in plans]

    def stacked_plans(self, functions: Sequence[PruningFunction]) -> list[StackedPlan | Invalid]:
        """Plans the first round of every function on all base networks at once, as `plans` does one by one.

        Args:
          functions: the pruning functions.

        Returns:
          For each function its plans, or why it is invalid on the first base where it is.
        """
        if self._is_sequential:
            widths = self.programs.structure.widths
            return [stack_plans(own, widths) for own in self.plans(functions)]
        counts = self.programs.rounds[0].counts
        by_stack = [rank_stack(functions, stack) for stack in self._stacks] if functions else []
        plans: list[StackedPlan | Invalid] = []
        for rankings in zip(*by_stack, strict=True):
            problems = {
                stack * self._stack_size + member: problem
                for stack, ranking in enumerate(rankings)
                for member, problem in ranking.problems.items()
            }
            first = min((base for base in problems if base < self.num_bases), default=None)
            if first is not None:
                plans.append(Invalid(f"base {first}: {problems[first].reason}"))
                continue
            is_kept = np.block(
                [
                    [highest(ranking.scores[name], count) for name, count in counts.items()]
                    for ranking in rankings
                ]
            )
            fallbacks = sum(int(each.sum()) for ranking in rankings for each in ranking.is_fallback.values())
            ties = sum(int(ranking.num_ties.sum()) for ranking in rankings)
            plans.append(StackedPlan(is_kept[: self.num_bases], fallbacks, ties))
        return plans

    def random_kept(self, base: int, draw: int, round_index: int = 0) -> Kept:
        """Draws which channels to keep uniformly at random.

        Args:
          base: number of the base network.
          draw: number of the draw.
          round_index: number of the round, 0 for the first.
        """
        this_round = self.programs.rounds[round_index]
        rng = generator(derive(self.key, "random", base, draw, round_index))
        widths = this_round.structure.widths
        return tuple(
            (name, tuple(np.sort(rng.permutation(widths[name])[:count]).tolist()))
            for name, count in this_round.counts.items()
        )

    def finetune(
        self, entries: Sequence[Entry], *, evaluations: int = 1, with_weights: bool = False
    ) -> Iterator[Trained]:
        """Prunes and fine-tunes every entry through all rounds.

        Entries with the same base and repeat have the same data order and keys.

        Args:
          entries: the networks to prune and fine-tune.
          evaluations: number of evaluations in the last round.
          with_weights: whether the weights are needed; several processes send them only then.

        Yields:
          The result of each entry in order, as soon as it is known; `accuracies` [evaluations] are of the last round.
        """
        if self.programs.is_vmapped:
            size = self.programs.row_size
            for first in range(0, len(entries), size):
                yield from self._finetune(entries[first : first + size], evaluations)
        else:
            yield from map_in_order(lambda entry: self.finetune_one(entry, evaluations=evaluations), entries)

    def finetune_one(self, entry: Entry, *, evaluations: int = 1) -> Trained:
        """Prunes and fine-tunes one entry as `finetune` does, in the caller's thread."""
        return self._finetune([entry], evaluations)[0]

    @property
    def _is_sequential(self) -> bool:
        """Whether groups are scored one after another."""
        return self.task.schedule.scoring == "sequential"

    @property
    def _stack_size(self) -> int:
        """Number of base networks that are scored together."""
        return self.task.bases + self.task.extra_bases

    @cached_property
    def _stacks(self) -> tuple[Observed, ...]:
        """Operands of all base networks in stacks of one size; the last is padded, so that no pool compiles again."""
        observer = self.programs.observer(0)
        members = [observer(base.weights) for base in self.bases]
        members += [members[-1]] * (-len(members) % self._stack_size)
        return tuple(
            Observed.stack(members[first : first + self._stack_size])
            for first in range(0, len(members), self._stack_size)
        )

    def _train_missing(self, missing: Sequence[int]) -> Iterator[Trained]:
        """Trains base networks, and yields them in order."""
        trainer = self.programs.base_trainer
        if trainer.chosen == "vmap":
            return trainer.run(map(self._base_job, missing))
        return map_in_order(lambda index: next(trainer.run([self._base_job(index)])), missing)

    def _finetune(self, entries: Sequence[Entry], evaluations: int) -> list[Trained]:
        """Prunes and fine-tunes entries together, round by round."""
        programs = self.programs
        scratch = [entry for entry in entries if entry.is_scratch]
        pruned = [entry for entry in entries if not entry.is_scratch]
        done: dict[Entry, Trained] = {}
        if scratch:
            trainer = programs.scratch_trainer(evaluations=evaluations)
            done = dict(zip(scratch, trainer.run(map(self._scratch_job, scratch)), strict=True))
        weights = [self.bases[entry.base].weights for entry in pruned]
        seconds = np.zeros(len(pruned))
        results: list[Trained] = []
        for r in range(len(programs.rounds)):
            is_last = r == len(programs.rounds) - 1
            kept = [self._kept(entry, r, before) for entry, before in zip(pruned, weights, strict=True)]
            jobs = [self._round_job(*inputs, r) for inputs in zip(pruned, weights, kept, strict=True)]
            results = list(programs.trainer(r, evaluations=evaluations if is_last else 1).run(jobs))
            seconds += [result.seconds for result in results]
            weights = [result.weights for result in results]
            if self.task.finetune == "masked":
                weights = [programs.prune(r, full, plan) for full, plan in zip(weights, kept, strict=True)]
        for entry, slim, result, total in zip(pruned, weights, results, seconds, strict=True):
            done[entry] = Trained(slim, result.accuracies, float(total))
        return [done[entry] for entry in entries]

    def _kept(self, entry: Entry, round_index: int, weights: FlatState) -> Kept:
        """Which channels an entry keeps in a round, given the weights before it."""
        if round_index == 0 and entry.kept is not None:
            return entry.kept
        if entry.draw is not None:
            return self.random_kept(entry.base, entry.draw, round_index)
        if entry.function is None:
            raise ValueError(
                "an entry with a fixed plan is for tasks of one round; give a function or a draw."
            )
        if round_index == 0:
            if self._is_sequential:
                plan = plan_sequentially(self.programs, entry.function, weights)
            else:
                plan = self.plans([entry.function])[0][entry.base]
            if isinstance(plan, Invalid):
                raise ValueError(
                    f"{name_of(entry.function)} needs to be valid on task {self.task.name!r}, base {entry.base}; "
                    f"it is {plan}."
                )
            return plan.kept
        return later_kept(self.programs, entry.function, weights, round_index)

    def _covariances(self, base: int, weights: FlatState, round_index: int) -> Mapping[str, Covariance]:
        """Covariances of what enters the consumers, before a round of a network of some base."""
        if round_index:
            return self.programs.observer(round_index)(weights).covariances()
        stack, index = self._stacks[base // self._stack_size], base % self._stack_size
        return stack.cached(("covariances", index), lambda: stack.member(index).covariances())

    def _round_job(self, entry: Entry, weights: FlatState, kept: Kept, round_index: int) -> Job:
        """The fine-tuning of one entry in one round."""
        key = derive(self.key, "finetune", entry.base, entry.repeat, round_index)
        if self.programs.recipe().compensate:
            covariances = self._covariances(entry.base, weights, round_index)
            weights = self.programs.compensate(round_index, weights, kept, covariances)
        if self.task.finetune == "masked":
            return self._job(key, weights, self.programs.recipe(), self.programs.masks(round_index, kept))
        return self._job(key, self.programs.prune(round_index, weights, kept), self.programs.recipe())

    def _scratch_job(self, entry: Entry) -> Job:
        """The training of the final slim shape from a fresh initialisation."""
        key = derive(self.key, "scratch", entry.base, entry.repeat)
        weights = self._initial_weights(key)
        fan_in = {path: prod(array.shape[:-1]) for path, array in weights.items()}
        # A slice of a fresh network is a fresh slim network but for the scale of its kernels.
        for r, this_round in enumerate(self.programs.rounds):
            kept = tuple((name, tuple(range(count))) for name, count in this_round.counts.items())
            weights = self.programs.prune(r, weights, kept)
        weights = {
            path: array * sqrt(fan_in[path] / prod(array.shape[:-1])) if array.ndim >= 2 else array
            for path, array in weights.items()
        }
        return self._job(key, weights, self.programs.recipe(is_scratch=True))

    def _base_job(self, index: int) -> Job:
        """The training of one base network."""
        key = derive(self.key, "base", index)
        return self._job(key, self._initial_weights(key), self.programs.base_trainer.recipe)

    def _initial_weights(self, key: jax.Array) -> FlatState:
        """Weights of a freshly initialised network of the task."""
        return split_network(self.task.model(nnx.Rngs(derive(key, "init"))))[1]

    def _job(self, key: jax.Array, weights: FlatState, recipe: Recipe, masks: FlatState | None = None) -> Job:
        """A training run whose data order and augmentation follow from `key`."""
        order = batch_order(derive(key, "order"), self.programs.data.x.shape[0], recipe)
        return Job(weights, order, derive(key, "train"), masks)

    def _load(self, index: int) -> Base | None:
        """Reads a cached base network, if there is one; one that is damaged is put aside and trained again.

        It follows from the task, the seed and its number, so that nothing is lost; what was stored is kept under
        another name, because it may be something else that a user wants back.
        """
        if self.folder is None:
            return None
        like = split_network(self.programs.model)[1]
        for folder in self._folders():
            path = folder / f"{self.pool}-{index}"
            try:
                loaded = load_network(
                    path, like, self._identity(index, folder), is_checked=folder == self.folder
                )
            except DamagedNetworkError as error:
                with self._storing(f"put the damaged base network {path} aside"):
                    aside = put_aside(path)
                self.on_message(
                    f"base network {path} is not used: {error}. It is kept as {aside.name}, and the network is "
                    "trained again, to the same weights if libraries and machine are the same."
                )
                continue
            if loaded is not None:
                base = Base(index, loaded[0], loaded[1]["accuracy"])
                if folder != self.folder:  # so that it is found even if JAX's text of the network changes
                    with contextlib.suppress(OSError):
                        self._save(base)
                self.on_base(self.task.name, base)
                return base
        return None

    def _check_folder(self) -> None:
        """Checks before any training that base networks can be stored, if one is not stored yet."""
        assert self.folder is not None
        for index in range(self.num_bases):
            if not any(os.path.lexists(folder / f"{self.pool}-{index}") for folder in self._folders()):
                with self._storing(f"store base network {index} of task {self.task.name} in {self.folder}"):
                    check_writable(self.folder)
                return

    def _storing(self, action: str) -> contextlib.AbstractContextManager[None]:
        """Explains errors of storing a base network, see `explained`."""
        return explained(action, again=self._again, place="folder of base networks")

    def _folders(self) -> Iterator[FilePath]:
        """Yields the folder of the base networks, then those of earlier versions, which take time to find."""
        assert self.folder is not None
        yield self.folder
        yield from self._earlier_folders

    def _save(self, base: Base) -> None:
        """Stores a base network with what it is."""
        assert self.folder is not None
        path = self.folder / f"{self.pool}-{base.index}"
        save_network(path, base.weights, {"accuracy": base.accuracy}, self._identity(base.index, self.folder))

    def _identity(self, index: int, folder: FilePath) -> str:
        """What a base network is, as it is written into its file; the folder's name ends with the seed."""
        return (
            f"{self.pool} base {index} of task {folder.name.removesuffix(f'-{self.seed}')}, seed {self.seed}"
        )

    @cached_property
    def _earlier_folders(self) -> tuple[FilePath, ...]:
        """Folders where earlier versions of jaxprune stored the same base networks, some without checksums."""
        assert self.folder is not None
        others = set(self.folder.parent.glob(f"{self.task.name}-*-{self.seed}")) - {self.folder}
        if not others:
            return ()
        earlier = (f"{self.task.name}-{old}-{self.seed}" for old in self.programs.earlier_fingerprints)
        return tuple(path for name in earlier if (path := self.folder.parent / name) in others)


def warn(message: str) -> None:
    """Shows a message as a warning, where nobody else wants it."""
    warnings.warn(message, stacklevel=3)
