"""Fine-tunes a network on labelled examples in one call: a pruned one, say, with its dense network as a teacher.

    smaller = jp.slim(model, plan)
    tuned = jp.finetune(smaller, (images, labels), recipe, validation=(more, their_labels), teacher=model, out="run")
    tuned.model, tuned.history

The recipe says how: learning rate over time, warm-up, label smoothing, precision, augmentation, averages of weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from jaxprune.datasets.dataset import Dataset
from jaxprune.datasets.input_pipeline import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    array_batches,
    array_evaluation_batches,
)
from jaxprune.structure.model_state import array_content
from jaxprune.training.data_parallel import batch_sharding
from jaxprune.training.network_training import Distillation, TrainedNetwork, train_network
from jaxprune.training.recipes import Recipe, find_recipe
from jaxprune.training.training_run import TrainingProgress
from jaxprune.types import Array

Examples: TypeAlias = tuple[Array, Array]
"""Images [N, ...] as floats or as uint8, or tokens [N, T] of another type of whole numbers; and labels [N] from 0."""

Batches: TypeAlias = Callable[[int], Iterator[Batch]]
"""As for `train_network`."""

OnProgress: TypeAlias = Callable[[TrainingProgress], None]


class Arrays(NamedTuple):
    """Images and labels in memory."""

    images: np.ndarray
    labels: np.ndarray


_NUM_REPORTS = 100
"""Reports of a run to its progress bar, about."""


def finetune(
    model: nnx.Module,
    data: Examples | Dataset | Batches,
    recipe: str | Recipe,
    *,
    validation: Examples | None = None,
    teacher: nnx.Module | None = None,
    temperature: float | None = None,
    distill_weight: float | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_steps: int | None = None,
    evaluate_every: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> TrainedNetwork:
    """Returns a network that was trained further, and how well it did on the way.

    With a teacher, the loss is `(1 - distill_weight)` times the recipe's, on labels, plus `distill_weight` times
    T^2 KL(teacher || network) of the softmax of logits / T. The teacher sees the same augmented images, in evaluation
    mode and float32.

    Args:
      model: any NNX model from images (or tokens) to logits [N, K], of any size; it is not changed.
      data: images and labels; a `Dataset`, of which the training and validation splits are used; or, for data that do
        not fit memory, a function from the step to start at to an iterator of batches, as `train_network` takes it.
      recipe: a recipe or its name; `warmup`, `schedule="cosine"`, `label_smoothing`, `compute="bfloat16"` are settings
        of it.
      validation: images and labels to evaluate on, before the first and after the last step.
      teacher: the dense network, or any other from the same images to as many logits; it is not changed.
      temperature: T > 0 of the soft classes, 4 by default.
      distill_weight: share of the teacher's part of the loss in [0, 1], one half by default.
      mean: mean of each colour where 1 is the largest value of a pixel; needed for uint8 images, and only there. A
        `Dataset` has its own, and for a function of batches they are ImageNet's by default.
      std: standard deviations, likewise.
      num_steps: steps of the whole run; needed with a function of batches, and by default the recipe's epochs.
      evaluate_every: steps between evaluations; None evaluates before and after the run.
      seed: of the order of examples, augmentation and dropout, in [0, 2**31).
      out: folder for checkpoints. A run that is killed goes on from the newest one when it is started in the same way,
        bit for bit; SIGTERM and Ctrl-C save it first. Without it nothing is saved.
      save_every: steps between checkpoints, >= 1.
      mesh: as for `train_network`.
      progress: whether to show a bar on standard error; None shows it on a terminal.
      on_progress: is told how the run goes, as by `train_network`.

    Returns:
      The new model, its weights by path, and the evaluations (none without validation images).

    Raises:
      TypeError: if `data` or `validation` is none of these, such as several inputs for each example.
      ValueError: if options contradict each other or are out of range, images are uint8 and there is no `mean` or
        `std`, the recipe corrects weights before training (`slim(..., compensate=)` does that), teacher and network
        have different outputs, or as `train_network`.
      TrainingDivergedError: if the loss is not finite.
      TrainingInterrupted: after SIGTERM or Ctrl-C, if there is a folder.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> images, labels = np.zeros((8, 8, 8, 1), np.float32), np.arange(8) % 2
      >>> recipe = Recipe("example", "sgd", 0.1, epochs=1, batch_size=4, schedule="cosine")
      >>> tuned = finetune(PlainConvNet(nnx.Rngs(0), widths=(2, 2, 4)), (images, labels), recipe)
      >>> type(tuned.model).__name__, tuned.history
      ('PlainConvNet', ())

    Source:
      Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, for the teacher.
    """
    recipe = find_recipe(recipe)
    if recipe.compensate:
        raise ValueError(
            f"finetune needs a recipe that only trains, got {recipe.name!r} with compensate=True. Correct the weights "
            "with slim(..., compensate=observed), and use recipe.replace(compensate=False)."
        )
    distill = _distillation(teacher, temperature, distill_weight)
    source = _source_of(data, mean, std)
    held_out = source.validation if validation is None else _arrays("validation", validation)
    if source.batches is not None and num_steps is None:
        raise ValueError(
            "finetune needs num_steps with a function of batches, got None. The schedule ends there: say "
            "recipe.num_steps(number of examples)."
        )
    if num_steps is None:
        num_steps = recipe.num_steps(len(source.train[0]))
    with contextlib.ExitStack() as stack:
        tell = on_progress
        if progress or (progress is None and sys.stderr.isatty()):
            tell = stack.enter_context(progress_bar("fine-tuning", num_steps, on_progress))
        return train_network(
            model,
            source.batches or partial(_batches, source.train, recipe.batch_size, num_steps, seed, mesh),
            recipe,
            num_steps=num_steps,
            mean=source.mean,
            std=source.std,
            seed=seed,
            data=source.name,
            evaluate=None if held_out is None else partial(_evaluation, held_out, recipe.batch_size, mesh),
            evaluate_every=evaluate_every,
            checkpoint_dir=out,
            save_every=save_every,
            mesh=mesh,
            on_progress=tell,
            report_every=max(1, min(50, num_steps // _NUM_REPORTS)),
            distill=distill,
        )


class _Source(NamedTuple):
    """The data of a run: batches, or arrays for training and perhaps validation."""

    batches: Batches | None
    train: Arrays
    validation: Arrays | None
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _distillation(
    teacher: nnx.Module | None, temperature: float | None, weight: float | None
) -> Distillation | None:
    """Returns what is learned from a teacher, after checking its options."""
    if teacher is None:
        given = [
            name
            for name, value in (("temperature", temperature), ("distill_weight", weight))
            if value is not None
        ]
        if given:
            raise ValueError(
                f"{' and '.join(given)} need a teacher, got none. Give teacher=dense_model, or leave them out."
            )
        return None
    settings = Distillation(teacher)
    settings = settings._replace(
        temperature=settings.temperature if temperature is None else temperature,
        weight=settings.weight if weight is None else weight,
    )
    if not 0 < settings.temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}. Usual are 1 to 10.")
    if not 0 <= settings.weight <= 1:
        raise ValueError(
            f"distill_weight must be in [0, 1], got {weight}. It is the teacher's share of the loss."
        )
    return settings


def _source_of(data: object, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> _Source:
    """Tells what kind of data these are, and how pixels become inputs."""
    nothing = np.zeros(0)
    if isinstance(data, Dataset):
        name, train, validation = data.fingerprint, Arrays(*data.train), Arrays(*data.validation)
        if data.scaling is not None and mean is None and std is None:
            centre, factor = (np.asarray(part, np.float64) for part in data.scaling)
            mean, std = tuple((centre / 255).tolist()), tuple((1 / (255 * factor)).tolist())
    elif callable(data):
        pixels = (mean or IMAGENET_MEAN, std or IMAGENET_STD)
        return _Source(data, Arrays(nothing, nothing), None, "", *pixels)
    elif isinstance(data, tuple | list) and len(data) == 2:
        train, validation = _arrays("data", data), None
        name = hashlib.sha256(b"".join(str(array_content(array)).encode() for array in train)).hexdigest()[
            :16
        ]
    else:
        raise TypeError(
            f"finetune needs data as (images, labels), a Dataset or a function of batches, got {type(data).__name__}."
        )
    is_float = train.images.dtype != np.uint8
    if is_float == (mean is not None or std is not None) or (mean is None) != (std is None):
        raise ValueError(
            "finetune needs mean= and std= of uint8 images, and neither for images of floats, which it takes as they "
            f"are, got {train.images.dtype} with mean={mean} and std={std}."
        )
    return _Source(None, train, validation, name, mean or IMAGENET_MEAN, std or IMAGENET_STD)


def _arrays(name: str, pair: Sequence[Array]) -> Arrays:
    """Returns images and labels as NumPy arrays, floats as float32."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"finetune needs {name} as (images, labels), got {type(pair).__name__}.")
    images, labels = pair
    if not isinstance(images, list) and not hasattr(images, "shape"):
        raise TypeError(
            f"finetune needs {name} as (images, labels) with one array of images or tokens, got "
            f"{type(images).__name__} for the images. Train a network of other inputs with its own loop, and take its "
            "optimizer along: smaller, optimizer = jp.slim(model, plan, optimizer=optimizer)."
        )
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype.kind in "iu" and images.dtype != np.uint8 and images.size:
        low, high = int(images.min()), int(images.max())
        if images.ndim != 2 or low < 0 or high >= 2**31:
            raise ValueError(
                f"finetune needs {name} with images of floats or uint8, or tokens [N, T] from 0 to 2**31 - 1, got "
                f"{images.dtype} {images.shape} from {low} to {high}. Use images.astype(np.uint8) for pixels."
            )
        if labels.ndim > 1:
            raise ValueError(
                f"finetune needs {name} with one label for each row of tokens, got labels {labels.shape}. Train a "
                "network that answers for each token with its own loop and slim(..., optimizer=)."
            )
        return Arrays(images.astype(np.int32), labels)
    return Arrays(images.astype(np.float32) if images.dtype.kind == "f" else images, labels)


def _batches(
    arrays: Arrays, batch_size: int, num_steps: int, seed: int, mesh: Mesh | None, start: int
) -> Iterator[Batch]:
    """The training batches from a step on; the recipe augments them on the device."""
    return array_batches(
        *arrays, batch_size=batch_size, seed=seed, num_steps=num_steps, start_step=start, augment=False,
        shard=(jax.process_index(), jax.process_count()), sharding=batch_sharding(mesh),
    )  # fmt: skip


def _evaluation(arrays: Arrays, batch_size: int, mesh: Mesh | None) -> Iterator[Batch]:
    """The batches to evaluate on, of the size that can be split among devices."""
    shard = (jax.process_index(), jax.process_count())
    return array_evaluation_batches(
        *arrays, batch_size=batch_size, shard=shard, sharding=batch_sharding(mesh)
    )


@contextlib.contextmanager
def progress_bar(title: str, num_steps: int, on_progress: OnProgress | None = None) -> Iterator[OnProgress]:
    """Yields what shows a training as a bar on standard error, and passes reports on.

    Args:
      title: what is done.
      num_steps: steps of the whole training.
      on_progress: gets the reports too.
    """
    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=num_steps)

        def tell(progress: TrainingProgress) -> None:
            words = [title]
            if progress.loss is not None:
                words.append(f"loss {progress.loss:.4f}")
            if progress.evaluation is not None:
                words.append(f"validation {progress.evaluation.counts.top1_percent:.2f} %")
            bar.update(task, completed=progress.num_done, description=", ".join(words))
            if on_progress is not None:
                on_progress(progress)

        yield tell
