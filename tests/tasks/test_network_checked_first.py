"""A network, a recipe or test images that do not fit a task's data are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.comparison.protocol import compare
from jaxprune.datasets.guarded_split import GuardedSplit, Split
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES

FEATURES = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
CLASSES = np.arange(60) % 12
RECIPE = RECIPES["adam_short"].replace(epochs=1, batch_size=20)


class Net(nnx.Module):
    """Two dense layers, whose outputs are changed at last."""

    def __init__(self, rngs: nnx.Rngs, outputs: int, change: Callable = lambda logits: logits) -> None:
        self.first, self.second = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, outputs, rngs=rngs)
        self.change = change

    def __call__(self, x):
        return self.change(self.second(nnx.relu(self.first(x))))


def make_task(outputs: int = 12, change: Callable = lambda logits: logits, **changes: object) -> Task:
    settings: dict[str, object] = {
        "train": (FEATURES, CLASSES),
        "validation": (FEATURES, CLASSES),
        "schedule": Schedule(kept_fraction=0.5),
        "recipe": RECIPE,
        "base_recipe": RECIPE,
    }
    return Task("mine", model=lambda rngs: Net(rngs, outputs, change), **(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("outputs", [1, 3, 11])
@pytest.mark.parametrize(
    "make", [TaskPrograms, lambda task: TaskProblem([task]), lambda task: compare(["l1"], task)]
)
def test_fewer_outputs_than_classes_are_refused(make: Callable, outputs: int) -> None:
    with pytest.raises(
        ValueError, match=rf"task 'mine' .* each of the 12 classes .* got {outputs} outputs\. Build it"
    ):
        make(make_task(outputs))


@pytest.mark.parametrize("outputs", [12, 13, 40])
def test_outputs_for_every_class_are_enough(outputs: int) -> None:
    assert TaskPrograms(make_task(outputs)).task.num_classes == 12


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda logits: (logits, logits), r"float32\[2, 12\], float32\[2, 12\]"),
        (lambda logits: logits[:, 0], r"float32\[2\]"),
        (lambda logits: logits[:, :, None], r"float32\[2, 12, 1\]"),
        (lambda logits: logits.T, r"float32\[12, 2\]"),
        (lambda logits: jnp.round(logits).astype(jnp.int32), r"int32\[2, 12\]"),
    ],
    ids=["two", "vector", "maps", "transposed", "integers"],
)
def test_what_are_no_logits_is_refused(change: Callable, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"returns \[N, K\] floating-point logits, one row an image, got {got} for 2"
    ):
        TaskPrograms(make_task(change=change))


@pytest.mark.parametrize("name", ["recipe", "base_recipe"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 61}, r"Recipe 'adam_short' needs at least one batch of 61 examples, got 60"),
        ({"augment": "crop_flip"}, r"crop_flip needs images \[N, H, W, C\], got shape \(60, 5\)"),
    ],
)
def test_a_recipe_that_does_not_fit_the_images_is_refused(
    name: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"task 'mine': {message}"):
        TaskPrograms(make_task(**{name: RECIPE.replace(**change)}))


def test_the_second_task_is_checked_before_the_first_is_trained() -> None:
    good = make_task()
    bad = Task("other", model=good.model, train=good.train, validation=good.validation,
               recipe=RECIPE.replace(batch_size=61))  # fmt: skip
    trained: list[object] = []
    with pytest.raises(ValueError, match="task 'other': Recipe 'adam_short' needs at least one batch of 61"):
        compare(["l1"], [good, bad], bases=1, on_base=lambda *base: trained.append(base))
    with pytest.raises(
        ValueError, match=r"evaluations from 1 to the 3 steps of a fine-tuning on task 'mine', got 4"
    ):
        compare(["l1"], good, bases=1, evaluations=4, on_base=lambda *base: trained.append(base))
    assert trained == []


def test_test_images_are_checked_when_the_task_is_made() -> None:
    short = GuardedSplit("mine", Split(FEATURES[:, :4], CLASSES))
    with pytest.raises(ValueError, match=r"mine, test split: needs images of shape \[N, 5\] as in training"):
        make_task(test=short)
    raw = (np.arange(300, dtype=np.uint8).reshape(60, 5), CLASSES)
    with pytest.raises(ValueError, match=r"floating-point training images beside test=, got whole numbers"):
        make_task(train=raw, validation=raw, test=GuardedSplit("mine", Split(FEATURES, CLASSES)))


class Centred(nnx.Module):
    """Subtracts the mean over its inputs from the kernel of its second layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 12, rngs=rngs)

    def __call__(self, x):
        kernel = self.second.kernel[...]
        return nnx.relu(self.first(x)) @ (kernel - kernel.mean(0, keepdims=True))


def test_masked_fine_tuning_of_weights_that_see_zeros_is_refused_before_bases_are_trained() -> None:
    task = make_task().replace(model=Centred)
    assert TaskPrograms(task).rounds[0].slim_model.first.kernel.shape == (5, 4)
    with pytest.raises(
        ValueError, match=r"same with zeros .* group first\.kernel, over which second\.kernel"
    ):
        TaskPrograms(task.replace(finetune="masked"))
