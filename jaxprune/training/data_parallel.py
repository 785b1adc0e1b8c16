"""The programs of one network on all devices: a batch is split among them, the network's state is on each of them.

Plain `jit` on such arrays computes what one device would compute, up to rounding: losses are averaged and batches
normalised over the examples of all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune.datasets.input_pipeline import Batch, normalised
from jaxprune.structure.model_state import FlatState
from jaxprune.training.loop import Network, StepMeasures, StepState, Teacher, make_measured_step
from jaxprune.training.recipes import Recipe
from jaxprune.types import Array

BATCH_AXIS = "data"
"""Name of the mesh axis over which batches are split."""

_TOP = 5


@dataclass(frozen=True)
class Pixels:
    """How pixels become inputs of a network; floats, and tokens [N, T], are inputs already and stay as they are.

    Args:
      mean: mean of each colour, or one for all, where 1 is the largest value of a pixel.
      std: standard deviations, likewise, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [N, H, W, C] float32 of images [N, H, W, C] uint8."""
        is_tokens = images.dtype == jnp.int32 and images.ndim == 2
        if is_tokens or jnp.issubdtype(images.dtype, jnp.floating):
            return images
        return normalised(images, self.mean, self.std)


class TopCounts(NamedTuple):
    """How many of some examples a network classifies rightly.

    Attributes:
      top1: examples whose class has the highest logit.
      top5: examples whose class is among the five highest logits.
      num_examples: examples that were counted.
    """

    top1: int
    top5: int
    num_examples: int

    @property
    def top1_percent(self) -> float:
        """Accuracy in percent, 0 without examples."""
        return 100.0 * self.top1 / max(self.num_examples, 1)

    @property
    def top5_percent(self) -> float:
        """Share of the examples whose class is among the five highest logits in percent, 0 without examples."""
        return 100.0 * self.top5 / max(self.num_examples, 1)


Step = Callable[..., tuple[StepState, StepMeasures, jax.Array]]
"""(state, batch, number of the step, weights of a teacher if there is one) -> (state, measures, learning rate)."""


def training_step(
    network: Network,
    recipe: Recipe,
    num_steps: int,
    pixels: Pixels,
    *,
    seed: int = 0,
    teacher: Teacher | None = None,
) -> tuple[Callable[[FlatState], StepState], Step]:
    """Makes the two pure functions of a run on batches of stored images, to be jitted or exported.

    Args:
      network: the model without weights.
      recipe: optimiser, schedule, augmentation, precision.
      num_steps: steps of the whole run.
      pixels: mean and standard deviation of the images.
      seed: of dropout and augmentation.
      teacher: None, or what the network learns from beside labels.

    Returns:
      `init(weights) -> StepState`, whose arrays are new ones, and
      `step(state, batch, number) -> (StepState, StepMeasures, learning rate)` for the step of that number, from 0. With
      a teacher, its weights come last: `step(state, batch, number, teacher_weights)`.
    """
    make_state, measured_step = make_measured_step(
        network, recipe, num_steps, prepare=pixels, teacher=teacher
    )
    rates = recipe.learning_rates(num_steps)

    def init(weights: FlatState) -> StepState:
        return make_state(jax.tree.map(jnp.copy, weights))

    def step(
        state: StepState, batch: Batch, number: jax.Array | np.int32, teacher_weights: FlatState | None = None
    ) -> tuple[StepState, StepMeasures, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        state, measures = measured_step(
            state, batch.images, batch.labels, key, None, batch.weights, teacher_weights
        )
        return state, measures, jnp.asarray(rates(number), jnp.float32)

    return init, step


def count_top(network: Network, weights: FlatState, batch: Batch, pixels: Pixels) -> jax.Array:
    """Counts the examples of a batch whose class is the first, and among the first five; to be jitted.

    Equal logits are ordered by class. Examples of weight 0 do not count; those with a non-finite logit count as wrong.

    Args:
      network: the model without weights.
      weights: path -> array.
      batch: images, labels and weights.
      pixels: mean and standard deviation of the images.

    Returns:
      [3] int32: the two counts, and the number of examples.
    """
    logits = network.logits(weights, pixels(batch.images))
    is_counted = batch.weights > 0
    labels = jnp.where(is_counted, batch.labels, 0)[:, None]
    of_label = jnp.take_along_axis(logits, labels, axis=-1)
    classes = jnp.arange(logits.shape[-1])[None]
    is_before = (logits > of_label) | ((logits == of_label) & (classes < labels))
    rank = jnp.sum(is_before, axis=-1)
    is_valid = is_counted & jnp.all(jnp.isfinite(logits), -1) & (labels[:, 0] < logits.shape[-1])
    found = (is_valid & (rank == 0), is_valid & (rank < _TOP), is_counted)
    return jnp.stack([jnp.sum(is_found, dtype=jnp.int32) for is_found in found])


def data_mesh(mesh: Mesh | None = None) -> Mesh:
    """Returns a mesh for data-parallel work.

    Args:
      mesh: has an axis "data"; along others, work is repeated. None takes all devices of all processes.

    Raises:
      ValueError: if there is no axis "data".
    """
    if mesh is None:
        return Mesh(np.array(jax.devices()), (BATCH_AXIS,))
    if BATCH_AXIS not in mesh.axis_names:
        raise ValueError(
            f'mesh needs an axis "{BATCH_AXIS}", over which batches are split, got the axes '
            f'{", ".join(map(str, mesh.axis_names))}. Use jax.sharding.Mesh(devices, ("{BATCH_AXIS}",)).'
        )
    return Mesh(
        mesh.devices, mesh.axis_names
    )  # an explicit axis would need shardings in every network's code


def local_mesh() -> Mesh:
    """Returns a mesh of the devices of this process, for work that other processes have no part in.

    Example:
      >>> local_mesh().size == jax.local_device_count()
      True
    """
    return Mesh(np.array(jax.local_devices()), (BATCH_AXIS,))


def batch_sharding(mesh: Mesh | None = None) -> NamedSharding:
    """Returns the sharding of batches over devices, for an input pipeline to send them there.

    Args:
      mesh: as for `data_mesh`.

    Example:
      >>> batch_sharding().shard_shape((8 * jax.device_count(),))
      (8,)
    """
    return NamedSharding(data_mesh(mesh), PartitionSpec(BATCH_AXIS))


@dataclass(frozen=True, eq=False)
class DataParallel:
    """Places batches and states on the devices of a mesh, and counts right answers there.

    Args:
      network: the model without weights.
      pixels: mean and standard deviation of the images.
      mesh: from `data_mesh`.
    """

    network: Network
    pixels: Pixels
    mesh: Mesh

    @cached_property
    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def num_processes(self) -> int:
        """Number of processes whose devices these are."""
        return len({device.process_index for device in self.mesh.devices.flat})

    @cached_property
    def split(self) -> NamedSharding:
        """The first axis over the devices."""
        return batch_sharding(self.mesh)

    def check_batch_size(self, batch_size: int) -> None:
        """Checks that a batch can be split among the devices.

        Raises:
          ValueError: if it does not divide.
        """
        num_devices = self.mesh.shape[BATCH_AXIS]
        if batch_size % num_devices:
            near = max(1, round(batch_size / num_devices)) * num_devices
            raise ValueError(
                f"batch_size must be divisible among the {num_devices} devices, got {batch_size}. "
                f"Use recipe.scaled_to({near}) and batches of {near}."
            )

    def place(self, batch: Batch, batch_size: int | None = None) -> Batch:
        """Splits a batch among the devices; one that is split already stays as it is.

        Args:
          batch: arrays of JAX with all rows, or of NumPy with the rows of this process.
          batch_size: the number of rows of all processes together that is wanted, if any.

        Raises:
          ValueError: if there are other numbers of rows, or they cannot be split.
        """
        arrays: tuple[Array, ...] = tuple(batch)
        is_local = not isinstance(arrays[0], jax.Array)
        self.check_batch_size(len(arrays[0]) * (self.num_processes if is_local else 1))
        if is_local:
            placed = Batch(*(jax.make_array_from_process_local_data(self.split, x) for x in arrays))
        else:
            placed = Batch(*jax.device_put(arrays, self.split))
        num_rows = {len(array) for array in placed}
        if len(num_rows) > 1 or (batch_size is not None and num_rows != {batch_size}):
            raise ValueError(
                f"batches need {batch_size or 'equally many'} images, labels and weights, got "
                f"{', '.join(str(len(array)) for array in placed)}. Make them with the batch size of the recipe."
            )
        return placed

    def count(self, weights: FlatState, batches: Iterable[Batch]) -> TopCounts:
        """Counts right answers over all batches, exactly.

        Args:
          weights: path -> array.
          batches: of any sizes that can be split; each new size compiles once.
        """
        totals, previous = np.zeros(3, np.int64), None
        for batch in batches:
            counts = self._count(weights, self.place(batch))
            if previous is not None:  # the device works on one batch while the next is made
                totals += np.asarray(previous)
            previous = counts
        if previous is not None:
            totals += np.asarray(previous)
        return TopCounts(*map(int, totals))

    @cached_property
    def _count(self) -> Callable[[FlatState, Batch], jax.Array]:
        """The compiled counting of one batch."""
        count = partial(count_top, self.network, pixels=self.pixels)
        shardings = (self.replicated, self.split)
        return jax.jit(
            lambda weights, batch: count(weights, batch),
            in_shardings=shardings,
            out_shardings=self.replicated,
        )
