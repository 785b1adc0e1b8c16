"""What a pruning function may read about one layer, as a record that is a JAX pytree.

`Operands` holds two views of the activations: the moments of *all* calibration examples, and a sample sorted by class
with its own moments. A function that needs whole sample matrices reads everything from the sample; any other function
reads the moments of all examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.observation.checks import check_arrays, check_channel_indices, check_sample, sort_examples
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.moments import Moments, balanced_moments, sample_moments
from jaxprune.observation.streaming import Batch, gather_batches
from jaxprune.types import Array, stack_pytrees

_MANY_CLASSES = 64
"""From so many classes on, a product with all pairs of rows and classes is avoided where it can be."""


@dataclass(frozen=True, eq=False)
class Operands:
    """Everything that pruning functions read about the C channels of one producer.

    Make one with `Operands.from_arrays` or `Operands.from_batches`, or get one from `observe`. All arrays have the
    channel axis last, except `extras`. All arrays of stacked operands (several members of one shape) have one more,
    leading axis.
    """

    moments: Moments
    """Moments of all calibration examples: K classes, D positions."""
    samples: jax.Array
    """[n, D', C] the sample, sorted by class."""
    sample_moments: Moments
    """Moments of `samples`."""
    filters: jax.Array
    """[F, C] the weights that produce each channel."""
    bank: jax.Array
    """[F, C_layer] the weights that produce all channels of the layer, also after `take`."""
    outgoing: jax.Array | None = None
    """[O, C] the weights that consume each channel."""
    gamma: jax.Array | None = None
    """[C] scale of the normalisation."""
    beta: jax.Array | None = None
    """[C] shift of the normalisation."""
    gradients: Gradients | None = None
    """Gradients of the loss, if they were given or computed (see `Observed.with_gradients`)."""
    extras: dict[str, jax.Array] = field(default_factory=dict)
    """Values of registered operands by name, each [C, *axes of its type]."""
    class_counts: tuple[int, ...] = ()
    """Number of sample rows of each class; static."""
    sample_is_full: bool = False
    """Whether the sample holds all examples at all positions; static."""
    space: tuple[int, ...] = ()
    """Spatial shape of the sample's positions, such as (H, W), of product D'; () for a dense layer; static."""
    has_activations: bool = True
    """Whether the activations could be observed; otherwise moments and samples of one position are NaN; static."""

    @classmethod
    def from_arrays(
        cls,
        *,
        features: Array,
        labels: Array,
        kernel: Array,
        outgoing: Array | None = None,
        gamma: Array | None = None,
        beta: Array | None = None,
        weight_gradient: Array | None = None,
        feature_gradient: Array | None = None,
        squared_weight_gradient: Array | None = None,
        extras: Mapping[str, Array] | None = None,
    ) -> Operands:
        """Makes the operands of one layer from NumPy or JAX arrays; the sample holds all examples.

        Args:
          features: [N, H, W, C], [N, L, C] or [N, C] activations as the next layer sees them, finite.
          labels: [N] class of each example, whole numbers or strings, at least two different ones.
          kernel: [kh, kw, c_in, C] or [c_in, C] weights that produce the channels.
          outgoing: [kh, kw, C, c_out] or [C, c_out] weights that consume them.
          gamma: [C] scale of the normalisation, where the layer has one.
          beta: [C] shift of the normalisation.
          weight_gradient: shaped as `kernel`, gradient of the mean loss over all examples with respect to it.
          feature_gradient: shaped as `features`, row i the gradient of example i's own loss with respect to row i.
          squared_weight_gradient: shaped as `kernel`, mean over all examples of the squared gradient of each example's
            own loss with respect to it.
          extras: values of registered operands by name, [C, *axes of their type].

        Returns:
          Operands in `promote_types(dtype, float32)`; float64 stays float64 where x64 is enabled.

        Raises:
          ValueError: for ranks, sizes or labels that do not fit together, a single class, or data with NaN
            or infinities.

        Example:
          >>> features = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
          >>> labels = np.array([0, 0, 1])
          >>> ops = Operands.from_arrays(features=features, labels=labels, kernel=np.ones((3, 2)))
          >>> ops.num_channels, ops.num_classes, ops.class_counts
          (2, 2, (2, 1))
        """
        optional = {"outgoing": outgoing, "gamma": gamma, "beta": beta, "weight_gradient": weight_gradient}
        optional |= {"feature_gradient": feature_gradient, "squared_weight_gradient": squared_weight_gradient}
        return cls.build(**check_arrays(features, labels, kernel, optional, extras or {})._asdict())

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[Batch],
        *,
        kernel: Array,
        outgoing: Array | None = None,
        gamma: Array | None = None,
        beta: Array | None = None,
        weight_gradient: Array | None = None,
        squared_weight_gradient: Array | None = None,
        extras: Mapping[str, Array] | None = None,
        num_classes: int | None = None,
        num_samples: int = 256,
        max_positions: int = 64,
    ) -> Operands:
        """Makes the operands of one layer from calibration batches that arrive one after another.

        Moments are those of all examples at all positions, as with `from_arrays`: the order and the sizes of batches
        change rounding only (means by less than 1e-6 of the largest activation, variances by less than 1e-5 of the
        largest variance, in float32). Functions that need whole sample matrices read a class-balanced sample like that
        of `observe`: the first `num_samples // K` examples of each of K classes (at least one), their maps
        average-pooled to at most `max_positions` positions. Only one batch is in memory at a time.

        Args:
          batches: any iterable of (features, labels), read once. Features [N, H, W, C], [N, L, C] or [N, C] of one
            dtype and one shape, except that N may differ (larger batches than the first compile once more); labels [N]
            as for `from_arrays`, in any order; a batch may lack some classes. Every batch may have a third array, the
            `feature_gradient` of `from_arrays` for the same examples.
          kernel, outgoing, gamma, beta, weight_gradient, squared_weight_gradient: as for `from_arrays`.
          extras: values of registered operands without an axis of examples.
          num_classes: K, if labels are 0 .. K-1 and all of them must occur; by default the classes are those that do.
          num_samples: size of the sample; with classes of equal size, the number of all examples makes it hold all.
          max_positions: of the sample's maps; with H * W they stay as they are.

        Returns:
          Operands in `promote_types(dtype, float32)` of all arrays.

        Raises:
          ValueError: without any batch, for batches that differ in shape or dtype or do not suit the weights, for
            labels of another length or unknown classes, and for a class without examples; what is wrong with a batch
            starts with its number.

        Example:
          >>> batches = [(np.array([[0.0, 1.0], [2.0, 1.0]]), [0, 0]), (np.array([[4.0, 1.0]]), [1])]
          >>> ops = Operands.from_batches(batches, kernel=np.ones((3, 2)))
          >>> ops.num_channels, ops.class_counts, ops.moments.count.tolist()
          (2, (2, 1), [2.0, 1.0])
        """
        weights = {"kernel": kernel, "outgoing": outgoing, "gamma": gamma, "beta": beta}
        weights |= {"weight_gradient": weight_gradient, "squared_weight_gradient": squared_weight_gradient}
        arguments = gather_batches(
            batches,
            weights,
            extras or {},
            num_classes=num_classes,
            num_samples=num_samples,
            max_positions=max_positions,
        )
        return cls.build(**arguments._asdict())

    @classmethod
    def build(
        cls,
        *,
        moments: Moments,
        samples: jax.Array,
        sample_labels: np.ndarray | None,
        kernel: jax.Array,
        outgoing: jax.Array | None = None,
        gamma: jax.Array | None = None,
        beta: jax.Array | None = None,
        gradients: Gradients | None = None,
        extras: Mapping[str, jax.Array] | None = None,
        sample_is_full: bool = False,
        space: tuple[int, ...] | None = None,
    ) -> Operands:
        """Makes operands from moments and a sample; works inside `jit` if `sample_labels` is concrete.

        Args:
          moments: of all calibration examples, [K, D, C].
          samples: [n, D', C] sample rows in any order; D' may be smaller than D (pooled positions).
          sample_labels: [n] class ids 0 .. K-1 as a NumPy array; every class needs a row. None stands for examples
            without classes: then K is 1, and no function can read class operands.
          kernel, outgoing: [F, C] producing and [O, C] consuming weights.
          gamma, beta: [C] scale and shift of the normalisation.
          gradients: of the loss; its `samples` have the same order of rows as `samples`.
          extras: [C, *axes] values of registered operands; an `NX` axis has the order of `samples`.
          sample_is_full: whether `samples` are all examples that `moments` are of; then both views are one.
          space: spatial shape of the sample's positions, of product D'; None stands for (D',).

        Returns:
          The operands, with samples sorted by class (stably), in `promote_types(dtype, float32)` of samples and
          moments.

        Raises:
          ValueError: if a class is absent or shapes do not fit.

        Example:
          >>> moments = sample_moments(jnp.ones((4, 1, 2)), np.array([0, 1, 0, 1]), num_classes=2)
          >>> samples, labels = jnp.ones((2, 1, 2)), np.array([1, 0])
          >>> ops = Operands.build(
          ...     moments=moments, samples=samples, sample_labels=labels, kernel=jnp.ones((3, 2))
          ... )
          >>> ops.class_counts
          (1, 1)
        """
        has_classes = sample_labels is not None
        labels = np.asarray(sample_labels) if has_classes else np.zeros(len(samples), np.int32)
        counts, shape = check_sample(
            moments, samples, labels, kernel, outgoing, space, least_classes=1 + has_classes
        )
        dtype = jnp.result_type(jnp.float32, samples.dtype, moments.offset.dtype)
        wide = partial(jax.tree.map, partial(jnp.asarray, dtype=dtype))
        moments, rows, filters, gradients = wide((moments, samples, kernel, gradients))
        outgoing, gamma, beta = wide((outgoing, gamma, beta))
        order = np.argsort(labels, kind="stable")
        if np.any(order != np.arange(len(order))):
            rows = rows[order]
            if gradients is not None and gradients.samples is not None:
                gradients = gradients._replace(samples=gradients.samples[order])
        sampled = moments if sample_is_full else _sample_moments(rows, labels[order], counts)
        read = {name: sort_examples(name, wide(value), order) for name, value in (extras or {}).items()}
        weights = (filters, filters, outgoing, gamma, beta)
        return cls(moments, rows, sampled, *weights, gradients, read, counts, sample_is_full, shape)

    @classmethod
    def of_weights(
        cls,
        class_ids: np.ndarray,
        rows: np.ndarray,
        *,
        dtype: np.dtype | None = None,
        kernel: jax.Array,
        outgoing: jax.Array | None = None,
        gamma: jax.Array | None = None,
        beta: jax.Array | None = None,
    ) -> Operands:
        """Makes operands without activations, for functions that read weights alone.

        Args:
          class_ids: [N] classes 0 .. K-1 of all calibration examples.
          rows: [n] which of them the sample of other layers holds.
          dtype: of the operands of other layers; by default that of the weights, at least float32.
          kernel, outgoing, gamma, beta: as for `build`.

        Example:
          >>> ops = Operands.of_weights(np.array([0, 1, 1]), np.array([0, 1]), kernel=jnp.ones((3, 2)))
          >>> ops.has_activations, ops.num_channels, ops.moments.count.tolist()
          (False, 2, [1.0, 2.0])
        """
        dtype = jnp.result_type(jnp.float32, kernel.dtype) if dtype is None else dtype
        num_channels = kernel.shape[1]
        filters, outgoing, gamma, beta = jax.tree.map(
            partial(jnp.asarray, dtype=dtype), (kernel, outgoing, gamma, beta)
        )

        def nothing(*shape: int) -> jax.Array:
            return jax.device_put(np.full((*shape, num_channels), np.nan, dtype))

        def moments_of(ids: np.ndarray) -> Moments:
            count = jax.device_put(np.bincount(ids).astype(dtype))
            num_classes = len(count)
            return Moments(
                count, nothing(1), nothing(num_classes, 1), nothing(num_classes, 1), nothing(num_classes)
            )

        return cls(
            moments_of(class_ids),
            nothing(len(rows), 1),
            moments_of(class_ids[rows]),
            filters,
            filters,
            outgoing,
            gamma,
            beta,
            class_counts=tuple(np.bincount(class_ids[rows]).tolist()),
            sample_is_full=len(rows) == len(class_ids),
            has_activations=False,
        )

    @property
    def is_stacked(self) -> bool:
        """Whether the arrays have a leading member axis."""
        return self.samples.ndim == 4

    @property
    def num_members(self) -> int:
        """Number of stacked members, 1 when not stacked."""
        return self.samples.shape[0] if self.is_stacked else 1

    @property
    def num_channels(self) -> int:
        """Number of channels, C."""
        return self.samples.shape[-1]

    @property
    def num_classes(self) -> int:
        """Number of classes, K; 1 for examples without labels."""
        return len(self.class_counts)

    @property
    def has_classes(self) -> bool:
        """Whether the examples have labels, so that functions may read class operands."""
        return self.num_classes > 1

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the activations, float32 or float64."""
        return np.dtype(self.samples.dtype)

    def take(self, channel_indices: Array | Sequence[int]) -> Operands:
        """Returns the operands of some channels, in the given order; the bank `W` still has all channels of the layer.

        Args:
          channel_indices: [c] indices of the channels.

        Raises:
          ValueError: if an index is negative or not below `num_channels`.

        Example:
          >>> ops = Operands.from_arrays(features=np.eye(4), labels=np.array([0, 0, 1, 1]), kernel=np.eye(4))
          >>> ops.take([2, 0]).filters.shape, ops.take([2, 0]).bank.shape
          ((4, 2), (4, 4))
        """
        index = check_channel_indices(channel_indices, self.num_channels)
        last = partial(jnp.take, indices=index, axis=-1)

        def take_moments(moments: Moments) -> Moments:
            return Moments(moments.count, *(last(array) for array in moments[1:]))

        full = take_moments(self.moments)
        axis = 1 if self.is_stacked else 0
        return dataclasses.replace(
            self,
            moments=full,
            samples=last(self.samples),
            sample_moments=full if self.sample_is_full else take_moments(self.sample_moments),
            filters=last(self.filters),
            outgoing=None if self.outgoing is None else last(self.outgoing),
            gamma=None if self.gamma is None else last(self.gamma),
            beta=None if self.beta is None else last(self.beta),
            gradients=jax.tree.map(last, self.gradients),
            extras={name: jnp.take(value, index, axis=axis) for name, value in self.extras.items()},
        )

    def member(self, index: int) -> Operands:
        """Returns the operands of one stacked member.

        Raises:
          ValueError: if they are not stacked.
        """
        if not self.is_stacked:
            raise ValueError("member(i) needs stacked operands, got one member. Use them as they are.")
        return _take_member(self, index)

    def members(self) -> list[Operands]:
        """Returns the stacked members one by one, or the only one.

        Example:
          >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
          >>> len(ops.members()), len(Operands.stack([ops, ops]).members())
          (1, 2)
        """
        return [self.member(index) for index in range(self.num_members)] if self.is_stacked else [self]

    @staticmethod
    def stack(members: Sequence[Operands]) -> Operands:
        """Joins operands of equal shapes and class counts along a new leading member axis.

        Args:
          members: at least one, none of them stacked.

        Raises:
          ValueError: if there are none, or if two differ in shapes, class counts or present operands.

        Example:
          >>> ops = Operands.from_arrays(features=np.eye(4), labels=np.array([0, 0, 1, 1]), kernel=np.eye(4))
          >>> Operands.stack([ops, ops]).samples.shape
          (2, 4, 1, 4)
        """
        return stack_pytrees(members, "Operands.stack")


def _sample_moments(rows: jax.Array, labels: np.ndarray, counts: tuple[int, ...]) -> Moments:
    """Computes the moments of sorted rows; with many classes, each has as many rows, mostly one."""
    if len(counts) >= _MANY_CLASSES and len(set(counts)) == 1:
        return balanced_moments(rows, num_classes=len(counts))
    return sample_moments(rows, labels, num_classes=len(counts))


@jax.jit
def _take_member(stacked: Operands, index: int) -> Operands:
    """Returns one member of stacked operands, by one program for all arrays."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


jax.tree_util.register_dataclass(
    Operands,
    data_fields=[
        "moments",
        "samples",
        "sample_moments",
        "filters",
        "bank",
        "outgoing",
        "gamma",
        "beta",
        "gradients",
        "extras",
    ],
    meta_fields=["class_counts", "sample_is_full", "space", "has_activations"],
)
