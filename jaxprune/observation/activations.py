"""Reads activations and weights at the producers of a traced network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp

from jaxprune.nets.inputs import Batch
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, dotted
from jaxprune.structure.producer_sites import channel_columns, channels_last
from jaxprune.structure.program import evaluate


class ProducerWeights(TypedDict):
    """Weights and normalisation around a producer's channels, one column each."""

    kernel: jax.Array
    """[F, C]."""
    outgoing: jax.Array | None
    """[O, C]."""
    gamma: jax.Array | None
    """[C]."""
    beta: jax.Array | None
    """[C]."""


def producer_activations(
    structure: Structure, arrays: FlatState, inputs: Batch, producers: Sequence[str] | None = None
) -> dict[str, jax.Array]:
    """Returns producer path -> [N, *space, C] activations entering its first consumer, at least float32.

    Args:
      structure: of the network, traced with as many examples.
      arrays: of the network.
      inputs: arrays in the order of the structure's example, or the only one.
      producers: which ones; by default all.

    Raises:
      ValueError: if weights or activations are complex.
    """
    sites = {name: structure.sites[name] for name in (structure.sites if producers is None else producers)}
    values = evaluate(structure.program, arrays, inputs, [site.value for site in sites.values()])
    activations = {
        name: channels_last(value, site) for (name, site), value in zip(sites.items(), values, strict=True)
    }
    _check_real_values(structure, arrays, activations)
    return activations


def producer_weights(structure: Structure, arrays: FlatState) -> dict[str, ProducerWeights]:
    """Returns producer path -> weights; jittable in the arrays.

    Args:
      structure: of the network.
      arrays: of the network.
    """
    weights: dict[str, ProducerWeights] = {}
    for name, site in structure.sites.items():
        outgoing = None
        if site.consumer is not None and site.consumer_channels is not None:
            outgoing = channel_columns(arrays[site.consumer], site.consumer_channels)
        gamma, beta = (  # the mean of the entries where a channel has several
            None if norm is None else channel_columns(arrays[norm[0]], norm[1]).mean(axis=0)
            for norm in (site.gamma, site.beta)
        )
        kernel = channel_columns(arrays[site.kernel], site.kernel_channels)
        weights[name] = {"kernel": kernel, "outgoing": outgoing, "gamma": gamma, "beta": beta}
    return weights


def _check_real_values(structure: Structure, arrays: FlatState, activations: Mapping[str, jax.Array]) -> None:
    """Refuses weights and activations that are complex, because functions are defined for real ones."""
    sites = structure.sites.values()
    norms = (norm[0] for site in sites for norm in (site.gamma, site.beta) if norm is not None)
    paths = dict.fromkeys((*(site.kernel for site in sites), *(site.consumer for site in sites), *norms))
    values = {dotted(path): arrays[path] for path in paths if path is not None}
    values |= {f"the activations of {name}": value for name, value in activations.items()}
    found = [
        f"{name} ({value.dtype})"
        for name, value in values.items()
        if jnp.issubdtype(value.dtype, jnp.complexfloating)
    ]
    if found:
        raise ValueError(
            f"needs real weights and activations, got complex ones: {', '.join(found)}. Give plan(...) scores of your "
            "own, such as sums of absolute values; mask and slim take complex networks."
        )
