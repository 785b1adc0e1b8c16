"""What a search and the problem it searches on tell each other: behaviours, trials, outcomes.

A `Problem` turns expressions into behaviours (cheap, in bulk) and trials into outcomes (expensive, one
fine-tuning each). The search knows nothing else about networks, which is why it can be tested in
milliseconds on a made-up one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from jaxprune.types import Invalid

if TYPE_CHECKING:
    from jaxprune.language.expression import Expression
    from jaxprune.language.vocabulary import Vocabulary

TrialKey = tuple[str, str, int, int, str]
"""(task, pool, base, repeat, digest): what a fine-tuning is a function of, and so the key of its cache."""

SEARCH_POOL = "search"
"""The pool of bases that selection sees; the `final` pool is trained after the search, for the report."""


class InfrastructureError(RuntimeError):
    """A crash, a full memory or a lost device: retried, then the run stops; never a fitness."""


@dataclass(frozen=True)
class TaskInfo:
    """What the search needs to know of a task.

    Args:
      name: the task's name, unique within a problem.
      weight: its weight in the fitness, > 0.
      bases: number of search bases a promoted candidate is tried on, >= 1; their indices are `0..bases - 1`.
      extra_bases: number of further search bases, which only elites are tried on, >= 0; their indices follow.
      fingerprint: hash of data split, base networks, schedule and recipe; a run resumes only on equal ones.

    Raises:
      ValueError: if the name is empty or a number is out of range.
    """

    name: str
    weight: float = 1.0
    bases: int = 1
    extra_bases: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("TaskInfo needs a name, got an empty one.")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"task {self.name!r} needs a finite weight > 0, got {self.weight}.")
        if self.bases < 1 or self.extra_bases < 0:
            raise ValueError(
                f"task {self.name!r} needs bases >= 1 and extra_bases >= 0, "
                f"got {self.bases} and {self.extra_bases}."
            )


@dataclass(frozen=True)
class Behaviour:
    """The plans one function makes on the search bases of all tasks; equal ones share every result.

    Args:
      digests: task name -> one hash of the kept indices per search base (`bases + extra_bases` of them, in
        base order). Two functions with one digest on a base are one fine-tuning there.
      fallbacks: number of groups, over all bases, whose scores were all equal and were ordered by l2.
      ties: number of equal neighbouring scores, over all bases, that the channel index decided.
      kept: optional, `pack_kept` of all plans; with it the search keeps new plans apart from known ones.
    """

    digests: Mapping[str, tuple[str, ...]]
    fallbacks: int = 0
    ties: int = 0
    kept: str = ""

    @property
    def digest(self) -> str:
        """One hash of all plans.

        Example:
          >>> Behaviour({"a": ("x", "y")}).digest == Behaviour({"a": ("x", "y")}, ties=3).digest
          True
        """
        text = ";".join(f"{task}:{','.join(self.digests[task])}" for task in sorted(self.digests))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_kept(is_kept: Sequence[np.ndarray]) -> str:
    """Packs boolean vectors (one per task, base and group, in a fixed order) into one hexadecimal text.

    Example:
      >>> pack_kept([np.array([True, False, False, False]), np.array([True, True, False, True])])
      '8d'
    """
    joined = (
        np.concatenate([np.asarray(part, bool).ravel() for part in is_kept]) if is_kept else np.zeros(0, bool)
    )
    return np.packbits(joined).tobytes().hex()


def plan_distance(kept: str, other: str) -> float:
    """The share of kept channels that two packed plans do not have in common, from 0 (equal) to 1.

    Returns 1 where either is empty: nothing is known, so nothing is too near.

    Example:
      >>> plan_distance("c0", "90"), plan_distance("c0", "c0")
      (0.5, 0.0)
    """
    if not kept or not other:
        return 1.0
    first, second = int(kept, 16), int(other, 16)
    total = first.bit_count() + second.bit_count()
    return (first ^ second).bit_count() / total if total else 0.0


@dataclass(frozen=True)
class Trial:
    """One fine-tuning to run: `function` on one base of one task, with the keys of one repeat.

    `repeat` picks data order and augmentation: members of one (task, pool, base, repeat) share them, so that
    differences between functions are paired.
    """

    task: str
    pool: str
    base: int
    repeat: int
    digest: str
    function: Expression = field(compare=False)

    @property
    def key(self) -> TrialKey:
        """What the outcome is a function of."""
        return (self.task, self.pool, self.base, self.repeat, self.digest)


@dataclass(frozen=True)
class Outcome:
    """What one fine-tuning gave.

    Args:
      accuracy: validation accuracy in percent, 0 to 100.
      seconds: how long it took.

    Raises:
      ValueError: if the accuracy is not a number from 0 to 100.
    """

    accuracy: float
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy <= 100.0:
            raise ValueError(
                f"an outcome needs a validation accuracy from 0 to 100 percent, got {self.accuracy}. "
                "Count a diverged network's wrong answers instead of reporting its loss."
            )


class Problem(Protocol):
    """What can be searched on. `evolution/problem.py` has the real one, over tasks of networks and images."""

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks, in a fixed order."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Operands that exist on every task, with the operators and literals to use."""
        ...

    def behaviours(self, functions: Sequence[Expression]) -> Sequence[Behaviour | Invalid]:
        """Scores and plans every function on every search base: cheap, in bulk, one result per function."""
        ...

    def run(self, trial: Trial) -> Outcome:
        """Fine-tunes one slim network; a function of `trial.key` alone.

        Raises:
          InfrastructureError: if something outside the trial went wrong and trying again may help.
        """
        ...


@runtime_checkable
class BatchProblem(Protocol):
    """A problem that runs many trials faster together than one by one."""

    def run_many(self, trials: Sequence[Trial]) -> Iterable[Outcome]:
        """Yields the outcomes in the order of `trials`, each as soon as it is known, equal to `run`."""
        ...
