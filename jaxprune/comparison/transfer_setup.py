"""Checks everything about a transfer before anything is trained: names, images, budget, recipes, disk and memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from flax import nnx

from jaxprune.comparison.transfer_data import ArrayData, TransferData, open_data
from jaxprune.comparison.transfer_records import CONTROLS, DENSE, Scoring, TransferFacts, TransferSettings
from jaxprune.datasets.dataset import Dataset
from jaxprune.language.expression import Expression
from jaxprune.nets.factories import NETWORKS, find_network
from jaxprune.pruning.budgets import Scope, budget_counts
from jaxprune.scoring.lookup import Function, display_name, find_function
from jaxprune.scoring.metrics import Metric, PruningFunction, metrics, name_of
from jaxprune.scoring.status import explain_absent
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, dotted, split_model
from jaxprune.structure.tracing import trace_structure
from jaxprune.training.checkpoint import read_weights
from jaxprune.training.data_parallel import data_mesh
from jaxprune.training.recipes import Recipe, find_recipe

BASE_RECIPES = {
    "adam_short": "adam_base_digits",
    "adam_fashion": "adam_base_fashion",
    "paper_resnet": "paper_resnet_base",
    "cifar_finetune": "cifar_base",
    "imagenet_finetune": "imagenet_base",
    "imagenet_finetune_cosine": "imagenet_base",
    "imagenet_mobilenet": "imagenet_base",
}
"""Recipe of fine-tuning -> the recipe that trains base networks unless another one is named."""

CALIBRATION_IMAGES = 2000
"""Training images to observe by default, or five of each class if these are more."""

_PER_CLASS = 5


@dataclass(frozen=True, eq=False)
class TransferSetup:
    """A transfer that can start: its settings, and what their names stand for.

    Attributes:
      settings: plain settings.
      functions: row name -> function; the first one is transferred.
      data: the images.
      structure: groups of the network.
    """

    settings: TransferSettings
    functions: Mapping[str, PruningFunction]
    data: TransferData
    structure: Structure

    def make_network(self, seed: int) -> nnx.Module:
        """Makes a network with fresh weights.

        Args:
          seed: of the weights.
        """
        return find_network(
            self.settings.network,
            image_shape=self.data.image_shape,
            num_classes=self.data.num_classes,
            seed=seed,
        )

    def counts(self, scores: Mapping[str, np.ndarray] | None = None) -> dict[str, int]:
        """Returns how many channels each group keeps, the same for all functions and bases.

        Args:
          scores: group -> scores by the first function on the first base; only read by the scope "global".
        """
        return budget_counts(
            self.structure,
            kept_fraction=self.settings.kept_fraction,
            macs_fraction=self.settings.macs_fraction,
            scope=self.settings.scope,
            multiple_of=self.settings.multiple_of,
            scores=scores,
        )

    def facts(self, kept: Mapping[str, int]) -> TransferFacts:
        """Returns what all networks share.

        Args:
          kept: group -> number of channels that stay.
        """
        data, structure = self.data, self.structure
        return TransferFacts(
            num_classes=data.num_classes,
            image_shape=data.image_shape,
            num_train=data.num_train,
            num_validation=data.num_validation,
            data_fingerprint=data.fingerprint,
            data_source=data.source,
            widths=structure.widths,
            kept=dict(kept),
            macs=structure.count_macs(),
            parameters=structure.count_parameters(),
            slim_macs=structure.count_macs(kept),
            slim_parameters=structure.count_parameters(kept),
        )

    def document(self) -> dict[str, object]:
        """Returns what a transfer that goes on has to agree with."""
        return {
            "settings": self.settings.to_json(),
            "data": self.data.fingerprint,
            "network": self.structure.fingerprint,
        }


def set_up_transfer(
    function: Function,
    *,
    name: str | None = None,
    against: Sequence[str] = ("l1", "l2", "random"),
    network: str,
    data: str | Dataset,
    data_dir: str | os.PathLike[str] | None = None,
    weights: Sequence[str | os.PathLike[str]] = (),
    kept_fraction: float | None = None,
    macs_fraction: float | None = None,
    scope: Scope = "group",
    multiple_of: int = 1,
    recipe: str | Recipe,
    base_recipe: str | Recipe | None = None,
    bases: int = 3,
    seed: int = 0,
    with_scratch: bool = True,
    calibration_images: int | None = None,
    coarse_classes: int | None = None,
    scoring: Scoring = "joint",
    image_size: int | None = None,
    workers: int = 0,
) -> TransferSetup:
    """Checks the arguments of `transfer`, opens the images and traces the network; trains nothing.

    Args:
      function, name, against, network, data, data_dir, weights, kept_fraction, macs_fraction, scope, multiple_of,
        recipe, base_recipe, bases, seed, with_scratch, calibration_images, coarse_classes, scoring, image_size,
        workers: as for `transfer`.

    Returns:
      The transfer, ready to start.

    Raises:
      ValueError, ImportError: as `transfer`.
    """
    _check_one_process()
    _check_numbers(bases=bases, seed=seed, calibration_images=calibration_images, coarse=coarse_classes)
    _check_choices(scoring, scope, kept_fraction=kept_fraction, macs_fraction=macs_fraction)
    functions = _named(function, name, [each for each in against if each not in ("random", "scratch")])
    finetune = find_recipe(recipe)
    base = _base_recipe(finetune, base_recipe, has_weights=bool(weights))
    images = open_data(data, data_dir=data_dir, image_size=image_size, workers=workers)
    for each in (finetune, base):
        _check_recipe(each, images)
    network = canonical_network(network)
    structure = _trace(network, images)
    _check_operands(functions.values(), structure)
    settings = TransferSettings(
        functions={row: name_of(f) for row, f in functions.items()},
        controls=_controls(against, with_scratch),
        network=network,
        data=data if isinstance(data, str) else data.name,
        recipe=finetune,
        base_recipe=base,
        weights=tuple(os.fspath(path) for path in weights),
        kept_fraction=kept_fraction,
        macs_fraction=macs_fraction,
        scope=scope,
        multiple_of=multiple_of,
        bases=bases,
        seed=seed,
        calibration_images=_num_observed(calibration_images, images),
        coarse_classes=coarse_classes,
        scoring=scoring,
        image_size=image_size,
    )
    setup = TransferSetup(settings, functions, images, structure)
    _check_setup(setup)
    return setup


def canonical_network(network: str) -> str:
    """Returns a network's name as `NETWORKS` spells it, another name unchanged.

    Example:
      >>> canonical_network("ResNet-56"), canonical_network("mine:make")
      ('resnet56', 'mine:make')
    """

    def letters(name: str) -> str:
        return name.replace("_", "").replace("-", "").lower()

    return next((known for known in NETWORKS if letters(known) == letters(network)), network)


def read_base_weights(setup: TransferSetup, path: str) -> FlatState:
    """Reads the weights of a base network.

    Args:
      setup: knows the network.
      path: of a checkpoint.

    Raises:
      ValueError: if there is no checkpoint of this network there; if it is one for another number of classes, the
        message says which.
    """
    make = partial(
        find_network, setup.settings.network, image_shape=setup.data.image_shape, has_weights=False
    )
    like = split_model(make(num_classes=setup.data.num_classes))[1]
    try:
        return read_weights(path, like)
    except ValueError as error:
        wider = split_model(make(num_classes=setup.data.num_classes + 1))[1]
        of_classes = {dotted(key) for key in like if like[key].shape != wider[key].shape}
        found = re.findall(r"(\S+) is \(([\d, ]+)\) and not", str(error))
        if not found or {name for name, _ in found} - of_classes or "missing" in str(error):
            raise
        stored = found[0][1].strip(", ").rpartition(",")[2].strip()
        raise ValueError(
            f"weights need to be of a network for the {setup.data.num_classes} classes of {setup.settings.data}, got "
            f"{path} for {stored} classes. Train a base network on these images (leave the weights out), or name "
            "another checkpoint."
        ) from error


def _check_one_process() -> None:
    """Checks that no other process would decode the same batches and write the same folder."""
    if jax.process_count() > 1:
        raise ValueError(
            f"a transfer needs one process, which uses all devices of its host, got {jax.process_count()} processes. "
            "Start it on one host, without jax.distributed."
        )


def _check_numbers(**numbers: int | None) -> None:
    """Checks numbers of the settings; names all that are out of range."""
    least = {"bases": 1, "seed": 0, "calibration_images": 2, "coarse": 2}
    names = {"coarse": "coarse_classes"}
    wrong = [
        f"{names.get(name, name)} >= {least[name]} (got {number})"
        for name, number in numbers.items()
        if number is not None and number < least[name]
    ]
    if wrong:
        raise ValueError(f"a transfer needs {', '.join(wrong)}.")


def _named(function: Function, name: str | None, rivals: Sequence[str]) -> dict[str, PruningFunction]:
    """Row name -> function; a rival that is the function itself has no row of its own."""
    first = find_function(function)
    name = display_name(first) if name is None else name
    rows: dict[str, PruningFunction] = {name: first}
    if name in (DENSE, "random", "scratch") or first is metrics["random"]:
        raise ValueError(
            f"{name!r} is the name of a row of its own, so it cannot be what is transferred. Name a function."
        )
    for rival in rivals:
        found = find_function(rival)
        if found not in rows.values():
            rows[display_name(found)] = found
    return rows


def _check_choices(scoring: str, scope: str, **budgets: float | None) -> None:
    """Checks that there is one budget, and that scoring and scope go together."""
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            "a transfer needs one budget, kept_fraction or macs_fraction (--kept-fraction or --macs-fraction), got "
            f"{' and '.join(given) or 'none'}."
        )
    if scoring not in ("joint", "sequential"):
        raise ValueError(f"scoring must be 'joint' or 'sequential', got {scoring!r}.")
    if scope == "global" and scoring == "sequential":
        raise ValueError(
            "scoring='sequential' needs scope='group', because a ranking of all channels needs all scores at once, got "
            "scope='global'. Change one of them."
        )


def _base_recipe(finetune: Recipe, given: str | Recipe | None, *, has_weights: bool) -> Recipe | None:
    """The recipe that trains base networks; None where these are loaded."""
    if has_weights:
        if given is not None:
            raise ValueError(
                "base networks are either loaded or trained, got both weights and a base recipe. Leave one out."
            )
        return None
    if given is not None:
        return find_recipe(given)
    if finetune.name not in BASE_RECIPES:
        raise ValueError(
            f"base networks need a recipe or weights, got neither, and there is no usual one beside {finetune.name!r}. "
            "Say base_recipe= (--base-recipe), or weights= (--weights)."
        )
    return find_recipe(BASE_RECIPES[finetune.name])


def _controls(against: Sequence[str], with_scratch: bool) -> tuple[str, ...]:
    """The rows without a function."""
    asked = {"random": "random" in against, "scratch": with_scratch or "scratch" in against}
    return tuple(control for control in CONTROLS if asked[control])


def _num_observed(given: int | None, data: TransferData) -> int:
    """How many training images are observed."""
    usual = max(CALIBRATION_IMAGES, _PER_CLASS * data.num_classes)
    return min(data.num_train, usual if given is None else given)


def _check_recipe(recipe: Recipe | None, data: TransferData) -> None:
    """Checks that a recipe, if there is one, can train on the images and devices, before hours are spent."""
    if recipe is None:
        return
    num_devices = data_mesh().size
    if recipe.batch_size % num_devices:
        near = max(1, round(recipe.batch_size / num_devices)) * num_devices
        raise ValueError(
            f"recipe {recipe.name!r} needs a batch that divides among the {num_devices} devices, got "
            f"{recipe.batch_size}. Say batch_size {near} (--batch-size {near})."
        )
    if recipe.compensate:
        raise ValueError(
            f"a transfer needs recipes without compensate, which would change what is compared, got {recipe.name!r}. "
            "Use recipe.replace(compensate=False)."
        )
    recipe.num_steps(data.num_train)
    if recipe.augment != "none" and len(data.image_shape) != 3:
        raise ValueError(
            f"recipe {recipe.name!r} shifts and mirrors images [H, W, C], got {data.name} of shape "
            f'{data.image_shape}. Use a recipe with augment="none".'
        )


def _trace(network: str, data: TransferData) -> Structure:
    """The structure of the network on images of this shape."""
    make = partial(find_network, network, has_weights=False, num_classes=data.num_classes)
    model = make(image_shape=data.image_shape)
    example = jax.ShapeDtypeStruct((2, *data.image_shape), np.float32)
    try:
        structure = trace_structure(model, example)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"network {network} needs images that it can take, got {data.name} of shape {data.image_shape}: {error} "
            "Choose a network for such images."
        ) from error
    program = structure.program
    output = program.shapes[program.outputs[0]]
    if len(program.outputs) != 1 or output != (2, data.num_classes):
        raise ValueError(
            f"network {network} needs to give {data.num_classes} logits, one for each class of {data.name}, got "
            f"an output of shape {output[1:]}. Let its factory make as many."
        )
    structure.require_groups()
    return structure


def _check_operands(functions: Iterable[PruningFunction], structure: Structure) -> None:
    """Checks that the network has all operands that functions read."""
    for f in functions:
        if absence := _absence(f, structure):
            raise ValueError(absence)


def _absence(f: PruningFunction, structure: Structure) -> str:
    """Says which operands a function reads that the network has nowhere; "" if it has all."""
    names = f.operands if isinstance(f, Expression | Metric) else frozenset()
    absent: dict[str, tuple[str, ...]] = {}
    for path, site in structure.sites.items():
        sources = {"gamma": site.gamma, "beta": site.beta, "WO": site.consumer}
        if lacking := tuple(name for name in sources if name in names and sources[name] is None):
            absent[path] = lacking
    return explain_absent(f, absent) if absent else ""


def _check_setup(setup: TransferSetup) -> None:
    """Checks that the budget can be met, weights fit, there are images enough, and test images are like the others."""
    settings, data = setup.settings, setup.data
    setup.counts({group: np.arange(width) + 1.0 for group, width in setup.structure.widths.items()})
    for path in settings.weights:
        read_base_weights(setup, path)
    if isinstance(data, ArrayData) and data.test is not None and data.dataset.scaling is None:
        data.test.check_fits(data.image_shape, data.num_classes)
    if settings.calibration_images < data.num_classes:
        raise ValueError(
            f"calibration_images must be at least the number of classes, {data.num_classes}, got "
            f"{settings.calibration_images}."
        )
    if settings.coarse_classes is not None and settings.coarse_classes > data.num_classes:
        raise ValueError(
            f"coarse_classes must be at most the number of classes, {data.num_classes}, got "
            f"{settings.coarse_classes}."
        )


def shortened_recipe(recipe: Recipe, *, epochs: int | None = None, batch_size: int | None = None) -> Recipe:
    """Returns a recipe with other epochs, or for another batch size.

    Args:
      recipe: any.
      epochs: passes over the training images, with a warm-up shortened in proportion.
      batch_size: as `Recipe.scaled_to`.

    Example:
      >>> from jaxprune.training.recipes import RECIPES
      >>> short = shortened_recipe(RECIPES["imagenet_base"], epochs=10, batch_size=256)
      >>> short.epochs, short.warmup, short.learning_rate
      (10, 0.5, 0.1)
    """
    if epochs is not None:
        recipe = recipe.replace(epochs=epochs, warmup=recipe.warmup * epochs / recipe.epochs)
    return recipe if batch_size is None else recipe.scaled_to(batch_size)
