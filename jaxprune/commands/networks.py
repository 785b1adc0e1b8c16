"""`jaxprune score` and `jaxprune prune`: functions at work on one trained network of a task."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.commands.common import (
    SEARCH_ONLY,
    add_place_options,
    add_task_options,
    columns,
    note,
    on_base,
    say,
    tasks_of,
    write_file,
    write_text,
)
from jaxprune.config import TASK_OPTIONS

if TYPE_CHECKING:
    from flax import nnx

    from jaxprune.evolution.bases import BasePool
    from jaxprune.evolution.tasks import Task
    from jaxprune.pruning.planning import Plan
    from jaxprune.pruning.states import FlatState
    from jaxprune.scoring.metrics import PruningFunction

BUDGETS = ("kept_fraction", "macs_fraction", "params_fraction", "kept_counts")
"""Ways to say how much is kept; one of them, or the task's own schedule."""


def add_score(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune score`."""
    parser.add_argument("formulas", nargs="+", metavar="FORMULA", help="formulas, or names of known ones")
    _add_network(parser)
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print (default: table)"
    )
    _add_task_changes(parser)


def run_score(arguments: argparse.Namespace) -> int:
    """Prints the scores of all channels of one base network."""
    from jaxprune.evolution.naming import named_functions

    functions = {
        name: f
        for name, f in named_functions(arguments.formulas).items()
        if name != "l2" or {"l2", str(f)} & set(arguments.formulas)
    }
    found = scores_of(_pool(arguments), arguments.base, functions)
    if arguments.format == "json":
        plain = {
            name: {group: scores.tolist() for group, scores in groups.items()}
            for name, groups in found.items()
        }
        say(json.dumps(plain, indent=1))
        return 0
    first = next(iter(found.values()))
    header = ["group", "channel", *found]
    if arguments.format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for group in first:
            for channel in range(len(first[group])):
                writer.writerow([group, channel, *(float(found[name][group][channel]) for name in found)])
        say(text.getvalue().rstrip("\n"))
        return 0
    rows = [
        [group, channel, *(f"{found[name][group][channel]:.5g}" for name in found)]
        for group in first
        for channel in range(len(first[group]))
    ]
    say(columns([header, *rows]))
    return 0


def scores_of(
    pool: BasePool, base: int, functions: Mapping[str, PruningFunction]
) -> dict[str, dict[str, np.ndarray]]:
    """Function name -> group -> [C] scores on one base network, relative to the group's mean magnitude.

    Raises:
      ValueError: for a function that reads an operand the network has not, or whose scores are not finite.
    """
    from jaxprune.scoring.ranking import score

    observed = pool.observed(base)
    found = {}
    for name, f in functions.items():
        scores = score(f, observed)
        bad = [
            f"{group} channel {channel}"
            for group, values in scores.items()
            for channel in np.flatnonzero(~np.isfinite(values))
        ]
        if bad:
            note(f"note: {name} is not finite at {', '.join(bad[:5])}{' and others' if len(bad) > 5 else ''}")
        found[name] = scores
    return found


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune prune`."""
    _add_network(parser)
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
        "--out",
        type=Path,
        default=Path("runs/prune"),
        metavar="DIR",
        help="folder for plan.json, result.json and the slim network in slim/ (default: runs/prune)",
    )
    _add_task_changes(parser, without=("kept_fraction", "rounds", "finetune"))


def run_prune(arguments: argparse.Namespace) -> int:
    """Prunes and fine-tunes one base network, prints what that did, and writes plan, result and network."""
    from jaxprune.evolution.naming import find_function
    from jaxprune.scoring.metrics import name_of
    from jaxprune.training.checkpoint import save_network

    f = find_function(arguments.metric)
    pool = _pool(arguments)
    budget = _budget(arguments, pool)
    extra = {
        "scope": arguments.scope,
        "multiple_of": arguments.multiple_of,
        "ignore": tuple(arguments.ignore),
    }
    pruned = prune_base(pool, arguments.base, f, **budget, **extra)
    kept = [
        (group, f"{len(channels)} of {pruned.plan.widths[group]}")
        for group, channels in pruned.plan.kept.items()
    ]
    say(f"{name_of(f)}  on {pool.task.name}, base {arguments.base}")
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
    from jaxprune.pruning.states import merge_model, split_model

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


def _pool(arguments: argparse.Namespace) -> BasePool:
    from jaxprune.evolution.bases import BasePool
    from jaxprune.evolution.programs import TaskPrograms

    if arguments.base < 0:
        raise ValueError(f"--base needs a number from 0, got {arguments.base}.")
    task = _task(arguments)
    return BasePool(
        TaskPrograms(task),
        arguments.seed,
        "search",
        arguments.base + 1,
        folder=arguments.bases_dir,
        on_base=on_base,
    )


def _task(arguments: argparse.Namespace) -> Task:
    skipped = list(SEARCH_ONLY)
    if hasattr(arguments, "macs_fraction"):  # of prune, whose --kept-fraction is not that of the schedule
        skipped += ["kept_fraction", "rounds", "finetune"]
    return tasks_of(arguments, [arguments.task], skipped)[0]


def _add_network(parser: argparse.ArgumentParser) -> None:
    from jaxprune.evolution.presets import TASKS

    parser.add_argument(
        "--task",
        default="digits",
        metavar="NAME",
        help=f"{', '.join(TASKS)}, or module:factory of your own (default: digits)",
    )
    parser.add_argument(
        "--base",
        type=int,
        default=0,
        metavar="N",
        help="which of the task's search bases; trained if it is not there yet (default: 0)",
    )
    add_place_options(parser)


def _add_task_changes(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    skipped = (*SEARCH_ONLY, *without)
    add_task_options(parser, [name for name in TASK_OPTIONS if name not in skipped])
