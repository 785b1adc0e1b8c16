"""Pools several tasks: how far a function is ahead of another on all of them together.

Tasks differ in how much functions matter, so differences are divided by the task's sd first: the standard deviation of
the mean accuracies of known functions. A function that is invalid on a task has no difference there, hence none over
all tasks; tables say so, and why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.comparison.measurements import PairedDifference, Refused, Split
from jaxprune.comparison.results import Comparison
from jaxprune.comparison.verdicts import welch_degrees
from jaxprune.text import markdown_table, with_error

EQUAL = 1e-9
"""Mean accuracies that differ by less are equal; sums of equal numbers may differ in the last digit."""


@dataclass(frozen=True)
class TaskStanding:
    """How far one row is ahead of another on one task.

    Args:
      task: the task's name.
      sd: standard deviation of the known rows' mean accuracies, in points.
      difference: the paired difference in points; None if one of the two rows is invalid on the task.
      invalid: which of the two and of the known rows are invalid on the task, and why.
    """

    task: str
    sd: float
    difference: PairedDifference | None
    invalid: tuple[Refused, ...] = ()

    @property
    def standardised(self) -> PairedDifference | None:
        """The difference in sd of the task instead of points."""
        if self.difference is None:
            return None
        mean, se, n = self.difference
        return PairedDifference(mean / self.sd, None if se is None else se / self.sd, n)


@dataclass(frozen=True)
class Standing:
    """How far one row is ahead of another on several tasks together.

    Args:
      row: the row to judge.
      against: the row that is subtracted.
      tasks: the two rows on each task.
      mean: mean over tasks of the standardised differences; None if a row is invalid on a task.
      se: its standard error; None without a mean, or if a task has a single base.
      p_value: two-sided probability of such a mean, or one farther from 0, between equally good functions, by
        Student's t; None without `se`, or if that is 0 but the mean is not: then nothing tells how much bases vary.
    """

    row: str
    against: str
    tasks: tuple[TaskStanding, ...]
    mean: float | None
    se: float | None
    p_value: float | None


@dataclass(frozen=True)
class StandingTable:
    """Several rows against several others, on the same tasks."""

    standings: tuple[Standing, ...]

    def to_markdown(self) -> str:
        """Returns one line per pair, in points by task and in sd over all tasks, and under the table what is invalid.

        Example:
          >>> a = TaskStanding("a", 2.0, PairedDifference(1.0, 0.5, 8))
          >>> b = TaskStanding("b", 4.0, None, (Refused("b", "f", "mean(P)/0", "base 0: not finite"),))
          >>> print(StandingTable((Standing("f", "l2", (a, b), None, None, None),)).to_markdown())
          | function - reference | a, sd 2.00, points ± SE | b, sd 4.00, points ± SE | all tasks, sd ± SE | p |
          |---|--:|--:|--:|--:|
          | f - l2 | +1.00 ± 0.50 (n = 8) | invalid | invalid |  |
          <BLANKLINE>
          - f: invalid on b, base 0: not finite
        """
        tasks = self.standings[0].tasks if self.standings else ()
        header = [
            "function - reference",
            *(f"{task.task}, sd {task.sd:.2f}, points ± SE" for task in tasks),
            "all tasks, sd ± SE",
            "p",
        ]
        lines = [
            [
                f"{standing.row} - {standing.against}",
                *(_in_points(task.difference) for task in standing.tasks),
                with_error(standing.mean, standing.se, signed=True, decimals=2) or "invalid",
                "" if standing.p_value is None else shown_p(standing.p_value),
            ]
            for standing in self.standings
        ]
        invalid = [
            refused for standing in self.standings for task in standing.tasks for refused in task.invalid
        ]
        return with_invalid(markdown_table(header, lines), invalid)


def standing(
    comparison: Comparison,
    row: str,
    *,
    against: str,
    known: Sequence[str],
    measure: Split = "validation",
    tasks: Sequence[str] | None = None,
) -> Standing:
    """Computes how far a row is ahead of another, by task and pooled over tasks.

    Every task counts alike. Bases of different tasks are trained apart, so the squared standard errors add up. The
    p-value is that of Student's t with Welch-Satterthwaite degrees of freedom, because each error is estimated from few
    bases. The tasks are taken as fixed: it says nothing about tasks that were not measured.

    Args:
      comparison: the measurements.
      row: the row to judge.
      against: the row to subtract.
      known: the rows whose mean accuracies give each task its sd; those that are invalid on a task do not count there.
      measure: which accuracies to use.
      tasks: the tasks to pool; None for all.

    Returns:
      The differences, and their mean in sd.

    Raises:
      ValueError: if there is no task, a row was neither measured nor refused on a task, rows of a task were measured on
        different bases or not on the wanted images, or fewer than two known rows with different means were measured.

    Example:
      >>> from jaxprune.comparison.measurements import Measurement
      >>> def measured(name, base, accuracy):
      ...     return Measurement("t", name, "metric", name, base, 0, 0, accuracy, None, (accuracy,), 0.1, "")
      >>> accuracies = {"l2": (80.0, 70.0), "l1": (84.0, 70.0), "new": (83.0, 75.0)}
      >>> comparison = Comparison(tuple(
      ...     measured(name, base, value) for name, values in accuracies.items() for base, value in enumerate(values)))
      >>> result = standing(comparison, "new", against="l2", known=["l2", "l1"])
      >>> result.tasks[0].difference, round(result.tasks[0].sd, 3), round(result.mean, 3), round(result.se, 3)
      (PairedDifference(mean=4.0, se=1.0, n=2), 1.414, 2.828, 0.707)
    """
    standings = []
    names = [row, against, *known]
    for task in chosen_tasks(comparison, tasks):
        means = mean_accuracies(comparison, task, names, measure)
        is_valid = means[row] is not None and means[against] is not None
        difference = comparison.paired(row, against, task, on=measure) if is_valid else None
        invalid = refused_rows(comparison, task, names)
        standings.append(TaskStanding(task, task_sd(means, known, task), difference, invalid))
    return Standing(row, against, tuple(standings), *_pooled(standings))


def standing_table(
    comparison: Comparison,
    rows: Sequence[str],
    *,
    against: Sequence[str],
    known: Sequence[str],
    measure: Split = "validation",
    tasks: Sequence[str] | None = None,
) -> StandingTable:
    """Computes the standing of every row against every reference but itself.

    Args:
      comparison: the measurements.
      rows: the rows to judge.
      against: the rows to subtract.
      known, measure, tasks: as in `standing`.

    Raises:
      ValueError: as `standing`.
    """
    return StandingTable(
        tuple(
            standing(comparison, row, against=other, known=known, measure=measure, tasks=tasks)
            for row in rows
            for other in against
            if other != row
        )
    )


def chosen_tasks(comparison: Comparison, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the tasks to pool, all those of the comparison for None.

    Raises:
      ValueError: if there is none.
    """
    chosen = comparison.task_names if tasks is None else tuple(tasks)
    if not chosen:
        raise ValueError("pooling needs a task, got none. Pass tasks=None for all that were compared.")
    return chosen


def mean_accuracies(
    comparison: Comparison, task: str, names: Iterable[str], measure: Split
) -> dict[str, float | None]:
    """Averages rows over the bases of a task.

    Args:
      comparison: the measurements.
      task: the task's name.
      names: the rows.
      measure: which accuracies to use.

    Returns:
      row -> accuracy in percent, None for a row that is refused there.

    Raises:
      ValueError: if a row was neither measured nor refused, lacks the wanted accuracies, or has other bases.
    """
    distinct = dict.fromkeys(names)
    invalid = {refused.name for refused in refused_rows(comparison, task, distinct)}
    measured = {name: comparison.by_base(name, task, on=measure) for name in distinct if name not in invalid}
    missing = [name for name, accuracies in measured.items() if not accuracies]
    if missing:
        raise ValueError(
            f"pooling needs {measure} accuracies on task {task!r}, got none for {', '.join(missing)}. "
            "Open the test images when comparing, or use validation accuracies."
        )
    if len({frozenset(accuracies) for accuracies in measured.values()}) > 1:
        bases = ", ".join(f"{name} on {sorted(accuracies)}" for name, accuracies in measured.items())
        raise ValueError(
            f"pooling needs all rows of task {task!r} on the same bases, got {bases}. Measure the missing ones."
        )
    return {
        name: float(np.mean(list(measured[name].values()))) if name in measured else None for name in distinct
    }


def refused_rows(comparison: Comparison, task: str, names: Iterable[str]) -> tuple[Refused, ...]:
    """Returns which of the rows are invalid on a task."""
    wanted = set(names)
    return tuple(one for one in comparison.refused if one.task == task and one.name in wanted)


def task_sd(means: Mapping[str, float | None], known: Iterable[str], task: str) -> float:
    """Computes the standard deviation, dividing by n - 1, of the mean accuracies of known rows.

    Args:
      means: row -> mean accuracy, None for an invalid row, which does not count.
      known: the rows to take.
      task: the task's name, for the message.

    Raises:
      ValueError: if fewer than two known rows with different means were measured.

    Example:
      >>> task_sd({"l1": 80.0, "l2": 84.0, "di": 82.0, "fdr": None, "new": 99.0}, ["l1", "l2", "di", "fdr"], "t")
      2.0
    """
    valid = [mean for name in dict.fromkeys(known) if (mean := means[name]) is not None]
    sd = float(np.std(valid, ddof=1)) if len(valid) > 1 else 0.0
    if sd <= EQUAL:
        raise ValueError(
            f"pooling needs two or more known rows with different mean accuracies on task {task!r}, got "
            f"{len(valid)} measured, with a standard deviation of {sd:g}. Compare more known functions."
        )
    return sd


def with_invalid(table: str, invalid: Iterable[Refused]) -> str:
    """Returns a Markdown table, followed by a list of the invalid rows, each named once, if there are any."""
    lines = dict.fromkeys(f"- {one.name}: invalid on {one.task}, {one.reason}" for one in invalid)
    return "\n".join([table, "", *lines]) if lines else table


def _pooled(standings: Sequence[TaskStanding]) -> tuple[float | None, float | None, float | None]:
    """The mean over tasks of the standardised differences, its standard error and its p-value."""
    differences = [one.standardised for one in standings]
    valid = [difference for difference in differences if difference is not None]
    if len(valid) < len(differences):
        return None, None, None
    mean = float(np.mean([difference.mean for difference in valid]))
    errors = [difference.se for difference in valid if difference.se is not None]
    if len(errors) < len(valid):
        return mean, None, None
    variances = [(se / len(valid)) ** 2 for se in errors]
    se = math.sqrt(sum(variances))
    degrees = welch_degrees(variances, [difference.n for difference in valid])
    return mean, se, _two_sided(mean, se, degrees)


def _two_sided(mean: float, se: float, degrees: float) -> float | None:
    """The probability of a mean at least this far from 0 if it is 0 in truth, by Student's t."""
    from scipy.special import stdtr  # importing it takes long

    if se <= EQUAL:
        return 1.0 if abs(mean) <= EQUAL else None
    return float(2 * stdtr(degrees, -abs(mean) / se))


def _in_points(difference: PairedDifference | None) -> str:
    if difference is None:
        return "invalid"
    return f"{with_error(difference.mean, difference.se, signed=True, decimals=2)} (n = {difference.n})"


def shown_p(p_value: float) -> str:
    """Returns a p-value as tables show it.

    Example:
      >>> shown_p(0.04), shown_p(0.0002)
      ('0.040', '< 0.001')
    """
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
