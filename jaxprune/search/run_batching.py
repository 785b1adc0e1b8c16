"""How a run batches its fine-tunings: chosen when it starts, written to its config.json, and kept when it is resumed.

A resumed run takes what is written even where another machine would choose otherwise, because the batching decides the
last bits of results. Asking for something else is refused when the run is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxprune.hosts.sharing import Hosts
from jaxprune.search.evaluation import batch_sizes
from jaxprune.search.problem import TaskInfo
from jaxprune.search.run_files import read_run_file
from jaxprune.search.settings import EvolveConfig
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.batching import Batching

Choose = Callable[[TaskPrograms, Sequence[int], Callable[[str], None]], Batching]
"""Chooses for a new run: from the machinery of a task, the fine-tunings that a generation runs together, and what is
called with messages. See `tasks.batching_speed.choose_batching`."""


def settle_batching(
    programs: Mapping[str, TaskPrograms],
    tasks: Sequence[TaskInfo],
    config: EvolveConfig,
    run_dir: Path,
    choose: Choose,
    on_message: Callable[[str], None],
) -> None:
    """Settles how the fine-tunings of every task are batched, before anything is trained.

    Args:
      programs: task name -> its machinery, which asks for a batching.
      tasks: the same tasks.
      config: the settings of the search.
      run_dir: the run directory; if it holds a run, what is asked for is filled up with what is written there.
      choose: chooses for a new run.
      on_message: called with messages for the user.

    Raises:
      RunDirectoryError: if config.json is damaged or of a newer format.
    """
    path = run_dir / "config.json"
    if not path.exists():
        for task in tasks:
            machinery = programs[task.name]
            machinery.settle(choose(machinery, sizes_of(config, task), on_message))
        return
    written = read_run_file(path).get("batching", {})  # earlier versions wrote none
    for name, machinery in programs.items():
        if name in written:
            machinery.settle(machinery.asked.or_else(Batching.from_json(written[name])))


def settle_as_told(programs: Mapping[str, TaskPrograms], hosts: Hosts) -> None:
    """Settles on all processes how fine-tunings are batched as process 0 has settled it; all of them call it.

    Args:
      programs: task name -> its machinery.
      hosts: the processes.
    """
    own = {name: json.dumps(machinery.batching) for name, machinery in programs.items() if hosts.is_leader}
    of_leader = hosts.exchange("batching", own)[0]
    if not hosts.is_leader:
        for name, machinery in programs.items():
            machinery.settle(Batching(*json.loads(of_leader[name])))


def sizes_of(config: EvolveConfig, task: TaskInfo) -> tuple[int, ...]:
    """Computes how many fine-tunings of a task are run together, batch by batch, as far as most of a run goes.

    Args:
      config: the settings of the search.
      task: a task of it.

    Returns:
      Those of one generation, or on a landscape the plans of the bank, which nearly all fine-tunings are for.

    Example:
      >>> sizes_of(EvolveConfig(fitness="finetune", population=16), TaskInfo("a", bases=4))
      (16, 22)
      >>> sizes_of(EvolveConfig(plans=50), TaskInfo("a", bases=4))
      (200,)
    """
    if config.fitness == "landscape":
        return (config.plans * task.bases,)
    return batch_sizes(config.population, task, config.promote_fraction, config.elites)
