"""Scores and prunes layer after layer: every group is scored on activations of a network whose earlier groups are cut.

What is cut is zeroed, not removed, so that one compiled observation serves all steps. In a masked network the weights
that read pruned channels are zeros among the others: means over weights count them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxprune.nets.inputs import Batch
from jaxprune.observation.coarse_classes import Classes
from jaxprune.observation.examples import Targets, first_batch
from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import Observer, make_observer
from jaxprune.pruning.budgets import choose_counts
from jaxprune.pruning.masking import apply_masks, channel_masks, check_maskable
from jaxprune.pruning.planning import Plan, make_plan, select
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.scoring.ranking import CONSTANT, Aggregation, Ranking, rank_stack
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, split_model
from jaxprune.structure.tracing import trace_structure
from jaxprune.types import Invalid, Kept


class SequentialRanking(NamedTuple):
    """The channels that a function keeps, and the scores that every group had when its turn came."""

    kept: Kept
    ranking: Ranking


def sequential_plan(
    function: PruningFunction,
    model: nnx.Module,
    images: Batch | Iterable[Any],
    labels: Targets,
    counts: Mapping[str, int],
    *,
    aggregation: Aggregation = "relative",
    num_samples: int = 256,
    max_positions: int = 64,
    batch_size: int = 256,
    classes: Classes | None = None,
    positions: int | None = None,
    max_bytes: int | None = None,
) -> Plan:
    """Plans a network's groups one after another, each on activations of the network as it is pruned so far.

    Args:
      function: an expression, a metric, or any function from the `Operands` of one layer to [C] scores.
      model: NNX network; it is not changed.
      images, labels: calibration examples, as for `observe`; labels may be None.
      counts: group name -> channels kept; groups left out stay whole.
      aggregation: how the scores of several producers of one group are joined.
      num_samples, max_positions, batch_size, classes, positions, max_bytes: as for `observe`. Clusters of classes are
        those of the whole network.

    Returns:
      The plan.

    Raises:
      ValueError: as `observe`; for counts that do not fit the network, a network that cannot be masked (see `mask`), or
        a function without a score for some channel (the message names it), or with equal scores in every group.

    Source:
      Liu, Kung, Wentzlaff, Evolving Transferable (Neural) Pruning Functions, 2022: how it prunes VGG-16.
    """
    structure = trace_structure(model, first_batch(images, labels))
    structure.require_groups()
    wanted, budget, _ = choose_counts(structure, kept_counts=counts)
    check_maskable(structure, wanted)
    observer = make_observer(
        model,
        images,
        labels,
        num_samples=num_samples,
        max_positions=max_positions,
        batch_size=batch_size,
        classes=classes,
        positions=positions,
        max_bytes=max_bytes,
    )
    arrays = split_model(model)[1]
    found = rank_sequentially(function, structure, observer, arrays, wanted, aggregation=aggregation)
    if isinstance(found, Invalid):
        raise ValueError(f"{name_of(function)} needs a score for every channel; it is {found}.")
    return replace(make_plan(structure, found.kept), budget=budget, metric=name_of(function))


def rank_sequentially(
    function: PruningFunction,
    structure: Structure,
    observer: Observer,
    arrays: FlatState,
    counts: Mapping[str, int],
    *,
    aggregation: Aggregation = "relative",
) -> SequentialRanking | Invalid:
    """Ranks and cuts groups in program order; the network is observed anew after each one that loses channels.

    Args:
      function: as for `sequential_plan`.
      structure: groups of the network.
      observer: of networks of this architecture.
      arrays: of the network.
      counts: group name -> channels kept, between 1 and C; groups left out stay whole.
      aggregation: as for `sequential_plan`.

    Returns:
      What is kept of the groups in `counts`, in their order, or why the function is invalid. A group of equal scores
      takes those of `l2`; only where all groups do is the function invalid.
    """
    flat: FlatState = jax.device_get(arrays)
    kept: dict[str, tuple[int, ...]] = {}
    scores: dict[str, np.ndarray] = {}
    fallbacks, num_ties = [], 0
    observed: Observed | None = None
    for name, width in structure.widths.items():
        if observed is None:
            observed = observer(apply_masks(flat, channel_masks(structure, kept)) if kept else flat)
        (ranking,) = rank_stack([function], observed.group(name), aggregation=aggregation)
        problem = ranking.problems.get(0)
        if problem is not None and problem != CONSTANT:
            return problem
        scores[name] = ranking.scores[name][0]
        if not np.isfinite(scores[name]).all():  # those of l2, in a network that diverged
            return Invalid(f"not finite in group {name}")
        num_ties += int(ranking.num_ties[0])
        if problem is not None:
            fallbacks.append(name)
        if counts.get(name, width) < width:
            kept[name] = dict(select(scores, {name: counts[name]}))[name]
            observed = None
    if len(fallbacks) == len(scores):
        return CONSTANT
    chosen = tuple((name, kept.get(name, tuple(range(count)))) for name, count in counts.items())
    return SequentialRanking(chosen, Ranking(scores, tuple(fallbacks), num_ties))
