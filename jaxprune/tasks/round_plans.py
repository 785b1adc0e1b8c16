"""Which channels a function keeps in a round, by scores of all groups at once or group after group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from jaxprune.language.library import library
from jaxprune.pruning.planning import select
from jaxprune.pruning.sequential import rank_sequentially
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.scoring.ranking import Ranking, rank_population
from jaxprune.structure.model_state import FlatState
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.types import Invalid, Kept


@dataclass(frozen=True)
class FirstRoundPlan:
    """The channels that a function keeps in the first round on one base network, and the ranking behind it."""

    kept: Kept
    ranking: Ranking


class StackedPlan(NamedTuple):
    """The channels that a function keeps in the first round on all base networks."""

    is_kept: np.ndarray
    """[B, sum C], groups in the order of the schedule."""
    num_fallbacks: int
    """Groups, over all bases, whose scores were all equal, so that l2 ordered them."""
    num_ties: int
    """Neighbouring equal scores, over all bases, that were ordered by channel index."""


def plan_sequentially(
    programs: TaskPrograms, function: PruningFunction, weights: FlatState, round_index: int = 0
) -> FirstRoundPlan | Invalid:
    """Plans a round group after group, each on activations of the network as it is pruned so far.

    Args:
      programs: the task's compiled programs.
      function: the pruning function.
      weights: path -> array, at the shapes before the round.
      round_index: number of the round, 0 for the first.
    """
    this_round = programs.rounds[round_index]
    observer = programs.observer(round_index)
    found = rank_sequentially(function, this_round.structure, observer, weights, this_round.counts)
    return found if isinstance(found, Invalid) else FirstRoundPlan(*found)


def stack_plans(
    plans: Sequence[FirstRoundPlan | Invalid], widths: Mapping[str, int]
) -> StackedPlan | Invalid:
    """Joins the plans of one function on all base networks.

    Args:
      plans: on each base network.
      widths: group name -> C.

    Returns:
      The plans together, or why there is none on the first base where there is none.

    Example:
      >>> ranking = Ranking({"conv": np.array([1.0, 3.0, 2.0])}, (), 0)
      >>> stack_plans([FirstRoundPlan((("conv", (1, 2)),), ranking)], {"conv": 3}).is_kept.tolist()
      [[False, True, True]]
    """
    done: list[FirstRoundPlan] = []
    for base, plan in enumerate(plans):
        if isinstance(plan, Invalid):
            return Invalid(f"base {base}: {plan.reason}")
        done.append(plan)
    is_kept = [
        np.concatenate([np.isin(np.arange(widths[name]), channels) for name, channels in plan.kept])
        for plan in done
    ]
    fallbacks = sum(len(plan.ranking.fallback_groups) for plan in done)
    return StackedPlan(np.stack(is_kept), fallbacks, sum(plan.ranking.num_ties for plan in done))


def later_kept(
    programs: TaskPrograms, function: PruningFunction, weights: FlatState, round_index: int
) -> Kept:
    """Chooses the channels of a round after the first.

    A function may be valid on the base network but not after an earlier round (a channel died, say): then l2 chooses,
    which also ranks single groups that a function leaves unranked. If the weights diverged in an earlier round, any
    channels will do, as the accuracy will show it.

    Args:
      programs, function, weights, round_index: as for `plan_sequentially`.
    """
    counts = programs.rounds[round_index].counts
    functions = [function, library["l2"]]
    if programs.task.schedule.scoring == "sequential":
        for each in functions:
            plan = plan_sequentially(programs, each, weights, round_index)
            if isinstance(plan, FirstRoundPlan):
                return plan.kept
    else:
        observed = programs.observer(round_index)(weights)
        for ranking in cast(list[Ranking | Invalid], rank_population(functions, observed)):
            if isinstance(ranking, Ranking):
                return select(ranking.scores, counts)
    return tuple((name, tuple(range(count))) for name, count in counts.items())
