"""An instant, deterministic problem: channels are numbers, training is a look-up. Also runs as a program."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, Vocabulary
from jaxprune.search.problem import Behaviour, InfrastructureError, Outcome, TaskInfo, Trial, pack_kept
from jaxprune.search.settings import EvolveConfig
from jaxprune.types import Invalid

NUM_CHANNELS = 16
TASKS = (
    TaskInfo("digits", bases=3, extra_bases=1, fingerprint="a"),
    TaskInfo("fashion", weight=0.5, bases=2),
)
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
        digests, plans = {}, []
        for task in self.tasks:
            bases = range(task.bases + task.extra_bases)
            kept = [toy_scores(function, task.name, base).argsort() >= NUM_CHANNELS // 2 for base in bases]
            digests[task.name] = tuple(np.packbits(is_kept).tobytes().hex() for is_kept in kept)
            plans += kept
        return Behaviour(digests, kept=pack_kept(plans))

    def run(self, trial: Trial) -> Outcome:
        self.num_calls += 1
        if self.num_calls in self.fail_at:
            raise InfrastructureError("the toy device was lost")
        time.sleep(self.delay_seconds)
        self.ran.append(trial)
        is_kept = np.unpackbits(np.frombuffer(bytes.fromhex(trial.digest), np.uint8)).astype(bool)
        worth = np.array([noise("worth", channel) for channel in range(NUM_CHANNELS)])
        luck = noise("luck", trial.base, trial.digest) + 0.3 * noise("seed", *trial.key)
        return Outcome(70.0 + 4.0 * float(worth[is_kept].sum()) + luck + noise(trial.base), 0.01)


class ToyBatchProblem(ToyProblem):
    """The same, many at a time."""

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        for trial in trials:
            yield self.run(trial)


def toy_scores(function: Expression, task: str, base: int) -> np.ndarray:
    """[NUM_CHANNELS] scores by a made-up meaning of every operator."""

    def value(node: Expression, children: Sequence[np.ndarray]) -> np.ndarray:
        if node.is_literal:
            return np.full(NUM_CHANNELS, np.tanh(node.value))
        if node.is_operand:
            common = np.array([noise(node.name, c) + noise("worth", c) for c in range(NUM_CHANNELS)])
            return common + 0.2 * np.array([noise(node.name, task, base, c) for c in range(NUM_CHANNELS)])
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
