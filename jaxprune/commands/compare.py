"""`jaxprune compare`: measures functions on equal networks, as tables and figures."""

from __future__ import annotations

import argparse

from jaxprune.commands.comparison_options import (
    ALL,
    add_measuring_options,
    add_output_options,
    add_task_option,
    compare_and_write,
    functions_named,
    split_formulas,
)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune compare`."""
    add_task_option(parser)
    parser.add_argument(
        "--metrics",
        default=ALL,
        metavar="NAMES",
        help="names and formulas separated by commas, l1,l2,\"mean(X)\" for instance; all is the library and our own "
        "seeds (default: all). l2, random plans and training from scratch always have a row",
    )  # fmt: skip
    add_measuring_options(parser, bases=8)
    add_output_options(parser, "runs/compare")


def run_compare(arguments: argparse.Namespace) -> int:
    """Compares functions, prints the table, and writes table, measurements and rank diagram.

    Raises:
      ValueError: if there is nothing to compare, or it cannot be compared.
    """
    names = split_formulas(arguments.metrics)
    if not names:
        raise ValueError(
            f"--metrics needs names or formulas separated by commas, got {arguments.metrics!r}. "
            "Try --metrics l1,l2,random."
        )
    return compare_and_write(arguments, functions_named(names))
