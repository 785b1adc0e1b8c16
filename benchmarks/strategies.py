"""How members of one program are best batched on this machine: seconds per fine-tuned candidate for each strategy.

    python benchmarks/strategies.py [--tasks digits,digits-deep,fashion] [--candidates 4] [--rounds 3]

All strategies run in turn in one process and give the same networks up to rounding; compilation is not counted. The
choice that `strategy="auto"` makes is marked.
"""

from __future__ import annotations

import argparse
import os

import jax
from candidates import best_seconds

from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.named_tasks import TASKS, find_task
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.batching import Strategy
from jaxprune.training.trainer import default_workers, map_in_order

WAYS: tuple[tuple[str, Strategy, int], ...] = (
    ("loop, 1 thread", "loop", 1),
    ("scan, 1 thread", "scan", 1),
    (f"scan, {default_workers()} threads", "scan", default_workers()),
    ("vmap of 4", "vmap", 1),
)
"""What is compared: a name, the strategy and the number of threads."""


def seconds_per_candidate(task: str, strategy: Strategy, workers: int, candidates: int, rounds: int) -> float:
    """The best time of a few rounds of fine-tuning random plans of one base network."""
    programs = TaskPrograms(
        find_task(task).replace(base_recipe=find_task(task).recipe), strategy=strategy, chunk=4
    )
    pool = BasePool(programs, 0, "search", 1)
    entries = [Entry(0, draw=draw) for draw in range(candidates)]
    if programs.is_vmapped:
        return best_seconds(lambda: list(pool.finetune(entries)), rounds) / candidates
    return (
        best_seconds(lambda: list(map_in_order(pool.finetune_one, entries, workers=workers)), rounds)
        / candidates
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{jax.default_backend()}, {os.cpu_count()} cores, jax {jax.__version__}; seconds per candidate\n")
    print("| task | " + " | ".join(name for name, _, _ in WAYS) + " |\n|---" + "|--:" * len(WAYS) + "|")
    for task in options.tasks.split(","):
        cells = [
            f"{seconds_per_candidate(task, strategy, workers, options.candidates, options.rounds):.3f}"
            for _, strategy, workers in WAYS
        ]
        print(f"| {task} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
