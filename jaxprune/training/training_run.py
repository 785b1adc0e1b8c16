"""The loop of a training run: steps, and between them evaluations, checkpoints, reports and the wish to stop."""

from __future__ import annotations

import contextlib
import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxprune.datasets.input_pipeline import Batch
from jaxprune.datasets.input_speed import InputSpeed, SpeedFacts
from jaxprune.interrupts import Interrupted, Interrupts
from jaxprune.structure.model_state import FlatState
from jaxprune.training.data_parallel import DataParallel, Step, TopCounts
from jaxprune.training.loop import StepMeasures, StepState
from jaxprune.training.recipes import Recipe
from jaxprune.training.run_checkpoints import RunCheckpoints

_BEHIND = 2
"""Steps that the device may be behind the host."""


class Evaluation(NamedTuple):
    """How well the network classified the evaluation images after some steps."""

    num_done: int
    counts: TopCounts


class TrainingProgress(NamedTuple):
    """What `on_progress` is told.

    Attributes:
      num_done: steps that are done.
      num_steps: steps of the whole run.
      loss: mean training loss since the last report; None before the first step.
      accuracy: accuracy in percent on the training batches since then, before each one changed the weights; or None.
      learning_rate: of the last step; or None.
      speed: images per second, and whether input or device is waited for; evaluations do not count.
      evaluation: the last one, if there was any.
    """

    num_done: int
    num_steps: int
    loss: float | None
    accuracy: float | None
    learning_rate: float | None
    speed: SpeedFacts
    evaluation: Evaluation | None


class TrainingDivergedError(ArithmeticError):
    """The loss is infinite or not a number; the message names step and learning rate."""


class TrainingInterrupted(Interrupted):
    """The training was asked to stop; see `Interrupted`."""


class TrainingRun:
    """A training run under way.

    Args:
      recipe, num_steps, batches, evaluate, on_progress: as for `train_network`.
      devices: where batches go.
      step: the step to be compiled, from `training_step`.
      evaluate_every, save_every, report_every: numbers of steps.
      teacher_weights: of the step's teacher, if it has one; each step is given them.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_steps: int,
        devices: DataParallel,
        step: Step,
        batches: Callable[[int], Iterator[Batch]],
        evaluate: Callable[[], Iterable[Batch]] | None,
        *,
        evaluate_every: int,
        save_every: int,
        report_every: int,
        on_progress: Callable[[TrainingProgress], None] | None,
        teacher_weights: FlatState | None = None,
    ) -> None:
        self.recipe, self.num_steps, self.devices = recipe, num_steps, devices
        self.batches, self.evaluate, self.on_progress = batches, evaluate, on_progress
        self.evaluate_every, self.save_every, self.report_every = evaluate_every, save_every, report_every
        self.checkpoints: RunCheckpoints | None = None
        self.interrupts: Interrupts | None = None
        self.history: list[Evaluation] = []
        self.start = 0
        whole, split = devices.replicated, devices.split
        constants = () if teacher_weights is None else (jax.device_put(teacher_weights, whole),)
        compiled = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(whole, split, whole, *(whole for _ in constants)),
            out_shardings=whole,
        )
        self.step: Step = lambda state, batch, number: compiled(state, batch, number, *constants)
        self.speed = InputSpeed()
        self.pending: deque[tuple[int, StepMeasures, jax.Array]] = deque()
        self.sums = np.zeros(3)  # loss times examples, right answers, examples since the last report
        self.learning_rate: float | None = None

    def restore(self) -> StepState | None:
        """Goes back to the newest checkpoint, if there is one, and returns its state."""
        assert self.checkpoints is not None
        restored = self.checkpoints.restore()
        if restored is None:
            return None
        self.start = restored.num_done
        self.history = [Evaluation(num_done, TopCounts(*counts)) for num_done, *counts in restored.history]
        # A copy: donating memory that came from the host is not safe everywhere.
        place = jax.jit(
            lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=self.devices.replicated
        )
        return place(restored.state)

    def train(self, state: StepState) -> StepState:
        """Does all steps that are left, with evaluations, checkpoints and reports."""
        source = self.batches(self.start) if self.start < self.num_steps else iter(())
        with contextlib.ExitStack() as stack:
            stack.callback(getattr(source, "close", int))  # ends its threads, if it has any
            for num_done in range(self.start, self.num_steps + 1):
                self._between_steps(state, num_done)
                if num_done == self.num_steps:
                    break
                with self.speed.input(self.recipe.batch_size):
                    batch = next(source, None)
                if batch is None:
                    raise ValueError(
                        f"batches({self.start}) needs to yield the batches of the steps {self.start} to "
                        f"{self.num_steps - 1}, got none for step {num_done}. Make it with num_steps={self.num_steps}."
                    )
                placed = self.devices.place(batch, self.recipe.batch_size)
                state, measures, rate = self.step(state, placed, np.int32(num_done))
                self.pending.append((num_done, measures, rate))
                self._settle(_BEHIND)
        return state

    def _between_steps(self, state: StepState, num_done: int) -> None:
        """Reports, evaluates and saves where it is time for it, and leaves if it was asked to."""
        is_last = num_done == self.num_steps
        is_told = self._is_told_to_stop(num_done)
        is_evaluated = num_done in dict(self.history)
        if (
            self.evaluate
            and not is_told
            and not is_evaluated
            and (is_last or num_done % self.evaluate_every == 0)
        ):
            self._settle(0)
            speed = self.speed.take()
            self.history.append(Evaluation(num_done, self.devices.count(state.result, self.evaluate())))
            self._report(num_done, speed)
            self.speed.take()
        elif num_done > self.start and (is_last or num_done % self.report_every == 0):
            self._settle(0)
            self._report(num_done, self.speed.take())
        if self.checkpoints is None:
            return
        if num_done > self.start and (is_told or num_done % self.save_every == 0 or is_last):
            self._settle(0)  # a state that has diverged is never saved
            self.checkpoints.save(num_done, state, [(done, *counts) for done, counts in self.history])
        if is_told:
            self.checkpoints.wait()
            noted = self.interrupts.received if self.interrupts else None
            raise TrainingInterrupted(
                f"Training was interrupted after {num_done} of {self.num_steps} steps and saved in "
                f"{self.checkpoints.folder}. Start it again in the same way to go on.",
                noted or signal.SIGTERM,
            )

    def _is_told_to_stop(self, num_done: int) -> bool:
        """Tells whether a signal came, to any process."""
        if self.checkpoints is None:
            return False
        if self.devices.num_processes > 1:
            return self.checkpoints.is_preempted(num_done)
        return self.interrupts is not None and self.interrupts.received is not None

    def _settle(self, num_left: int) -> None:
        """Waits for the results of all steps but the last few.

        Raises:
          ValueError: if a label is no class of the network.
          TrainingDivergedError: if a loss is not finite.
        """
        while len(self.pending) > num_left:
            number, measures, rate = self.pending.popleft()
            with self.speed.device():
                loss, num_examples = float(measures.loss), int(measures.num_examples)
            self.learning_rate = float(rate)
            if num_unknown := int(measures.num_unknown):
                raise ValueError(
                    f"batches need labels from 0 to the number of logits less one, got {num_unknown} others among the "
                    f"{num_examples} examples of step {number}. Make the network with as many classes as the data have."
                )
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"Training diverged: the loss of step {number} of {self.num_steps} is {loss}, at a learning rate "
                    f"of {self.learning_rate:g}. Lower the learning rate of recipe {self.recipe.name!r}, or lengthen "
                    "its warm-up."
                )
            self.sums += (loss * num_examples, int(measures.num_correct), num_examples)

    def _report(self, num_done: int, speed: SpeedFacts) -> None:
        """Tells `on_progress` how it goes, and starts counting anew."""
        loss, num_correct, num_examples = self.sums
        self.sums = np.zeros(3)
        if self.on_progress is not None:
            self.on_progress(
                TrainingProgress(
                    num_done,
                    self.num_steps,
                    loss / num_examples if num_examples else None,
                    100 * num_correct / num_examples if num_examples else None,
                    self.learning_rate,
                    speed,
                    self.history[-1] if self.history else None,
                )
            )
