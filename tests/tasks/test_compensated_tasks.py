"""Tasks whose recipe compensates for removed channels before it fine-tunes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_task import tiny_programs, tiny_task

from jaxprune.comparison.protocol import compare
from jaxprune.language.library import library
from jaxprune.nets import PlainConvNet
from jaxprune.observation.observer import observe
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import merge_model, split_model
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.loop import split_network
from jaxprune.training.recipes import RECIPES, Recipe

FINETUNE = RECIPES["adam_short"].replace(epochs=2, batch_size=20, learning_rate=3e-3)
ALMOST_NONE = FINETUNE.replace(epochs=1, learning_rate=1e-12)
"""Fine-tuning that leaves the weights as they are."""


def compensated(recipe: Recipe = FINETUNE, **changes: object) -> Task:
    return tiny_task(recipe=recipe.replace(compensate=True), **changes)


@pytest.fixture(scope="module")
def untrained() -> BasePool:
    return BasePool(TaskPrograms(compensated(ALMOST_NONE)), 0, "search", 2)


def test_fine_tuning_starts_where_slim_with_compensation_ends(untrained: BasePool) -> None:
    programs = untrained.programs
    kept = untrained.random_kept(1, 0)
    (trained,) = untrained.finetune([Entry(1, kept=kept)])
    graphdef, _, rest = split_model(programs.model)
    model = merge_model(graphdef, untrained.bases[1].weights, rest)
    images, labels = (np.asarray(part) for part in programs.task.train)
    rows = np.concatenate([np.flatnonzero(labels == k)[:10] for k in range(10)])  # the task calibrates on 100
    observed = observe(model, images[rows], labels[rows])
    chosen = make_plan(programs.structure, dict(kept))
    expected = split_network(slim(model, chosen, compensate=observed))[1]
    cut = split_network(slim(model, chosen))[1]
    for path, array in trained.weights.items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-5)
    assert not np.allclose(trained.weights["output", "kernel"], cut["output", "kernel"], atol=1e-2)


def test_masked_fine_tuning_is_compensated_alike(untrained: BasePool) -> None:
    masked = BasePool(TaskPrograms(compensated(ALMOST_NONE, finetune="masked")), 0, "search", 2)
    entries = [Entry(base, kept=untrained.random_kept(base, 3)) for base in range(2)]
    for one, other in zip(untrained.finetune(entries), masked.finetune(entries), strict=True):
        for path, array in one.weights.items():
            np.testing.assert_allclose(array, other.weights[path], atol=1e-4)


def test_vmapped_members_are_compensated_alike(untrained: BasePool) -> None:
    programs = TaskPrograms(compensated(ALMOST_NONE), strategy="vmap", chunk=2)
    vmapped = BasePool(programs, 0, "search", 2)
    vmapped.__dict__["bases"] = untrained.bases
    entries = [Entry(base, draw=draw) for base in range(2) for draw in range(2)]
    for one, other in zip(untrained.finetune(entries), vmapped.finetune(entries), strict=True):
        for path, array in one.weights.items():
            np.testing.assert_allclose(array, other.weights[path], atol=1e-4)


def test_every_round_is_compensated_from_the_network_before_it() -> None:
    schedule = Schedule(kept_counts=((3, 4, 6), (2, 3, 4)))
    pool = BasePool(TaskPrograms(compensated(ALMOST_NONE, schedule=schedule)), 0, "search", 1)
    plain = BasePool(TaskPrograms(tiny_task(recipe=ALMOST_NONE, schedule=schedule)), 0, "search", 1)
    plain.__dict__["bases"] = pool.bases
    first = TaskPrograms(compensated(ALMOST_NONE, schedule=Schedule(kept_counts=((3, 4, 6),))))
    after_one = BasePool(first, 0, "search", 1)
    after_one.__dict__["bases"] = pool.bases
    (one,) = after_one.finetune([Entry(0, kept=pool.random_kept(0, 0))])
    kept = pool.random_kept(0, 0, 1)
    covariances = pool.programs.observer(1)(one.weights).covariances()
    full = pool.programs.compensate(1, one.weights, kept, covariances)
    expected = pool.programs.prune(1, full, kept)
    entries = [Entry(0, draw=0), Entry(0, function=library["l2"]), Entry(0)]
    both, by_l2, scratch = pool.finetune(entries)
    for path, array in both.weights.items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-5)
    assert by_l2.weights["conv1", "kernel"].shape[-1] == scratch.weights["conv1", "kernel"].shape[-1] == 2
    np.testing.assert_array_equal(
        scratch.weights["output", "kernel"], plain.finetune_one(Entry(0)).weights["output", "kernel"]
    )


def test_it_keeps_more_accuracy_right_after_pruning(untrained: BasePool) -> None:
    plain = BasePool(TaskPrograms(tiny_task(recipe=ALMOST_NONE)), 0, "search", 2)
    plain.__dict__["bases"] = untrained.bases
    entries = [Entry(base, draw=draw) for base in range(2) for draw in range(4)]
    with_it, without = (
        np.mean([float(result.accuracies[-1]) for result in pool.finetune(entries)])
        for pool in (untrained, plain)
    )
    assert with_it > without + 5


def test_a_comparison_compensates_every_row_but_scratch() -> None:
    rows = []
    for task in (compensated(), tiny_task()):
        table = compare(["l2"], task, bases=1, draws=3, pool="search")
        rows.append({(one.name, one.draw): one.validation for one in table.measurements})
    assert rows[0].keys() == rows[1].keys()
    assert rows[0]["scratch", 0] == rows[1]["scratch", 0]
    assert rows[0]["l2", 0] != rows[1]["l2", 0]
    random = [
        np.mean([accuracy for (name, _), accuracy in each.items() if name == "random"]) for each in rows
    ]
    assert random[0] > random[1]


def test_the_fingerprint_tells_compensation_apart() -> None:
    plain = tiny_programs()
    assert TaskPrograms(compensated()).fingerprint != plain.fingerprint
    assert TaskPrograms(tiny_task(recipe=FINETUNE.replace(compensate=False))).fingerprint == plain.fingerprint


def test_networks_that_diverged_are_no_error() -> None:
    recipe = FINETUNE.replace(epochs=1, learning_rate=1e35)
    schedule = Schedule(kept_counts=((3, 4, 6), (2, 3, 4)))
    pool = BasePool(TaskPrograms(compensated(recipe, schedule=schedule)), 0, "search", 1)
    assert float(pool.finetune_one(Entry(0, function=library["l1"])).accuracies[-1]) == 0.0


class _Normalised(PlainConvNet):
    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs, widths=(4, 6, 8))
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(jax.nn.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(jax.nn.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.output(self.norm(jax.nn.relu(self.dense(jnp.reshape(x, (x.shape[0], -1))))))


def test_networks_that_cannot_be_compensated_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match=r"group dense\.kernel is read by a value of all channels together"):
        TaskPrograms(compensated().replace(model=_Normalised))
    whole = Schedule(kept_counts=((2, 3, 8),))
    TaskPrograms(compensated(schedule=whole).replace(model=_Normalised))
