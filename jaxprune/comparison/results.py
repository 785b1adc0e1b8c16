"""A comparison as a whole: what follows from its measurements per function, as tables, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    average_ranks,
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
      complexity: of the formula; None for a row without one.
      n: number of bases; 0 for a function that is invalid there.
      mean: validation accuracy in percent, None for n = 0, as are the numbers that follow.
      se: its standard error over bases; None for fewer than two bases, as are the other standard errors.
      difference: mean paired difference to l2 in points of accuracy.
      difference_se: its standard error.
      wins, ties, losses: number of bases on which it is better than, equal to, worse than l2.
      test: accuracy on test images in percent, None where those were not opened.
      test_difference: mean paired difference to l2 on test images.
      test_difference_se: its standard error.
      seconds: median time of one fine-tuning.
      reason: why it is invalid, "" where it is valid.
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
    """All that a comparison measured, as plain data.

    Args:
      measurements: one per task, row, base, draw and repeat.
      tasks: what is common to a task's rows.
      refused: functions that are invalid on a task.
      complexities: row name -> complexity of its formula.
      seed: what base networks, data orders and random draws follow from.

    Example:
      >>> def measured(name, base, accuracy):
      ...     return Measurement("t", name, "metric", name, base, 0, 0, accuracy, None, (accuracy,), 0.1, "")
      >>> found = Comparison((measured("l2", 0, 80.0), measured("l2", 1, 70.0),
      ...                     measured("l1", 0, 81.0), measured("l1", 1, 73.0)))
      >>> found.paired("l1", "l2", "t")
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
        """The tasks in the order they were given."""
        found = [each.name for each in self.tasks] + [each.task for each in self.measurements]
        return tuple(dict.fromkeys(found))

    def names(self, task: str) -> tuple[str, ...]:
        """The rows measured on a task, in the order they were given."""
        return tuple(dict.fromkeys(found.name for found in self.measurements if found.task == task))

    def of(self, name: str, task: str) -> tuple[Measurement, ...]:
        """The measurements behind one row.

        Raises:
          ValueError: if there are none.
        """
        found = tuple(each for each in self.measurements if (each.task, each.name) == (task, name))
        if not found:
            refused = [each.reason for each in self.refused if (each.task, each.name) == (task, name)]
            came = (
                f"one that is invalid there: {refused[0]}" if refused else f"neither among {self.names(task)}"
            )
            raise ValueError(f"a comparison needs a row measured on task {task!r}, got {name!r}, {came}.")
        return found

    def by_base(self, name: str, task: str, *, on: Split = "validation") -> dict[int, float]:
        """Base -> accuracy in percent, averaged over draws and repeats; empty where `on` was not measured."""
        per_base = _per_base(self.of(name, task), on)
        return {base: float(np.mean(list(repeats.values()))) for base, repeats in per_base.items()}

    def differences(
        self, name_a: str, name_b: str, task: str, *, on: Split = "validation"
    ) -> dict[int, float]:
        """Base -> accuracy of one row minus that of another in points, averaged over the repeats of both."""
        a, b = _per_base(self.of(name_a, task), on), _per_base(self.of(name_b, task), on)
        found = {
            base: [a[base][repeat] - b[base][repeat] for repeat in a[base].keys() & b[base].keys()]
            for base in sorted(a.keys() & b.keys())
        }
        return {base: float(np.mean(each)) for base, each in found.items() if each}

    def paired(self, name_a: str, name_b: str, task: str, *, on: Split = "validation") -> PairedDifference:
        """Mean of `differences` over bases, with its standard error.

        Raises:
          ValueError: if a row was not measured on the task, or they have no base in common.
        """
        found = list(self.differences(name_a, name_b, task, on=on).values())
        if not found:
            raise ValueError(
                f"{name_a!r} and {name_b!r} need a base in common on {task!r} with {on} accuracy, got none."
            )
        return PairedDifference(float(np.mean(found)), standard_error(found), len(found))

    def ranks(self, task: str) -> dict[str, tuple[float, ...]]:
        """Row -> its rank on every base (1 is best, equal accuracies share their mean rank)."""
        names = self.names(task)
        table = {name: self.by_base(name, task) for name in names}
        bases = sorted(set.intersection(*(set(found) for found in table.values()))) if names else []
        ranked = [average_ranks([-table[name][base] for name in names]) for base in bases]
        return {name: tuple(float(ranks[i]) for ranks in ranked) for i, name in enumerate(names)}

    def summary(self) -> list[SummaryRow]:
        """One row per task and function, best first; controls among them, invalid functions last."""
        rows: list[SummaryRow] = []
        for task in self.task_names:
            measured = [self._row(name, task) for name in self.names(task)]
            rows += sorted(measured, key=lambda row: -(row.mean or 0.0))
            rows += [
                SummaryRow(
                    task,
                    each.name,
                    "metric",
                    each.formula,
                    self.complexities.get(each.name),
                    0,
                    reason=each.reason,
                )
                for each in self.refused
                if each.task == task
            ]
        return rows

    def to_markdown(self) -> str:
        """The summary as Markdown: per task one line of facts and one table."""
        return comparison_table(self)

    def to_csv(self) -> str:
        """Every measurement as one line of CSV, with a header; the curve's points are separated by spaces."""
        text = io.StringIO()
        columns = [each.name for each in dataclasses.fields(Measurement)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for found in self.measurements:
            values = dataclasses.asdict(found) | {"curve": " ".join(str(point) for point in found.curve)}
            writer.writerow(["" if values[name] is None else values[name] for name in columns])
        return text.getvalue()

    def to_dataframe(self) -> pd.DataFrame:
        """Every measurement as a row of a pandas data frame.

        Raises:
          ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('to_dataframe needs pandas: pip install "jaxprune[report]".') from error
        columns = [each.name for each in dataclasses.fields(Measurement)]
        return pd.DataFrame([dataclasses.asdict(found) for found in self.measurements], columns=columns)

    def to_json(self) -> str:
        """The measurements as JSON text, to be read back by `from_json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """A comparison from what `to_json` wrote.

        Raises:
          ValueError: for text that is no comparison, or of a newer format.
        """
        try:
            record = json.loads(text)
            version = int(record["format"])
            if version <= FORMAT:
                return cls(
                    tuple(
                        Measurement(**{**found, "curve": tuple(found["curve"])})
                        for found in record["measurements"]
                    ),
                    tuple(
                        TaskFacts(**{**facts, "base_accuracies": tuple(facts["base_accuracies"])})
                        for facts in record["tasks"]
                    ),
                    tuple(Refused(**each) for each in record["refused"]),
                    record["complexities"],
                    record["seed"],
                )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"needs a comparison as Comparison.to_json writes it, got {text[:60]!r} ({error})."
            ) from error
        raise ValueError(
            f"needs a comparison of format {FORMAT} or older, got {version}. Use a newer jaxprune to read it."
        )

    def _row(self, name: str, task: str) -> SummaryRow:
        found = self.of(name, task)
        accuracies = list(self.by_base(name, task).values())
        tested = list(self.by_base(name, task, on="test").values())
        has_reference = REFERENCE in self.names(task)
        differences = list(self.differences(name, REFERENCE, task).values()) if has_reference else []
        on_test = list(self.differences(name, REFERENCE, task, on="test").values()) if has_reference else []
        return SummaryRow(
            task=task,
            name=name,
            kind=found[0].kind,
            formula=found[0].formula,
            complexity=self.complexities.get(name),
            n=len(accuracies),
            mean=_mean(accuracies),
            se=standard_error(accuracies),
            difference=_mean(differences),
            difference_se=standard_error(differences),
            wins=sum(each > 0 for each in differences),
            ties=sum(each == 0 for each in differences),
            losses=sum(each < 0 for each in differences),
            test=_mean(tested),
            test_difference=_mean(on_test),
            test_difference_se=standard_error(on_test),
            seconds=float(np.median([each.seconds for each in found])),
        )


def comparison_table(comparison: Comparison) -> str:
    """Per task one line of facts and one table, best row first, invalid functions listed below it."""
    parts = []
    for task in comparison.task_names:
        rows = [row for row in comparison.summary() if row.task == task]
        facts = next((each for each in comparison.tasks if each.name == task), None)
        parts.append(
            "\n".join([f"### {task}", "", *([facts_line(facts), ""] if facts else []), _table(rows)])
        )
        invalid = [f"- {row.name}{formula_note(row)}: invalid, {row.reason}" for row in rows if not row.n]
        if invalid:
            parts.append("\n".join(invalid))
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[SummaryRow]) -> str:
    has_test = any(row.test is not None for row in rows)
    header = ["function", "accuracy % ± SE", "bases", f"difference to {REFERENCE} ± SE", "wins/ties/losses"]
    header += ["test %", "test difference ± SE"] if has_test else []
    header += ["complexity", "seconds"]
    cells = []
    for row in rows:
        if row.n:
            difference = with_error(row.difference, row.difference_se, signed=True)
            line = [f"{row.name}{formula_note(row)}", with_error(row.mean, row.se), str(row.n)]
            line += ["", ""] if row.name == REFERENCE else [difference, f"{row.wins}/{row.ties}/{row.losses}"]
            if has_test:
                of_test = with_error(row.test_difference, row.test_difference_se, signed=True)
                line += [with_error(row.test, None), "" if row.name == REFERENCE else of_test]
            line += ["" if row.complexity is None else str(row.complexity), f"{row.seconds or 0.0:.2f}"]
            cells.append(line)
    return markdown_table(header, cells)


def formula_note(row: SummaryRow | Refused) -> str:
    """The formula, where neither is it the name itself nor does the library know it by that name."""
    known = {**library, **own_seeds}.get(row.name)
    is_said = row.formula == row.name or (known is not None and row.formula == str(known))
    return f" `{row.formula}`" if row.formula and not is_said else ""


def facts_line(facts: TaskFacts) -> str:
    """One sentence on what a task's rows have in common."""
    kept = ", ".join(f"{group} {facts.kept[group]} of {width}" for group, width in facts.widths.items())
    mean, low, high = (
        float(each(facts.base_accuracies)) if facts.base_accuracies else float("nan")
        for each in (np.mean, np.min, np.max)
    )
    return (
        f"{len(facts.base_accuracies)} {facts.pool} bases with {mean:.1f} % validation accuracy before pruning "
        f"({low:.1f} to {high:.1f}); channels kept: {kept}. SE and n count bases; differences are paired."
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _per_base(measurements: Sequence[Measurement], on: Split) -> PerBase:
    """Accuracies by base and repeat, averaged over draws; without those that lack the wanted one."""
    cells: dict[tuple[int, int], list[float]] = {}
    for found in measurements:
        value = found.validation if on == "validation" else found.test
        if value is not None:
            cells.setdefault((found.base, found.repeat), []).append(value)
    table: PerBase = {}
    for (base, repeat), values in sorted(cells.items()):
        table.setdefault(base, {})[repeat] = float(np.mean(values))
    return table
