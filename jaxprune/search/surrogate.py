"""Predicts the fitness of a plan before it is trained, by a Gaussian process over the plans evaluated so far.

Functions that keep nearly the same channels reach nearly the same accuracy. So the overlap of plans predicts fitness
well enough to skip most proposals, which are worse than any seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Plan distances over which fitness may change; the one under which the data are most likely is used."""

OPTIMISM = 0.5
"""Standard deviations added to an expectation, so that of two equal proposals the more uncertain one is picked."""


def most_promising(
    known: Sequence[str], means: Sequence[float], ses: Sequence[float], proposals: Sequence[str], count: int
) -> list[int]:
    """Picks the proposals with the highest expected fitness that differ from one another.

    After each pick the model assumes that it came out as expected. This makes further proposals that resemble it less
    attractive.

    Args:
      known: packed plans (`pack_kept`) that have a fitness.
      means: the fitness of each.
      ses: the standard error of each.
      proposals: packed plans to choose from.
      count: how many to pick.

    Returns:
      Indices into `proposals`, best first; empty if there are fewer than two known plans or a plan is empty.

    Example:
      >>> most_promising(["f0", "0f"], [1.0, -1.0], [0.1, 0.1], ["87", "1e", "e1"], count=1)
      [2]
    """
    if len(known) < 2 or not proposals or not all(known) or not all(proposals):
        return []
    distances = plan_distances([*known, *proposals])
    values, variances = np.asarray(means, np.float64), np.maximum(np.square(ses), 1e-4)
    mean, amplitude = float(values.mean()), max(float(values.var()), 1e-4)
    num_known = len(known)
    length = max(
        LENGTHS,
        key=lambda length: _log_likelihood(
            amplitude * np.exp(-distances[:num_known, :num_known] / length), variances, values - mean
        ),
    )
    kernel = amplitude * np.exp(-distances / length)
    picked: list[int] = []
    while len(picked) < min(count, len(proposals)):
        observed = [*range(num_known), *(num_known + index for index in picked)]
        expected, variance = _posterior(kernel, observed, values - mean, variances)
        bounds = (expected + OPTIMISM * np.sqrt(variance))[num_known:]
        bounds[picked] = -np.inf
        best = int(np.argmax(np.round(bounds, 9)))  # rounded, because the last bits depend on the machine
        values = np.append(values, mean + expected[num_known + best])
        variances = np.append(variances, 1e-4)
        picked.append(best)
    return picked


def plan_distances(plans: Sequence[str]) -> Floats:
    """Computes the share of kept channels that each two packed plans do not have in common.

    Args:
      plans: n texts of `pack_kept` of one length.

    Returns:
      [n, n] numbers from 0 (equal plans) to 1.

    Example:
      >>> plan_distances(["c0", "90"]).tolist()
      [[0.0, 0.5], [0.5, 0.0]]
    """
    bits = np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(plan), np.uint8)) for plan in plans])
    is_kept = bits.astype(np.float32)  # counts below 2**24 are exact
    common = (is_kept @ is_kept.T).astype(np.float64)
    sizes = bits.sum(axis=1, dtype=np.float64)
    total = sizes[:, None] + sizes[None, :]
    return 1.0 - 2.0 * common / np.where(total > 0, total, 1.0)


def _posterior(
    kernel: Floats, observed: Sequence[int], values: Floats, variances: Floats
) -> tuple[Floats, Floats]:
    """Computes mean and variance of the process for all plans, given noisy values of those with `observed` indices."""
    within = kernel[np.ix_(observed, observed)] + np.diag(variances)
    towards = kernel[observed, :]
    solved = np.linalg.solve(within, np.concatenate([values[:, None], towards], axis=1))
    mean = towards.T @ solved[:, 0]
    variance = np.diag(kernel) - np.sum(towards * solved[:, 1:], axis=0)
    return mean, np.maximum(variance, 0.0)


def _log_likelihood(kernel: Floats, variances: Floats, values: Floats) -> float:
    """Computes the log-likelihood of noisy values under a Gaussian process, up to a constant."""
    within = kernel + np.diag(variances)
    _, log_determinant = np.linalg.slogdet(within)
    return -0.5 * float(values @ np.linalg.solve(within, values) + log_determinant)
