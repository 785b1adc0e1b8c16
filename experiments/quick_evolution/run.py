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
from jaxprune.finals import RANDOM_SEARCH, WINNER, Finals, load_finals

RESULTS = Path(__file__).parent / "results"


def rows_of(finals: Finals, task: str) -> dict[str, dict[int, float]]:
    """What is asked about one run and task: question -> difference in points on every final base."""
    chosen = {role: name for name, role in finals.roles.items()}
    others = {
        "l2": "l2",
        "best library function": chosen.get("best library function on the search bases", WINNER),
        "best own seed": chosen.get("best own seed on the search bases", WINNER),
    }
    compared = finals.comparison
    asked = {}
    for mine, label in ((WINNER, "winner"), (RANDOM_SEARCH, "random search")):
        for question, other in others.items():
            asked[f"{label} - {question}"] = dict(compared.differences(mine, other, task))
    asked["winner - random search"] = dict(compared.differences(WINNER, RANDOM_SEARCH, task))
    return asked


def optimism_of(run: Path, finals: Finals, task: str) -> dict[str, float]:
    """Difference to l2 on the search bases minus that on the final bases, in points."""
    members = json.loads((run / "archive.json").read_text())["members"]
    searched = {member["id"]: member["tasks"][task]["difference"] for member in members}
    values = {WINNER: searched.get(finals.winner_id)}
    if finals.random_search is not None:
        values[RANDOM_SEARCH] = finals.random_search["differences"][task]
    return {
        f"optimism of the {name}": value - finals.comparison.paired(name, "l2", task).mean
        for name, value in values.items()
        if value is not None
    }


def joined(runs: list[tuple[int, Finals]]) -> list[dict[str, object]]:
    """Mean and standard error over all final bases of all runs, and the means of the single runs."""
    table = []
    for task in runs[0][1].comparison.task_names:
        for question in rows_of(runs[0][1], task):
            by_run = [list(rows_of(finals, task)[question].values()) for _, finals in runs]
            values = np.concatenate([np.asarray(found) for found in by_run])
            means = np.array([np.mean(found) for found in by_run])
            table.append(
                {
                    "task": task,
                    "question": question,
                    "mean": round(float(values.mean()), 2),
                    "se_over_bases": round(float(values.std(ddof=1) / np.sqrt(len(values))), 2),
                    "se_over_runs": round(float(means.std(ddof=1) / np.sqrt(len(means))), 2)
                    if len(means) > 1
                    else None,
                    "num_bases": len(values),
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
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.summary_only:
        for seed in seeds:
            jaxprune(
                [
                    "evolve",
                    *ARGUMENTS,
                    "--seed",
                    str(seed),
                    "--run-dir",
                    str(options.runs / f"seed{seed}"),
                    "--resume",
                ]
            )
    folders = {seed: options.runs / f"seed{seed}" for seed in seeds}
    runs = [(seed, finals) for seed, folder in folders.items() if (finals := load_finals(folder)) is not None]
    if not runs:
        raise SystemExit(f"no finished run in {options.runs}; run without --summary-only first")
    table = joined(runs)
    optimism = {
        task: {str(seed): optimism_of(folders[seed], finals, task) for seed, finals in runs}
        for task in runs[0][1].comparison.task_names
    }
    formulas = {
        str(seed): {name: finals.formulas[name] for name in (WINNER, RANDOM_SEARCH)} for seed, finals in runs
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "summary.json").write_text(
        json.dumps({"formulas": formulas, "optimism": optimism, "table": table}, indent=1) + "\n"
    )
    print(
        "| task | question | mean +- SE over bases (points) | SE over runs | bases | by run |\n"
        "|---|---|--:|--:|--:|---|"
    )
    for row in table:
        print(
            f"| {row['task']} | {row['question']} | {row['mean']:+} +- {row['se_over_bases']} | "
            f"{row['se_over_runs']} | {row['num_bases']} | {row['by_run']} |"
        )


if __name__ == "__main__":
    main()
