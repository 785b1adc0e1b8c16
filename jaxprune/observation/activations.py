"""Reads activations and weights at the producers of a traced network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, TypeVar

import jax
import jax.numpy as jnp

from jaxprune.nets.inputs import Batch, Example, arrays_of
from jaxprune.structure.evaluating import evaluate
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, dotted
from jaxprune.structure.producer_sites import ActivationSite, channel_columns, channels_last
from jaxprune.types import Array

_Result = TypeVar("_Result")


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


def activation_sites(
    structure: Structure, producers: Sequence[str] | None = None
) -> dict[str, ActivationSite]:
    """Returns producer path -> where its activations are read, for those that can be observed.

    Args:
      structure: of the network.
      producers: which ones; by default all.
    """
    names = structure.sites if producers is None else producers
    sites = {name: structure.sites[name].activations for name in names}
    return {name: site for name, site in sites.items() if site is not None}


def count_examples(structure: Structure, inputs: Batch) -> int:
    """Returns how many examples a batch has; the structure may be that of a single one."""
    return len(arrays_of(inputs)[structure.example.is_batched.index(True)])


def on_each_example(example: Example, run: Callable[..., _Result]) -> Callable[..., _Result]:
    """Returns a function that runs another one on many examples side by side.

    Args:
      example: what the network takes of one example.
      run: (inputs of one example, further arguments that belong to it) -> any arrays.

    Returns:
      The function from what the network takes of a batch, and further arguments with an entry for each example, to
      arrays with an axis of examples in front.
    """

    def run_one(own: Sequence[Array], *others: object) -> _Result:
        pairs = zip(own, example.is_batched, strict=True)
        return run(tuple(array[None] if is_batched else array for array, is_batched in pairs), *others)

    axes = tuple(0 if is_batched else None for is_batched in example.is_batched)
    return lambda inputs, *others: jax.vmap(run_one, (axes, *[0] * len(others)))(arrays_of(inputs), *others)


def producer_activations(
    structure: Structure, arrays: FlatState, inputs: Batch, producers: Sequence[str] | None = None
) -> dict[str, jax.Array]:
    """Returns producer path -> [N, *space, C] activations entering its first consumer, at least float32.

    Args:
      structure: of the network, traced with as many examples; or with one, which is then run on each of them.
      arrays: of the network.
      inputs: arrays in the order of the structure's example, or the only one.
      producers: which ones; by default all. Those that cannot be observed are left out.

    Raises:
      ValueError: if weights or activations are complex.
    """
    sites, program = activation_sites(structure, producers), structure.program
    numbers = [site.value for site in sites.values()]
    if structure.example.batch_size == 1:
        run = on_each_example(program.example, lambda own: evaluate(program, arrays, own, numbers))
        values = run(inputs)
    else:
        values = evaluate(program, arrays, inputs, numbers)
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
