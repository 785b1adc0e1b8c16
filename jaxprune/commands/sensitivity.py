"""`jaxprune sensitivity`: accuracy of a network against the kept fraction of each group, and floors for pruning."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.budget_options import add_group_options
from jaxprune.commands.network_options import (
    DEFAULT_TASK,
    SEARCH_ONLY,
    add_base_options,
    add_own_network_options,
    add_task_options,
    measured_network,
)
from jaxprune.commands.output import (
    add_overwrite_option,
    claim,
    has_matplotlib,
    note,
    noted_warnings,
    say,
    write_figure,
    write_text,
)
from jaxprune.text import columns

if TYPE_CHECKING:
    from jaxprune.comparison.group_sensitivity import Sensitivity


def add_sensitivity(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune sensitivity`."""
    parser.add_argument(
        "--metric", default="l2", metavar="FORMULA", help="a formula, or the name of one (default: l2)"
    )
    parser.add_argument(
        "--fractions",
        metavar="X,X,...",
        help="kept fractions of a group's channels to measure (default: 0.1,0.2,...,0.9)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="floors keep so many channels of a group that accuracy drops by at most this, in percent (default: 1)",
    )
    add_group_options(parser, what="is measured")
    parser.add_argument(
        "--factor",
        choices=("inner", "outer", "both"),
        default="inner",
        help="what is measured where two groups share every index: the places within heads (inner), whole heads "
        "(outer), or both (default: inner)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/sensitivity"),
        metavar="DIR",
        help="folder for sensitivity.json, floors.json and sensitivity.png (default: runs/sensitivity)",
    )
    add_overwrite_option(parser)
    add_base_options(parser, default=f"default without --network: {DEFAULT_TASK}")
    add_own_network_options(parser)
    add_task_options(parser, without=SEARCH_ONLY)


def run_sensitivity(arguments: argparse.Namespace) -> int:
    """Measures the network that the command line names, prints a table, and writes numbers, floors and a picture.

    Raises:
      ValueError: for a function without finite scores, fractions out of range, a network that cannot be masked, or a
        folder that cannot be written.
    """
    from jaxprune.comparison.group_sensitivity import FRACTIONS, sensitivity
    from jaxprune.scoring.lookup import find_function
    from jaxprune.scoring.metrics import name_of
    from jaxprune.scoring.ranking import Ranking, rank_groups

    names = ("sensitivity.json", "floors.json", "sensitivity.png")
    claim([arguments.out / name for name in names], overwrite=arguments.overwrite)
    fractions = FRACTIONS if arguments.fractions is None else _fractions(arguments.fractions)
    if not 0 <= arguments.max_drop < float("inf"):
        raise ValueError(f"--max-drop needs points of accuracy >= 0, got {arguments.max_drop}.")
    f = find_function(arguments.metric)
    network = measured_network(arguments)
    with noted_warnings():
        ranking = rank_groups(f, network.observed, groups=arguments.groups, ignore=arguments.ignore)
    if not isinstance(ranking, Ranking):
        raise ValueError(
            f"sensitivity needs finite scores that differ, got none from {name_of(f)}: {ranking}."
        )
    found = sensitivity(
        network.model,
        ranking.scores,
        (network.images, network.labels),
        fractions=fractions,
        groups=arguments.groups,
        ignore=arguments.ignore,
        factor=arguments.factor,
        metric=f,
        on_message=note,
    )
    floors = found.floors(arguments.max_drop)
    try:
        write_text(arguments.out / "sensitivity.json", found.to_json() + "\n")
        write_text(arguments.out / "floors.json", json.dumps(floors, indent=1) + "\n")
        if has_matplotlib():
            from jaxprune.figures.sensitivity_figure import sensitivity_figure

            write_figure(
                arguments.out / "sensitivity.png",
                sensitivity_figure(found, f"Sensitivity of {network.title}"),
            )
    finally:  # what was measured is shown even if the disk is full
        _print(found, floors, network.title, arguments.max_drop)
    return 0


def _print(found: Sensitivity, floors: dict[str, int], title: str, max_drop: float) -> None:
    """Prints the accuracies, and how many channels each group keeps at least."""
    say(
        f"{found.metric}  on {title}: {found.dense_accuracy:.2f} % of {found.num_labels} right with all channels"
    )
    say(f"{found}\n")
    rows = [(name, f"{count} of {found.widths[name]}") for name, count in floors.items()]
    say(columns([("group", f"fewest channels for a drop of at most {max_drop:g}"), *rows]))


def _fractions(text: str) -> list[float]:
    """Reads fractions from "0.25,0.5"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--fractions needs numbers in (0, 1], as in 0.25,0.5, got {text!r}.") from error
