"""`jaxprune calibrate`: measures what a task can tell about functions, or how its networks are best batched."""

from __future__ import annotations

import argparse

from jaxprune.commands.comparison_options import (
    add_measuring_options,
    add_output_options,
    add_task_option,
    chosen_tasks,
)
from jaxprune.commands.network_options import whole_number
from jaxprune.commands.output import (
    check_folder,
    claim,
    has_matplotlib,
    note,
    on_base,
    say,
    write_figure,
    write_text,
)

_KINDS = ("json", "md", "png")
"""What is written for each task."""

_OF_CALIBRATIONS = {"bases": 8, "repeats": 2, "draws": 3, "oracle": 200, "plans": 50, "seed": 0}
"""Option -> its default, of those that do nothing with --batching."""


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune calibrate`."""
    add_task_option(parser)
    defaults = _OF_CALIBRATIONS
    add_measuring_options(parser, bases=defaults["bases"], repeats=defaults["repeats"])
    parser.add_argument(
        "--oracle",
        type=whole_number,
        default=defaults["oracle"],
        metavar="N",
        help="fine-tunings per base network for the hill-climbed oracle plan, 0 for none "
        f"(default: {defaults['oracle']})",
    )
    parser.add_argument(
        "--plans",
        type=whole_number,
        default=defaults["plans"],
        metavar="N",
        help="fine-tuned plans per base network for the landscape that evolve searches on by default, 0 for none; "
        f"evolve with the same --bases-dir uses them too (default: {defaults['plans']})",
    )
    parser.add_argument(
        "--batching",
        action="store_true",
        help="measure instead, without base networks, how fast fine-tunings are by scan, loop and vmap of growing "
        "chunks, with the library's convolution and with patches; says what to pass to evolve",
    )
    add_output_options(
        parser,
        "runs/calibrate",
        files="calibration-TASK.json, .md and .png; with --batching batching-TASK.json and .md",
    )


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Calibrates each task, prints the tables, and writes tables, measurements and figures.

    Raises:
      ValueError: for tasks or numbers that cannot be calibrated with.
    """
    if arguments.batching:
        return _run_batching(arguments)
    from jaxprune.comparison.calibration import calibrate, task_rank_correlations
    from jaxprune.comparison.landscape_quality import check_plans
    from jaxprune.tasks.base_networks import BasePool
    from jaxprune.tasks.task_programs import TaskPrograms

    calibrations = []
    tasks = chosen_tasks(arguments)
    files = {
        task.name: [arguments.out / f"calibration-{task.name}.{kind}" for kind in _KINDS] for task in tasks
    }
    claim([path for paths in files.values() for path in paths], overwrite=arguments.overwrite)
    check_folder(arguments.bases_dir)
    programs = {task.name: TaskPrograms(task) for task in tasks}  # checks all before it trains on the first
    for machinery in programs.values():  # likewise that there can be landscapes, and base networks be stored
        check_plans(machinery, arguments.plans)
        BasePool(machinery, arguments.seed, "search", arguments.bases, folder=arguments.bases_dir)
    for task in tasks:
        calibration = calibrate(
            task,
            bases=arguments.bases,
            repeats=arguments.repeats,
            draws=arguments.draws,
            oracle_evaluations=arguments.oracle,
            plans=arguments.plans,
            seed=arguments.seed,
            folder=arguments.bases_dir,
            on_message=note,
            on_base=on_base,
            programs=programs[task.name],
        )
        calibrations.append(calibration)
        table, (data, markdown, figure) = calibration.to_markdown(), files[task.name]
        try:
            write_text(data, calibration.to_json() + "\n")
            write_text(markdown, table + "\n")
            if has_matplotlib():
                from jaxprune.figures.comparison_figures import calibration_figure

                write_figure(figure, calibration_figure(calibration))
        finally:  # what was measured is shown even if the disk is full
            say(table)
    for (first, second), correlation in task_rank_correlations(calibrations).items():
        say(f"Rank correlation of functions between {first} and {second}: {correlation:.2f}")
    return 0


def _run_batching(arguments: argparse.Namespace) -> int:
    """Measures how the fine-tunings of each task are best batched, prints the tables, and writes them."""
    from jaxprune.comparison.batching_report import BatchingReport, local_devices_in_words
    from jaxprune.tasks.batching_speed import Timing, time_all
    from jaxprune.tasks.task_programs import TaskPrograms

    given = [f"--{name}" for name, default in _OF_CALIBRATIONS.items() if getattr(arguments, name) != default]
    if given:
        raise ValueError(
            f"--batching needs no base networks and takes no {', '.join(given)}, which it would ignore. Leave "
            f"{'it' if len(given) == 1 else 'them'} out, or --batching."
        )
    tasks = chosen_tasks(arguments)
    files = {
        task.name: [arguments.out / f"batching-{task.name}.{kind}" for kind in ("json", "md")]
        for task in tasks
    }
    claim([path for paths in files.values() for path in paths], overwrite=arguments.overwrite)
    programs = {task.name: TaskPrograms(task) for task in tasks}  # checks all before it measures the first
    for name, machinery in programs.items():
        timings: list[Timing] = []
        for timing in time_all(machinery):
            note(f"{name}: {timing.batching}: {timing.member_seconds * 1e3:.1f} ms a network")
            timings.append(timing)
        report = BatchingReport(name, machinery.num_steps, tuple(timings), local_devices_in_words())
        table, (data, markdown) = report.to_markdown(), files[name]
        try:
            write_text(data, report.to_json() + "\n")
            write_text(markdown, table + "\n")
        finally:  # what was measured is shown even if the disk is full
            say(table)
    return 0
