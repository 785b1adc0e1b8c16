"""Options that say which network is looked at, on which images: a base of a task, or a network of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.commands.common import (
    SEARCH_ONLY,
    add_place_options,
    add_task_options,
    flag,
    note,
    on_base,
    tasks_of,
)
from jaxprune.config import TASK_OPTIONS

if TYPE_CHECKING:
    from jaxprune.observation.observed import Observed
    from jaxprune.tasks.base_networks import BasePool

DEFAULT_TASK = "digits"
OWN = ("data", "weights", "num_images")
"""Options that go with `--network` alone."""


def add_base_options(parser: argparse.ArgumentParser, *, default: str = f"default: {DEFAULT_TASK}") -> None:
    """Adds `--task`, `--base` and where base networks are kept."""
    from jaxprune.tasks.named_tasks import TASKS

    about = f"{', '.join(TASKS)}, or module:factory of your own ({default})"
    parser.add_argument("--task", metavar="NAME", help=about)
    parser.add_argument(
        "--base",
        type=int,
        metavar="N",
        help="which of the task's search bases; trained if it is not there yet (default: 0)",
    )
    add_place_options(parser)


def add_task_changes(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Adds the options of a task that change one of its base networks."""
    skipped = (*SEARCH_ONLY, *without)
    add_task_options(parser, [name for name in TASK_OPTIONS if name not in skipped])


def add_own_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--network` and its like: a network instead of a task."""
    from jaxprune.datasets.dataset import DATASETS
    from jaxprune.nets import NETWORKS

    group = parser.add_argument_group("a network of your own, instead of a task")
    group.add_argument(
        "--network",
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}, with default widths, or module:factory; the factory takes flax.nnx.Rngs or "
        "nothing and returns a Flax NNX module",
    )
    group.add_argument(
        "--data",
        metavar="NAME",
        help=f"{', '.join(DATASETS)} (the training images), or FILE.npz with the arrays images and labels (or x and y)",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="Orbax checkpoint of the network's state (default: fresh weights, by --seed)",
    )
    group.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="calibrate on at most this many images, equally many of each class (default: all)",
    )


def is_network_given(arguments: argparse.Namespace) -> bool:
    """Whether any option names a network to look at."""
    return any(getattr(arguments, name) is not None for name in ("task", "base", "network", *OWN))


def observed_of(arguments: argparse.Namespace) -> tuple[str, Observed]:
    """What the network is called, and what is observed on it.

    Raises:
      ValueError: for options that exclude each other, an unknown network, data that do not fit it, or weights of
        another network.
    """
    if arguments.network is None:
        given = [flag(name) for name in OWN if getattr(arguments, name) is not None]
        if given:
            raise ValueError(f"{given[0]} needs --network, got none. A task has its own network and images.")
        pool = base_pool(arguments)
        return f"{pool.task.name}, base {arguments.base or 0}", pool.observed(arguments.base or 0)
    given = [
        flag(name) for name in ("task", "base", *TASK_OPTIONS) if getattr(arguments, name, None) is not None
    ]
    if given:
        raise ValueError(
            f"a network needs to be named once, got --network and {given[0]}, which is about a task. Leave one out."
        )
    if arguments.data is None:
        raise ValueError("--network needs images to observe it on, got none. Name them with --data.")
    return f"{arguments.network} on {arguments.data}", _observe_own(arguments)


def base_pool(arguments: argparse.Namespace, skipped: tuple[str, ...] = ()) -> BasePool:
    """The search bases of the task of the command line, up to the one asked for.

    Raises:
      ValueError: for an unknown task, changes that do not fit it, or a negative base.
    """
    from jaxprune.tasks.base_networks import BasePool
    from jaxprune.tasks.task_programs import TaskPrograms

    base = arguments.base or 0
    if base < 0:
        raise ValueError(f"--base needs a number from 0, got {base}.")
    task = tasks_of(arguments, [arguments.task or DEFAULT_TASK], (*SEARCH_ONLY, *skipped))[0]
    programs, folder = TaskPrograms(task), arguments.bases_dir
    return BasePool(programs, arguments.seed, "search", base + 1, folder=folder, on_base=on_base)


def _observe_own(arguments: argparse.Namespace) -> Observed:
    from jaxprune.datasets.example_files import balanced, load_examples
    from jaxprune.nets.factories import find_network, look_in_working_directory
    from jaxprune.observation.observer import observe
    from jaxprune.structure.model_state import merge_model, split_model
    from jaxprune.training.checkpoint import read_weights

    if ":" in arguments.network:
        look_in_working_directory()
    images, labels = load_examples(arguments.data)
    if arguments.num_images is not None:
        images, labels = balanced(images, labels, arguments.num_images)
    shape, num_classes = images.shape[1:], len(np.unique(labels))
    model = find_network(arguments.network, image_shape=shape, num_classes=num_classes, seed=arguments.seed)
    graphdef, weights, rest = split_model(model)
    if arguments.weights is None:
        note(f"note: no --weights, so {arguments.network} has the weights that it is made with")
    else:
        weights = read_weights(arguments.weights, weights)
    return observe(merge_model(graphdef, weights, rest), images, labels)
