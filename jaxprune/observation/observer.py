"""A network and labelled images become operands: activations that enter the next layer, weights, normalisations.

Moments are summed up over all images in batches; whole activation maps are stored for a class-balanced sample. Both run
the traced program up to the last value needed, so nothing in the network's own code is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxprune.observation.activations import producer_activations, producer_weights
from jaxprune.observation.bounded import make_bounded_operands
from jaxprune.observation.checks import check_labels, check_real, to_class_ids
from jaxprune.observation.coarse_classes import Classes, check_classes, class_means, cluster_classes
from jaxprune.observation.covariances import Covariance, make_covariances
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.loss_gradients import Loss, SampledImages, make_gradients, make_squared_gradients
from jaxprune.observation.memory import MemoryPlan, fit, measure
from jaxprune.observation.moments import Moments, add_examples, sample_moments, zero_moments
from jaxprune.observation.observed import LazyValues, Observed
from jaxprune.observation.operands import Operands
from jaxprune.observation.sample import balanced_sample, batch_indices, flat_positions, pool_positions
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path, fingerprint, split_model
from jaxprune.structure.program import trace_program
from jaxprune.structure.tracing import structure_of, trace_structure
from jaxprune.types import Array

Observer = Callable[[Mapping[Path, Array]], Observed]
"""Arrays of a network (from `split_model`) -> what was observed on it."""

_Value = TypeVar("_Value")
Source = Callable[[Mapping[Path, Array]], Mapping[str, _Value]]
"""Arrays of a network -> values by name."""


class Calibration(NamedTuple):
    """The images that networks are observed on."""

    pixels: np.ndarray
    """[N, ...]."""
    labels: np.ndarray
    """[N] as given, for the loss."""
    class_ids: np.ndarray
    """[N] classes 0 .. K-1 of moments and sample."""
    rows: np.ndarray
    """[n] indices of the sample, sorted by class."""


class _Parts(NamedTuple):
    """What observes a network; gradients and covariances are made when they are first read."""

    operands: Callable[[FlatState], dict[str, Operands]]
    gradients: Callable[[], Source[Gradients]]
    covariances: Callable[[], Source[Covariance]]


def observe(
    model: nnx.Module,
    images: Array,
    labels: Array,
    *,
    num_samples: int = 256,
    max_positions: int = 64,
    batch_size: int = 256,
    loss: Loss | None = None,
    classes: Classes | None = None,
    positions: int | None = None,
    max_bytes: int | None = None,
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
      max_positions: activation maps of the sample with more positions are average-pooled; those of moments are not,
        unless `positions` or `max_bytes` says so.
      batch_size: images per forward pass.
      loss: `(outputs, labels) -> [N]`, the loss of each example, for gradients; labels are the whole numbers of here.
        By default the cross-entropy of [N, K] logits with labels 0 .. K-1.
      classes: fewer, coarse classes for moments and sample, because memory grows with their number. Either the coarse
        class of each class in sorted order of the labels, [K] (CIFAR-100's `coarse_label`, say), or a number from 2
        to K of clusters of classes whose mean activations at the last producer are alike. The loss reads the labels
        themselves.
      positions: activation maps with more positions are average-pooled before moments are taken (and so are those of
        the sample), which a function that reads means over positions hardly notices. By default all positions count.
      max_bytes: memory that operands and the work on them may take. If it is not enough for all positions, moments
        are pooled to the largest square number of positions up to 256 with which everything fits, and producers are
        observed in several passes over the images. Counted from shapes before anything runs; images, network,
        gradients and covariances are not counted. Images are not copied then: do not change them while gradients may
        still be read.

    Returns:
      A mapping from producer path to operands, with the groups.

    Raises:
      ValueError: if nothing can be pruned, the network does not run on the images, labels do not match, only one
        class occurs, images are not finite, coarse classes do not fit the classes, or nothing fits the budget.
    """
    observer = make_observer(
        model,
        images,
        labels,
        num_samples=num_samples,
        max_positions=max_positions,
        batch_size=batch_size,
        loss=loss,
        classes=classes,
        positions=positions,
        max_bytes=max_bytes,
    )
    return observer(split_model(model)[1])


def make_observer(
    model: nnx.Module,
    images: Array,
    labels: Array,
    *,
    num_samples: int = 256,
    max_positions: int = 64,
    batch_size: int = 256,
    loss: Loss | None = None,
    classes: Classes | None = None,
    positions: int | None = None,
    max_bytes: int | None = None,
) -> Observer:
    """Makes a function that observes any network of one architecture on the same images; it compiles only once.

    Args:
      model: NNX network, of which only the architecture and shapes are used, unless `classes` is a number: then its
        activations tell which classes form clusters, for all networks.
      images, labels, num_samples, max_positions, batch_size, loss, classes, positions, max_bytes: as for `observe`.

    Returns:
      A function from `split_model(network)[1]` to `Observed`.

    Raises:
      ValueError: as `observe`; the returned function raises for arrays of another architecture.
    """
    options = {"num_samples": num_samples, "max_positions": max_positions, "batch_size": batch_size}
    optional = {"positions": positions, "max_bytes": max_bytes}
    options |= {name: value for name, value in optional.items() if value is not None}
    pixels, targets, class_ids = _check_arguments(images, labels, options)
    mapping = None if classes is None else check_classes(classes, int(class_ids.max()) + 1)
    batch_size = max(2, min(batch_size, len(pixels)))
    graphdef, flat, rest = split_model(model)
    known = trace_structure(model, jax.ShapeDtypeStruct(pixels.shape, pixels.dtype))
    known.require_groups()
    trace = partial(structure_of, graphdef, flat, rest, pixels, known)
    structure = trace(batch=batch_size)
    if classes is not None and mapping is None:
        mapping = _clusters(structure, flat, pixels, class_ids, int(np.asarray(classes)))
    class_ids = class_ids if mapping is None else mapping[class_ids]
    calibration = Calibration(pixels, targets, class_ids, balanced_sample(class_ids, num_samples))
    if positions is None and max_bytes is None:
        parts = _make_whole(structure, trace, calibration, max_positions, loss)
    else:
        sizes = measure(structure, flat, int(class_ids.max()) + 1, num_samples, max_positions)
        parts = _make_bounded(structure, trace, calibration, fit(sizes, positions, max_bytes), loss)
    trace_one, sites = partial(trace_program, graphdef, flat, rest), structure.sites
    squared_gradients = make_squared_gradients(trace_one, sites, pixels, targets, loss)
    groups = {name: group.producers for name, group in structure.groups.items()}

    def observer(arrays: Mapping[Path, Array]) -> Observed:
        digest = fingerprint(arrays)
        if digest != structure.fingerprint:
            raise ValueError(
                f"needs the arrays of a network of fingerprint {structure.fingerprint}, got {digest}. "
                "Make an observer for this architecture with make_observer."
            )
        network = dict(arrays)
        return Observed(
            parts.operands(network),
            groups,
            LazyValues(lambda: parts.gradients()(network)),
            LazyValues(partial(squared_gradients, network)),
            LazyValues(lambda: parts.covariances()(network)),
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


def _make_whole(
    structure: Structure,
    trace: Callable[..., Structure],
    calibration: Calibration,
    max_positions: int,
    loss: Loss | None,
) -> _Parts:
    """Observes with images on the device and moments of all positions."""
    pixels, labels, class_ids, rows = calibration
    at_sample = trace(batch=len(rows))
    sample = SampledImages(at_sample, jax.device_put(pixels[rows]), labels[rows], max_positions)
    batches = []
    if len(rows) < len(pixels):
        batch_size = structure.example.shape[0]
        batches = [(jax.device_put(pixels[i]), i, real) for i, real in batch_indices(len(pixels), batch_size)]
    labelled = [(batch, labels[i], is_real) for batch, i, is_real in batches]
    gradients = make_gradients(structure, labelled, sample, loss)
    all_images = [(batch, is_real) for batch, _, is_real in batches] or [
        (sample.images, np.ones(len(rows), bool))
    ]
    covariances = make_covariances(structure if batches else at_sample, all_images)
    operands = _make_operands(structure, sample, class_ids, rows, batches)
    return _Parts(operands, lambda: gradients, lambda: covariances)


def _make_bounded(
    structure: Structure,
    trace: Callable[..., Structure],
    calibration: Calibration,
    memory: MemoryPlan,
    loss: Loss | None,
) -> _Parts:
    """Observes within a budget; images stay on the host, and what gradients need is made when they are read."""
    pixels, labels, class_ids, rows = calibration
    batches = list(batch_indices(len(pixels), structure.example.shape[0]))

    def images(index: np.ndarray, is_real: np.ndarray) -> np.ndarray:
        return pixels[index[0] : index[-1] + 1] if is_real.all() else pixels[index]

    @cache
    def gradients() -> Source[Gradients]:
        sample = SampledImages(trace(batch=len(rows)), pixels[rows], labels[rows], memory.sample_positions)
        labelled = (
            [(images(i, real), labels[i], real) for i, real in batches] if len(rows) < len(pixels) else []
        )
        return make_gradients(structure, labelled, sample, loss)

    @cache
    def covariances() -> Source[Covariance]:
        return make_covariances(structure, [(images(i, real), real) for i, real in batches])

    return _Parts(make_bounded_operands(structure, memory, pixels, class_ids, rows), gradients, covariances)


def _clusters(
    structure: Structure, flat: FlatState, pixels: np.ndarray, class_ids: np.ndarray, num_clusters: int
) -> np.ndarray:
    """Clusters classes by the mean activations of a network at its last producer."""
    last = list(structure.sites)[-1]

    @jax.jit
    def features(arrays: FlatState, images: jax.Array) -> jax.Array:
        return flat_positions(producer_activations(structure, arrays, images, [last])[last]).mean(axis=1)

    parts = [
        np.asarray(features(flat, pixels[index]))[is_real]
        for index, is_real in batch_indices(len(pixels), structure.example.shape[0])
    ]
    means = class_means(np.concatenate(parts), class_ids, int(class_ids.max()) + 1)
    return cluster_classes(means, num_clusters)


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
            for name, features in producer_activations(structure, arrays, images).items()
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
    weights = producer_weights(structure, arrays)
    for name, features in producer_activations(structure, arrays, images).items():
        rows = flat_positions(features)
        maps = pool_positions(features, max_positions)
        pooled = flat_positions(maps)
        operands[name] = Operands.build(
            moments=sample_moments(rows, class_ids, num_classes=num_classes),
            samples=pooled,
            sample_labels=class_ids,
            sample_is_full=is_everything and pooled.shape == rows.shape,
            space=maps.shape[1:-1],
            **weights[name],
        )
        pivots[name] = rows[0]
    return operands, pivots
