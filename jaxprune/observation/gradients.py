"""Gradients of the loss at one producer, and the averages over examples that metrics read from them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Gradients(NamedTuple):
    """Gradients of the loss at one producer of C channels, in evaluation mode; None where they were not given.

    The loss of an example is the task's, by default the cross-entropy with its label. With stacked members every array
    has one more, leading axis.
    """

    weights: jax.Array | None = None
    """[F, C] `GW`: gradient of the *mean* loss over all calibration examples with respect to the producing weights."""
    samples: jax.Array | None = None
    """[n, D', C] `GX`: row i is the gradient of the loss of the i-th sampled example alone (not divided by a number of
    examples) with respect to its activations as the next layer reads them. Where the activations of the sample are
    average-pooled, this is the *sum* over each window: how the loss changes when all values of the window move
    together. Sums of X * GX therefore keep their meaning: to first order, what the loss loses without the channel."""
    fisher: jax.Array | None = None
    """[C] >= 0, mean over all calibration examples of the square of the sum over all positions of X * GX (Theis et al.,
    Faster gaze prediction with dense networks and Fisher pruning, 2018; without their factor of 1/2)."""
    first_order: jax.Array | None = None
    """[C] >= 0, mean over all calibration examples of the magnitude of the mean over all positions of X * GX (Molchanov
    et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, eq. 8)."""


class EffectSums(NamedTuple):
    """Sums over examples that give `Gradients.fisher` and `Gradients.first_order` when divided by their number."""

    fisher: jax.Array
    """[C] sum of squares."""
    first_order: jax.Array
    """[C] sum of magnitudes."""


@jax.jit
def sum_effects(features: jax.Array, gradient: jax.Array, is_real: jax.Array | None = None) -> EffectSums:
    """Sums the first-order effect of each channel on the loss over examples: its square, and its magnitude.

    Args:
      features: [N, D, C] activations at all positions.
      gradient: [N, D, C] gradient of each example's own loss with respect to them.
      is_real: [N] False for examples that only fill up a batch. None means that all are real.

    Returns:
      The sums over all real examples.

    Example:
      >>> features = jnp.array([[1.0, 2.0], [3.0, 0.0]])[..., None]
      >>> sums = sum_effects(features, jnp.ones((2, 2, 1)))
      >>> sums.fisher.tolist(), sums.first_order.tolist()
      ([18.0], [3.0])
    """
    effects = jnp.sum(features * gradient, axis=1)  # [N, C]
    if is_real is not None:
        effects = jnp.where(is_real[:, None], effects, 0)
    magnitude = jnp.sum(jnp.abs(effects), axis=0) / features.shape[1]
    return EffectSums(jnp.sum(effects**2, axis=0), magnitude)


def gradients_from_arrays(
    rows: jax.Array, weight_gradient: np.ndarray | None, feature_gradient: np.ndarray | None
) -> Gradients | None:
    """Builds the record from arrays that hold all calibration examples.

    Args:
      rows: [N, D, C] activations.
      weight_gradient: [..., C] gradient of the mean loss with respect to the producing weights.
      feature_gradient: [N, ..., C] row i is the gradient of the loss of example i with respect to its activations.

    Returns:
      The record; None if neither gradient is given.
    """
    count, _, channels = rows.shape
    weights = None if weight_gradient is None else jax.device_put(weight_gradient.reshape(-1, channels))
    if feature_gradient is None:
        return None if weights is None else Gradients(weights)
    samples = jax.device_put(feature_gradient.reshape(rows.shape))
    fisher, first_order = (effects / count for effects in sum_effects(rows, samples))
    return Gradients(weights, samples, fisher, first_order)
