"""Trainings and evaluations of whole networks on the images of a transfer, on this process's devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.comparison.transfer_data import Part, TransferData
from jaxprune.comparison.transfer_records import Accuracy
from jaxprune.datasets.guarded_split import Split
from jaxprune.datasets.input_pipeline import Batch, Batches
from jaxprune.keys import derive, generator
from jaxprune.training.data_parallel import BATCH_AXIS, TopCounts, local_mesh
from jaxprune.training.network_training import evaluate_network, train_network
from jaxprune.training.recipes import Recipe
from jaxprune.training.training_run import Evaluation, TrainingDivergedError, TrainingProgress

_MOST_POINTS = 30
"""Evaluations along a training, at most one an epoch."""

_LEAST_STEPS, _CHECKPOINTS = 500, 100
"""Least number of steps between checkpoints, and how many there are in a long training."""

_SECONDS_BETWEEN_MESSAGES = 15.0

_TOP5_CLASSES = 5
"""With more classes than these, top-5 accuracy says something."""

Show = Callable[[str, int], AbstractContextManager[Callable[[TrainingProgress], None]]]
"""Shows a training of a title and so many steps in place of messages, as a progress bar does."""


class Training(NamedTuple):
    """A training that is done.

    Attributes:
      model: the trained network.
      before: accuracy before the first step.
      after: accuracy after the last one.
      curve: (epochs trained, top-1 accuracy) along the training, the last one after it.
      steps: optimiser steps.
      seconds: how long the training took, without interruptions.
    """

    model: nnx.Module
    before: Accuracy
    after: Accuracy
    curve: tuple[tuple[float, float], ...]
    steps: int
    seconds: float


class NetworkTrainings:
    """Trains and evaluates networks on the same images, on all devices of this process.

    Args:
      data: the images.
      on_message: is told how trainings go.
      show: shows a training in place of messages about its steps; None for messages.
      look: is called every few steps, and raises an exception if the training is not to go on.

    Attributes:
      num_devices: that batches are split among.
    """

    def __init__(
        self,
        data: TransferData,
        on_message: Callable[[str], None],
        show: Show | None = None,
        *,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.data, self.on_message, self._show, self._look = data, on_message, show, look
        self._mesh = local_mesh()
        self._sharding = NamedSharding(self._mesh, PartitionSpec(BATCH_AXIS))
        self.num_devices = self._mesh.size

    def train(
        self, model: nnx.Module, recipe: Recipe, *, title: str, key: jax.Array, checkpoint_dir: Path
    ) -> Training:
        """Trains a network from its last checkpoint on, with evaluations on validation images along the way.

        Args:
          model: the network before the first step; it is not changed.
          recipe: how.
          title: of the training, in messages.
          key: the order of images, augmentation and dropout follow from it.
          checkpoint_dir: where its checkpoints are.

        Raises:
          ValueError: if the loss diverges, or `checkpoint_dir` holds another training.
          TrainingInterrupted: after Ctrl-C or SIGTERM; the training was saved.
        """
        data = self.data
        num_steps = recipe.num_steps(data.num_train)
        clock = _Clock(title, self.on_message)

        def batches(start_step: int) -> Batches:
            clock.start(start_step)
            return data.train_batches(
                batch_size=recipe.batch_size,
                seed=whole_number(derive(key, "order"), 63),
                num_steps=num_steps,
                start_step=start_step,
                sharding=self._sharding,
            )

        try:
            with ExitStack() as stack:
                tell = stack.enter_context(self._show(title, num_steps)) if self._show else clock.tell

                def on_progress(progress: TrainingProgress) -> None:
                    tell(progress)
                    self._look()

                trained = train_network(
                    model,
                    batches,
                    recipe,
                    num_steps=num_steps,
                    mean=data.pixels.mean,
                    std=data.pixels.std,
                    seed=whole_number(derive(key, "train"), 31),
                    data=data.fingerprint,
                    evaluate=lambda: self._validation(recipe.batch_size),
                    evaluate_every=num_steps // recipe.epochs * -(-recipe.epochs // _MOST_POINTS),
                    checkpoint_dir=checkpoint_dir,
                    save_every=max(_LEAST_STEPS, num_steps // _CHECKPOINTS),
                    mesh=self._mesh,
                    on_progress=on_progress,
                    report_every=max(1, min(50, num_steps // 10)),
                )
        except TrainingDivergedError as error:
            raise ValueError(f"{title}: {error}") from error
        history = trained.history
        return Training(
            trained.model,
            self.accuracy(history[0].counts),
            self.accuracy(history[-1].counts),
            tuple(_curve(history, num_steps // recipe.epochs)),
            num_steps,
            clock.seconds(num_steps),
        )

    def evaluate(self, model: nnx.Module, batch_size: int, opened: Split | None = None) -> TopCounts:
        """Counts right answers on validation images, or on test images that were opened.

        Args:
          model: the network.
          batch_size: images of one forward pass.
          opened: what the guard of the test split gave, or None.
        """
        part: Part = "validation" if opened is None else "test"
        pixels = self.data.pixels
        with self.data.part_batches(
            part, batch_size=batch_size, sharding=self._sharding, opened=opened
        ) as batches:
            return evaluate_network(model, batches, mean=pixels.mean, std=pixels.std, mesh=self._mesh)

    def accuracy(self, counts: TopCounts) -> Accuracy:
        """Returns counts in percent.

        Args:
          counts: of right answers.
        """
        has_top5 = self.data.num_classes > _TOP5_CLASSES
        return Accuracy(counts.top1_percent, counts.top5_percent if has_top5 else None)

    def _validation(self, batch_size: int) -> Iterator[Batch]:
        """The validation images in batches."""
        sharding = self._sharding
        with self.data.part_batches(
            "validation", batch_size=batch_size, sharding=sharding, opened=None
        ) as batches:
            yield from batches


def whole_number(key: jax.Array, bits: int) -> int:
    """Draws a whole number below 2**bits.

    Args:
      key: a typed key.
      bits: at most 63.

    Example:
      >>> 0 <= whole_number(jax.random.key(0), 31) < 2**31
      True
    """
    return int(generator(key).integers(2**bits))


class _Clock:
    """Measures a training and tells how it goes, now and then."""

    def __init__(self, title: str, on_message: Callable[[str], None]) -> None:
        self.title, self.on_message = title, on_message
        self.first_step = 0
        self.began = self.told = time.perf_counter()

    def start(self, step: int) -> None:
        """Notes the step at which the training goes on."""
        self.first_step = step
        if step:
            self.on_message(f"{self.title}: goes on after {step:,} steps")

    def tell(self, progress: TrainingProgress) -> None:
        """Tells how it goes, if that was not done a moment ago."""
        now = time.perf_counter()
        if progress.loss is None or now - self.told < _SECONDS_BETWEEN_MESSAGES:
            return
        self.told = now
        found = progress.evaluation
        accuracy = "" if found is None else f", {found.counts.top1_percent:.2f} % on validation images"
        self.on_message(
            f"{self.title}: step {progress.num_done:,} of {progress.num_steps:,}, loss {progress.loss:.3f}{accuracy}; "
            f"{progress.speed}"
        )

    def seconds(self, num_steps: int) -> float:
        """Returns how long all steps take, from the part that was done since the last interruption."""
        done = num_steps - self.first_step
        return (time.perf_counter() - self.began) * num_steps / done if done else 0.0


def _curve(history: tuple[Evaluation, ...], per_epoch: int) -> Iterator[tuple[float, float]]:
    """(epochs, accuracy) of the evaluations after the first step."""
    for num_done, counts in history:
        if num_done:
            yield num_done / per_epoch, counts.top1_percent
