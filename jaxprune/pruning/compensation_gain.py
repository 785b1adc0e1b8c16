"""Says what compensation gains: how wrong the outputs of each consumer are with and without it.

Errors follow from the covariances that compensation uses, without another pass. For weights W_q at the positions q of a
consumer's window, and an error of mean m and covariance V in the channels that it reads,

    E |error|^2 = sum_q tr(W_q' V W_q) + |sum_q W_q' m|^2

summed over its outputs. Where a window has one position (dense layers, convolutions of 1x1) this is exact. Otherwise
deviations at neighbouring positions count as uncorrelated, and borders as if the channels went on there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from flax import nnx

from jaxprune.observation.covariances import Covariance
from jaxprune.observation.observed import Observed
from jaxprune.pruning.compensation import check_compensable, check_observed, predict_removed
from jaxprune.pruning.planning import Plan, check_plan
from jaxprune.structure.consumer_sites import ConsumerSite, find_consumers
from jaxprune.structure.model_state import Path, dotted, take_apart


class ConsumerGain(NamedTuple):
    """The relative error of a layer's outputs once a group has lost channels.

    It is the root of the mean square of the error by that of the outputs, without their bias, over images and
    positions; channels of other groups are whole.

    Attributes:
      group: the group that loses channels.
      consumer: path of the kernel that reads them.
      before: the error where the channels are cut, >= 0.
      after: the error where those that stay take over, >= 0.
    """

    group: str
    consumer: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.group} -> {self.consumer}: output error {self.before:.1%} -> {self.after:.1%}"


def compensation_gains(model: nnx.Module, plan: Plan, observed: Observed) -> tuple[ConsumerGain, ...]:
    """Returns what `slim(model, plan, compensate=observed)` gains at each layer that reads pruned channels.

    Args:
      model: the network that the plan was made for.
      plan: which channels to keep.
      observed: what `observe` returned for this model.

    Returns:
      A record for each group that loses channels and each layer that reads them, in program order; printing one shows
      the errors before and after.

    Raises:
      TypeError, ValueError: as `slim` with `compensate`.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> from jaxprune.observation.observer import observe
      >>> from jaxprune.pruning.planning import make_plan
      >>> from jaxprune.structure.tracing import trace_structure
      >>> model = PlainConvNet(nnx.Rngs(0), widths=(4, 4, 4))
      >>> images = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
      >>> some = make_plan(trace_structure(model, images), {"conv1.kernel": (0, 1, 2)})
      >>> (gain,) = compensation_gains(model, some, observe(model, images, np.arange(8) % 2))
      >>> gain.consumer, gain.after < gain.before
      ('conv2.kernel', True)
    """
    parts = take_apart(model)
    structure = check_plan(parts, plan)
    check_observed(observed)
    check_compensable(structure, plan.kept_counts)
    covariances = observed.covariances()
    gains = []
    for name, channels in plan.kept.items():
        if len(channels) == plan.widths[name]:
            continue
        sums: dict[Path, np.ndarray] = {}
        for site in find_consumers(structure).sites[name]:
            kernel = np.asarray(parts.flat[site.kernel], np.float64)
            errors = _mean_squares(site, kernel, np.asarray(channels), covariances[site.name])
            sums[site.kernel] = sums.get(site.kernel, np.zeros(3)) + errors
        for path, (before, after, whole) in sums.items():
            scale = whole if whole > 0 else 1.0
            gains.append(
                ConsumerGain(
                    name,
                    dotted(path),
                    float(np.sqrt(before / scale)),
                    float(np.sqrt(max(after, 0.0) / scale)),
                )
            )
    return tuple(gains)


def _mean_squares(
    site: ConsumerSite, kernel: np.ndarray, kept: np.ndarray, covariance: Covariance
) -> np.ndarray:
    """Mean squares of what a layer loses by a cut, of what is left of that with compensation, and of its outputs."""
    weights = _by_position(site, kernel)
    removed = np.setdiff1d(np.arange(len(weights)), kept)
    has_constant = site.shift is not None
    taken, constant = predict_removed(covariance, kept, has_constant=has_constant)
    error = np.zeros((len(removed), len(weights)))  # of each removed channel, in terms of all
    error[np.arange(len(removed)), removed] = 1
    cut = error.copy()
    error[:, kept] = -taken.T
    mean = error @ covariance.mean - (constant if has_constant else 0)
    lost = weights[removed]
    return np.array(
        [
            _mean_square(lost, cut @ covariance.matrix @ cut.T, cut @ covariance.mean),
            _mean_square(lost, error @ covariance.matrix @ error.T, mean),
            _mean_square(weights, covariance.matrix, covariance.mean),
        ]
    )


def _by_position(site: ConsumerSite, kernel: np.ndarray) -> np.ndarray:
    """[C, positions, outputs] weights; without an axis of outputs every entry counts as one."""
    axis = site.kernel_axis
    if axis is None:
        rows = np.moveaxis(kernel, site.axis, 0)[site.positions]
        return rows.reshape(len(rows), 1, -1)
    own = site.own_outputs(kernel, axis)
    rows = np.moveaxis(own, (site.axis, axis), (0, -1))[site.positions]
    return rows.reshape(len(rows), -1, own.shape[axis])


def _mean_square(weights: np.ndarray, matrix: np.ndarray, mean: np.ndarray) -> float:
    """Mean square, summed over outputs, of weights [C, positions, outputs] times values of this distribution."""
    spread = np.einsum("cqo,dqo,cd->", weights, weights, matrix, optimize=True)
    return float(spread + np.square(mean @ weights.sum(axis=1)).sum())
