"""The class-balanced sample of examples whose activations are stored one by one, and how their maps become smaller.

The sample holds the first `num_samples // K` examples of each of K classes (at least one), however a stream of
examples is cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.types import Array

Features = TypeVar("Features", np.ndarray, jax.Array)


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


def batch_indices(num_examples: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Splits examples into batches of equal size, the last one filled up with copies of its first example.

    Args:
      num_examples: N.
      size: examples per batch.

    Yields:
      For each batch, [size] indices of its examples and [size] booleans, False where an example only fills up.

    Example:
      >>> [(index.tolist(), is_real.tolist()) for index, is_real in batch_indices(3, 2)]
      [([0, 1], [True, True]), ([2, 2], [True, False])]
    """
    for start in range(0, num_examples, size):
        index = np.arange(start, start + size)
        is_real = index < num_examples
        yield np.where(is_real, index, start), is_real


def flat_positions(features: Features) -> Features:
    """Joins the space axes: [N, *space, C] becomes [N, D, C].

    Example:
      >>> flat_positions(jnp.ones((2, 4, 4, 3))).shape, flat_positions(jnp.ones((2, 3))).shape
      ((2, 16, 3), (2, 1, 3))
    """
    return features.reshape(features.shape[0], -1, features.shape[-1])


def pool_positions(
    features: jax.Array, max_positions: int, reduce: Callable[..., jax.Array] = jnp.mean
) -> jax.Array:
    """Averages [N, *space, C] over equal windows until at most `max_positions` positions remain.

    Windows have the same length along every axis; those at the far edge may hold fewer positions.

    Args:
      features: activations, or with `reduce=jnp.sum` gradients with respect to them: moving all positions of a window
        together changes the loss by the sum of their gradients.
      max_positions: how many positions may remain.
      reduce: makes one number of a window; `jnp.mean` or `jnp.sum`.

    Returns:
      [N, *smaller space, C]; `features` itself if it has few enough positions.

    Example:
      >>> pool_positions(jnp.arange(4.0)[None, :, None], 2)[0, :, 0]
      Array([0.5, 2.5], dtype=float32)
      >>> pool_positions(jnp.arange(4.0)[None, :, None], 2, jnp.sum)[0, :, 0]
      Array([1., 5.], dtype=float32)
    """
    space = features.shape[1:-1]
    window = _window(space, max_positions)
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


def pooled_space(space: Sequence[int], max_positions: int) -> tuple[int, ...]:
    """Returns the spatial shape of maps after `pool_positions`.

    Args:
      space: of the maps.
      max_positions: how many positions may remain.

    Example:
      >>> pooled_space((7, 7), 9)
      (3, 3)
    """
    window = _window(space, max_positions)
    return tuple(ceil(length / window) for length in space)


def _window(space: Sequence[int], max_positions: int) -> int:
    """The smallest side of a window that leaves few enough positions."""
    window = 1
    while np.prod([ceil(length / window) for length in space], initial=1) > max_positions:
        window += 1
    return window


class SampleRows(NamedTuple):
    """The sample, sorted by class."""

    class_ids: np.ndarray
    """[n] positions of the classes in the order that was asked for."""
    features: np.ndarray
    """[n, D', C] average-pooled activations."""
    gradient: np.ndarray | None
    """[n, D', C] gradient summed over windows, if there is any."""


class ClassSample:
    """Gathers the sample batch by batch.

    While some classes have not occurred yet, the share of each class is larger; it shrinks as new classes occur, so
    nothing that the final sample needs is ever dropped.

    Args:
      num_samples: examples of the sample in all.
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
        self._by_class: dict[int, list[np.ndarray]] = {}  # class -> its rows of features, and of the gradient
        self.space: tuple[int, ...] = ()
        """Spatial shape of the pooled maps."""

    def add(
        self, class_ids: np.ndarray, features: np.ndarray, gradient: np.ndarray | None, num_classes: int
    ) -> None:
        """Adds the examples of a batch that the sample needs.

        Args:
          class_ids: [n] classes of the batch's first n examples; further ones only fill it up.
          features: [N, *space, C] with N >= n.
          gradient: shaped like `features`, or None; in every batch or in none.
          num_classes: how many classes are known, including those of this batch.
        """
        share = max(1, self._num_samples // num_classes)
        self._by_class = {k: [part[:share] for part in parts] for k, parts in self._by_class.items()}
        room = {
            k: share - len(self._by_class[k][0]) if k in self._by_class else share
            for k in set(class_ids.tolist())
        }
        if not any(room.values()):
            return
        maps = _pool(self._max_positions, features, gradient)
        self.space = maps[0].shape[1:-1]
        rows = [flat_positions(np.asarray(values)) for values in maps]
        for k, free in room.items():
            index = np.flatnonzero(class_ids == k)[:free]
            new, old = [values[index] for values in rows], self._by_class.get(k)
            self._by_class[k] = (
                new if old is None else [np.concatenate(pair) for pair in zip(old, new, strict=True)]
            )

    def rows(self, order: Sequence[int]) -> SampleRows:
        """Returns the sample sorted by class; classes without examples have no rows.

        Args:
          order: the classes, in the order that their rows shall have.
        """
        present = [(position, self._by_class[k]) for position, k in enumerate(order) if k in self._by_class]
        class_ids = np.concatenate(
            [np.full(len(parts[0]), position, np.int32) for position, parts in present]
        )
        features, *gradient = (
            np.concatenate(arrays) for arrays in zip(*(parts for _, parts in present), strict=True)
        )
        return SampleRows(class_ids, features, gradient[0] if gradient else None)


@partial(jax.jit, static_argnums=0)
def _pool(max_positions: int, features: Array, gradient: Array | None) -> list[jax.Array]:
    """Averages the maps over windows, and sums the gradient over them."""
    maps = [pool_positions(jnp.asarray(features), max_positions)]
    return (
        maps if gradient is None else [*maps, pool_positions(jnp.asarray(gradient), max_positions, jnp.sum)]
    )
