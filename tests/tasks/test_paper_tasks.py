"""The paper's tasks, on tiny sets in the real format: sizes, schedules and recipes, and what is said without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prepared_data import write_prepared

from jaxprune.nets.vgg import VGG16_WIDTHS
from jaxprune.tasks.named_tasks import PREPARED, find_task
from jaxprune.tasks.tasks import Task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("mnist", "cifar10"):
        write_prepared(name, folder, num_train=50, num_test=20)
    return {name: find_task(name, folder) for name in PREPARED}


def test_both_read_prepared_sets(tasks: dict[str, Task]) -> None:
    shapes = {name: task.train[0].shape for name, task in tasks.items()}
    assert shapes == {"mnist-lenet5": (40, 28, 28, 1), "cifar10-vgg16": (40, 32, 32, 3)}
    for name, task in tasks.items():
        assert task.name == name and task.test is not None and task.test.num_examples == 20
        assert len(task.validation[1]) == 10 and task.num_classes == 10
        assert (task.bases, task.extra_bases, task.final_bases) == (1, 3, 4)
        assert task.train[0].dtype == np.uint8 and task.scaling is not None


def test_lenet_loses_the_channels_of_the_paper(tasks: dict[str, Task]) -> None:
    rounds = tasks["mnist-lenet5"].schedule.kept_counts
    assert rounds is not None
    whole = ((20, 50, 500), *rounds)
    removed = [
        tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(whole, whole[1:], strict=False)
    ]
    assert removed == [(10, 30, 400), (5, 8, 55), (0, 1, 5)]


def test_vgg_loses_the_channels_of_the_paper(tasks: dict[str, Task]) -> None:
    rounds = tasks["cifar10-vgg16"].schedule.kept_counts
    assert rounds is not None
    whole = (VGG16_WIDTHS, *rounds)
    removed = [
        tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(whole, whole[1:], strict=False)
    ]
    assert removed == [(12, 12, 25, 25, 51, 51, 51, *(102,) * 7)] * 2


def test_vgg_is_scored_layer_after_layer_and_lenet_at_once(tasks: dict[str, Task]) -> None:
    scoring = {name: task.schedule.scoring for name, task in tasks.items()}
    assert scoring == {"mnist-lenet5": "joint", "cifar10-vgg16": "sequential"}


def test_recipes_are_those_of_the_paper(tasks: dict[str, Task]) -> None:
    lenet, vgg = tasks["mnist-lenet5"].recipes[0], tasks["cifar10-vgg16"].recipes[0]
    assert (lenet.optimizer, lenet.learning_rate, lenet.batch_size, lenet.weight_decay, lenet.epochs) == (
        "adam", 5e-4, 200, 7e-5, 100,
    )  # fmt: skip
    assert (vgg.optimizer, vgg.learning_rate, vgg.batch_size, vgg.weight_decay, vgg.epochs) == (
        "sgd", 6e-3, 128, 1e-3, 100,
    )  # fmt: skip
    assert (vgg.momentum, vgg.nesterov, vgg.milestones, vgg.drop_factor) == (0.9, True, (0.4, 0.8), 0.28)
    assert vgg.augment == "crop_flip"


@pytest.mark.parametrize(("name", "data"), [("mnist-lenet5", "mnist"), ("cifar10-vgg16", "cifar10")])
def test_without_data_the_command_that_prepares_them_is_named(name: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"tfds:{data} needs to be prepared in .*jaxprune prepare {data}"):
        find_task(name, tmp_path)
