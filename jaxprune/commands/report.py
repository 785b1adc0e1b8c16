"""`jaxprune report`: writes the report of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxprune.commands.output import say


def add_report(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune report`."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run")


def run_report(arguments: argparse.Namespace) -> int:
    """Writes the report of a run again from its files, without training anything.

    Raises:
      ImportError: if matplotlib is missing.
      ValueError: if the run's report was replaced by something else.
      RunDirectoryError: if there is no complete generation, or a file is damaged or of a newer format.
    """
    from jaxprune.report.writing import render_report

    say(f"Report: {render_report(arguments.run_dir)}")
    return 0
