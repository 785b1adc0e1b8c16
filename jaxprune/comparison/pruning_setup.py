"""Checks everything about pruning one network before anything is trained: names, weights, images, budget, recipes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from flax import nnx

from jaxprune.comparison.training_checks import (
    canonical_network,
    check_classes,
    check_numbers,
    check_one_process,
    check_recipe,
    num_observed,
    read_checkpoint,
    trace_classifier,
    usual_base_recipe,
)
from jaxprune.comparison.transfer_data import ArrayData, TransferData, open_data
from jaxprune.comparison.transfer_networks import weights_digest
from jaxprune.comparison.transfer_records import recipe_to_json
from jaxprune.datasets.dataset import Dataset
from jaxprune.deploy.manifest import is_saved
from jaxprune.deploy.pretrained import PRETRAINED, load_pretrained, pretrained_form
from jaxprune.deploy.saving import load
from jaxprune.nets.factories import find_network
from jaxprune.pruning.budgets import PlanOptions, budget_counts
from jaxprune.pruning.compensation import check_compensable
from jaxprune.scoring.lookup import Function, display_name, find_function
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.scoring.scorable import scorable_groups
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, dotted, split_model
from jaxprune.training.recipes import Recipe, find_recipe

_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class PruningSettings:
    """Everything that the result of pruning one network follows from, but for images and weights themselves.

    Attributes:
      function: what scores channels: the text of a formula, or a name.
      network: as `find_network` takes it.
      options: further keywords of the network, which its file of weights tells.
      data: name of the images.
      weights: where the weights of the dense network are, or None where it is trained.
      base_recipe: how the dense network is trained; None where weights are given.
      recipe: how the slim network is fine-tuned.
      scratch_recipe: how the slim network is trained from new weights; None for no such networks.
      budget: keywords of `plan`.
      compensate: whether kept channels take over what least squares predicts of the others.
      seeds: number of fine-tunings, and of trainings from new weights.
      seed: initial networks and data orders follow from it.
      calibration_images: number of training images to observe.
      coarse_classes: number of clusters of classes to observe, or None for all classes.
      image_size: side of the images, or None where they are of one size.
    """

    function: str
    network: str
    options: Mapping[str, Any]
    data: str
    weights: str | None
    base_recipe: Recipe | None
    recipe: Recipe
    scratch_recipe: Recipe | None
    budget: PlanOptions
    compensate: bool
    seeds: int
    seed: int
    calibration_images: int
    coarse_classes: int | None
    image_size: int | None

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain data."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("base_recipe", "recipe", "scratch_recipe"):
            plain[name] = None if plain[name] is None else recipe_to_json(plain[name])
        return plain


@dataclass(frozen=True, eq=False)
class PruningSetup:
    """A run that can start: its settings, and what their names stand for.

    Attributes:
      settings: plain settings.
      function: scores the channels.
      data: the images.
      structure: groups of the network.
      digest: a hash of the weights that were given, or None.
    """

    settings: PruningSettings
    function: PruningFunction
    data: TransferData
    structure: Structure
    digest: str | None

    def make_network(self, seed: int) -> nnx.Module:
        """Makes a dense network with fresh weights.

        Args:
          seed: of the weights.
        """
        return find_network(self.settings.network, seed=seed, **self.factory_options)

    @property
    def factory_options(self) -> dict[str, Any]:
        """Keywords that `find_network` makes the dense network with."""
        data = self.data
        return {
            "image_shape": data.image_shape,
            "num_classes": data.num_classes,
            **self.settings.options,
        }

    def read_weights(self) -> FlatState:
        """Reads the weights of the dense network that were given.

        Raises:
          ValueError: if they are no weights of this network for these classes; names all arrays that differ.
        """
        settings = self.settings
        assert settings.weights is not None, "only asked for weights that were given"
        return _read_weights(settings.weights, settings.network, settings.options, self.data, settings.data)

    def document(self) -> dict[str, object]:
        """Returns what a run that goes on has to agree with."""
        return {
            "settings": self.settings.to_json(),
            "data": self.data.fingerprint,
            "network": self.structure.fingerprint,
            "weights": self.digest,
        }


def set_up_pruning(
    function: Function,
    *,
    network: str,
    data: str | Dataset,
    recipe: str | Recipe,
    weights: str | os.PathLike[str] | None = None,
    base_recipe: str | Recipe | None = None,
    with_scratch: bool = False,
    compensate: bool = False,
    seeds: int = 1,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    calibration_images: int | None = None,
    coarse_classes: int | None = None,
    image_size: int | None = None,
    workers: int = 0,
    counts: Mapping[str, int] | Sequence[int] | None = None,
    **budget: Unpack[PlanOptions],
) -> PruningSetup:
    """Checks the arguments of `prune_network`, opens the images, reads the weights and traces the network.

    Args:
      function: what scores channels: a name, a formula, an expression or a metric.
      network: a name of `NETWORKS`, or `module:factory`.
      data: a data set, or a name that `load_dataset` takes.
      recipe: how the slim network is fine-tuned.
      weights: of the dense network: an Orbax checkpoint, a folder of `jaxprune.save`, or a safetensors file that
        `load_pretrained` reads. None trains the network first.
      base_recipe: how the dense network is trained; by default the usual one beside `recipe`.
      with_scratch: whether slim networks with new weights are trained too, by `base_recipe`, for as many epochs as the
        pruned ones were trained before and after pruning.
      compensate: whether kept channels take over what least squares predicts of the others, see `slim`.
      seeds: number of fine-tunings of the same slim network, with different orders of images.
      seed: initial networks and data orders follow from it.
      data_dir: where prepared sets are.
      calibration_images: number of training images to observe, equally many of each class.
      coarse_classes: number of clusters of classes to observe instead of all classes.
      image_size: side of images of many sizes, which are then decoded batch by batch.
      workers: processes that decode.
      counts: channels that each group keeps, by name or in program order: `kept_counts` for networks whose groups are
        not known yet.
      **budget: keywords of `plan`: one budget, and how it is met.

    Returns:
      The run, ready to start.

    Raises:
      ValueError: for arguments that do not fit each other, the network or the images.
      ImportError: if packages for reading are missing.
    """
    check_one_process("pruning")
    check_numbers(
        "pruning", seeds=seeds, seed=seed, calibration_images=calibration_images, coarse=coarse_classes
    )
    f = find_function(function)
    finetune = find_recipe(recipe)
    if finetune.compensate:  # the network is corrected when it is pruned
        compensate, finetune = True, finetune.replace(compensate=False)
    base, scratch = _recipes(finetune, base_recipe, has_weights=weights is not None, scratch=with_scratch)
    images = open_data(data, data_dir=data_dir, image_size=image_size, workers=workers)
    for each in (finetune, base, scratch):
        check_recipe(each, images, "pruning")
    network, data_name = canonical_network(network), data if isinstance(data, str) else data.name
    place = None if weights is None else os.fspath(weights)
    options = _form_in(place, network)
    structure = trace_classifier(network, images, **options)
    scorable = scorable_groups(f, structure, groups=budget.get("groups"), ignore=budget.get("ignore", ()))
    if counts is not None:
        named = counts if isinstance(counts, Mapping) else _named_counts(counts, list(structure.widths))
        budget = budget | PlanOptions(kept_counts=named)
    budget = _checked_budget(structure, budget, scorable, compensate=compensate)
    digest = (
        None if place is None else weights_digest(_read_weights(place, network, options, images, data_name))
    )
    num_images = num_observed(calibration_images, images)
    check_classes(num_images, coarse_classes, images)
    if isinstance(images, ArrayData) and images.test is not None and images.dataset.scaling is None:
        images.test.check_fits(images.image_shape, images.num_classes)
    settings = PruningSettings(
        name_of(f) if display_name(f) == name_of(f) else display_name(f), network, options, data_name, place, base,
        finetune, scratch, budget, compensate, seeds, seed, num_images, coarse_classes, image_size,
    )  # fmt: skip
    return PruningSetup(settings, f, images, structure, digest)


def _recipes(
    finetune: Recipe, given: str | Recipe | None, *, has_weights: bool, scratch: bool
) -> tuple[Recipe | None, Recipe | None]:
    """The recipe that trains the dense network, and the one that trains slim networks from new weights."""
    if not scratch:
        return usual_base_recipe(finetune, given, has_weights=has_weights), None
    base = usual_base_recipe(finetune, given, has_weights=False)
    assert base is not None, "there is one without weights"
    epochs = base.epochs + finetune.epochs
    long = base.replace(epochs=epochs, warmup=base.warmup * epochs / base.epochs)
    return None if has_weights else base, long


def _form_in(weights: str | None, network: str) -> dict[str, Any]:
    """Keywords of the network that its file of weights tells; none but for safetensors files."""
    if weights is None or not weights.endswith(_SAFETENSORS):
        return {}
    return pretrained_form(_pretrained_name(network), weights)


def _pretrained_name(network: str) -> str:
    """What `load_pretrained` calls a network."""
    names = {ours: theirs for theirs, ours in PRETRAINED.items()}
    if network not in names:
        raise ValueError(
            f"weights in a safetensors file need one of the networks {', '.join(names)}, got {network!r}. Save those "
            "of another network as an Orbax checkpoint: orbax.checkpoint.StandardCheckpointer().save(folder, "
            "flax.nnx.state(model))."
        )
    return names[network]


def _read_weights(
    path: str, network: str, options: Mapping[str, Any], data: TransferData, data_name: str
) -> FlatState:
    """Reads weights of a dense network, which have to fit it and the classes of the images."""
    if path.endswith(_SAFETENSORS):
        model = load_pretrained(_pretrained_name(network), path, image_shape=data.image_shape)
    elif is_saved(Path(path)):
        model = load(path)
    else:
        return read_checkpoint(path, network, data, data_name)
    weights = split_model(model)[1]
    shapes = find_network(
        network, has_weights=False, image_shape=data.image_shape, num_classes=data.num_classes, **options
    )
    like = split_model(shapes)[1]
    problems = [f"{dotted(key)} is missing" for key in like if key not in weights]
    problems += [f"{dotted(key)} is not known to the network" for key in weights if key not in like]
    problems += [
        f"{dotted(key)} is {weights[key].shape} and not {like[key].shape}"
        for key in like
        if key in weights and weights[key].shape != like[key].shape
    ]
    if problems:
        raise ValueError(
            f"weights need to be of the whole network {network} for the {data.num_classes} classes of {data_name}, got "
            f"{path}, in which {'; '.join(problems)}. Leave the weights out to train on these images, or name others."
        )
    return weights


def _checked_budget(
    structure: Structure, budget: PlanOptions, scorable: Sequence[str], *, compensate: bool
) -> PlanOptions:
    """The budget without what was not given, after checking on shapes that it can be met by groups with scores."""
    given: Any = {name: value for name, value in budget.items() if value is not None}
    # The smallest network, which decides whether a budget can be met, is the same for both scopes.
    checked = given | PlanOptions(scope="group")
    if "latency_fraction" in given:  # only a trained network is measured
        share = given["latency_fraction"]
        if not 0 < share <= 1:
            raise ValueError(
                f"latency_fraction must be in (0, 1], got {share}. It is the fraction that stays."
            )
        checked = checked | PlanOptions(latency_fraction=None, kept_fraction=1.0)
    scores = {name: np.zeros(structure.widths[name]) for name in scorable}
    counts = budget_counts(structure, scores=scores, **checked)
    if compensate and given.get("scope") != "global":  # scores decide which groups a global ranking prunes
        check_compensable(structure, counts)
    return given


def _named_counts(counts: Sequence[int], groups: Sequence[str]) -> dict[str, int]:
    """Counts in program order, by the names of the groups."""
    if len(counts) != len(groups):
        raise ValueError(
            f"kept_counts needs {len(groups)} numbers, one each for {', '.join(groups)}, got {len(counts)}."
        )
    return dict(zip(groups, counts, strict=True))
