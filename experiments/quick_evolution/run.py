"""Runs the quick preset with several seeds, and joins what the final comparisons of all runs say.

python experiments/quick_evolution/run.py [--runs runs/quick_evolution] [--seeds 0,1,2] [--summary-only]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from config import ARGUMENTS, SEEDS

from jaxprune.cli import main as jaxprune
from jaxprune.comparison.finals import RANDOM_SEARCH, WINNER, Finals, load_finals

RESULTS = Path(__file__).parent / "results"
OTHERS = {
    "best library function": "best library function on the search bases",
    "best own seed": "best own seed on the search bases",
}
"""Question -> the role of a row in the final comparison."""


def rows_of(run: Path, finals: Finals, task: str) -> dict[str, list[float]]:
    """What is asked about one run and task: question -> difference in points on every final base."""
    chosen = {role: name for name, role in finals.roles.items()}
    others = {"l2": "l2"} | {question: chosen.get(role, WINNER) for question, role in OTHERS.items()}
    compared = finals.comparison
    asked = {
        f"{mine} - {question}": list(compared.differences(mine, other, task).values())
        for mine in (WINNER, RANDOM_SEARCH)
        for question, other in others.items()
    }
    asked[f"{WINNER} - {RANDOM_SEARCH}"] = list(compared.differences(WINNER, RANDOM_SEARCH, task).values())
    searched = {
        member["id"]: member["tasks"] for member in json.loads((run / "archive.json").read_text())["members"]
    }
    assert finals.random_search is not None, "the experiment runs with full controls"
    values = {
        WINNER: searched[finals.winner_id][task]["difference"],
        RANDOM_SEARCH: finals.random_search["differences"][task],
    }
    for name, value in values.items():
        asked[f"optimism of {name}"] = [value - compared.paired(name, "l2", task).mean]
    return asked


def joined(runs: dict[Path, Finals]) -> list[dict[str, object]]:
    """Means over runs with their standard error; bases of one run share a winner, so runs are the unit."""
    table: list[dict[str, object]] = []
    for task in next(iter(runs.values())).comparison.task_names:
        by_run = [rows_of(run, finals, task) for run, finals in runs.items()]
        for question in by_run[0]:
            values = np.concatenate([found[question] for found in by_run])
            means = np.array([np.mean(found[question]) for found in by_run])
            table.append(
                {
                    "task": task,
                    "question": question,
                    "mean": round(float(means.mean()), 2),
                    "se_over_runs": _standard_error(means),
                    "se_over_bases": _standard_error(values) if len(values) > len(means) else None,
                    "num_bases": len(values) if len(values) > len(means) else None,
                    "by_run": [round(float(mean), 2) for mean in means],
                }
            )
    return table


def main() -> None:
    """Runs what is missing and writes `results/summary.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/quick_evolution"))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--summary-only", action="store_true", help="join finished runs, run nothing")
    options = parser.parse_args()
    folders = {seed: options.runs / f"seed{seed}" for seed in options.seeds.split(",")}
    for seed, folder in {} if options.summary_only else folders.items():
        jaxprune(["evolve", *ARGUMENTS, "--seed", seed, "--run-dir", str(folder), "--resume"])
    runs = {folder: finals for folder in folders.values() if (finals := load_finals(folder)) is not None}
    if not runs:
        raise SystemExit(f"no finished run in {options.runs}; run without --summary-only first")
    formulas = {
        run.name: {row: found.formulas[row] for row in (WINNER, RANDOM_SEARCH)} for run, found in runs.items()
    }
    table = joined(runs)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "summary.json").write_text(json.dumps({"formulas": formulas, "table": table}, indent=1) + "\n")
    columns = ("task", "question", "mean", "se_over_runs", "se_over_bases", "num_bases", "by_run")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in table:
        print(f"| {' | '.join(str(row[column]) for column in columns)} |")


def _standard_error(values: np.ndarray) -> float | None:
    return round(float(values.std(ddof=1) / np.sqrt(len(values))), 2) if len(values) > 1 else None


if __name__ == "__main__":
    main()
