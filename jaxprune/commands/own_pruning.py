"""The part of `jaxprune prune` that takes a network and images of one's own, from training to an exported file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.budget_options import read_kept_counts
from jaxprune.commands.network_options import flag, keep_programs, whole_number
from jaxprune.commands.output import has_matplotlib, note, noted_warnings, say, write_figure
from jaxprune.text import columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxprune.comparison.pruning_records import PruningResult, RowName
    from jaxprune.comparison.pruning_setup import PruningSetup
    from jaxprune.pruning.budgets import PlanOptions
    from jaxprune.training.recipes import Recipe

EPILOG = """\
With --network, everything is kept in --out, and the same command goes on where it was, also inside a training. Example:
  jaxprune prune --network lenet5 --data fashion --metric l2 --macs-fraction 0.5 --recipe adam_fashion \\
    --seeds 3 --out runs/lenet5"""

BUDGETS = ("kept_fraction", "macs_fraction", "params_fraction", "latency_fraction", "kept_counts")
"""Options that say how much is kept."""

_OWN = ("data", "weights", "seeds", "batch_size", "calibration_images", "classes", "image_size", "workers")
"""Options with a value that only go with `--network`."""

_OF_TASKS = ("task", "base", "scale", "bases_dir")
"""Options that only go with a task."""

_HEADS: dict[RowName, str] = {
    "dense": "dense", "pruned": "pruned", "finetuned": "fine-tuned", "scratch": "from scratch",
}  # fmt: skip


def add_prune_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options about a network of one's own.

    Args:
      parser: of `jaxprune prune`.
    """
    from jaxprune.nets import NETWORKS

    group = parser.add_argument_group(
        "a network of your own, instead of a task (with --recipe, --base-recipe, --epochs, --base-epochs below)"
    )
    group.add_argument(
        "--network",
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}, or module:factory; the factory takes flax.nnx.Rngs or nothing and returns a Flax "
        "NNX module from images to one logit for each class",
    )
    group.add_argument(
        "--data",
        metavar="NAME",
        help="digits, fashion, tfds:NAME as jaxprune prepare has prepared it, FILE.npz, or a folder of images",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="weights of the dense network: an Orbax checkpoint, a folder that jaxprune.save wrote, or a safetensors "
        "file in the names of torchvision or timm (default: train it first, by --base-recipe)",
    )
    for name, about in (
        ("--seeds", "fine-tunings of the slim network, for a mean and a spread (default: 1)"),
        (
            "--batch-size",
            "images of a step; learning rates change in proportion (default: as the recipe says)",
        ),
        ("--calibration-images", "training images to observe (default: 2000, or five of each class)"),
        ("--classes", "clusters of classes to observe, where there are many classes (default: all classes)"),
        ("--image-size", "side of images of many sizes, decoded batch by batch (default: 224 where needed)"),
        ("--workers", "processes that decode (default: 0, threads)"),
    ):
        group.add_argument(name, type=whole_number, metavar="N", help=about)
    group.add_argument(
        "--scratch",
        action="store_true",
        help="train the slim network from new weights too, by --base-recipe, for as many epochs as the others in all",
    )


def is_own_network(arguments: argparse.Namespace) -> bool:
    """Returns whether the command line names a network instead of a task, and refuses options of both.

    Args:
      arguments: the command line.

    Raises:
      ValueError: for options that do not go together, and for options that are missing.
    """
    if arguments.network is None:
        own = [flag(name) for name in _OWN if getattr(arguments, name) is not None]
        own += ["--scratch"] if arguments.scratch else []
        if own:
            raise ValueError(f"{own[0]} needs --network, got none. A task has its own network and images.")
        return False
    of_tasks = [flag(name) for name in _OF_TASKS if name in arguments.given]
    if of_tasks:
        raise ValueError(
            f"Name only one network, got --network and {of_tasks[0]}, which is about a task. Leave one out."
        )
    if arguments.overwrite:
        raise ValueError(
            "--overwrite is for a task, got --network, with which the same command goes on where it was. Name another "
            "folder with --out to start anew."
        )
    missing = [flag(name) for name in ("data", "recipe") if getattr(arguments, name, None) is None]
    if all(getattr(arguments, name) is None for name in BUDGETS):
        missing.append("a budget (--macs-fraction, --kept-fraction, ...)")
    if missing:
        raise ValueError(f"--network needs {', '.join(missing)}, got none. See jaxprune prune --help.")
    if arguments.weights is not None and not arguments.scratch and hasattr(arguments, "base_epochs"):
        raise ValueError("--base-epochs needs a network that is trained, got --weights. Leave one out.")
    return True


def prune_own_network(arguments: argparse.Namespace, options: PlanOptions) -> int:
    """Prunes the network of `--network`, or goes on with it, writes everything and prints what changed.

    Args:
      arguments: the command line.
      options: the budget but for `--kept-counts`, and how it is met.

    Raises:
      ValueError: for options that do not fit, before anything is trained.
      RunDirectoryError: if the folder cannot be used.
    """
    from jaxprune.comparison.pruning_run import prune_network, pruning_cost
    from jaxprune.training.finetuning import progress_bar

    setup = _set_up(arguments, options)
    cost = pruning_cost(setup)
    note(f"{cost.flops:.1e} FLOP of training, about {cost.step_bytes / 2**30:.2f} GiB on each device")
    if setup.settings.base_recipe is not None:
        recipe = setup.settings.base_recipe
        note(f"no --weights, so the network is trained first: {recipe.epochs} epochs of {recipe.name}")
    keep_programs(arguments.out)
    show = progress_bar if sys.stderr.isatty() else None
    with noted_warnings():
        result = prune_network(setup, arguments.out, on_message=note, show=show)
    try:
        if has_matplotlib():
            from jaxprune.figures.kept_channels import kept_channels_figure

            plan = result.plan
            figure = kept_channels_figure(
                plan.widths, plan.kept_counts, f"Channels of {result.settings.network}"
            )
            write_figure(arguments.out / "kept.png", figure)
    finally:  # what was measured is shown even if the disk is full
        print_result(result)
        note(
            f"everything is in {arguments.out}; jaxprune.load('{arguments.out / 'network'}') reads the slim network"
        )
    return 0


def print_result(result: PruningResult) -> None:
    """Prints which channels stay, and sizes, accuracies and latencies before and after.

    Args:
      result: of `prune_network`.
    """
    settings, plan = result.settings, result.plan
    say(f"{settings.function}  on {settings.network}, {settings.data}")
    kept = [(name, plan.widths[name], count) for name, count in plan.kept_counts.items()]
    say(columns([("group", "before", "after"), *kept]))
    say(f"{plan.budget}\n" if plan.budget is not None and plan.budget.name != "kept_counts" else "")
    names = [name for name in _HEADS if any(row.name == name for row in result.rows)]
    rows: list[Sequence[str]] = [("", *(_HEADS[name] for name in names))]
    for title, pair in (("multiply-adds", result.macs), ("parameters", result.parameters)):
        rows.append((title, *(f"{pair[name != 'dense']:,}" for name in names)))
    for part in ("validation", "test") if result.test else ("validation",):
        accuracies = (result.accuracies(name, on_test=part == "test") for name in names)
        rows.append((f"{part} accuracy, %", *map(_spread, accuracies)))
    for row in result.speed["rows"]:
        times = [f"{1e3 * row[name]['seconds']:.3g}" for name in ("dense", "slim")]
        images = "1 image" if row["batch_size"] == 1 else f"{row['batch_size']} images"
        rows.append((f"latency of {images}, ms", times[0], *times[1:] * (len(names) - 1)))
    say(columns(rows))
    if settings.seeds > 1:
        say(
            f"means and standard deviations of {settings.seeds} trainings; network/ is fine-tuned "
            f"{result.best_seed}, the best on validation images"
        )
    if result.fallback_groups:
        say(f"all scores were equal, so that l2 ordered them, in {', '.join(result.fallback_groups)}")
    if result.export_problem:
        say(f"no network.stablehlo: {result.export_problem}")


def _spread(accuracies: Sequence[float]) -> str:
    """One accuracy, or the mean and standard deviation of several."""
    from jaxprune.comparison.pruning_records import spread

    found = spread(accuracies)
    return f"{found['mean']:.2f}" if found["sd"] is None else f"{found['mean']:.2f} ± {found['sd']:.2f}"


def _set_up(arguments: argparse.Namespace, options: PlanOptions) -> PruningSetup:
    """Checks the options."""
    from jaxprune.comparison.pruning_setup import set_up_pruning
    from jaxprune.nets.factories import look_in_working_directory

    if ":" in arguments.network:
        look_in_working_directory()
    recipe, base_recipe = _recipes(arguments)
    counts = None if arguments.kept_counts is None else read_kept_counts(arguments.kept_counts)
    return set_up_pruning(
        arguments.metric,
        network=arguments.network,
        data=arguments.data,
        recipe=recipe,
        weights=arguments.weights,
        base_recipe=base_recipe,
        with_scratch=arguments.scratch,
        compensate=arguments.compensate,
        seeds=1 if arguments.seeds is None else arguments.seeds,
        seed=arguments.seed,
        data_dir=arguments.data_dir,
        calibration_images=arguments.calibration_images,
        coarse_classes=arguments.classes,
        image_size=arguments.image_size,
        workers=arguments.workers or 0,
        counts=counts,
        **options,
    )


def _recipes(arguments: argparse.Namespace) -> tuple[Recipe, Recipe | None]:
    """The recipes with the changes that the options ask for."""
    from jaxprune.comparison.training_checks import BASE_RECIPES, shortened_recipe
    from jaxprune.training.recipes import find_recipe

    recipe, batch_size = find_recipe(arguments.recipe), arguments.batch_size
    base = getattr(arguments, "base_recipe", None)
    if base is None and (arguments.weights is None or arguments.scratch):
        base = BASE_RECIPES.get(recipe.name)
    if base is not None:
        base_epochs = _epochs(arguments, "base_epochs")
        base = shortened_recipe(find_recipe(base), epochs=base_epochs, batch_size=batch_size)
    return shortened_recipe(recipe, epochs=_epochs(arguments, "epochs"), batch_size=batch_size), base


def _epochs(arguments: argparse.Namespace, name: str) -> int | None:
    """Reads a number of epochs, which for tasks may be one for each."""
    text = getattr(arguments, name, None)
    if text is None:
        return None
    try:
        return whole_number(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{flag(name)} {error}.") from error
