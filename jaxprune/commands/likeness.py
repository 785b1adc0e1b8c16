"""The part of `jaxprune explain` that needs a network: what a formula costs there, and which metrics rank like it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxprune.commands.common import columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jaxprune.language.expression import Expression
    from jaxprune.observation.observed import Observed
    from jaxprune.scoring.formula_cost import LayerCost
    from jaxprune.scoring.metrics import PruningFunction
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
    from jaxprune.scoring.rank_correlation import correlate
    from jaxprune.scoring.ranking import score_functions

    others = named_metrics()
    own, *found = score_functions([f, *others.values()], observed)
    correlations = correlate(own, dict(zip(others, found, strict=True))) if own.status == "ok" else None
    return Likeness(network, layer_costs(f, observed), own, correlations)


def named_metrics() -> Mapping[str, PruningFunction]:
    """Everything that a formula is compared with: the zoo and our own seeds."""
    from jaxprune.language.library import own_seeds
    from jaxprune.scoring.metrics import metrics

    return {**metrics, **{name: f for name, f in own_seeds.items() if name not in metrics}}


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
