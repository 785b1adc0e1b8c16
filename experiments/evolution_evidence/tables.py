"""Joins the measurements of all tasks: what winners add to start formulas, random search and known functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from config import SEARCHED

from jaxprune.comparison.measurements import Split
from jaxprune.comparison.pooled import StandingTable, mean_accuracies, standing, task_sd
from jaxprune.comparison.regret import ranks
from jaxprune.comparison.results import Comparison
from jaxprune.files import write_atomically
from jaxprune.language.library import library, own_seeds
from jaxprune.scoring.metrics import metrics

HANDMADE = [name for name in own_seeds if not name.startswith("evolved_")]
"""Our own seeds that no search has found."""


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
        name
        for name in {**metrics, **own_seeds}
        if name != "random" and all(name in comparison.names(task) for task in comparison.task_names)
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
            rivals = [_best(comparison, names, known, split, chosen) for names in (library, HANDMADE)]
            pairs = [
                (f"winner: {cell}", other)
                for cell in cells
                for other in (f"start: {cell}", *(rivals if cell.startswith("evolution") else ()))
            ]
            # The default seeds hold what earlier searches found: is the default search ahead of where these began?
            pairs += [
                ("winner: evolution", f"{role}, handmade seeds")
                for role in ("start: evolution", "winner: random")
                if {"evolution", "random, handmade seeds"} <= set(cells)
            ]
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


def _best(
    comparison: Comparison, names: Iterable[str], known: Sequence[str], split: Split, tasks: Sequence[str]
) -> str:
    """The best of some known functions on the judging networks themselves, which favours it."""

    def in_sd(name: str) -> float:
        means = [mean_accuracies(comparison, task, known, split) for task in tasks]
        return sum(
            (of[name] or 0.0) / task_sd(of, known, task) for of, task in zip(means, tasks, strict=True)
        )

    return max((name for name in names if name in known), key=in_sd)


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
