"""What a search holds in memory does not grow with the functions that it has tried."""

from __future__ import annotations

import gc

import jax
import pytest
from compilations import counted_compilations
from tiny_task import tiny_task

from jaxprune.keys import derive
from jaxprune.language.expression import Expression
from jaxprune.language.sampling import random_expression
from jaxprune.search.task_problem import TaskProblem
from jaxprune.training.recipes import RECIPES

BATCH, BATCHES = 200, 6


def num_held(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


@pytest.mark.slow
def test_ever_new_functions_leave_nothing_behind() -> None:
    recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=20)
    problem = TaskProblem([tiny_task(bases=1, extra_bases=0, base_recipe=recipe)])
    root = derive(jax.random.key(0), "memory")

    def try_batches(first: int) -> tuple[int, int, int]:
        """Plans with new functions; counts expressions, objects and arrays that are still there."""
        for batch in range(first, first + BATCHES):
            functions = [random_expression(derive(root, batch, i), problem.vocabulary) for i in range(BATCH)]
            problem.behaviours(functions)
        del functions
        return num_held(Expression), num_held(object), len(jax.live_arrays())

    try_batches(0)
    expressions, objects, arrays = try_batches(BATCHES)
    with counted_compilations() as compiled:
        more_expressions, more_objects, more_arrays = try_batches(2 * BATCHES)
    assert not compiled
    assert more_arrays == arrays
    assert more_expressions < expressions + BATCH  # without bounds on caches, 4,300 more
    assert more_objects < objects + 10 * BATCH
