"""Options that limit how many channels groups keep, for every command that makes plans."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxprune.pruning.scopes import Limits


def add_group_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the options that choose groups.

    Args:
      parser: of a command.
      what: happens to the groups that are chosen, after "that".
    """
    parser.add_argument(
        "--groups",
        action="append",
        metavar="GROUP",
        help=f"a group, or pattern of groups, that {what}; may be repeated (default: all)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="GROUP",
        help=f"a group, or pattern of groups, of which none {what}; may be repeated",
    )


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


def read_kept_counts(text: str, groups: Sequence[str] = ()) -> dict[str, int] | list[int]:
    """Reads how many channels each group keeps from "6,12,24" or "conv1.kernel=6,conv2.kernel=12".

    Args:
      text: of the command line.
      groups: of the network, in program order; () if they are not known yet.

    Returns:
      Group -> count; counts alone for such text while groups are not known.

    Raises:
      ValueError: for other text, and for more or fewer numbers than groups.

    Example:
      >>> read_kept_counts("6,12", ["conv1.kernel", "conv2.kernel"]), read_kept_counts("6,12")
      ({'conv1.kernel': 6, 'conv2.kernel': 12}, [6, 12])
    """
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.rsplit("=", 1) for part in parts if "=" in part]
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"--kept-counts needs each group once, got {text!r}.")
    try:
        if len(pairs) == len(parts):
            return {name: int(count) for name, count in pairs}
        counts = [int(part) for part in parts]
    except ValueError as error:
        raise ValueError(
            f"--kept-counts needs whole numbers as in 6,12,24 or {groups[0] if groups else 'GROUP'}=6, got {text!r}."
        ) from error
    if not groups:
        return counts
    if len(counts) != len(groups):
        raise ValueError(
            f"--kept-counts needs {len(groups)} numbers, one each for {', '.join(groups)}, got {len(counts)}."
        )
    return dict(zip(groups, counts, strict=True))


def _number(option: str, text: str) -> int | float:
    """Reads a whole number of channels, or a fraction."""
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise ValueError(
            f"{option} needs a number of channels, a fraction, GROUP=N,... or FILE.json, got {text!r}."
        ) from error
