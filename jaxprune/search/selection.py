"""Selects individuals of a search: one per behaviour, parents, those with different plans, and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxprune.search.problem import plan_distance
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import Individual, SearchState


def one_per_behaviour(individuals: Sequence[Individual]) -> tuple[Individual, ...]:
    """Keeps the first of the individuals with equal behaviour, which is the best of them if they are ranked."""
    first: dict[str, Individual] = {}
    for individual in individuals:
        assert individual.candidate.behaviour is not None
        first.setdefault(individual.candidate.behaviour.digest, individual)
    return tuple(first.values())


def survivors(state: SearchState) -> tuple[int, ...]:
    """Selects the candidates that may become parents: the best of the young ones, one per behaviour.

    A candidate retires when it was not fine-tuned in `max_age` generations, so that a lucky result has to be
    confirmed. On a landscape they are the best whose plans are `apart`.

    Returns:
      At most `population` candidate ids, best first.
    """
    if state.has_landscapes:
        return tuple(
            individual.candidate.id for individual in apart(state.ranked_by_prediction(), state.config)
        )
    oldest = state.generation - 1 - state.config.max_age
    young = [individual for individual in state.ranked() if individual.candidate.last_evaluated >= oldest]
    return tuple(
        individual.candidate.id for individual in one_per_behaviour(young)[: state.config.population]
    )


def apart(ranked: Sequence[Individual], config: EvolveConfig, count: int | None = None) -> list[Individual]:
    """Selects the first individuals whose plans differ from those selected before.

    Args:
      ranked: individuals, best first.
      config: says by which share of kept channels plans must differ, `min_plan_distance`.
      count: how many to select; by default the population's size.

    Returns:
      At most `count` of them, in their order.
    """
    selected: list[Individual] = []
    plans: list[str] = []
    for individual in ranked:
        if len(selected) == (config.population if count is None else count):
            break
        assert individual.candidate.behaviour is not None
        kept = individual.candidate.behaviour.kept
        if all(plan_distance(kept, plan) >= config.min_plan_distance for plan in plans):
            selected.append(individual)
            plans.append(kept)
    return selected


def pareto_front(individuals: Iterable[Individual]) -> tuple[Individual, ...]:
    """Selects the individuals that no other beats in both value and complexity.

    Returns:
      The front, simplest first, so that each is better than all before it; of equals only the older one is there.
    """
    front: list[Individual] = []
    for individual in sorted(
        individuals, key=lambda individual: (individual.candidate.complexity, individual.order)
    ):
        if not front or individual.value > front[-1].value:
            front.append(individual)
    return tuple(front)
