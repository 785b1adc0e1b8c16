"""Seconds per generation on 1, 2, 4 and 8 devices side by side, and whether all give the same bits.

    python benchmarks/devices.py [--task digits] [--devices 1,2,4,8] [--candidates 16] [--bases 4] [--chunk 8]

Each number of devices is forced upon the CPU of a process of its own, one process after the other. Such devices share
the cores of the machine. So their seconds show what dividing the work costs (they should hardly rise with the number of
devices while no row is padded), and the hashes that results do not depend on it; they do not show a speed-up. The idle
share is exact: the members of rows that are copies, which real devices would spend their time on as well. All processes
get a thread pool of one size (NPROC): XLA splits large matrix products on a CPU by threads, and has one for each device
at least, so that else the size of the pool would decide the last bits.

With accelerators, `--here` measures the devices of the process, such as those of CUDA_VISIBLE_DEVICES=0,1.
Compilation is not counted; the first generation is timed apart, with it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time

import jax
import numpy as np
from candidates import best_seconds

from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.named_tasks import find_task
from jaxprune.tasks.task_programs import TaskPrograms


def row(task: str, candidates: int, bases: int, chunk: int, rounds: int) -> str:
    """One row of the table: fine-tunings of random plans on every base network, on all devices of this process."""
    named = find_task(task)
    # The base networks need not be good: one epoch takes as long for each step as many.
    quick = named.replace(base_recipe=named.base_recipe.replace(epochs=1), bases=bases)
    programs = TaskPrograms(quick, strategy="vmap", chunk=chunk)
    pool = BasePool(programs, 0, "search", bases)
    entries = [Entry(base, draw=draw) for draw in range(candidates) for base in range(bases)]
    assert len(pool.bases) == bases  # trained before the clock starts
    start = time.perf_counter()
    results = list(pool.finetune(entries))
    first = time.perf_counter() - start
    seconds = best_seconds(lambda: list(pool.finetune(entries)), rounds)
    weights = (result.weights[path] for result in results for path in sorted(result.weights))
    digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in weights)).hexdigest()[:12]
    num_rows = -(-len(entries) // programs.row_size)
    idle = 1 - len(entries) / (num_rows * programs.row_size)
    name, rate = f"{jax.local_device_count()} {jax.default_backend()}", len(entries) / seconds
    return f"| {name} | {num_rows} | {idle:.0%} | {first:.1f} | {seconds:.2f} | {rate:.1f} | {digest} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--devices", default="1,2,4,8", help="numbers of devices to force upon the CPU")
    parser.add_argument("--here", action="store_true", help="measure the devices of this process alone")
    for name, default in (("candidates", 16), ("bases", 4), ("chunk", 8), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.here:
        print(row(options.task, options.candidates, options.bases, options.chunk, options.rounds))
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
