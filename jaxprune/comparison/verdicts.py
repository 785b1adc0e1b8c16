"""Judges which of two functions is better, by 95 % intervals over bases, per task and over all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxprune.comparison.measurements import Split
from jaxprune.comparison.results import Comparison
from jaxprune.search.fitness import TaskScale
from jaxprune.search.problem import TaskInfo

Judgement = Literal["better than", "not distinguishable from", "worse than", "invalid beside"]


@dataclass(frozen=True)
class Verdict:
    """The comparison of one function with another.

    Args:
      mean: mean paired difference, in points on one task and in standard deviations of the library over all tasks.
      se: its standard error over bases; None if there is only one base.
      n: number of bases.
      judgement: the conclusion.
    """

    mean: float
    se: float | None
    n: int
    judgement: Judgement

    def __str__(self) -> str:
        if self.judgement == "invalid beside":
            return "invalid"
        return f"{self.mean:+.2f}" + ("" if self.se is None else f" ± {self.se:.2f}")


def critical_value(degrees: float) -> float:
    """Returns how many standard errors a mean has to be away from 0 to count: the 97.5 % quantile of Student's t.

    Example:
      >>> [round(critical_value(bases - 1), 2) for bases in (3, 5, 8)]
      [4.3, 2.78, 2.36]
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def judged(mean: float, se: float | None, degrees: float) -> Judgement:
    """Judges a mean difference, which counts if its 95 % interval does not contain 0.

    Args:
      mean: mean paired difference.
      se: its standard error over bases, or None for a single base.
      degrees: degrees of freedom of the standard error, bases - 1.

    Example:
      >>> judged(1.0, 0.4, 7), judged(-1.0, 0.4, 4), judged(5.0, None, 0)
      ('better than', 'not distinguishable from', 'not distinguishable from')
    """
    if se is None or degrees <= 0 or abs(mean) <= critical_value(degrees) * se:
        return "not distinguishable from"
    return "better than" if mean > 0 else "worse than"


def task_verdict(
    comparison: Comparison, task: str, name: str, other: str, *, on: Split = "validation"
) -> Verdict | None:
    """Compares two rows on one task, in points of accuracy.

    Args:
      comparison: the measurements.
      task: the task's name.
      name: the row to judge.
      other: the row to compare it with.
      on: which accuracies to compare.

    Returns:
      None if `other` is invalid or the images were not opened; "invalid beside" if `name` is invalid.
    """
    rows = comparison.names(task)
    if name not in rows:
        return Verdict(math.nan, None, 0, "invalid beside")
    if other not in rows or (on == "test" and not comparison.by_base(name, task, on="test")):
        return None
    mean, se, n = comparison.paired(name, other, task, on=on)
    return Verdict(mean, se, n, judged(mean, se, n - 1))


def welch_degrees(variances: Sequence[float], counts: Sequence[int]) -> float:
    """Returns the degrees of freedom of the standard error of a sum of independent means, as Welch-Satterthwaite.

    Means over few bases have uncertain standard errors, and so has their sum.

    Args:
      variances: squared standard error of each term of the sum.
      counts: number of bases behind each.

    Example:
      >>> welch_degrees([0.25, 0.25], [8, 8]), welch_degrees([1.0, 0.0], [8, 8])
      (14.0, 7.0)
    """
    total = sum(variances)
    spread = sum(variance**2 / max(count - 1, 1) for variance, count in zip(variances, counts, strict=True))
    return total**2 / spread if spread > 0 else float(max(sum(counts) - len(counts), 1))


def overall_verdict(
    verdicts: Mapping[str, Verdict | None], tasks: Sequence[TaskInfo], scales: Mapping[str, TaskScale]
) -> Verdict | None:
    """Combines the verdicts on several tasks as the search combines fitness.

    Args:
      verdicts: task -> verdict in points.
      tasks: the tasks with their weights.
      scales: task -> its scale, measured on the library at the start of the search.

    Returns:
      The weighted mean over tasks of the differences, in standard deviations of the library. None if a task has no
      verdict; "invalid beside" if the function is invalid on a task.

    Example:
      >>> two = {"a": Verdict(2.0, 0.5, 8, "better than"), "b": Verdict(-1.0, 1.0, 5, "not distinguishable from")}
      >>> scale = TaskScale(spread=2.0, base_sd=1.0, reference=80.0)
      >>> overall = overall_verdict(two, [TaskInfo("a"), TaskInfo("b")], {"a": scale, "b": scale})
      >>> overall.mean, overall.n
      (0.25, 13)
    """
    total = sum(task.weight for task in tasks)
    mean, variances, counts = 0.0, [], []
    has_se = True
    for task in tasks:
        verdict = verdicts.get(task.name)
        if verdict is None or verdict.judgement == "invalid beside":
            return verdict
        share = task.weight / total / scales[task.name].spread
        mean += share * verdict.mean
        has_se = has_se and verdict.se is not None
        variances.append((share * (verdict.se or 0.0)) ** 2)
        counts.append(verdict.n)
    se = math.sqrt(sum(variances)) if has_se else None
    return Verdict(mean, se, sum(counts), judged(mean, se, welch_degrees(variances, counts)))
