"""Searches with several seeds, freezes the winners, and judges them on networks that no search saw.

python experiments/evolution_evidence/run.py [--part plain] [--seeds 0,1] [--cells N] [--images DIR] [--runs DIR]
Going on after an interruption is the same command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from config import CELLS, FINAL_BASES, FINAL_SEED, PARTS, SEEDS, judging_tasks, searched_tasks
from tables import write_tables

import jaxprune as jp
from jaxprune.comparison.protocol import compare
from jaxprune.comparison.results import Comparison
from jaxprune.files import write_atomically
from jaxprune.report.live_table import LiveTable
from jaxprune.scoring.metrics import metrics
from jaxprune.search.search import evolve_problem, make_problem
from jaxprune.search.settings import PRESETS
from jaxprune.search.state import start_formulas

RESULTS = Path(__file__).parent / "results"


def search(part: str, seed: int, cells: list[str], runs: Path) -> dict[str, dict[str, object]]:
    """Runs the searches of one seed on one bank; returns cell -> winner, best start formula and what was seen."""
    found: dict[str, dict[str, object]] = {}
    problem = None
    for cell in cells:
        folder = runs / part / f"seed{seed}-{cell.replace(', ', '-').replace(' ', '-')}"
        config = PRESETS["quick"].config.replace(seed=seed, **CELLS[cell])
        with LiveTable() as table:
            # One problem for all cells, so that they share base networks and bank.
            shared = runs / part / f"seed{seed}"
            problem = problem or make_problem(searched_tasks(PARTS[part]), config, shared, callbacks=[table])
            result = evolve_problem(problem, config, folder, callbacks=[table], resume=True)
        state, best, start = result.state, result.best, start_formulas(result.state)[0]
        found[cell] = {
            "winner": best.candidate.text,
            "start": start.candidate.text,
            "predicted": state.predicted[best.candidate.id].mean,
            "measured": state.verified[best.candidate.id].mean,
            "start_measured": state.verified[start.candidate.id].mean,
            "tried": len(state.candidates),
            "fine_tunings": state.evaluations,
        }
    return found


def judge(
    part: str, winners: dict[str, dict[str, dict[str, object]]], images: Path | None, runs: Path
) -> None:
    """Measures winners, start formulas and all known functions on networks of their own, task by task."""
    functions = {name: metric for name, metric in metrics.items() if name != "random"}
    texts = {
        str(found[role])
        for by_cell in winners.values()
        for found in by_cell.values()
        for role in ("winner", "start")
    }
    functions |= {text: jp.parse(text) for text in sorted(texts)}
    for task in judging_tasks(PARTS[part], images):
        path = runs / part / f"judged-{task.name}.json"
        if path.exists() and texts <= set(Comparison.from_json(path.read_text()).names(task.name)):
            continue
        print(f"judging {len(functions)} functions on {task.name}", flush=True)
        comparison = compare(
            functions, [task], FINAL_BASES[task.name], seed=FINAL_SEED, draws=1, with_scratch=False,
            folder=runs / "judging", test_records=runs / part, reopen_test=True,
        )  # fmt: skip
        write_atomically(path, comparison.to_json() + "\n")


def main() -> None:
    """Writes the cells before the first search, then searches, freezes the winners, judges, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="plain")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--cells", type=int, default=len(CELLS), help="how many of the cells, from the first")
    parser.add_argument("--images", type=Path, help="folder with images of MNIST and CIFAR-10")
    parser.add_argument("--runs", type=Path, default=Path("runs/evolution_evidence"))
    options = parser.parse_args()
    cells, seeds = list(CELLS)[: options.cells], [int(seed) for seed in options.seeds.split(",")]
    RESULTS.mkdir(exist_ok=True)
    plan = {"part": options.part, "seeds": seeds, "cells": {cell: CELLS[cell] for cell in cells}}
    write_atomically(
        RESULTS / f"{options.part}-cells.json", json.dumps({**plan, "judges": FINAL_BASES}, indent=1) + "\n"
    )
    winners = {str(seed): search(options.part, seed, cells, options.runs) for seed in seeds}
    write_atomically(RESULTS / f"{options.part}-winners.json", json.dumps(winners, indent=1) + "\n")
    judge(options.part, winners, options.images, options.runs)
    print(
        write_tables(
            options.part, winners, options.runs / options.part, RESULTS / f"{options.part}-tables.md"
        )
    )


if __name__ == "__main__":
    main()
