"""Observes operands within a budget: maps are pooled before moments are taken, and everything comes batch by batch.

Images stay where the caller has them. Producers are observed in one or several passes over all images; how many does
not change what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxprune.nets.inputs import Batch
from jaxprune.observation.activations import activation_sites, producer_activations, producer_weights
from jaxprune.observation.examples import Examples
from jaxprune.observation.memory import MemoryPlan
from jaxprune.observation.moments import Moments, add_examples, zero_moments
from jaxprune.observation.operands import Operands
from jaxprune.observation.sample import flat_positions, pool_positions
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState


class Maps(NamedTuple):
    """Pooled activations of a batch at one producer."""

    rows: jax.Array
    """[N, D, C] for moments."""
    sample: jax.Array
    """[N, *space, C] for the sample."""


def make_bounded_operands(
    structure: Structure,
    memory: MemoryPlan,
    examples: Examples,
    class_ids: np.ndarray,
    rows: np.ndarray,
) -> Callable[[FlatState], dict[str, Operands]]:
    """Makes a function from a network's arrays to the operands of every producer, without gradients.

    Args:
      structure: of the network, traced with a batch of images or with one.
      memory: what fits the budget.
      examples: all of them; they are read once in each pass, and once more for the sample.
      class_ids: [N] classes 0 .. K-1, all 0 if the examples have no labels.
      rows: [n] indices of the sample, sorted by class.

    Returns:
      The function; it compiles once.
    """
    batch, num_classes = memory.batch_size, int(class_ids.max()) + 1
    sample_labels = None if examples.labels is None else class_ids[rows]
    observe_batch = jax.jit(partial(_observe_batch, structure, memory), static_argnums=0)
    add, weights_of = jax.jit(add_examples, donate_argnums=0), jax.jit(partial(producer_weights, structure))

    def observe_pass(
        arrays: FlatState, producers: tuple[str, ...]
    ) -> dict[str, tuple[Moments, np.ndarray, Maps]]:
        samples: dict[str, np.ndarray] = {}
        moments: dict[str, Moments] = {}
        last: dict[str, Maps] = {}
        done = 0
        for inputs, is_real in examples.of_rows(rows, batch):
            last = observe_batch(producers, arrays, inputs)
            size = int(is_real.sum())
            for name, maps in last.items():
                part = flat_positions(np.asarray(maps.sample))[:size]
                if name not in samples:
                    samples[name] = np.empty((len(rows), *part.shape[1:]), part.dtype)
                    moments[name] = zero_moments(jax.device_put(np.asarray(maps.rows)[0]), num_classes)
                samples[name][done : done + size] = part
            done += size
        for each in examples.batches(batch):
            for name, maps in observe_batch(producers, arrays, each.arrays).items():
                moments[name] = add(moments[name], maps.rows, class_ids[each.rows], each.is_real)
            jax.block_until_ready(moments)  # or the next batches would be computed before this one is added
        return {name: (moments[name], samples.pop(name), last[name]) for name in last}

    def observe_operands(arrays: FlatState) -> dict[str, Operands]:
        weights, operands = weights_of(arrays), {}
        sites, is_everything = activation_sites(structure), len(rows) == examples.num_examples
        for each in memory.passes:
            for name, (moments, samples, maps) in observe_pass(arrays, each.producers).items():
                is_whole = samples.shape[1] == moments.pivot.shape[0] and is_everything
                operands[name] = Operands.build(
                    moments=moments,
                    samples=jax.device_put(samples),
                    sample_labels=sample_labels,
                    sample_is_full=is_whole,
                    space=maps.sample.shape[1:-1],
                    **weights[name],
                )
        dtype = next((each.dtype for each in operands.values()), None)
        for name in structure.sites.keys() - sites.keys():
            operands[name] = Operands.of_weights(class_ids, rows, dtype=dtype, **weights[name])
        return {name: operands[name] for name in structure.sites}

    return observe_operands


def _observe_batch(
    structure: Structure, memory: MemoryPlan, producers: Sequence[str], arrays: FlatState, inputs: Batch
) -> dict[str, Maps]:
    """Returns the pooled activations of some producers."""
    found = {}
    for name, features in producer_activations(structure, arrays, inputs, producers).items():
        maps = features if memory.positions is None else pool_positions(features, memory.positions)
        # pooled from all positions, as without a budget: windows of windows would weigh positions otherwise
        found[name] = Maps(flat_positions(maps), pool_positions(features, memory.sample_positions))
    return found
