"""Many classes become few coarse ones: by a given mapping, or as clusters of the network's own class means.

Moments are kept for each class, so their memory and the time of scoring grow with the number of classes. Coarse
classes, such as CIFAR-100's `coarse_label` or some tens of clusters of the classes of ILSVRC, bound both.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import numpy as np
from scipy.cluster.vq import kmeans2

from jaxprune.types import Array, is_whole

Classes = int | Sequence[int] | Array
"""A number of clusters, or the coarse class of each class in sorted order of their labels, [K]."""

_SEED = 0


def check_classes(classes: Classes, num_classes: int) -> np.ndarray | None:
    """Checks the coarse classes that a caller asks for.

    Args:
      classes: a number of clusters, or a mapping.
      num_classes: K.

    Returns:
      The mapping, [K]; None for a number.

    Raises:
      ValueError: as `coarse_mapping` and `check_num_clusters`.
    """
    if isinstance(classes, int | float) or np.ndim(classes) == 0:
        check_num_clusters(cast(int, classes), num_classes)
        return None
    return coarse_mapping(classes, num_classes)


def coarse_mapping(classes: Sequence[int] | Array, num_classes: int) -> np.ndarray:
    """Checks a mapping from classes to coarse classes.

    Args:
      classes: [K] coarse class of each class in sorted order of their labels, whole numbers from 0 without gaps.
      num_classes: K.

    Returns:
      [K] int32 coarse classes.

    Raises:
      ValueError: for another length, other values, coarse classes without a class, or a single coarse class.

    Example:
      >>> coarse_mapping([0, 1, 0], 3).tolist()
      [0, 1, 0]
    """
    mapping = np.asarray(classes)
    if mapping.shape != (num_classes,):
        raise ValueError(
            f"classes needs the coarse class of each of the {num_classes} classes that occur, got shape "
            f"{mapping.shape}. Leave out the entries of classes without images: mapping[np.unique(labels)]."
        )
    if not np.issubdtype(mapping.dtype, np.integer) or mapping.min() < 0:
        raise ValueError(
            f"classes needs whole numbers >= 0, the coarse class of each class, got {mapping.tolist()[:8]} of dtype "
            f"{mapping.dtype}. Number the coarse classes from 0."
        )
    empty = np.setdiff1d(np.arange(mapping.max() + 1), mapping)
    if len(empty):
        raise ValueError(
            f"classes needs a class in each coarse class 0 .. {mapping.max()}, got none in "
            f"{', '.join(map(str, empty[:8]))}. Number them without gaps: np.unique(mapping, return_inverse=True)[1]."
        )
    if mapping.max() < 1:
        raise ValueError("classes needs at least two coarse classes, got all classes in one.")
    return mapping.astype(np.int32)


def check_num_clusters(num_clusters: int, num_classes: int) -> None:
    """Checks a number of clusters.

    Args:
      num_clusters: K'.
      num_classes: K.

    Raises:
      ValueError: if it is not from 2 to K.
    """
    if not is_whole(num_clusters, smallest=2) or num_clusters > num_classes:
        raise ValueError(
            f"classes needs a number of coarse classes from 2 to the {num_classes} classes of the labels, "
            f"got {num_clusters}."
        )


def class_means(features: np.ndarray, class_ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Averages the features of each class.

    Args:
      features: [N, F].
      class_ids: [N] classes 0 .. K-1, each of which occurs.
      num_classes: K.

    Returns:
      [K, F] float64.

    Example:
      >>> class_means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1]), 2).tolist()
      [[2.0], [5.0]]
    """
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, class_ids, features)
    return sums / np.bincount(class_ids, minlength=num_classes)[:, None]


def cluster_classes(means: np.ndarray, num_clusters: int) -> np.ndarray:
    """Puts classes with similar means together, by spectral clustering; the same means give the same clusters.

    The similarity of two classes is the cosine of their means, seen from the mean of all classes and brought to
    [0, 1]. Classes are placed by the first eigenvectors of the normalised Laplacian and gathered by k-means. A cluster
    that k-means leaves empty takes the class that is farthest from its own centre.

    Args:
      means: [K, F] of the features of each class.
      num_clusters: K', from 2 to K.

    Returns:
      [K] int32 clusters 0 .. K'-1, numbered in the order of their first class.

    Raises:
      ValueError: if the number of clusters is out of range.

    Example:
      >>> cluster_classes(np.array([[9.0, 0.1], [0.0, 7.0], [8.0, 0.0], [0.2, 9.0]]), 2).tolist()
      [0, 1, 0, 1]

    Source:
      Ng, Jordan, Weiss, On spectral clustering: analysis and an algorithm, 2001. The affinity is ours.
    """
    check_num_clusters(num_clusters, len(means))
    if num_clusters == len(means):
        return np.arange(len(means), dtype=np.int32)
    centred = means - means.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    affinity = np.clip((1 + unit @ unit.T) / 2, 0, 1)
    scale = 1 / np.sqrt(affinity.sum(axis=1))
    laplacian = np.eye(len(means)) - scale[:, None] * affinity * scale
    places = np.linalg.eigh(laplacian)[1][:, :num_clusters]
    places /= np.maximum(np.linalg.norm(places, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # about empty clusters
        centres, found = kmeans2(places, num_clusters, iter=100, minit="++", seed=_SEED)
    return _in_order(_filled(places, centres, found))


def _filled(places: np.ndarray, centres: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Gives every empty cluster the class farthest from its centre, of those that are not alone in their cluster."""
    found = found.copy()
    distances = np.linalg.norm(places - centres[found], axis=1)
    for empty in np.setdiff1d(np.arange(len(centres)), found):
        is_alone = np.bincount(found, minlength=len(centres))[found] == 1
        farthest = np.where(is_alone, -1, distances).argmax()
        found[farthest], distances[farthest] = empty, 0
    return found


def _in_order(found: np.ndarray) -> np.ndarray:
    """Numbers clusters in the order of their first class."""
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int32)
