"""Schedules of iterative pruning: what is kept after each of several rounds of pruning and training."""

from __future__ import annotations

from typing import Literal, get_args

from jaxprune.pruning.targets import checked_fraction
from jaxprune.types import is_whole

Curve = Literal["linear", "cubic"]
"""Whether every round removes equally much, or early rounds remove most of it."""


def round_fractions(
    fraction: float, rounds: int, *, curve: Curve = "cubic", start: float = 1.0
) -> tuple[float, ...]:
    """Returns the fraction of the first network that is kept after each round of iterative pruning.

    After round r of R, `fraction + (start - fraction) * (1 - r / R) ** p` is kept, with p = 1 for linear and p = 3 for
    cubic, where the first rounds, in which channels are plentiful, remove most.

    Args:
      fraction: kept at the end, in (0, 1]: of channels, multiply-adds or parameters.
      rounds: R, at least 1.
      curve: linear or cubic.
      start: kept before the first round, at least `fraction`.

    Returns:
      R fractions of the first network, falling, the last of them `fraction`. A plan is made for the network of its
      round: its budget is a fraction divided by that of the round before.

    Raises:
      ValueError: for fractions outside (0, 1], a start below the end, no round, or an unknown curve.

    Example:
      >>> round_fractions(0.5, 2, curve="linear"), round_fractions(0.2, 2)
      ((0.75, 0.5), (0.3, 0.2))

      A loop of rounds; fractions are taken of what the round before has left, so that rounding does not add up:

      >>> import jax, numpy as np
      >>> from flax import nnx
      >>> import jaxprune as jp
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.hidden, self.head = nnx.Linear(4, 40, rngs=rngs), nnx.Linear(40, 2, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.head(nnx.relu(self.hidden(x)))
      >>> model, example, left = Net(nnx.Rngs(0)), jax.ShapeDtypeStruct((1, 4), "float32"), 1.0
      >>> for fraction in round_fractions(0.25, 3):
      ...     scores = {"hidden.kernel": abs(np.asarray(model.hidden.kernel[...])).sum(0)}  # or jp.score(...)
      ...     plan = jp.plan(model, scores, example, macs_fraction=fraction / left)
      ...     model, left = jp.slim(model, plan), left * plan.budget.met
      ...     # here the smaller model is trained for some epochs
      ...     print(model.hidden.out_features, round(left, 3))
      18 0.45
      11 0.275
      10 0.25

    Source:
      Zhu, Gupta, To Prune, or Not to Prune, 2017, eq. 1, where it is the pruned fraction that rises.
    """
    end, first = checked_fraction("fraction", fraction), checked_fraction("start", start)
    if first < end:
        raise ValueError(
            f"start must be at least fraction, got {start} and {fraction}. Both are fractions that stay."
        )
    if not is_whole(rounds, smallest=1):
        raise ValueError(f"rounds must be a whole number >= 1, got {rounds!r}.")
    if curve not in get_args(Curve):
        raise ValueError(f"curve must be one of {', '.join(get_args(Curve))}, got {curve!r}.")
    power = 1 if curve == "linear" else 3
    return tuple(
        round(end + (first - end) * (1 - number / rounds) ** power, 12) for number in range(1, rounds + 1)
    )
