"""`jaxprune calibrate`: measures what a task can tell about functions."""

from __future__ import annotations

import argparse

from jaxprune.commands.comparison_options import (
    add_measuring_options,
    add_output_options,
    add_task_option,
    chosen_tasks,
)
from jaxprune.commands.output import has_matplotlib, note, on_base, say, write_figure, write_text


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune calibrate`."""
    add_task_option(parser)
    add_measuring_options(parser, bases=3, repeats=2)
    parser.add_argument(
        "--oracle",
        type=int,
        default=200,
        metavar="N",
        help="fine-tunings per base network for the hill-climbed oracle plan, 0 for none (default: 200)",
    )
    add_output_options(parser, "runs/calibrate", files="calibration-TASK.json, .md and .png")


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Calibrates each task, prints the tables, and writes tables, measurements and figures.

    Raises:
      ValueError: for tasks or numbers that cannot be calibrated with.
    """
    from jaxprune.comparison.calibration import calibrate, task_rank_correlations

    calibrations = []
    for task in chosen_tasks(arguments):
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
        calibrations.append(calibration)
        table = calibration.to_markdown()
        say(table)
        stem = arguments.out / f"calibration-{task.name}"
        write_text(stem.with_suffix(".json"), calibration.to_json() + "\n")
        write_text(stem.with_suffix(".md"), table + "\n")
        if has_matplotlib():
            from jaxprune.figures.comparison_figures import calibration_figure

            write_figure(stem.with_suffix(".png"), calibration_figure(calibration))
    for (first, second), correlation in task_rank_correlations(calibrations).items():
        say(f"Rank correlation of functions between {first} and {second}: {correlation:.2f}")
    return 0
