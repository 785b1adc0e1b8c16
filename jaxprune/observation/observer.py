"""A network and labelled images become operands: activations that enter the next layer, weights, normalisations.

Moments are summed up over all images in batches; whole activation maps are stored for a class-balanced sample. Both run
the traced program up to the last value needed, so nothing in the network's own code is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.observation.checks import check_labels, check_real, to_class_ids
from jaxprune.observation.covariances import make_covariances
from jaxprune.observation.loss_gradients import Loss, SampledImages, make_gradients, make_squared_gradients
from jaxprune.observation.moments import Moments, add_examples, sample_moments, zero_moments
from jaxprune.observation.observed import LazyValues, Observed
from jaxprune.observation.operands import Operands
from jaxprune.observation.sample import balanced_sample, batch_indices, flat_positions, pool_positions
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path, dotted, fingerprint, split_model
from jaxprune.structure.producer_sites import (
    channel_columns,
    channels_last,
)
from jaxprune.structure.program import evaluate, trace_program
from jaxprune.structure.tracing import structure_of, trace_structure
from jaxprune.types import Array

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
    """Observes the operands of every producer of every group on some labelled images.

    A producer's activations are those that enter its first consumer, before any flattening: after the activation
    function, normalisation and pooling, if the network has these in between. The network runs in evaluation mode.
    Weights are those that the network stores: before a hook on reading (`on_get_value`), or a norm of the weights
    themselves, changes them.

    Gradients of the loss (`GW`, `GX`) take a backward pass over all images, mean squared gradients (`GW2`) one for each
    image alone. They are computed only when a function that is scored reads them, or by `.with_gradients()` and
    `.with_squared_gradients()`, and covariances only by `slim(..., compensate=observed)` or `.covariances()`. They are
    those of the weights at the time of this call, which stay in memory for them.

    Args:
      model: NNX network; it is not changed.
      images: [N, ...] finite calibration images.
      labels: [N] their classes, whole numbers, at least two different ones.
      num_samples: size of the sample; the first `num_samples // K` images of each of K classes (at least one).
      max_positions: activation maps of the sample with more positions are average-pooled; moments never are.
      batch_size: images per forward pass.
      loss: `(outputs, labels) -> [N]`, the loss of each example, for gradients; labels are the whole numbers of here.
        By default the cross-entropy of [N, K] logits with labels 0 .. K-1.

    Returns:
      A mapping from producer path to operands, with the groups.

    Raises:
      ValueError: if nothing can be pruned, the network does not run on the images, labels do not match, only one
        class occurs, or images are not finite.
    """
    options = {"num_samples": num_samples, "max_positions": max_positions, "batch_size": batch_size}
    return make_observer(model, images, labels, **options, loss=loss)(split_model(model)[1])


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
    """Makes a function that observes any network of one architecture on the same images; it compiles only once.

    Args:
      model: NNX network, of which only the architecture and shapes are used.
      images, labels, num_samples, max_positions, batch_size, loss: as for `observe`.

    Returns:
      A function from `split_model(network)[1]` to `Observed`.

    Raises:
      ValueError: as `observe`; the returned function raises for arrays of another architecture.
    """
    options = {"num_samples": num_samples, "max_positions": max_positions, "batch_size": batch_size}
    pixels, classes, class_ids = _check_arguments(images, labels, options)
    rows = balanced_sample(class_ids, num_samples)
    batch_size = max(2, min(batch_size, len(pixels)))
    graphdef, flat, rest = split_model(model)
    known = trace_structure(model, jax.ShapeDtypeStruct(pixels.shape, pixels.dtype))
    known.require_groups()
    trace = partial(structure_of, graphdef, flat, rest, pixels, known)
    structure, at_sample = trace(batch=batch_size), trace(batch=len(rows))
    sample = SampledImages(at_sample, jax.device_put(pixels[rows]), classes[rows], max_positions)
    batches = []
    if len(rows) < len(pixels):
        batches = [(jax.device_put(pixels[i]), i, real) for i, real in batch_indices(len(pixels), batch_size)]
    observe_operands = _make_operands(structure, sample, class_ids, rows, batches)
    labelled = [(batch, classes[i], is_real) for batch, i, is_real in batches]
    gradients = make_gradients(structure, labelled, sample, loss)
    trace_one, sites = partial(trace_program, graphdef, flat, rest), structure.sites
    squared_gradients = make_squared_gradients(trace_one, sites, pixels, classes, loss)
    groups = {name: group.producers for name, group in structure.groups.items()}
    all_images = [(batch, is_real) for batch, _, is_real in batches] or [
        (sample.images, np.ones(len(rows), bool))
    ]
    covariances = make_covariances(structure if batches else at_sample, all_images)

    def observer(arrays: Mapping[Path, Array]) -> Observed:
        digest = fingerprint(arrays)
        if digest != structure.fingerprint:
            raise ValueError(
                f"needs the arrays of a network of fingerprint {structure.fingerprint}, got {digest}. "
                "Make an observer for this architecture with make_observer."
            )
        network = dict(arrays)
        return Observed(
            observe_operands(network),
            groups,
            LazyValues(partial(gradients, network)),
            LazyValues(partial(squared_gradients, network)),
            LazyValues(partial(covariances, network)),
        )

    return observer


def _check_arguments(
    images: Array, labels: Array, options: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images in a dtype of JAX, [N] labels and [N] class ids, after checking all arguments."""
    pixels = np.asarray(images)
    if pixels.ndim < 2:
        raise ValueError(f"needs images [N, ...] with at least two axes, got shape {pixels.shape}.")
    classes = check_labels(labels, len(pixels))
    check_real(pixels)
    wide = pixels
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        pixels = wide.astype(jax.dtypes.canonicalize_dtype(wide.dtype), copy=False)
    if np.issubdtype(pixels.dtype, np.integer) and pixels is not wide and not np.array_equal(pixels, wide):
        raise ValueError(
            f"needs whole numbers that fit {pixels.dtype}, got {wide.min()} to {wide.max()}. "
            "Scale these examples, or turn on jax_enable_x64."
        )
    num_bad = int(pixels.size - np.count_nonzero(np.isfinite(pixels)))
    if num_bad:
        raise ValueError(
            f"needs finite images, got {num_bad} NaN or infinite values. Clean or drop these examples."
        )
    class_ids, _ = to_class_ids(classes)
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value}.")
    return pixels, classes, class_ids


def _make_operands(
    structure: Structure,
    sample: SampledImages,
    class_ids: np.ndarray,
    rows: np.ndarray,
    batches: Sequence[tuple[jax.Array, np.ndarray, np.ndarray]],
) -> Callable[[FlatState], dict[str, Operands]]:
    """Makes a function from a network's arrays to the operands of every producer, without gradients.

    `rows` are the indices of the sample; `batches` hold (images, indices, which are real) of all examples, or nothing
    if the sample is all of them.
    """
    is_everything, num_classes = not batches, int(class_ids.max()) + 1
    observe_sample = jax.jit(
        partial(_observe_sample, sample.structure, class_ids[rows], sample.max_positions, is_everything)
    )

    @jax.jit
    def add_batch(
        arrays: FlatState,
        moments: dict[str, Moments],
        images: jax.Array,
        class_ids: jax.Array,
        is_real: jax.Array,
    ) -> dict[str, Moments]:
        return {
            name: add_examples(moments[name], flat_positions(features), class_ids, is_real)
            for name, features in _activations(structure, arrays, images).items()
        }

    def observe_operands(arrays: FlatState) -> dict[str, Operands]:
        operands, pivots = observe_sample(arrays, sample.images)
        if is_everything:
            return {name: operands[name] for name in structure.sites}
        moments = {name: zero_moments(pivots[name], num_classes) for name in structure.sites}
        for images, index, is_real in batches:
            moments = add_batch(arrays, moments, images, class_ids[index], is_real)
        return {name: dataclasses.replace(operands[name], moments=moments[name]) for name in structure.sites}

    return observe_operands


def _observe_sample(
    structure: Structure,
    class_ids: np.ndarray,
    max_positions: int,
    is_everything: bool,
    arrays: FlatState,
    images: jax.Array,
) -> tuple[dict[str, Operands], dict[str, jax.Array]]:
    """Returns operands with the moments of the sample, and for each producer the pivot [D, C] of the moments of all."""
    operands: dict[str, Operands] = {}
    pivots: dict[str, jax.Array] = {}
    num_classes = int(class_ids.max()) + 1
    activations = _activations(structure, arrays, images)
    _check_real_values(structure, arrays, activations)
    for name, features in activations.items():
        site = structure.sites[name]
        rows = flat_positions(features)
        maps = pool_positions(features, max_positions)
        pooled = flat_positions(maps)
        outgoing = None
        if site.consumer is not None and site.consumer_channels is not None:
            outgoing = channel_columns(arrays[site.consumer], site.consumer_channels)
        gamma, beta = (  # the mean of the entries where a channel has several
            None if norm is None else channel_columns(arrays[norm[0]], norm[1]).mean(axis=0)
            for norm in (site.gamma, site.beta)
        )
        operands[name] = Operands.build(
            moments=sample_moments(rows, class_ids, num_classes=num_classes),
            samples=pooled,
            sample_labels=class_ids,
            sample_is_full=is_everything and pooled.shape == rows.shape,
            space=maps.shape[1:-1],
            kernel=channel_columns(arrays[site.kernel], site.kernel_channels),
            outgoing=outgoing,
            gamma=gamma,
            beta=beta,
        )
        pivots[name] = rows[0]
    return operands, pivots


def _activations(structure: Structure, arrays: FlatState, images: jax.Array) -> dict[str, jax.Array]:
    """Returns producer path -> [N, *space, C] activations entering its first consumer, at least float32."""
    sites = structure.sites
    values = evaluate(structure.program, arrays, images, [site.value for site in sites.values()])
    return {
        name: channels_last(value, site) for (name, site), value in zip(sites.items(), values, strict=True)
    }


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
