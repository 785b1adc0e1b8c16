"""The plain data of a comparison: one record per fine-tuned network, and the facts that a task's rows share.

Means and standard errors count bases: random draws and repeats are averaged within a base first. Differences to l2 are
paired: same base and same repeat, hence same initial network and data order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

REFERENCE = "l2"
"""The row to which all differences are taken."""

FORMAT = 1
"""The version of the JSON that comparisons and calibrations are stored in; newer versions are refused."""

Kind = Literal["metric", "random", "scratch", "oracle"]
Split = Literal["validation", "test"]
PerBase = dict[int, dict[int, float]]
"""base -> repeat -> accuracy in percent, averaged over draws."""


@dataclass(frozen=True)
class Measurement:
    """One pruned and fine-tuned network.

    Args:
      task: the task's name.
      name: the row's name: that of a function, "random", "scratch" or "oracle".
      kind: what made the plan: a "metric" (any function), a "random" draw, nothing ("scratch": the slim network trained
        from a fresh initialisation), or an "oracle" that used validation accuracies.
      formula: the function as text; "" for the other kinds.
      base: index of the base network.
      draw: number of the random draw; 0 for the other kinds.
      repeat: number of the data order.
      validation: validation accuracy after fine-tuning, in percent.
      test: accuracy on test images in percent, or None if those were not opened.
      curve: validation accuracies along the fine-tuning in percent; the last one is `validation`.
      seconds: how long the fine-tuning took; equal plans are fine-tuned once and share this number.
      digest: a hash of the first-round plan; "" for "scratch".
    """

    task: str
    name: str
    kind: Kind
    formula: str
    base: int
    draw: int
    repeat: int
    validation: float
    test: float | None
    curve: tuple[float, ...]
    seconds: float
    digest: str


@dataclass(frozen=True)
class Refused:
    """A function that is invalid on a task and was not fine-tuned there, with the reason."""

    task: str
    name: str
    formula: str
    reason: str


@dataclass(frozen=True)
class TaskFacts:
    """What all rows of a task have in common.

    Args:
      name: the task's name.
      pool: "search" or "final".
      widths: group -> number of channels in a base network.
      kept: group -> number of channels left after the last round.
      base_accuracies: validation accuracy of every base network before pruning, in percent.
      fingerprint: hash of data, network, schedule and recipes.
    """

    name: str
    pool: str
    widths: Mapping[str, int]
    kept: Mapping[str, int]
    base_accuracies: tuple[float, ...]
    fingerprint: str = ""


class PairedDifference(NamedTuple):
    """The mean difference of two rows over bases, in points of accuracy."""

    mean: float
    se: float | None
    """Its standard error over bases, or None with fewer than two bases."""
    n: int
    """Number of bases on which both were measured."""


def standard_error(values: Sequence[float]) -> float | None:
    """Computes the standard deviation (dividing by n - 1) over the square root of n; None for fewer than two values.

    Example:
      >>> standard_error([1.0, 3.0])
      1.0
    """
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
