"""A comparison as plain data: one record per fine-tuned network, and what follows from them per function.

Means and standard errors count bases: draws and repeats are averaged inside a base first. Differences to l2 are
paired: same base, same repeat, so same initial network and data order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

REFERENCE = "l2"
"""The row that every difference is to."""

FORMAT = 1
"""Of the JSON that comparisons and calibrations are stored in; a reader refuses newer ones."""

Kind = Literal["metric", "random", "scratch", "oracle"]
Split = Literal["validation", "test"]
PerBase = dict[int, dict[int, float]]
"""base -> repeat -> accuracy in percent, averaged over draws."""


@dataclass(frozen=True)
class Measurement:
    """One pruned and fine-tuned network.

    Args:
      task: the task's name.
      name: the row's name: a function's, "random", "scratch" or "oracle".
      kind: what planned it: a "metric" (any function), a "random" draw, nothing ("scratch": the slim shape trained
        from a fresh initialisation), or an "oracle" that saw validation accuracies.
      formula: the function as text; "" for the others.
      base: index of the base network.
      draw: number of the random draw; 0 for the others.
      repeat: which data order.
      validation: accuracy after fine-tuning, in percent.
      test: likewise on test images, or None where those were not opened.
      curve: validation accuracies along the fine-tuning in percent, the last one being `validation`.
      seconds: how long the fine-tuning took; equal plans are fine-tuned once and share this number.
      digest: a hash of the first-round plan; "" from scratch.
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
    """A function that is invalid on a task, with the reason; it was not fine-tuned there."""

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
      widths: group -> number of channels of a base network.
      kept: group -> number of channels left after the last round.
      base_accuracies: validation accuracy of every base network before pruning, in percent.
      fingerprint: of data, network, schedule and recipes.
    """

    name: str
    pool: str
    widths: Mapping[str, int]
    kept: Mapping[str, int]
    base_accuracies: tuple[float, ...]
    fingerprint: str = ""


class PairedDifference(NamedTuple):
    """Mean difference of two rows over bases, in points of accuracy."""

    mean: float
    se: float | None
    """Its standard error over bases, or None with fewer than two bases."""
    n: int
    """Number of bases on which both were measured."""


def standard_error(values: Sequence[float]) -> float | None:
    """Standard deviation (dividing by n - 1) over the square root of n; None for fewer than two values.

    Example:
      >>> standard_error([1.0, 3.0])
      1.0
    """
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1 for the lowest; equal values share the mean of theirs.

    Example:
      >>> average_ranks([5.0, 1.0, 5.0]).tolist()
      [2.5, 1.0, 2.5]
    """
    array = np.asarray(values, np.float64)
    below = (array[None, :] < array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    return below + (equal + 1) / 2
