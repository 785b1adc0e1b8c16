"""`jaxprune transfer`: compares a frozen formula on other tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.common import note, split_formulas
from jaxprune.commands.comparison_options import (
    add_measuring_options,
    add_out_option,
    add_remaining_options,
    add_task_option,
    chosen_tasks,
    compare_and_write,
    functions_named,
)
from jaxprune.language.expression import Expression

if TYPE_CHECKING:
    from jaxprune.scoring.metrics import PruningFunction


def add_transfer(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune transfer`."""
    parser.epilog = (
        "Tasks are the packaged ones and your own (module:factory). Transfer to ImageNet and other sets of TensorFlow "
        "Datasets\nis not in this version."
    )
    frozen = parser.add_mutually_exclusive_group(required=True)
    frozen.add_argument("--formula", metavar="FORMULA", help="the frozen formula, or the name of one")
    frozen.add_argument(
        "--from-run", type=Path, metavar="RUN_DIR", help="a run, whose winner is the frozen formula"
    )
    add_task_option(parser, None)
    parser.add_argument(
        "--against",
        default="l1,l2",
        metavar="NAMES",
        help="names and formulas to compare with, separated by commas (default: l1,l2)",
    )
    add_measuring_options(parser, bases=8)
    add_out_option(parser, "comparison.csv, comparison.md and ranks.png", "runs/transfer")
    add_remaining_options(parser)


def run_transfer(arguments: argparse.Namespace) -> int:
    """Compares a frozen formula with others on tasks that it was not evolved on."""
    from jaxprune.scoring.lookup import find_function
    from jaxprune.scoring.metrics import name_of

    formula: PruningFunction
    if arguments.from_run is not None:
        formula, tasks = winner_of(arguments.from_run)
        again = [name for name in arguments.task if name in tasks]
        if again:
            note(f"note: the formula was evolved on {', '.join(again)}: there this is no transfer.")
    else:
        formula = find_function(arguments.formula)
    note(f"frozen formula: {name_of(formula)}")
    functions = {**functions_named(split_formulas(arguments.against)), "frozen": formula}
    return compare_and_write(arguments, functions, chosen_tasks(arguments))


def winner_of(run_dir: Path) -> tuple[Expression, tuple[str, ...]]:
    """The winner of a run, and the names of the tasks it was evolved on.

    Raises:
      RunDirectoryError: if there is no complete generation, or the state is damaged or of a newer format.
    """
    from typing import cast

    from jaxprune.search.problem import Problem
    from jaxprune.search.run_directory import load_run

    state = load_run(run_dir, cast(Problem, None))  # a state that is only read asks its problem nothing
    return state.ranked()[0].expression, tuple(task.name for task in state.tasks)
