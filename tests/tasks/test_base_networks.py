"""Base networks, plans and fine-tuning on a tiny real task."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_task import tiny_programs, tiny_task

from jaxprune.comparison.protocol import compare
from jaxprune.files import RunDirectoryError
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.sample import balanced_sample
from jaxprune.search.problem import Behaviour, Trial
from jaxprune.search.proposals import seeds
from jaxprune.search.task_problem import TaskProblem, available_operands, kept_digest
from jaxprune.tasks import base_networks as bases
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.round_plans import FirstRoundPlan
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule
from jaxprune.training.loop import Examples, split_network
from jaxprune.training.recipes import RECIPES
from jaxprune.training.trainer import Trainer
from jaxprune.types import Invalid

KEPT = (("conv1.kernel", (0, 2)), ("conv2.kernel", (1, 3, 5)), ("dense.kernel", (0, 1, 4, 7)))


@pytest.fixture(scope="module")
def pool(bases_dir: Path) -> BasePool:
    return BasePool(tiny_programs(), 0, "search", 2, folder=bases_dir)


def accuracies(results: object) -> list[float]:
    return [float(result.accuracies[-1]) for result in results]  # type: ignore[attr-defined]


def test_bases_learn_and_differ(pool: BasePool) -> None:
    first, second = pool.bases
    assert min(first.accuracy, second.accuracy) > 30
    path = ("conv1", "kernel")
    assert not np.array_equal(first.weights[path], second.weights[path])


def test_final_bases_are_other_networks_than_search_bases(pool: BasePool, bases_dir: Path) -> None:
    final = BasePool(tiny_programs(), 0, "final", 1, folder=bases_dir)
    path = ("conv1", "kernel")
    for base in pool.bases:
        assert not np.array_equal(base.weights[path], final.bases[0].weights[path])


def test_bases_come_back_from_disk_unchanged(pool: BasePool, tmp_path: Path) -> None:
    told: list[int] = []
    pools = [
        BasePool(
            tiny_programs(),
            0,
            "search",
            2,
            folder=tmp_path,
            on_base=lambda task, base: told.append(base.index),
        )
        for _ in range(2)
    ]
    for one, other in zip(pools[0].bases, pools[1].bases, strict=True):
        assert one.accuracy == other.accuracy
        for path, array in one.weights.items():
            np.testing.assert_array_equal(array, other.weights[path])
    assert told == [0, 1, 0, 1]
    np.testing.assert_array_equal(
        pools[0].bases[0].weights[("conv1", "kernel")], pool.bases[0].weights[("conv1", "kernel")]
    )


def test_a_full_disk_while_saving_a_base_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bases, "save_network", full)
    with pytest.raises(
        RunDirectoryError,
        match=r"could not save base network .*search-0: the disk is full\. Free .* start again",
    ):
        _ = BasePool(tiny_programs(), 0, "search", 1, folder=tmp_path).bases
    problem = TaskProblem([tiny_task()], folder=tmp_path)
    with pytest.raises(RunDirectoryError, match=r"search-0: the disk is full.*resume=True \(--resume\)"):
        problem.pools["tiny"].observed(0)


def test_a_folder_that_can_only_be_read_is_refused_before_training_if_a_base_is_missing(
    bases_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    stored = BasePool(tiny_programs(), 0, "search", 2, folder=bases_dir).bases
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr(Trainer, "run", lambda trainer, jobs: pytest.fail("trained"))
    assert BasePool(tiny_programs(), 0, "search", 2, folder=bases_dir).bases[1].accuracy == stored[1].accuracy
    told = r"could not store base network \d of task tiny in .*tiny-\w+-0: it is not writable .*Read-only file system"
    with pytest.raises(RunDirectoryError, match=rf"{told}.*choose another folder of base networks"):
        BasePool(tiny_programs(), 0, "search", 9, folder=bases_dir)
    first, other = tiny_task(), tiny_task("other")
    with pytest.raises(RunDirectoryError, match="base network 0 of task other"):
        compare(["l1"], [first, other], 2, pool="search", folder=bases_dir)


def test_l2_plans_keep_the_largest_filters(pool: BasePool) -> None:
    (by_base,) = pool.plans([library["l2"]])
    for base, plan in zip(pool.bases, by_base, strict=True):
        assert isinstance(plan, FirstRoundPlan)
        norms = np.sqrt(np.square(np.asarray(base.weights[("conv1", "kernel")])).sum((0, 1, 2)))
        assert dict(plan.kept)["conv1.kernel"] == tuple(sorted(np.argsort(norms)[-2:]))


def test_no_functions_have_no_plans(pool: BasePool) -> None:
    assert pool.plans([]) == []


def test_fine_tuning_depends_on_the_plan_and_the_key_alone(pool: BasePool) -> None:
    entries = [Entry(0, 0, kept=KEPT), Entry(1, 0, kept=KEPT), Entry(0, 1, kept=KEPT), Entry(0, 0, kept=KEPT)]
    results = list(pool.finetune(entries))
    again = pool.finetune_one(entries[0])
    path = ("conv1", "kernel")
    assert results[0].weights[path].shape[-1] == 2
    for same in (results[3], again):
        np.testing.assert_array_equal(results[0].weights[path], same.weights[path])
    for other in results[1:3]:
        assert not np.array_equal(results[0].weights[path], other.weights[path])


def test_random_draws_and_scratch_are_reproducible_and_differ(pool: BasePool) -> None:
    assert pool.random_kept(0, 0) == pool.random_kept(0, 0)
    assert len({pool.random_kept(base, draw) for base in range(2) for draw in range(4)}) > 4
    one, other = pool.finetune([Entry(0), Entry(1)])
    path = ("dense", "kernel")
    assert one.weights[path].shape == (12, 4)
    assert not np.array_equal(one.weights[path], other.weights[path])


def test_curves_end_at_the_single_evaluation(pool: BasePool) -> None:
    entry = Entry(0, kept=KEPT)
    curve = pool.finetune_one(entry, evaluations=3)
    assert curve.accuracies.shape == (3,)
    assert curve.accuracies[-1] == pool.finetune_one(entry).accuracies[-1]
    programs = tiny_programs()
    assert programs.accuracy(curve.weights, programs.validation) == curve.accuracies[-1]
    few = Examples(programs.validation.x[:10], programs.validation.y[:10])
    assert programs.accuracy(curve.weights, few) in {10.0 * i for i in range(11)}


def test_masked_fine_tuning_gives_the_accuracies_of_slim_fine_tuning(pool: BasePool) -> None:
    masked = BasePool(TaskPrograms(tiny_task(finetune="masked")), 0, "search", 2)
    entries = [Entry(base, kept=pool.random_kept(base, draw)) for base in range(2) for draw in range(2)]
    expected, found = list(pool.finetune(entries)), list(masked.finetune(entries))
    np.testing.assert_allclose(accuracies(found), accuracies(expected), atol=0.1)
    for one, other in zip(expected, found, strict=True):
        for path, array in one.weights.items():
            np.testing.assert_allclose(array, other.weights[path], atol=1e-4)


def test_vmapped_chunks_give_the_same_plans_and_near_accuracies(pool: BasePool) -> None:
    vmapped = BasePool(TaskPrograms(tiny_task(), strategy="vmap", chunk=2), 0, "search", 1)
    found = list(vmapped.finetune([Entry(0, kept=KEPT), Entry(0, draw=1), Entry(0)]))
    assert len(found) == 3
    assert abs(vmapped.bases[0].accuracy - pool.bases[0].accuracy) <= 5.0


def test_two_rounds_prune_what_the_first_left() -> None:
    task = tiny_task(schedule=Schedule(kept_counts=((3, 4, 6), (2, 3, 4))), finetune="slim")
    programs = TaskPrograms(task)
    pool = BasePool(programs, 0, "search", 1)
    entries = [
        Entry(0, function=library["l2"]),
        Entry(0, function=own_seeds["taylor"]),
        Entry(0, draw=0),
        Entry(0),
    ]
    for result in pool.finetune(entries):
        assert {path[0]: array.shape[-1] for path, array in result.weights.items() if path[-1] == "kernel"} == {
            "conv1": 2, "conv2": 3, "dense": 4, "output": 10,
        }  # fmt: skip
    with pytest.raises(ValueError, match="an entry with a fixed plan is for tasks of one round"):
        pool.finetune_one(
            Entry(
                0,
                kept=(
                    ("conv1.kernel", (0, 1, 2)),
                    ("conv2.kernel", (0, 1, 2, 3)),
                    ("dense.kernel", (0, 1, 2, 3, 4, 5)),
                ),
            )
        )


def test_a_network_that_diverges_between_rounds_is_an_accuracy_and_no_error() -> None:
    recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=20, learning_rate=1e35)
    schedule = Schedule(kept_counts=((3, 4, 6), (2, 3, 4)))
    pool = BasePool(TaskPrograms(tiny_task(schedule=schedule, recipe=recipe)), 0, "search", 1)
    assert accuracies([pool.finetune_one(Entry(0, function=library["l1"]))]) == [0.0]


def test_an_invalid_function_cannot_be_fine_tuned(pool: BasePool) -> None:
    with pytest.raises(ValueError, match=r"needs to be valid on task 'tiny', base 0; it is .*not finite"):
        pool.finetune_one(Entry(0, function=parse("N/(NX - NX)")))


def test_calibration_rows_are_balanced_and_bounded() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert np.sort(balanced_sample(labels, 3)).tolist() == [0, 3, 5]
    assert np.sort(balanced_sample(labels, 100)).tolist() == list(range(6))


def test_the_fingerprint_follows_data_network_schedule_and_recipe() -> None:
    programs = tiny_programs()
    assert TaskPrograms(tiny_task(bases=5)).fingerprint == programs.fingerprint
    other = TaskPrograms(tiny_task(schedule=Schedule(kept_fraction=0.75)))
    assert other.fingerprint != programs.fingerprint


@pytest.fixture(scope="module")
def problem(bases_dir: Path) -> TaskProblem:
    return TaskProblem([tiny_task(), tiny_task("other", weight=2.0)], folder=bases_dir)


def test_a_problem_tells_its_tasks_before_training_anything() -> None:
    problem = TaskProblem([tiny_task()])
    (info,) = problem.tasks
    assert (info.name, info.bases, info.extra_bases) == ("tiny", 2, 1)
    assert "bases" not in vars(problem.pools["tiny"])


def test_operands_that_no_layer_has_leave_the_vocabulary(problem: TaskProblem) -> None:
    assert {"WO", "GW", "GX"} <= set(problem.vocabulary.operands)
    assert not {"gamma", "beta"} & set(problem.vocabulary.operands)
    bare = jax.tree.map(
        lambda leaf: leaf, problem.pools["tiny"].observed(0)
    )  # which does not know its network
    assert not {"GW", "GX"} & available_operands(bare)


def test_gradients_are_computed_when_the_first_function_asks(problem: TaskProblem, bases_dir: Path) -> None:
    pool = TaskProblem([tiny_task()], folder=bases_dir).pools["tiny"]
    pool.plans([library["l2"], library["fdr"]])
    assert not pool.observed(0).has_gradients
    (plans,) = pool.plans([own_seeds["taylor"]])
    assert len(plans) == 3 and all(isinstance(plan, FirstRoundPlan) for plan in plans)
    taylor, l2 = problem.behaviours([own_seeds["taylor"], library["l2"]])
    assert isinstance(taylor, Behaviour) and isinstance(l2, Behaviour)
    assert taylor.digest != l2.digest
    assert "seed:taylor" in seeds("all", problem.vocabulary)


def test_ones_own_operand_joins_the_search(problem: TaskProblem) -> None:
    register_operand("energy", type=(), read=lambda operands: jnp.sum(operands.filters**2, axis=0))
    register_operand("nowhere", type=(), read=lambda operands: operands.extras.get("nowhere"))
    try:
        vocabulary = TaskProblem.vocabulary.func(problem)  # type: ignore[attr-defined]
        own, l2, absent = problem.behaviours([parse("energy"), library["l2"], parse("nowhere")])
    finally:
        del OPERANDS["energy"], OPERANDS["nowhere"]
    assert vocabulary.operands == (*problem.vocabulary.operands, "energy")
    assert own.digest == l2.digest
    assert isinstance(absent, Invalid) and "operand nowhere is missing" in absent.reason


def test_behaviours_tell_plans_apart_and_reasons(problem: TaskProblem) -> None:
    l2, doubled, l1, dead = problem.behaviours(
        [library["l2"], parse("2*sum(square(WI))"), library["l1"], parse("N/(NX - NX)")]
    )
    assert isinstance(l2, Behaviour) and isinstance(l1, Behaviour) and isinstance(doubled, Behaviour)
    assert l2.digest == doubled.digest != l1.digest
    assert set(l2.digests) == {"tiny", "other"}
    assert len(l2.digests["tiny"]) == 3
    assert isinstance(dead, Invalid)
    assert "task tiny, base 0: not finite in group conv1.kernel" in dead.reason


def test_running_many_trials_equals_running_each(problem: TaskProblem) -> None:
    (behaviour,) = problem.behaviours([library["l1"]])
    assert isinstance(behaviour, Behaviour)
    trials = [
        Trial(task, "search", base, 0, behaviour.digests[task][base], library["l1"])
        for base in range(2)
        for task in ("tiny", "other")
    ]
    assert [outcome.accuracy for outcome in problem.run_many(trials)] == [
        problem.run(trial).accuracy for trial in trials
    ]


@pytest.mark.parametrize("task", ["tiny", "other"])
def test_a_trial_carries_the_plan_of_its_base(problem: TaskProblem, task: str) -> None:
    f = library["fdr"]
    (behaviour,) = problem.behaviours([f])
    assert isinstance(behaviour, Behaviour)
    for base, plan in enumerate(problem.pools[task].plans([f])[0]):
        digest = behaviour.digests[task][base]
        entry = problem._entry(Trial(task, "search", base, 0, digest, f, behaviour.kept))
        assert isinstance(plan, FirstRoundPlan) and entry.kept == plan.kept
        assert kept_digest(plan.kept) == digest


def test_a_search_cannot_ask_for_final_bases(problem: TaskProblem) -> None:
    with pytest.raises(ValueError, match="a search's trials are on the pool 'search', got 'final'"):
        problem.run(Trial("tiny", "final", 0, 0, "x", library["l1"]))


def test_digests_tell_plans_apart() -> None:
    assert kept_digest(KEPT) != kept_digest(KEPT[:2])
    assert len(kept_digest(KEPT)) == 12


def test_programs_leave_a_model_factory_alone() -> None:
    programs = tiny_programs()
    assert split_network(programs.model)[1][("conv1", "kernel")].shape == (3, 3, 1, 4)
