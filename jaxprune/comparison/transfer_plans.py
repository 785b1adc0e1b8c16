"""Which channels each row of a transfer keeps: equally many of every group for all functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.comparison.transfer_data import TransferData
from jaxprune.comparison.transfer_setup import TransferSetup
from jaxprune.keys import generator
from jaxprune.observation.observer import Observer, make_observer
from jaxprune.pruning.planning import Plan, make_plan, select
from jaxprune.pruning.sequential import rank_sequentially
from jaxprune.scoring.ranking import Ranking, rank_population
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import split_model
from jaxprune.types import Invalid

MOST_BYTES = 8 * 2**30
"""Memory for what is observed on a network; positions are pooled until it is enough."""

_BATCH = 128
"""Images of one forward pass when a network is observed, at 224 pixels fewer."""

_BATCH_PIXELS = _BATCH * 64 * 64


@dataclass(frozen=True)
class Planned:
    """A plan, and the groups whose scores were all equal, so that l2 ordered them."""

    plan: Plan
    fallback_groups: tuple[str, ...] = ()


class Plans(NamedTuple):
    """The plans of all functions on one base network.

    Attributes:
      counts: group -> number of channels that stay.
      plans: row name -> plan, or why the function has none.
    """

    counts: dict[str, int]
    plans: dict[str, Planned | Invalid]


def observer_of(
    model: nnx.Module, data: TransferData, *, num_images: int, coarse_classes: int | None
) -> Observer:
    """Returns what observes a network on training images, within a bounded memory.

    Args:
      model: the network.
      data: the images.
      num_images: number of training images, equally many of each class.
      coarse_classes: number of clusters of classes, or None for all classes.
    """
    images, labels = data.calibration(num_images)
    pixels = int(np.prod(data.image_shape[:2]))
    return make_observer(
        model,
        images,
        labels,
        batch_size=max(2, min(_BATCH, _BATCH_PIXELS // pixels)),
        classes=coarse_classes,
        max_bytes=MOST_BYTES,
    )


def plan_functions(
    setup: TransferSetup, model: nnx.Module, counts: Mapping[str, int] | None
) -> Plans | Invalid:
    """Observes a base network, scores its channels by every function, and plans what each keeps.

    Args:
      setup: the transfer.
      model: the base network.
      counts: group -> number of channels that stay; None takes those of the budget, on the first base network.

    Returns:
      The plans; the reason if the first function has no finite scores.
    """
    settings, structure = setup.settings, setup.structure
    observer = observer_of(
        model, setup.data, num_images=settings.calibration_images, coarse_classes=settings.coarse_classes
    )
    weights = split_model(model)[1]
    functions = list(setup.functions.values())
    if settings.scoring == "sequential":
        known = setup.counts() if counts is None else dict(counts)
        found = [rank_sequentially(f, structure, observer, weights, known) for f in functions]
        plans = {
            name: each
            if isinstance(each, Invalid)
            else Planned(make_plan(structure, each.kept), each.ranking.fallback_groups)
            for name, each in zip(setup.functions, found, strict=True)
        }
    else:
        rankings = cast(list[Ranking | Invalid], rank_population(functions, observer(weights)))
        first = rankings[0]
        if isinstance(first, Invalid):
            return first
        known = setup.counts(first.scores) if counts is None else dict(counts)
        plans = {
            name: each
            if isinstance(each, Invalid)
            else Planned(make_plan(structure, select(each.scores, known)), each.fallback_groups)
            for name, each in zip(setup.functions, rankings, strict=True)
        }
    first_plan = next(iter(plans.values()))
    return first_plan if isinstance(first_plan, Invalid) else Plans(known, plans)


def random_plan(structure: Structure, counts: Mapping[str, int], key: jax.Array) -> Plan:
    """Plans to keep random channels.

    Args:
      structure: groups of the network.
      counts: group -> number of channels that stay.
      key: a typed key.
    """
    draw = generator(key)
    widths = structure.widths
    kept = {
        name: tuple(np.sort(draw.choice(widths[name], count, replace=False)).tolist())
        for name, count in counts.items()
    }
    return make_plan(structure, kept)


def first_channels_plan(structure: Structure, counts: Mapping[str, int]) -> Plan:
    """Plans to keep the first channels of each group, which in a fresh network are as good as any.

    Args:
      structure: groups of the network.
      counts: group -> number of channels that stay.
    """
    return make_plan(structure, {name: tuple(range(count)) for name, count in counts.items()})
