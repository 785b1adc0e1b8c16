"""Calibration batches that arrive one after another: exact moments of all examples, and a bounded sample.

No more than one batch is held besides what is gathered. Every batch is filled up to the size of the first one, and
classes have room in powers of two, so that a whole stream runs one program or few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.checks import (
    FlatWeights,
    check_labels,
    check_numbers,
    check_several_classes,
    flat_weights,
)
from jaxprune.observation.gradients import Contributions, Gradients, contributions
from jaxprune.observation.moments import Moments, add_examples, zero_moments
from jaxprune.observation.sample import ClassSample, flat_positions
from jaxprune.types import Array

Batch = tuple[Array, Array] | tuple[Array, Array, Array]
"""Features [N, *space, C], labels [N] and, where there are any, gradients with respect to the features."""


class Streamed(NamedTuple):
    """What `Operands.build` takes, gathered from all batches."""

    moments: Moments
    samples: jax.Array
    sample_labels: np.ndarray
    sample_is_full: bool
    space: tuple[int, ...]
    weights: FlatWeights
    gradients: Gradients | None
    extras: dict[str, jax.Array]


def gather_batches(
    batches: Iterable[Batch],
    weights: Mapping[str, Array | None],
    extras: Mapping[str, Array],
    *,
    num_classes: int | None,
    num_samples: int,
    max_positions: int,
) -> Streamed:
    """Reads all batches, once.

    Args:
      weights: kernel, outgoing, gamma, beta and weight_gradient by name.
      batches, extras, num_classes, num_samples, max_positions: as for `Operands.from_batches`.

    Raises:
      ValueError: as `Operands.from_batches`; what is wrong with a batch starts with its number.

    Example:
      >>> batches = [(np.ones((2, 4)), ["a", "b"]), (np.zeros((1, 4)), ["b"])]
      >>> found = gather_batches(
      ...     batches, {"kernel": np.eye(4)}, {}, num_classes=None, num_samples=2, max_positions=64
      ... )
      >>> found.moments.count.tolist(), found.samples.shape, found.sample_is_full
      ([1.0, 2.0], (2, 1, 4), False)
    """
    for name, value, least in [
        ("num_samples", num_samples, 1),
        ("max_positions", max_positions, 1),
        ("num_classes", 2 if num_classes is None else num_classes, 2),
    ]:
        if value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value}.")
    _check_extras(extras)
    stream: _Stream | None = None
    for number, batch in enumerate(batches):
        try:
            features, labels, gradient = _parts(batch)
            if stream is None:
                given = {"features": features, "feature_gradient": gradient, **weights}
                arrays, more = check_numbers(given, extras)
                names = None if num_classes is None else range(num_classes)
                stream = _Stream(features, arrays, more, names, ClassSample(num_samples, max_positions))
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
    """What was gathered so far. The first batch decides shapes and dtype, and whether there are gradients.

    Args:
      features: of the first batch, as given.
      arrays: it and the weights, checked and in one dtype.
      extras: as given, likewise.
      class_ids: all classes, where they are known before.
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
        self._are_given = class_ids is not None
        # class -> its place in the moments
        self._places: dict[int | str, int] = {k: k for k in class_ids or ()}
        self._sample = sample
        self._num_examples = 0
        pivot = jnp.asarray(arrays["features"][0].reshape(-1, self._shape[-1]))
        self._moments = zero_moments(pivot, max(1, len(self._places)))
        self._sums: Contributions | None = None

    def add(self, features: Array, labels: Array, gradient: Array | None) -> None:
        """Gathers a batch.

        Raises:
          ValueError: if it is not like the first one, or labels are no classes.
        """
        self._check_alike(features, gradient)
        given = {"features": features, "feature_gradient": gradient}
        arrays, _ = check_numbers(given, {}, self._dtype)
        ids = self._ids(check_labels(labels, len(features)))
        size = max(len(ids), self._shape[0])  # a smaller last batch runs the same program
        full = {name: _filled_up(array, size) for name, array in arrays.items()}
        rows, slopes = full["features"], full.get("feature_gradient")
        is_real = np.arange(size) < len(ids)
        self._moments, sums = _add(self._with_room(), _filled_up(ids, size), is_real, rows, slopes)
        self._sums = sums if self._sums is None else jax.tree.map(jnp.add, self._sums, sums)
        self._num_examples += len(ids)
        self._sample.add(ids, rows, slopes, num_classes=len(self._places))

    def finish(self) -> Streamed:
        """Everything, with classes in sorted order.

        Raises:
          ValueError: if there is only one class.
        """
        names = sorted(self._places, key=lambda name: (isinstance(name, str), name))
        check_several_classes(names, self._num_examples)
        order = np.array([self._places[name] for name in names])
        count, pivot, *rest = self._moments
        rows = self._sample.rows(order.tolist())
        is_whole = rows.features.shape[1] == pivot.shape[0]
        return Streamed(
            moments=Moments(count[order], pivot, *(array[order] for array in rest)),
            samples=jnp.asarray(rows.features),
            sample_labels=rows.class_ids,
            sample_is_full=is_whole and len(rows.features) == self._num_examples,
            space=self._sample.space,
            weights=flat_weights(self._weights),
            gradients=self._gradients(rows.gradient),
            extras={name: jnp.asarray(array) for name, array in self._extras.items()},
        )

    def _check_alike(self, features: Array, gradient: Array | None) -> None:
        if features.shape[1:] != self._shape[1:]:
            wanted = ", ".join(map(str, self._shape[1:]))
            raise ValueError(
                f"features must be [N, {wanted}] as in batch 0, got shape {features.shape}. "
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

    def _ids(self, labels: np.ndarray) -> np.ndarray:
        """The places of the labels' classes; new classes come after the known ones."""
        names, inverse = np.unique(labels, return_inverse=True)
        found = [cast(int | str, name) for name in names.tolist()]
        if self._are_given:
            unknown = [name for name in found if name not in self._places]
            if unknown:
                raise ValueError(
                    f"labels must be class ids 0 .. {len(self._places) - 1}, as num_classes says, got {unknown}. "
                    "Give the number of all classes, or leave num_classes out."
                )
        elif self._places and isinstance(found[0], str) != isinstance(next(iter(self._places)), str):
            raise ValueError(
                f"labels must be of one kind, got {found[:3]} after {list(self._places)[:3]}. "
                "Use numbers or strings for all."
            )
        places = [self._places.setdefault(name, len(self._places)) for name in found]
        return np.asarray(places, np.int32)[inverse.reshape(-1)]

    def _with_room(self) -> Moments:
        """The moments with room for all known classes."""
        room = len(self._places) if self._are_given else 1 << (len(self._places) - 1).bit_length()
        count, pivot, *rest = self._moments
        extra = room - len(count)
        if extra <= 0:
            return self._moments
        count, *rest = (
            jnp.pad(array, [(0, extra)] + [(0, 0)] * (array.ndim - 1)) for array in (count, *rest)
        )
        return Moments(count, pivot, *rest)

    def _gradients(self, samples: np.ndarray | None) -> Gradients | None:
        given = self._weights.get("weight_gradient")
        weights = None if given is None else jnp.asarray(given).reshape(-1, given.shape[-1])
        if samples is None or self._sums is None:
            return None if weights is None else Gradients(weights)
        fisher, first_order = (each / self._num_examples for each in self._sums)
        return Gradients(weights, jnp.asarray(samples), fisher, first_order)


@jax.jit
def _add(
    moments: Moments, ids: Array, is_real: Array, features: Array, gradient: Array | None
) -> tuple[Moments, Contributions | None]:
    """The moments with one batch more, and what its examples add to the averages over gradients."""
    rows, real = flat_positions(jnp.asarray(features)), jnp.asarray(is_real)
    found = None if gradient is None else contributions(rows, flat_positions(jnp.asarray(gradient)), real)
    return add_examples(moments, rows, jnp.asarray(ids), real), found


def _parts(batch: object) -> tuple[Array, Array, Array | None]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        what = f"{len(batch)} things" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(
            f"needs (features, labels) or (features, labels, feature_gradient), got {what}. "
            "Give an iterable of such tuples, [(features, labels)] for one batch."
        )
    features, labels, *gradient = batch
    return _array(features), _array(labels), _array(gradient[0]) if gradient else None


def _array(value: object) -> Array:
    return value if isinstance(value, np.ndarray | jax.Array) else np.asarray(value)


def _dtype_of(array: Array) -> np.dtype:
    """The dtype that JAX gives it: float64 and float32 are one where x64 is off."""
    return np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))


def _filled_up(array: np.ndarray, size: int) -> np.ndarray:
    """With zeros behind, up to `size` rows."""
    if len(array) == size:
        return array
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def _check_extras(extras: Mapping[str, Array]) -> None:
    names = [name for name in extras if name in OPERANDS and SAMPLE_AXES & set(OPERANDS[name].type)]
    if names:
        raise ValueError(
            f"extras of from_batches must have no axis of examples, got {', '.join(names)}. "
            "Use from_arrays, which keeps every example."
        )
