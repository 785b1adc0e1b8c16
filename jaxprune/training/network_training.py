"""Trains one network on all devices, from an input pipeline, with checkpoints: a run that is killed goes on as it was.

    def batches(start):
        return train_batches(source, batch_size=1024, seed=0, num_steps=125_100, start_step=start,
                             sharding=batch_sharding(), workers=16)

    trained = train_network(model, batches, RECIPES["imagenet_base"], num_steps=125_100, checkpoint_dir="run")

The state of the data is the number of the step alone. On the same devices, a run that was interrupted ends with the
same weights, bit for bit; on other devices they differ by rounding.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxprune.datasets.input_pipeline import IMAGENET_MEAN, IMAGENET_STD, Batch
from jaxprune.files import checksum
from jaxprune.interrupts import Interrupts
from jaxprune.structure.model_state import (
    FlatState,
    array_content,
    dotted,
    fingerprint,
    merge_model,
    put_beside,
    split_model,
)
from jaxprune.training.data_parallel import DataParallel, Pixels, TopCounts, data_mesh, training_step
from jaxprune.training.loop import StepState, Teacher, split_network
from jaxprune.training.recipes import Recipe
from jaxprune.training.run_checkpoints import RunCheckpoints
from jaxprune.training.training_run import Evaluation, TrainingProgress, TrainingRun
from jaxprune.types import is_whole


class Distillation(NamedTuple):
    """What a network learns from another one, beside labels.

    Attributes:
      teacher: from the same images to as many logits; it runs in evaluation mode, and is not changed.
      temperature: see `distillation_loss`.
      weight: share of that loss in [0, 1]; the rest is the loss on labels.
    """

    teacher: nnx.Module
    temperature: float = 4.0
    weight: float = 0.5


class TrainedNetwork(NamedTuple):
    """The result of a run.

    Attributes:
      model: a new model, as the given one, with the trained weights (or their moving average).
      weights: path -> the same weights.
      history: the evaluations, before the first step, between and after the last one.
    """

    model: nnx.Module
    weights: FlatState
    history: tuple[Evaluation, ...]


def train_network(
    model: nnx.Module,
    batches: Callable[[int], Iterator[Batch]],
    recipe: Recipe,
    *,
    num_steps: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    seed: int = 0,
    data: str = "",
    evaluate: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    mesh: Mesh | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    report_every: int = 50,
    distill: Distillation | None = None,
) -> TrainedNetwork:
    """Trains a network on batches that are split among all devices.

    Losses are averaged and batches normalised over the whole batch, whatever the number of devices. Examples of weight
    0 count neither in the loss nor in accuracies; batch normalisation sees them.

    Args:
      model: any NNX model from images to logits; it is not changed.
      batches: is called with the step to start at and yields the batch of each step from there on, at least
        `num_steps - start` of them: JAX arrays of all rows (best of `batch_sharding(mesh)`), or NumPy arrays of this
        process's rows. Where the recipe augments, they must not have been augmented before.
      recipe: optimiser, schedule, augmentation, precision; its batch size is that of all processes together.
      num_steps: steps of the whole run, >= 1, on which the schedule depends.
      mean: mean of each colour, or one for all, where 1 is the largest value of a pixel; images of floats are not
        normalised.
      std: standard deviations, likewise.
      seed: of dropout and augmentation, in [0, 2**31).
      data: names the data, with a fingerprint, so that checkpoints of another data set are refused.
      evaluate: yields the batches to evaluate on, from the start at each call.
      evaluate_every: steps between evaluations; None evaluates before the first and after the last step.
      checkpoint_dir: where the run is saved, and goes on from. With it, SIGTERM and Ctrl-C save the run before they
        end it; without it nothing is saved.
      save_every: steps between checkpoints, >= 1.
      mesh: has an axis "data"; by default all devices of all processes. With devices of this process alone
        (`local_mesh()`), other processes have no part in the run.
      on_progress: is told how the run goes.
      report_every: steps between reports, >= 1.
      distill: None, or a teacher whose soft classes the network learns. It sees the same augmented images.

    Returns:
      The trained network and its evaluations.

    Raises:
      ValueError: if the batch does not divide among the devices, a number is out of range, `checkpoint_dir` holds
        another run or only damaged checkpoints, there are too few batches or batches of another size, or a label is no
        class of the network.
      TrainingDivergedError: if the loss is not finite.
      TrainingInterrupted: after SIGTERM or Ctrl-C, if there is a `checkpoint_dir`.
      OSError: if there is too little room for checkpoints.

    Example:
      >>> from jaxprune.datasets.input_pipeline import array_batches
      >>> from jaxprune.nets import PlainConvNet
      >>> images, labels = np.zeros((8, 8, 8, 1), np.uint8), np.arange(8) % 2
      >>> recipe = Recipe("example", "sgd", 0.1, epochs=1, batch_size=4)
      >>> def batches(start):
      ...     return array_batches(images, labels, batch_size=4, seed=0, num_steps=2, start_step=start)
      >>> model = PlainConvNet(nnx.Rngs(0), widths=(2, 2, 4))
      >>> trained = train_network(model, batches, recipe, num_steps=2, mean=(0.5,), std=(0.25,))
      >>> len(trained.weights)
      8
    """
    _check_numbers(num_steps, seed, evaluate_every, save_every, report_every)
    network, weights = split_network(model)
    devices = DataParallel(network, Pixels(tuple(mean), tuple(std)), data_mesh(mesh))
    devices.check_batch_size(recipe.batch_size)
    teacher, teacher_weights = None, None
    if distill is not None:
        teacher_network, teacher_weights = split_network(distill.teacher)
        teacher = Teacher(teacher_network, float(distill.temperature), float(distill.weight))
    init, step = training_step(network, recipe, num_steps, devices.pixels, seed=seed, teacher=teacher)
    run = TrainingRun(
        recipe, num_steps, devices, step, batches, evaluate,
        evaluate_every=evaluate_every or num_steps, save_every=save_every, report_every=report_every,
        on_progress=on_progress, teacher_weights=teacher_weights,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        state: StepState | None = None
        if checkpoint_dir is not None:
            identity = _identity(weights, recipe, num_steps, devices.pixels, seed, data)
            if teacher is not None and teacher_weights is not None:
                identity["teacher"] = [_content_of(teacher_weights), teacher.temperature, teacher.weight]
            like = jax.eval_shape(init, weights)
            is_alone = devices.num_processes == 1
            checkpoints = RunCheckpoints(checkpoint_dir, identity, like, is_alone=is_alone)
            run.checkpoints = stack.enter_context(checkpoints)
            state = run.restore()
            if is_alone:  # else JAX itself notes SIGTERM, which a handler of Python's would prevent
                run.interrupts = stack.enter_context(Interrupts(signal.SIGINT, signal.SIGTERM))
        if state is None:
            host = jax.tree.map(np.asarray, weights)
            state = jax.jit(init, in_shardings=devices.replicated, out_shardings=devices.replicated)(host)
        result = jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), run.train(state).result)
    trained = put_beside(result, weights)
    graph, _, rest = split_model(model)
    return TrainedNetwork(merge_model(graph, trained, rest), trained, tuple(run.history))


def evaluate_network(
    model: nnx.Module,
    batches: Iterable[Batch],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    mesh: Mesh | None = None,
) -> TopCounts:
    """Counts how many examples a network classifies rightly, on all devices.

    Args:
      model: any NNX model from images to logits, run in evaluation mode; it is not changed.
      batches: batches that can be split among the devices; examples of weight 0 do not count.
      mean: as for `train_network`, like the others.
      std: likewise.
      mesh: likewise.

    Returns:
      Exact counts; examples with a non-finite logit count as wrong.

    Example:
      >>> from jaxprune.datasets.input_pipeline import array_evaluation_batches
      >>> from jaxprune.nets import PlainConvNet
      >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5)
      >>> batches = array_evaluation_batches(images, labels, batch_size=3)
      >>> evaluate_network(PlainConvNet(nnx.Rngs(0)), batches, mean=(0.5,), std=(0.25,)).num_examples
      5
    """
    network, weights = split_network(model)
    devices = DataParallel(network, Pixels(tuple(mean), tuple(std)), data_mesh(mesh))
    return devices.count(jax.tree.map(np.asarray, weights), batches)


def _check_numbers(
    num_steps: int, seed: int, evaluate_every: int | None, save_every: int, report_every: int
) -> None:
    """Checks numbers of steps and the seed; names all that are out of range."""
    counts = {
        "num_steps": num_steps,
        "evaluate_every": 1 if evaluate_every is None else evaluate_every,
        "save_every": save_every,
        "report_every": report_every,
    }
    problems = [
        f"{name} to be a whole number >= 1, got {value!r}"
        for name, value in counts.items()
        if not is_whole(value, smallest=1)
    ]
    if not (is_whole(seed, smallest=0) and seed < 2**31):
        problems.append(f"seed to be a whole number in [0, 2**31), got {seed!r}")
    if problems:
        raise ValueError(f"train_network needs {'; '.join(problems)}.")


def _identity(
    weights: FlatState, recipe: Recipe, num_steps: int, pixels: Pixels, seed: int, data: str
) -> dict[str, Any]:
    """What tells this run from others, by name."""
    return {
        "network": fingerprint(weights),
        "starting weights": _content_of(weights),
        **{f"recipe {name}": value for name, value in recipe.settings.items()},
        "num_steps": int(num_steps),  # NumPy's numbers are not written as JSON
        "mean": [float(value) for value in pixels.mean],
        "std": [float(value) for value in pixels.std],
        "seed": int(seed),
        "data": data,
    }


def _content_of(weights: FlatState) -> str:
    """A hash over paths, types, shapes and bits."""
    return checksum(
        sorted([dotted(path), *map(str, array_content(array))] for path, array in weights.items())
    )
