"""What a task can tell about pruning functions: signal, noise and headroom, measured before a search is paid for."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from jaxprune.comparison.functions import named_functions
from jaxprune.comparison.measurements import FORMAT, REFERENCE
from jaxprune.comparison.oracle import Climb, Start, climb, oracle_entry
from jaxprune.comparison.protocol import Planned, complexities, measure_jobs, planned_jobs, task_facts
from jaxprune.comparison.results import Comparison, facts_line, formula_note
from jaxprune.comparison.variance import VarianceComponents, rank_correlation, variance_components
from jaxprune.language.library import library, own_seeds
from jaxprune.scoring.lookup import Function
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.tasks.base_networks import Base, BasePool
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task
from jaxprune.text import markdown_table, with_error

LOW_RELIABILITY = 0.5
"""Below this, a search on the task mostly selects luck."""


@dataclass(frozen=True)
class Calibration:
    """A task's signal, noise and headroom.

    Args:
      comparison: all measurements: functions, random plans, "scratch" and, if asked for, "oracle".
      climbs: how the oracle's plans were found, one per base.
      search_bases: number of bases that a search on the task uses.

    Accuracies are percent on validation images, differences and standard deviations points. Functions with the
    same plans on all bases count once.
    """

    comparison: Comparison
    climbs: tuple[Climb, ...]
    search_bases: int

    @property
    def task(self) -> str:
        """The task's name."""
        return self.comparison.tasks[0].name

    @property
    def bases(self) -> int:
        """Number of bases measured on."""
        return len(self.comparison.tasks[0].base_accuracies)

    @property
    def repeats(self) -> int:
        """Number of fine-tunings per function and base."""
        return 1 + max(found.repeat for found in self.comparison.measurements)

    @cached_property
    def functions(self) -> tuple[str, ...]:
        """Names of the valid functions, the first of those with equal plans (and so accuracies) on all bases."""
        first: dict[tuple[tuple[str, float], ...], str] = {}
        for name in self.comparison.names(self.task):
            found = self.comparison.of(name, self.task)
            if found[0].kind == "metric":
                first.setdefault(tuple((each.digest, each.validation) for each in found), name)
        return tuple(first.values())

    @cached_property
    def means(self) -> dict[str, float]:
        """Row name -> mean accuracy over bases, for every row."""
        names = self.comparison.names(self.task)
        return {
            name: float(np.mean(list(self.comparison.by_base(name, self.task).values()))) for name in names
        }

    @cached_property
    def components(self) -> VarianceComponents | None:
        """The variance components, or None with fewer than two bases or functions."""
        if self.bases < 2 or len(self.functions) < 2:
            return None
        table = np.zeros((len(self.functions), self.bases, self.repeats))
        for i, name in enumerate(self.functions):
            for found in self.comparison.of(name, self.task):
                table[i, found.base, found.repeat] = found.validation
        return variance_components(table)

    @property
    def reliability(self) -> float | None:
        """Of the means measured here."""
        return None if self.components is None else self.components.reliability(self.bases, self.repeats)

    @property
    def search_reliability(self) -> float | None:
        """Of the means that a search sees: `search_bases` bases, one repeat."""
        return None if self.components is None else self.components.reliability(self.search_bases)

    @cached_property
    def base_rank_correlation(self) -> float | None:
        """Mean over pairs of bases of the rank correlation of functions; None with fewer than two of either."""
        if self.bases < 2 or len(self.functions) < 2:
            return None
        by_base = [self.comparison.by_base(name, self.task) for name in self.functions]
        columns = [[found[base] for found in by_base] for base in range(self.bases)]
        return float(np.mean([rank_correlation(a, b) for a, b in combinations(columns, 2)]))

    @property
    def best_function(self) -> str:
        """Name of the function with the highest mean accuracy."""
        return max(self.functions, key=lambda name: self.means[name])

    @property
    def headroom(self) -> float | None:
        """The oracle's mean accuracy minus that of the best function, in points."""
        return self.means["oracle"] - self.means[self.best_function] if "oracle" in self.means else None

    @cached_property
    def shares(self) -> dict[str, float]:
        """Function -> share of the gap between random plans and the oracle that it closes; empty without a gap."""
        if "oracle" not in self.means or "random" not in self.means:
            return {}
        low, gap = self.means["random"], self.means["oracle"] - self.means["random"]
        return {name: (self.means[name] - low) / gap for name in self.functions} if gap > 0 else {}

    @property
    def seconds_per_candidate(self) -> float:
        """Median time of one fine-tuning of a pruned network."""
        return float(
            np.median([each.seconds for each in self.comparison.measurements if each.name != "scratch"])
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why a search on this task may be a waste; empty if nothing speaks against it."""
        found = []
        reliability = self.search_reliability
        if reliability is not None and reliability < LOW_RELIABILITY:
            found.append(
                f"reliability is {reliability:.2f} on {self.search_bases} search bases, below {LOW_RELIABILITY}: "
                "a search would mostly select luck. Use more bases, a longer fine-tuning or a gentler schedule."
            )
        median = float(np.median([self.means[name] for name in self.functions]))
        if "scratch" in self.means and self.means["scratch"] >= median:
            found.append(
                f"training from scratch ({self.means['scratch']:.1f} %) is as good as the median function "
                f"({median:.1f} %): what is pruned hardly matters. Use a gentler schedule or a shorter fine-tuning."
            )
        if "oracle" in self.means and not self.shares:
            found.append(
                "the oracle is no better than random plans: there is nothing to find, or the climb was too short."
            )
        return tuple(found)

    def to_markdown(self) -> str:
        """All of it as Markdown."""
        return calibration_table(self)

    def to_json(self) -> str:
        """The measurements as JSON text, with what follows from them for other readers."""
        components = None if self.components is None else dataclasses.asdict(self.components)
        derived = {
            "components": components,
            "reliability": self.reliability,
            "search_reliability": self.search_reliability,
            "base_rank_correlation": self.base_rank_correlation,
            "headroom": self.headroom,
            "shares": self.shares,
            "seconds_per_candidate": self.seconds_per_candidate,
            "warnings": self.warnings,
        }
        record = {
            "format": FORMAT,
            "comparison": json.loads(self.comparison.to_json()),
            "climbs": [dataclasses.asdict(each) for each in self.climbs],
            "search_bases": self.search_bases,
            "derived": derived,
        }
        return json.dumps(record, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """A calibration from what `to_json` wrote.

        Raises:
          ValueError: for text that is no calibration, or of a newer format.
        """
        try:
            record = json.loads(text)
            comparison = Comparison.from_json(json.dumps(record["comparison"]))
            climbs = tuple(
                Climb(
                    **{
                        **each,
                        "trace": tuple((count, accuracy) for count, accuracy in each["trace"]),
                        "kept": tuple((name, tuple(channels)) for name, channels in each["kept"]),
                    }
                )
                for each in record["climbs"]
            )
            return cls(comparison, climbs, record["search_bases"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"needs a calibration as Calibration.to_json writes it, got {text[:60]!r} ({error})."
            ) from error


def calibrate(
    task: Task,
    *,
    bases: int = 3,
    repeats: int = 2,
    draws: int = 3,
    oracle_evaluations: int = 200,
    functions: Sequence[Function] | Mapping[str, Function] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    on_message: Callable[[str], None] | None = None,
    on_base: Callable[[str, Base], None] | None = None,
    programs: TaskPrograms | None = None,
) -> Calibration:
    """Measures whether a task tells good pruning functions from bad ones, and how much there is to gain.

    Runs on the task's search bases; the final ones stay unseen.

    Args:
      task: the task.
      bases: number of base networks, >= 1; 2 or more for variance components, 3 or more to trust them.
      repeats: fine-tunings per function and base, >= 1; 2 or more tell the seed from the base.
      draws: number of random plans per base, >= 0.
      oracle_evaluations: fine-tunings per base for the oracle's climb; 0 for no oracle.
      functions: what to measure; by default the library and our own seeds. l2 is added.
      seed: base networks, data orders, random plans and the climb follow from it.
      folder: where trained bases are kept; None trains them anew.
      on_message: told what is going on, one line at a time.
      on_base: told (task name, base) about each base that is ready.
      programs: the task's compiled machinery, to use instead of compiling it anew.

    Returns:
      The calibration; `.to_markdown()` shows it.

    Raises:
      ValueError: for numbers out of range or unknown functions.
    """
    lowest = {"bases": (bases, 1), "repeats": (repeats, 1), "draws": (draws, 0)}
    lowest["oracle_evaluations"] = (oracle_evaluations, 0)
    bad = [f"{name} >= {low} (got {value})" for name, (value, low) in lowest.items() if value < low]
    if bad:
        raise ValueError(f"calibrate needs {', '.join(bad)}.")
    say = on_message or (lambda message: None)
    rows = named_functions({**library, **own_seeds} if functions is None else functions)
    pool = BasePool(
        programs or TaskPrograms(task),
        seed,
        "search",
        bases,
        folder=folder,
        on_base=on_base or (lambda name, base: None),
    )
    say(f"{task.name}: {bases} base networks")
    jobs, refused = planned_jobs(pool, rows, draws=draws, repeats=repeats, with_scratch=True)
    say(f"{task.name}: {len(jobs)} fine-tunings of {len(rows) - len(refused)} functions and the controls")
    measurements = measure_jobs(pool, jobs)
    found = Comparison(tuple(measurements), (task_facts(pool),), tuple(refused), complexities(rows), seed)
    climbs: dict[int, Climb] = {}
    if oracle_evaluations:
        starts = {base: _best_start(found, jobs, rows, base) for base in range(bases)}
        climbs = climb(pool, starts, evaluations=oracle_evaluations, repeat=repeats, on_message=say)
        checks = [
            Planned(
                "oracle",
                "oracle",
                "",
                oracle_entry(pool, starts[base], base, repeat, climbs[base].kept),
                climbs[base].kept,
            )
            for base in range(bases)
            for repeat in range(repeats)
        ]
        measurements += measure_jobs(pool, checks)
    return Calibration(
        dataclasses.replace(found, measurements=tuple(measurements)), tuple(climbs.values()), task.bases
    )


def task_rank_correlations(calibrations: Sequence[Calibration]) -> dict[tuple[str, str], float]:
    """Rank correlation of functions between each two tasks, over the functions that both measured.

    Args:
      calibrations: of different tasks.

    Returns:
      (task, task) -> correlation of mean accuracies; pairs with fewer than two functions in common are left out.
    """
    found = {}
    for first, second in combinations(calibrations, 2):
        common = [name for name in first.means if name in second.means and name in first.functions]
        if len(common) > 1:
            found[first.task, second.task] = rank_correlation(
                [first.means[name] for name in common], [second.means[name] for name in common]
            )
    return found


def _best_start(
    comparison: Comparison, jobs: Sequence[Planned], rows: Mapping[str, PruningFunction], base: int
) -> Start:
    """The plan of the function with the highest accuracy on a base, averaged over repeats."""
    task = comparison.tasks[0].name
    kept = {job.name: job.kept for job in jobs if job.kind == "metric" and job.entry.base == base}
    best = max(kept, key=lambda name: comparison.by_base(name, task)[base])
    plan = kept[best]
    assert plan is not None
    return Start(best, plan, rows[best])


def calibration_table(calibration: Calibration) -> str:
    """Warnings, signal and noise, the accuracy table with the share of the gap each function closes, the climbs."""
    facts = calibration.comparison.tasks[0]
    parts = [f"## Calibration of {calibration.task}", facts_line(facts)]
    parts += [f"**Warning:** {warning}" for warning in calibration.warnings]
    parts.append(markdown_table(["what", "value"], _measured(calibration)))
    header = ["function", "accuracy % ± SE", *(f"base {base}" for base in range(calibration.bases))]
    header += [f"difference to {REFERENCE} ± SE", "share of the gap"]
    rows = []
    for row in calibration.comparison.summary():
        if row.n:
            by_base = calibration.comparison.by_base(row.name, row.task)
            line = [f"{row.name}{formula_note(row)}", with_error(row.mean, row.se)]
            line += [with_error(by_base.get(base), None) for base in range(calibration.bases)]
            is_reference = row.name == REFERENCE
            line.append("" if is_reference else with_error(row.difference, row.difference_se, signed=True))
            share = calibration.shares.get(row.name)
            rows.append([*line, "" if share is None else f"{100 * share:.0f} %"])
    parts.append(markdown_table(header, rows))
    invalid = [
        f"- {row.name}{formula_note(row)}: invalid, {row.reason}" for row in calibration.comparison.refused
    ]
    parts += ["\n".join(invalid)] if invalid else []
    if calibration.climbs:
        climbed = "; ".join(
            f"base {each.base}: from {each.start}, {each.trace[0][1]:.1f} to {each.trace[-1][1]:.1f} % "
            f"in {each.evaluations} evaluations"
            for each in calibration.climbs
        )
        parts.append(
            f"Oracle climbs, under keys of their own ({climbed}). The table has the oracle's plans under the "
            "functions' keys; it is an upper bound, chosen on the validation images."
        )
    return "\n\n".join(parts) + "\n"


def _measured(calibration: Calibration) -> list[list[str]]:
    """The numbers of a calibration, one per line."""
    found = calibration.components
    rows = []
    if found is not None:
        with_seed = "" if calibration.repeats > 1 else ", seed included"
        rows += [
            ["SD between functions", f"{found.function_sd:.1f} points"],
            [f"SD function x base{with_seed}", f"{found.interaction_sd:.1f} points"],
            ["SD seed", f"{found.seed_sd:.1f} points" if calibration.repeats > 1 else "needs 2 repeats"],
            ["SD between bases (equal for all functions)", f"{found.base_sd:.1f} points"],
            ["SD data order (equal for all functions)", f"{found.order_sd:.1f} points"],
            [
                f"reliability here ({calibration.bases} bases x {calibration.repeats})",
                f"{calibration.reliability:.2f}",
            ],
            [
                f"reliability in a search ({calibration.search_bases} bases x 1)",
                f"{calibration.search_reliability:.2f}",
            ],
            ["rank correlation between bases", f"{calibration.base_rank_correlation:.2f}"],
        ]
    if calibration.headroom is not None:
        best = calibration.best_function
        rows.append([f"headroom: oracle minus best function ({best})", f"{calibration.headroom:+.1f} points"])
    return [*rows, ["seconds a candidate and base", f"{calibration.seconds_per_candidate:.2f}"]]
