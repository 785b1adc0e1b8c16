"""`jaxprune score`: scores all channels of a network by one or many functions, and says what became of each."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jaxprune.commands.budget_options import add_group_options
from jaxprune.commands.network_options import (
    DEFAULT_TASK,
    SEARCH_ONLY,
    add_base_options,
    add_own_network_options,
    add_task_options,
    observed_of,
)
from jaxprune.commands.output import add_overwrite_option, claim, note, say, write_text
from jaxprune.text import columns

if TYPE_CHECKING:
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.scoring.ranking import Scored


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
    add_overwrite_option(parser)
    parser.add_argument(
        "--aggregation",
        choices=get_args(Aggregation),
        default="relative",
        help="relative scores, divided by the mean magnitude of each layer, or others (default: relative)",
    )
    add_group_options(parser, what="is scored")
    add_base_options(parser, default=f"default without --network: {DEFAULT_TASK}")
    add_own_network_options(parser)
    add_task_options(parser, without=SEARCH_ONLY)


def run_score(arguments: argparse.Namespace) -> int:
    """Prints or writes the scores of all channels.

    Returns:
      The exit status: 1 if no function has scores, otherwise 0.

    Raises:
      ValueError: for functions, networks, data or files that cannot be used.
    """
    from jaxprune.scoring.lookup import display_name
    from jaxprune.scoring.ranking import score_functions

    if arguments.output is not None and arguments.output.suffix not in (".csv", ".json"):
        raise ValueError(f"--output needs a name that ends in .csv or .json, got {arguments.output}.")
    if arguments.output is not None:
        inputs = [Path(path).resolve() for path in (arguments.file, arguments.data) if path is not None]
        if arguments.output.resolve() in inputs:
            raise ValueError(
                f"--output needs another file than the one that is read, got {arguments.output}."
            )
        claim([arguments.output], overwrite=arguments.overwrite)
    elif arguments.overwrite:
        raise ValueError("--overwrite needs a file to replace, got none. Name one with --output.")
    functions = read_formulas(arguments.formulas, arguments.file)
    network, observed = observed_of(arguments)
    scored = score_functions(
        functions,
        observed,
        groups=arguments.groups,
        ignore=arguments.ignore,
        aggregation=arguments.aggregation,
    )
    names = [display_name(f) for f in functions]

    def text(kind: str) -> str:
        return _json(network, names, functions, scored) if kind == "json" else _csv(names, scored)

    if arguments.output is not None:
        write_text(arguments.output, text(arguments.output.suffix[1:]))
    if arguments.format in ("csv", "json"):
        say(text(arguments.format).rstrip("\n"))
    elif arguments.format == "table" or arguments.output is None:
        say(columns(_table(names, scored, lambda score: f"{score:.5g}")) + "\n")
    if arguments.format != "json":
        show = note if arguments.format == "csv" else say
        show(_outcomes(names, scored))
    return 0 if any(result.status == "ok" for result in scored) else 1


def read_formulas(texts: Sequence[str], file: Path | None = None) -> list[PruningFunction]:
    """Finds the functions of a command line and of a file, in their order; repeated ones stay repeated.

    Args:
      texts: names and formulas.
      file: one name or formula a line; empty lines, and what follows a `#`, are skipped.

    Raises:
      ValueError: if there are none, the file cannot be read, or one is no pruning function (the message names the
        line).

    Example:
      >>> [str(f) for f in read_formulas(["l1", "mean(X) * 2"])]
      ['sum(abs(WI))', 'mean(X)*2']
    """
    from jaxprune.scoring.lookup import find_function

    functions = [find_function(text) for text in texts]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise ValueError(
                f"--formulas needs a text file with a formula a line, got {file}: {reason}."
            ) from error
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            try:
                functions += [find_function(text)] if text else []
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
    if not functions:
        where = f" on the command line or in {file}" if file is not None else ""
        raise ValueError(
            f"score needs at least one formula, got none{where}. Give some, or --formulas FILE; "
            "`jaxprune list metrics` shows known ones."
        )
    return functions


def _table(
    names: Sequence[str], scored: Sequence[Scored], show: Callable[[float], object]
) -> list[list[object]]:
    """Returns a head and one row per channel, with one column per function."""
    rows: list[list[object]] = [["group", "channel", *names]]
    for group, scores in scored[0].scores.items():
        for channel in range(len(scores)):
            rows.append([group, channel, *(show(result.scores[group][channel]) for result in scored)])
    return rows


def _csv(names: Sequence[str], scored: Sequence[Scored]) -> str:
    """Returns the table with all digits; scores that are not finite are nan, inf or -inf."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_table(names, scored, float))
    return text.getvalue()


def _json(
    network: str, names: Sequence[str], functions: Sequence[PruningFunction], scored: Sequence[Scored]
) -> str:
    """Returns every function with its status and its scores by group; scores that are not finite are null."""
    from jaxprune.scoring.metrics import name_of

    rows = [
        {
            "name": name,
            "formula": name_of(f),
            "status": result.status,
            "detail": result.detail,
            "constant_groups": list(result.constant_groups),
            "scores": {
                group: [score if math.isfinite(score) else None for score in scores.tolist()]
                for group, scores in result.scores.items()
            },
        }
        for name, f, result in zip(names, functions, scored, strict=True)
    ]
    return json.dumps({"network": network, "functions": rows}, indent=1, allow_nan=False) + "\n"


def _outcomes(names: Sequence[str], scored: Sequence[Scored]) -> str:
    """Returns lines that say what became of each function."""
    rows = [("function", "status", "")]
    for name, result in zip(names, scored, strict=True):
        constant = ", ".join(result.constant_groups) if result.status == "ok" else ""
        notes = (f"equal scores in {constant}" if constant else "", result.detail)
        rows.append((name, result.status, "; ".join(note for note in notes if note)))
    return columns(rows)
