"""What several commands share: options, lists of formulas, tables of text, files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.config import TASK_OPTIONS, make_tasks, task_options

if TYPE_CHECKING:
    from jaxprune.tasks.base_networks import Base
    from jaxprune.tasks.tasks import Task

BASES_DIR = "runs/bases"
"""Where base networks of single commands are kept, so that the next command finds them trained."""

SEARCH_ONLY = ("bases", "extra_bases", "final_bases", "weight")
"""Options of a task that only a search, with its report, reads."""


def say(text: str = "") -> None:
    """Writes a line of a command's result to the standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Writes a line about progress to the standard error, so that results can be piped."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def on_base(task: str, base: Base) -> None:
    """Tells of a base network that is ready."""
    note(f"base network {base.index} of {task}: {base.accuracy:.1f} % validation accuracy")


def add_task_options(parser: argparse.ArgumentParser, names: Iterable[str] = TASK_OPTIONS) -> None:
    """Adds `--bases` and its like, each taking a value for all tasks or `task=value,task=value`."""
    group = parser.add_argument_group(
        "changes to tasks",
        "each a value for all tasks, or task=value,task=value; by default as the task says",
    )
    for name in names:
        kind, about = TASK_OPTIONS[name]
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(flag(name), default=argparse.SUPPRESS, metavar=metavar, help=about)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every command on trained networks needs: seed and where base networks are kept."""
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="networks, data orders and random plans follow from it (default: 0)",
    )
    parser.add_argument(
        "--bases-dir",
        type=Path,
        default=Path(BASES_DIR),
        metavar="DIR",
        help=f"where trained base networks are kept for the next command (default: {BASES_DIR})",
    )


def tasks_of(arguments: argparse.Namespace, names: Sequence[str], skipped: Sequence[str] = ()) -> list[Task]:
    """The tasks of these names, with the task options of the command line but the `skipped` ones."""
    given = {
        name: getattr(arguments, name)
        for name in TASK_OPTIONS
        if hasattr(arguments, name) and name not in skipped
    }
    return make_tasks(names, task_options(given))


def flag(name: str) -> str:
    """An option as it is typed.

    Example:
      >>> flag("max_age")
      '--max-age'
    """
    return f"--{name.replace('_', '-')}"


def split_formulas(text: str) -> list[str]:
    """Names and formulas separated by commas; commas inside parentheses belong to a formula, quotes do not.

    Example:
      >>> split_formulas("l1, mean(rbf(P, Q, 1)),'mean(X)'")
      ['l1', 'mean(rbf(P, Q, 1))', 'mean(X)']
    """
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    bare = [part.strip(" \t\n\"'") for part in parts]
    return [part for part in bare if part]


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the folder of `path`, writes the file, and says where it is.

    Raises:
      ValueError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise ValueError(
            f"{path} needs to be a place that can be written to, got: {error.strerror or error}. Name another."
        ) from error
    note(f"wrote {path}")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step and says where it is.

    Raises:
      ValueError: if it cannot be written.
    """
    from jaxprune.files import write_atomically

    write_file(path, lambda target: write_atomically(target, text))
