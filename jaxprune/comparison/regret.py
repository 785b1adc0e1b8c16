"""Ranks functions among known ones over several tasks, and tells how far each is behind the best known one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.comparison.measurements import Refused, Split
from jaxprune.comparison.pooled import (
    EQUAL,
    chosen_tasks,
    mean_accuracies,
    refused_rows,
    task_sd,
    with_invalid,
)
from jaxprune.comparison.results import Comparison
from jaxprune.text import markdown_table, with_error


@dataclass(frozen=True)
class RankRow:
    """One row among the known ones, by task.

    Args:
      name: the row.
      ranks: rank on each task among the known rows and itself; 1 is best, and equal rows share their mean rank.
      regrets: accuracy minus that of the best other known row on each task, in sd; None where the row is invalid.
    """

    name: str
    ranks: tuple[float, ...]
    regrets: tuple[float | None, ...]

    @property
    def mean_rank(self) -> float:
        """Mean rank over tasks."""
        return float(np.mean(self.ranks))

    @property
    def mean_regret(self) -> float | None:
        """Mean regret over tasks; None if the row is invalid on one."""
        regrets = self._all_regrets()
        return float(np.mean(regrets)) if regrets else None

    @property
    def worst_regret(self) -> float | None:
        """Smallest regret of any task; None if the row is invalid on one."""
        return min(self._all_regrets(), default=None)

    def _all_regrets(self) -> list[float]:
        """The regrets of all tasks, or none of them if one is missing."""
        regrets = [regret for regret in self.regrets if regret is not None]
        return regrets if len(regrets) == len(self.regrets) else []


@dataclass(frozen=True)
class RankTable:
    """Ranks and regrets of several rows.

    Args:
      tasks: the tasks.
      known: the rows that they are ranked among.
      rows: one per row, lowest mean rank first.
      invalid: which of the rows and of the known ones are invalid on a task, and why.
    """

    tasks: tuple[str, ...]
    known: tuple[str, ...]
    rows: tuple[RankRow, ...]
    invalid: tuple[Refused, ...] = ()

    def to_markdown(self) -> str:
        """Returns one line per row, and under the table what is invalid.

        Example:
          >>> rows = (RankRow("f", (1.0, 2.5), (0.5, -0.25)), RankRow("g", (2.0, 3.0), (-0.5, None)))
          >>> invalid = (Refused("b", "g", "mean(P)/0", "base 0: not finite"),)
          >>> print(RankTable(("a", "b"), ("l1", "l2"), rows, invalid).to_markdown())
          | function | rank, a | rank, b | mean rank | mean regret, sd | worst regret, sd |
          |---|--:|--:|--:|--:|--:|
          | f | 1 | 2.5 | 1.8 | +0.12 | -0.25 |
          | g | 2 | 3 (invalid) | 2.5 | invalid | invalid |
          <BLANKLINE>
          - g: invalid on b, base 0: not finite
        """
        header = [
            "function",
            *(f"rank, {task}" for task in self.tasks),
            "mean rank",
            "mean regret, sd",
            "worst regret, sd",
        ]
        lines = [
            [
                row.name,
                *(
                    f"{rank:g}{' (invalid)' if regret is None else ''}"
                    for rank, regret in zip(row.ranks, row.regrets, strict=True)
                ),
                f"{row.mean_rank:.1f}",
                with_error(row.mean_regret, None, signed=True, decimals=2) or "invalid",
                with_error(row.worst_regret, None, signed=True, decimals=2) or "invalid",
            ]
            for row in self.rows
        ]
        return with_invalid(markdown_table(header, lines), self.invalid)


def ranks(
    comparison: Comparison,
    rows: Sequence[str],
    known: Sequence[str],
    *,
    measure: Split = "validation",
    tasks: Sequence[str] | None = None,
) -> RankTable:
    """Ranks every row among the known ones, task by task, and compares it with the best of the others.

    Rows are ranked by mean accuracy over bases. Only known rows and the row itself count, so other new rows do not
    change a rank. Rows that are invalid on a task share the last ranks there.

    Args:
      comparison: the measurements.
      rows: the rows to rank; they may be known ones.
      known: the rows to rank them among.
      measure: which accuracies to use.
      tasks: the tasks to rank on; None for all.

    Returns:
      The table, lowest mean rank first.

    Raises:
      ValueError: as `standing`.

    Example:
      >>> from jaxprune.comparison.measurements import Measurement
      >>> comparison = Comparison(tuple(
      ...     Measurement("t", name, "metric", name, 0, 0, 0, accuracy, None, (accuracy,), 0.1, "")
      ...     for name, accuracy in {"l2": 80.0, "l1": 82.0, "fdr": 84.0, "new": 83.0}.items()))
      >>> [(row.name, row.ranks, row.regrets) for row in ranks(comparison, ["l1", "new"], ["l2", "l1", "fdr"]).rows]
      [('new', (2.0,), (-0.5,)), ('l1', (2.0,), (-1.0,))]
    """
    names = chosen_tasks(comparison, tasks)
    by_task = {task: mean_accuracies(comparison, task, [*rows, *known], measure) for task in names}
    sds = {task: task_sd(means, known, task) for task, means in by_task.items()}
    ranked = []
    for row in rows:
        positions: list[float] = []
        regrets: list[float | None] = []
        for task, means in by_task.items():
            own, others = means[row], [means[name] for name in dict.fromkeys(known) if name != row]
            best = max(other for other in others if other is not None)
            positions.append(_rank(own, others))
            regrets.append(None if own is None else (own - best) / sds[task])
        ranked.append(RankRow(row, tuple(positions), tuple(regrets)))
    ranked.sort(key=lambda row: (row.mean_rank, math.inf if row.mean_regret is None else -row.mean_regret))
    invalid = [one for task in names for one in refused_rows(comparison, task, [*rows, *known])]
    return RankTable(names, tuple(known), tuple(ranked), tuple(invalid))


def _rank(own: float | None, others: Sequence[float | None]) -> float:
    """The rank of an accuracy among others; None is below every accuracy."""
    value, *rest = (-math.inf if accuracy is None else accuracy for accuracy in (own, *others))
    better = sum(other > value + EQUAL for other in rest)
    equal = sum(other == value or abs(other - value) <= EQUAL for other in rest)
    return 1 + better + equal / 2
