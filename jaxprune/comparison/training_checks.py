"""Checks of a network, its weights, images and recipes, before hours of training are spent on them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune.comparison.transfer_data import TransferData
from jaxprune.nets.factories import NETWORKS, find_network
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.scoring.scorable import absent_in_structure
from jaxprune.scoring.status import explain_absent
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, dotted, split_model
from jaxprune.structure.tracing import trace_structure
from jaxprune.training.checkpoint import read_weights
from jaxprune.training.data_parallel import local_mesh
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


def check_one_process(
    what: str,
    instead: str = "Start it on one host, without jax.distributed; several can share a search (evolve) or a transfer.",
) -> None:
    """Checks that no other process would do the same work and write the same folder.

    Args:
      what: needs one process, in the message.
      instead: what several processes can do.

    Raises:
      ValueError: if JAX runs several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{what} needs one process, which uses all devices of its host, got {jax.process_count()} processes. "
            f"{instead}"
        )


def check_numbers(what: str, **numbers: int | None) -> None:
    """Checks numbers of settings; names all that are out of range.

    Args:
      what: needs them, in the message.
      **numbers: `bases`, `seeds`, `seed`, `calibration_images`, `coarse`; None where there is none.

    Raises:
      ValueError: if one is too small.
    """
    least = {"bases": 1, "seeds": 1, "seed": 0, "calibration_images": 2, "coarse": 2}
    names = {"coarse": "coarse_classes"}
    wrong = [
        f"{names.get(name, name)} >= {least[name]} (got {number})"
        for name, number in numbers.items()
        if number is not None and number < least[name]
    ]
    if wrong:
        raise ValueError(f"{what} needs {', '.join(wrong)}.")


def check_classes(num_images: int, coarse_classes: int | None, data: TransferData) -> None:
    """Checks that every class can be observed.

    Args:
      num_images: number of images that are observed.
      coarse_classes: number of clusters of classes, or None.
      data: the images.

    Raises:
      ValueError: if there are more classes than images, or more clusters than classes.
    """
    if num_images < data.num_classes:
        raise ValueError(
            f"calibration_images must be at least the number of classes, {data.num_classes}, got {num_images}."
        )
    if coarse_classes is not None and coarse_classes > data.num_classes:
        raise ValueError(
            f"coarse_classes must be at most the number of classes, {data.num_classes}, got {coarse_classes}."
        )


def usual_base_recipe(finetune: Recipe, given: str | Recipe | None, *, has_weights: bool) -> Recipe | None:
    """Returns the recipe that trains base networks; None where these are loaded.

    Args:
      finetune: the recipe that fine-tunes.
      given: the recipe that was asked for, or None for the usual one beside `finetune`.
      has_weights: whether base networks are loaded.

    Raises:
      ValueError: for weights and a recipe, or neither where there is no usual one.

    Example:
      >>> usual_base_recipe(find_recipe("adam_short"), None, has_weights=False).name
      'adam_base_digits'
    """
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


def num_observed(given: int | None, data: TransferData) -> int:
    """Returns how many training images are observed.

    Args:
      given: number that was asked for, or None.
      data: the images.
    """
    usual = max(CALIBRATION_IMAGES, _PER_CLASS * data.num_classes)
    return min(data.num_train, usual if given is None else given)


def check_recipe(recipe: Recipe | None, data: TransferData, what: str) -> None:
    """Checks that a recipe, if there is one, can train on the images and devices, before hours are spent.

    Args:
      recipe: any, or None.
      data: the images.
      what: trains by it, in messages.

    Raises:
      ValueError: if it cannot.
    """
    if recipe is None:
        return
    num_devices = local_mesh().size
    if recipe.batch_size % num_devices:
        near = max(1, round(recipe.batch_size / num_devices)) * num_devices
        raise ValueError(
            f"recipe {recipe.name!r} needs a batch that divides among the {num_devices} devices, got "
            f"{recipe.batch_size}. Say batch_size {near} (--batch-size {near})."
        )
    if recipe.compensate:
        raise ValueError(
            f"{what} needs recipes without compensate, which would change what is compared, got {recipe.name!r}. "
            "Use recipe.replace(compensate=False)."
        )
    recipe.num_steps(data.num_train)
    if recipe.augment != "none" and len(data.image_shape) != 3:
        raise ValueError(
            f"recipe {recipe.name!r} shifts and mirrors images [H, W, C], got {data.name} of shape "
            f'{data.image_shape}. Use a recipe with augment="none".'
        )


def canonical_network(network: str) -> str:
    """Returns a network's name as `NETWORKS` spells it, another name unchanged.

    Example:
      >>> canonical_network("ResNet-56"), canonical_network("mine:make")
      ('resnet56', 'mine:make')
    """

    def letters(name: str) -> str:
        return name.replace("_", "").replace("-", "").lower()

    return next((known for known in NETWORKS if letters(known) == letters(network)), network)


def trace_classifier(network: str, data: TransferData, **options: Any) -> Structure:  # noqa: ANN401 - of networks
    """Traces a network on the shape of images, and checks that it gives a logit for each of their classes.

    Args:
      network: its name, as `find_network` takes it.
      data: the images.
      **options: further keywords of the network.

    Raises:
      ValueError: if the network does not take the images, gives anything but one logit for each class, or has no group
        of channels that can be pruned.
    """
    model = find_network(
        network, image_shape=data.image_shape, num_classes=data.num_classes, has_weights=False, **options
    )
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


def check_operands(functions: Iterable[PruningFunction], structure: Structure) -> None:
    """Checks that a network has all operands that functions read.

    Args:
      functions: score its channels.
      structure: its groups.

    Raises:
      ValueError: names the operands that it lacks.
    """
    for f in functions:
        if absent := absent_in_structure(f, structure):
            raise ValueError(explain_absent(f, absent))


def read_checkpoint(path: str, network: str, data: TransferData, data_name: str) -> FlatState:
    """Reads the weights of a network from an Orbax checkpoint.

    Args:
      path: of the checkpoint.
      network: name of the network, as `find_network` takes it.
      data: the images.
      data_name: what to call them.

    Raises:
      ValueError: if there is no checkpoint of this network there; if it is one for another number of classes, the
        message says which.
    """
    make = partial(find_network, network, image_shape=data.image_shape, has_weights=False)
    like = split_model(make(num_classes=data.num_classes))[1]
    try:
        return read_weights(path, like)
    except ValueError as error:
        wider = split_model(make(num_classes=data.num_classes + 1))[1]
        of_classes = {dotted(key) for key in like if like[key].shape != wider[key].shape}
        found = re.findall(r"(\S+) is \(([\d, ]+)\) and not", str(error))
        if not found or {name for name, _ in found} - of_classes or "missing" in str(error):
            raise
        stored = found[0][1].strip(", ").rpartition(",")[2].strip()
        raise ValueError(
            f"weights need to be of a network for the {data.num_classes} classes of {data_name}, got {path} for "
            f"{stored} classes. Train a base network on these images (leave the weights out), or name "
            "another checkpoint."
        ) from error
