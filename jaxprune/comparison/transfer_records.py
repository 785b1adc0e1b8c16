"""The plain data of a transfer: its settings, what all its networks share, and one row per trained network.

A row is written as soon as its network is trained. Accuracies are in percent, on validation images unless a name says
test; means and standard errors count base networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxprune.pruning.budgets import Scope
from jaxprune.training.recipes import Recipe

FORMAT = 1
"""The version of the files of a transfer; newer versions are refused."""

DENSE = "dense"
"""Name of the row of a base network."""

CONTROLS = ("random", "scratch")
"""Rows without a function: random channels, and the slim network from a new initialisation."""

Kind = Literal["base", "function", "random", "scratch"]
Scoring = Literal["joint", "sequential"]
"""Whether all layers are scored on one pass, or each on activations of already pruned earlier layers."""


class Accuracy(NamedTuple):
    """Accuracy in percent."""

    top1: float
    top5: float | None = None
    """The share of images whose class is among the five highest logits; None with five classes or fewer."""


@dataclass(frozen=True)
class TransferSettings:
    """Everything that the result of a transfer follows from, but for the images themselves.

    Attributes:
      functions: row name -> the function as text; the first one is what is transferred, the others are its rivals.
      controls: those of `CONTROLS` that have a row.
      network: name of the network, as `find_network` takes it.
      data: name of the images.
      recipe: how pruned networks are fine-tuned, and the slim one trained from scratch.
      base_recipe: how base networks are trained; None where weights were given.
      weights: checkpoints of base networks; base b starts from number b modulo their count.
      kept_fraction: share of channels that each group keeps, or None.
      macs_fraction: share of the multiply-adds that stays, or None.
      scope: one share for every group, or the ranking by the first function on the first base.
      multiple_of: kept counts are multiples of this.
      bases: number of base networks.
      seed: initial networks, data orders and random channels follow from it.
      calibration_images: number of training images to observe.
      coarse_classes: number of coarse classes to observe, or None for all classes.
      scoring: see `Scoring`.
      image_size: side of the images, or None where they are of one size.
    """

    functions: Mapping[str, str]
    controls: tuple[str, ...]
    network: str
    data: str
    recipe: Recipe
    base_recipe: Recipe | None
    weights: tuple[str, ...]
    kept_fraction: float | None
    macs_fraction: float | None
    scope: Scope
    multiple_of: int
    bases: int
    seed: int
    calibration_images: int
    coarse_classes: int | None
    scoring: Scoring
    image_size: int | None

    @property
    def title(self) -> str:
        """Network and images, in which a file or folder is called by its last name."""
        images = self.data if self.data.startswith("tfds:") else Path(self.data).name
        return f"{self.network} on {images}"

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain data."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("recipe", "base_recipe")
        }
        plain |= {"functions": dict(self.functions), "controls": list(self.controls)}
        plain["weights"] = list(self.weights)
        plain["recipe"] = recipe_to_json(self.recipe)
        plain["base_recipe"] = None if self.base_recipe is None else recipe_to_json(self.base_recipe)
        return plain

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> TransferSettings:
        """Returns the settings that `to_json` wrote.

        Raises:
          ValueError, TypeError: if they are none.
        """
        recipes = {
            name: None if plain[name] is None else Recipe(**plain[name]) for name in ("recipe", "base_recipe")
        }
        lists = {name: tuple(plain[name]) for name in ("controls", "weights")}
        return TransferSettings(**{**plain, **recipes, **lists})


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Returns all settings of a recipe as plain data.

    Args:
      recipe: any.
    """
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in recipe.settings.items()
    }


@dataclass(frozen=True)
class TransferFacts:
    """What all networks of a transfer share.

    Attributes:
      num_classes: number of classes.
      image_shape: of one image.
      num_train: number of training images.
      num_validation: number of validation images.
      data_fingerprint: what the images are.
      data_source: where they come from.
      widths: group -> number of channels of a base network.
      kept: group -> number of channels that stay; empty until they are known.
      macs: multiply-adds of a base network for one image.
      parameters: trained parameters of a base network.
      slim_macs: multiply-adds that stay.
      slim_parameters: parameters that stay.
    """

    num_classes: int
    image_shape: tuple[int, ...]
    num_train: int
    num_validation: int
    data_fingerprint: str
    data_source: str
    widths: Mapping[str, int]
    kept: Mapping[str, int]
    macs: int
    parameters: int
    slim_macs: int
    slim_parameters: int

    def to_json(self) -> dict[str, Any]:
        """Returns the facts as plain data."""
        return dataclasses.asdict(self) | {"image_shape": list(self.image_shape)}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> TransferFacts:
        """Returns the facts that `to_json` wrote.

        Raises:
          TypeError, KeyError: if they are none.
        """
        return TransferFacts(**{**plain, "image_shape": tuple(plain["image_shape"])})


@dataclass(frozen=True)
class TransferRow:
    """One trained network.

    Attributes:
      base: number of the base network.
      name: the row's name: `DENSE`, the name of a function, or one of `CONTROLS`.
      kind: what the network is.
      before: accuracy before training: of a pruned network right after pruning; None for a base network.
      after: accuracy after training.
      curve: (epochs trained, top-1 accuracy) along the training, the last one after it.
      steps: optimiser steps.
      seconds: how long the training took, without interruptions.
      num_devices: number of devices that batches were split among.
      digest: a hash of the weights after training.
      kept_digest: a hash of the kept channels; "" for a base network.
      fallback_groups: groups in which the function's scores were all equal, so that l2 ordered them.
    """

    base: int
    name: str
    kind: Kind
    before: Accuracy | None
    after: Accuracy
    curve: tuple[tuple[float, float], ...]
    steps: int
    seconds: float
    num_devices: int
    digest: str
    kept_digest: str = ""
    fallback_groups: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain data."""
        plain = dataclasses.asdict(self)
        plain |= {"after": list(self.after), "before": None if self.before is None else list(self.before)}
        return plain | {
            "curve": [list(point) for point in self.curve],
            "fallback_groups": list(self.fallback_groups),
        }

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> TransferRow:
        """Returns the row that `to_json` wrote.

        Raises:
          ValueError, TypeError, KeyError: if it is none.
        """
        return TransferRow(
            **{
                **plain,
                "before": None if plain["before"] is None else Accuracy(*plain["before"]),
                "after": Accuracy(*plain["after"]),
                "curve": tuple((float(epoch), float(top1)) for epoch, top1 in plain["curve"]),
                "fallback_groups": tuple(plain["fallback_groups"]),
            }
        )
