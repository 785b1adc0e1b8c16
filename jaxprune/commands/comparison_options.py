"""What `compare` and `calibrate` share: options, and how a comparison is run and written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.network_options import (
    DEFAULT_TASK,
    SEARCH_ONLY,
    add_seed_options,
    add_task_options,
    tasks_of,
    whole_number,
)
from jaxprune.commands.output import (
    add_overwrite_option,
    check_folder,
    claim,
    has_matplotlib,
    note,
    on_base,
    say,
    write_figure,
    write_text,
)

if TYPE_CHECKING:
    from jaxprune.comparison.functions import Frozen
    from jaxprune.comparison.measurements import Measurement
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.tasks.tasks import Task

ALL = "all"
"""What `--metrics` calls the whole library and our own seeds."""

_COMPARISON_FILES = "comparison.csv, comparison.md and ranks.png"
_MEASUREMENTS_PER_NOTE = 25


def add_task_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--task`, which may be repeated."""
    from jaxprune.tasks.named_tasks import TASKS

    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help=f"{', '.join(TASKS)}, or module:factory of your own; may be repeated (default: {DEFAULT_TASK})",
    )


def add_measuring_options(parser: argparse.ArgumentParser, *, bases: int, repeats: int = 1) -> None:
    """Adds how often each function is measured: `--bases`, `--repeats`, `--draws`.

    Args:
      parser: gets the options.
      bases: default of `--bases`.
      repeats: default of `--repeats`.
    """
    parser.add_argument(
        "--bases",
        type=whole_number,
        default=bases,
        metavar="N",
        help=f"base networks per task (default: {bases})",
    )
    parser.add_argument(
        "--repeats",
        type=whole_number,
        default=repeats,
        metavar="N",
        help=f"fine-tunings per function and base (default: {repeats})",
    )
    parser.add_argument(
        "--draws", type=whole_number, default=3, metavar="N", help="random plans per base (default: 3)"
    )


def add_output_options(
    parser: argparse.ArgumentParser, folder: str, *, files: str = _COMPARISON_FILES
) -> None:
    """Adds where the files go, seed and folder of base networks, changes to tasks; for a comparison also its rows.

    Args:
      parser: gets the options.
      folder: default of `--out`.
      files: what is written there; by default the files of a comparison.
    """
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        metavar="DIR",
        help=f"folder for {files} (default: {folder})",
    )
    add_overwrite_option(parser)
    if files == _COMPARISON_FILES:
        parser.add_argument(
            "--no-scratch", action="store_true", help="no row for the slim network trained from scratch"
        )
        parser.add_argument(
            "--pool",
            choices=("final", "search"),
            default="final",
            help="base networks that no search has seen, or those that searches see (default: final)",
        )
    add_seed_options(parser)
    add_task_options(parser, without=SEARCH_ONLY)


def split_formulas(text: str) -> list[str]:
    """Splits names and formulas at commas outside parentheses, and removes quotes around them.

    Example:
      >>> split_formulas("l1, mean(rbf(P, Q, 1)),'mean(X)'")
      ['l1', 'mean(rbf(P, Q, 1))', 'mean(X)']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    formulas = [part.strip(" \t\n\"'") for part in parts]
    return [formula for formula in formulas if formula]


def read_frozen(given: str) -> Frozen:
    """Finds the function of `--function`, and notes which one it is and what has to be known about it.

    Args:
      given: a name, a formula, or the folder of a run.

    Raises:
      ValueError: if it is none of these.
      RunDirectoryError: if the run has no winner that can be read.
    """
    from jaxprune.comparison.functions import frozen_function
    from jaxprune.scoring.metrics import name_of

    frozen = frozen_function(given)
    if not frozen.is_verified:
        note(
            "note: the run ended before its leaders were verified: the formula is the best by prediction alone."
        )
    note(f"frozen formula: {name_of(frozen.function)}")
    return frozen


def functions_named(names: Sequence[str]) -> dict[str, PruningFunction]:
    """Finds the functions to compare.

    Args:
      names: names and formulas; "all" stands for the library and our own seeds.

    Returns:
      Row name -> function, l2 among them.

    Raises:
      ValueError: for an unknown name or a text that is no formula.

    Example:
      >>> list(functions_named(["l1", "mean(X) + 1"]))
      ['l2', 'l1', 'mean(X) + 1']
    """
    from jaxprune.comparison.functions import named_functions
    from jaxprune.language.library import library, own_seeds

    rows: list[str] = []
    for name in names:
        rows += [*library, *own_seeds] if name == ALL else [name]
    return named_functions(rows)


def chosen_tasks(arguments: argparse.Namespace) -> list[Task]:
    """Returns the tasks that the command line names, with the changes that it asks for."""
    return tasks_of(arguments, arguments.task or [DEFAULT_TASK], without=SEARCH_ONLY)


def compare_and_write(arguments: argparse.Namespace, functions: Mapping[str, PruningFunction]) -> int:
    """Compares functions, prints the table, and writes table, measurements and rank diagram.

    Args:
      arguments: the command line.
      functions: row name -> function.

    Returns:
      The exit status 0.
    """
    from jaxprune.comparison.protocol import compare

    tasks = chosen_tasks(arguments)
    csv, markdown, figure = (
        arguments.out / name for name in ("comparison.csv", "comparison.md", "ranks.png")
    )
    check_folder(arguments.bases_dir)
    claim([csv, markdown, figure], overwrite=arguments.overwrite)
    numbers = count(1)

    def on_row(row: Measurement) -> None:
        number = next(numbers)
        if number % _MEASUREMENTS_PER_NOTE == 0:
            note(f"{number} measurements, the last {row.name} on {row.task}: {row.validation:.1f} %")

    comparison = compare(
        functions,
        tasks,
        arguments.bases,
        seed=arguments.seed,
        draws=arguments.draws,
        repeats=arguments.repeats,
        with_scratch=not arguments.no_scratch,
        pool=arguments.pool,
        folder=arguments.bases_dir,
        on_row=on_row,
        on_base=on_base,
        on_message=note,
    )
    table = comparison.to_markdown()
    try:
        write_text(csv, comparison.to_csv())
        write_text(markdown, table + "\n")
        if has_matplotlib():
            from jaxprune.figures.comparison_figures import ranks_figure

            write_figure(figure, ranks_figure(comparison))
    finally:  # what was measured is shown even if the disk is full
        say(table)
    return 0
