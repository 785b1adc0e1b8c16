"""`jaxprune report`: writes the report of a run again."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from jaxprune.commands.common import say


def require_report() -> None:
    """Raises before the work where the libraries that draw a report are missing, rather than after it.

    Raises:
      ImportError: if matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "the report needs matplotlib, got none installed. "
            'Run pip install "jaxprune[report]", or skip the report with --no-report.'
        )


def add_report(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune report`."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run")


def run_report(arguments: argparse.Namespace) -> int:
    """Writes the report of a run again, from its files; trains nothing."""
    from jaxprune.report.writing import render_report

    say(f"Report: {render_report(arguments.run_dir)}")
    return 0
