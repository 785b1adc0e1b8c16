"""A comparison as plain data: one record per fine-tuned network, and what follows from them per function.

Means and standard errors count bases: draws and repeats are averaged inside a base first. Differences to l2 are
paired: same base, same repeat, so same initial network and data order.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "l2"
"""The row that every difference is to."""

FORMAT = 1

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
        from jaxprune.comparison.results import comparison_table  # it reads this module's records

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
