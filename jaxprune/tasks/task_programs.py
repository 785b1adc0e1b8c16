"""The compiled machinery of one task: observers, slimming and trainers for every pruning round.

Equal kept counts give equal shapes for all candidates and bases, so a task needs one program per round for
fine-tuning, whatever the search proposes; everything here is made once and compiles at its first use.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.observation.observer import Observer, make_observer
from jaxprune.pruning.masking import channel_masks
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim, slim_state
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState
from jaxprune.structure.tracing import trace_structure
from jaxprune.tasks.tasks import Task
from jaxprune.training.loop import Examples, count_correct, split_network
from jaxprune.training.recipes import Recipe
from jaxprune.training.trainer import Strategy, Trainer
from jaxprune.types import Array, Kept


@dataclass(frozen=True, eq=False)
class Round:
    """One round of pruning and fine-tuning: from `model`'s shapes to `counts` channels."""

    model: nnx.Module
    """A network of the shapes before the round; its weights are not read."""
    structure: Structure
    counts: dict[str, int]

    @cached_property
    def slim_model(self) -> nnx.Module:
        """A network of the shapes after the round."""
        kept = {name: tuple(range(count)) for name, count in self.counts.items()}
        return slim(self.model, make_plan(self.structure, kept))


class TaskPrograms:
    """Everything about a task that does not depend on which base network is at hand.

    Args:
      task: the task.
      strategy: how members are batched, see `training/trainer.py`.
      chunk: members per program where they are vmapped.

    Raises:
      ValueError: if the network cannot be traced, nothing of it can be pruned, or the schedule does not fit.
    """

    def __init__(self, task: Task, *, strategy: Strategy = "auto", chunk: int = 16) -> None:
        self.task, self.strategy, self.chunk = task, strategy, chunk
        self.data, self.validation = _on_device(task.train), _on_device(task.validation)
        self.model = task.model(nnx.Rngs(0))
        example = jax.ShapeDtypeStruct((2, *self.data.x.shape[1:]), self.data.x.dtype)
        self.structure = trace_structure(self.model, example)
        self.structure.require_groups()
        self.rounds: list[Round] = []
        model, structure = self.model, self.structure
        for counts in task.schedule.counts(_own_widths(structure)):
            self.rounds.append(Round(model, structure, counts))
            model = self.rounds[-1].slim_model
            structure = trace_structure(model, example)
        self.slim_model, self.slim_structure = model, structure
        self._trainers: dict[tuple[str, int, int], Trainer] = {}
        self._observers: dict[int, Observer] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of data, architecture, schedule and recipes: results are comparable only where it is equal."""
        network, weights = split_network(self.model)
        image = jax.ShapeDtypeStruct((2, *self.data.x.shape[1:]), self.data.x.dtype)
        program = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(network.logits)(weights, image)))
        counted = ("name", "weight", "bases", "extra_bases", "final_bases")
        settings = {name: value for name, value in self.task.settings.items() if name not in counted}
        parts = [
            self.task.data_fingerprint,
            self.structure.fingerprint,
            program,
            json.dumps(settings, sort_keys=True),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def is_vmapped(self) -> bool:
        """Whether members are trained in vmapped chunks rather than one by one."""
        return self.trainer(0).chosen == "vmap"

    @cached_property
    def base_trainer(self) -> Trainer:
        """Trains base networks."""
        assert isinstance(self.task.base_recipe, Recipe)
        return Trainer(
            self.model,
            self.task.base_recipe,
            self.data,
            self.validation,
            strategy=self.strategy,
            chunk=self.chunk,
        )

    def trainer(self, round_index: int, *, evaluations: int = 1) -> Trainer:
        """Fine-tunes what is left after a round (0 is the first), slim or masked as the task says."""
        return self._trainer(self.task.finetune, round_index, evaluations)

    def scratch_trainer(self, *, evaluations: int = 1) -> Trainer:
        """Trains the final slim shape from a fresh initialisation, as long as all rounds together."""
        return self._trainer("scratch", len(self.rounds) - 1, evaluations)

    def observer(self, round_index: int) -> Observer:
        """Observes networks of the shape before a round on the calibration images."""
        if round_index not in self._observers:
            rows = calibration_rows(np.asarray(self.data.y), self.task.calibration)
            self._observers[round_index] = make_observer(
                self.rounds[round_index].model,
                np.asarray(self.data.x)[rows],
                np.asarray(self.data.y)[rows],
                num_samples=self.task.num_samples,
                max_positions=self.task.max_positions,
            )
        return self._observers[round_index]

    def prune(self, round_index: int, weights: FlatState, kept: Kept) -> FlatState:
        """The slim weights after a round's plan; one small compiled gather."""
        return self._pruners[round_index](
            weights, {name: np.asarray(index, np.int32) for name, index in kept}
        )

    def masks(self, round_index: int, kept: Kept) -> FlatState:
        """What may be non-zero after a round's plan, at the shapes before it."""
        return self._maskers[round_index]({name: np.asarray(index, np.int32) for name, index in kept})

    def accuracy(self, weights: FlatState, examples: Examples) -> float:
        """Accuracy in percent of final slim weights on some examples."""
        return float(self._counter(weights, examples)) * 100.0 / examples.x.shape[0]

    def recipe(self, *, is_scratch: bool = False) -> Recipe:
        """The fine-tuning recipe; from scratch, with the epochs of all rounds."""
        recipe = self.task.recipe
        assert isinstance(recipe, Recipe)
        return recipe.replace(epochs=recipe.epochs * len(self.rounds)) if is_scratch else recipe

    def _trainer(self, kind: str, round_index: int, evaluations: int) -> Trainer:
        key = (kind, round_index, evaluations)
        if key not in self._trainers:
            at = self.rounds[round_index]
            self._trainers[key] = Trainer(
                at.model if kind == "masked" else at.slim_model,
                self.recipe(is_scratch=kind == "scratch"),
                self.data,
                self.validation,
                evaluations=evaluations,
                strategy=self.strategy,
                chunk=self.chunk,
            )
        # from scratch and slim training are one program where one round is all there is
        if kind == "scratch" and len(self.rounds) == 1 and self.task.finetune == "slim":
            return self._trainer("slim", round_index, evaluations)
        return self._trainers[key]

    @cached_property
    def _pruners(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return [
            jax.jit(lambda weights, kept, at=at: slim_state(at.structure, weights, kept))
            for at in self.rounds
        ]

    @cached_property
    def _maskers(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return [jax.jit(lambda kept, at=at: channel_masks(at.structure, kept)) for at in self.rounds]

    @cached_property
    def _counter(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
        network = Trainer(
            self.slim_model, self.recipe(), self.data, self.validation, strategy=self.strategy
        ).network
        return jax.jit(lambda weights, examples: count_correct(network, weights, examples))


def _own_widths(structure: Structure) -> dict[str, int]:
    """Widths of the groups that a schedule is about: where two share all indices, of the finer one."""
    left_whole = structure.shared_groups("inner")
    return {name: width for name, width in structure.widths.items() if name not in left_whole}


def calibration_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of a class-balanced calibration set: the first images of each class, in their old order.

    Example:
      >>> calibration_rows(np.array([0, 0, 1, 0, 1]), 4)
      array([0, 1, 2, 4])
    """
    classes = np.unique(labels)
    share = max(1, count // len(classes))
    rows = [np.flatnonzero(labels == label)[:share] for label in classes]
    return np.sort(np.concatenate(rows))


def _on_device(split: tuple[Array, Array]) -> Examples:
    return Examples(jnp.asarray(split[0]), jnp.asarray(split[1]))
