"""Finds the least change of a search's settings that keeps many devices busy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from simulation import Account, Machine, NeverEndsError, simulate
from stages import Work, dealt_out, generation, with_bases

from jaxprune.search.settings import EvolveConfig

TARGET = 0.7
"""Efficiency that settings should keep."""

REPEATS = 5
"""Generations that are simulated, so that stragglers even out."""

GROWTH = (1, 2, 4, 8, 16, 32, 64, 128)
"""Populations that are tried, as multiples of the present one."""

MOST_BLOCKS = 10
"""Settings that fill all devices more often than this in a generation are not tried: that no longer helps."""

BASES = (1, 2, 4, 8, 16)
PROMOTED = (1 / 3, 1.0)
CHUNKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Choice:
    """Settings of a generation, and what it then comes to."""

    population: int
    bases: int
    promote_fraction: float
    chunk: int
    is_dealt: bool
    efficiency: float
    seconds: float
    fine_tunings: int
    lost_by: str


def per_generation(
    config: EvolveConfig, works: Sequence[Work], machine: Machine, *, together: bool, is_dealt: bool = False
) -> Account:
    """Simulates `REPEATS` generations.

    Args:
      config: the settings of the search.
      works: its tasks.
      machine: on what.
      together: as for `generation`.
      is_dealt: whether all hosts share the leader's scoring.
    """
    stages = generation(config, works, together=together) * REPEATS
    return simulate(dealt_out(stages, machine.hosts) if is_dealt else stages, machine)


def advise(config: EvolveConfig, works: Sequence[Work], machine: Machine, *, together: bool) -> Choice:
    """Returns the settings that reach `TARGET` with the least training, else those that come closest.

    Args:
      config: the present settings.
      works: the tasks.
      machine: with the number of devices.
      together: as for `generation`.
    """
    bases_now = sorted({*BASES, *(work.info.bases for work in works)})
    promoted = sorted({*PROMOTED, config.promote_fraction})
    populations = [config.population * times for times in GROWTH]
    chunks = [chunk for chunk in CHUNKS if all(chunk in _known(work) for work in works)]
    settings = [
        (config.replace(population=population, promote_fraction=fraction), bases)
        for population, bases, fraction in itertools.product(populations, bases_now, promoted)
        if bases > 1 or fraction == config.promote_fraction  # one base has nothing to promote to
    ]
    settings.sort(key=lambda pair: _training(pair[0], with_bases(works, pair[1])))
    best: Choice | None = None
    for (changed, bases), is_dealt in itertools.product(settings, (False, True)):
        tried = with_bases(works, bases)
        number = sum(stage.num_members for stage in generation(changed, tried))
        if best is not None and number > MOST_BLOCKS * machine.devices * max(chunks):
            break
        for chunk in sorted(chunks, reverse=True):
            placed = dataclasses.replace(machine, chunk=chunk)
            try:
                account = per_generation(changed, tried, placed, together=together, is_dealt=is_dealt)
            except NeverEndsError:
                continue
            choice = Choice(
                changed.population, bases, changed.promote_fraction, chunk, is_dealt,
                account.efficiency, account.seconds / REPEATS, number, account.largest_loss(),
            )  # fmt: skip
            if best is None or choice.efficiency > best.efficiency:
                best = choice
        if best is not None and best.efficiency >= TARGET:
            break
    assert best is not None, "there are settings to try"
    return best


def _training(config: EvolveConfig, works: Sequence[Work]) -> float:
    """Device seconds of one generation's training, if nothing is lost."""
    stages = generation(config, works)
    return sum(number * program.best_seconds for stage in stages for program, number in stage.members)


def _known(work: Work) -> range:
    """Chunks whose rows have known times."""
    return range(min(work.finetune.row_seconds), max(work.finetune.row_seconds) + 1)
