"""The results of a comparison: what follows from its measurements per function, as tables, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import numpy as np

from jaxprune.comparison.measurements import (
    FORMAT,
    REFERENCE,
    Kind,
    Measurement,
    PairedDifference,
    PerBase,
    Refused,
    Split,
    TaskFacts,
    standard_error,
)
from jaxprune.language.library import library, own_seeds
from jaxprune.text import markdown_table, with_error

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SummaryRow:
    """One row of the table: a function on a task.

    Args:
      task: the task's name.
      name: the row's name.
      kind: see `Measurement`.
      formula: the function as text, "" for a row without one.
      complexity: complexity of the formula; None for a row without one.
      n: number of bases; 0 for a function that is invalid on the task.
      mean: validation accuracy in percent. It is None if n = 0, and so are the numbers that follow.
      se: its standard error over bases. It is None for fewer than two bases, and so are the other standard errors.
      difference: mean paired difference to l2 in points of accuracy.
      difference_se: its standard error.
      wins, ties, losses: number of bases on which it is better than, equal to, worse than l2.
      test: accuracy on test images in percent, None if those were not opened.
      test_difference: mean paired difference to l2 on test images.
      test_difference_se: its standard error.
      seconds: median time of one fine-tuning.
      reason: why the function is invalid, "" if it is valid.
    """

    task: str
    name: str
    kind: Kind
    formula: str
    complexity: int | None
    n: int
    mean: float | None = None
    se: float | None = None
    difference: float | None = None
    difference_se: float | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    test: float | None = None
    test_difference: float | None = None
    test_difference_se: float | None = None
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison measured, as plain data.

    Args:
      measurements: one per task, row, base, draw and repeat.
      tasks: what the rows of each task have in common.
      refused: functions that are invalid on a task.
      complexities: row name -> complexity of its formula.
      seed: determines base networks, data orders and random draws.

    Example:
      >>> def measured(name, base, accuracy):
      ...     return Measurement("t", name, "metric", name, base, 0, 0, accuracy, None, (accuracy,), 0.1, "")
      >>> comparison = Comparison((measured("l2", 0, 80.0), measured("l2", 1, 70.0),
      ...                          measured("l1", 0, 81.0), measured("l1", 1, 73.0)))
      >>> comparison.paired("l1", "l2", "t")
      PairedDifference(mean=2.0, se=1.0, n=2)
    """

    measurements: tuple[Measurement, ...]
    tasks: tuple[TaskFacts, ...] = ()
    refused: tuple[Refused, ...] = ()
    complexities: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    @property
    def base_accuracies(self) -> dict[str, tuple[float, ...]]:
        """Task name -> validation accuracy of every base network before pruning, in percent."""
        return {facts.name: facts.base_accuracies for facts in self.tasks}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks in the order in which they were given."""
        names = [facts.name for facts in self.tasks] + [measurement.task for measurement in self.measurements]
        return tuple(dict.fromkeys(names))

    def names(self, task: str) -> tuple[str, ...]:
        """Returns the names of the rows measured on a task, in the order in which they were given."""
        return tuple(
            dict.fromkeys(measurement.name for measurement in self.measurements if measurement.task == task)
        )

    def of(self, name: str, task: str) -> tuple[Measurement, ...]:
        """Returns the measurements of one row on one task.

        Raises:
          ValueError: if there are none.
        """
        measurements = tuple(
            measurement
            for measurement in self.measurements
            if (measurement.task, measurement.name) == (task, name)
        )
        if not measurements:
            reasons = [
                refused.reason for refused in self.refused if (refused.task, refused.name) == (task, name)
            ]
            came = (
                f"one that is invalid there: {reasons[0]}" if reasons else f"neither among {self.names(task)}"
            )
            raise ValueError(f"a comparison needs a row measured on task {task!r}, got {name!r}, {came}.")
        return measurements

    def by_base(self, name: str, task: str, *, on: Split = "validation") -> dict[int, float]:
        """Averages the accuracies of a row over draws and repeats.

        Args:
          name: the row.
          task: the task.
          on: which accuracies to use.

        Returns:
          base -> accuracy in percent; empty if `on` was not measured.

        Raises:
          ValueError: if the row was not measured on the task.
        """
        per_base = _per_base(self.of(name, task), on)
        return {base: float(np.mean(list(repeats.values()))) for base, repeats in per_base.items()}

    def differences(
        self, name_a: str, name_b: str, task: str, *, on: Split = "validation"
    ) -> dict[int, float]:
        """Computes the differences between two rows, averaged over the repeats that both have.

        Args:
          name_a: the first row.
          name_b: the row to subtract.
          task: the task.
          on: which accuracies to use.

        Returns:
          base -> difference in points, for the bases that both have.

        Raises:
          ValueError: if a row was not measured on the task.
        """
        a, b = _per_base(self.of(name_a, task), on), _per_base(self.of(name_b, task), on)
        by_base = {
            base: [a[base][repeat] - b[base][repeat] for repeat in a[base].keys() & b[base].keys()]
            for base in sorted(a.keys() & b.keys())
        }
        return {base: float(np.mean(values)) for base, values in by_base.items() if values}

    def paired(self, name_a: str, name_b: str, task: str, *, on: Split = "validation") -> PairedDifference:
        """Averages `differences` over bases.

        Args:
          name_a: the first row.
          name_b: the row to subtract.
          task: the task.
          on: which accuracies to use.

        Returns:
          The mean with its standard error and the number of bases.

        Raises:
          ValueError: if a row was not measured on the task, or if they have no base in common.
        """
        differences = list(self.differences(name_a, name_b, task, on=on).values())
        if not differences:
            raise ValueError(
                f"{name_a!r} and {name_b!r} need a base in common on {task!r} with {on} accuracy, got none."
            )
        return PairedDifference(float(np.mean(differences)), standard_error(differences), len(differences))

    def ranks(self, task: str) -> dict[str, tuple[float, ...]]:
        """Returns for every row its rank on each base; 1 is best, and equal accuracies share their mean rank."""
        from scipy.stats import rankdata  # importing it takes most of a second

        names = self.names(task)
        accuracies = [self.by_base(name, task) for name in names]
        bases = sorted(set.intersection(*map(set, accuracies))) if names else []
        ranked = [rankdata([-by_base[base] for by_base in accuracies]) for base in bases]
        return {name: tuple(float(ranks[i]) for ranks in ranked) for i, name in enumerate(names)}

    def summary(self) -> list[SummaryRow]:
        """Returns one row per task and function: measured ones best first, controls among them, then invalid ones."""
        rows: list[SummaryRow] = []
        for task in self.task_names:
            measured = [self._summary_row(name, task) for name in self.names(task)]
            rows += sorted(measured, key=lambda row: -(row.mean or 0.0))
            for refused in self.refused:
                if refused.task == task:
                    name, formula, complexity = (
                        refused.name,
                        refused.formula,
                        self.complexities.get(refused.name),
                    )
                    rows.append(
                        SummaryRow(task, name, "metric", formula, complexity, 0, reason=refused.reason)
                    )
        return rows

    def to_markdown(self) -> str:
        """Returns the summary as Markdown: per task one line of facts, one table, and the invalid functions."""
        summary = self.summary()
        parts = []
        for task in self.task_names:
            rows = [row for row in summary if row.task == task]
            facts = next((facts for facts in self.tasks if facts.name == task), None)
            description = [] if facts is None else [facts_line(facts), ""]
            parts.append("\n".join([f"### {task}", "", *description, _table(rows)]))
            parts += ["\n".join(invalid)] if (invalid := invalid_lines(rows)) else []
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Returns every measurement as one line of CSV, after a header; spaces separate the points of a curve."""
        text = io.StringIO()
        columns = [column.name for column in dataclasses.fields(Measurement)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for measurement in self.measurements:
            curve = " ".join(str(accuracy) for accuracy in measurement.curve)
            values = dataclasses.asdict(measurement) | {"curve": curve}
            writer.writerow(["" if values[name] is None else values[name] for name in columns])
        return text.getvalue()

    def to_dataframe(self) -> pd.DataFrame:
        """Returns every measurement as a row of a pandas data frame.

        Raises:
          ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('to_dataframe needs pandas: pip install "jaxprune[report]".') from error
        columns = [column.name for column in dataclasses.fields(Measurement)]
        return pd.DataFrame(
            [dataclasses.asdict(measurement) for measurement in self.measurements], columns=columns
        )

    def to_json(self) -> str:
        """Returns the measurements as JSON text for `from_json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Reads a comparison that `to_json` wrote.

        Raises:
          ValueError: if the text is not a comparison, or of a newer format.
        """
        try:
            plain = json.loads(text)
            version = int(plain["format"])
            if version <= FORMAT:
                return cls(
                    tuple(
                        Measurement(**{**measurement, "curve": tuple(measurement["curve"])})
                        for measurement in plain["measurements"]
                    ),
                    tuple(
                        TaskFacts(**{**facts, "base_accuracies": tuple(facts["base_accuracies"])})
                        for facts in plain["tasks"]
                    ),
                    tuple(Refused(**refused) for refused in plain["refused"]),
                    plain["complexities"],
                    plain["seed"],
                )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"needs a comparison as Comparison.to_json writes it, got {text[:60]!r} ({error})."
            ) from error
        raise ValueError(
            f"needs a comparison of format {FORMAT} or older, got {version}. Use a newer jaxprune to read it."
        )

    def _summary_row(self, name: str, task: str) -> SummaryRow:
        measurements = self.of(name, task)
        accuracies = list(self.by_base(name, task).values())
        on_test = list(self.by_base(name, task, on="test").values())
        has_reference = REFERENCE in self.names(task)
        differences, test_differences = (
            list(self.differences(name, REFERENCE, task, on=on).values()) if has_reference else []
            for on in get_args(Split)
        )
        return SummaryRow(
            task=task,
            name=name,
            kind=measurements[0].kind,
            formula=measurements[0].formula,
            complexity=self.complexities.get(name),
            n=len(accuracies),
            mean=_mean(accuracies),
            se=standard_error(accuracies),
            difference=_mean(differences),
            difference_se=standard_error(differences),
            wins=sum(difference > 0 for difference in differences),
            ties=sum(difference == 0 for difference in differences),
            losses=sum(difference < 0 for difference in differences),
            test=_mean(on_test),
            test_difference=_mean(test_differences),
            test_difference_se=standard_error(test_differences),
            seconds=float(np.median([measurement.seconds for measurement in measurements])),
        )


def facts_line(facts: TaskFacts) -> str:
    """Describes in one sentence what a task's rows have in common."""
    kept = ", ".join(f"{group} {facts.kept[group]} of {width}" for group, width in facts.widths.items())
    accuracies = facts.base_accuracies or (float("nan"),)
    return (
        f"{len(facts.base_accuracies)} {facts.pool} bases with {np.mean(accuracies):.1f} % validation accuracy before "
        f"pruning ({min(accuracies):.1f} to {max(accuracies):.1f}); channels kept: {kept}. SE and n count bases; "
        "differences are paired."
    )


def invalid_lines(rows: Sequence[SummaryRow]) -> list[str]:
    """Lists the invalid functions among the rows, one Markdown line each, with their reasons."""
    return [f"- {titled(row)}: invalid, {row.reason}" for row in rows if not row.n]


def titled(row: SummaryRow) -> str:
    """Returns the row's name, followed by the formula if the name is neither the formula nor known to stand for it."""
    known = {**library, **own_seeds}.get(row.name)
    is_clear = row.formula == row.name or (known is not None and row.formula == str(known))
    return row.name + (f" `{row.formula}`" if row.formula and not is_clear else "")


def _table(rows: Sequence[SummaryRow]) -> str:
    has_test = any(row.test is not None for row in rows)
    header = ["function", "accuracy % ± SE", "bases", f"difference to {REFERENCE} ± SE", "wins/ties/losses"]
    header += ["test %", "test difference ± SE"] if has_test else []
    header += ["complexity", "seconds"]
    cells = []
    for row in rows:
        if row.n:
            is_reference = row.name == REFERENCE
            difference = with_error(row.difference, row.difference_se, signed=True)
            line = [titled(row), with_error(row.mean, row.se), str(row.n)]
            line += ["", ""] if is_reference else [difference, f"{row.wins}/{row.ties}/{row.losses}"]
            if has_test:
                test_difference = with_error(row.test_difference, row.test_difference_se, signed=True)
                line += [with_error(row.test, None), "" if is_reference else test_difference]
            line += ["" if row.complexity is None else str(row.complexity), f"{row.seconds or 0.0:.2f}"]
            cells.append(line)
    return markdown_table(header, cells)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _per_base(measurements: Sequence[Measurement], on: Split) -> PerBase:
    """Groups accuracies by base and repeat, averaged over draws; leaves out measurements without the wanted one."""
    by_condition: dict[tuple[int, int], list[float]] = {}
    for measurement in measurements:
        accuracy = measurement.validation if on == "validation" else measurement.test
        if accuracy is not None:
            by_condition.setdefault((measurement.base, measurement.repeat), []).append(accuracy)
    table: PerBase = {}
    for (base, repeat), accuracies in sorted(by_condition.items()):
        table.setdefault(base, {})[repeat] = float(np.mean(accuracies))
    return table
