"""On an accelerator the outcomes of several tasks come chunk by chunk, in order, as soon as each is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_task import tiny_task

from jaxprune.language.library import library
from jaxprune.search.problem import Trial
from jaxprune.search.search import evolve_problem
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import BasePool, Entry

CHUNK = 4


class Chunks:
    """A pool that trains a chunk at a time; the accuracy of an entry is its base and repeat."""

    def __init__(self) -> None:
        self.num_chunks = 0

    def finetune(self, entries: Sequence[Entry]) -> Iterator[SimpleNamespace]:
        for first in range(0, len(entries), CHUNK):
            self.num_chunks += 1
            for entry in entries[first : first + CHUNK]:
                yield SimpleNamespace(accuracies=np.array([entry.base + entry.repeat / 100]), seconds=1.0)


def vmapped_problem(names: Sequence[str]) -> TaskProblem:
    """A problem whose tasks train in chunks, without networks."""
    problem = object.__new__(TaskProblem)
    problem.programs = {name: SimpleNamespace(is_vmapped=True) for name in names}  # type: ignore[misc]
    problem.pools = {name: Chunks() for name in names}  # type: ignore[misc]
    return problem


def trial(task: str, base: int, repeat: int) -> Trial:
    return Trial(task, "search", base, repeat, "digest", library["l1"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_outcomes_are_in_the_order_of_trials_and_no_chunk_is_trained_early(
    keys: list[tuple[str, int, int]],
) -> None:
    problem = vmapped_problem("abc")
    taken = dict.fromkeys("abc", 0)
    for (task, base, repeat), outcome in zip(
        keys, problem.run_many([trial(*key) for key in keys]), strict=True
    ):
        assert outcome.accuracy == pytest.approx(base + repeat / 100)
        taken[task] += 1
        trained = {name: pool.num_chunks for name, pool in problem.pools.items()}  # type: ignore[attr-defined]
        assert trained == {name: -(-count // CHUNK) for name, count in taken.items()}


def test_a_guess_that_reads_what_a_network_lacks_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(pool: BasePool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BasePool, "bases", property(trained))
    told: list[str] = []
    problem = TaskProblem([tiny_task()])
    guesses = ["mean(X)*sum(WO)", "gamma*mean(X)"]
    with pytest.raises(KeyboardInterrupt):
        evolve_problem(
            problem,
            EvolveConfig(generations=0, fitness="finetune"),
            tmp_path,
            callbacks=[SimpleNamespace(on_message=told.append)],
            guesses=guesses,
        )
    (message,) = told
    assert message.startswith(
        "The guess gamma*mean(X) is left out: on task tiny, gamma*mean(X) needs operand gamma, which producers "
        "conv1.kernel, conv2.kernel, dense.kernel do not have: no learned normalisation scale follows it."
    )
