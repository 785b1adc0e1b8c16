"""`jaxprune score`: one or many functions on all channels of a network, with what became of each."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jaxprune.commands.common import note, say, write_text
from jaxprune.commands.network_options import (
    DEFAULT_TASK,
    add_base_options,
    add_own_network_options,
    add_task_changes,
    observed_of,
)
from jaxprune.text import columns

if TYPE_CHECKING:
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.scoring.ranking import Scored

SUFFIXES = (".csv", ".json")
"""Kinds of files that scores can be written to."""


def add_score(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune score`."""
    from jaxprune.scoring.ranking import Aggregation

    parser.add_argument("formulas", nargs="*", metavar="FORMULA", help="formulas, or names of known ones")
    parser.add_argument(
        "--formulas",
        dest="file",
        type=Path,
        metavar="FILE",
        help="a file with further formulas, one a line; what follows # is a comment",
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), help="how to print (default: table)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the scores to FILE.csv or FILE.json instead, and print only what became of each function",
    )
    parser.add_argument(
        "--aggregation",
        choices=get_args(Aggregation),
        default="relative",
        help="relative scores, divided by the mean magnitude of each layer, or others (default: relative)",
    )
    add_base_options(parser, default=f"default without --network: {DEFAULT_TASK}")
    add_own_network_options(parser)
    add_task_changes(parser)


def run_score(arguments: argparse.Namespace) -> int:
    """Prints or writes the scores of all channels; the exit status is 1 if no function has any."""
    from jaxprune.scoring.lookup import display_name
    from jaxprune.scoring.ranking import score_functions

    if arguments.output is not None and arguments.output.suffix not in SUFFIXES:
        raise ValueError(f"--output needs a name that ends in .csv or .json, got {arguments.output}.")
    functions = read_formulas(arguments.formulas, arguments.file)
    network, observed = observed_of(arguments)
    found = score_functions(functions, observed, aggregation=arguments.aggregation)
    names = [display_name(f) for f in functions]
    if arguments.output is not None:
        as_text = (
            as_csv(names, found) if arguments.output.suffix == ".csv" else as_json(network, functions, found)
        )
        write_text(arguments.output, as_text)
    if arguments.format == "json":
        say(as_json(network, functions, found).rstrip("\n"))
    elif arguments.format == "csv":
        say(as_csv(names, found).rstrip("\n"))
        for line in status_lines(names, found):
            note(line)
    else:
        if arguments.output is None or arguments.format == "table":
            say(as_table(names, found))
            say()
        for line in status_lines(names, found):
            say(line)
    return 0 if any(each.status == "ok" for each in found) else 1


def read_formulas(texts: Sequence[str], file: Path | None = None) -> list[PruningFunction]:
    """The functions of a command line and of a file, in their order; one that comes twice stays twice.

    Args:
      texts: names and formulas.
      file: one formula a line; empty lines, and what follows a `#`, are left out.

    Raises:
      ValueError: if there are none, the file cannot be read, or one is no pruning function; names the line.

    Example:
      >>> [str(f) for f in read_formulas(["l1", "mean(X) * 2"])]
      ['sum(abs(WI))', 'mean(X)*2']
    """
    from jaxprune.scoring.lookup import find_function

    found = [find_function(text) for text in texts]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise ValueError(
                f"--formulas needs a text file with a formula a line, got {file}: {reason}."
            ) from error
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            try:
                found += [find_function(text)] if text else []
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
    if not found:
        where = f" on the command line or in {file}" if file is not None else ""
        raise ValueError(
            f"score needs at least one formula, got none{where}. Give some, or --formulas FILE; "
            "`jaxprune list metrics` shows known ones."
        )
    return found


def as_table(names: Sequence[str], found: Sequence[Scored]) -> str:
    """One line per channel, one column per function."""
    return columns([["group", "channel", *names], *_rows(found, lambda score: f"{score:.5g}")])


def as_csv(names: Sequence[str], found: Sequence[Scored]) -> str:
    """The same with all digits; a score that is not finite is nan, inf or -inf."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "channel", *names])
    writer.writerows(_rows(found, float))
    return text.getvalue()


def as_json(network: str, functions: Sequence[PruningFunction], found: Sequence[Scored]) -> str:
    """Every function with its status and its scores by group; a score that is not finite is null."""
    from jaxprune.scoring.lookup import display_name
    from jaxprune.scoring.metrics import name_of

    plain = [
        {
            "name": display_name(f),
            "formula": name_of(f),
            "status": each.status,
            "detail": each.detail,
            "constant_groups": list(each.constant_groups),
            "scores": {
                group: [score if math.isfinite(score) else None for score in scores.tolist()]
                for group, scores in each.scores.items()
            },
        }
        for f, each in zip(functions, found, strict=True)
    ]
    return json.dumps({"network": network, "functions": plain}, indent=1, allow_nan=False) + "\n"


def status_lines(names: Sequence[str], found: Sequence[Scored]) -> list[str]:
    """What became of each function, a line each."""
    rows = []
    for name, each in zip(names, found, strict=True):
        some = ", ".join(each.constant_groups) if each.status == "ok" else ""
        rows.append((name, each.status, f"equal scores in {some}" if some else each.detail))
    return columns([("function", "status", ""), *rows]).splitlines()


def _rows(found: Sequence[Scored], show: Callable[[float], object]) -> Iterator[list[object]]:
    for group, scores in found[0].scores.items():
        for channel in range(len(scores)):
            yield [group, channel, *(show(each.scores[group][channel]) for each in found)]
