"""Means and covariances of the activations that enter each consumer, over all calibration images and positions.

They are gathered in one pass, batch by batch. As in `moments.py`, sums are taken relative to a pivot, here the first
entry of each channel: a constant channel has exactly zero variance, and large means do not swallow small variances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.nets.inputs import Batch
from jaxprune.observation.moments import HIGHEST
from jaxprune.structure.consumer_sites import ConsumerSite, find_consumers
from jaxprune.structure.evaluating import evaluate
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path
from jaxprune.structure.producer_sites import with_channels_last
from jaxprune.types import Array


class Covariance(NamedTuple):
    """Mean and covariance of the channels that enter a consumer, as NumPy arrays in float64."""

    mean: np.ndarray
    """[C] over examples and positions."""
    matrix: np.ndarray
    """[C, C] mean product of deviations from the mean, over examples and positions."""


class CovarianceSums(NamedTuple):
    """Sums over the examples so far; the sums are of averages over positions."""

    num_examples: Array
    pivot: Array
    """[C] the first entry of each channel, which all sums are relative to."""
    first: Array
    """[C] sum of deviations from the pivot."""
    second: Array
    """[C, C] sum of products of deviations from the pivot."""


def make_covariances(
    structure: Structure, batches: Iterable[tuple[Batch, np.ndarray]]
) -> Callable[[Mapping[Path, Array]], dict[str, Covariance]]:
    """Makes a function that returns the covariances at every consumer of any network of one architecture.

    Args:
      structure: of the network, traced at the batches' size.
      batches: (inputs, which of them are real) of all calibration examples, at least one; read at every call.

    Returns:
      A function from a network's arrays to name of a `ConsumerSite` -> covariance; it compiles once.
    """
    add_batch = jax.jit(partial(_add_batch, structure))

    def covariances(arrays: Mapping[Path, Array]) -> dict[str, Covariance]:
        sites = _sites(structure)
        sums = {key: zero_sums(len(site.positions)) for key, site in sites.items()}
        for inputs, is_real in batches:
            sums = add_batch(dict(arrays), sums, inputs, is_real)
        values = {key: to_covariance(own) for key, own in jax.device_get(sums).items()}
        every_site = (site for group in find_consumers(structure).sites.values() for site in group)
        return {site.name: values[_key(site)] for site in every_site}

    return covariances


def zero_sums(num_channels: int) -> CovarianceSums:
    """Returns the sums over no examples, in the widest floating-point type that JAX is set to.

    Example:
      >>> zero_sums(2).second.shape
      (2, 2)
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    zeros = np.zeros(num_channels, dtype)
    return CovarianceSums(np.zeros((), dtype), zeros, zeros, np.zeros((num_channels, num_channels), dtype))


def add_to_sums(sums: CovarianceSums, features: jax.Array, is_real: jax.Array) -> CovarianceSums:
    """Adds a batch of examples; pure and jit-friendly.

    Args:
      sums: over the examples so far.
      features: [N, *space, C] activations, any float type.
      is_real: [N] False for examples that only fill up the batch. The first one is real.
    """
    chex.assert_equal_shape_prefix([features, is_real], 1)
    rows = features.reshape(len(features), -1, features.shape[-1]).astype(sums.first.dtype)
    pivot = jnp.where(sums.num_examples > 0, sums.pivot, rows[0, 0])
    deviations = jnp.where(is_real[:, None, None], rows - pivot[None, None], 0)
    flat, num_positions = deviations.reshape(-1, rows.shape[-1]), rows.shape[1]
    return CovarianceSums(
        sums.num_examples + is_real.sum(),
        pivot,
        sums.first + flat.sum(axis=0) / num_positions,
        sums.second + jnp.matmul(flat.T, flat, precision=HIGHEST) / num_positions,
    )


def to_covariance(sums: CovarianceSums) -> Covariance:
    """Returns mean and covariance of the examples that were added.

    Example:
      >>> sums = add_to_sums(zero_sums(1), jnp.array([[1.0], [3.0]]), jnp.ones(2, bool))
      >>> [part.tolist() for part in to_covariance(sums)]
      [[2.0], [[1.0]]]
    """
    num_examples, pivot, first, second = (np.asarray(array, np.float64) for array in sums)
    offset = first / num_examples
    return Covariance(pivot + offset, second / num_examples - np.outer(offset, offset))


def _add_batch(
    structure: Structure,
    arrays: FlatState,
    sums: dict[str, CovarianceSums],
    inputs: Batch,
    is_real: jax.Array,
) -> dict[str, CovarianceSums]:
    """Adds a batch to the sums of every site."""
    sites = _sites(structure)
    values = evaluate(structure.program, arrays, inputs, [site.value for site in sites.values()])
    return {
        key: add_to_sums(sums[key], _channels_last(value, site), is_real)
        for (key, site), value in zip(sites.items(), values, strict=True)
    }


def _sites(structure: Structure) -> dict[str, ConsumerSite]:
    """One site for each value that channels of a group are read from: several consumers may read the same."""
    sites = (site for group in find_consumers(structure).sites.values() for site in group)
    return {_key(site): site for site in sites}


def _key(site: ConsumerSite) -> str:
    return (
        f"{site.group} in value {site.value}" if site.block is None else f"{site.name} in value {site.value}"
    )


def _channels_last(value: jax.Array, site: ConsumerSite) -> jax.Array:
    """[N, *space, C] what enters a consumer."""
    moved = jnp.moveaxis(value, site.batch_axis, 0)
    axis = site.value_axis + (site.value_axis < site.batch_axis)
    return with_channels_last(moved, [axis], site.value_positions)
