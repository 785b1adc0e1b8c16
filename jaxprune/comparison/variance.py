"""How much of the spread of accuracies is due to the function, to luck with a base network, and to the seed.

Functions are crossed with bases, and the repeats of a base share their data order between all functions. So an
accuracy is modelled as

    y[f, b, r] = mean + function[f] + base[b] + interaction[f, b] + order[b, r] + seed[f, b, r]

with independent random effects, estimated by the analysis of variance. Only `function` is what a search looks
for; `interaction` and `seed` are noise to it; `base` and `order` are equal for all functions and drop out of
paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.comparison.measurements import average_ranks
from jaxprune.types import Array


@dataclass(frozen=True)
class VarianceComponents:
    """Standard deviations of the parts of an accuracy, all in its units (points).

    Args:
      mean: of everything.
      function_sd: between functions, over all possible bases.
      interaction_sd: function x base: how much luck a function has with a base.
      seed_sd: what differs between repeats for one function and base, less `order_sd`; 0 with one repeat, where it
        cannot be told from the interaction and is part of it.
      base_sd: between bases, equal for all functions.
      order_sd: between the data orders of one base, equal for all functions; 0 with one repeat.
    """

    mean: float
    function_sd: float
    interaction_sd: float
    seed_sd: float
    base_sd: float
    order_sd: float

    def reliability(self, bases: int, repeats: int = 1) -> float:
        """Share of the variance of mean accuracies over `bases` x `repeats` that is due to the function, 0 to 1.

        It is also the expected squared correlation between measured and true means of functions.

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
    """Estimates the components by equating mean squares with their expectations; negative variances become 0.

    Args:
      accuracies: [functions, bases, repeats], complete, in percent.

    Returns:
      The components.

    Raises:
      ValueError: if the array has other than three axes, fewer than two functions or bases, no repeat, or gaps.

    Example:
      >>> found = variance_components(np.array([[[1.0], [3.0]], [[5.0], [7.0]]]))
      >>> round(found.function_sd**2, 6), found.interaction_sd, round(found.base_sd**2, 6)
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
    """Spearman's rank correlation, equal values sharing the mean of their ranks; 0 where one side is constant.

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
    a, b = (ranks - ranks.mean() for ranks in (average_ranks(first), average_ranks(second)))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _squares(deviations: np.ndarray) -> float:
    return float((deviations**2).sum())


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0))
