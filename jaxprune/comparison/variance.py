"""Splits the variance of accuracies into parts due to the function, to luck with a base network, and to the seed.

All functions are tried on all bases, and the repeats of a base share their data order between all functions. So an
accuracy is modelled as

    y[f, b, r] = mean + function[f] + base[b] + interaction[f, b] + order[b, r] + seed[f, b, r]

with independent random effects, estimated by the analysis of variance. A search looks for `function` only;
`interaction` and `seed` are noise to it; `base` and `order` are equal for all functions and cancel in paired
differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.scoring.rank_correlation import rank_correlations
from jaxprune.types import Array


@dataclass(frozen=True)
class VarianceComponents:
    """Standard deviations of the parts of an accuracy, in points.

    Args:
      mean: mean accuracy in percent.
      function_sd: variation between functions, over all possible bases.
      interaction_sd: variation of how well a function does on a base, beyond the means of both.
      seed_sd: variation between repeats of one function on one base, apart from `order_sd`; 0 with one repeat, where it
        cannot be separated from the interaction and is part of it.
      base_sd: variation between bases, equal for all functions.
      order_sd: variation between the data orders of one base, equal for all functions; 0 with one repeat.
    """

    mean: float
    function_sd: float
    interaction_sd: float
    seed_sd: float
    base_sd: float
    order_sd: float

    def reliability(self, bases: int, repeats: int = 1) -> float:
        """Computes the share of the variance of mean accuracies that is due to the function.

        It is also the expected squared correlation between measured and true means of functions.

        Args:
          bases: number of bases that a mean is over, >= 1.
          repeats: number of repeats per base, >= 1.

        Returns:
          A number from 0 to 1; 0 if functions do not differ.

        Raises:
          ValueError: if a number is below 1.

        Example:
          >>> round(VarianceComponents(80.0, 4.6, 3.1, 1.5, 0.0, 0.0).reliability(bases=4), 3)
          0.877
        """
        if bases < 1 or repeats < 1:
            raise ValueError(f"reliability needs bases >= 1 and repeats >= 1, got {bases} and {repeats}.")
        signal = self.function_sd**2
        noise = self.interaction_sd**2 / bases + self.seed_sd**2 / (bases * repeats)
        return signal / (signal + noise) if signal > 0 else 0.0


def variance_components(accuracies: Array) -> VarianceComponents:
    """Estimates the components by equating mean squares with their expectations.

    Negative variances become 0.

    Args:
      accuracies: [functions, bases, repeats], complete, in percent.

    Returns:
      The components.

    Raises:
      ValueError: if the array has other than three axes, fewer than two functions or bases, no repeat, or gaps.

    Example:
      >>> components = variance_components(np.array([[[1.0], [3.0]], [[5.0], [7.0]]]))
      >>> round(components.function_sd**2, 6), components.interaction_sd, round(components.base_sd**2, 6)
      (8.0, 0.0, 2.0)

    Source:
      Searle, Casella, McCulloch, Variance Components, 1992, sec. 4.3; repeats nested in bases.
    """
    y = np.asarray(accuracies, np.float64)
    if y.ndim != 3 or y.shape[0] < 2 or y.shape[1] < 2 or y.shape[2] < 1:
        raise ValueError(
            "variance_components needs accuracies [functions >= 2, bases >= 2, repeats >= 1], "
            f"got shape {y.shape}. Measure more functions or bases."
        )
    if not np.isfinite(y).all():
        raise ValueError(
            f"variance_components needs every function on every base and repeat, got {int((~np.isfinite(y)).sum())} "
            "accuracies that are not finite. Leave out the functions that are invalid somewhere."
        )
    functions, bases, repeats = y.shape
    grand = y.mean()
    by_function = y.mean(axis=(1, 2), keepdims=True)
    by_base = y.mean(axis=(0, 2), keepdims=True)
    by_cell = y.mean(axis=2, keepdims=True)
    by_order = y.mean(axis=0, keepdims=True)
    ms_function = bases * repeats * _squares(by_function - grand) / (functions - 1)
    ms_base = functions * repeats * _squares(by_base - grand) / (bases - 1)
    between = by_cell - by_function - by_base + grand
    ms_interaction = repeats * _squares(between) / ((functions - 1) * (bases - 1))
    ms_seed = ms_order = 0.0
    if repeats > 1:
        ms_order = functions * _squares(by_order - by_base) / (bases * (repeats - 1))
        ms_seed = _squares(y - by_cell - by_order + by_base) / (bases * (functions - 1) * (repeats - 1))
    base = ms_base - ms_interaction - (ms_order - ms_seed if repeats > 1 else 0.0)
    return VarianceComponents(
        mean=float(grand),
        function_sd=_root((ms_function - ms_interaction) / (bases * repeats)),
        interaction_sd=_root((ms_interaction - ms_seed) / repeats),
        seed_sd=_root(ms_seed),
        base_sd=_root(base / (functions * repeats)),
        order_sd=_root((ms_order - ms_seed) / functions),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Computes Spearman's rank correlation, in which equal values share the mean of their ranks.

    Args:
      first: n >= 2 numbers.
      second: n numbers.

    Returns:
      A number from -1 to 1; 0 if all numbers of one sequence are equal.

    Raises:
      ValueError: if the lengths differ or are below 2.

    Example:
      >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
      0.5
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"rank_correlation needs two sequences of one length >= 2, got {len(first)} and {len(second)}."
        )
    correlation = float(rank_correlations(np.array([first, second]))[0, 1])
    return 0.0 if math.isnan(correlation) else correlation


def _squares(deviations: np.ndarray) -> float:
    return float((deviations**2).sum())


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0))
