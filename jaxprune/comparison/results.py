"""Comparisons and calibrations as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.comparison.functions import known_functions
from jaxprune.comparison.measurements import REFERENCE, Comparison, Refused, SummaryRow, TaskFacts
from jaxprune.text import markdown_table, with_error

if TYPE_CHECKING:
    from jaxprune.comparison.calibration import Calibration


def comparison_table(comparison: Comparison) -> str:
    """Per task one line of facts and one table, best row first, invalid functions listed below it."""
    parts = []
    for task in comparison.task_names:
        rows = [row for row in comparison.summary() if row.task == task]
        facts = next((each for each in comparison.tasks if each.name == task), None)
        parts.append(
            "\n".join([f"### {task}", "", *([_facts_line(facts), ""] if facts else []), _table(rows)])
        )
        invalid = [f"- {row.name}{_formula(row)}: invalid, {row.reason}" for row in rows if not row.n]
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
            line = [f"{row.name}{_formula(row)}", with_error(row.mean, row.se), str(row.n)]
            line += ["", ""] if row.name == REFERENCE else [difference, f"{row.wins}/{row.ties}/{row.losses}"]
            if has_test:
                of_test = with_error(row.test_difference, row.test_difference_se, signed=True)
                line += [with_error(row.test, None), "" if row.name == REFERENCE else of_test]
            line += ["" if row.complexity is None else str(row.complexity), f"{row.seconds or 0.0:.2f}"]
            cells.append(line)
    return markdown_table(header, cells)


def _formula(row: SummaryRow | Refused) -> str:
    """The formula, where neither is it the name itself nor does the library know it by that name."""
    known = known_functions().get(row.name)
    is_said = row.formula == row.name or (known is not None and row.formula == str(known))
    return f" `{row.formula}`" if row.formula and not is_said else ""


def _facts_line(facts: TaskFacts) -> str:
    kept = ", ".join(f"{group} {facts.kept[group]} of {width}" for group, width in facts.widths.items())
    mean, low, high = (
        float(each(facts.base_accuracies)) if facts.base_accuracies else float("nan")
        for each in (np.mean, np.min, np.max)
    )
    return (
        f"{len(facts.base_accuracies)} {facts.pool} bases with {mean:.1f} % validation accuracy before pruning "
        f"({low:.1f} to {high:.1f}); channels kept: {kept}. SE and n count bases; differences are paired."
    )


def calibration_table(calibration: Calibration) -> str:
    """Warnings, signal and noise, the accuracy table with the share of the gap each function closes, the climbs."""
    facts = calibration.comparison.tasks[0]
    parts = [f"## Calibration of {calibration.task}", _facts_line(facts)]
    parts += [f"**Warning:** {warning}" for warning in calibration.warnings]
    parts.append(markdown_table(["what", "value"], _measured(calibration)))
    header = ["function", "accuracy % ± SE", *(f"base {base}" for base in range(calibration.bases))]
    header += [f"difference to {REFERENCE} ± SE", "share of the gap"]
    rows = []
    for row in calibration.comparison.summary():
        if row.n:
            by_base = calibration.comparison.by_base(row.name, row.task)
            line = [f"{row.name}{_formula(row)}", with_error(row.mean, row.se)]
            line += [with_error(by_base.get(base), None) for base in range(calibration.bases)]
            is_reference = row.name == REFERENCE
            line.append("" if is_reference else with_error(row.difference, row.difference_se, signed=True))
            share = calibration.shares.get(row.name)
            rows.append([*line, "" if share is None else f"{100 * share:.0f} %"])
    parts.append(markdown_table(header, rows))
    invalid = [
        f"- {row.name}{_formula(row)}: invalid, {row.reason}" for row in calibration.comparison.refused
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
