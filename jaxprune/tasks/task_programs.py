"""The compiled programs of one task: observers, slimming and trainers for every round of pruning.

Equal kept counts give equal shapes for all candidates and base networks, so a task needs one program per round for
fine-tuning, whatever the search proposes. Every program is made once and compiles at its first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.datasets.scaling import Scaling
from jaxprune.observation.covariances import Covariance
from jaxprune.observation.observer import Observer, make_observer
from jaxprune.observation.sample import balanced_sample
from jaxprune.pruning.compensation import check_compensable, compensated_state
from jaxprune.pruning.masking import channel_masks, check_maskable
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim, slim_state
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.scoring.scorable import absent_in_structure
from jaxprune.scoring.status import explain_absent
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState
from jaxprune.structure.tracing import trace_structure
from jaxprune.tasks.task_identity import Identity, earlier_fingerprints, fingerprint_of, identity_of
from jaxprune.tasks.tasks import Task, check_network
from jaxprune.training.batching import Batching, Convolution, Strategy
from jaxprune.training.local_devices import on_all_devices, row_size
from jaxprune.training.loop import Examples, count_correct
from jaxprune.training.recipes import Recipe
from jaxprune.training.trainer import Row, Trainer, is_vmapped
from jaxprune.types import Array, Kept


@dataclass(frozen=True, eq=False)
class Round:
    """One round of pruning and fine-tuning, which leaves `counts` channels of each group of `model`."""

    model: nnx.Module
    """A network of the shapes before the round; its weights are not read."""
    structure: Structure
    counts: dict[str, int]

    @cached_property
    def slim_model(self) -> nnx.Module:
        """A network of the shapes after the round."""
        kept = {name: tuple(range(count)) for name, count in self.counts.items()}
        return slim(self.model, make_plan(self.structure, kept))

    @cached_property
    def prune(self) -> Callable[..., FlatState]:
        """The compiled function (weights, group name -> kept channels) -> weights after the round."""
        return jax.jit(partial(slim_state, self.structure))

    @cached_property
    def masks(self) -> Callable[..., FlatState]:
        """The compiled function (group name -> kept channels) -> path -> booleans, False where weights stay zero."""
        return jax.jit(partial(channel_masks, self.structure))


class TaskPrograms:
    """Everything about a task that is the same for all base networks.

    Args:
      task: the task.
      strategy, chunk, convolution: how members are batched, see `Trainer`.

    Raises:
      ValueError: if the network cannot be traced or does not fit the data (see `check_network`), nothing in it can be
        pruned, the schedule does not fit, or masks cannot stand for what is pruned (see `mask`).
    """

    def __init__(
        self,
        task: Task,
        *,
        strategy: Strategy = "auto",
        chunk: int | None = None,
        convolution: Convolution = "auto",
    ) -> None:
        self.task, self.asked = task, Batching(strategy, chunk, convolution).checked()
        self.data, self.validation = examples_of(task, task.train), examples_of(task, task.validation)
        self.model = task.model(nnx.Rngs(0))
        example = jax.ShapeDtypeStruct((2, *self.data.x.shape[1:]), self.data.x.dtype)
        self.structure = trace_structure(self.model, example)
        self.structure.require_groups()
        check_network(task, self.model)
        # Where two groups share all indices, the schedule is about the finer one.
        left_whole = self.structure.shared_groups("inner")
        widths = {name: width for name, width in self.structure.widths.items() if name not in left_whole}
        self.rounds: list[Round] = []
        model, structure = self.model, self.structure
        for counts in task.schedule.counts(widths):
            if task.finetune == "masked" or task.schedule.scoring == "sequential":
                check_maskable(structure, counts)
            if self.recipe().compensate:
                check_compensable(structure, counts)
            self.rounds.append(Round(model, structure, counts))
            model = self.rounds[-1].slim_model
            structure = trace_structure(model, example)
        self.slim_model, self.slim_structure = model, structure
        self.rows: list[Row] = []  # of fine-tunings, until somebody takes them
        self._trainers: dict[tuple[str, int, int], Trainer] = {}
        self._observers: dict[int, Observer] = {}

    @cached_property
    def identity(self) -> Identity:
        """What the fingerprint is made of: hashes of data and network, and the settings of schedule and recipes."""
        return identity_of(self.task, self.model, self.structure)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of data, architecture, schedule and recipes; only results with equal hashes are comparable."""
        return fingerprint_of(self.identity)

    @cached_property
    def earlier_fingerprints(self) -> tuple[str, ...]:
        """The hashes that earlier versions of jaxprune gave the same task; their results count as well."""
        return earlier_fingerprints(self.task, self.model, self.structure)

    def is_known_as(self, fingerprint: str) -> bool:
        """Tells whether a fingerprint is the task's, or the one that an earlier version of jaxprune gave it."""
        return fingerprint == self.fingerprint or fingerprint in self.earlier_fingerprints

    def absence(self, f: PruningFunction) -> str:
        """Says which operands a function reads that the network has nowhere, whatever its weights are.

        Args:
          f: a pruning function.

        Returns:
          A sentence, or "" if it has all, as far as the structure shows.
        """
        absent = absent_in_structure(f, self.structure)
        return explain_absent(f, absent) if absent else ""

    @cached_property
    def batching(self) -> Batching:
        """How members of all programs are batched, with nothing left open; see `settle`."""
        return self.batching_of(self.asked)

    def batching_of(self, asked: Batching) -> Batching:
        """Returns what a way to batch members comes to for the networks that are fine-tuned, with nothing left open.

        Args:
          asked: may leave parts open.
        """
        model = self.fine_tuned_model
        return Trainer(model, self.recipe(), self.data, self.validation, **asked._asdict()).batching

    def settle(self, asked: Batching) -> None:
        """Chooses how members are batched, in place of what was asked for when this was made.

        Args:
          asked: may leave parts open.

        Raises:
          RuntimeError: if something was trained already.
        """
        if "batching" in self.__dict__:
            raise RuntimeError("how members are batched has to be settled before anything is trained.")
        self.asked = asked.checked()

    @property
    def is_vmapped(self) -> bool:
        """Whether members are trained in vmapped rows instead of one by one."""
        return is_vmapped(self.asked.strategy)

    @property
    def row_size(self) -> int:
        """Number of members that are trained together where they are vmapped: a chunk on each local device."""
        assert self.batching.chunk is not None
        return row_size(self.batching.chunk)

    @property
    def fine_tuned_model(self) -> nnx.Module:
        """A network of the shape that is fine-tuned in the first round; its weights are not read."""
        return self.rounds[0].model if self.task.finetune == "masked" else self.rounds[0].slim_model

    @cached_property
    def base_trainer(self) -> Trainer:
        """The trainer of base networks."""
        return self._make_trainer(self.model, self.task.recipes[1])

    def trainer(self, round_index: int, *, evaluations: int = 1) -> Trainer:
        """Returns the trainer that fine-tunes after a round of pruning, slim or masked as the task says.

        Args:
          round_index: number of the round, 0 for the first.
          evaluations: number of evaluations in a run.
        """
        return self._cached_trainer(self.task.finetune, round_index, evaluations)

    def scratch_trainer(self, *, evaluations: int = 1) -> Trainer:
        """Returns the trainer of the final slim shape from a fresh initialisation, for the epochs of all rounds.

        Args:
          evaluations: number of evaluations in a run.
        """
        # With one round, training from scratch and slim fine-tuning are one program.
        is_slim = len(self.rounds) == 1 and self.task.finetune == "slim"
        return self._cached_trainer("slim" if is_slim else "scratch", len(self.rounds) - 1, evaluations)

    def observer(self, round_index: int) -> Observer:
        """Returns the observer of networks of the shape before a round, on a balanced set of training images.

        Args:
          round_index: number of the round, 0 for the first.
        """
        if round_index not in self._observers:
            images, labels = np.asarray(self.data.x), np.asarray(self.data.y)
            rows = np.sort(balanced_sample(labels, self.task.calibration))
            self._observers[round_index] = make_observer(
                self.rounds[round_index].model,
                images[rows],
                labels[rows],
                num_samples=self.task.num_samples,
                max_positions=self.task.max_positions,
            )
        return self._observers[round_index]

    def prune(self, round_index: int, weights: FlatState, kept: Kept) -> FlatState:
        """Cuts weights down to the kept channels of a round, by one small compiled gather.

        Args:
          round_index: number of the round, 0 for the first.
          weights: path -> array, at the shapes before the round.
          kept: channels to keep.

        Returns:
          Path -> array, at the shapes after the round.
        """
        return self.rounds[round_index].prune(weights, _as_arrays(kept))

    def compensate(
        self, round_index: int, weights: FlatState, kept: Kept, covariances: Mapping[str, Covariance]
    ) -> FlatState:
        """Corrects full weights for the channels that a round is about to remove, see `slim`.

        Args:
          round_index: number of the round, 0 for the first.
          weights: path -> array, at the shapes before the round.
          kept: channels to keep.
          covariances: of a network with these weights.

        Returns:
          Path -> array, at the shapes before the round.
        """
        return compensated_state(self.rounds[round_index].structure, weights, _as_arrays(kept), covariances)

    def masks(self, round_index: int, kept: Kept) -> FlatState:
        """Makes the masks that hold pruned channels of a round at zero.

        Args:
          round_index: number of the round, 0 for the first.
          kept: channels to keep.

        Returns:
          Path -> booleans at the shapes before the round, False where weights stay zero.
        """
        return self.rounds[round_index].masks(_as_arrays(kept))

    def accuracy(self, weights: FlatState, examples: Examples) -> float:
        """Computes the accuracy in percent of final slim weights on some examples.

        Args:
          weights: path -> array, at the shapes after the last round.
          examples: images and labels.
        """
        return float(self._count_correct(weights, examples)) * 100.0 / examples.x.shape[0]

    def recipe(self, *, is_scratch: bool = False) -> Recipe:
        """Returns the fine-tuning recipe; for training from scratch, with the epochs of all rounds together."""
        recipe = self.task.recipes[0]
        return recipe.replace(epochs=recipe.epochs * len(self.rounds)) if is_scratch else recipe

    @property
    def num_steps(self) -> int:
        """Steps of the fine-tuning after one round."""
        return self.recipe().num_steps(len(self.data.y))

    def _cached_trainer(self, kind: str, round_index: int, evaluations: int) -> Trainer:
        """The trainer after a round, of kind "slim", "masked" or "scratch", made once."""
        key = (kind, round_index, evaluations)
        if key not in self._trainers:
            this_round = self.rounds[round_index]
            model = this_round.model if kind == "masked" else this_round.slim_model
            recipe = self.recipe(is_scratch=kind == "scratch")
            self._trainers[key] = self._make_trainer(model, recipe, evaluations, rows=self.rows)
        return self._trainers[key]

    def _make_trainer(
        self, model: nnx.Module, recipe: Recipe, evaluations: int = 1, *, rows: list[Row] | None = None
    ) -> Trainer:
        """A trainer on the task's examples; `rows` gets an entry for every row of "vmap"."""
        batching, rows = self.batching._asdict(), [] if rows is None else rows
        return Trainer(model, recipe, *self._trained_on, evaluations, **batching, rows=rows)

    @cached_property
    def _trained_on(self) -> tuple[Examples, Examples]:
        """The examples where trainers need them: all share one copy on each device that they use."""
        examples = self.data, self.validation
        return on_all_devices(examples) if self.is_vmapped else examples

    @cached_property
    def _count_correct(self) -> Callable[[FlatState, Examples], jax.Array]:
        """Counts the examples that final slim weights classify rightly."""
        network = self._make_trainer(self.slim_model, self.recipe()).network
        return jax.jit(partial(count_correct, network))


def examples_of(task: Task, split: tuple[Array, Array]) -> Examples:
    """Returns images and labels on the device, where uint8 images of a task are standardised.

    Args:
      task: the task.
      split: its training, validation or test images, and their labels.
    """
    images, labels = map(jnp.asarray, split)
    if task.scaling is not None:
        images = jax.jit(Scaling.__call__)(task.scaling, images)
    return Examples(images, labels)


def _as_arrays(kept: Kept) -> dict[str, np.ndarray]:
    """Group name -> kept channels as an array, for compiled functions."""
    return {name: np.asarray(channels, np.int32) for name, channels in kept}
