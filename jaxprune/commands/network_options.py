"""Options that say which task or network a command works on and on which images, and what these options name."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxprune.commands.output import check_folder, note, on_base
from jaxprune.config import TASK_OPTIONS, make_tasks, task_options

if TYPE_CHECKING:
    from flax import nnx

    from jaxprune.observation.observed import Observed
    from jaxprune.tasks.base_networks import BasePool
    from jaxprune.tasks.tasks import Task
    from jaxprune.types import Array

DEFAULT_TASK = "digits"
BASES_DIR = "runs/bases"
"""Where single commands store base networks, so that the next command finds them trained."""

SEARCH_ONLY = ("bases", "extra_bases", "final_bases", "weight")
"""Options of a task that only a search and its report read."""

_MOST_BASES = 10_000

_OWN_NETWORK = ("data", "weights", "num_images")
"""Options that only go with `--network`."""


def add_base_options(parser: argparse.ArgumentParser, *, default: str = f"default: {DEFAULT_TASK}") -> None:
    """Adds `--task`, `--base` and the seed and folder of base networks.

    Args:
      parser: gets the options.
      default: what the help says about a missing `--task`.
    """
    from jaxprune.tasks.named_tasks import TASKS

    about = f"{', '.join(TASKS)}, or module:factory of your own ({default})"
    parser.add_argument("--task", metavar="NAME", help=about)
    parser.add_argument(
        "--base",
        type=whole_number,
        metavar="N",
        help="which of the task's search bases; trained if it is not there yet (default: 0)",
    )
    add_seed_options(parser)


def add_seed_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--seed` and `--bases-dir`, which every command on trained networks needs."""
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="networks, data orders and random plans follow from it (default: 0)",
    )
    parser.add_argument(
        "--bases-dir",
        type=Path,
        default=Path(BASES_DIR),
        metavar="DIR",
        help=f"where trained base networks are kept for the next command (default: {BASES_DIR})",
    )


def seed_number(text: str) -> int:
    """Reads a seed for argparse: a whole number of 64 bits."""
    return whole_number(text, bits=64)


def whole_number(text: str, bits: int = 32) -> int:
    """Reads a whole number for argparse.

    Args:
      text: of the command line.
      bits: that it may have.
    """
    limit = 2 ** (bits - 1)
    try:
        number = int(text)
    except ValueError:
        number = limit
    if not -limit <= number < limit:
        raise argparse.ArgumentTypeError(f"needs a whole number of at most {bits} bits, got {text!r}")
    return number


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
        help=f"{', '.join(DATASETS)}, tfds:NAME or a folder with train/CLASS/*.png (the training images), or FILE.npz "
        "with the arrays images and labels (or x and y)",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="Orbax checkpoint of the network's state (default: fresh weights, by --seed)",
    )
    group.add_argument(
        "--num-images",
        type=whole_number,
        metavar="N",
        help="calibrate on at most this many images, equally many of each class (default: all)",
    )


def add_task_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Adds the options that change tasks, each taking a value for all tasks or `task=value,task=value`.

    Args:
      parser: gets the options.
      without: names of `TASK_OPTIONS` that the command does not have.
    """
    group = parser.add_argument_group(
        "changes to tasks",
        "each a value for all tasks, or task=value,task=value; by default as the task says",
    )
    for name, (kind, about) in TASK_OPTIONS.items():
        if name not in without:
            metavar = {int: "N", float: "X", str: "NAME", bool: "yes|no"}[kind]
            alone: dict[str, Any] = {"nargs": "?", "const": "yes"} if kind is bool else {}
            group.add_argument(flag(name), default=argparse.SUPPRESS, metavar=metavar, help=about, **alone)
    add_data_dir_option(parser)


def add_data_dir_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`, which every command needs that reads images or prepares them."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of the image sets that jaxprune prepare has prepared (default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets)",
    )


def keep_programs(out: Path) -> None:
    """Lets JAX keep compiled programs in a folder of results, unless it keeps them elsewhere already.

    Args:
      out: the folder.
    """
    import jax

    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))


def flag(name: str) -> str:
    """Returns an option as it is typed.

    Example:
      >>> flag("max_age")
      '--max-age'
    """
    return f"--{name.replace('_', '-')}"


def is_network_given(arguments: argparse.Namespace) -> bool:
    """Returns whether any option names a network to look at."""
    return any(getattr(arguments, name) is not None for name in ("task", "base", "network", *_OWN_NETWORK))


def observed_of(arguments: argparse.Namespace) -> tuple[str, Observed]:
    """Observes the network that the command line names.

    Args:
      arguments: the command line.

    Returns:
      What to call the network, and what was observed on it.

    Raises:
      ValueError: for options that exclude each other, an unknown network, data that do not fit it, or weights of
        another network.
    """
    from jaxprune.observation.observer import observe

    if not _is_own_network(arguments):
        pool, base = base_pool(arguments), arguments.base or 0
        return f"{pool.task.name}, base {base}", pool.observed(base)
    return f"{arguments.network} on {arguments.data}", observe(*_own_network(arguments))


class MeasuredNetwork(NamedTuple):
    """A trained network, what was observed on it, and examples to measure its accuracy on."""

    title: str
    model: nnx.Module
    observed: Observed
    images: Array
    labels: Array


def measured_network(arguments: argparse.Namespace) -> MeasuredNetwork:
    """Returns the network that the command line names, to measure its accuracy on validation images.

    Of a file of `--data`, which holds no validation images, the images that are observed are measured too.

    Args:
      arguments: the command line.

    Raises:
      ValueError: as `observed_of` does.
    """
    from jaxprune.datasets.example_files import load_validation
    from jaxprune.observation.observer import observe
    from jaxprune.structure.model_state import merge_model, split_model

    if not _is_own_network(arguments):
        pool, base = base_pool(arguments), arguments.base or 0
        graphdef, _, rest = split_model(pool.programs.model)
        model = merge_model(graphdef, pool.bases[base].weights, rest)
        title = f"{pool.task.name}, base {base}"
        return MeasuredNetwork(title, model, pool.observed(base), *pool.programs.validation)
    model, images, labels = _own_network(arguments)
    observed = observe(model, images, labels)
    validation = load_validation(arguments.data, data_dir=arguments.data_dir)
    if validation is None:
        note("note: accuracy is measured on the images of --data, which the scores come from as well")
    title = f"{arguments.network} on {arguments.data}"
    return MeasuredNetwork(title, model, observed, *(validation or (images, labels)))


def _is_own_network(arguments: argparse.Namespace) -> bool:
    """Returns whether the command line names a network instead of a task, and refuses options of both."""
    if arguments.network is None:
        own = [flag(name) for name in _OWN_NETWORK if getattr(arguments, name) is not None]
        if own:
            raise ValueError(f"{own[0]} needs --network, got none. A task has its own network and images.")
        return False
    of_tasks = ("task", "base", *TASK_OPTIONS)
    given = [flag(name) for name in of_tasks if getattr(arguments, name, None) is not None]
    if given:
        raise ValueError(
            f"Name only one network, got --network and {given[0]}, which is about a task. Leave one out."
        )
    if "bases_dir" in arguments.given:
        raise ValueError(
            "--bases-dir needs a task, got --network, which has no base networks. Leave one out."
        )
    if arguments.data is None:
        raise ValueError("--network needs images to observe it on, got none. Name them with --data.")
    return True


def base_pool(arguments: argparse.Namespace, without: Collection[str] = ()) -> BasePool:
    """Returns the search bases of the task that the command line names, up to the one it asks for.

    Args:
      arguments: the command line.
      without: options that change a task elsewhere, but not in this command.

    Raises:
      ValueError: for an unknown task, changes that do not fit it, or a negative base.
    """
    from jaxprune.tasks.base_networks import BasePool
    from jaxprune.tasks.task_programs import TaskPrograms

    base, folder = arguments.base or 0, arguments.bases_dir
    if base < 0:
        raise ValueError(f"--base needs a number from 0, got {base}.")
    if base >= _MOST_BASES:
        raise ValueError(
            f"--base needs a number below {_MOST_BASES}, because all before it are trained, got {base}."
        )
    (task,) = tasks_of(arguments, [arguments.task or DEFAULT_TASK], (*SEARCH_ONLY, *without))
    check_folder(folder)
    programs = TaskPrograms(task)
    return BasePool(
        programs, arguments.seed, "search", base + 1, folder=folder, on_base=on_base, on_message=note
    )


def tasks_of(
    arguments: argparse.Namespace, names: Sequence[str], without: Collection[str] = ()
) -> list[Task]:
    """Returns tasks with the changes that the command line asks for.

    Args:
      arguments: the command line.
      names: of the tasks.
      without: options that change a task elsewhere, but not in this command.

    Raises:
      ValueError: for an unknown task, or changes that do not fit it.
    """
    own = [name for name in TASK_OPTIONS if name not in without and hasattr(arguments, name)]
    options = task_options({name: getattr(arguments, name) for name in own})
    return make_tasks(names, options, data_dir=arguments.data_dir)


def _own_network(arguments: argparse.Namespace) -> tuple[nnx.Module, Array, Array]:
    """Makes the network of `--network`, loads its weights, and reads the images and labels of `--data`."""
    import numpy as np

    from jaxprune.datasets.example_files import balanced, load_examples
    from jaxprune.nets.factories import find_network, look_in_working_directory
    from jaxprune.structure.model_state import merge_model, split_model
    from jaxprune.training.checkpoint import read_weights

    if ":" in arguments.network:
        look_in_working_directory()
    images, labels = load_examples(arguments.data, data_dir=arguments.data_dir)
    if arguments.num_images is not None:
        images, labels = balanced(images, labels, arguments.num_images)
    shape, num_classes = images.shape[1:], len(np.unique(labels))
    model = find_network(arguments.network, image_shape=shape, num_classes=num_classes, seed=arguments.seed)
    graphdef, weights, rest = split_model(model)
    if arguments.weights is None:
        note(f"note: no --weights, so {arguments.network} has the weights that it is made with")
    else:
        weights = read_weights(arguments.weights, weights)
    return merge_model(graphdef, weights, rest), images, labels
