"""`jaxprune compare`: measures functions on equal networks, as tables and figures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jaxprune.commands.comparison_options import (
    ALL,
    add_measuring_options,
    add_output_options,
    add_task_option,
    compare_and_write,
    functions_named,
    read_frozen,
    split_formulas,
)
from jaxprune.commands.network_options import DEFAULT_TASK
from jaxprune.commands.output import note

if TYPE_CHECKING:
    from jaxprune.scoring.metrics import PruningFunction


_RIVALS = "l1,l2"
"""What one function is compared with by default."""


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune compare`."""
    add_task_option(parser)
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help="names and formulas separated by commas, l1,l2,\"mean(X)\" for instance; all is the library and our own "
        f"seeds (default: {ALL}; with --function {_RIVALS}). l2, random plans and training from scratch always have "
        "a row",
    )  # fmt: skip
    parser.add_argument(
        "--function",
        metavar="FUNCTION",
        help="a formula, the name of one, or the folder of a run, whose winner it is: a row called frozen",
    )
    add_measuring_options(parser, bases=8)
    add_output_options(parser, "runs/compare")


def run_compare(arguments: argparse.Namespace) -> int:
    """Compares functions, prints the table, and writes table, measurements and rank diagram.

    Raises:
      ValueError: if there is nothing to compare, or it cannot be compared.
      RunDirectoryError: if the run of `--function` has no winner that can be read.
    """
    if arguments.metrics is None:
        arguments.metrics = ALL if arguments.function is None else _RIVALS
    names = split_formulas(arguments.metrics)
    if not names:
        raise ValueError(
            f"--metrics needs names or formulas separated by commas, got {arguments.metrics!r}. "
            "Try --metrics l1,l2,random."
        )
    functions: dict[str, PruningFunction] = functions_named(names)
    if arguments.function is not None:
        frozen = read_frozen(arguments.function)
        repeated = [name for name in arguments.task or [DEFAULT_TASK] if name in frozen.tasks]
        if repeated:
            note(f"note: the formula was evolved on {', '.join(repeated)}: there this is no transfer.")
        functions["frozen"] = frozen.function
    return compare_and_write(arguments, functions)
