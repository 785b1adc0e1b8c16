"""Checks everything about a transfer before anything is trained: names, images, budget, recipes, disk and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx

from jaxprune.comparison.training_checks import (
    canonical_network,
    check_classes,
    check_numbers,
    check_operands,
    check_recipe,
    num_observed,
    read_checkpoint,
    trace_classifier,
    usual_base_recipe,
)
from jaxprune.comparison.transfer_data import ArrayData, TransferData, open_data
from jaxprune.comparison.transfer_records import CONTROLS, DENSE, Scoring, TransferFacts, TransferSettings
from jaxprune.datasets.dataset import Dataset
from jaxprune.nets.factories import find_network
from jaxprune.pruning.budgets import Scope, budget_counts
from jaxprune.scoring.lookup import Function, display_name, find_function
from jaxprune.scoring.metrics import PruningFunction, metrics, name_of
from jaxprune.structure.groups import Structure
from jaxprune.training.recipes import Recipe, find_recipe


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
    check_numbers(
        "a transfer", bases=bases, seed=seed, calibration_images=calibration_images, coarse=coarse_classes
    )
    _check_choices(scoring, scope, kept_fraction=kept_fraction, macs_fraction=macs_fraction)
    functions = _named(function, name, [each for each in against if each not in ("random", "scratch")])
    finetune = find_recipe(recipe)
    base = usual_base_recipe(finetune, base_recipe, has_weights=bool(weights))
    images = open_data(data, data_dir=data_dir, image_size=image_size, workers=workers)
    for each in (finetune, base):
        check_recipe(each, images, "a transfer")
    network = canonical_network(network)
    structure = trace_classifier(network, images)
    check_operands(functions.values(), structure)
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
        calibration_images=num_observed(calibration_images, images),
        coarse_classes=coarse_classes,
        scoring=scoring,
        image_size=image_size,
    )
    setup = TransferSetup(settings, functions, images, structure)
    _check_setup(setup)
    return setup


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


def _controls(against: Sequence[str], with_scratch: bool) -> tuple[str, ...]:
    """The rows without a function."""
    asked = {"random": "random" in against, "scratch": with_scratch or "scratch" in against}
    return tuple(control for control in CONTROLS if asked[control])


def _check_setup(setup: TransferSetup) -> None:
    """Checks that the budget can be met, weights fit, there are images enough, and test images are like the others."""
    settings, data = setup.settings, setup.data
    setup.counts({group: np.arange(width) + 1.0 for group, width in setup.structure.widths.items()})
    for path in settings.weights:
        read_checkpoint(path, settings.network, data, settings.data)
    if isinstance(data, ArrayData) and data.test is not None and data.dataset.scaling is None:
        data.test.check_fits(data.image_shape, data.num_classes)
    check_classes(settings.calibration_images, settings.coarse_classes, data)
