"""Finds out how good a plan can be: hill climbing over kept channels, by validation accuracy after fine-tuning.

Apart from luck, the result is an upper bound for pruning functions, because the climb looks at validation images and
functions do not. The climb uses random keys of its own (those of one further repeat), so that it has not selected on
the accuracies that its plans reach under the keys of the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxprune.keys import derive, generator
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.types import Kept


@dataclass(frozen=True)
class Start:
    """The start of a climb on one base: a plan, and the function that made it and makes those of later rounds."""

    name: str
    kept: Kept
    function: PruningFunction


@dataclass(frozen=True)
class Climb:
    """One climb, as plain data.

    Args:
      base: index of the base.
      start: name of the function it started from.
      evaluations: number of fine-tunings, that of the start included.
      accepted: number of moves to another plan, those to an equally good one included.
      trace: (evaluations so far, accuracy of the current plan in percent) after the start and after each batch.
      kept: the final plan.
    """

    base: int
    start: str
    evaluations: int
    accepted: int
    trace: tuple[tuple[int, float], ...]
    kept: Kept


def climb(
    pool: BasePool,
    starts: Mapping[int, Start],
    *,
    evaluations: int,
    repeat: int,
    batch: int = 8,
    on_message: Callable[[str], None] = lambda message: None,
) -> dict[int, Climb]:
    """Improves a plan on each base, by swapping one kept channel of a group for a pruned one.

    Tries `batch` such neighbours of the current plan on every base at once, and moves to the best of them unless it is
    worse than the current plan, until the evaluations are spent. No plan is tried twice.

    Args:
      pool: the bases.
      starts: base -> where to begin.
      evaluations: number of fine-tunings per base, >= 1; the start is one of them.
      repeat: the repeat whose keys all of them share.
      batch: number of neighbours tried at a time, >= 1.
      on_message: called with the progress after every batch.

    Returns:
      base -> its climb, which depends on nothing but the pool's key and the arguments.

    Raises:
      ValueError: if a number is below 1.
    """
    if evaluations < 1 or batch < 1:
        raise ValueError(f"climb needs evaluations >= 1 and batch >= 1, got {evaluations} and {batch}.")
    widths = pool.programs.rounds[0].structure.widths
    tried: dict[int, set[Kept]] = {base: {start.kept} for base, start in starts.items()}
    first = _accuracies(pool, starts, [(base, start.kept) for base, start in starts.items()], repeat)
    climbs = {
        base: Climb(base, start.name, 1, 0, ((1, accuracy),), start.kept)
        for (base, start), accuracy in zip(starts.items(), first, strict=True)
    }
    number, spent = 0, 1
    while spent < evaluations:
        count = min(batch, evaluations - spent)
        neighbours: list[tuple[int, Kept]] = []
        for base, current in climbs.items():
            rng = generator(derive(pool.key, "oracle", base, number))
            plans = _neighbours(current.kept, widths, count, rng, tried[base])
            tried[base].update(plans)
            neighbours += [(base, plan) for plan in plans]
        if not neighbours:
            break
        accuracies = _accuracies(pool, starts, neighbours, repeat)
        for base, current in climbs.items():
            results = zip(neighbours, accuracies, strict=True)
            of_base = [(accuracy, plan) for (at, plan), accuracy in results if at == base]
            if of_base:
                climbs[base] = _moved(current, of_base)
        number, spent = number + 1, spent + count
        mean = np.mean([current.trace[-1][1] for current in climbs.values()])
        on_message(f"oracle: {spent} of {evaluations} evaluations a base, {mean:.1f} % under its own keys")
    return climbs


def oracle_entry(pool: BasePool, start: Start, base: int, repeat: int, kept: Kept) -> Entry:
    """Returns the pool's entry for a fixed first-round plan; the function of the start makes those of later rounds.

    Args:
      pool: the bases.
      start: the start of the climb that led to the plan.
      base: index of the base.
      repeat: number of the data order.
      kept: the plan.
    """
    function = start.function if len(pool.programs.rounds) > 1 else None
    return Entry(base, repeat, function, kept)


def _neighbours(
    kept: Kept, widths: Mapping[str, int], count: int, rng: np.random.Generator, tried: set[Kept]
) -> list[Kept]:
    """Draws up to `count` new plans that differ in one swap; all groups that are pruned are equally likely."""
    pruned_groups = [at for at, (name, channels) in enumerate(kept) if len(channels) < widths[name]]
    plans: list[Kept] = []
    for _ in range(
        20 * count if pruned_groups else 0
    ):  # when most neighbours are known, new ones become rare
        at = pruned_groups[int(rng.integers(len(pruned_groups)))]
        name, channels = kept[at]
        pruned = np.setdiff1d(np.arange(widths[name]), channels)
        removed, added = int(rng.choice(channels)), int(rng.choice(pruned))
        swapped = tuple(sorted({*channels} - {removed} | {added}))
        plan = (*kept[:at], (name, swapped), *kept[at + 1 :])
        if plan not in tried and plan not in plans:
            plans.append(plan)
            if len(plans) == count:
                break
    return plans


def _moved(current: Climb, neighbours: Sequence[tuple[float, Kept]]) -> Climb:
    """Returns the climb after a batch: at the neighbour with the highest accuracy, unless its plan was better."""
    evaluations, accuracy = current.evaluations + len(neighbours), current.trace[-1][1]
    best, plan = max(neighbours, key=lambda neighbour: neighbour[0])
    if best >= accuracy:
        current = replace(current, accepted=current.accepted + 1, kept=plan)
        accuracy = best
    return replace(current, evaluations=evaluations, trace=(*current.trace, (evaluations, accuracy)))


def _accuracies(
    pool: BasePool, starts: Mapping[int, Start], plans: Sequence[tuple[int, Kept]], repeat: int
) -> list[float]:
    """Fine-tunes every (base, plan); returns the validation accuracies in percent."""
    entries = [oracle_entry(pool, starts[base], base, repeat, plan) for base, plan in plans]
    return [float(trained.accuracies[-1]) for trained in pool.finetune(entries)]
