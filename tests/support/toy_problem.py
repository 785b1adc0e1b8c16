"""An instant, deterministic problem: channels are numbers, training is a look-up. Also runs as a program."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, Vocabulary
from jaxprune.search.problem import (
    BankFacts,
    Behaviour,
    InfrastructureError,
    Outcome,
    Prediction,
    TaskInfo,
    Trial,
    pack_kept,
)
from jaxprune.search.settings import EvolveConfig
from jaxprune.types import Invalid

NUM_CHANNELS = 16
TOY_CORRELATION = 0.6
TASKS = (
    TaskInfo("digits", bases=3, extra_bases=1, fingerprint="a"),
    TaskInfo("fashion", weight=0.5, bases=2),
)
LANDSCAPE = EvolveConfig(generations=4, population=8, plans=12, leaders=8, seed=1)
SMALL = EvolveConfig(generations=4, population=6, fitness="finetune", proposals_per_slot=4, elites=1, seed=1)


def noise(*meaning: object) -> float:
    """A number from -1 to 1 that follows from `meaning` alone."""
    return zlib.crc32(repr(meaning).encode()) / 2**31 - 1.0


class ToyProblem:
    """Scores are smooth functions of the tree, so that near formulas make near plans; some are invalid."""

    def __init__(
        self, tasks: Sequence[TaskInfo] = TASKS, delay_seconds: float = 0.0, fail_at: Sequence[int] = ()
    ) -> None:
        self.tasks = tuple(tasks)
        self.delay_seconds, self.fail_at = delay_seconds, set(fail_at)
        self.ran: list[Trial] = []
        self.num_calls = 0
        self.num_scored = 0

    @property
    def vocabulary(self) -> Vocabulary:
        return DEFAULT_VOCABULARY.restrict(set(DEFAULT_VOCABULARY.operands) - {"gamma", "beta"})

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        self.num_scored += len(functions)
        return [self._behaviour(function) for function in functions]

    def _behaviour(self, function: Expression) -> Behaviour | Invalid:
        if noise("invalid", str(function)) > 0.8 and not function.operands <= {"WI"}:
            return Invalid("a toy reason")
        digests, plans = self._plans_of(function)
        return Behaviour(digests, kept=pack_kept(plans))

    def _plans_of(self, function: Expression) -> tuple[dict[str, tuple[str, ...]], list[np.ndarray]]:
        digests: dict[str, tuple[str, ...]] = {}
        plans: list[np.ndarray] = []
        for task in self.tasks:
            bases = range(task.bases + task.extra_bases)
            kept = [toy_scores(function, task.name, base).argsort() >= NUM_CHANNELS // 2 for base in bases]
            digests[task.name] = tuple(np.packbits(is_kept).tobytes().hex() for is_kept in kept)
            plans += kept
        return digests, plans

    def run(self, trial: Trial) -> Outcome:
        self.num_calls += 1
        if self.num_calls in self.fail_at:
            raise InfrastructureError("the toy device was lost")
        time.sleep(self.delay_seconds)
        self.ran.append(trial)
        luck = noise("luck", trial.base, trial.digest) + 0.3 * noise("seed", *trial.key)
        return Outcome(toy_accuracy(trial.base, trial.digest) + luck, 0.01)


class ToyBatchProblem(ToyProblem):
    """The same, many at a time."""

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        for trial in trials:
            yield self.run(trial)


class ToyLandscapeProblem(ToyProblem):
    """The same with predictions: accuracies without luck, but with a bias of each base towards some plans."""

    def __init__(
        self,
        tasks: Sequence[TaskInfo] = TASKS,
        delay_seconds: float = 0.0,
        fail_at: Sequence[int] = (),
        correlations: Sequence[float] = (),
    ) -> None:
        super().__init__(tasks, delay_seconds, fail_at)
        self.correlations = dict(zip([task.name for task in self.tasks], correlations, strict=False))
        self.num_plans: list[int] = []
        self.bank_digest = "d0"

    def fit_landscapes(
        self, num_plans: int, on_status: Callable[[str], None] = lambda message: None
    ) -> dict[str, BankFacts]:
        self.num_plans.append(num_plans)
        for task in self.tasks:
            on_status(f"bank of {task.name}: 1 of {num_plans} plans fine-tuned")
        return {
            task.name: BankFacts(
                num_plans * task.bases, self.correlations.get(task.name, TOY_CORRELATION), self.bank_digest
            )
            for task in self.tasks
        }

    def _behaviour(self, function: Expression) -> Behaviour | Invalid:
        behaviour = super()._behaviour(function)
        if isinstance(behaviour, Invalid) or not self.num_plans:
            return behaviour
        predicted = {}
        for task in self.tasks:
            accuracies = toy_predictions(behaviour.digests[task.name][: task.bases])
            of_l2 = toy_predictions(l2_digests(task))
            differences = accuracies - of_l2
            se = float(differences.std(ddof=1)) / task.bases**0.5 if task.bases > 1 else 0.0
            predicted[task.name] = Prediction(float(differences.mean()), se, float(accuracies.mean()))
        return Behaviour(behaviour.digests, kept=behaviour.kept, predicted=predicted)


def toy_predictions(digests: Sequence[str]) -> np.ndarray:
    """[B] predicted accuracies of a plan on each base."""
    return np.array(
        [toy_accuracy(base, digest) + noise("bias", base, digest) for base, digest in enumerate(digests)]
    )


def toy_accuracy(base: int, digest: str) -> float:
    """The accuracy that a plan has on a base, apart from luck."""
    is_kept = np.unpackbits(np.frombuffer(bytes.fromhex(digest), np.uint8)).astype(bool)
    return 70.0 + 4.0 * float(channel_values("worth")[is_kept].sum()) + noise(base)


@cache
def l2_digests(task: TaskInfo) -> tuple[str, ...]:
    """The plans of l2 on the normal bases."""
    return ToyProblem([task])._plans_of(library["l2"])[0][task.name][: task.bases]


@cache
def channel_values(*meaning: object) -> np.ndarray:
    """[NUM_CHANNELS] numbers from -1 to 1 that follow from `meaning` alone."""
    return np.array([noise(*meaning, channel) for channel in range(NUM_CHANNELS)])


def toy_scores(function: Expression, task: str, base: int) -> np.ndarray:
    """[NUM_CHANNELS] scores by a made-up meaning of every operator."""

    def value(node: Expression, children: Sequence[np.ndarray]) -> np.ndarray:
        if node.is_literal:
            return np.full(NUM_CHANNELS, np.tanh(node.value))
        if node.is_operand:
            common = channel_values(node.name) + channel_values("worth")
            return common + 0.2 * channel_values(node.name, task, base)
        turned = [child * (1.0 + 0.1 * noise(node.operator, i)) for i, child in enumerate(children)]
        if node.operator == "-" and len(turned) == 2:
            return turned[0] - turned[1]
        if node.operator == "*":
            return turned[0] * (1.0 + 0.1 * turned[1])
        return sum(turned, start=np.zeros(NUM_CHANNELS)) + 0.1 * noise(node.operator, node.params)

    return function.fold(value)


if __name__ == "__main__":
    from jaxprune.search.search import evolve_problem

    evolve_problem(ToyProblem(delay_seconds=float(sys.argv[2])), SMALL, sys.argv[1], resume=True)
