"""Streamed per-class means and spreads of activations, safe in float32.

Sums are taken relative to a *pivot*, the channel's first calibration example at each position: a constant
channel has exactly zero variance, and a mean of 1e4 does not swallow a variance of 1e-2. What a class leaves at 0
has a mean of exactly 0 there, so that activations that are never negative have no negative means. Batches and classes
are merged with the pairwise update of Chan et al.; the moments of "the other classes" are sums over those
classes, never the total minus one class.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


class Moments(NamedTuple):
    """Per-class moments of one layer's activations: K classes, D positions, C channels.

    Under stacked members every array has one more, leading axis.
    """

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls here
    """[K] number of examples of each class, as a float."""
    pivot: jax.Array
    """[D, C] the value that sums are taken relative to: the first calibration example."""
    offset: jax.Array
    """[K, D, C] mean of each class minus the pivot (0 for a class without examples)."""
    m2: jax.Array
    """[K, D, C] sum of squared deviations from the class mean, >= 0."""
    active: jax.Array
    """[K, C] share of activations that are not zero, over examples and positions, in [0, 1]."""


class SetMoments(NamedTuple):
    """Moments of L sets of examples, each all of them, one class, or the other classes."""

    num_examples: jax.Array
    """[L] number of examples."""
    pivot: jax.Array
    """[D, C] as in `Moments`."""
    offset: jax.Array
    """[L, D, C] mean minus pivot."""
    m2: jax.Array
    """[L, D, C] sum of squared deviations from the mean."""

    @property
    def mean(self) -> jax.Array:
        """[L, D, C] mean over examples at each position."""
        return self.pivot[None] + self.offset

    @property
    def num_entries(self) -> jax.Array:
        """[L] examples times positions."""
        return self.num_examples * self.pivot.shape[0]

    @property
    def entry_mean(self) -> jax.Array:
        """[L, C] mean over all examples and positions."""
        mean, lost = self.exact_mean
        return mean[:, 0] + (lost[:, 0] + jnp.mean(self.shifted, axis=1))

    @property
    def entry_variance(self) -> jax.Array:
        """[L, C] variance over all examples and positions (dividing by their number)."""
        shifted = self.shifted
        between = jnp.mean((shifted - jnp.mean(shifted, axis=1, keepdims=True)) ** 2, axis=1)
        return jnp.mean(self.m2, axis=1) / self.num_examples[:, None] + between

    @property
    def shifted(self) -> jax.Array:
        """[L, D, C] means relative to that of the first position: no large mean enters a square."""
        mean, lost = self.exact_mean
        return (mean - mean[:, :1]) + (lost - lost[:, :1])

    @property
    def exact_mean(self) -> tuple[jax.Array, jax.Array]:
        """`mean` and what it lost in rounding, so that positions of equal means do not differ at all.

        Source:
          Knuth, The Art of Computer Programming, vol. 2, sec. 4.2.2, theorem B.
        """
        mean = self.mean
        rest = mean - self.pivot[None]
        return mean, (self.pivot[None] - (mean - rest)) + (self.offset - rest)


def zero_moments(pivot: jax.Array, num_classes: int) -> Moments:
    """Moments of no examples yet.

    Args:
      pivot: [D, C] the first calibration example, in the dtype the moments are to have.
      num_classes: K >= 1.

    Example:
      >>> zero_moments(jnp.zeros((1, 2)), 3).offset.shape
      (3, 1, 2)
    """
    zeros = jnp.zeros((num_classes, *pivot.shape), pivot.dtype)
    count = jnp.zeros(num_classes, pivot.dtype)
    return Moments(count, pivot, zeros, zeros, jnp.zeros((num_classes, pivot.shape[-1]), pivot.dtype))


def add_examples(
    moments: Moments, features: jax.Array, labels: jax.Array, is_real: jax.Array | None = None
) -> Moments:
    """Merges a batch of examples into the moments; pure and jit-friendly.

    Args:
      moments: what was gathered so far, possibly `zero_moments`.
      features: [N, D, C] activations, any float type; they are gathered in the dtype of `moments`.
      labels: [N] class ids in 0 .. K-1.
      is_real: [N] False for examples that only fill up a batch (they may hold anything, NaN too). None means
        that all are real.

    Returns:
      The moments of both together.

    Example:
      >>> moments = zero_moments(jnp.zeros((1, 1)), 2)
      >>> features = jnp.array([1.0, 3.0, 5.0])[:, None, None]
      >>> moments = add_examples(moments, features, jnp.array([0, 0, 1]))
      >>> moments.offset[:, 0, 0].tolist(), moments.m2[:, 0, 0].tolist()
      ([2.0, 5.0], [2.0, 0.0])

    Source:
      Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    num_classes = moments.count.shape[0]
    real = jnp.ones(labels.shape, bool) if is_real is None else is_real
    dtype = moments.offset.dtype
    delta = jnp.where(real[:, None, None], features.astype(dtype) - moments.pivot[None], 0)
    belongs = ((labels[:, None] == jnp.arange(num_classes)[None]) & real[:, None]).astype(dtype)  # [N, K]
    count = jnp.sum(belongs, axis=0)
    # Relative to the class's first example, so that a position that a class leaves at 0 has a mean of exactly 0.
    first = jnp.where(count[:, None, None] > 0, delta[jnp.argmax(belongs, axis=0)], 0)
    own = jnp.where(real, labels, 0)
    rest = jnp.where(real[:, None, None], delta - first[own], 0)
    offset = first + _sum_by_class(belongs, rest) / jnp.maximum(count, 1)[:, None, None]
    own_offset = jnp.where(real[:, None, None], offset[own], 0)
    m2 = _sum_by_class(belongs, (delta - own_offset) ** 2)
    nonzero = jnp.mean(features != 0, axis=1, dtype=dtype)  # [N, C], padding counts for no class
    active = jnp.matmul(belongs.T, nonzero, precision=HIGHEST) / jnp.maximum(count, 1)[:, None]
    return merge_moments(moments, Moments(count, moments.pivot, offset, m2, active))


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Moments of two disjoint sets of examples that share one pivot.

    Example:
      >>> empty = zero_moments(jnp.zeros((1, 1)), 2)
      >>> float(merge_moments(empty, empty).count.sum())
      0.0
    """
    count = first.count + second.count
    share = (second.count / jnp.maximum(count, 1))[:, None, None]
    difference = second.offset - first.offset
    m2 = first.m2 + second.m2 + difference**2 * first.count[:, None, None] * share
    active = first.active + (second.active - first.active) * share[..., 0]
    return Moments(count, first.pivot, first.offset + difference * share, m2, active)


def class_sets(moments: Moments) -> dict[str, SetMoments]:
    """The sets a formula may speak of: `X` all examples (L = 1), `P` class k, `Q` the other classes (L = K).

    Example:
      >>> moments = zero_moments(jnp.zeros((1, 1)), 2)
      >>> moments = add_examples(moments, jnp.ones((3, 1, 1)), jnp.array([0, 0, 1]))
      >>> {name: found.num_examples.tolist() for name, found in class_sets(moments).items()}
      {'X': [3.0], 'P': [2.0, 1.0], 'Q': [1.0, 2.0]}
    """
    num_classes = moments.count.shape[0]
    own = jnp.eye(num_classes, dtype=moments.count.dtype)
    return {
        "X": _merge_classes(moments, jnp.ones((1, num_classes), moments.count.dtype)),
        "P": SetMoments(moments.count, moments.pivot, moments.offset, moments.m2),
        "Q": _merge_classes(moments, 1 - own),
    }


def _merge_classes(moments: Moments, members: jax.Array) -> SetMoments:
    """Merges the classes that each row of `members` [L, K] marks with 1 into one set; rows make L sets."""
    weights = members * moments.count[None]  # [L, K]
    count = jnp.sum(weights, axis=1)
    first = moments.offset[
        jnp.argmax(members, axis=1)
    ]  # [L, D, C] of one class; classes of equal means add nothing
    rest = (moments.offset[None] - first[:, None]) * weights[:, :, None, None]
    offset = first + jnp.sum(rest, axis=1) / count[:, None, None]
    spread = (moments.offset[None] - offset[:, None]) ** 2 * weights[:, :, None, None]  # [L, K, D, C]
    m2 = jnp.sum(spread + members[:, :, None, None] * moments.m2[None], axis=1)
    return SetMoments(count, moments.pivot, offset, m2)


def _sum_by_class(weights: jax.Array, values: jax.Array) -> jax.Array:
    """[N, K] weights and [N, D, C] values give [K, D, C] weighted sums."""
    return jnp.einsum("nk,ndc->kdc", weights, values, precision=HIGHEST)
