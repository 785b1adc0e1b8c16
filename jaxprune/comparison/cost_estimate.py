"""Estimates what a run costs before it starts: networks to train, FLOPs, and the time that this machine needs.

FLOPs are those of convolutions and matrix products, forward and backward; the time follows from one training step.
Left out are scoring, observing and evaluating, which take a few percent of a run with many epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from jaxprune.comparison.final_controls import ORACLE_BASES, ORACLE_EVALUATIONS
from jaxprune.comparison.final_rows import KNOWN
from jaxprune.comparison.finals import Controls
from jaxprune.language.library import library, own_seeds
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.nets.cost import count_macs
from jaxprune.search.evaluation import FINALISTS, FIRST_BASES, START_FORMULAS, max_fine_tunings
from jaxprune.search.problem import TaskInfo
from jaxprune.search.proposals import seeds
from jaxprune.search.settings import EvolveConfig
from jaxprune.tasks.batching_speed import FLOPS_PER_MAC, time_batching
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task
from jaxprune.training.recipes import Recipe

DAY = 24 * 3600.0

MOST_SECONDS = 7 * DAY
"""A run that is estimated to take longer starts only if it is confirmed."""

TIMED_FROM = 1e14
"""Runs of fewer FLOPs end within hours on any machine; timing a step would only delay them."""

MOST_TIMED_ON_CPU = 32
"""Images of the step that is timed on a CPU, at most: a step of VGG-16 with 128 images takes many seconds there."""

OTHER_ROWS = 9
"""Rows of a final comparison beside known functions, at most: winner, best start formulas, best guess, the best of a
random search, three random plans, training from scratch."""


@dataclass(frozen=True)
class TaskCost:
    """The cost of one task of a run, at most.

    Args:
      name: of the task.
      num_bases: base networks to train, for the search and for the report.
      num_start: fine-tunings that no limit cuts short: of start formulas, or of banks of plans.
      num_searched: fine-tunings of the generations.
      num_final: fine-tunings after the search: verification, final comparison and its controls.
      base_flops: FLOPs of training one base network.
      finetune_flops: FLOPs of fine-tuning one pruned network in all rounds.
      flops_per_second: what this machine reaches in training steps of the task; None if it was not timed.
    """

    name: str
    num_bases: int
    num_start: int
    num_searched: int
    num_final: int
    base_flops: float
    finetune_flops: float
    flops_per_second: float | None = None

    @property
    def num_fine_tunings(self) -> int:
        """Fine-tunings in all."""
        return self.num_start + self.num_searched + self.num_final

    @property
    def flops(self) -> float:
        """FLOPs in all.

        Example:
          >>> TaskCost("a", 2, 10, 20, 5, base_flops=100.0, finetune_flops=10.0).flops
          550.0
        """
        return self.num_bases * self.base_flops + self.num_fine_tunings * self.finetune_flops


@dataclass(frozen=True)
class CostEstimate:
    """The cost of a run, at most.

    Args:
      tasks: the costs of its tasks.
      time_limit_seconds: limit on the generations, or None.
    """

    tasks: tuple[TaskCost, ...]
    time_limit_seconds: float | None = None

    @property
    def flops(self) -> float:
        """FLOPs in all."""
        return sum(task.flops for task in self.tasks)

    @property
    def seconds(self) -> float | None:
        """Time on this machine; None if it was not timed.

        Example:
          >>> task = TaskCost("a", 2, 10, 20, 5, base_flops=100.0, finetune_flops=10.0, flops_per_second=50.0)
          >>> CostEstimate((task,)).seconds, CostEstimate((task,), time_limit_seconds=1.0).seconds
          (11.0, 8.0)
        """
        total = searched = 0.0
        for task in self.tasks:
            if task.flops_per_second is None:
                return None
            total += task.flops / task.flops_per_second
            searched += task.num_searched * task.finetune_flops / task.flops_per_second
        limit = searched if self.time_limit_seconds is None else self.time_limit_seconds
        return total - searched + min(searched, limit)

    def __str__(self) -> str:
        counts = "; ".join(
            f"{task.num_bases:,} base networks and {task.num_fine_tunings:,} fine-tunings of {task.name}"
            for task in self.tasks
        )
        seconds = self.seconds
        here = "" if seconds is None else f", about {time_in_words(seconds)} on this machine"
        return f"This run costs at most {self.flops:.1e} FLOP{here}: {counts}."


def estimate_cost(
    programs: Mapping[str, TaskPrograms],
    config: EvolveConfig,
    *,
    num_guesses: int = 0,
    unseen: Sequence[TaskPrograms] = (),
    has_report: bool = True,
    controls: Controls = "standard",
    speed: Callable[[TaskPrograms], float] | None = None,
) -> CostEstimate:
    """Estimates the cost of a search and its report, before anything is trained.

    Args:
      programs: task name -> its machinery, of the tasks that are searched on.
      config: the settings of the search.
      num_guesses: number of formulas of the user.
      unseen: the machinery of tasks for the report alone.
      has_report: whether the final comparison follows.
      controls: of the final comparison.
      speed: measures the FLOPs per second of training steps of a task; by default `measured_speed`. It is called only
        for runs of `TIMED_FROM` FLOPs or more.

    Returns:
      Numbers that the run stays below, as no plan is fine-tuned twice, and a time that is about that of so many.

    Example:
      >>> from jaxprune.tasks.named_tasks import find_task
      >>> config = EvolveConfig(fitness="finetune", generations=1, population=4, seeds="paper")
      >>> estimate = estimate_cost({"digits": TaskPrograms(find_task("digits"))}, config, has_report=False)
      >>> estimate.tasks[0].num_bases, estimate.tasks[0].num_searched, estimate.seconds is None
      (16, 38, True)
    """
    costs = []
    rows = _num_rows(config, controls) if has_report else 0
    machines = {**programs, **{machine.task.name: machine for machine in unseen if has_report}}
    for name, machine in machines.items():
        task, is_searched = machine.task, name in programs
        start, searched, verified = _searched(task, config, num_guesses) if is_searched else (0, 0, 0)
        final = rows * task.final_bases
        if has_report and config.fitness == "landscape":
            final += verified  # of the random search, on the same bank
        elif has_report and is_searched and controls == "full":
            final += start + searched
        if has_report and is_searched and controls == "full":
            final += ORACLE_EVALUATIONS * min(ORACLE_BASES, task.final_bases)
        num_bases = (task.bases + task.extra_bases) * is_searched + task.final_bases * has_report
        costs.append(TaskCost(name, num_bases, start, searched, verified + final, *_flops(machine)))
    estimate = CostEstimate(tuple(costs), config.time_limit_seconds)
    if estimate.flops < TIMED_FROM:
        return estimate
    measure = measured_speed if speed is None else speed
    timed = (dataclasses.replace(cost, flops_per_second=measure(machines[cost.name])) for cost in costs)
    return dataclasses.replace(estimate, tasks=tuple(timed))


def measured_speed(programs: TaskPrograms) -> float:
    """Measures the FLOPs per second of fine-tuning, on one step of as many networks as are trained at a time.

    The networks are of the shape of the first round, as most of a run is spent on such ones. The program compiles
    first, which takes seconds to a minute.

    Args:
      programs: the machinery of a task.

    Returns:
      FLOPs per second of all networks together.
    """
    num = programs.recipe().batch_size
    if jax.default_backend() == "cpu":  # where the speed hardly depends on the batch
        num = min(num, MOST_TIMED_ON_CPU)
    timing = time_batching(programs, programs.asked, num_steps=1, batch_size=num, repeats=1)
    example = jax.ShapeDtypeStruct((num, *programs.data.x.shape[1:]), programs.data.x.dtype)
    macs = count_macs(programs.fine_tuned_model, example)
    return timing.num_members * num * FLOPS_PER_MAC * macs / (timing.seconds / programs.num_steps)


def refusal(estimate: CostEstimate) -> str:
    """Says why a run should not start unasked and what to do instead; "" for a run of at most `MOST_SECONDS`.

    Example:
      >>> refusal(CostEstimate((TaskCost("a", 1, 0, 0, 0, 1.0, 1.0, flops_per_second=1.0),)))
      ''
    """
    if estimate.seconds is None or estimate.seconds <= MOST_SECONDS:
        return ""
    return (
        f"a run needs at most {time_in_words(MOST_SECONDS)} on this machine to start unasked, got an estimate of "
        f"{time_in_words(estimate.seconds)}. Rehearse it on a share of images and epochs (--scale 0.05), use a machine "
        "with an accelerator, search less (--generations, --population), or start it all the same with --yes; it can "
        "be stopped and resumed at any time."
    )


def time_in_words(seconds: float) -> str:
    """Formats a rough time: minutes, hours or days.

    Example:
      >>> time_in_words(240), time_in_words(9000), time_in_words(604800), time_in_words(3e7)
      ('4 minutes', '2.5 hours', '7 days', '347 days')
    """
    for limit, unit, word in ((7200.0, 60.0, "minutes"), (2 * DAY, 3600.0, "hours")):
        if seconds < limit:
            number = seconds / unit
            return f"{number:.1f} {word}" if word == "hours" else f"{max(1, round(number))} {word}"
    return f"{round(seconds / DAY):,} days"


def _num_rows(config: EvolveConfig, controls: Controls) -> int:
    """Rows of the final comparison, at most."""
    if controls == "full" or config.fitness == "landscape":
        return OTHER_ROWS + max(len(KNOWN), (len(library) + len(own_seeds)) * (controls == "full"))
    return OTHER_ROWS + 2  # l2 and l1


def _searched(task: Task, config: EvolveConfig, num_guesses: int) -> tuple[int, int, int]:
    """Fine-tunings of the start, of the generations and of the verification, at most."""
    if config.fitness == "landscape":
        first = (config.leaders + START_FORMULAS + 1) * min(task.bases, FIRST_BASES)
        rest = (FINALISTS + START_FORMULAS + 1) * max(0, task.bases - FIRST_BASES)
        return config.plans * task.bases, 0, first + rest
    info = [TaskInfo(task.name, bases=task.bases, extra_bases=task.extra_bases)]
    start = max_fine_tunings(len(seeds(config.seeds, DEFAULT_VOCABULARY)) + num_guesses, info, 1.0, 0)
    each = max_fine_tunings(config.population, info, config.promote_fraction, config.elites)
    searched = config.generations * each
    if config.max_evaluations is not None:
        searched = min(searched, max(0, config.max_evaluations - start))
    return start, searched, 0


def _flops(programs: TaskPrograms) -> tuple[float, float]:
    """FLOPs of training a base network, and of fine-tuning a pruned one in all rounds."""
    example = jax.ShapeDtypeStruct(programs.data.x.shape, programs.data.x.dtype)
    num_examples = len(programs.data.y)

    def seen(recipe: Recipe) -> int:
        return recipe.num_steps(num_examples) * recipe.batch_size

    is_masked = programs.task.finetune == "masked"
    macs = [count_macs(each.model if is_masked else each.slim_model, example) for each in programs.rounds]
    base = FLOPS_PER_MAC * count_macs(programs.model, example) * seen(programs.task.recipes[1])
    return float(base), float(FLOPS_PER_MAC * sum(macs) * seen(programs.recipe()))
