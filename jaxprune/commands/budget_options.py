"""Options that limit how many channels groups keep, for every command that makes plans."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxprune.pruning.scopes import Limits


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--min-kept` and `--max-kept`."""
    form = (
        "a number of channels, a fraction of a group with a point in it, GROUP=N,GROUP=X,... with patterns of groups, "
        "or FILE.json with such an object, as jaxprune sensitivity writes floors.json"
    )
    parser.add_argument("--min-kept", metavar="LIMITS", help=f"the least that groups keep: {form}")
    parser.add_argument("--max-kept", metavar="LIMITS", help="the most that groups keep, likewise")


def read_limits(option: str, text: str | None) -> Limits | None:
    """Reads limits of groups from the command line.

    Args:
      option: as it is typed, for messages.
      text: of the command line, or None.

    Returns:
      What `jp.plan` takes as `min_kept` or `max_kept`.

    Raises:
      ValueError: for text that is no limit, and a file that cannot be read.

    Example:
      >>> read_limits("--min-kept", "8"), read_limits("--min-kept", "conv*=4,dense.kernel=0.5")
      (8, {'conv*': 4, 'dense.kernel': 0.5})
    """
    if text is None:
        return None
    if text.endswith(".json"):
        try:
            limits = json.loads(Path(text).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not JSON"
            raise ValueError(
                f"{option} needs a JSON file with a limit for each group, got {text}: {reason}."
            ) from error
        if not isinstance(limits, dict):
            raise ValueError(
                f"{option} needs a JSON file with a limit for each group, got {text}: no object."
            )
        return limits
    if "=" not in text:
        return _number(option, text)
    pairs = [part.strip().rpartition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{option} needs each group once, as in conv*=4,dense.kernel=0.5, got {text!r}.")
    return {name: _number(option, value) for name, _, value in pairs}


def _number(option: str, text: str) -> int | float:
    """Reads a whole number of channels, or a fraction."""
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise ValueError(
            f"{option} needs a number of channels, a fraction, GROUP=N,... or FILE.json, got {text!r}."
        ) from error
