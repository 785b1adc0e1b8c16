"""Tasks and schedules: counts by hand, and every error with its text."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from jaxprune.datasets.guarded_split import GuardedSplit, Split
from jaxprune.nets import PlainConvNet
from jaxprune.search.settings import PRESETS, find_preset
from jaxprune.tasks.named_tasks import PREPARED, TASKS, find_task
from jaxprune.tasks.task_programs import TaskPrograms, examples_of
from jaxprune.tasks.tasks import Schedule, Task, check_unique
from jaxprune.training.recipes import RECIPES

SIZES = {"conv1.kernel": 16, "conv2.kernel": 32}


def make_model(rngs: nnx.Rngs) -> nnx.Module:
    return PlainConvNet(rngs, widths=(4, 4, 8), num_classes=4, image_shape=(4, 4, 1))


def make_task(**changes: object) -> Task:
    x = np.random.default_rng(0).normal(size=(60, 4, 4, 1)).astype(np.float32)
    y = np.arange(60) % 4
    settings: dict[str, object] = {"model": make_model, "train": (x, y), "validation": (x[:20], y[:20])}
    return Task("mine", **(settings | changes))  # type: ignore[arg-type]


def test_one_round_keeps_the_fraction() -> None:
    assert Schedule(kept_fraction=0.375).counts(SIZES) == ({"conv1.kernel": 6, "conv2.kernel": 12},)


def test_rounds_approach_the_fraction_evenly() -> None:
    counts = Schedule(kept_fraction=0.25, rounds=2).counts(SIZES)
    assert counts == ({"conv1.kernel": 8, "conv2.kernel": 16}, {"conv1.kernel": 4, "conv2.kernel": 8})


def test_a_fraction_never_removes_a_whole_group() -> None:
    assert Schedule(kept_fraction=0.01).counts({"conv": 8}) == ({"conv": 1},)


def test_explicit_counts_are_per_round_and_group() -> None:
    schedule = Schedule(kept_counts=((10, 20), (8, 10)))
    assert schedule.rounds == 2
    assert schedule.counts(SIZES)[1] == {"conv1.kernel": 8, "conv2.kernel": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of kept_fraction= and kept_counts="),
        ({"kept_fraction": 0.5, "kept_counts": ((1,),)}, "exactly one of"),
        ({"kept_fraction": 0.0}, "kept_fraction must be above 0 and at most 1, got 0.0"),
        ({"kept_fraction": 1.5}, "kept_fraction must be above 0 and at most 1, got 1.5"),
        ({"kept_fraction": 0.5, "rounds": 0}, "rounds must be at least 1, got 0"),
        ({"kept_counts": ((2.5,),)}, "kept_counts needs whole numbers"),
        ({"kept_counts": ("12",)}, "kept_counts needs whole numbers"),
        ({"kept_counts": ((True,),)}, "kept_counts needs whole numbers"),
        ({"kept_counts": (3,)}, "kept_counts needs whole numbers"),
        ({"kept_counts": ((1, 2), (1,))}, "one sequence of equal length per round"),
        ({"kept_counts": ((4, 2), (5, 2))}, "must not grow from round to round"),
    ],
)
def test_bad_schedules_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)  # type: ignore[arg-type]


def test_counts_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"2 numbers a round, one each for conv1.kernel, conv2.kernel, got 1"
    ):
        Schedule(kept_counts=((4,),)).counts(SIZES)
    with pytest.raises(ValueError, match=r"conv1.kernel: 0 of 16; conv2.kernel: 33 of 32"):
        Schedule(kept_counts=((0, 33),)).counts(SIZES)


def test_a_task_checks_its_arrays_once_and_reads_their_classes() -> None:
    task = make_task()
    assert task.num_classes == 4
    assert task.train[0].dtype == np.float32
    assert task.replace(bases=7).data_fingerprint == task.data_fingerprint
    assert task.replace(bases=7).bases == 7


def test_a_task_without_a_base_recipe_trains_bases_eight_times_as_long() -> None:
    task = make_task(recipe=RECIPES["adam_short"].replace(epochs=2, compensate=True))
    assert task.base_recipe.epochs == 16  # type: ignore[union-attr]
    assert not task.base_recipe.compensate  # type: ignore[union-attr]


def test_settings_are_plain_data() -> None:
    settings = make_task().settings
    assert settings["bases"] == 4
    assert settings["recipe"] == RECIPES["adam_short"].settings
    assert "compensate" not in settings["recipe"]  # so that fingerprints are those of earlier versions
    assert (
        make_task(recipe=RECIPES["adam_short"].replace(compensate=True)).settings["recipe"]["compensate"]
        is True
    )
    assert settings["schedule"]["kept_fraction"] == 0.375  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": make_model(nnx.Rngs(0))}, "needs model= a function of nnx.Rngs"),
        ({"recipe": "adam_shrt"}, "got 'adam_shrt'. Did you mean 'adam_short'"),
        ({"bases": 0, "final_bases": 0}, r"bases >= 1 \(got 0\); final_bases >= 1 \(got 0\)"),
        ({"weight": float("nan")}, "weight above 0"),
        ({"finetune": "sliced"}, 'finetune "slim" or "masked"'),
        (
            {"base_recipe": RECIPES["adam_short"].replace(compensate=True)},
            r"base_recipe without compensate \(got compensate=True\)",
        ),
        ({"train": (np.zeros((5, 4, 4, 1)), np.arange(4))}, "one label for each of 5 examples"),
        ({"train": (np.zeros((5, 4, 4, 1)), np.zeros(5, int))}, "at least two classes"),
        ({"train": (np.full((4, 4, 4, 1), np.nan), np.arange(4))}, "finite images"),
    ],
)
def test_bad_tasks_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**changes)


def test_a_task_needs_a_name_for_files() -> None:
    with pytest.raises(ValueError, match="a task's name needs letters"):
        Task("a/b", model=make_model, train=make_task().train, validation=make_task().validation)


def test_a_scaled_task_has_a_share_of_images_and_epochs() -> None:
    recipe = RECIPES["adam_short"].replace(epochs=20, warmup=2, batch_size=8)
    task = make_task(recipe=recipe, base_recipe=recipe.replace(epochs=3))
    small = task.scaled(0.25)
    assert (len(small.train[1]), len(small.validation[1])) == (15, 5)
    assert [(recipe.epochs, recipe.batch_size) for recipe in small.recipes] == [(5, 8), (1, 8)]
    assert small.recipes[0].warmup == 0.5
    assert (small.bases, small.num_classes, small.schedule) == (task.bases, 4, task.schedule)
    assert small.data_fingerprint != task.data_fingerprint
    assert [task.scaled(scale).calibration for scale in (1.0, 0.25, 0.001)] == [1000, 250, 8]
    np.testing.assert_array_equal(np.bincount(small.train[1]), [4, 4, 4, 3])


def test_a_scaled_task_keeps_a_batch_and_an_image_of_each_class() -> None:
    small = make_task(recipe=RECIPES["adam_short"].replace(batch_size=30)).scaled(0.01)
    assert (len(small.train[1]), len(small.validation[1])) == (30, 4)
    assert make_task().scaled(1.0).data_fingerprint == make_task().data_fingerprint


def test_images_with_an_identity_are_not_hashed() -> None:
    task, other = make_task(data_identity="mnist 3.0.1 abc"), make_task(data_identity="mnist 3.0.2 abc")
    (images, labels), pixels = task.train, make_task().data_fingerprint
    same = make_task(data_identity="mnist 3.0.1 abc", train=(np.asarray(images) + 1, labels))
    assert task.data_fingerprint == same.data_fingerprint
    assert len({pixels, task.data_fingerprint, other.data_fingerprint}) == 3
    assert "data_identity" not in task.settings
    assert task.replace(bases=7).scaled(1.0).data_fingerprint == task.data_fingerprint
    assert task.scaled(0.5).data_fingerprint not in (
        task.data_fingerprint,
        task.scaled(0.75).data_fingerprint,
    )


def test_other_images_do_not_keep_an_identity() -> None:
    task = make_task(data_identity="mnist 3.0.1 abc")
    assert task.replace(train=task.train).data_fingerprint == make_task().data_fingerprint
    kept = task.replace(train=task.train, data_identity="mnist 3.0.1 abc")
    assert kept.data_fingerprint == task.data_fingerprint


@pytest.mark.parametrize("scale", [0.0, -0.1, 1.01, float("nan")])
def test_a_scale_is_a_share(scale: float) -> None:
    with pytest.raises(
        ValueError, match=r"scale needs to be a share above 0 and at most 1, such as 0\.05, got"
    ):
        make_task().scaled(scale)


def test_tasks_of_a_problem_have_different_names() -> None:
    with pytest.raises(ValueError, match="at least one task is needed"):
        check_unique([])
    with pytest.raises(ValueError, match="different names, got mine, mine"):
        check_unique([make_task(), make_task()])


PACKAGED = [name for name in TASKS if name not in PREPARED]


@pytest.mark.parametrize("name", PACKAGED)
def test_named_tasks_exist_with_guarded_test_images(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    assert task.test is not None


COUNTS = {
    "digits": (16, 0, 32),
    "digits-deep": (16, 0, 32),
    "digits-dw": (16, 0, 32),
    "digits-res": (6, 0, 8),
    "fashion": (6, 0, 8),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_named_tasks_keep_three_eighths_or_so_of_each_group(name: str) -> None:
    task = find_task(name)
    assert (task.bases, task.extra_bases, task.final_bases) == COUNTS[name]
    programs = TaskPrograms(task)
    widths, (counts,) = programs.structure.widths, task.schedule.counts(programs.structure.widths)
    smallest = 0.2 if name == "fashion" else 0.375
    assert all(smallest <= counts[group] / width <= 0.4 for group, width in widths.items())
    assert programs.trainer(0).chosen == "scan"


def test_unknown_tasks_name_the_closest() -> None:
    with pytest.raises(
        ValueError,
        match=r"one of digits, digits-deep, .*, mnist-lenet5, cifar10-vgg16, or module:factory, got 'fashon'",
    ):
        find_task("fashon")
    with pytest.raises(ValueError, match="needs a module on the Python path with a function 'f'"):
        find_task("no_such_module:f")
    with pytest.raises(ValueError, match="needs to be, or return, a jaxprune Task, got float"):
        find_task("math:pi")


def test_a_factory_of_ones_own_is_found() -> None:
    assert find_task("test_tasks:make_task").name == "mine"


def test_the_paper_preset_takes_other_tasks() -> None:
    config = find_preset("paper", tasks=["digits"]).config
    assert (config.vocabulary, config.variation, config.seeds, config.fitness, config.joint) == (
        "paper", "paper", "paper", "finetune", "geometric",
    )  # fmt: skip
    assert (config.population, config.generations, config.elites, config.tournament) == (40, 10, 6, 3)
    # every child is tried on everything, and none is preferred by what its plan lets expect
    assert (config.promote_fraction, config.guided_fraction, config.min_plan_distance) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"one of quick, thorough, paper, got 'quik'. Did you mean 'quick'"):
        find_preset("quik")
    assert all(set(preset.tasks) <= set(TASKS) for preset in PRESETS.values())


class TestPixels:
    """Images of 8 bits stay so on the host, and are standardised on the device."""

    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)

    def make(self, **changes):
        split = (self.pixels, np.arange(40) % 4)
        return make_task(train=split, validation=split, **changes)

    def test_they_stay_as_they_are(self):
        task = self.make()
        assert task.train[0].dtype == np.uint8 and task.scaling is not None
        assert make_task().scaling is None
        again = task.replace(bases=7)
        assert again.train[0].dtype == np.uint8 and again.data_fingerprint == task.data_fingerprint
        assert task.scaled(0.5).train[0].dtype == np.uint8
        assert "scaling" not in task.settings

    def test_the_device_gets_what_standardising_before_gives(self):
        task = self.make()
        examples = examples_of(task, task.train)
        assert examples.x.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(examples.x), task.scaling(self.pixels))
        floating = make_task()
        np.testing.assert_array_equal(np.asarray(examples_of(floating, floating.train).x), floating.train[0])

    def test_test_images_are_pixels_too(self):
        split = Split(self.pixels, np.arange(40, dtype=np.int32) % 4)
        assert self.make(test=GuardedSplit("mine", split)).test is not None
        wrong = GuardedSplit("mine", Split(split.images.astype(np.float32), split.labels))
        with pytest.raises(
            ValueError, match=r"needs uint8 images, as those of training, .* got dtype float32\."
        ):
            self.make(test=wrong)
