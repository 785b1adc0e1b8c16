"""The part of `jaxprune explain` that needs a network: what a formula costs there, and which metrics rank like it."""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jaxprune.commands.common import note, say, write_file
from jaxprune.commands.explain_network import add_structure_options, check_no_structure_options, run_structure
from jaxprune.commands.list import Row
from jaxprune.commands.network_options import (
    add_base_options,
    add_own_network_options,
    is_network_given,
    observed_of,
)
from jaxprune.language.axes import type_name
from jaxprune.language.expression import Expression
from jaxprune.language.library import sources
from jaxprune.language.operators import Backend
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.text import columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxprune.language.expression import Expression
    from jaxprune.observation.observed import Observed
    from jaxprune.scoring.formula_cost import LayerCost
    from jaxprune.scoring.rank_correlation import Correlations
    from jaxprune.scoring.ranking import Scored


@dataclass(frozen=True, eq=False)
class Likeness:
    """A formula on one network."""

    network: str
    costs: list[LayerCost]
    scored: Scored
    correlations: Correlations | None
    """With every named function that has scores there; None if the formula itself has none."""


def find_likeness(f: Expression, network: str, observed: Observed) -> Likeness:
    """Scores a formula and every named function on a network in one batched call, and compares their orders.

    Args:
      f: a pruning function.
      network: what to call the network.
      observed: what `observe` returns.
    """
    from jaxprune.scoring.formula_cost import layer_costs
    from jaxprune.scoring.lookup import FUNCTIONS
    from jaxprune.scoring.rank_correlation import correlate
    from jaxprune.scoring.ranking import score_functions

    own, *found = score_functions([f, *FUNCTIONS.values()], observed)
    correlations = correlate(own, dict(zip(FUNCTIONS, found, strict=True))) if own.status == "ok" else None
    return Likeness(network, layer_costs(f, observed), own, correlations)


def as_lines(found: Likeness) -> list[str]:
    """The tables as printed lines."""
    refusals = [f"{cost.producer}: {cost.refusal}" for cost in found.costs if cost.refusal]
    rows = [
        (cost.producer, cost.channels, cost.bytes_per_channel, f"{cost.flops:.3g}") for cost in found.costs
    ]
    lines = [
        f"estimated cost on {found.network}",
        columns([("layer", "channels", "bytes a channel", "operations"), *rows], indent=2),
        *refusals,
    ]
    if found.correlations is None:
        return [*lines, "", f"no rank correlations: {found.scored.status}, {found.scored.detail}"]
    shown = found.correlations
    head = ["", *(group.removesuffix(".kernel") for group in shown.groups), "mean", "together"]
    table = [
        [name, *(_shown(each) for each in (*row, mean, together))]
        for name, row, mean, together in zip(
            shown.names, shown.by_group, shown.mean, shown.together, strict=True
        )
    ]
    lines += ["", f"rank correlations on {found.network}", columns([head, *table], indent=2)]
    if shown.left_out:
        lines += ["  not compared:", *(f"    {name}: {why}" for name, why in shown.left_out.items())]
    return lines


def as_facts(found: Likeness) -> dict[str, object]:
    """The same as plain data; what is not defined is null."""
    facts: dict[str, object] = {
        "network": found.network,
        "cost": [cost._asdict() for cost in found.costs],
        "status": found.scored.status,
        "detail": found.scored.detail,
    }
    shown = found.correlations
    if shown is not None:
        facts["rank_correlations"] = {
            name: {
                **dict(zip(shown.groups, _plain(shown.by_group[row]), strict=True)),
                "mean": _plain([shown.mean[row]])[0],
                "together": _plain([shown.together[row]])[0],
            }
            for row, name in enumerate(shown.names)
        }
        facts["not_compared"] = dict(shown.left_out)
    return facts


def _shown(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else ""


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


# === merged: """`jaxprune list` and `jaxprune explain`: what there is, and what a formula says.


FACTS = ("formula", "name", "source", "type", "operands", "complexity", "size", "depth", "latex")
"""What `explain` shows, in this order."""


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune explain`."""
    parser.add_argument(
        "formula",
        metavar="FORMULA",
        nargs="?",
        help='a formula such as "sum(abs(WI))", or the name of one; without it, the groups of --network are shown',
    )
    parser.add_argument(
        "--code", choices=get_args(Backend), help="print self-contained source code instead, for this library"
    )
    parser.add_argument(
        "--tree", type=Path, metavar="FILE.png", help="draw the formula as a tree (needs matplotlib)"
    )
    parser.add_argument("--only", choices=FACTS, help="print this fact alone")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE.png",
        help="draw the formula's rank correlations with every metric, on --task or --network; without a formula, the "
        "groups of the network (needs matplotlib)",
    )
    add_base_options(parser, default="with it come the cost there, and which metrics rank alike")
    add_own_network_options(parser)
    add_structure_options(parser)


def run_explain(arguments: argparse.Namespace) -> int:
    """Prints what a formula is, and what it does on a network where one is named; or what the network is made of."""
    if arguments.formula is None:
        return run_structure(arguments)
    check_no_structure_options(arguments)
    from jaxprune.scoring.lookup import find_formula, known_name

    f = find_formula(arguments.formula)
    has_network = is_network_given(arguments)
    if arguments.figure is not None and not has_network:
        raise ValueError("--figure needs a network to score, got none. Name one with --task or --network.")
    if arguments.tree is not None:
        from jaxprune.figures.formula_tree import tree_figure
        from jaxprune.figures.style import save_figure

        write_file(arguments.tree, lambda path: save_figure(tree_figure(f, known_name(f)), path))
    if arguments.code:
        say(f.code(arguments.code).rstrip("\n"))
        return 0
    facts = explain(f)
    found = _likeness(f, arguments) if has_network and not arguments.only else None
    if arguments.only:
        say(str(facts[arguments.only]))
    elif arguments.json:
        say(json.dumps(facts if found is None else facts | as_facts(found), indent=2))
    else:
        shown = {name: value for name, value in facts.items() if value not in ("", None)}
        width = max(map(len, shown))
        for name, value in shown.items():
            text = f"{name:{width}}  {value}"
            is_long = name not in ("formula", "latex")  # which are for copying
            say(textwrap.fill(text, 110, subsequent_indent=" " * (width + 2)) if is_long else text)
        if f.type != ():
            note(
                f"This is no pruning function yet: its value has the axes {type_name(f.type)}. "
                "Reduce it to one number, with sum(...) or mean(...) for instance."
            )
        for line in [] if found is None else ["", *as_lines(found)]:
            say(line)
    return 0


def _likeness(f: Expression, arguments: argparse.Namespace) -> Likeness:
    """The formula on the network of the command line; draws the figure if one is wanted."""
    from jaxprune.scoring.compiled import check_scalar

    check_scalar(f)
    network, observed = observed_of(arguments)
    found = find_likeness(f, network, observed)
    correlations = found.correlations
    if arguments.figure is not None and correlations is None:
        raise ValueError(
            f"--figure needs a formula with scores on {network}, got one that is {found.scored.status}: "
            f"{found.scored.detail}."
        )
    if arguments.figure is not None and correlations is not None:
        from jaxprune.figures.layer_figures import correlation_figure
        from jaxprune.figures.style import save_figure
        from jaxprune.scoring.lookup import display_name

        title = f"{display_name(f)}, {network}"
        write_file(arguments.figure, lambda path: save_figure(correlation_figure(correlations, title), path))
    return found


def explain(f: Expression) -> Row:
    r"""The facts about a formula, by the names of `FACTS`.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> facts = explain(parse("sum(abs(WI))"))
      >>> facts["name"], facts["operands"], facts["latex"]
      ('l1', 'WI: weights that produce the channel', '\\operatorname{sum}\\left(\\left|w\\right|\\right)')
    """
    from jaxprune.scoring.lookup import known_name

    name = known_name(f)
    operands = [f"{each}: {OPERANDS[each].description}" for each in OPERANDS if each in f.operands]
    return {
        "formula": str(f),
        "name": name,
        "source": _source_of(name),
        "type": type_name(f.type),
        "operands": "; ".join(operands) or "none",
        "complexity": f.complexity,
        "size": f.size,
        "depth": f.depth,
        "latex": f.latex(),
    }


def _source_of(name: str) -> str:
    from jaxprune.scoring.metrics import metrics

    return metrics[name].source if name in metrics else sources.get(name, "")
