"""`jaxprune calibrate`: measures what a task can tell about functions."""

from __future__ import annotations

import argparse
from functools import partial

from jaxprune.commands.common import note, on_base, say, write_file, write_text
from jaxprune.commands.comparison_options import (
    add_measuring_options,
    add_out_option,
    add_remaining_options,
    add_task_option,
    chosen_tasks,
    has_matplotlib,
)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune calibrate`."""
    add_task_option(parser, "digits")
    add_measuring_options(parser, bases=3, repeats=2)
    parser.add_argument(
        "--oracle",
        type=int,
        default=200,
        metavar="N",
        help="fine-tunings per base network for the hill-climbed oracle plan, 0 for none (default: 200)",
    )
    add_out_option(parser, "calibration-TASK.json, .md and .png", "runs/calibrate")
    add_remaining_options(parser)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Calibrates each task, prints the tables, and writes tables, measurements and figures."""
    from jaxprune.comparison.calibration import calibrate, task_rank_correlations

    tasks, found = chosen_tasks(arguments), []
    for task in tasks:
        calibration = calibrate(
            task,
            bases=arguments.bases,
            repeats=arguments.repeats,
            draws=arguments.draws,
            oracle_evaluations=arguments.oracle,
            seed=arguments.seed,
            folder=arguments.bases_dir,
            on_message=note,
            on_base=on_base,
        )
        found.append(calibration)
        say(calibration.to_markdown())
        stem = arguments.out / f"calibration-{task.name}"
        write_text(stem.with_suffix(".json"), calibration.to_json() + "\n")
        write_text(stem.with_suffix(".md"), calibration.to_markdown() + "\n")
        if has_matplotlib():
            from jaxprune.figures.comparison_figures import calibration_figure
            from jaxprune.figures.style import save_figure

            write_file(stem.with_suffix(".png"), partial(save_figure, calibration_figure(calibration)))
    for (first, second), correlation in task_rank_correlations(found).items():
        say(f"Rank correlation of functions between {first} and {second}: {correlation:.2f}")
    return 0
