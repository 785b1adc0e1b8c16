"""Calibrates a task: measures signal, noise and headroom for pruning functions before a search is paid for."""

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
from jaxprune.comparison.landscape_quality import LandscapeQuality, check_plans, measure_landscape_quality
from jaxprune.comparison.measurements import FORMAT, REFERENCE
from jaxprune.comparison.oracle import Climb, Start, climb, oracle_entry
from jaxprune.comparison.protocol import (
    RowEntry,
    check_counts,
    complexities,
    measure,
    row_entries,
    task_facts,
)
from jaxprune.comparison.results import Comparison, facts_line, invalid_lines, titled
from jaxprune.comparison.training_checks import check_one_process
from jaxprune.comparison.variance import VarianceComponents, rank_correlation, variance_components
from jaxprune.language.library import library, own_seeds
from jaxprune.scoring.lookup import Function
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.tasks.base_networks import Base, BasePool
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task
from jaxprune.text import markdown_table, with_error

LOW_RELIABILITY = 0.5
"""Below this reliability, a search on the task mostly selects luck."""


@dataclass(frozen=True)
class Calibration:
    """A task's signal, noise and headroom.

    Accuracies are in percent on validation images, differences and standard deviations in points. Functions with the
    same plans on all bases count once.

    Args:
      comparison: all measurements: functions, random plans, "scratch" and, if asked for, "oracle".
      climbs: how the oracle's plans were found, one per base.
      search_bases: number of bases that a search on the task uses.
      landscape: how well a landscape, the default fitness of `evolve`, predicts on the task; None if not measured.
    """

    comparison: Comparison
    climbs: tuple[Climb, ...]
    search_bases: int
    landscape: LandscapeQuality | None = None

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
        return 1 + max(measurement.repeat for measurement in self.comparison.measurements)

    @cached_property
    def functions(self) -> tuple[str, ...]:
        """Names of the valid functions; of those with equal plans (and so accuracies) on all bases, the first."""
        first: dict[tuple[tuple[str, float], ...], str] = {}
        for name in self.comparison.names(self.task):
            measurements = self.comparison.of(name, self.task)
            if measurements[0].kind == "metric":
                first.setdefault(
                    tuple((measurement.digest, measurement.validation) for measurement in measurements), name
                )
        return tuple(first.values())

    @property
    def accuracies(self) -> np.ndarray:
        """[functions, bases, repeats] accuracies of the functions."""
        table = np.zeros((len(self.functions), self.bases, self.repeats))
        for i, name in enumerate(self.functions):
            for measurement in self.comparison.of(name, self.task):
                table[i, measurement.base, measurement.repeat] = measurement.validation
        return table

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
        return variance_components(self.accuracies)

    @property
    def reliability(self) -> float | None:
        """Reliability of the means measured here."""
        return None if self.components is None else self.components.reliability(self.bases, self.repeats)

    @property
    def search_reliability(self) -> float | None:
        """Reliability of the means that a search sees, on `search_bases` bases with one repeat."""
        return None if self.components is None else self.components.reliability(self.search_bases)

    @cached_property
    def base_rank_correlation(self) -> float | None:
        """Mean over pairs of bases of the rank correlation of functions; None with fewer than two of either."""
        if self.bases < 2 or len(self.functions) < 2:
            return None
        by_base = [self.comparison.by_base(name, self.task) for name in self.functions]
        columns = [[accuracies[base] for accuracies in by_base] for base in range(self.bases)]
        return float(np.mean([rank_correlation(a, b) for a, b in combinations(columns, 2)]))

    @property
    def best_function(self) -> str:
        """Name of the function with the highest mean accuracy."""
        return max(self.functions, key=lambda name: self.means[name])

    @property
    def headroom(self) -> float | None:
        """The oracle's mean accuracy minus that of the best function, in points; None without an oracle."""
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
            np.median(
                [
                    measurement.seconds
                    for measurement in self.comparison.measurements
                    if measurement.name != "scratch"
                ]
            )
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why a search on this task may be a waste; empty if there are none."""
        warnings = []
        reliability = self.search_reliability
        if reliability is not None and reliability < LOW_RELIABILITY:
            warnings.append(
                f"reliability is {reliability:.2f} on {self.search_bases} search bases, below {LOW_RELIABILITY}: "
                "a search would mostly select luck. Use more bases, a longer fine-tuning or a gentler schedule."
            )
        median = float(np.median([self.means[name] for name in self.functions]))
        if "scratch" in self.means and self.means["scratch"] >= median:
            warnings.append(
                f"training from scratch ({self.means['scratch']:.1f} %) is as good as the median function "
                f"({median:.1f} %): what is pruned hardly matters. Use a gentler schedule or a shorter fine-tuning."
            )
        if "oracle" in self.means and not self.shares:
            warnings.append(
                "the oracle is no better than random plans: there is nothing to find, or the climb was too short."
            )
        return (*warnings, *(self.landscape.warnings if self.landscape else ()))

    def to_markdown(self) -> str:
        """Returns Markdown: warnings, signal and noise, accuracies with the share of the gap, and the climbs."""
        summary = self.comparison.summary()
        parts = [f"## Calibration of {self.task}", facts_line(self.comparison.tasks[0])]
        parts += [f"**Warning:** {warning}" for warning in self.warnings]
        parts.append(markdown_table(["what", "value"], _noise_rows(self)))
        header = ["function", "accuracy % ± SE", *(f"base {base}" for base in range(self.bases))]
        header += [f"difference to {REFERENCE} ± SE", "share of the gap"]
        rows = []
        for row in summary:
            if row.n:
                by_base = self.comparison.by_base(row.name, row.task)
                cells = [titled(row), with_error(row.mean, row.se)]
                cells += [with_error(by_base.get(base), None) for base in range(self.bases)]
                difference = with_error(row.difference, row.difference_se, signed=True)
                share = self.shares.get(row.name)
                cells.append("" if row.name == REFERENCE else difference)
                rows.append([*cells, "" if share is None else f"{100 * share:.0f} %"])
        parts.append(markdown_table(header, rows))
        parts += ["\n".join(invalid)] if (invalid := invalid_lines(summary)) else []
        if self.climbs:
            climbs = "; ".join(
                f"base {climb.base}: from {climb.start}, {climb.trace[0][1]:.1f} to {climb.trace[-1][1]:.1f} % "
                f"in {climb.evaluations} evaluations"
                for climb in self.climbs
            )
            parts.append(
                f"Oracle climbs, under keys of their own ({climbs}). The table has the oracle's plans under the "
                "functions' keys; it is an upper bound, chosen on the validation images."
            )
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """Returns the measurements as JSON text, with derived numbers for other readers."""
        derived = {
            "components": None if self.components is None else dataclasses.asdict(self.components),
            "reliability": self.reliability,
            "search_reliability": self.search_reliability,
            "base_rank_correlation": self.base_rank_correlation,
            "headroom": self.headroom,
            "shares": self.shares,
            "seconds_per_candidate": self.seconds_per_candidate,
            "warnings": self.warnings,
        }
        plain = {
            "format": FORMAT,
            "comparison": json.loads(self.comparison.to_json()),
            "climbs": [dataclasses.asdict(climb) for climb in self.climbs],
            "search_bases": self.search_bases,
            "landscape": None if self.landscape is None else dataclasses.asdict(self.landscape),
            "derived": derived,
        }
        return json.dumps(plain, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Reads a calibration that `to_json` wrote.

        Raises:
          ValueError: if the text is not a calibration, or of a newer format.
        """
        try:
            plain = json.loads(text)
            comparison = Comparison.from_json(json.dumps(plain["comparison"]))
            climbs = []
            for climb in plain["climbs"]:
                trace = tuple((count, accuracy) for count, accuracy in climb["trace"])
                kept = tuple((name, tuple(channels)) for name, channels in climb["kept"])
                climbs.append(Climb(**{**climb, "trace": trace, "kept": kept}))
            written = plain.get("landscape")  # earlier versions wrote none
            landscape = None if written is None else LandscapeQuality.from_plain(written)
            return cls(comparison, tuple(climbs), plain["search_bases"], landscape)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"needs a calibration as Calibration.to_json writes it, got {text[:60]!r} ({error})."
            ) from error


def calibrate(
    task: Task,
    *,
    bases: int = 8,
    repeats: int = 2,
    draws: int = 3,
    oracle_evaluations: int = 200,
    plans: int = 50,
    functions: Sequence[Function] | Mapping[str, Function] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    on_message: Callable[[str], None] | None = None,
    on_base: Callable[[str, Base], None] | None = None,
    programs: TaskPrograms | None = None,
) -> Calibration:
    """Measures whether a task tells good pruning functions from bad ones, and how much there is to gain.

    Runs on the task's search bases; the final ones stay unused.

    Args:
      task: the task.
      bases: number of base networks, >= 1; variance components need 2 or more, and 3 or more to be trusted; to
        compare a landscape with fine-tuning takes 4 or more.
      repeats: number of fine-tunings per function and base, >= 1; 2 or more separate the seed from the base.
      draws: number of random plans per base, >= 0.
      oracle_evaluations: number of fine-tunings per base for the oracle's climb; 0 for no oracle.
      plans: number of plans per base that are fine-tuned for a landscape, >= 10, to see how well it predicts; 0 for no
        landscape. A search with the same `folder` uses them too.
      functions: what to measure; by default the library and our own seeds. l2 is added.
      seed: determines base networks, data orders, random plans and the climb.
      folder: where trained bases are stored; None trains them anew.
      on_message: called with the progress, one line at a time.
      on_base: called with (task name, base) for each base that is ready.
      programs: the task's compiled machinery, to use instead of compiling it anew.

    Returns:
      The calibration; `.to_markdown()` shows it.

    Raises:
      ValueError: for numbers out of range, unknown functions, a landscape of a task of several rounds of pruning, or
        several processes.
    """
    check_one_process("a calibration")
    numbers = {"bases": (bases, 1), "repeats": (repeats, 1), "draws": (draws, 0)}
    check_counts("calibrate", **numbers, oracle_evaluations=(oracle_evaluations, 0))
    say = on_message or (lambda message: None)
    rows = named_functions({**library, **own_seeds} if functions is None else functions)
    machinery = programs or TaskPrograms(task)
    check_plans(machinery, plans)
    pool = BasePool(
        machinery,
        seed,
        "search",
        bases,
        folder=folder,
        on_base=on_base or (lambda name, base: None),
        on_message=on_message,
    )
    say(f"{task.name}: {bases} base networks")
    entries, refused = row_entries(pool, rows, draws=draws, repeats=repeats, with_scratch=True)
    say(f"{task.name}: {len(entries)} fine-tunings of {len(rows) - len(refused)} functions and the controls")
    measurements = tuple(measure(pool, entries))
    comparison = Comparison(measurements, (task_facts(pool),), tuple(refused), complexities(rows), seed)
    climbs: dict[int, Climb] = {}
    if oracle_evaluations:
        starts = {base: _best_start(comparison, entries, rows, base) for base in range(bases)}
        climbs = climb(pool, starts, evaluations=oracle_evaluations, repeat=repeats, on_message=say)
        measurements += tuple(measure(pool, _oracle_entries(pool, starts, climbs, repeats)))
    calibration = Calibration(
        dataclasses.replace(comparison, measurements=measurements), tuple(climbs.values()), task.bases
    )
    if not plans:
        return calibration
    return dataclasses.replace(calibration, landscape=_landscape(calibration, pool, plans, entries, say))


def task_rank_correlations(calibrations: Sequence[Calibration]) -> dict[tuple[str, str], float]:
    """Computes the rank correlation of functions between each two tasks, over the functions that both measured.

    Args:
      calibrations: calibrations of different tasks.

    Returns:
      (task, task) -> correlation of mean accuracies; pairs with fewer than two functions in common are left out.
    """
    correlations = {}
    for first, second in combinations(calibrations, 2):
        common = [name for name in first.means if name in second.means and name in first.functions]
        if len(common) > 1:
            correlations[first.task, second.task] = rank_correlation(
                [first.means[name] for name in common], [second.means[name] for name in common]
            )
    return correlations


def _best_start(
    comparison: Comparison, entries: Sequence[RowEntry], rows: Mapping[str, PruningFunction], base: int
) -> Start:
    """Returns the plan of the function with the highest accuracy on a base, averaged over repeats."""
    task = comparison.tasks[0].name
    plans = {
        entry.name: entry.kept for entry in entries if entry.kind == "metric" and entry.entry.base == base
    }
    best = max(plans, key=lambda name: comparison.by_base(name, task)[base])
    plan = plans[best]
    assert plan is not None
    return Start(best, plan, rows[best])


def _landscape(
    calibration: Calibration,
    pool: BasePool,
    plans: int,
    entries: Sequence[RowEntry],
    say: Callable[[str], None],
) -> LandscapeQuality:
    """Measures how well a landscape predicts the functions of a calibration."""
    kept = {(entry.name, entry.entry.base): entry.kept for entry in entries if entry.kept is not None}

    def on_plan(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            say(f"landscape: {done} of {total} plans")

    by_function = [[kept[name, base] for base in range(calibration.bases)] for name in calibration.functions]
    return measure_landscape_quality(pool, plans, by_function, calibration.accuracies, on_plan)


def _oracle_entries(
    pool: BasePool, starts: Mapping[int, Start], climbs: Mapping[int, Climb], repeats: int
) -> list[RowEntry]:
    """Lists the fine-tunings that measure the oracle's plans under the keys of the functions."""
    return [
        RowEntry(
            "oracle", "oracle", "", oracle_entry(pool, starts[base], base, repeat, climb.kept), climb.kept
        )
        for base, climb in climbs.items()
        for repeat in range(repeats)
    ]


def _noise_rows(calibration: Calibration) -> list[list[str]]:
    """Lists the variance components and what follows from them, one number per row."""
    components, repeats = calibration.components, calibration.repeats
    rows = []
    if components is not None:
        with_seed = "" if repeats > 1 else ", seed included"
        rows += [
            ["SD between functions", f"{components.function_sd:.1f} points"],
            [f"SD function x base{with_seed}", f"{components.interaction_sd:.1f} points"],
            ["SD seed", f"{components.seed_sd:.1f} points" if repeats > 1 else "needs 2 repeats"],
            ["SD between bases (equal for all functions)", f"{components.base_sd:.1f} points"],
            ["SD data order (equal for all functions)", f"{components.order_sd:.1f} points"],
            [f"reliability here ({calibration.bases} bases x {repeats})", f"{calibration.reliability:.2f}"],
            [
                f"reliability in a search ({calibration.search_bases} bases x 1)",
                f"{calibration.search_reliability:.2f}",
            ],
            ["rank correlation between bases", f"{calibration.base_rank_correlation:.2f}"],
        ]
    if calibration.headroom is not None:
        best = calibration.best_function
        rows.append([f"headroom: oracle minus best function ({best})", f"{calibration.headroom:+.1f} points"])
    rows += [] if calibration.landscape is None else calibration.landscape.rows
    return [*rows, ["seconds a candidate and base", f"{calibration.seconds_per_candidate:.2f}"]]
