"""On an accelerator the outcomes of several tasks come chunk by chunk, in order, as soon as each is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.language.library import library
from jaxprune.search.problem import Trial
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.base_networks import Entry

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
    problem._plans = {}
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
