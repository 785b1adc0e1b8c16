"""Runs the paper's evolution: on the whole data sets, as a rehearsal on stand-ins, or on parts of the data sets.

python experiments/paper_evolution/run.py [--data-dir DIR | --rehearse | --images DIR [--part NAME]] [--run-dir DIR]
Other options are passed on to `jaxprune evolve`. Going on after an interruption is the same command.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import fmean

from config import PART_TASKS, PARTS, REHEARSAL, WHOLE
from parts import IMAGES, write_stand_ins

from jaxprune.cli import main as jaxprune
from jaxprune.comparison.finals import WINNER, load_finals
from jaxprune.files import write_atomically
from jaxprune.search.journal import read_journal

RESULTS = Path(__file__).parent / "results"


def summary(run: Path) -> dict[str, object]:
    """What a finished run cost and showed, in a few numbers."""
    finals = load_finals(run)
    assert finals is not None, "the run has a report"
    lines = list(read_journal(run / "journal.jsonl"))
    trials = [line for line in lines if line["kind"] == "trial"]
    tasks: dict[str, object] = {}
    for facts in finals.comparison.tasks:
        own = [line for line in trials if line["task"] == facts.name]
        tasks[facts.name] = {
            "validation_accuracy_of_final_bases": [round(float(value), 2) for value in facts.base_accuracies],
            "fine_tunings": len(own),
            "seconds_of_fine_tuning": round(sum(line["seconds"] for line in own)),
            "validation_accuracy_in_the_search": {
                "lowest": min(line["accuracy"] for line in own),
                "highest": max(line["accuracy"] for line in own),
            },
            "accuracy_in_the_report": {
                name: {
                    on: round(fmean(finals.comparison.by_base(name, facts.name, on=on).values()), 2)
                    for on in ("validation", "test")
                }
                for name in finals.comparison.names(facts.name)
            },
        }
    config = json.loads((run / "config.json").read_text())
    return {
        "winner": finals.formulas[WINNER],
        "candidates": sum(line["kind"] == "candidate" for line in lines),
        "search": {name: config["config"][name] for name in ("generations", "population", "elites", "seed")},
        "task_options": config["settings"]["task_options"],
        "seconds_of_search": round(sum(line["seconds"] for line in lines if line["kind"] == "generation")),
        "seconds_of_final_comparison": round(finals.seconds),
        "tasks": tasks,
    }


def main() -> None:
    """Runs or goes on with one of the three, and writes what it cost and showed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="the whole path in minutes, on stand-ins")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder with archives of parts of both sets"
    )
    parser.add_argument(
        "--part", action="append", choices=PART_TASKS, help="with --images: which (default: all)"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where jaxprune prepare has put the whole sets"
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/paper_evolution/NAME")
    options, further = parser.parse_known_args()
    name = "rehearsal" if options.rehearse else "whole"
    if options.images is not None:
        name = "-".join([*(options.part or PART_TASKS), "part"])
    run, data_dir, arguments = options.run_dir or Path("runs/paper_evolution") / name, options.data_dir, WHOLE
    if options.rehearse:
        data_dir, arguments = run.parent / "stand-ins", REHEARSAL
        write_stand_ins(data_dir)
    elif options.images is not None:
        os.environ[IMAGES] = str(options.images)
        arguments = PARTS
        further += [f"--task={PART_TASKS[part]}" for part in options.part or PART_TASKS]
    where = [] if data_dir is None else ["--data-dir", str(data_dir)]
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    arguments = tuple(
        text for pair in pairs if pair[0] not in further for text in pair
    )  # what is typed counts
    status = jaxprune(["evolve", *arguments, *further, *where, "--run-dir", str(run), "--resume"])
    if status:
        raise SystemExit(status)
    found = {"name": name, **summary(run)}
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
