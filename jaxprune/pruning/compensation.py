"""Least-squares compensation: the channels that stay take over what can be predicted of those that are removed.

Let S and m be the covariance and the mean of the activations that enter a consumer, over calibration images and
positions. For kept channels K and removed ones R, the best linear prediction of the activations of R is A' x_K + b with

    A = (S_KK + 1e-3 tr(S)/C I)^-1 S_KR   and   b = m_R - A' m_K.

The consumer's weights for the kept channels become W_k + sum_r A_kr W_r, at each position of its window. What is left
is the constant sum_r b_r W_r, summed over the window. It is added to the consumer's bias, or subtracted from the mean
of the batch norm behind it; a consumer that has neither gets the best prediction without a constant. At borders that
are padded with zeros the constant is not exact, because it counts the channels as if they went on there.

A grouped convolution is corrected block by block: its outputs read the channels of one block only, so S and m are those
of that block. A depthwise convolution mixes no channels and is left alone; what mixes them behind it takes over.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxprune.observation.covariances import Covariance
from jaxprune.observation.observed import Observed
from jaxprune.structure.consumer_sites import ConsumerSite, find_consumers
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path
from jaxprune.types import Array

RIDGE = 1e-3
"""Added to the variances, relative to their mean over the channels."""


def check_observed(observed: object) -> None:
    """Checks that something is what `observe` returns.

    Raises:
      TypeError: if not.
    """
    if not isinstance(observed, Observed):
        raise TypeError(
            f"compensation needs what observe returns, got {type(observed).__name__}. Pass jp.observe(model, images)."
        )


def check_compensable(structure: Structure, counts: Mapping[str, int]) -> None:
    """Checks that the consumers of all pruned groups can take over what is removed.

    Args:
      structure: groups of the network.
      counts: group -> number of kept channels; groups left out stay whole.

    Raises:
      ValueError: if channels of a pruned group are read otherwise than by layers with kernels of their own, or are
        normalised together; names all such groups, with what reads them.
    """
    problems = find_consumers(structure).problems
    words = [
        f"group {name} is read by {'; '.join(problems[name])}"
        for name, width in structure.widths.items()
        if name in problems and counts.get(name, width) < width
    ]
    if words:
        raise ValueError(
            "compensation needs channels that only dense layers and convolutions with kernels of their own read, but "
            f"{', and '.join(words)}. Leave these groups whole (ignore= in plan), or prune without compensation."
        )


def compensated_state(
    structure: Structure,
    flat: Mapping[Path, Array],
    kept: Mapping[str, np.ndarray],
    covariances: Mapping[str, Covariance],
) -> FlatState:
    """Returns the arrays of the full network with consumers that do without the removed channels.

    The weights that read removed channels stay as they are: `slim_state` or a mask removes them afterwards.

    Args:
      structure: groups of the network.
      flat: path -> array.
      kept: group -> rising kept indices; groups left out stay whole.
      covariances: of the network with these arrays, from `Observed.covariances`.

    Returns:
      Path -> array of the same shape and type; arrays that change are NumPy arrays, the others are those of `flat`.

    Raises:
      ValueError: as `check_compensable`; or for covariances of another network.
    """
    check_compensable(structure, {name: len(channels) for name, channels in kept.items()})
    arrays: dict[Path, np.ndarray] = {}
    for name, channels in kept.items():
        if len(channels) == structure.widths[name]:
            continue
        for site in find_consumers(structure).sites[name]:
            covariance = covariances.get(site.name)
            if covariance is None or len(covariance.mean) != structure.widths[name]:
                raise ValueError(
                    f"compensation needs covariances of this network, got none of {site.name} with "
                    f"{structure.widths[name]} channels. Call observe on the network that is pruned."
                )
            for path in (site.kernel, *([] if site.shift is None else [site.shift.path])):
                if path not in arrays:
                    arrays[path] = np.array(flat[path], np.float64)
            _compensate(site, arrays, channels, covariance)
    return {**flat, **{path: array.astype(flat[path].dtype) for path, array in arrays.items()}}


def predict_removed(
    covariance: Covariance, kept: np.ndarray, *, has_constant: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best linear prediction of removed channels from kept ones.

    Args:
      covariance: of all channels.
      kept: rising indices of the kept channels.
      has_constant: whether the prediction may have a constant; without one, second moments take the place of the
        covariance.

    Returns:
      A [kept, removed] and b [removed]: the prediction is x @ A + b. Where all activations are constant, A is zero.

    Example:
      >>> covariance = Covariance(np.array([1.0, 2.0]), np.array([[1.0, 2.0], [2.0, 4.0]]))  # x1 = 2 * x0
      >>> weights, constant = predict_removed(covariance, np.array([0]))
      >>> round(float(weights[0, 0]), 2), round(float(constant[0]), 2)
      (2.0, 0.0)
    """
    mean, matrix = covariance
    if not has_constant:
        mean, matrix = np.zeros_like(mean), matrix + np.outer(mean, mean)
    removed = np.setdiff1d(np.arange(len(mean)), kept)
    ridge = RIDGE * np.trace(matrix) / len(mean)
    if ridge > 0:
        diagonal = ridge * np.eye(len(kept))
        weights = np.linalg.solve(matrix[np.ix_(kept, kept)] + diagonal, matrix[np.ix_(kept, removed)])
    else:
        weights = np.zeros((len(kept), len(removed)))
    return weights, mean[removed] - mean[kept] @ weights


def _compensate(
    site: ConsumerSite, arrays: dict[Path, np.ndarray], kept: np.ndarray, covariance: Covariance
) -> None:
    """Changes the kernel of a consumer, and what shifts its output, in place."""
    weights, constant = predict_removed(covariance, kept, has_constant=site.shift is not None)
    kernel = arrays[site.kernel]
    if site.kernel_axis is not None:
        kernel = site.own_outputs(kernel, site.kernel_axis)
    rows = np.moveaxis(kernel, site.axis, 0)
    removed = np.setdiff1d(np.arange(len(site.positions)), kept)
    of_removed = rows[site.positions[removed]]  # [removed, positions of a channel, *other axes]
    rows[site.positions[kept]] += np.tensordot(weights, of_removed, axes=1)
    if site.shift is not None:
        path, sign, axis = site.shift
        by_output = np.moveaxis(of_removed, axis + 1 + (axis < site.axis), -1)
        sums = by_output.reshape(len(removed), -1, by_output.shape[-1]).sum(axis=1)
        shift = site.own_outputs(arrays[path], 0)  # a view
        shift += sign * (constant @ sums)
