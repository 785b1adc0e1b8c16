"""Who is better, as far as the bases can tell: 95 % intervals, per task and over all tasks."""

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
    """One function against another on some bases.

    Args:
      mean: mean paired difference, in points on one task and in standard deviations of the library overall.
      se: its standard error over bases; None where one base is all there is.
      n: number of bases.
      judgement: what follows.
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
    """How many standard errors a mean must be from 0 to count: the 97.5 % quantile of Student's t.

    Example:
      >>> [round(critical_value(bases - 1), 2) for bases in (3, 5, 8)]
      [4.3, 2.78, 2.36]
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def judged(mean: float, se: float | None, degrees: float) -> Judgement:
    """What a mean difference and its standard error say: it counts when its 95 % interval leaves out 0.

    Args:
      mean: mean paired difference.
      se: its standard error over bases, or None for a single base.
      degrees: degrees of freedom behind the standard error, bases - 1.

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
    """A row against another on one task, in points of accuracy.

    Returns:
      None where `other` is invalid or the images were not opened; "invalid beside" where `name` is invalid.
    """
    rows = comparison.names(task)
    if name not in rows:
        return Verdict(math.nan, None, 0, "invalid beside")
    if other not in rows or (on == "test" and not comparison.by_base(name, task, on="test")):
        return None
    found = comparison.paired(name, other, task, on=on)
    return Verdict(found.mean, found.se, found.n, judged(found.mean, found.se, found.n - 1))


def overall_verdict(
    verdicts: Mapping[str, Verdict | None], tasks: Sequence[TaskInfo], scales: Mapping[str, TaskScale]
) -> Verdict | None:
    """The weighted mean over tasks of differences in standard deviations of the library, as the search combines them.

    Args:
      verdicts: task -> verdict in points.
      tasks: the tasks with their weights.
      scales: task -> its scale, measured on the library at the start of the search.

    Returns:
      None where a task has no verdict; "invalid beside" where the function is invalid on one.

    Example:
      >>> two = {"a": Verdict(2.0, 0.5, 8, "better than"), "b": Verdict(-1.0, 1.0, 5, "not distinguishable from")}
      >>> scale = TaskScale(spread=2.0, base_sd=1.0, reference=80.0)
      >>> overall = overall_verdict(two, [TaskInfo("a"), TaskInfo("b")], {"a": scale, "b": scale})
      >>> overall.mean, overall.n
      (0.25, 13)
    """
    total = sum(task.weight for task in tasks)
    mean, variance, n, spread = 0.0, 0.0, 0, 0.0
    has_se = True
    for task in tasks:
        found = verdicts.get(task.name)
        if found is None or found.judgement == "invalid beside":
            return found
        share = task.weight / total / scales[task.name].spread
        mean += share * found.mean
        has_se = has_se and found.se is not None
        own = (share * (found.se or 0.0)) ** 2
        variance += own
        spread += own**2 / max(found.n - 1, 1)
        n += found.n
    se = math.sqrt(variance) if has_se else None
    # Welch-Satterthwaite: a sum of means with few bases each has few degrees of freedom itself
    degrees = variance**2 / spread if spread > 0 else float(max(n - len(tasks), 1))
    return Verdict(mean, se, n, judged(mean, se, degrees))
