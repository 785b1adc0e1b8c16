"""The interface between a search and the problem it searches on: tasks, behaviours, trials and outcomes.

A `Problem` turns expressions into behaviours (cheap, in bulk) and trials into outcomes (expensive, one fine-tuning
each). The search knows nothing else about networks, so it can be tested in milliseconds on a made-up problem.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxprune.types import Invalid, Kept

if TYPE_CHECKING:
    from jaxprune.language.expression import Expression
    from jaxprune.language.vocabulary import Vocabulary

TrialKey = tuple[str, str, int, int, str]
"""(task, pool, base, repeat, digest): determines the result of a fine-tuning, and is the key of its cache."""

SEARCH_POOL = "search"
"""The pool of base networks that the search selects on; the `final` pool is trained after it, for the report."""


class InfrastructureError(RuntimeError):
    """A crash, exhausted memory or a lost device. It is retried, then the run stops; it never becomes a fitness."""


@dataclass(frozen=True)
class TaskInfo:
    """What the search needs to know about a task.

    Args:
      name: the task's name, unique within a problem.
      weight: its weight in the fitness, > 0.
      bases: number of search bases that a promoted candidate is tried on, >= 1; their indices are `0..bases - 1`.
      extra_bases: number of further search bases, which only elites are tried on, >= 0; their indices follow.
      fingerprint: hash of data split, base networks, schedule and recipe; a run resumes only if it is unchanged.

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
class Prediction:
    """What a landscape predicts of a function's plans on one task, on all of its bases.

    Args:
      difference: mean over bases of the predicted difference to l2, in points of accuracy.
      se: its standard error over bases, in points.
      accuracy: mean over bases of the predicted accuracy, in percent.
    """

    difference: float
    se: float
    accuracy: float


@dataclass(frozen=True)
class Behaviour:
    """The plans that one function makes on the search bases of all tasks. Equal behaviours share every result.

    Args:
      digests: task name -> one hash of the kept indices per search base (`bases + extra_bases` of them, in base
        order). Two functions with the same digest on a base share one fine-tuning there.
      fallbacks: number of groups, over all bases, whose scores were all equal, so that l2 ordered them.
      ties: number of neighbouring equal scores, over all bases, that were ordered by channel index.
      kept: `pack_kept` of all plans, so that the search can prefer plans that differ from known ones; may be empty.
      predicted: task name -> what its landscape predicts; empty without landscapes.
    """

    digests: Mapping[str, tuple[str, ...]]
    fallbacks: int = 0
    ties: int = 0
    kept: str = ""
    predicted: Mapping[str, Prediction] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The hash of all plans.

        Example:
          >>> Behaviour({"a": ("x", "y")}).digest == Behaviour({"a": ("x", "y")}, ties=3).digest
          True
        """
        text = ";".join(f"{task}:{','.join(self.digests[task])}" for task in sorted(self.digests))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_kept(is_kept: Sequence[np.ndarray]) -> str:
    """Packs the plans of a function on all bases into one hexadecimal text.

    Args:
      is_kept: one boolean vector [C] per task, base and group, in a fixed order.

    Returns:
      The bits of all vectors, padded with zeros to whole bytes; "" for no vectors.

    Example:
      >>> pack_kept([np.array([True, False, False, False]), np.array([True, True, False, True])])
      '8d'
    """
    bits = [np.zeros(0, bool), *(np.asarray(vector, bool).ravel() for vector in is_kept)]
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def unpack_kept(kept: str, widths: Sequence[int]) -> list[np.ndarray]:
    """Returns the vectors that `pack_kept` packed.

    Args:
      kept: a text of `pack_kept`.
      widths: the length of each vector.

    Returns:
      One boolean vector per width.

    Raises:
      ValueError: if the text does not have as many bits as the widths need.

    Example:
      >>> [vector.tolist() for vector in unpack_kept("8d", [4, 4])]
      [[True, False, False, False], [True, True, False, True]]
    """
    ends = np.cumsum([0, *widths])
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(kept), np.uint8)).astype(bool)
    if len(bits) != -(-ends[-1] // 8) * 8:
        raise ValueError(
            f"packed plans for {ends[-1]} channels need {-(-ends[-1] // 8)} bytes, got {len(bits) // 8}. "
            "Take them from a behaviour of the same problem."
        )
    return [bits[first:last] for first, last in itertools.pairwise(ends)]


def as_bits(kept: Kept, widths: Mapping[str, int]) -> np.ndarray:
    """Returns [sum C] booleans, which channels a plan keeps.

    Args:
      kept: the plan.
      widths: group -> C, in the order of the result.

    Example:
      >>> as_bits((("conv", (0, 2)),), {"conv": 3}).tolist()
      [True, False, True]
    """
    channels = dict(kept)
    return np.concatenate([np.isin(np.arange(width), channels[group]) for group, width in widths.items()])


def as_kept(is_kept: np.ndarray, widths: Mapping[str, int]) -> Kept:
    """Returns the plan whose bits `as_bits` returns.

    Args:
      is_kept: [sum C] booleans.
      widths: group -> C, in the order of the booleans.

    Example:
      >>> as_kept(np.array([True, False, True]), {"conv": 3})
      (('conv', (0, 2)),)
    """
    by_group = np.split(is_kept, np.cumsum(list(widths.values()))[:-1])
    return tuple(
        (group, tuple(np.flatnonzero(bits).tolist())) for group, bits in zip(widths, by_group, strict=True)
    )


def plan_distance(kept: str, other: str) -> float:
    """Computes the share of kept channels that two packed plans do not have in common.

    Args:
      kept: a text of `pack_kept`.
      other: another one, of the same length.

    Returns:
      A number from 0 (equal plans) to 1; 1 if either text is empty, because unknown plans count as different.

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
    """One fine-tuning to run: a function on one base of one task, with the random keys of one repeat.

    The repeat selects data order and augmentation. All trials with the same task, pool, base and repeat share them,
    so that differences between functions are paired. `kept` holds the function's plans as its `Behaviour` does; where
    it is empty, a problem plans with the function again.
    """

    task: str
    pool: str
    base: int
    repeat: int
    digest: str
    function: Expression = field(compare=False)
    kept: str = field(default="", compare=False)

    @property
    def key(self) -> TrialKey:
        """The values that determine the outcome."""
        return (self.task, self.pool, self.base, self.repeat, self.digest)


@dataclass(frozen=True)
class Outcome:
    """The result of one fine-tuning.

    Args:
      accuracy: validation accuracy in percent, 0 to 100.
      seconds: how long the fine-tuning took.

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
    """Something that can be searched on. `TaskProblem` is the real one, over tasks of networks and images."""

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks, in a fixed order."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """The operands that exist on every task, and the operators and literals to use."""
        ...

    def behaviours(self, functions: Sequence[Expression]) -> Sequence[Behaviour | Invalid]:
        """Scores all functions on all search bases and plans with each; returns one result per function."""
        ...

    def run(self, trial: Trial) -> Outcome:
        """Fine-tunes one slim network. The accuracy depends on nothing but `trial.key`.

        Raises:
          InfrastructureError: if something outside the trial failed, so that trying again may help.
        """
        ...


@runtime_checkable
class BatchProblem(Protocol):
    """A problem that runs many trials together faster than one by one."""

    def run_many(self, trials: Sequence[Trial]) -> Iterable[Outcome]:
        """Yields the outcomes that `run` would return, in the order of `trials`, each as soon as it is known."""
        ...


@runtime_checkable
class StructuredProblem(Protocol):
    """A problem that knows before any training which operands its networks have."""

    def absence(self, function: Expression) -> str:
        """Says which operands a function reads that some network lacks; "" if they all have them."""
        ...


@runtime_checkable
class IdentifiedProblem(Protocol):
    """A problem that knows what its tasks are made of, so that a refused resume can say what has changed."""

    @property
    def identities(self) -> Mapping[str, Mapping[str, Any]]:
        """Task name -> what its fingerprint is made of, as plain data."""
        ...

    def is_known_as(self, task: str, fingerprint: str) -> bool:
        """Tells whether a fingerprint, with any seed, is that of a task, also by the rule of earlier versions."""
        ...


@runtime_checkable
class BatchedProblem(Protocol):
    """A problem whose fine-tunings are batched in ways that belong to the result, because they decide its last bits."""

    @property
    def batching(self) -> Mapping[str, Mapping[str, Any]]:
        """Task name -> how its fine-tunings are batched, as plain data with nothing left open."""
        ...

    @property
    def earlier_batching(self) -> Mapping[str, Mapping[str, Any]]:
        """The same as earlier versions chose it, which did not note it in their runs."""
        ...

    def take_row_use(self) -> RowUse:
        """Returns how rows of fine-tunings were used since the last call."""
        ...


class RowUse(NamedTuple):
    """How long devices trained rows of members together, and how much of it went to copies that fill rows.

    Example:
      >>> RowUse(8.0, 2.0).idle_share, RowUse().idle_share
      (0.25, None)
    """

    seconds: float = 0.0
    idle_seconds: float = 0.0

    @property
    def idle_share(self) -> float | None:
        """The share spent on copies, from 0 to 1; None without rows."""
        return self.idle_seconds / self.seconds if self.seconds else None


@dataclass(frozen=True)
class BankFacts:
    """What is known of the bank of plans of one task after it was measured.

    Args:
      plans: number of fine-tuned plans, over all bases.
      correlation: of measured accuracies with those that the landscape predicts of plans it was not fitted to, mean
        over bases, from -1 to 1.
      digest: hash of the plans and their accuracies.
    """

    plans: int
    correlation: float
    digest: str


@runtime_checkable
class LandscapeProblem(Protocol):
    """A problem that can predict accuracies from a bank of fine-tuned plans."""

    def fit_landscapes(
        self, num_plans: int, on_status: Callable[[str], None] = lambda message: None
    ) -> Mapping[str, BankFacts]:
        """Measures what is missing in the banks and fits the landscapes; from then on behaviours have predictions.

        Args:
          num_plans: number of plans for each base network.
          on_status: called with what is going on.

        Returns:
          Task name -> what its bank shows.

        Raises:
          ValueError: if a bank cannot be measured or a landscape cannot be fitted.
        """
        ...
