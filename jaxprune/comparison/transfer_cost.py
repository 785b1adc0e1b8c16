"""What a transfer costs: FLOPs, disk and the memory of one training step, counted from shapes before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import jax

from jaxprune.comparison.transfer_data import TransferData
from jaxprune.comparison.transfer_setup import TransferSetup
from jaxprune.datasets.preparation import free_bytes
from jaxprune.structure.groups import Structure
from jaxprune.tasks.batching_speed import FLOPS_PER_MAC
from jaxprune.training.data_parallel import local_mesh
from jaxprune.training.recipes import Recipe

_BYTES = 4
"""Of a stored weight."""

_COPIES_OF_WEIGHTS = 3
"""Weights, gradients and momentum; "adam" and a moving average add one each."""

_COPIES_OF_OUTPUTS = 3
"""A convolution's output, normalised, and after the activation, all of which the backward pass reads."""

_CHECKPOINTS = 3
"""Two that are kept and one that is being written."""

_SUMMING = frozenset({"conv_general_dilated", "dot_general"})


class TransferCost(NamedTuple):
    """The cost of a transfer.

    Attributes:
      base_flops: of training all base networks.
      finetune_flops: of fine-tuning all pruned networks.
      disk_bytes: of all networks and of the checkpoints of one.
      step_bytes: of one training step of a base network on one device, roughly.
      host_bytes: of the images in memory and of those that networks are observed on.
    """

    base_flops: float
    finetune_flops: float
    disk_bytes: int
    step_bytes: int
    host_bytes: int

    @property
    def flops(self) -> float:
        """FLOPs in all."""
        return self.base_flops + self.finetune_flops

    def hours(self, flops_per_second: float) -> float:
        """Returns the time that a machine needs.

        Args:
          flops_per_second: what it reaches in training.

        Example:
          >>> TransferCost(3.6e18, 0.0, 0, 0, 0).hours(1e15)
          1.0
        """
        return self.flops / flops_per_second / 3600


def transfer_cost(setup: TransferSetup, kept: Mapping[str, int] | None = None) -> TransferCost:
    """Counts the cost of a transfer from shapes.

    Args:
      setup: the transfer.
      kept: group -> number of channels that stay; by default those of the budget (for a global ranking about those).

    Returns:
      The cost. Evaluations, observing and scoring are left out.
    """
    settings = setup.settings
    if kept is None:
        kept = setup.counts({group: [1.0] * width for group, width in setup.structure.widths.items()})  # type: ignore[misc]
    num_rows = settings.bases * (len(settings.functions) + len(settings.controls))
    return training_cost(
        setup.structure,
        setup.data,
        kept,
        dense=[] if settings.base_recipe is None else [settings.base_recipe] * settings.bases,
        slim=[settings.recipe] * num_rows,
        calibration_images=settings.calibration_images,
    )


def training_cost(
    structure: Structure,
    data: TransferData,
    kept: Mapping[str, int],
    *,
    dense: Sequence[Recipe],
    slim: Sequence[Recipe],
    calibration_images: int,
) -> TransferCost:
    """Counts the cost of training dense and slim networks from shapes.

    Args:
      structure: groups of the dense network.
      data: the images.
      kept: group -> number of channels of slim networks.
      dense: how each dense network is trained.
      slim: how each slim network is trained.
      calibration_images: number of images that are observed.

    Returns:
      The cost. Evaluations, observing and scoring are left out.
    """

    def flops(recipes: Sequence[Recipe], macs: int) -> float:
        steps = sum(recipe.num_steps(data.num_train) * recipe.batch_size for recipe in recipes)
        return float(FLOPS_PER_MAC * macs * steps)

    full, small = structure.count_parameters(), structure.count_parameters(kept)
    largest = (dense or slim)[0]
    checkpoint = _COPIES_OF_WEIGHTS + (largest.optimizer == "adam") + (largest.ema > 0)
    width = full if dense else small
    disk = len(dense) * full + len(slim) * small
    per_device = -(-largest.batch_size // local_mesh().size)
    outputs = _outputs_per_image(structure) * (2 if largest.compute == "bfloat16" else _BYTES)
    return TransferCost(
        base_flops=flops(dense, structure.count_macs()),
        finetune_flops=flops(slim, structure.count_macs(kept)),
        disk_bytes=_BYTES * (disk + _CHECKPOINTS * checkpoint * width),
        step_bytes=_BYTES * checkpoint * width + _COPIES_OF_OUTPUTS * outputs * per_device,
        host_bytes=data.num_bytes + calibration_images * prod(data.image_shape) * _BYTES,
    )


def check_resources(
    cost: TransferCost, out: Path, *, memory_bytes: int | None = None, what: str = "the transfer"
) -> None:
    """Checks that disk and memory suffice, as far as can be told.

    Args:
      cost: of the transfer.
      out: its folder, which need not exist.
      memory_bytes: memory of one device; by default what the backend says, which a CPU does not.
      what: needs them, in messages.

    Raises:
      ValueError: if the disk or the memory is too small.
    """
    free = free_bytes(out)
    if free < cost.disk_bytes:
        raise ValueError(
            f"{what} needs {_gib(cost.disk_bytes)} on the disk of {out}, got {_gib(free)} free. Free some "
            "space, or name a folder on another disk."
        )
    limit = device_memory() if memory_bytes is None else memory_bytes
    if limit is not None and cost.step_bytes > limit:
        raise ValueError(
            f"a training step needs about {_gib(cost.step_bytes)} on each device, got {_gib(limit)}. Use a smaller "
            "batch (--batch-size, which scales the learning rate) or more devices."
        )


def device_memory() -> int | None:
    """Returns the memory of one device in bytes, None where the backend does not tell, as on a CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return None if limit is None else int(limit)


def _outputs_per_image(structure: Structure) -> int:
    """Numbers that convolutions and matrix products give for one image."""
    program = structure.program
    return (
        sum(
            prod(program.shapes[number])
            for operation in program.operations
            if operation.name in _SUMMING
            for number in operation.outputs
        )
        // structure.example.batch_size
    )


def _gib(num_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB"
