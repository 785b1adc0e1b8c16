"""What to expect of a plan before training it: a Gaussian process over plans already evaluated.

Functions that keep nearly the same channels end up at nearly the same accuracy, so the overlap of plans
predicts fitness well enough to pass over most of a bulk of proposals, which are worse than any seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Plan distances over which fitness may change; the likeliest one for the data at hand is used."""

OPTIMISM = 0.5
"""Standard deviations added to the expectation: an unsure proposal is worth a little more than a sure one."""


def most_promising(
    known: Sequence[str], means: Sequence[float], ses: Sequence[float], proposals: Sequence[str], count: int
) -> list[int]:
    """Picks the proposals of which most is to be expected, apart from one another.

    After each pick the model is told that it came out as expected, so that the next one is worth less the
    more it resembles the first.

    Args:
      known: packed plans (`pack_kept`) that have a fitness.
      means: their fitness.
      ses: its standard errors.
      proposals: packed plans to choose from.
      count: how many to pick.

    Returns:
      Indices into `proposals`, best first; empty when there is nothing to learn from.

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
    chosen: list[int] = []
    while len(chosen) < min(count, len(proposals)):
        seen = [*range(num_known), *(num_known + index for index in chosen)]
        expected, variance = _posterior(kernel, seen, values - mean, variances)
        worth = (expected + OPTIMISM * np.sqrt(variance))[num_known:]
        worth[chosen] = -np.inf
        best = int(np.argmax(np.round(worth, 9)))  # rounded: the last bits are the machine's
        values = np.append(values, mean + expected[num_known + best])
        variances = np.append(variances, 1e-4)
        chosen.append(best)
    return chosen


def plan_distances(plans: Sequence[str]) -> Floats:
    """[n, n] shares of kept channels that two packed plans do not have in common.

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
    kernel: Floats, seen: Sequence[int], values: Floats, variances: Floats
) -> tuple[Floats, Floats]:
    """Mean and variance of the process everywhere, given values at the `seen` places."""
    within = kernel[np.ix_(seen, seen)] + np.diag(variances)
    towards = kernel[seen, :]
    solved = np.linalg.solve(within, np.concatenate([values[:, None], towards], axis=1))
    mean = towards.T @ solved[:, 0]
    variance = np.diag(kernel) - np.sum(towards * solved[:, 1:], axis=0)
    return mean, np.maximum(variance, 0.0)


def _log_likelihood(kernel: Floats, variances: Floats, values: Floats) -> float:
    within = kernel + np.diag(variances)
    _, log_determinant = np.linalg.slogdet(within)
    return -0.5 * float(values @ np.linalg.solve(within, values) + log_determinant)
