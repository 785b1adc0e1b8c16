"""`jaxprune transfer`: compares a frozen formula on other tasks than those it was evolved on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jaxprune.commands.comparison_options import (
    add_measuring_options,
    add_output_options,
    add_task_option,
    compare_and_write,
    functions_named,
    split_formulas,
)
from jaxprune.commands.output import note

if TYPE_CHECKING:
    from jaxprune.language.expression import Expression
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
    add_task_option(parser, required=True)
    parser.add_argument(
        "--against",
        default="l1,l2",
        metavar="NAMES",
        help="names and formulas to compare with, separated by commas (default: l1,l2)",
    )
    add_measuring_options(parser, bases=8)
    add_output_options(parser, "runs/transfer")


def run_transfer(arguments: argparse.Namespace) -> int:
    """Compares a frozen formula with others, prints the table, and writes table, measurements and rank diagram.

    Raises:
      ValueError: for an unknown function, or tasks on which nothing can be compared.
      RunDirectoryError: if the run has no winner that can be read.
    """
    from jaxprune.scoring.lookup import find_function
    from jaxprune.scoring.metrics import name_of

    others = split_formulas(arguments.against)
    if not others:
        raise ValueError(
            f"--against needs names or formulas separated by commas, got {arguments.against!r}. Try --against l1,l2."
        )
    formula: PruningFunction
    if arguments.from_run is None:
        formula = find_function(arguments.formula)
    else:
        formula, tasks = winner_of(arguments.from_run)
        repeated = [name for name in arguments.task if name in tasks]
        if repeated:
            note(f"note: the formula was evolved on {', '.join(repeated)}: there this is no transfer.")
    note(f"frozen formula: {name_of(formula)}")
    functions = {**functions_named(others), "frozen": formula}
    return compare_and_write(arguments, functions)


def winner_of(run_dir: Path) -> tuple[Expression, tuple[str, ...]]:
    """Returns the winner of a run, and the names of the tasks it was evolved on.

    Raises:
      RunDirectoryError: if there is no complete generation, or the state is damaged or of a newer format.
    """
    from jaxprune.search.problem import Problem
    from jaxprune.search.run_directory import load_run

    state = load_run(run_dir, cast(Problem, None))  # a state that is only read asks its problem nothing
    winner = state.ranked()[0]
    if not winner.is_verified:
        note(
            "note: the run ended before its leaders were verified: the formula is the best by prediction alone."
        )
    return winner.expression, tuple(task.name for task in state.tasks)
