"""Gradients of the loss as a record of scoring, and how it is computed no earlier than a function asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import RLock
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_Record = TypeVar("_Record")


class Gradients(NamedTuple):
    """Gradients of the loss at one producer of C channels, in evaluation mode; None where they were not given.

    The loss of an example is the task's, by default the cross-entropy with its label. Under stacked members every array
    has one more, leading axis.
    """

    weights: jax.Array | None = None
    """[F, C] `GW`: gradient of the *mean* loss over all calibration examples with respect to the producing weights."""
    samples: jax.Array | None = None
    """[n, D', C] `GX`: row i is the gradient of the i-th sampled example's *own* loss (not divided by a number of
    examples) with respect to its activations as the next layer sees them, in the order of the sample. Where the sample
    is average-pooled over positions this is the *sum* over each window: how the loss changes when the window's values
    move together. Sums of X * GX so keep their meaning: to first order, what the loss loses without the channel."""
    fisher: jax.Array | None = None
    """[C] >= 0, mean over all calibration examples of the square of the sum over all positions of X * GX (Theis et al.,
    Faster gaze prediction with dense networks and Fisher pruning, 2018; without their factor of 1/2)."""
    first_order: jax.Array | None = None
    """[C] >= 0, mean over all calibration examples of the magnitude of the mean over all positions of X * GX (Molchanov
    et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, eq. 8)."""


class Contributions(NamedTuple):
    """Sums over examples, from which `fisher` and `first_order` follow."""

    fisher: jax.Array
    """[C] sum of squares."""
    first_order: jax.Array
    """[C] sum of magnitudes."""


def contributions(
    features: jax.Array, gradient: jax.Array, is_real: jax.Array | None = None
) -> Contributions:
    """What examples add to `Gradients.fisher` and `Gradients.first_order`, not divided by their number.

    Args:
      features: [N, D, C] activations at all positions.
      gradient: [N, D, C] gradient of each example's own loss with respect to them.
      is_real: [N] False for examples that only fill up a batch. None means that all are real.

    Example:
      >>> features = jnp.array([[1.0, 2.0], [3.0, 0.0]])[..., None]
      >>> found = contributions(features, jnp.ones((2, 2, 1)))
      >>> found.fisher.tolist(), found.first_order.tolist()
      ([18.0], [3.0])
    """
    per_example = jnp.sum(features * gradient, axis=1)  # [N, C]
    if is_real is not None:
        per_example = jnp.where(is_real[:, None], per_example, 0)
    magnitude = jnp.sum(jnp.abs(per_example), axis=0) / features.shape[1]
    return Contributions(jnp.sum(per_example**2, axis=0), magnitude)


def given_gradients(
    features: jax.Array, weight_gradient: jax.Array | None, feature_gradient: jax.Array | None
) -> Gradients | None:
    """The record from arrays about all examples, or None if there is neither gradient.

    Args:
      features: [N, ..., C] activations.
      weight_gradient: [..., C] of the mean loss.
      feature_gradient: [N, ..., C] row i of example i's own loss.
    """
    weights = None if weight_gradient is None else weight_gradient.reshape(-1, features.shape[-1])
    if feature_gradient is None:
        return None if weights is None else Gradients(weights)
    count, channels = features.shape[0], features.shape[-1]
    rows, samples = (array.reshape(count, -1, channels) for array in (features, feature_gradient))
    sums = contributions(rows, samples)
    return Gradients(weights, samples, sums.fisher / count, sums.first_order / count)


def sort_gradients(gradients: Gradients | None, order: np.ndarray) -> Gradients | None:
    """The same with the rows of `samples` in another order."""
    if gradients is None or gradients.samples is None:
        return gradients
    return gradients._replace(samples=gradients.samples[order])


def take_channels(gradients: Gradients | None, index: jax.Array) -> Gradients | None:
    """The gradients of some channels."""
    last = partial(jnp.take, indices=index, axis=-1)
    return jax.tree.map(last, gradients)


class GradientSource(Generic[_Record]):
    """Gradients of all producers of an observed network, of one kind: computed at the first call, then remembered.

    Threads may call it; it is computed once.

    Args:
      compute: gives a record or array by producer path; it and what it holds are dropped after the first call.

    Example:
      >>> source = GradientSource(lambda: {"conv.kernel": Gradients(weights=jnp.ones((2, 3)))})
      >>> GradientSource.stack([source, source])()["conv.kernel"].weights.shape
      (2, 2, 3)
    """

    def __init__(
        self,
        compute: Callable[[], Mapping[str, _Record]],
        members: Sequence[GradientSource[_Record]] | None = None,
    ) -> None:
        self._compute: Callable[[], Mapping[str, _Record]] | None = compute
        self._members = members
        self._found: Mapping[str, _Record] | None = None
        self._lock = RLock()

    def __call__(self) -> Mapping[str, _Record]:
        """Producer path -> gradients."""
        with self._lock:
            if self._found is None:
                assert self._compute is not None  # dropped only after something was found
                self._found, self._compute, self._members = self._compute(), None, None
            return self._found

    def member(self, index: int) -> GradientSource[_Record]:
        """The source of one of several stacked members; the others' gradients are not computed for it."""
        return GradientSource(lambda: self._of_member(index))

    @staticmethod
    def stack(members: Sequence[GradientSource[_Record]]) -> GradientSource[_Record]:
        """The source of stacked members."""

        def compute() -> Mapping[str, _Record]:
            found = [member() for member in members]
            return {
                path: jax.tree.map(lambda *leaves: jnp.stack(leaves), *[each[path] for each in found])
                for path in found[0]
            }

        return GradientSource(compute, members)

    def _of_member(self, index: int) -> Mapping[str, _Record]:
        with self._lock:
            if self._members is not None:
                return self._members[index]()
            return {path: jax.tree.map(lambda leaf: leaf[index], found) for path, found in self().items()}
