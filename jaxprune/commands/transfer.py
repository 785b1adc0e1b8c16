"""`jaxprune transfer`: takes a frozen function to a network and images of full size."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.comparison_options import read_frozen, split_formulas
from jaxprune.commands.network_options import (
    add_data_dir_option,
    keep_programs,
    seed_number,
    whole_number,
)
from jaxprune.commands.output import has_matplotlib, note, say
from jaxprune.commands.process_options import add_process_options, announced, with_processes

if TYPE_CHECKING:
    from jaxprune.comparison.transfer_setup import TransferSetup
    from jaxprune.hosts.sharing import Hosts
    from jaxprune.training.recipes import Recipe

_EPILOG = """\
Networks are pruned to equal sizes by all functions and fine-tuned equally. Everything is kept in --out; the same
command goes on where it was, also inside a training. Example:
  jaxprune transfer --function runs/mine --network resnet56 --data tfds:cifar100 --kept-fraction 0.6 \\
    --recipe cifar_finetune --out runs/cifar100"""


def add_transfer(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune transfer`."""
    from jaxprune.nets import NETWORKS
    from jaxprune.training.recipes import RECIPES

    parser.epilog = _EPILOG
    parser.add_argument(
        "--function",
        required=True,
        metavar="FUNCTION",
        help="a formula, the name of a function, or the folder of a run, whose winner it is",
    )
    parser.add_argument(
        "--against",
        default="l1,l2,random",
        metavar="NAMES",
        help="names and formulas to compare with, separated by commas; random keeps random channels (default: "
        "l1,l2,random)",
    )
    parser.add_argument(
        "--network",
        required=True,
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}, or module:factory of your own",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME",
        help="digits, fashion, tfds:NAME as jaxprune prepare has prepared it, FILE.npz, or a folder of images",
    )
    add_data_dir_option(parser)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--kept-fraction", type=float, metavar="X", help="share of each group's channels kept"
    )
    budget.add_argument("--macs-fraction", type=float, metavar="X", help="share of the multiply-adds kept")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for all results, and to go on from"
    )
    parser.add_argument("--recipe", required=True, metavar="NAME", help=f"fine-tuning: {', '.join(RECIPES)}")
    _add_training_options(parser)
    _add_scoring_options(parser)
    add_process_options(parser)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds how base networks are made, and changes to recipes."""
    group = parser.add_argument_group("base networks and trainings")
    group.add_argument(
        "--weights",
        action="append",
        type=Path,
        metavar="DIR",
        help="Orbax checkpoint of a base network, instead of training; may be repeated, and serves several bases",
    )
    group.add_argument(
        "--base-recipe",
        metavar="NAME",
        help="training of base networks (default: the usual one beside --recipe)",
    )
    group.add_argument(
        "--bases", type=whole_number, default=3, metavar="N", help="number of base networks (default: 3)"
    )
    for name, about in (
        ("--epochs", "epochs of fine-tuning"),
        ("--base-epochs", "epochs of base networks"),
        ("--batch-size", "images of a step; learning rates change in proportion"),
    ):
        group.add_argument(
            name, type=whole_number, metavar="N", help=f"{about} (default: as the recipe says)"
        )
    group.add_argument(
        "--no-scratch", action="store_true", help="no row for the slim network from a new initialisation"
    )
    group.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="networks, data orders and random channels follow from it (default: 0)",
    )


def _add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Adds how channels are scored, how the budget is met, and how images are read."""
    group = parser.add_argument_group("scores, budget and images")
    group.add_argument(
        "--scoring",
        choices=("joint", "sequential"),
        default="joint",
        help="all layers on one pass, or each on activations of already pruned earlier layers (default: joint)",
    )
    group.add_argument(
        "--calibration-images",
        type=whole_number,
        metavar="N",
        help="training images to observe, equally many of each class (default: 2000, or five of each class)",
    )
    group.add_argument(
        "--classes",
        type=whole_number,
        metavar="N",
        help="clusters of classes to observe, where there are many classes (default: all classes)",
    )
    group.add_argument(
        "--scope",
        choices=("group", "global"),
        default="group",
        help="one share for every group, or all channels in one ranking by the function on the first base network, "
        "which fixes how many of each group all functions keep (default: group)",
    )
    group.add_argument(
        "--multiple-of", type=whole_number, default=1, metavar="N", help="round kept counts (default: 1)"
    )
    group.add_argument(
        "--image-size",
        type=whole_number,
        metavar="N",
        help="side of images of many sizes, which are decoded batch by batch (default: 224 for sets that need it)",
    )
    group.add_argument(
        "--workers",
        type=whole_number,
        default=0,
        metavar="N",
        help="processes that decode (default: 0, threads)",
    )


def run_transfer(arguments: argparse.Namespace) -> int:
    """Runs a transfer or goes on with it, writes the report, and prints its tables.

    Raises:
      ValueError: for options that do not fit, before anything is trained.
      RunDirectoryError: if the folder, or the run of `--function`, cannot be used.
      TrainingInterrupted: if a signal stopped it.
    """
    return with_processes(arguments, partial(_transfer, arguments))


def _transfer(arguments: argparse.Namespace, hosts: Hosts | None) -> int:
    """Does what `run_transfer` says, on process 0 or alone; other processes only train for it."""
    from jaxprune.comparison.transfer_cost import transfer_cost
    from jaxprune.comparison.transfer_protocol import run_transfer as run
    from jaxprune.report.transfer_report import accuracy_table, difference_table, write_transfer_report

    setup = _set_up(arguments)
    if hosts is None or hosts.is_leader:
        cost = transfer_cost(setup)
        note(
            f"{cost.flops:.1e} FLOP of training, {cost.disk_bytes / 2**30:.2f} GiB on the disk, about "
            f"{cost.step_bytes / 2**30:.2f} GiB on each device"
        )
    keep_programs(arguments.out)
    with announced(hosts):
        result = run(setup, arguments.out, on_message=note, hosts=hosts)
    if has_matplotlib():
        note(f"wrote {write_transfer_report(arguments.out)}")
    say(accuracy_table(result))
    say()
    say(difference_table(result))
    return 0


def _set_up(arguments: argparse.Namespace) -> TransferSetup:
    """Checks the options."""
    from jaxprune.comparison.transfer_setup import set_up_transfer
    from jaxprune.nets.factories import look_in_working_directory

    if ":" in arguments.network:
        look_in_working_directory()
    against = split_formulas(arguments.against)
    if not against:
        raise ValueError(
            f"--against needs names or formulas separated by commas, got {arguments.against!r}. Try --against l1,l2."
        )
    if arguments.weights and arguments.base_epochs is not None:
        raise ValueError("--base-epochs needs base networks that are trained, got --weights. Leave one out.")
    frozen = read_frozen(arguments.function)
    recipe, base_recipe = _recipes(arguments)
    return set_up_transfer(
        frozen.function,
        name="winner" if frozen.tasks else None,
        against=against,
        network=arguments.network,
        data=arguments.data,
        data_dir=arguments.data_dir,
        weights=arguments.weights or (),
        kept_fraction=arguments.kept_fraction,
        macs_fraction=arguments.macs_fraction,
        scope=arguments.scope,
        multiple_of=arguments.multiple_of,
        recipe=recipe,
        base_recipe=base_recipe,
        bases=arguments.bases,
        seed=arguments.seed,
        with_scratch=not arguments.no_scratch,
        calibration_images=arguments.calibration_images,
        coarse_classes=arguments.classes,
        scoring=arguments.scoring,
        image_size=arguments.image_size,
        workers=arguments.workers,
    )


def _recipes(arguments: argparse.Namespace) -> tuple[Recipe, Recipe | None]:
    """The recipes with the changes that the options ask for."""
    from jaxprune.comparison.training_checks import BASE_RECIPES, shortened_recipe
    from jaxprune.training.recipes import find_recipe

    recipe = find_recipe(arguments.recipe)
    base = arguments.base_recipe
    if base is None and not arguments.weights:
        base = BASE_RECIPES.get(recipe.name)
    if base is not None:
        base = shortened_recipe(
            find_recipe(base), epochs=arguments.base_epochs, batch_size=arguments.batch_size
        )
    return shortened_recipe(recipe, epochs=arguments.epochs, batch_size=arguments.batch_size), base
