"""Seconds per generation on 1, 2, 4 and 8 devices side by side, and whether all give the same bits.

    python benchmarks/devices.py [--task digits] [--devices 1,2,4,8] [--candidates 16] [--bases 4]
                                 [--chunk 1] [--convolution auto]

A generation is that of a search by fine-tuning: all candidates on one base, then together a third of them on the other
bases, two elites, and l2 beside these, if no plan is known already.

Each number of devices is forced upon the CPU of a process of its own, one process after the other. Such devices share
the cores of the machine. So their seconds show what dividing the work costs (they should hardly rise with the number of
devices while no row is padded), and the hashes that results do not depend on it; they do not show a speed-up. The idle
share is exact: the members of rows that are copies, which real devices would spend their time on as well. All processes
get a thread pool of one size (NPROC): XLA splits large matrix products on a CPU by threads, and has one for each device
at least, so that else the size of the pool would decide the last bits.

With accelerators, `--here` measures the devices of the process, such as those of CUDA_VISIBLE_DEVICES=0,1. Then it also
compares rows of members with members one by one, on LeNet-5 and VGG-16 at the shapes that the preset paper fine-tunes
(images are noise, as only the time counts); that is the speed-up of batching on real devices. On a CPU there is none to
expect, and VGG-16 takes minutes, so it is left out.
Compilation is not counted; the first generation is timed apart, with it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from typing import get_args

import jax
import numpy as np
from candidates import best_seconds

from jaxprune.datasets.dataset import Dataset
from jaxprune.search.problem import TaskInfo
from jaxprune.search.run_batching import sizes_of
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import row_use
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.batching_speed import time_all
from jaxprune.tasks.named_tasks import find_task, lenet5_task, vgg16_task
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.batching import Convolution
from jaxprune.training.trainer import Trained


def row(task: str, candidates: int, bases: int, chunk: int, rounds: int, convolution: Convolution) -> str:
    """One row of the table: as many fine-tunings of random plans as a generation needs, on all local devices."""
    named = find_task(task)
    # The base networks need not be good: one epoch takes as long for each step as many.
    quick = named.replace(base_recipe=named.base_recipe.replace(epochs=1), bases=bases)
    programs = TaskPrograms(quick, strategy="vmap", chunk=chunk, convolution=convolution)
    pool = BasePool(programs, 0, "search", bases)
    config = EvolveConfig(fitness="finetune", population=candidates)
    sizes = sizes_of(config, TaskInfo(task, bases=bases))
    batches = [[Entry(number % bases, draw=number) for number in range(size)] for size in sizes]
    assert len(pool.bases) == bases  # trained before the clock starts

    def generation() -> list[Trained]:
        programs.rows.clear()
        return [result for batch in batches for result in pool.finetune(batch)]

    start = time.perf_counter()
    results = generation()
    first = time.perf_counter() - start
    seconds = best_seconds(generation, rounds)
    weights = (result.weights[path] for result in results for path in sorted(result.weights))
    digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in weights)).hexdigest()[:12]
    idle = row_use(programs.rows).idle_share
    name, rate = f"{jax.local_device_count()} {jax.default_backend()}", len(results) / seconds
    return f"| {name} | {len(programs.rows)} | {idle:.0%} | {first:.1f} | {seconds:.2f} | {rate:.1f} | {digest} |"


def noise(*shape: int) -> Dataset:
    """Images of no meaning: only the time of training on them counts."""
    draw = np.random.default_rng(0).normal
    arrays = {
        name: (draw(size=(num, *shape)).astype(np.float32), np.arange(num) % 10)
        for name, num in (("train", 4096), ("validation", 256), ("test", 256))
    }
    return Dataset.from_arrays("noise", **arrays, standardise=False)


def compare_with_one_by_one() -> None:
    """Prints for both of the paper's networks how much faster full rows are than networks one by one."""
    heads = ["network", "one by one, ms", "in rows, ms", "times faster", "chunk", "convolution"]
    print(f"\n| {' | '.join(heads)} |\n|---{'|--:' * 4}|---|")
    for task in (lenet5_task("LeNet-5", noise(28, 28, 1)), vgg16_task("VGG-16", noise(32, 32, 3))):
        timings = list(time_all(TaskPrograms(task)))
        by_time = sorted(timings, key=lambda timing: timing.member_seconds)
        alone = next(timing for timing in by_time if timing.batching.strategy != "vmap")
        rows = next(timing for timing in by_time if timing.batching.strategy == "vmap")
        ratio = alone.member_seconds / rows.member_seconds
        cells = [f"{timing.member_seconds * 1e3:.1f}" for timing in (alone, rows)]
        cells += [f"{ratio:.2f}", str(rows.batching.chunk), rows.batching.convolution]
        print(f"| {task.name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--devices", default="1,2,4,8", help="numbers of devices to force upon the CPU")
    parser.add_argument("--here", action="store_true", help="measure the devices of this process alone")
    for name, default in (("candidates", 16), ("bases", 4), ("chunk", 1), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--convolution", choices=get_args(Convolution), default="auto")
    options = parser.parse_args()
    if options.here:
        settings = options.candidates, options.bases, options.chunk, options.rounds, options.convolution
        print(row(options.task, *settings))
        if jax.default_backend() != "cpu":
            compare_with_one_by_one()
        return
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, {options.task}: ", end="")
    print(f"{options.candidates} candidates on {options.bases} bases, chunks of {options.chunk}\n")
    print("| devices | rows | idle share | first, s | then, s | fine-tunings / s | weights |")
    print("|---|--:|--:|--:|--:|--:|---|", flush=True)
    numbers = [int(number) for number in options.devices.split(",")]
    threads = str(max(*numbers, os.cpu_count() or 1))
    for number in numbers:
        forced = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
        environment = {**os.environ, "XLA_FLAGS": forced, "JAX_PLATFORMS": "cpu", "NPROC": threads}
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--here"], check=True, env=environment)
    print("\nForced devices of one CPU share its cores: compare the weights and idle shares, not the speed.")


if __name__ == "__main__":
    main()
