"""Measures on this machine what the simulation needs: rows, compilations, scoring and messages between processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from config import REPORTED_SCORING, STAND_INS, TIMED

from jaxprune.comparison.cost_estimate import estimate_cost, measured_speed
from jaxprune.datasets.dataset import Dataset
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import PAPER_VOCABULARY
from jaxprune.search.settings import EvolveConfig
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.named_tasks import find_task, lenet5_task, vgg16_task
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Task

NUM_SCORED = 80
"""Functions that are scored at once, as in a generation."""


def stand_in(name: str, num_train: int) -> Task:
    """One of the paper's tasks on images of noise: sizes are all that its cost depends on."""
    make, shape = {"mnist-lenet5": (lenet5_task, (28, 28, 1)), "cifar10-vgg16": (vgg16_task, (32, 32, 3))}[
        name
    ]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_train, *shape), np.uint8)
    return make(name, Dataset.from_arrays(name, train=(images, np.arange(num_train) % 10)))


def facts(task: Task) -> dict[str, float]:
    """What is counted, not measured: FLOPs of both kinds of training, rounds of pruning, base networks."""
    cost = estimate_cost({task.name: TaskPrograms(task)}, EvolveConfig(fitness="finetune"), has_report=False)
    (counted,) = cost.tasks
    return {
        "finetune_flops": counted.finetune_flops,
        "base_flops": counted.base_flops,
        "rounds": len(task.schedule.kept_counts),
        "bases": task.bases,
        "extra_bases": task.extra_bases,
    }


def measured_all(chunks: Sequence[int]) -> dict[str, object]:
    """Everything, and on what it was measured."""
    cores, device = len(os.sched_getaffinity(0)), jax.devices()[0]
    tasks = {name: measured_rows(name, chunks) for name in TIMED} | {
        name: measured_step(name) for name in STAND_INS
    }
    return {
        "machine": f"{device.device_kind} ({device.platform}), {cores} cores of the host, jax {jax.__version__}",
        "gather_seconds": gather_seconds(),
        "tasks": tasks,
    }


def measured_rows(name: str, chunks: Sequence[int]) -> dict[str, object]:
    """Seconds of rows of each chunk on one device, of the first compilation, and of scoring one function."""
    if jax.local_device_count() != 1:
        raise ValueError(
            f"a row is timed on one device, got {jax.local_device_count()}. Hide the others "
            "(CUDA_VISIBLE_DEVICES=0, TPU_VISIBLE_CHIPS=0)."
        )
    task = find_task(name)
    quick = task.replace(base_recipe=task.base_recipe.replace(epochs=1), extra_bases=0)
    rows, first = {}, {}
    for chunk in chunks:
        pool = BasePool(TaskPrograms(quick, strategy="vmap", chunk=chunk), 0, "search", 1)
        entries = [Entry(0, draw=draw) for draw in range(chunk)]
        assert pool.bases  # trained before the clock starts
        first[chunk] = _seconds(lambda pool=pool, entries=entries: list(pool.finetune(entries)))
        rows[chunk] = min(
            _seconds(lambda pool=pool, entries=entries: list(pool.finetune(entries))) for _ in range(2)
        )
    return {
        **facts(task),
        "row_seconds": rows,
        "compile_seconds": max(first[chunk] - rows[chunk] for chunk in chunks),
        "score_seconds": score_seconds(quick),
    }


def measured_step(name: str) -> dict[str, object]:
    """The FLOP rate in a step of one of the paper's tasks, the seconds until it was known, and of scoring."""
    num_train = STAND_INS[name]
    programs = TaskPrograms(stand_in(name, num_train))
    start = time.perf_counter()
    speed = measured_speed(programs)
    seconds = time.perf_counter() - start
    if programs.task.schedule.scoring == "sequential":  # minutes for each function: reported elsewhere
        score = REPORTED_SCORING[name]
    else:
        few = stand_in(name, 500)  # scoring reads a few hundred images, whatever their number
        recipe = few.base_recipe.replace(epochs=1, batch_size=100)
        score = score_seconds(
            few.replace(base_recipe=recipe, bases=few.bases + few.extra_bases, extra_bases=0)
        )
    return {
        **facts(programs.task),
        "flops_per_second": speed,
        "compile_seconds": seconds,
        "score_seconds": score,
    }


def score_seconds(task: Task) -> float:
    """Seconds in which the plan of one function is made on one base network, of a generation on all of them."""
    pool = BasePool(TaskPrograms(task, strategy="scan"), 0, "search", task.bases)
    keys = jax.random.split(jax.random.key(0), 2 * NUM_SCORED)
    drawn = dict.fromkeys(random_expression(key, PAPER_VOCABULARY) for key in keys)
    first, *others = [function for function in drawn if "W" not in function.operands]
    pool.stacked_plans([first])  # what compiles, and what is read once
    timed = others[:NUM_SCORED]
    return _seconds(lambda: pool.stacked_plans(timed)) / (len(timed) * task.bases)


def gather_seconds(rounds: int = 200) -> float:
    """Seconds in which one process's results reach the leader, by the store of JAX's coordination service."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, address, str(rounds)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    worker = subprocess.Popen([*command, "1"], env=environment)
    leader = subprocess.run([*command, "0"], env=environment, check=True, capture_output=True, text=True)
    assert worker.wait(60) == 0
    return float(leader.stdout)


def _exchange(address: str, rounds: int, process: int) -> None:
    """One of two processes: the leader sends an order of 4 KiB and waits for an answer of as much, again and again."""
    import orbax.checkpoint as ocp

    jax.distributed.initialize(address, num_processes=2, process_id=process)
    client, message = ocp.multihost.get_jax_distributed_client(), "x" * 4096
    names = ("order", "answer")
    start = time.perf_counter()
    for number in range(rounds):
        steps = [lambda n=number: client.key_value_set(f"{names[process]}{n}", message)]
        steps.append(lambda n=number: client.blocking_key_value_get(f"{names[1 - process]}{n}", 60_000))
        for step in steps if process == 0 else reversed(steps):
            step()
    if process == 0:
        print((time.perf_counter() - start) / rounds)
    jax.distributed.shutdown()


def _seconds(run) -> float:  # noqa: ANN001 - any function without arguments
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    _exchange(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
