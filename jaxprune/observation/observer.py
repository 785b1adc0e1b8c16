"""What pruning functions read, observed on a network: activations entering the next layer, weights, norms.

Moments are streamed over all images; a class-balanced sample of whole activation maps is kept besides. Both
run the traced program up to the last value needed, so nothing in the network's own code is touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.observation.checks import check_labels, to_class_ids
from jaxprune.observation.gradients import GradientSource
from jaxprune.observation.loss_gradients import Loss, Sample, make_gradients, make_squared_gradients
from jaxprune.observation.moments import Moments, add_examples, zero_moments
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands, sample_moments
from jaxprune.observation.sample import balanced_sample, flat_positions, pool_positions
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path, fingerprint, split_model
from jaxprune.structure.producer_sites import (
    ChannelIndices,
    ProducerSite,
    channel_columns,
    channels_last,
    filter_columns,
)
from jaxprune.structure.program import evaluate, trace_program
from jaxprune.structure.tracing import structure_of, trace_structure
from jaxprune.types import Array


class _Weights(TypedDict):
    kernel: jax.Array
    outgoing: jax.Array | None


class _Norm(TypedDict):
    gamma: jax.Array | None
    beta: jax.Array | None


Observer = Callable[[Mapping[Path, Array]], Observed]
"""Arrays of a network (from `split_model`) -> what was observed on it."""


def observe(
    model: nnx.Module,
    images: Array,
    labels: Array,
    *,
    num_samples: int = 256,
    max_positions: int = 64,
    batch_size: int = 256,
    loss: Loss | None = None,
) -> Observed:
    """Operands of every producer of every group, from the activations on some labelled images.

    A producer's activations are those that enter its first consumer, before any flattening: after activation,
    normalisation and pooling, whichever the network does in between. The network runs in evaluation mode.

    Gradients of the loss (`GW`, `GX`) cost a backward pass over all images, mean squared gradients (`GW2`) one for each
    image by itself. They are computed only when a function that is scored reads them, or by `.with_gradients()` and
    `.with_squared_gradients()`, from the weights as they are now; until then these are kept.

    Args:
      model: NNX network; it is not changed.
      images: [N, ...] finite calibration images.
      labels: [N] their classes, whole numbers, at least two different ones.
      num_samples: size of the sample; the first `num_samples // K` images of each of K classes (at least one).
      max_positions: activation maps of the sample with more positions are average-pooled; moments never are.
      batch_size: images per forward pass.
      loss: `(outputs, labels) -> [N]`, what each example loses, for gradients; labels are the whole numbers given here.
        By default the cross-entropy of [N, K] logits with labels 0 .. K-1.

    Returns:
      Producer path -> operands, with the groups.

    Raises:
      ValueError: if nothing can be pruned, the network does not run on the images, labels do not match, only one
        class occurs, or images are not finite.
    """
    settings = {"num_samples": num_samples, "max_positions": max_positions, "batch_size": batch_size}
    return make_observer(model, images, labels, **settings, loss=loss)(split_model(model)[1])


def make_observer(
    model: nnx.Module,
    images: Array,
    labels: Array,
    *,
    num_samples: int = 256,
    max_positions: int = 64,
    batch_size: int = 256,
    loss: Loss | None = None,
) -> Observer:
    """A function that observes any network of one architecture on the same images; it compiles only once.

    Args: as `observe`; of `model` only the architecture and shapes are used.

    Returns:
      A function from `split_model(network)[1]` to `Observed`.

    Raises:
      ValueError: as `observe`; the returned function raises for arrays of another architecture.
    """
    pixels, class_ids = _check_examples(images, labels)
    for name, value in {
        "num_samples": num_samples,
        "max_positions": max_positions,
        "batch_size": batch_size,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value}.")
    rows = balanced_sample(class_ids, num_samples)
    batch_size = max(2, min(batch_size, len(pixels)))
    graphdef, flat, rest = split_model(model)
    known = trace_structure(model, jax.ShapeDtypeStruct(pixels.shape, pixels.dtype))
    known.require_groups()
    trace = partial(structure_of, graphdef, flat, rest, pixels, known)
    structure = trace(batch=batch_size)
    is_everything = len(rows) == len(pixels)
    at_sample = trace(batch=len(rows))  # only differs in the batch size
    step = partial(_sample_step, at_sample, class_ids[rows], max_positions, is_everything)
    gather_sample, add_batch = jax.jit(step), jax.jit(partial(_add_batch, structure))
    sample_images = jnp.asarray(pixels[rows])
    batches = [] if is_everything else _batches(pixels, batch_size)
    classes = np.asarray(labels)
    gradients = make_gradients(
        structure,
        [(batch, classes[index], is_real) for batch, index, is_real in batches],
        Sample(at_sample, sample_images, classes[rows], max_positions),
        loss,
    )
    trace_one = partial(trace_program, graphdef, flat, rest)
    squared_gradients = make_squared_gradients(trace_one, structure.sites, pixels, classes, loss)
    num_classes = int(class_ids.max()) + 1
    producers = tuple(structure.sites)
    groups = {name: group.producers for name, group in structure.groups.items()}

    def observer(arrays: Mapping[Path, Array]) -> Observed:
        found = fingerprint(arrays)
        if found != structure.fingerprint:
            raise ValueError(
                f"needs the arrays of a network of fingerprint {structure.fingerprint}, got {found}. "
                "Make an observer for this architecture with make_observer."
            )
        operands, pivots = gather_sample(dict(arrays), sample_images)
        if not is_everything:
            moments = {name: zero_moments(pivots[name], num_classes) for name in producers}
            for batch, index, is_real in batches:
                moments = add_batch(dict(arrays), moments, batch, class_ids[index], is_real)
            operands = {
                name: dataclasses.replace(operands[name], moments=moments[name]) for name in producers
            }
        source = GradientSource(partial(gradients, dict(arrays)))
        squares = GradientSource(partial(squared_gradients, dict(arrays)))
        return Observed({name: operands[name] for name in producers}, groups, source, squares)

    return observer


def _check_examples(images: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(images)
    if pixels.ndim < 2:
        raise ValueError(f"needs images [N, ...] with at least two axes, got shape {pixels.shape}.")
    classes = check_labels(labels, len(pixels))
    if not jnp.issubdtype(pixels.dtype, jnp.number) and pixels.dtype != bool:
        raise ValueError(
            f"needs images that hold numbers, got dtype {pixels.dtype}. Stack them: np.stack(images)."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        pixels = pixels.astype(jax.dtypes.canonicalize_dtype(pixels.dtype), copy=False)
    bad = int(pixels.size - np.count_nonzero(np.isfinite(pixels)))
    if bad:
        raise ValueError(
            f"needs finite images, got {bad} NaN or infinite values. Clean or drop these examples."
        )
    return pixels, to_class_ids(classes)[0]


def _batches(pixels: np.ndarray, size: int) -> list[tuple[jax.Array, np.ndarray, np.ndarray]]:
    """Equal batches: images on the device, their indices, which are real; the last repeats its first image."""
    result = []
    for start in range(0, len(pixels), size):
        index = np.arange(start, start + size)
        is_real = index < len(pixels)
        index = np.where(is_real, index, start)
        result.append((jnp.asarray(pixels[index]), index, is_real))
    return result


def _activations(structure: Structure, arrays: FlatState, images: jax.Array) -> dict[str, jax.Array]:
    """Producer path -> [N, *space, C] activations entering its first consumer, at least float32."""
    sites = structure.sites
    values = evaluate(structure.program, arrays, images, [site.value for site in sites.values()])
    return {
        name: channels_last(value, site) for (name, site), value in zip(sites.items(), values, strict=True)
    }


def _add_batch(
    structure: Structure,
    arrays: FlatState,
    moments: dict[str, Moments],
    images: jax.Array,
    class_ids: jax.Array,
    is_real: jax.Array,
) -> dict[str, Moments]:
    features = _activations(structure, arrays, images)
    return {
        name: add_examples(moments[name], flat_positions(value), class_ids, is_real)
        for name, value in features.items()
    }


def _sample_step(
    structure: Structure,
    class_ids: np.ndarray,
    max_positions: int,
    is_everything: bool,
    arrays: FlatState,
    images: jax.Array,
) -> tuple[dict[str, Operands], dict[str, jax.Array]]:
    """Operands whose moments are those of the sample, and per producer the pivot for the streamed ones."""
    operands: dict[str, Operands] = {}
    pivots: dict[str, jax.Array] = {}
    num_classes = int(class_ids.max()) + 1
    for name, features in _activations(structure, arrays, images).items():
        rows = flat_positions(features)
        maps = pool_positions(features, max_positions)
        pooled = flat_positions(maps)
        operands[name] = Operands.build(
            moments=sample_moments(rows, class_ids, num_classes=num_classes),
            samples=pooled,
            sample_labels=class_ids,
            sample_is_full=is_everything and pooled.shape == rows.shape,
            space=maps.shape[1:-1],
            **_weights(structure.sites[name], arrays),
            **_scale_and_shift(structure.sites[name], arrays),
        )
        pivots[name] = rows[0]
    return operands, pivots


def _weights(site: ProducerSite, arrays: FlatState) -> _Weights:
    """The weights that make each channel [F, C] and those that read it [O, C], if weights do."""
    kernel = filter_columns(arrays[site.kernel], site)
    if site.consumer is None or site.consumed is None:
        return {"kernel": kernel, "outgoing": None}
    return {"kernel": kernel, "outgoing": channel_columns(arrays[site.consumer], site.consumed)}


def _scale_and_shift(site: ProducerSite, arrays: FlatState) -> _Norm:
    """Gamma and beta [C] of the normalisation after the kernel, as far as there are any."""
    return {"gamma": _vector(site.gamma, arrays), "beta": _vector(site.beta, arrays)}


def _vector(where: tuple[Path, ChannelIndices] | None, arrays: FlatState) -> jax.Array | None:
    """One number per channel; the mean of its entries where a channel has several."""
    return None if where is None else channel_columns(arrays[where[0]], where[1]).mean(axis=0)
