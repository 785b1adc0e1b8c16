"""Streamed per-class means and spreads of activations, safe in float32.

Sums are taken relative to a *pivot*, the channel's first calibration example at each position: a constant
channel has exactly zero variance, and a mean of 1e4 does not swallow a variance of 1e-2. What a class leaves at 0
has a mean of exactly 0 there, so that activations that are never negative have no negative means. Batches and classes
are merged with the pairwise update of Chan et al.; the moments of "the other classes" are sums over those
classes, never the total minus one class.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.types import Array

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
    """Moments of L sets of examples, each all of them, one class, or the other classes; NumPy or JAX arrays."""

    num_examples: Array
    """[..., L] number of examples."""
    pivot: Array
    """[..., D, C] as in `Moments`."""
    offset: Array
    """[..., L, D, C] mean minus pivot."""
    m2: Array | None
    """[..., L, D, C] sum of squared deviations from the mean; None where only means are wanted."""
    is_position: Array | None = None
    """[..., 1, D, 1] which positions are real, the first among them; None means all."""

    @property
    def mean(self) -> Array:
        """[..., L, D, C] mean over examples at each position."""
        return self.pivot[..., None, :, :] + self.offset

    @property
    def num_entries(self) -> Array:
        """[..., L] examples times positions."""
        if self.is_position is None:
            return self.num_examples * self.pivot.shape[-2]
        return self.num_examples * self.is_position.sum(axis=(-2, -1))

    @property
    def entry_mean(self) -> Array:
        """[..., L, C] mean over all examples and positions."""
        mean, lost = self.exact_mean
        return mean[..., 0, :] + (lost[..., 0, :] + self._over_positions(self.shifted))

    @property
    def entry_variance(self) -> Array:
        """[..., L, C] variance over all examples and positions (dividing by their number)."""
        assert self.m2 is not None
        shifted = self.shifted
        between = self._over_positions((shifted - self._over_positions(shifted)[..., None, :]) ** 2)
        return self._over_positions(self.m2) / self.num_examples[..., None] + between

    def _over_positions(self, values: Array) -> Array:
        """[..., L, C] the mean of [..., L, D, C]."""
        if self.is_position is None:
            return values.mean(axis=-2)
        total = jnp.where(self.is_position, values, 0).sum(axis=-2)
        return total / self.is_position.sum(axis=-2)

    @property
    def shifted(self) -> Array:
        """[..., L, D, C] means relative to that of the first position: no large mean enters a square."""
        mean, lost = self.exact_mean
        return (mean - mean[..., :1, :]) + (lost - lost[..., :1, :])

    @property
    def exact_mean(self) -> tuple[Array, Array]:
        """`mean` and what it lost in rounding, so that positions of equal means do not differ at all.

        Source:
          Knuth, The Art of Computer Programming, vol. 2, sec. 4.2.2, theorem B.
        """
        mean, pivot = self.mean, self.pivot[..., None, :, :]
        rest = mean - pivot
        return mean, (pivot - (mean - rest)) + (self.offset - rest)


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


SETS = ("X", "P", "Q")
"""The sets of examples a formula may speak of: all (L = 1), those of class k, those of the other classes (L = K)."""


def class_sets(moments: Moments) -> dict[str, SetMoments]:
    """The moments of all `SETS`.

    Example:
      >>> moments = zero_moments(jnp.zeros((1, 1)), 2)
      >>> moments = add_examples(moments, jnp.ones((3, 1, 1)), jnp.array([0, 0, 1]))
      >>> {name: found.num_examples.tolist() for name, found in class_sets(moments).items()}
      {'X': [3.0], 'P': [2.0, 1.0], 'Q': [1.0, 2.0]}
    """
    return {name: set_moments(moments, name) for name in SETS}


def set_moments(
    moments: Moments, name: str, is_position: Array | None = None, *, has_spread: bool = True
) -> SetMoments:
    """The moments of one of `SETS`.

    The other classes are merged from those before and those after k, which takes K steps for all k together.

    Args:
      moments: NumPy or JAX arrays, of one network or with a leading member axis.
      name: `X`, `P` or `Q`.
      is_position: as in `SetMoments`.
      has_spread: whether `m2` is wanted.
    """
    missing = moments.offset.ndim - moments.count.ndim - 2
    count = moments.count.reshape(*(1,) * missing, *moments.count.shape, 1, 1)
    part = _Part(count, moments.offset, moments.m2 if has_spread else None)
    if name == "X":
        part = jax.tree.map(lambda one: one[..., -1:, :, :], _running(part))
    elif name == "Q":
        part = _merge(_shifted(_running(part), 1), _shifted(_running(part, reverse=True), -1))
    return SetMoments(part.count[..., 0, 0], moments.pivot, part.offset, part.m2, is_position)


class _Part(NamedTuple):
    """Moments of sets of examples along axis -3."""

    count: Array  # type: ignore[assignment]  # as in `Moments`
    """[..., L, 1, 1]."""
    offset: Array
    m2: Array | None


def _merge(first: _Part, second: _Part) -> _Part:
    """Disjoint sets together: sets of equal means lose nothing, and an empty one changes nothing."""
    count = first.count + second.count
    share = second.count / (count + (count == 0))
    difference = second.offset - first.offset
    m2 = None
    if first.m2 is not None and second.m2 is not None:
        m2 = first.m2 + second.m2 + difference**2 * (first.count * share)
    return _Part(count, first.offset + difference * share, m2)


def _running(classes: _Part, *, reverse: bool = False) -> _Part:
    """Set i is classes 0 to i together, or i to the last."""
    if not isinstance(classes.offset, np.ndarray):
        return jax.lax.associative_scan(_merge, classes, axis=classes.offset.ndim - 3, reverse=reverse)
    order = range(classes.offset.shape[-3])[:: -1 if reverse else 1]
    count = np.flip(np.flip(classes.count, -3).cumsum(-3), -3) if reverse else classes.count.cumsum(-3)
    share = classes.count / np.maximum(count, 1)
    weight = (count - classes.count) * share  # what a squared difference of means counts
    offset = classes.offset.copy()
    m2 = None if classes.m2 is None else classes.m2.copy()
    for last, k in pairwise(order):
        difference = classes.offset[..., k, :, :] - offset[..., last, :, :]
        offset[..., k, :, :] = offset[..., last, :, :] + difference * share[..., k, :, :]
        if m2 is not None:
            np.square(difference, out=difference)
            difference *= weight[..., k, :, :]
            m2[..., k, :, :] += m2[..., last, :, :]
            m2[..., k, :, :] += difference
    return _Part(count, offset, m2)


def _shifted(part: _Part, by: int) -> _Part:
    """Set i becomes set i + by, and an empty one comes in at the end."""
    xp = np if isinstance(part.offset, np.ndarray) else jnp

    def shift(one: Array) -> Array:
        empty = xp.zeros_like(one[..., :1, :, :])
        parts = [empty, one[..., :-1, :, :]] if by > 0 else [one[..., 1:, :, :], empty]
        return xp.concatenate(parts, axis=-3)

    return jax.tree.map(shift, part)


def _sum_by_class(weights: jax.Array, values: jax.Array) -> jax.Array:
    """[N, K] weights and [N, D, C] values give [K, D, C] weighted sums."""
    return jnp.einsum("nk,ndc->kdc", weights, values, precision=HIGHEST)
