"""A network and examples become operands: activations that enter the next layer, weights, normalisations.

Moments are summed up over all examples in batches; whole activation maps are stored for a class-balanced sample. Both
run the traced program up to the last value needed, so nothing in the network's own code is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxprune.nets.inputs import Batch
from jaxprune.observation.activations import (
    ProducerWeights,
    activation_sites,
    count_examples,
    producer_activations,
    producer_weights,
)
from jaxprune.observation.batch_structures import BatchStructures
from jaxprune.observation.bounded import make_bounded_operands
from jaxprune.observation.checks import to_class_ids
from jaxprune.observation.coarse_classes import Classes, check_classes, class_means, cluster_classes
from jaxprune.observation.covariances import Covariance, make_covariances
from jaxprune.observation.examples import ExampleBatch, Examples, Targets, gather_examples, is_stream
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.loss_gradients import Loss, SampledInputs, make_gradients, make_squared_gradients
from jaxprune.observation.memory import MemoryPlan, fit, measure
from jaxprune.observation.moments import Moments, add_examples, sample_moments, zero_moments
from jaxprune.observation.observed import LazyValues, Observed
from jaxprune.observation.operands import Operands
from jaxprune.observation.sample import balanced_sample, flat_positions, pool_positions
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
    """The examples that networks are observed on."""

    examples: Examples
    class_ids: np.ndarray
    """[N] classes 0 .. K-1 of moments and sample; all 0 without labels."""
    rows: np.ndarray
    """[n] indices of the sample, sorted by class."""
    batch_size: int
    """Examples of a forward pass."""

    @property
    def sample_labels(self) -> np.ndarray | None:
        """[n] classes of the sample; None without labels."""
        return None if self.examples.labels is None else self.class_ids[self.rows]

    @property
    def is_everything(self) -> bool:
        """Whether the sample holds all examples."""
        return len(self.rows) == self.examples.num_examples


class _Parts(NamedTuple):
    """What observes a network; gradients and covariances are made when they are first read."""

    operands: Callable[[FlatState], dict[str, Operands]]
    gradients: Callable[[], Source[Gradients]]
    covariances: Callable[[], Source[Covariance]]


def observe(
    model: nnx.Module,
    images: Batch | Iterable[Any],
    labels: Targets = None,
    *,
    num_samples: int = 256,
    max_positions: int = 64,
    batch_size: int = 256,
    loss: Loss | None = None,
    classes: Classes | None = None,
    positions: int | None = None,
    max_bytes: int | None = None,
) -> Observed:
    """Observes the operands of every producer of every group on some calibration examples.

    A producer's activations are those that enter its first consumer, before any flattening: after the activation
    function, normalisation and pooling, if the network has these in between. The network runs in evaluation mode, on
    one example at a time where no axis counts the examples alone (windows merged into the batch, say). Producers whose
    activations cannot be observed have weights alone (`Operands.has_activations`).
    Weights are those that the network stores: before a hook on reading (`on_get_value`), or a norm of the weights
    themselves, changes them.

    Examples that do not fit into memory come in batches, from an object whose `__iter__` starts anew: it is read once
    to check it, and once more for each pass. Batches may differ in their number of examples alone, have to be the same
    every time, and are cut to `batch_size`. Arrays that are split over devices are split there in every batch.

    Gradients of the loss (`GW`, `GX`) take a backward pass over all examples, mean squared gradients (`GW2`) one for
    each example alone. They are computed only when a function that is scored reads them, or by `.with_gradients()` and
    `.with_squared_gradients()`, and covariances only by `slim(..., compensate=observed)` or `.covariances()`. They are
    those of the weights at the time of this call, which stay in memory for them.

    Args:
      model: NNX network; it is not changed.
      images: calibration examples. In memory they are one batch as the network takes it: finite images [N, ...],
        tokens, a dict or another pytree of arrays, a tuple of arguments, or `jaxprune.Inputs`. Otherwise an iterable (a
        list, say) of such batches or of pairs (batch, labels); there a network of two arguments needs `Inputs`.
      labels: [N] their classes, whole numbers, at least two different ones. Without labels there is one class, and
        functions that read class operands (`P`, `Q`, `mP`, `mQ`, `N`, `NQ`) are refused. With a `loss` they may be any
        pytree of arrays [N, ...] that it reads, such as next tokens; then there are no classes either.
      num_samples: size of the sample; the first `num_samples // K` examples of each of K classes (at least one).
      max_positions: activation maps of the sample with more positions are average-pooled; those of moments are not,
        unless `positions` or `max_bytes` says so.
      batch_size: examples per forward pass.
      loss: `(outputs, labels) -> [N]`, the loss of each example, for gradients. It gets what the network returns, any
        pytree, and the labels of here; without labels it gets the batch itself, as it was given. By default the
        cross-entropy of [N, K] logits with labels 0 .. K-1.
      classes: fewer, coarse classes for moments and sample, because memory grows with their number. Either the coarse
        class of each class in sorted order of the labels, [K] (CIFAR-100's `coarse_label`, say), or a number from 2
        to K of clusters of classes whose mean activations at the last producer are alike. The loss reads the labels
        themselves.
      positions: activation maps with more positions are average-pooled before moments are taken (and so are those of
        the sample), which a function that reads means over positions hardly notices. By default all positions count.
      max_bytes: memory that operands and the work on them may take. If it is not enough for all positions, moments
        are pooled to the largest square number of positions up to 256 with which everything fits, and producers are
        observed in several passes over the examples. Counted from shapes before anything runs; examples, network,
        gradients and covariances are not counted. Examples are not copied then: do not change them while gradients may
        still be read.

    Returns:
      A mapping from producer path to operands, with the groups.

    Raises:
      ValueError: if nothing can be pruned, the network does not run on the examples, labels do not match, only one
        class occurs, images are not finite, coarse classes do not fit the classes, or nothing fits the budget; for an
        iterable that is empty, can be read only once, or changes its shapes or batches.
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
    images: Batch | Iterable[Any],
    labels: Targets = None,
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
    examples = gather_examples(model, images, labels, has_loss=loss is not None)
    if examples.labels is not None:
        to_class_ids(examples.labels)  # raises for a single class
    _check_options(options)
    if examples.num_examples < 2:
        raise ValueError(f"needs at least two examples, got {examples.num_examples}. Add some.")
    batch_size = max(2, min(batch_size, examples.example.batch_size))
    graphdef, flat, rest = split_model(model)
    known = trace_structure(model, examples.example)
    known.require_groups()
    trace = cache(lambda size, like: structure_of(graphdef, flat, rest, examples.example, like, batch=size))
    of_batch = BatchStructures(trace, known, [batch_size]).to_observe(batch_size)
    class_ids = _class_ids(of_batch, batch_size, flat, examples, classes)
    rows = balanced_sample(class_ids, max(2, num_samples))
    structures = BatchStructures(trace, known, [batch_size, len(rows)])
    structure = structures.to_observe(batch_size)
    calibration = Calibration(examples, class_ids, rows, batch_size)
    if positions is None and max_bytes is None and not is_stream(images, labels):
        parts = _make_whole(structures, calibration, max_positions, loss)
    else:
        sizes = measure(structure, flat, int(class_ids.max()) + 1, num_samples, max_positions, batch_size)
        parts = _make_bounded(structures, calibration, fit(sizes, positions, max_bytes), loss)
    trace_one, sites = partial(trace_program, graphdef, flat, rest), structure.sites
    squared_gradients = make_squared_gradients(trace_one, sites, examples, loss)
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


def _check_options(options: Mapping[str, int]) -> None:
    """Refuses settings below one."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value}.")


def _class_ids(
    structure: Structure, batch_size: int, flat: FlatState, examples: Examples, classes: Classes | None
) -> np.ndarray:
    """Returns [N] classes 0 .. K-1 of moments and sample; all are 0 without labels."""
    if examples.labels is None:
        if classes is not None:
            raise ValueError(
                "classes needs labels [N] to make coarser, got none. Give labels, or leave it out."
            )
        return np.zeros(examples.num_examples, np.int32)
    class_ids, num_classes = to_class_ids(examples.labels)
    if classes is None:
        return class_ids
    mapping = check_classes(classes, num_classes)
    if mapping is None:
        batches = examples.inputs(batch_size)
        mapping = _clusters(structure, flat, batches, class_ids, int(np.asarray(classes)))
    return mapping[class_ids]


def _make_whole(
    structures: BatchStructures,
    calibration: Calibration,
    max_positions: int,
    loss: Loss | None,
) -> _Parts:
    """Observes with examples on the device and moments of all positions."""
    examples, _, rows, size = calibration
    structure = structures.to_observe(size)
    inputs, targets = examples.take(rows)
    sample = SampledInputs(structures.to_observe(len(rows)), jax.device_put(inputs), targets, max_positions)
    batches: list[ExampleBatch] = []
    if not calibration.is_everything:
        batches = [batch._replace(arrays=jax.device_put(batch.arrays)) for batch in examples.batches(size)]
    with_targets = [(batch.arrays, batch.targets, batch.is_real) for batch in batches]
    gradients = make_gradients(structure, with_targets or None, sample, examples, loss)
    all_inputs = [(batch.arrays, batch.is_real) for batch in batches] or [
        (sample.inputs, np.ones(len(rows), bool))
    ]

    @cache
    def covariances() -> Source[Covariance]:
        return make_covariances(structures.of_batch(size if batches else len(rows)), all_inputs)

    operands = _make_operands(structure, sample, calibration, batches)
    return _Parts(operands, lambda: gradients, covariances)


def _make_bounded(
    structures: BatchStructures,
    calibration: Calibration,
    memory: MemoryPlan,
    loss: Loss | None,
) -> _Parts:
    """Observes within a budget; examples stay where they are, and what gradients need is made when they are read."""
    examples, class_ids, rows, size = calibration
    structure = structures.to_observe(size)

    @cache
    def gradients() -> Source[Gradients]:
        sample = SampledInputs(
            structures.to_observe(len(rows)), *examples.take(rows), memory.sample_positions
        )
        batches = None if calibration.is_everything else examples.with_targets(size)
        return make_gradients(structure, batches, sample, examples, loss)

    @cache
    def covariances() -> Source[Covariance]:
        return make_covariances(structures.of_batch(size), examples.inputs(size))

    return _Parts(make_bounded_operands(structure, memory, examples, class_ids, rows), gradients, covariances)


def _clusters(
    structure: Structure,
    flat: FlatState,
    batches: Iterable[tuple[Batch, np.ndarray]],
    class_ids: np.ndarray,
    num_clusters: int,
) -> np.ndarray:
    """Clusters classes by the mean activations of a network at its last producer."""
    if not activation_sites(structure):
        raise ValueError(
            f"classes={num_clusters} needs activations to find clusters of classes, but none can be observed. Give the "
            "coarse class of each class, [K]."
        )
    last = list(activation_sites(structure))[-1]

    @jax.jit
    def features(arrays: FlatState, inputs: Batch) -> jax.Array:
        return flat_positions(producer_activations(structure, arrays, inputs, [last])[last]).mean(axis=1)

    parts = [np.asarray(features(flat, inputs))[is_real] for inputs, is_real in batches]
    means = class_means(np.concatenate(parts), class_ids, int(class_ids.max()) + 1)
    return cluster_classes(means, num_clusters)


def _make_operands(
    structure: Structure,
    sample: SampledInputs,
    calibration: Calibration,
    batches: Sequence[ExampleBatch],
) -> Callable[[FlatState], dict[str, Operands]]:
    """Makes a function from a network's arrays to the operands of every producer, without gradients.

    `batches` hold all examples, or nothing if the sample is all of them.
    """
    is_everything, class_ids = not batches, calibration.class_ids
    num_classes, labels = int(class_ids.max()) + 1, calibration.sample_labels
    observe_sample = jax.jit(
        partial(_observe_sample, sample.structure, labels, sample.max_positions, is_everything)
    )
    of_weights = partial(Operands.of_weights, class_ids, calibration.rows)

    @jax.jit
    def add_batch(
        arrays: FlatState,
        moments: dict[str, Moments],
        inputs: Batch,
        class_ids: jax.Array,
        is_real: jax.Array,
    ) -> dict[str, Moments]:
        return {
            name: add_examples(moments[name], flat_positions(features), class_ids, is_real)
            for name, features in producer_activations(structure, arrays, inputs).items()
        }

    def observe_operands(arrays: FlatState) -> dict[str, Operands]:
        operands, pivots, weights = observe_sample(arrays, sample.inputs)
        dtype = next((each.dtype for each in operands.values()), None)
        operands |= {name: of_weights(dtype=dtype, **own) for name, own in weights.items()}
        if is_everything:
            return {name: operands[name] for name in structure.sites}
        moments = {name: zero_moments(pivot, num_classes) for name, pivot in pivots.items()}
        for batch in batches:
            moments = add_batch(arrays, moments, batch.arrays, class_ids[batch.rows], batch.is_real)
        for name, own in moments.items():
            operands[name] = dataclasses.replace(operands[name], moments=own)
        return {name: operands[name] for name in structure.sites}

    return observe_operands


def _observe_sample(
    structure: Structure,
    labels: np.ndarray | None,
    max_positions: int,
    is_everything: bool,
    arrays: FlatState,
    inputs: Batch,
) -> tuple[dict[str, Operands], dict[str, jax.Array], dict[str, ProducerWeights]]:
    """Returns operands with the moments of the sample, and for each producer the pivot [D, C] of the moments of all.

    Of producers whose activations cannot be observed, it returns the weights instead, as the last result.
    """
    operands: dict[str, Operands] = {}
    pivots: dict[str, jax.Array] = {}
    class_ids = np.zeros(count_examples(structure, inputs), np.int32) if labels is None else labels
    num_classes = int(class_ids.max()) + 1
    weights = producer_weights(structure, arrays)
    for name, features in producer_activations(structure, arrays, inputs).items():
        rows = flat_positions(features)
        maps = pool_positions(features, max_positions)
        pooled = flat_positions(maps)
        operands[name] = Operands.build(
            moments=sample_moments(rows, class_ids, num_classes=num_classes),
            samples=pooled,
            sample_labels=labels,
            sample_is_full=is_everything and pooled.shape == rows.shape,
            space=maps.shape[1:-1],
            **weights.pop(name),
        )
        pivots[name] = rows[0]
    return operands, pivots, weights
