"""`jaxprune prune`: a function at work on one trained network of a task."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.common import say, write_file, write_text
from jaxprune.commands.network_options import add_base_options, add_task_changes, base_pool
from jaxprune.text import columns

if TYPE_CHECKING:
    from flax import nnx

    from jaxprune.pruning.planning import Plan
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.structure.model_state import FlatState
    from jaxprune.tasks.base_networks import BasePool

BUDGETS = ("kept_fraction", "macs_fraction", "params_fraction", "kept_counts")
"""Ways to say how much is kept; one of them, or the task's own schedule."""

NOT_OF_PRUNE = ("kept_fraction", "rounds", "finetune")
"""Options of a task that say how a search prunes; `--kept-fraction` of this command is a budget of its own."""


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune prune`."""
    add_base_options(parser)
    parser.add_argument(
        "--metric", default="l2", metavar="FORMULA", help="a formula, or the name of one (default: l2)"
    )
    budget = parser.add_argument_group(
        "how much is kept", "one of these; by default what the task's schedule keeps at its end"
    )
    budget.add_argument("--kept-fraction", type=float, metavar="X", help="share of each group's channels")
    budget.add_argument("--macs-fraction", type=float, metavar="X", help="share of the multiply-adds")
    budget.add_argument("--params-fraction", type=float, metavar="X", help="share of the parameters")
    budget.add_argument(
        "--kept-counts", metavar="N,N,...", help="channels of each group, in program order or as group=N"
    )
    parser.add_argument(
        "--scope",
        choices=("group", "global"),
        default="group",
        help="one share for every group, or all channels in one ranking (default: group)",
    )
    parser.add_argument(
        "--multiple-of", type=int, default=1, metavar="N", help="round kept counts to multiples (default: 1)"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="GROUP",
        help="a group that stays whole; may be repeated",
    )
    parser.add_argument(
        "--factor",
        choices=("inner", "outer", "both"),
        default="inner",
        help="what loses channels where two groups share every index: the places within heads (inner), whole heads "
        "(outer), or both (default: inner)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/prune"),
        metavar="DIR",
        help="folder for plan.json, result.json and the slim network in slim/ (default: runs/prune)",
    )
    add_task_changes(parser, without=NOT_OF_PRUNE)


def run_prune(arguments: argparse.Namespace) -> int:
    """Prunes and fine-tunes one base network, prints what that did, and writes plan, result and network."""
    from jaxprune.scoring.lookup import find_function
    from jaxprune.scoring.metrics import name_of
    from jaxprune.training.checkpoint import save_network

    f = find_function(arguments.metric)
    pool = base_pool(arguments, skipped=NOT_OF_PRUNE)
    budget = _budget(arguments, pool)
    extra = {
        "scope": arguments.scope,
        "multiple_of": arguments.multiple_of,
        "ignore": tuple(arguments.ignore),
        "factor": arguments.factor,
    }
    pruned = prune_base(pool, arguments.base or 0, f, **budget, **extra)
    kept = [
        (group, f"{len(channels)} of {pruned.plan.widths[group]}")
        for group, channels in pruned.plan.kept.items()
    ]
    say(f"{name_of(f)}  on {pool.task.name}, base {arguments.base or 0}")
    say(columns([("group", "kept"), *kept]))
    say()
    rows = [
        ("", "before", "pruned", "fine-tuned"),
        ("multiply-adds", *(f"{n:,}" for n in (pruned.macs, pruned.slim_macs, pruned.slim_macs))),
        ("parameters", *(f"{n:,}" for n in (pruned.parameters, pruned.slim_parameters, pruned.slim_parameters))),
        (
            "validation accuracy, %",
            *(f"{n:.2f}" for n in (pruned.accuracy, pruned.pruned_accuracy, pruned.finetuned_accuracy)),
        ),
    ]  # fmt: skip
    say(columns(rows))
    write_file(arguments.out / "plan.json", pruned.plan.save)
    write_text(arguments.out / "result.json", json.dumps(pruned.facts, indent=1) + "\n")
    numbers = {"accuracy": pruned.finetuned_accuracy}
    write_file(arguments.out / "slim", lambda path: save_network(path, pruned.weights, numbers))
    return 0


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning one network did. Accuracies are percent on validation images."""

    formula: str
    plan: Plan
    weights: FlatState
    """Of the fine-tuned slim network."""
    macs: int
    slim_macs: int
    parameters: int
    slim_parameters: int
    accuracy: float
    pruned_accuracy: float
    finetuned_accuracy: float

    @property
    def facts(self) -> dict[str, object]:
        """The numbers, as plain data."""
        plain = {name: value for name, value in vars(self).items() if name not in ("plan", "weights")}
        return {**plain, "kept_counts": self.plan.kept_counts}


def prune_base(pool: BasePool, base: int, f: PruningFunction, **budget: object) -> Pruned:
    """Scores, plans, slims and fine-tunes one base network of a task, in one round.

    Args:
      pool: the bases.
      base: which one.
      f: scores the channels.
      budget: keywords of `jp.plan`.

    Returns:
      The plan, the fine-tuned weights, and costs and accuracies before and after.

    Raises:
      ValueError: for a function without finite scores on the network, or a budget that does not fit.
    """
    import jax

    from jaxprune.keys import derive
    from jaxprune.nets.cost import count_macs, count_parameters
    from jaxprune.pruning.planning import plan
    from jaxprune.pruning.slimming import slim
    from jaxprune.scoring.metrics import name_of
    from jaxprune.scoring.ranking import Ranking, rank_population
    from jaxprune.training.loop import batch_order, count_correct, split_network
    from jaxprune.training.trainer import Job, Trainer

    programs, trained = pool.programs, pool.bases[base]
    ranking = rank_population([f], pool.observed(base))[0]
    if not isinstance(ranking, Ranking):
        raise ValueError(f"pruning needs finite scores that differ, got none from {name_of(f)}: {ranking}.")
    model = _with_weights(programs.model, trained.weights)
    example = jax.ShapeDtypeStruct((1, *programs.data.x.shape[1:]), programs.data.x.dtype)
    made = plan(model, ranking.scores, example, **budget)  # type: ignore[arg-type]
    smaller = slim(model, made)
    recipe = programs.recipe()
    network, weights = split_network(smaller)
    trainer = Trainer(smaller, recipe, programs.data, programs.validation, strategy=programs.strategy)
    key = derive(pool.key, "prune", base)
    order = batch_order(derive(key, "order"), programs.data.x.shape[0], recipe)
    finetuned = next(iter(trainer.run([Job(weights, order, derive(key, "train"))])))
    correct = float(count_correct(network, weights, programs.validation))
    return Pruned(
        formula=name_of(f),
        plan=made,
        weights=finetuned.weights,
        macs=count_macs(model, example),
        slim_macs=count_macs(smaller, example),
        parameters=count_parameters(model),
        slim_parameters=count_parameters(smaller),
        accuracy=trained.accuracy,
        pruned_accuracy=100.0 * correct / programs.validation.x.shape[0],
        finetuned_accuracy=float(finetuned.accuracies[-1]),
    )


def _with_weights(model: nnx.Module, weights: FlatState) -> nnx.Module:
    from jaxprune.structure.model_state import merge_model, split_model

    graphdef, _, rest = split_model(model)
    return merge_model(graphdef, weights, rest)


def _budget(arguments: argparse.Namespace, pool: BasePool) -> dict[str, object]:
    """The one budget of the command line, or the task's."""
    given = {name: getattr(arguments, name) for name in BUDGETS if getattr(arguments, name) is not None}
    if len(given) > 1:
        raise ValueError(
            f"how much is kept needs to be said once, got {' and '.join('--' + n.replace('_', '-') for n in given)}."
        )
    if not given:
        return {"kept_counts": pool.programs.rounds[-1].counts}
    if "kept_counts" in given:
        return {"kept_counts": _counts(given["kept_counts"], list(pool.programs.structure.widths))}
    return given


def _counts(text: str, groups: list[str]) -> dict[str, int]:
    """Kept counts from "6,12,24" or "conv1.kernel=6,conv2.kernel=12"."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if all("=" in part for part in parts):
            return {name: int(count) for name, count in (part.rsplit("=", 1) for part in parts)}
        counts = [int(part) for part in parts]
    except ValueError as error:
        raise ValueError(
            f"--kept-counts needs whole numbers as in 6,12,24 or {groups[0]}=6, got {text!r}."
        ) from error
    if len(counts) != len(groups):
        raise ValueError(
            f"--kept-counts needs {len(groups)} numbers, one each for {', '.join(groups)}, got {len(counts)}."
        )
    return dict(zip(groups, counts, strict=True))
