"""A bounded, class-balanced sample of a stream of examples, which does not depend on how the stream is cut.

It holds the first `num_samples // K` examples of each of K classes (at least one). While not all classes have been
seen the share of each is larger, and shrinks as they come: nothing that the final sample needs is ever let go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.types import Array


def balanced_sample(labels: np.ndarray, num_samples: int) -> np.ndarray:
    """Returns indices of the first `num_samples // K` examples of each of the K classes (at least one).

    Args:
      labels: [N] classes, of any kind that can be sorted.
      num_samples: how many examples to choose in all.

    Returns:
      [n] indices sorted by class, and within a class as they come.

    Example:
      >>> balanced_sample(np.array([1, 0, 1, 0, 1]), 4).tolist()
      [1, 3, 0, 2]
    """
    share = max(1, num_samples // len(np.unique(labels)))
    by_class = np.argsort(labels, kind="stable")
    return by_class[rank_in_class(labels)[by_class] < share]


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Counts, for each example, the earlier examples with the same label, [N].

    Example:
      >>> rank_in_class(np.array([7, 5, 7, 7])).tolist()
      [0, 0, 1, 2]
    """
    by_class = np.argsort(labels, kind="stable")
    ranks = np.empty(len(labels), np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])
    return ranks


class SampleRows(NamedTuple):
    """The sample, sorted by class."""

    class_ids: np.ndarray
    """[n] classes by their place in the order that was asked for."""
    features: np.ndarray
    """[n, D', C] average-pooled activations."""
    gradient: np.ndarray | None
    """[n, D', C] gradient summed over windows, if there is any."""


class ClassSample:
    """Gathers the sample batch by batch.

    Args:
      num_samples: examples to keep in all.
      max_positions: maps with more positions are average-pooled.

    Example:
      >>> sample = ClassSample(num_samples=2, max_positions=64)
      >>> sample.add(np.array([1, 1]), np.array([[1.0], [2.0]]), None, num_classes=2)
      >>> sample.add(np.array([1, 0]), np.array([[3.0], [4.0]]), None, num_classes=2)
      >>> sample.rows(order=[0, 1]).features.tolist()
      [[[4.0]], [[1.0]]]
    """

    def __init__(self, num_samples: int, max_positions: int) -> None:
        self._num_samples, self._max_positions = num_samples, max_positions
        self._kept: dict[int, list[np.ndarray]] = {}  # class -> its rows of features, and of the gradient
        self.space: tuple[int, ...] = ()
        """Spatial shape of the pooled maps."""

    def add(
        self, class_ids: np.ndarray, features: np.ndarray, gradient: np.ndarray | None, num_classes: int
    ) -> None:
        """Takes what it needs of a batch.

        Args:
          class_ids: [n] classes of the batch's first n examples; further ones only fill it up.
          features: [N, *space, C] with N >= n.
          gradient: shaped alike, or None; the same in every batch.
          num_classes: how many classes are known, those of this batch included.
        """
        share = max(1, self._num_samples // num_classes)
        self._kept = {k: [part[:share] for part in parts] for k, parts in self._kept.items()}
        room = {
            k: share - len(self._kept[k][0]) if k in self._kept else share for k in set(class_ids.tolist())
        }
        if not any(room.values()):
            return
        maps = _pooled(self._max_positions, features, gradient)
        self.space = maps[0].shape[1:-1]
        rows = [np.asarray(flat_positions(one)) for one in maps]
        for k, free in room.items():
            picked = np.flatnonzero(class_ids == k)[:free]
            new = [one[picked] for one in rows]
            old = self._kept.get(k)
            self._kept[k] = (
                new if old is None else [np.concatenate(pair) for pair in zip(old, new, strict=True)]
            )

    def rows(self, order: Sequence[int]) -> SampleRows:
        """The sample with classes in this order; classes without examples have no rows."""
        kept = [(place, self._kept[k]) for place, k in enumerate(order) if k in self._kept]
        class_ids = np.concatenate([np.full(len(parts[0]), place, np.int32) for place, parts in kept])
        features, *gradient = (
            np.concatenate(each) for each in zip(*(parts for _, parts in kept), strict=True)
        )
        return SampleRows(class_ids, features, gradient[0] if gradient else None)


@partial(jax.jit, static_argnums=0)
def _pooled(max_positions: int, features: Array, gradient: Array | None) -> list[jax.Array]:
    """Maps averaged over windows, and the gradient summed over them."""
    maps = [pool_positions(jnp.asarray(features), max_positions)]
    return (
        maps if gradient is None else [*maps, pool_positions(jnp.asarray(gradient), max_positions, jnp.sum)]
    )


# === merged: """Activation maps as lists of positions, and fewer of them by averaging over windows."""


def flat_positions(features: jax.Array) -> jax.Array:
    """[N, *space, C] as [N, D, C].

    Example:
      >>> flat_positions(jnp.ones((2, 4, 4, 3))).shape, flat_positions(jnp.ones((2, 3))).shape
      ((2, 16, 3), (2, 1, 3))
    """
    return features.reshape(features.shape[0], -1, features.shape[-1])


def pool_positions(
    features: jax.Array, max_positions: int, reduce: Callable[..., jax.Array] = jnp.mean
) -> jax.Array:
    """[N, *space, C] averaged over equal windows until at most `max_positions` positions are left.

    Windows have the same length along every axis; those at the far edge may hold fewer positions.

    Args:
      features: activations, or with `reduce=jnp.sum` gradients with respect to them: moving all positions of a window
        together changes the loss by the sum of their gradients.
      max_positions: how many positions may be left.
      reduce: what makes one number of a window; `jnp.mean` or `jnp.sum`.

    Example:
      >>> pool_positions(jnp.arange(4.0)[None, :, None], 2)[0, :, 0]
      Array([0.5, 2.5], dtype=float32)
      >>> pool_positions(jnp.arange(4.0)[None, :, None], 2, jnp.sum)[0, :, 0]
      Array([1., 5.], dtype=float32)
    """
    space = features.shape[1:-1]
    window = 1
    while np.prod([ceil(length / window) for length in space], initial=1) > max_positions:
        window += 1
    if window == 1:
        return features
    for axis, length in enumerate(space, start=1):
        starts = range(0, length, window)
        parts = [
            reduce(jax.lax.slice_in_dim(features, start, min(start + window, length), axis=axis), axis=axis)
            for start in starts
        ]
        features = jnp.stack(parts, axis=axis)
    return features
