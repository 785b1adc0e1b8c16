"""Measures functions on networks that no search saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from config import FINAL_BASES, FINAL_SEED, PARTS, judging_tasks

import jaxprune as jp
from jaxprune.comparison.protocol import compare
from jaxprune.comparison.results import Comparison
from jaxprune.files import write_atomically
from jaxprune.language.library import own_seeds
from jaxprune.scoring.metrics import metrics


def judge(
    part: str,
    winners: Mapping[str, Mapping[str, Mapping[str, object]]],
    images: Path | None,
    runs: Path,
) -> None:
    """Measures winners, start formulas and all known functions on networks of their own, those not measured yet."""
    functions = {name: f for name, f in {**own_seeds, **metrics}.items() if name != "random"}
    texts = {
        str(found[role])
        for by_cell in winners.values()
        for found in by_cell.values()
        for role in ("winner", "start")
    }
    functions |= {text: jp.parse(text) for text in sorted(texts)}
    for task in judging_tasks(PARTS[part], images):
        path = runs / part / f"judged-{task.name}.json"
        stored = Comparison.from_json(path.read_text()) if path.exists() else None
        measured = (
            set() if stored is None else {*stored.names(task.name), *(row.name for row in stored.refused)}
        )
        missing = {name: function for name, function in functions.items() if name not in measured}
        if not missing:
            continue
        print(f"judging {len(missing)} functions on {task.name}", flush=True)
        comparison = compare(
            missing, [task], FINAL_BASES[task.name], seed=FINAL_SEED, draws=1, with_scratch=False,
            folder=runs / "judging", test_records=runs / part, reopen_test=True,
        )  # fmt: skip
        if stored is not None:
            rows = [row for row in comparison.measurements if row.name in missing]
            comparison = dataclasses.replace(
                comparison,
                measurements=(*stored.measurements, *rows),
                refused=(*stored.refused, *comparison.refused),
            )
        write_atomically(path, comparison.to_json() + "\n")
