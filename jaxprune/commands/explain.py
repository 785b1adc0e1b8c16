"""`jaxprune explain`: what a formula is, and on a network what it costs and which metrics rank like it.

Without a formula it shows the groups of a network (`explain_network`).
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jaxprune.commands.explain_network import add_structure_options, check_no_structure_options, run_structure
from jaxprune.commands.network_options import (
    add_base_options,
    add_data_dir_option,
    add_own_network_options,
    flag,
    is_network_given,
    observed_of,
)
from jaxprune.commands.output import add_overwrite_option, claim, note, say, write_figure
from jaxprune.language.axes import type_name
from jaxprune.text import columns

if TYPE_CHECKING:
    from jaxprune.language.expression import Expression
    from jaxprune.observation.observed import Observed
    from jaxprune.scoring.formula_cost import LayerCost
    from jaxprune.scoring.rank_correlation import Correlations
    from jaxprune.scoring.ranking import Scored

FACTS = ("formula", "name", "source", "type", "operands", "complexity", "size", "depth", "latex")
"""What `explain` shows, in this order."""


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune explain`."""
    from jaxprune.language.operators import Backend

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
    add_overwrite_option(parser)
    add_base_options(parser, default="with it come the cost there, and which metrics rank alike")
    add_data_dir_option(parser)
    add_own_network_options(parser)
    add_structure_options(parser)


def run_explain(arguments: argparse.Namespace) -> int:
    """Prints what a formula is, and what it does on a network if one is named; without a formula, a network's groups.

    Returns:
      The exit status: 1 for a network without groups, otherwise 0.

    Raises:
      ValueError: for a formula, network or options that cannot be used.
    """
    files = [path for path in (arguments.tree, arguments.figure) if path is not None]
    if arguments.overwrite and not files:
        raise ValueError("--overwrite needs a file to replace, got none. Name one with --tree or --figure.")
    if arguments.formula is None:
        return run_structure(arguments)
    from jaxprune.scoring.lookup import find_formula, known_name

    check_no_structure_options(arguments)
    f = find_formula(arguments.formula)
    has_network = is_network_given(arguments)
    if arguments.figure is not None and not has_network:
        raise ValueError("--figure needs a network to score, got none. Name one with --task or --network.")
    _check_what_is_printed(arguments, has_network=has_network)
    claim(files, overwrite=arguments.overwrite)
    if arguments.tree is not None:
        from jaxprune.figures.formula_tree import tree_figure

        write_figure(arguments.tree, tree_figure(f, known_name(f)))
    if arguments.code:
        say(f.code(arguments.code).rstrip("\n"))
        return 0
    facts = explain(f)
    if arguments.only:
        say(str(facts[arguments.only]))
        return 0
    behaviour = _behaviour_on_network(f, arguments) if has_network else None
    if arguments.json:
        say(json.dumps(facts if behaviour is None else facts | _behaviour_facts(behaviour), indent=2))
        return 0
    _print_facts(f, facts)
    if behaviour is not None:
        say("\n" + "\n".join(_behaviour_lines(behaviour)))
    return 0


def _check_what_is_printed(arguments: argparse.Namespace, *, has_network: bool) -> None:
    """Refuses options that would change nothing: several forms of output, or a network where none is looked at."""
    forms = [flag(name) for name in ("code", "only", "json") if getattr(arguments, name)]
    if len(forms) > 1:
        raise ValueError(f"Give only one of --code, --only and --json, got {' and '.join(forms)}.")
    if forms and forms[0] != "--json" and has_network:
        raise ValueError(
            f"{forms[0]} prints what no network changes, got a network as well. Leave out {forms[0]}, or the network."
        )
    of_networks = [flag(name) for name in ("seed", "bases_dir") if name in arguments.given]
    if of_networks and not has_network:
        raise ValueError(f"{of_networks[0]} needs a network, got none. Name one with --task or --network.")


def explain(f: Expression) -> dict[str, object]:
    r"""Returns the facts about a formula, by the names of `FACTS`.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> facts = explain(parse("sum(abs(WI))"))
      >>> facts["name"], facts["operands"], facts["latex"]
      ('l1', 'WI: weights that produce the channel', '\\operatorname{sum}\\left(\\left|w\\right|\\right)')
    """
    from jaxprune.language.library import sources
    from jaxprune.language.vocabulary import OPERANDS
    from jaxprune.scoring.lookup import known_name
    from jaxprune.scoring.metrics import metrics

    name = known_name(f)
    operands = [
        f"{operand}: {OPERANDS[operand].description}" for operand in OPERANDS if operand in f.operands
    ]
    return {
        "formula": str(f),
        "name": name,
        "source": metrics[name].source if name in metrics else sources.get(name, ""),
        "type": type_name(f.type),
        "operands": "; ".join(operands) or "none",
        "complexity": f.complexity,
        "size": f.size,
        "depth": f.depth,
        "latex": f.latex(),
    }


def _print_facts(f: Expression, facts: dict[str, object]) -> None:
    """Prints the facts in aligned lines, and notes if the formula is no pruning function."""
    shown = {name: value for name, value in facts.items() if value not in ("", None)}
    width = max(map(len, shown))
    for name, value in shown.items():
        text = f"{name:{width}}  {value}"
        is_wrapped = name not in ("formula", "latex")  # people copy these
        say(textwrap.fill(text, 110, subsequent_indent=" " * (width + 2)) if is_wrapped else text)
    if f.type != ():
        note(
            f"This is no pruning function yet: its value has the axes {type_name(f.type)}. "
            "Reduce it to one number, with sum(...) or mean(...) for instance."
        )


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What a formula does on one network.

    Args:
      network: what to call the network.
      costs: the estimated formula cost on every layer.
      scored: its scores there, or why it has none.
      correlations: with every named function that has scores there; None if the formula itself has none.
    """

    network: str
    costs: list[LayerCost]
    scored: Scored
    correlations: Correlations | None


def _behaviour_on_network(f: Expression, arguments: argparse.Namespace) -> Behaviour:
    """Returns what a formula does on the network of the command line, and draws the figure if it is asked for."""
    from jaxprune.scoring.compiled import check_scalar
    from jaxprune.scoring.lookup import display_name

    check_scalar(f)
    network, observed = observed_of(arguments)
    behaviour = find_behaviour(f, network, observed)
    if arguments.figure is None:
        return behaviour
    if behaviour.correlations is None:
        raise ValueError(
            f"--figure needs a formula with scores on {network}, got one that is {behaviour.scored.status}: "
            f"{behaviour.scored.detail}."
        )
    from jaxprune.figures.layer_figures import correlation_figure

    title = f"{display_name(f)}, {network}"
    write_figure(arguments.figure, correlation_figure(behaviour.correlations, title))
    return behaviour


def find_behaviour(f: Expression, network: str, observed: Observed) -> Behaviour:
    """Scores a formula and every named function on a network together, and compares how they order the channels.

    Args:
      f: a pruning function.
      network: what to call the network.
      observed: what `observe` returns.
    """
    from jaxprune.scoring.formula_cost import layer_costs
    from jaxprune.scoring.lookup import FUNCTIONS
    from jaxprune.scoring.rank_correlation import correlate
    from jaxprune.scoring.ranking import score_functions

    scored, *others = score_functions([f, *FUNCTIONS.values()], observed)
    is_scored = scored.status == "ok"
    correlations = correlate(scored, dict(zip(FUNCTIONS, others, strict=True))) if is_scored else None
    return Behaviour(network, layer_costs(f, observed), scored, correlations)


def _behaviour_lines(behaviour: Behaviour) -> list[str]:
    """Returns costs and rank correlations as printed tables."""
    costs, correlations = behaviour.costs, behaviour.correlations
    head = ("layer", "channels", "bytes a channel", "operations")
    rows = [(cost.producer, cost.channels, cost.bytes_per_channel, f"{cost.flops:.3g}") for cost in costs]
    lines = [
        f"estimated cost on {behaviour.network}",
        columns([head, *rows], indent=2),
        *(f"{cost.producer}: {cost.refusal}" for cost in costs if cost.refusal),
        "",
    ]
    if correlations is None:
        return [*lines, f"no rank correlations: {behaviour.scored.status}, {behaviour.scored.detail}"]
    table = [["", *(group.removesuffix(".kernel") for group in correlations.groups), "mean", "together"]]
    for name, values in _correlation_rows(correlations):
        table.append([name, *("" if value is None else f"{value:+.2f}" for value in values)])
    lines += [f"rank correlations on {behaviour.network}", columns(table, indent=2)]
    if correlations.left_out:
        lines += ["  not compared:", *(f"    {name}: {why}" for name, why in correlations.left_out.items())]
    return lines


def _behaviour_facts(behaviour: Behaviour) -> dict[str, object]:
    """Returns costs and rank correlations as plain data; what is undefined is null."""
    facts: dict[str, object] = {
        "network": behaviour.network,
        "cost": [cost._asdict() for cost in behaviour.costs],
        "status": behaviour.scored.status,
        "detail": behaviour.scored.detail,
    }
    correlations = behaviour.correlations
    if correlations is not None:
        names = (*correlations.groups, "mean", "together")
        facts["rank_correlations"] = {
            name: dict(zip(names, values, strict=True)) for name, values in _correlation_rows(correlations)
        }
        facts["not_compared"] = dict(correlations.left_out)
    return facts


def _correlation_rows(correlations: Correlations) -> Iterable[tuple[str, Sequence[float | None]]]:
    """Yields each function's name and its correlations: by group, the mean, and over all channels together."""
    for row, name in enumerate(correlations.names):
        values = (*correlations.by_group[row], correlations.mean[row], correlations.together[row])
        yield name, [float(value) if math.isfinite(value) else None for value in values]
