"""Turns accuracies into a fitness: paired differences to l2, averaged over bases and tasks.

The base network that a function is tried on changes its accuracy more than the fine-tuning seed does. Therefore n,
means and standard errors count bases, and every accuracy is compared with that of l2 on the same base with the same
keys. Everything here is a pure function of a table of accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxprune.search.problem import SEARCH_POOL, Prediction, TaskInfo, TrialKey

Results = Mapping[TrialKey, float]
"""Trial key -> validation accuracy in percent, of everything fine-tuned so far."""

Digests = Mapping[str, Sequence[str]]
"""Task name -> one plan digest per search base."""

Joint = Literal["paired", "geometric", "arithmetic"]
"""How results on several tasks become one number."""


@dataclass(frozen=True)
class TaskScale:
    """How much the results on one task vary, measured on the library in generation 0.

    Args:
      spread: standard deviation of the library functions' mean paired differences to l2, in points.
      base_sd: standard deviation of one function's paired difference between bases, pooled over the library.
      reference: mean accuracy of l2 over the normal bases, in percent.
    """

    spread: float
    base_sd: float
    reference: float


@dataclass(frozen=True)
class TaskResult:
    """The results of one candidate on one task.

    Args:
      difference: mean over bases of the paired difference to l2, in points of accuracy.
      se: its standard error over bases, in points; 0 for l2 itself.
      bases: number of bases that the candidate was tried on (n).
      trials: number of fine-tunings behind the mean.
      accuracy: mean validation accuracy over bases, in percent.
    """

    difference: float
    se: float
    bases: int
    trials: int
    accuracy: float


@dataclass(frozen=True)
class Fitness:
    """A mean and its standard error over bases, with the results per task behind them."""

    mean: float
    se: float
    tasks: Mapping[str, TaskResult]

    @property
    def lower(self) -> float:
        """Mean minus standard error, so that a lucky result on few bases does not lead."""
        return self.mean - self.se


def paired_differences(
    results: Results, task: TaskInfo, digests: Digests, reference: Digests
) -> dict[int, tuple[float, float, int]]:
    """Averages a candidate's differences to l2 over the repeats of each base.

    Args:
      results: accuracies in percent by trial key.
      task: the task; normal and extra bases count alike.
      digests: digests of the candidate's plans.
      reference: digests of the plans of l2.

    Returns:
      base -> (mean difference in points, mean accuracy in percent, number of repeats) for every base on which both
      were tried with the same keys.

    Example:
      >>> task = TaskInfo("t", bases=1)
      >>> results = {("t", "search", 0, 0, "f"): 81.0, ("t", "search", 0, 0, "l2"): 80.0}
      >>> paired_differences(results, task, {"t": ["f"]}, {"t": ["l2"]})
      {0: (1.0, 81.0, 1)}
    """
    by_base: dict[int, tuple[float, float, int]] = {}
    for base, digest in enumerate(digests[task.name]):
        differences, accuracies = [], []
        repeat = 0
        while (accuracy := results.get((task.name, SEARCH_POOL, base, repeat, digest))) is not None:
            paired = results.get((task.name, SEARCH_POOL, base, repeat, reference[task.name][base]))
            if paired is not None:
                differences.append(accuracy - paired)
                accuracies.append(accuracy)
            repeat += 1
        if differences:
            by_base[base] = (_mean(differences), _mean(accuracies), len(differences))
    return by_base


def task_scale(results: Results, task: TaskInfo, library: Sequence[Digests], reference: Digests) -> TaskScale:
    """Measures on the library how much functions and bases differ on a task.

    Functions with the same plans count once, and l2 counts as a function of difference 0. If the spread cannot be
    estimated (fewer than two different functions, or no difference at all), it is 1 point, so that fitness stays in
    points. If the variation between bases cannot be estimated (one base), it equals the spread, a cautious guess.

    Args:
      results: accuracies of generation 0, in percent.
      task: the task; only its normal bases count.
      library: digests of the plans of the valid library functions.
      reference: digests of the plans of l2.

    Returns:
      The scale, in points of accuracy.
    """
    distinct = {tuple(digests[task.name][: task.bases]): digests for digests in library}
    means, variances = [], []
    for digests in distinct.values():
        by_base = paired_differences(results, task, digests, reference)
        differences = [by_base[base][0] for base in sorted(by_base) if base < task.bases]
        if differences:
            means.append(_mean(differences))
        if len(differences) > 1 and tuple(digests[task.name]) != tuple(reference[task.name]):
            variances.append(float(np.var(differences, ddof=1)))
    of_l2 = paired_differences(results, task, reference, reference)
    accuracy = _mean([of_l2[base][1] for base in of_l2 if base < task.bases]) if of_l2 else 0.0
    return _scale(means, variances, accuracy)


def fitness_of(
    results: Results,
    tasks: Sequence[TaskInfo],
    scales: Mapping[str, TaskScale],
    digests: Digests,
    reference: Digests,
    joint: Joint = "paired",
) -> Fitness | None:
    """Combines the results of a candidate into one number, as `combined` does.

    Args:
      results: accuracies by trial key, in percent.
      tasks: the tasks with their weights.
      scales: task name -> its scale.
      digests: digests of the candidate's plans.
      reference: digests of the plans of l2.
      joint: how tasks are combined.

    Returns:
      The fitness with its standard error; None if a task has no result yet.

    Example:
      >>> task = TaskInfo("t", bases=1)
      >>> results = {("t", "search", 0, 0, "f"): 83.0, ("t", "search", 0, 0, "l2"): 80.0}
      >>> scales = {"t": TaskScale(spread=2.0, base_sd=1.0, reference=80.0)}
      >>> fitness = fitness_of(results, [task], scales, {"t": ["f"]}, {"t": ["l2"]})
      >>> fitness.mean, fitness.se
      (1.5, 0.5)
    """
    by_task: dict[str, TaskResult] = {}
    for task in tasks:
        by_base = paired_differences(results, task, digests, reference)
        if not by_base:
            return None
        # A base where the plan is l2's own has no noise: its difference is exactly 0.
        num_noisy = sum(digests[task.name][base] != reference[task.name][base] for base in by_base)
        by_task[task.name] = TaskResult(
            difference=_mean([difference for difference, _, _ in by_base.values()]),
            se=scales[task.name].base_sd * math.sqrt(num_noisy) / len(by_base),
            bases=len(by_base),
            trials=sum(repeats for _, _, repeats in by_base.values()),
            accuracy=_mean([accuracy for _, accuracy, _ in by_base.values()]),
        )
    return combined(by_task, tasks, scales, joint)


def predicted_fitness(
    predicted: Mapping[str, Prediction],
    tasks: Sequence[TaskInfo],
    scales: Mapping[str, TaskScale],
    joint: Joint = "paired",
) -> Fitness:
    """Combines what landscapes predict of a candidate into one number, as `combined` does.

    Args:
      predicted: task name -> prediction.
      tasks: the tasks with their weights.
      scales: task name -> its scale.
      joint: how tasks are combined.

    Returns:
      The fitness; its results have 0 fine-tunings behind them.
    """
    by_task = {
        task.name: TaskResult(
            difference=predicted[task.name].difference,
            se=predicted[task.name].se,
            bases=task.bases,
            trials=0,
            accuracy=predicted[task.name].accuracy,
        )
        for task in tasks
    }
    return combined(by_task, tasks, scales, joint)


def predicted_scale(library: Sequence[Prediction], task: TaskInfo, reference: Prediction) -> TaskScale:
    """Measures on predictions for the library how much functions and bases differ on a task, as `task_scale` does.

    Args:
      library: predictions for library functions with different plans, on one task.
      task: the task.
      reference: the prediction for l2.

    Returns:
      The scale, in points of accuracy.
    """
    means = [prediction.difference for prediction in library]
    variances = [task.bases * prediction.se**2 for prediction in library if prediction.se > 0]
    return _scale(means, variances, reference.accuracy)


def mean_of(first: Fitness, second: Fitness) -> Fitness:
    """Returns the mean of a predicted and a measured fitness, with the results and standard error of the second.

    Args:
      first: what was predicted.
      second: what was measured.
    """
    return Fitness((first.mean + second.mean) / 2, second.se, second.tasks)


def combined(
    by_task: Mapping[str, TaskResult],
    tasks: Sequence[TaskInfo],
    scales: Mapping[str, TaskScale],
    joint: Joint,
) -> Fitness:
    """Combines the results on all tasks into one number.

    "paired" is the weighted mean over tasks of the mean difference to l2, divided by the library's spread.
    "geometric" and "arithmetic" are weighted means over tasks of accuracies in percent. There the accuracy is the mean
    of l2 plus the candidate's paired difference, so that a candidate tried on an easy base alone does not win; once
    the candidate was tried on all bases this equals its plain mean.

    Args:
      by_task: task name -> result.
      tasks: the tasks with their weights.
      scales: task name -> its scale.
      joint: how tasks are combined.

    Source:
      The geometric mean is the paper's joint fitness (arXiv 2110.10876, sec. 4); the paired one is ours.
    """
    total = sum(task.weight for task in tasks)
    shares = {task.name: task.weight / total for task in tasks}
    mean, slopes = _mean_and_slopes(by_task, scales, shares, joint)
    se = math.sqrt(sum((slopes[name] * by_task[name].se) ** 2 for name in by_task))
    return Fitness(mean=mean, se=se, tasks=by_task)


def _scale(means: Sequence[float], variances: Sequence[float], accuracy: float) -> TaskScale:
    """Makes a scale of functions' mean differences, of their variances between bases, and of l2's accuracy."""
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
    spread = spread if spread > 0 else 1.0
    return TaskScale(spread, math.sqrt(_mean(variances)) if variances else spread, accuracy)


def _mean(values: Sequence[float]) -> float:
    """Computes the mean of a few numbers without the cost of an array."""
    return sum(values) / len(values)


def _mean_and_slopes(
    by_task: Mapping[str, TaskResult],
    scales: Mapping[str, TaskScale],
    shares: Mapping[str, float],
    joint: Joint,
) -> tuple[float, dict[str, float]]:
    """Computes the combined value, and its derivative with respect to each task's difference."""
    if joint == "paired":
        slopes = {name: shares[name] / scales[name].spread for name in by_task}
        return sum(slopes[name] * by_task[name].difference for name in by_task), slopes
    accuracies = {name: max(scales[name].reference + by_task[name].difference, 1e-6) for name in by_task}
    if joint == "arithmetic":
        return sum(shares[name] * accuracies[name] for name in by_task), dict(shares)
    mean = math.exp(sum(shares[name] * math.log(accuracies[name]) for name in by_task))
    return mean, {name: mean * shares[name] / accuracies[name] for name in by_task}
