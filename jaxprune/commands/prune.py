"""`jaxprune prune`: prunes one trained network of a task, or one's own, and fine-tunes it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from jaxprune.commands.budget_options import (
    add_group_options,
    add_limit_options,
    read_kept_counts,
    read_limits,
)
from jaxprune.commands.network_options import (
    SEARCH_ONLY,
    add_base_options,
    add_task_options,
    base_pool,
    flag,
    whole_number,
)
from jaxprune.commands.output import add_overwrite_option, claim, noted_warnings, say, write_file, write_text
from jaxprune.commands.own_pruning import (
    EPILOG,
    add_prune_network_options,
    is_own_network,
    prune_own_network,
)
from jaxprune.text import columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxprune.pruning.budgets import PlanOptions
    from jaxprune.pruning.planning import Plan
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.structure.model_state import FlatState
    from jaxprune.tasks.base_networks import BasePool

BUDGETS = ("kept_fraction", "macs_fraction", "params_fraction", "latency_fraction", "kept_counts")
"""Options that say how much is kept: one of them, or none for what the task's own schedule keeps."""

_OF_SEARCHES = ("kept_fraction", "rounds", "finetune", "compensate")
"""Options that say how a search prunes on a task; here, `--kept-fraction` is a budget instead."""


_OF_SHARES = ("scope", "multiple_of", "min_kept", "max_kept")
"""Options that only go with a share to keep."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """The result of pruning and fine-tuning one network.

    Args:
      formula: text of the formula, or name of the function.
      plan: the kept channels.
      weights: of the fine-tuned slim network.
      macs: multiply-adds of one example before.
      slim_macs: multiply-adds of one example after.
      parameters: number before.
      slim_parameters: number after.
      accuracy: on validation images before, in percent.
      pruned_accuracy: after pruning, in percent.
      finetuned_accuracy: after fine-tuning, in percent.
      is_compensated: whether the kept channels took over what could be predicted of the others.
    """

    formula: str
    plan: Plan
    weights: FlatState
    macs: int
    slim_macs: int
    parameters: int
    slim_parameters: int
    accuracy: float
    pruned_accuracy: float
    finetuned_accuracy: float
    is_compensated: bool = False

    @property
    def facts(self) -> dict[str, object]:
        """The numbers, as plain data."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("plan", "weights")}
        return {**numbers, "kept_counts": self.plan.kept_counts}


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune prune`."""
    parser.epilog = EPILOG
    add_base_options(parser)
    parser.add_argument(
        "--metric", default="l2", metavar="FORMULA", help="a formula, or the name of one (default: l2)"
    )
    _add_plan_options(parser)
    parser.add_argument(
        "--compensate",
        action="store_true",
        help="before fine-tuning, let the kept channels take over what least squares predicts of the others",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/prune"),
        metavar="DIR",
        help="folder for plan.json, result.json and the slim network (slim/, or network/ with --network), and with "
        "--network to go on from (default: runs/prune)",
    )
    add_overwrite_option(parser)
    add_prune_network_options(parser)
    add_task_options(parser, without=(*SEARCH_ONLY, *_OF_SEARCHES))


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Adds the budget, and how it is met."""
    budget = parser.add_argument_group(
        "how much is kept",
        "one of these; by default what the task's schedule keeps at its end, and with --network one is needed",
    )
    budget.add_argument("--kept-fraction", type=float, metavar="X", help="share of each group's channels")
    budget.add_argument("--macs-fraction", type=float, metavar="X", help="share of the multiply-adds")
    budget.add_argument("--params-fraction", type=float, metavar="X", help="share of the parameters")
    budget.add_argument(
        "--latency-fraction", type=float, metavar="X", help="share of the time for one image, measured here"
    )
    budget.add_argument(
        "--kept-counts", metavar="N,N,...", help="channels of each group, in program order or as group=N"
    )
    parser.add_argument(
        "--scope",
        choices=("group", "global"),
        default="group",
        help="one share for every group, or all channels in one ranking, with a share to keep (default: group)",
    )
    parser.add_argument(
        "--multiple-of",
        type=whole_number,
        default=1,
        metavar="N",
        help="round kept counts to multiples, with a share to keep (default: 1)",
    )
    add_limit_options(parser)
    add_group_options(parser, what="loses channels")
    parser.add_argument(
        "--factor",
        choices=("inner", "outer", "both"),
        default="inner",
        help="what loses channels where two groups share every index: the places within heads (inner), whole heads "
        "(outer), or both (default: inner)",
    )


def run_prune(arguments: argparse.Namespace) -> int:
    """Prunes and fine-tunes a base network of a task, or a network of one's own, and prints and writes what changed.

    Raises:
      ValueError: for a function without finite scores, a budget that does not fit, or a folder that cannot be written.
    """
    from jaxprune.scoring.lookup import find_function
    from jaxprune.training.checkpoint import save_network

    _check_budget(arguments)
    if is_own_network(arguments):
        return prune_own_network(arguments, plan_options(arguments))
    folder = arguments.out / "slim"
    claim([arguments.out / "plan.json", arguments.out / "result.json"], overwrite=arguments.overwrite)
    _claim_network(folder, overwrite=arguments.overwrite)
    f = find_function(arguments.metric)
    pool, base = base_pool(arguments, without=_OF_SEARCHES), arguments.base or 0
    options = _plan_options(arguments, pool)
    is_compensated = arguments.compensate or pool.programs.recipe().compensate
    check_before_training(pool, f, compensate=is_compensated, **options)
    pruned = prune_base(pool, base, f, compensate=is_compensated, **options)
    try:
        write_file(arguments.out / "plan.json", pruned.plan.save)
        write_text(arguments.out / "result.json", json.dumps(pruned.facts, indent=1) + "\n")
        _claim_network(
            folder, overwrite=arguments.overwrite
        )  # it may have come while the network was trained
        numbers = {"accuracy": pruned.finetuned_accuracy}
        write_file(folder, lambda path: save_network(path, pruned.weights, numbers))
    finally:  # what was measured is shown even if the disk is full
        _print_pruned(pruned, f"{pool.task.name}, base {base}")
    return 0


def _print_pruned(pruned: Pruned, network: str) -> None:
    """Prints what was kept of a network, and its sizes and accuracies."""
    widths = pruned.plan.widths
    kept = [(group, f"{len(channels)} of {widths[group]}") for group, channels in pruned.plan.kept.items()]
    say(f"{pruned.formula}  on {network}")
    say(columns([("group", "kept"), *kept]))
    budget = pruned.plan.budget
    say(f"{budget}\n" if budget is not None and budget.name != "kept_counts" else "")
    macs, parameters = (pruned.macs, pruned.slim_macs), (pruned.parameters, pruned.slim_parameters)
    accuracies = (pruned.accuracy, pruned.pruned_accuracy, pruned.finetuned_accuracy)
    rows = [
        ("", "before", "pruned", "fine-tuned"),
        ("multiply-adds", *(f"{number:,}" for number in (*macs, macs[1]))),
        ("parameters", *(f"{number:,}" for number in (*parameters, parameters[1]))),
        ("validation accuracy, %", *(f"{accuracy:.2f}" for accuracy in accuracies)),
    ]
    say(columns(rows))


def check_before_training(
    pool: BasePool, f: PruningFunction, *, compensate: bool = False, **options: Unpack[PlanOptions]
) -> None:
    """Checks on shapes alone that the network has what the function reads, and groups that the options fit.

    Args:
      pool: the base networks, none of which is trained.
      f: scores the channels.
      compensate: as for `prune_base`.
      **options: keywords of `jp.plan`.

    Raises:
      ValueError: for an operand that the network lacks, a budget or group that does not fit it, or pruned groups that
        cannot be compensated.
    """
    import numpy as np

    from jaxprune.pruning.budgets import PlanOptions, budget_counts
    from jaxprune.pruning.compensation import check_compensable
    from jaxprune.scoring.scorable import scorable_groups

    structure = pool.programs.structure
    groups, ignore = options.get("groups"), options.get("ignore", ())
    scorable = scorable_groups(f, structure, groups=groups, ignore=ignore)
    scores = {name: np.zeros(structure.widths[name]) for name in scorable}
    # The smallest network, which decides whether a budget can be met, is the same for both scopes.
    checked = options | PlanOptions(scope="group")
    if options.get("latency_fraction") is not None:  # only a trained network is measured
        checked = checked | PlanOptions(latency_fraction=None, kept_fraction=1.0)
    counts = budget_counts(structure, scores=scores, **checked)
    if compensate and options.get("scope") != "global":  # scores decide which groups a global ranking prunes
        check_compensable(structure, counts)


def prune_base(
    pool: BasePool,
    base: int,
    f: PruningFunction,
    *,
    compensate: bool = False,
    **options: Unpack[PlanOptions],
) -> Pruned:
    """Scores, prunes and fine-tunes one base network of a task, in one round.

    Args:
      pool: the base networks.
      base: which one.
      f: scores the channels.
      compensate: whether the kept channels take over what can be predicted of the others, see `jp.slim`.
      **options: keywords of `jp.plan`.

    Returns:
      The plan, the fine-tuned weights, and sizes and accuracies before and after.

    Raises:
      ValueError: for a function without finite scores on the network, a budget that does not fit, or a network that
        cannot be compensated.
    """
    import jax

    from jaxprune.keys import derive
    from jaxprune.nets.cost import count_macs, count_parameters
    from jaxprune.pruning.planning import plan
    from jaxprune.pruning.slimming import slim
    from jaxprune.scoring.metrics import name_of
    from jaxprune.scoring.ranking import Ranking, rank_groups
    from jaxprune.structure.model_state import merge_model, split_model
    from jaxprune.training.loop import batch_order, count_correct, split_network
    from jaxprune.training.trainer import Job, Trainer

    programs, trained = pool.programs, pool.bases[base]
    observed = pool.observed(base)
    with noted_warnings():
        ranking = rank_groups(f, observed, groups=options.get("groups"), ignore=options.get("ignore", ()))
    if not isinstance(ranking, Ranking):
        raise ValueError(f"pruning needs finite scores that differ, got none from {name_of(f)}: {ranking}.")
    graphdef, _, rest = split_model(programs.model)
    model = merge_model(graphdef, trained.weights, rest)
    images, recipe = programs.data.x, programs.recipe()
    example = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    with noted_warnings():
        kept = plan(model, ranking.scores, example, metric=f, **options)
    slim_model = slim(model, kept, compensate=observed if compensate else None)
    network, weights = split_network(slim_model)
    batching = programs.asked._asdict()
    trainer = Trainer(slim_model, recipe, programs.data, programs.validation, **batching)
    key = derive(pool.key, "prune", base)
    order = batch_order(derive(key, "order"), images.shape[0], recipe)
    (finetuned,) = trainer.run([Job(weights, order, derive(key, "train"))])
    num_correct = float(count_correct(network, weights, programs.validation))
    return Pruned(
        formula=name_of(f),
        plan=kept,
        weights=finetuned.weights,
        macs=count_macs(model, example),
        slim_macs=count_macs(slim_model, example),
        parameters=count_parameters(model),
        slim_parameters=count_parameters(slim_model),
        accuracy=trained.accuracy,
        pruned_accuracy=100.0 * num_correct / programs.validation.x.shape[0],
        finetuned_accuracy=float(finetuned.accuracies[-1]),
        is_compensated=compensate,
    )


def _plan_options(arguments: argparse.Namespace, pool: BasePool) -> PlanOptions:
    """Returns the budget of the command line, or the task's, and how it is met."""
    is_given = any(getattr(arguments, name) is not None for name in BUDGETS)
    counts: Mapping[str, int] | None = None if is_given else pool.programs.rounds[-1].counts
    if arguments.kept_counts is not None:
        named = read_kept_counts(arguments.kept_counts, list(pool.programs.structure.widths))
        counts = named if isinstance(named, dict) else None
    return {**plan_options(arguments), "kept_counts": counts}


def plan_options(arguments: argparse.Namespace) -> PlanOptions:
    """Returns the budget of the command line but for `--kept-counts`, and how it is met.

    Args:
      arguments: the command line.

    Raises:
      ValueError: for limits that cannot be read.
    """
    return {
        "kept_fraction": arguments.kept_fraction,
        "macs_fraction": arguments.macs_fraction,
        "params_fraction": arguments.params_fraction,
        "latency_fraction": arguments.latency_fraction,
        "min_kept": read_limits("--min-kept", arguments.min_kept),
        "max_kept": read_limits("--max-kept", arguments.max_kept),
        "scope": arguments.scope,
        "multiple_of": arguments.multiple_of,
        "groups": arguments.groups,
        "ignore": tuple(arguments.ignore),
        "factor": arguments.factor,
    }


def _check_budget(arguments: argparse.Namespace) -> None:
    """Refuses several budgets, and options that only a share of channels, operations or parameters gives a meaning."""
    flags = [flag(name) for name in BUDGETS if getattr(arguments, name) is not None]
    if len(flags) > 1:
        raise ValueError(f"Give only one budget option, got {' and '.join(flags)}.")
    idle = [flag(name) for name in _OF_SHARES if name in arguments.given]
    if idle and flags in ([], ["--kept-counts"]):
        counts = "--kept-counts" if flags else "the counts of the task's schedule"
        raise ValueError(
            f"{idle[0]} needs a share to keep (--kept-fraction, --macs-fraction, ...), got {counts}. "
            "Add one, or leave it out."
        )
    if arguments.multiple_of < 1:
        raise ValueError(f"--multiple-of needs a whole number >= 1, got {arguments.multiple_of}.")
    for name in BUDGETS[:-1]:
        share = getattr(arguments, name)
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}. It is the fraction that stays.")


def _claim_network(folder: Path, *, overwrite: bool) -> None:
    """Refuses a folder that is there, unless it may be replaced and is a network that `prune` has saved."""
    from jaxprune.training.checkpoint import is_saved_network

    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise ValueError(
            f"nothing is replaced unasked, and there is {folder} already. Choose another path, or say --overwrite."
        )
    if not is_saved_network(folder):
        raise ValueError(
            f"--overwrite replaces only what prune has written, and {folder} is no network of it. Choose another path."
        )
