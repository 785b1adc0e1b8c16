"""Prunes LeNet-5 on Fashion-MNIST to half its multiply-adds; the same command goes on after an interruption.

python experiments/own_network/run.py [--case NAME] [--rehearse] [--out DIR]
Further options are passed on to `jaxprune prune`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from config import CASES, REHEARSAL

from jaxprune.cli import main as jaxprune

RESULTS = Path(__file__).parent / "results"


def write_summary(folder: Path, path: Path, cpu_seconds: float) -> None:
    """Writes what the README shows: sizes, accuracies of every seed, latencies, and the time of this process."""
    result = json.loads((folder / "result.json").read_text())
    names = (
        "widths",
        "kept_counts",
        "macs",
        "slim_macs",
        "parameters",
        "slim_parameters",
        "accuracy",
        "best_seed",
    )
    summary = {name: result[name] for name in names}
    summary["speed"] = result["speed"]["rows"]
    summary["cpu_seconds"] = round(cpu_seconds, 1)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")


def main() -> None:
    """Runs or goes on with every case, and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="which (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="the whole path in a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/own_network"), metavar="DIR")
    options, further = parser.parse_known_args()
    out = options.out / "rehearsal" if options.rehearse else options.out
    for name in options.case or CASES:
        line = ["prune", *CASES[name], *(REHEARSAL if options.rehearse else ()), *further]
        start = time.process_time()
        if status := jaxprune([*line, "--out", str(out / name)]):
            raise SystemExit(status)
        if not options.rehearse:
            write_summary(out / name, RESULTS / f"{name}.json", time.process_time() - start)


if __name__ == "__main__":
    main()
