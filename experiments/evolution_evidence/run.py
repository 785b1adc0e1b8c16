"""Searches with several seeds, freezes the winners, and judges them on networks that no search saw.

python experiments/evolution_evidence/run.py [--part plain] [--seeds 0,1] [--cells N] [--images DIR] [--runs DIR]
Going on after an interruption is the same command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from config import CELLS, FINAL_BASES, PARTS, SEEDS, searched_tasks
from judging import judge
from tables import write_tables

from jaxprune.files import write_atomically
from jaxprune.report.live_table import LiveTable
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


def main() -> None:
    """Writes the cells before the first search, then searches, freezes the winners, judges, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="plain")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--cells", type=int, default=len(CELLS), help="how many of the cells, from the first")
    parser.add_argument(
        "--stop", choices=("known", "winners"), help="stop when these are measured, or frozen"
    )
    parser.add_argument("--images", type=Path, help="folder with images of MNIST and CIFAR-10")
    parser.add_argument("--runs", type=Path, default=Path("runs/evolution_evidence"))
    options = parser.parse_args()
    cells, seeds = list(CELLS)[: options.cells], [int(seed) for seed in options.seeds.split(",")]
    RESULTS.mkdir(exist_ok=True)
    plan = {"part": options.part, "seeds": seeds, "cells": {cell: CELLS[cell] for cell in cells}}
    write_atomically(
        RESULTS / f"{options.part}-cells.json", json.dumps({**plan, "judges": FINAL_BASES}, indent=1) + "\n"
    )
    if options.stop == "known":
        judge(options.part, {}, options.images, options.runs)
        return
    winners = {str(seed): search(options.part, seed, cells, options.runs) for seed in seeds}
    write_atomically(RESULTS / f"{options.part}-winners.json", json.dumps(winners, indent=1) + "\n")
    if options.stop == "winners":
        return
    judge(options.part, winners, options.images, options.runs)
    print(
        write_tables(
            options.part, winners, options.runs / options.part, RESULTS / f"{options.part}-tables.md"
        )
    )


if __name__ == "__main__":
    main()
