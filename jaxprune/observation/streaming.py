"""Calibration batches that arrive one after another become exact moments of all examples and a bounded sample.

Only one batch is in memory besides what is gathered. Every batch is filled up to the size of the first one, and the
moments have room for a power of two of classes, so a whole stream runs one program, or few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.checks import (
    BuildArguments,
    check_labels,
    check_numbers,
    check_several_classes,
    flat_weights,
)
from jaxprune.observation.gradients import EffectSums, Gradients, sum_effects
from jaxprune.observation.moments import Moments, add_examples, zero_moments
from jaxprune.observation.sample import ClassSample, flat_positions
from jaxprune.types import Array

Batch = tuple[Array, Array] | tuple[Array, Array, Array]
"""Features [N, *space, C], labels [N] and, where there are any, gradients with respect to the features."""


def gather_batches(
    batches: Iterable[Batch],
    weights: Mapping[str, Array | None],
    extras: Mapping[str, Array],
    *,
    num_classes: int | None,
    num_samples: int,
    max_positions: int,
) -> BuildArguments:
    """Reads all batches once.

    Args:
      batches, extras, num_classes, num_samples, max_positions: as for `Operands.from_batches`.
      weights: kernel, outgoing, gamma, beta, weight_gradient and squared_weight_gradient by name.

    Returns:
      The arguments of `Operands.build`.

    Raises:
      ValueError: as `Operands.from_batches`; what is wrong with a batch starts with its number.

    Example:
      >>> batches = [(np.ones((2, 4)), ["a", "b"]), (np.zeros((1, 4)), ["b"])]
      >>> streamed = gather_batches(
      ...     batches, {"kernel": np.eye(4)}, {}, num_classes=None, num_samples=2, max_positions=64
      ... )
      >>> streamed.moments.count.tolist(), streamed.samples.shape, streamed.sample_is_full
      ([1.0, 2.0], (2, 1, 4), False)
    """
    for name, value, least in [
        ("num_samples", num_samples, 1),
        ("max_positions", max_positions, 1),
        ("num_classes", 2 if num_classes is None else num_classes, 2),
    ]:
        if value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value}.")
    with_examples = [name for name in extras if name in OPERANDS and SAMPLE_AXES & set(OPERANDS[name].type)]
    if with_examples:
        raise ValueError(
            f"extras of from_batches must have no axis of examples, got {', '.join(with_examples)}. "
            "Use from_arrays, which stores every example."
        )
    stream: _Stream | None = None
    for number, batch in enumerate(batches):
        try:
            features, labels, gradient = _unpack(batch)
            if stream is None:
                arguments = {"features": features, "feature_gradient": gradient, **weights}
                checked = check_numbers(arguments, extras)
                class_ids = None if num_classes is None else range(num_classes)
                stream = _Stream(features, *checked, class_ids, ClassSample(num_samples, max_positions))
            stream.add(features, labels, gradient)
        except ValueError as error:
            raise ValueError(f"batch {number}: {error}") from error
    if stream is None:
        raise ValueError(
            "from_batches needs at least one batch of (features, labels), got none. "
            "An iterator that was read before is empty: make it anew."
        )
    return stream.finish()


class _Stream:
    """What has been gathered so far; the first batch decides shapes, dtype, and whether there are gradients.

    Args:
      features: of the first batch, as given.
      arrays: these features and the weights, checked and in one dtype.
      extras: values of registered operands, likewise.
      class_ids: all classes, if they are known in advance.
      sample: an empty one.
    """

    def __init__(
        self,
        features: Array,
        arrays: Mapping[str, np.ndarray],
        extras: Mapping[str, np.ndarray],
        class_ids: range | None,
        sample: ClassSample,
    ) -> None:
        self._shape, self._given_dtype = features.shape, _dtype_of(features)
        self._dtype, self._has_gradient = arrays["features"].dtype, "feature_gradient" in arrays
        self._weights = {
            name: array for name, array in arrays.items() if name not in ("features", "feature_gradient")
        }
        self._extras = extras
        self._is_fixed = class_ids is not None
        self._index_of: dict[int | str, int] = {
            k: k for k in class_ids or ()
        }  # class -> index in the moments
        self._sample = sample
        self._num_examples = 0
        pivot = jax.device_put(arrays["features"][0].reshape(-1, self._shape[-1]))
        self._moments = zero_moments(pivot, max(1, len(self._index_of)))
        self._effects: EffectSums | None = None

    def add(self, features: Array, labels: Array, gradient: Array | None) -> None:
        """Adds a batch; raises ValueError if it differs from the first one or its labels are no classes."""
        self._check_alike(features, gradient)
        arrays, _ = check_numbers({"features": features, "feature_gradient": gradient}, {}, self._dtype)
        ids = self._class_indices(check_labels(labels, len(features)))
        size = max(len(ids), self._shape[0])  # a smaller last batch runs the same program
        full = {name: _fill_up(array, size) for name, array in arrays.items()}
        maps, gradients = full["features"], full.get("feature_gradient")
        is_real = np.arange(size) < len(ids)
        self._moments, effects = _add(self._with_room(), _fill_up(ids, size), is_real, maps, gradients)
        self._effects = effects if self._effects is None else jax.tree.map(jnp.add, self._effects, effects)
        self._num_examples += len(ids)
        self._sample.add(ids, maps, gradients, num_classes=len(self._index_of))

    def finish(self) -> BuildArguments:
        """Returns everything with classes in sorted order; raises ValueError if there is only one class."""
        classes = sorted(self._index_of, key=lambda name: (isinstance(name, str), name))
        check_several_classes(classes, self._num_examples)
        order = np.array([self._index_of[name] for name in classes])
        rows = self._sample.rows(order.tolist())
        is_whole = rows.features.shape[1] == self._moments.pivot.shape[0]
        return BuildArguments(
            moments=_take_classes(self._moments, order),
            samples=jax.device_put(rows.features),
            sample_labels=rows.class_ids,
            sample_is_full=is_whole and len(rows.features) == self._num_examples,
            space=self._sample.space,
            gradients=self._gradients(rows.gradient),
            extras=jax.device_put(self._extras),
            **flat_weights(self._weights),
        )

    def _check_alike(self, features: Array, gradient: Array | None) -> None:
        if features.shape[1:] != self._shape[1:]:
            axes = ", ".join(map(str, self._shape[1:]))
            raise ValueError(
                f"features must be [N, {axes}] as in batch 0, got shape {features.shape}. "
                "Observe one layer, on images of one size."
            )
        if _dtype_of(features) != self._given_dtype:
            raise ValueError(
                f"features must be {self._given_dtype} as in batch 0, got {_dtype_of(features)}. "
                "Cast all batches to one dtype."
            )
        if (gradient is not None) != self._has_gradient:
            raise ValueError(
                "all batches must have a feature gradient or none, "
                f"got {'none' if gradient is None else 'one'} unlike batch 0. "
                "Give (features, labels, feature_gradient) each time, or never."
            )

    def _class_indices(self, labels: np.ndarray) -> np.ndarray:
        """Returns the index of each label's class in the moments; new classes come after the known ones."""
        classes, inverse = np.unique(labels, return_inverse=True)
        names = [cast(int | str, name) for name in classes.tolist()]
        if self._is_fixed:
            unknown = [name for name in names if name not in self._index_of]
            if unknown:
                raise ValueError(
                    f"labels must be class ids 0 .. {len(self._index_of) - 1}, as num_classes says, got {unknown}. "
                    "Give the number of all classes, or leave num_classes out."
                )
        elif self._index_of and isinstance(names[0], str) != isinstance(next(iter(self._index_of)), str):
            raise ValueError(
                f"labels must be of one kind, got {names[:3]} after {list(self._index_of)[:3]}. "
                "Use numbers or strings for all."
            )
        indices = [self._index_of.setdefault(name, len(self._index_of)) for name in names]
        return np.asarray(indices, np.int32)[inverse.reshape(-1)]

    def _with_room(self) -> Moments:
        """Returns the moments with room for all known classes."""
        room = len(self._index_of) if self._is_fixed else 1 << (len(self._index_of) - 1).bit_length()
        added = room - len(self._moments.count)
        return _pad_classes(self._moments, added) if added > 0 else self._moments

    def _gradients(self, samples: np.ndarray | None) -> Gradients | None:
        weight_gradient = self._weights.get("weight_gradient")
        weights = None
        if weight_gradient is not None:
            weights = jax.device_put(weight_gradient.reshape(-1, weight_gradient.shape[-1]))
        if samples is None or self._effects is None:
            return None if weights is None else Gradients(weights)
        fisher, first_order = (effects / self._num_examples for effects in self._effects)
        return Gradients(weights, jax.device_put(samples), fisher, first_order)


@jax.jit
def _add(
    moments: Moments, ids: Array, is_real: Array, features: Array, gradient: Array | None
) -> tuple[Moments, EffectSums | None]:
    """Adds a batch to the moments, and returns what its examples add to the averages over gradients."""
    chex.assert_equal_shape([ids, is_real])
    rows, real = flat_positions(jnp.asarray(features)), jnp.asarray(is_real)
    effects = None if gradient is None else sum_effects(rows, flat_positions(jnp.asarray(gradient)), real)
    return add_examples(moments, rows, jnp.asarray(ids), real), effects


@partial(jax.jit, static_argnames="added")
def _pad_classes(moments: Moments, added: int) -> Moments:
    """Returns the moments with room for further classes."""
    count, pivot, *rest = moments
    count, *rest = (jnp.pad(array, [(0, added)] + [(0, 0)] * (array.ndim - 1)) for array in (count, *rest))
    return Moments(count, pivot, *rest)


@jax.jit
def _take_classes(moments: Moments, order: Array) -> Moments:
    """Returns the moments of some classes, in the given order."""
    count, pivot, *rest = moments
    return Moments(count[order], pivot, *(array[order] for array in rest))


def _unpack(batch: object) -> tuple[Array, Array, Array | None]:
    """Splits a batch into features, labels and gradient, as arrays."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        kind = f"{len(batch)} things" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(
            f"needs (features, labels) or (features, labels, feature_gradient), got {kind}. "
            "Give an iterable of such tuples, [(features, labels)] for one batch."
        )
    features, labels, *gradient = (
        part if isinstance(part, np.ndarray | jax.Array) else np.asarray(part) for part in batch
    )
    return features, labels, gradient[0] if gradient else None


def _dtype_of(array: Array) -> np.dtype:
    """Returns the dtype that JAX gives the array: without x64, float64 becomes float32."""
    return np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))


def _fill_up(array: np.ndarray, size: int) -> np.ndarray:
    """Appends rows of zeros, up to `size` rows."""
    if len(array) == size:
        return array
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
