"""How good a plan can be at all: hill climbing over kept channels, by validation accuracy after fine-tuning.

An upper bound for what a pruning function can reach, up to luck: the climb looks at validation images, which a
function does not. It runs under keys of its own (one more repeat), so that accuracies under the keys of the
functions are fresh to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxprune.keys import derive, generator
from jaxprune.scoring.metrics import PruningFunction
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.types import Kept


@dataclass(frozen=True)
class Start:
    """Where a climb on one base begins: a plan, and the function whose it is (it plans later rounds, if any)."""

    name: str
    kept: Kept
    function: PruningFunction


@dataclass(frozen=True)
class Climb:
    """One climb, as plain data.

    Args:
      base: on which base.
      start: name of the function it started from.
      evaluations: fine-tunings it took, the start's included.
      accepted: number of steps that were taken, those to an equal accuracy included.
      trace: (evaluations so far, accuracy of the current plan in percent) after the start and after each batch.
      kept: the plan it ended with.
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
    """Improves a plan on each base, swapping one kept channel of a group for a pruned one.

    Each step tries `batch` such neighbours of the current plan on every base, all together, and takes the best of
    them unless it is worse than the current plan. No plan is tried twice.

    Args:
      pool: the bases.
      starts: base -> where to begin.
      evaluations: fine-tunings per base, >= 1; the start is one of them.
      repeat: picks the keys that all of them share.
      batch: neighbours tried at a time, >= 1.
      on_message: told how far it is after every step.

    Returns:
      base -> its climb; a function of the pool's key and the arguments alone.

    Raises:
      ValueError: if a number is below 1.
    """
    if evaluations < 1 or batch < 1:
        raise ValueError(f"climb needs evaluations >= 1 and batch >= 1, got {evaluations} and {batch}.")
    widths = pool.programs.rounds[0].structure.widths
    current = {base: start.kept for base, start in starts.items()}
    accuracy = dict(zip(starts, _accuracies(pool, starts, current, repeat), strict=True))
    tried: dict[int, set[Kept]] = {base: {kept} for base, kept in current.items()}
    accepted = dict.fromkeys(starts, 0)
    trace = {base: [(1, accuracy[base])] for base in starts}
    step, spent = 0, 1
    while spent < evaluations:
        count = min(batch, evaluations - spent)
        proposals: list[tuple[int, Kept]] = []
        for base in starts:
            rng = generator(derive(pool.key, "oracle", base, step))
            new = _neighbours(current[base], widths, count, rng, tried[base])
            tried[base].update(new)
            proposals += [(base, kept) for kept in new]
        if not proposals:
            break
        entries = [oracle_entry(pool, starts[base], base, repeat, kept) for base, kept in proposals]
        found = [float(trained.accuracies[-1]) for trained in pool.finetune(entries)]
        for base in starts:
            mine = [(value, kept) for (at, kept), value in zip(proposals, found, strict=True) if at == base]
            if mine:
                best, kept = max(mine, key=lambda each: each[0])
                if best >= accuracy[base]:
                    current[base], accuracy[base] = kept, best
                    accepted[base] += 1
                trace[base].append((trace[base][-1][0] + len(mine), accuracy[base]))
        step, spent = step + 1, spent + count
        on_message(
            f"oracle: {spent} of {evaluations} evaluations a base, "
            f"{np.mean(list(accuracy.values())):.1f} % under its own keys"
        )
    return {
        base: Climb(
            base, starts[base].name, trace[base][-1][0], accepted[base], tuple(trace[base]), current[base]
        )
        for base in starts
    }


def _neighbours(
    kept: Kept, widths: Mapping[str, int], count: int, rng: np.random.Generator, tried: set[Kept]
) -> list[Kept]:
    """Up to `count` new plans that differ in one swap; every group that is pruned is as likely."""
    groups = [at for at, (name, channels) in enumerate(kept) if len(channels) < widths[name]]
    found: list[Kept] = []
    for _ in range(20 * count if groups else 0):  # near a fully explored plan new neighbours become rare
        at = groups[int(rng.integers(len(groups)))]
        name, channels = kept[at]
        pruned = np.setdiff1d(np.arange(widths[name]), channels)
        out, put = int(rng.choice(channels)), int(rng.choice(pruned))
        swapped = tuple(sorted({*channels} - {out} | {put}))
        plan = (*kept[:at], (name, swapped), *kept[at + 1 :])
        if plan not in tried and plan not in found:
            found.append(plan)
            if len(found) == count:
                break
    return found


def _accuracies(
    pool: BasePool, starts: Mapping[int, Start], plans: Mapping[int, Kept], repeat: int
) -> list[float]:
    entries = [oracle_entry(pool, start, base, repeat, plans[base]) for base, start in starts.items()]
    return [float(trained.accuracies[-1]) for trained in pool.finetune(entries)]


def oracle_entry(pool: BasePool, start: Start, base: int, repeat: int, kept: Kept) -> Entry:
    """A fixed first-round plan as an entry; with several rounds, the start's function plans the later ones."""
    function = start.function if len(pool.programs.rounds) > 1 else None
    return Entry(base, repeat, function, kept)
