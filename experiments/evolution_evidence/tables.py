"""Joins the measurements of all tasks: what winners add to start formulas, random search and known functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from config import SEARCHED

from jaxprune.comparison.pooled import StandingTable, standing
from jaxprune.comparison.regret import ranks
from jaxprune.comparison.results import Comparison
from jaxprune.files import write_atomically
from jaxprune.scoring.metrics import metrics


def write_tables(
    part: str, winners: Mapping[str, Mapping[str, Mapping[str, object]]], judged: Path, path: Path
) -> str:
    """Writes the tables of the winners, run seed -> cell -> role -> formula, and returns their text.

    Args:
      part: the part's name.
      winners: what the searches found.
      judged: the folder with the measurements of each task.
      path: the file to write.
    """
    measured = [Comparison.from_json(file.read_text()) for file in sorted(judged.glob("judged-*.json"))]
    comparison = dataclasses.replace(
        measured[0],
        measurements=tuple(row for each in measured for row in each.measurements),
        tasks=tuple(facts for each in measured for facts in each.tasks),
        refused=tuple(refused for each in measured for refused in each.refused),
    )
    known = [
        name for name in metrics if all(name in comparison.names(task) for task in comparison.task_names)
    ]
    cells = list(next(iter(winners.values())))
    for cell in cells:
        for role in ("winner", "start"):
            rows = [str(by_cell[cell][role]) for by_cell in winners.values()]
            comparison = _with_mean_row(comparison, f"{role}: {cell}", rows)
    unseen = [task for task in comparison.task_names if task not in SEARCHED]
    lines = [f"# {part}: {len(winners)} run seeds, {len(known)} known functions", ""]
    for split in ("test", "validation"):
        tasks = [t for t in comparison.task_names if split == "validation" or _has_test(comparison, t)]
        for name, chosen in (("all tasks", tasks), ("unseen tasks", [t for t in tasks if t in unseen])):
            pairs = [(f"winner: {cell}", f"start: {cell}") for cell in cells]
            pairs += [
                (f"winner: {cell}", f"winner: {cell.replace('evolution', 'random')}")
                for cell in cells
                if cell.startswith("evolution") and cell.replace("evolution", "random") in cells
            ]
            table = StandingTable(
                tuple(
                    standing(comparison, row, against=other, known=known, measure=split, tasks=chosen)
                    for row, other in pairs
                )
            )
            lines += [
                f"## {split} images, {name}: points by task, and pooled in sd",
                "",
                table.to_markdown(),
                "",
            ]
        single = sorted({str(by_cell[cell]["winner"]) for by_cell in winners.values() for cell in cells})
        rows = [*(f"winner: {cell}" for cell in cells), *known, *single]
        lines += [f"## {split} images: ranks among known functions", ""]
        lines += [ranks(comparison, rows, known, measure=split, tasks=tasks).to_markdown(), ""]
    text = "\n".join(lines)
    write_atomically(path, text + "\n")
    return text


def _has_test(comparison: Comparison, task: str) -> bool:
    """Whether test images of the task were measured on."""
    return any(row.task == task and row.test is not None for row in comparison.measurements)


def _with_mean_row(comparison: Comparison, name: str, rows: Sequence[str]) -> Comparison:
    """Adds a row of the mean accuracies of several rows, base by base: what a run can expect, whatever its seed."""
    added = []
    for task in comparison.task_names:
        by_row = [{m.base: m for m in comparison.of(row, task)} for row in rows]
        for base, first in by_row[0].items():
            same = [row[base] for row in by_row]
            tests = [m.test for m in same if m.test is not None]
            added.append(
                dataclasses.replace(
                    first,
                    name=name,
                    formula="",
                    validation=float(np.mean([m.validation for m in same])),
                    test=float(np.mean(tests)) if len(tests) == len(same) else None,
                )
            )
    return dataclasses.replace(comparison, measurements=(*comparison.measurements, *added))
