"""Means and spreads of activations per class, added up batch by batch and safe in float32.

Sums are taken relative to a *pivot*, the channel's first calibration example at each position: a constant channel has
exactly zero variance, and a mean of 1e4 does not swallow a variance of 1e-2. Where all activations of a class are 0,
its mean is exactly 0, so activations that are never negative have no negative means. Batches and classes are merged
with the pairwise update of Chan et al.; the moments of "the other classes" are sums over those classes, never the total
minus one class.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.types import Array

HIGHEST = jax.lax.Precision.HIGHEST

SETS = ("X", "P", "Q")
"""The sets of examples a formula may read: all (L = 1), those of class k, those of the other classes (L = K)."""


class Moments(NamedTuple):
    """Moments of one layer's activations per class: K classes, D positions, C channels.

    With stacked members every array has one more, leading axis.
    """

    count: jax.Array  # type: ignore[assignment]  # hides the method `count` of tuples, which nobody calls here
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
    """Moments of L sets of examples: all of them, each class, or the other classes of each. NumPy or JAX arrays."""

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
        (mean, rounding), shifted = self._exact_mean, self._shifted_mean
        return mean[..., 0, :] + (rounding[..., 0, :] + self._mean_over_positions(shifted))

    @property
    def entry_variance(self) -> Array:
        """[..., L, C] variance over all examples and positions (dividing by their number)."""
        assert self.m2 is not None
        shifted = self._shifted_mean
        deviations = shifted - self._mean_over_positions(shifted)[..., None, :]
        between = self._mean_over_positions(deviations**2)
        return self._mean_over_positions(self.m2) / self.num_examples[..., None] + between

    @property
    def _shifted_mean(self) -> Array:
        """[..., L, D, C] means minus the one at the first position, so that no large mean is squared."""
        mean, rounding = self._exact_mean
        return (mean - mean[..., :1, :]) + (rounding - rounding[..., :1, :])

    @property
    def _exact_mean(self) -> tuple[Array, Array]:
        """`mean` and its rounding error, so that positions with equal means do not differ at all.

        Source:
          Knuth, The Art of Computer Programming, vol. 2, sec. 4.2.2, theorem B.
        """
        mean, pivot = self.mean, self.pivot[..., None, :, :]
        rest = mean - pivot
        return mean, (pivot - (mean - rest)) + (self.offset - rest)

    def _mean_over_positions(self, values: Array) -> Array:
        """[..., L, C] mean of [..., L, D, C] over the real positions."""
        if self.is_position is None:
            return values.mean(axis=-2)
        total = jnp.where(self.is_position, values, 0).sum(axis=-2)
        return total / self.is_position.sum(axis=-2)


@partial(jax.jit, static_argnames="num_classes")
def zero_moments(pivot: jax.Array, num_classes: int) -> Moments:
    """Returns the moments of no examples, to start from.

    Args:
      pivot: [D, C] the first calibration example, in the dtype of the moments.
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
      moments: of the examples so far, possibly `zero_moments`.
      features: [N, D, C] activations, any float type; they are added up in the dtype of `moments`.
      labels: [N] class ids in 0 .. K-1.
      is_real: [N] False for examples that only fill up a batch (they may hold anything, NaN too). None means
        that all are real.

    Returns:
      The moments of the earlier examples and the batch together.

    Example:
      >>> moments = zero_moments(jnp.zeros((1, 1)), 2)
      >>> features = jnp.array([1.0, 3.0, 5.0])[:, None, None]
      >>> moments = add_examples(moments, features, jnp.array([0, 0, 1]))
      >>> moments.offset[:, 0, 0].tolist(), moments.m2[:, 0, 0].tolist()
      ([2.0, 5.0], [2.0, 0.0])

    Source:
      Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    chex.assert_shape(features, (None, *moments.pivot.shape))
    chex.assert_shape(labels, features.shape[:1])
    num_classes = moments.count.shape[0]
    real = jnp.ones(labels.shape, bool) if is_real is None else is_real
    dtype = moments.offset.dtype
    delta = jnp.where(real[:, None, None], features.astype(dtype) - moments.pivot[None], 0)
    belongs = ((labels[:, None] == jnp.arange(num_classes)[None]) & real[:, None]).astype(dtype)  # [N, K]
    count = jnp.sum(belongs, axis=0)

    def class_means(values: jax.Array) -> jax.Array:
        sums = jnp.einsum("nk,ndc->kdc", belongs, values, precision=HIGHEST)
        return sums / jnp.maximum(count, 1)[:, None, None]

    # Relative to the class's first example, so that a position where a class is always 0 has a mean of exactly 0.
    first = jnp.where(count[:, None, None] > 0, delta[jnp.argmax(belongs, axis=0)], 0)
    class_ids = jnp.where(real, labels, 0)
    rest = jnp.where(real[:, None, None], delta - first[class_ids], 0)
    offset = first + class_means(rest)
    offset_of_class = jnp.where(real[:, None, None], offset[class_ids], 0)
    m2 = jnp.einsum("nk,ndc->kdc", belongs, (delta - offset_of_class) ** 2, precision=HIGHEST)
    nonzero = jnp.mean(features != 0, axis=1, dtype=dtype)  # [N, C]; `belongs` leaves padding out
    active = jnp.matmul(belongs.T, nonzero, precision=HIGHEST) / jnp.maximum(count, 1)[:, None]
    return merge_moments(moments, Moments(count, moments.pivot, offset, m2, active))


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Merges the moments of two disjoint sets of examples that share one pivot.

    Args:
      first: moments of one set.
      second: moments of the other, relative to the same pivot.

    Returns:
      The moments of both sets together.

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


@partial(jax.jit, static_argnames="num_classes")
def sample_moments(rows: jax.Array, class_ids: Array, *, num_classes: int) -> Moments:
    """Computes the moments of a sample relative to its first row.

    Args:
      rows: [n, D, C] activations.
      class_ids: [n] classes 0 .. K-1.
      num_classes: K.

    Example:
      >>> sample_moments(jnp.ones((2, 1, 1)), np.array([0, 1]), num_classes=2).m2.tolist()
      [[[0.0]], [[0.0]]]
    """
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return add_examples(zero_moments(rows[0], num_classes), rows, jnp.asarray(class_ids))


@partial(jax.jit, static_argnames="num_classes")
def balanced_moments(rows: jax.Array, *, num_classes: int) -> Moments:
    """Computes what `sample_moments` does, of rows sorted by class with equally many of each, in time linear in rows.

    Args:
      rows: [n, D, C] activations; n is a multiple of K.
      num_classes: K.

    Example:
      >>> balanced_moments(jnp.array([[[1.0]], [[3.0]], [[6.0]], [[6.0]]]), num_classes=2).m2.ravel().tolist()
      [2.0, 0.0]
    """
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    by_class = (rows - rows[:1]).reshape(num_classes, -1, *rows.shape[1:])
    first = by_class[:, :1]
    offset = first + (by_class - first).mean(axis=1, keepdims=True)
    m2 = jnp.square(by_class - offset).sum(axis=1)
    active = (rows != 0).mean(axis=1, dtype=rows.dtype).reshape(num_classes, -1, rows.shape[-1]).mean(axis=1)
    count = jnp.full(num_classes, by_class.shape[1], rows.dtype)
    return Moments(count, rows[0], offset[:, 0], m2, active)


def set_moments(
    moments: Moments, name: str, is_position: Array | None = None, *, has_spread: bool = True
) -> SetMoments:
    """Returns the moments of one of `SETS`.

    The other classes of class k are merged from those before and those after k, which takes K merges for all k
    together.

    Args:
      moments: NumPy or JAX arrays, of one network or with a leading member axis.
      name: `X`, `P` or `Q`.
      is_position: [..., 1, D, 1] which positions are real, as in `SetMoments`.
      has_spread: whether `m2` is computed.
    """
    missing = moments.offset.ndim - moments.count.ndim - 2
    count = moments.count.reshape(*(1,) * missing, *moments.count.shape, 1, 1)
    sets = _Sets(count, moments.offset, moments.m2 if has_spread else None)
    if name == "X":
        sets = jax.tree.map(lambda array: array[..., -1:, :, :], _cumulative(sets))
    elif name == "Q":
        sets = _merge(_shift(_cumulative(sets), 1), _shift(_cumulative(sets, reverse=True), -1))
    return SetMoments(sets.num_examples[..., 0, 0], moments.pivot, sets.offset, sets.m2, is_position)


class _Sets(NamedTuple):
    """Moments of L sets of examples, which axis -3 counts."""

    num_examples: Array
    """[..., L, 1, 1]."""
    offset: Array
    m2: Array | None


def _merge(first: _Sets, second: _Sets) -> _Sets:
    """Merges disjoint sets pairwise; sets of equal means lose no digits, and an empty set changes nothing."""
    count = first.num_examples + second.num_examples
    share = second.num_examples / (count + (count == 0))
    difference = second.offset - first.offset
    m2 = None
    if first.m2 is not None and second.m2 is not None:
        m2 = first.m2 + second.m2 + difference**2 * (first.num_examples * share)
    return _Sets(count, first.offset + difference * share, m2)


def _cumulative(classes: _Sets, *, reverse: bool = False) -> _Sets:
    """Merges classes 0 to i into set i, or classes i to the last if `reverse`."""
    if not isinstance(classes.offset, np.ndarray):
        return jax.lax.associative_scan(_merge, classes, axis=classes.offset.ndim - 3, reverse=reverse)
    sizes = classes.num_examples
    order = range(classes.offset.shape[-3])[:: -1 if reverse else 1]
    count = np.flip(np.flip(sizes, -3).cumsum(-3), -3) if reverse else sizes.cumsum(-3)
    share = sizes / np.maximum(count, 1)
    weight = (count - sizes) * share  # of the squared difference of means
    offset = classes.offset.copy()
    m2 = None if classes.m2 is None else classes.m2.copy()
    for previous, k in pairwise(order):
        difference = classes.offset[..., k, :, :] - offset[..., previous, :, :]
        offset[..., k, :, :] = offset[..., previous, :, :] + difference * share[..., k, :, :]
        if m2 is not None:
            np.square(difference, out=difference)
            difference *= weight[..., k, :, :]
            m2[..., k, :, :] += m2[..., previous, :, :]
            m2[..., k, :, :] += difference
    return _Sets(count, offset, m2)


def _shift(sets: _Sets, by: int) -> _Sets:
    """Moves set i to i + by (1 or -1), with an empty set at the end that becomes free."""
    xp = np if isinstance(sets.offset, np.ndarray) else jnp

    def shifted(array: Array) -> Array:
        empty = xp.zeros_like(array[..., :1, :, :])
        parts = [empty, array[..., :-1, :, :]] if by > 0 else [array[..., 1:, :, :], empty]
        return xp.concatenate(parts, axis=-3)

    return jax.tree.map(shifted, sets)
