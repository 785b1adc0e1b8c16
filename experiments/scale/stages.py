"""Turns a preset and the costs of its tasks into what is trained when: the stages of a search, and of a generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulation import Program, Stage

from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.search.evaluation import FINALISTS, FIRST_BASES, START_FORMULAS, num_promoted
from jaxprune.search.problem import TaskInfo
from jaxprune.search.proposals import seeds
from jaxprune.search.settings import EvolveConfig


@dataclass(frozen=True)
class Work:
    """What the networks of a task cost.

    Args:
      info: the task's numbers of base networks.
      finetune: the fine-tuning of a pruned network, in all rounds.
      train: the training of a base network.
      score_seconds: in which the plan of one function is made on one base network.
      compile_seconds: of one program on one host.
      rounds: of pruning; each has a program, and base networks have one.
    """

    info: TaskInfo
    finetune: Program
    train: Program
    score_seconds: float = 0.0
    compile_seconds: float = 0.0
    rounds: int = 1


def work_of(name: str, costs: Mapping[str, Any], bases: int, extra_bases: int) -> Work:
    """Makes the work of a task from its counted FLOPs and its measured or given seconds.

    Args:
      name: of the task.
      costs: its entry of the file of measurements; rows of base networks take longer by their FLOPs.
      bases: number of base networks that functions are tried on.
      extra_bases: number of further ones for elites.
    """
    rows = {int(chunk): seconds for chunk, seconds in costs["row_seconds"].items()}
    longer = costs["base_flops"] / costs["finetune_flops"]
    rounds, score = costs["rounds"], costs["score_seconds"]
    return Work(
        TaskInfo(name, bases=bases, extra_bases=extra_bases),
        Program(
            name, rows, host_seconds=(rounds - 1) * score
        ),  # plans of the first round come from the leader
        Program(f"{name}, base networks", {chunk: seconds * longer for chunk, seconds in rows.items()}),
        score,
        costs["compile_seconds"],
        rounds,
    )


def row_seconds(finetune_flops: float, flops_per_second: float, chunk: int, gain: float) -> dict[int, float]:
    """Returns seconds of rows of 1 and of `chunk` members, where so many are `gain` times as fast as one by one.

    Args:
      finetune_flops: of one fine-tuning.
      flops_per_second: that a device reaches with `chunk` members.
      chunk: of members, above 1.
      gain: how often as fast.
    """
    each = finetune_flops / flops_per_second
    return {1: each * gain, chunk: each * chunk}


def generation(config: EvolveConfig, works: Sequence[Work], *, together: bool = False) -> list[Stage]:
    """Returns the stages of one generation; what has to be scored, and the most that has to be trained.

    Args:
      config: the settings of the search.
      works: its tasks.
      together: whether promoted candidates and elites are trained at the same time.
    """
    proposals = config.population * (config.proposals_per_slot if config.fitness == "finetune" else 1)
    leader = proposals * sum(work.score_seconds * (work.info.bases + work.info.extra_bases) for work in works)
    if config.fitness == "landscape":
        return [Stage("score", (), leader)]
    promoted = num_promoted(config.population, config.promote_fraction)
    promote = [(work.finetune, promoted * (work.info.bases - 1)) for work in works]
    again = [(work.finetune, 2 * config.elites) for work in works]  # each with l2 on the same base and keys
    screen = Stage("screen", tuple((work.finetune, config.population) for work in works), leader)
    if together:
        both = [(program, number + more) for (program, number), (_, more) in zip(promote, again, strict=True)]
        return [screen, Stage("promote and again", tuple(both))]
    return [screen, Stage("promote", tuple(promote)), Stage("again", tuple(again))]


def search(config: EvolveConfig, works: Sequence[Work], *, together: bool = False) -> list[Stage]:
    """Returns the stages of a whole search, from the base networks on; the report is no part of it.

    Args:
      config: the settings of the search.
      works: its tasks.
      together: as for `generation`.
    """
    compile_all = sum(work.compile_seconds * (1 + work.rounds) for work in works)
    infos = [work.info for work in works]
    train = [(work.train, work.info.bases + work.info.extra_bases) for work in works]
    stages = [Stage("base networks", tuple(train), compile_seconds=compile_all)]
    if config.fitness == "landscape":
        stages.append(Stage("bank", _each(works, [config.plans * info.bases for info in infos])))
    else:
        start = len(seeds(config.seeds, DEFAULT_VOCABULARY))
        scored = start * sum(work.score_seconds * (work.info.bases + work.info.extra_bases) for work in works)
        stages.append(Stage("start", _each(works, [start * info.bases for info in infos]), scored))
    stages += config.generations * generation(config, works, together=together)
    if config.fitness == "landscape":
        leaders, best = (number + START_FORMULAS + 1 for number in (config.leaders, FINALISTS))
        first = [leaders * min(info.bases, FIRST_BASES) for info in infos]
        rest = [best * max(0, info.bases - FIRST_BASES) for info in infos]
        stages += [Stage("verify", _each(works, first)), Stage("verify", _each(works, rest))]
    return stages


def with_bases(works: Sequence[Work], bases: int) -> list[Work]:
    """Returns the same tasks with another number of base networks that functions are tried on."""
    return [dataclasses.replace(work, info=dataclasses.replace(work.info, bases=bases)) for work in works]


def dealt_out(stages: Sequence[Stage], hosts: int) -> list[Stage]:
    """Returns the same stages as if all hosts shared what the leader computes."""
    return [dataclasses.replace(stage, leader_seconds=stage.leader_seconds / hosts) for stage in stages]


def _each(works: Sequence[Work], numbers: Sequence[int]) -> tuple[tuple[Program, int], ...]:
    """Pairs the fine-tuning of each task with a number of networks."""
    return tuple((work.finetune, number) for work, number in zip(works, numbers, strict=True))
