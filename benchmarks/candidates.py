"""Candidates fine-tuned per minute on the quick tasks, against masked networks one by one and against PyTorch.

    python benchmarks/candidates.py [--tasks digits,digits-deep,fashion] [--candidates 8] [--rounds 3]

Everything is timed in one process and one run, in turn, and the best of `--rounds` counts. Three ways to fine-tune
equally pruned networks with equal recipes:

- jaxprune: slim networks, as `evolve` runs them (compilation excluded: a search compiles once);
- masked: the full-shape masked network, one after the other, each step a jitted call on the library's convolution;
- PyTorch: the same slim network in PyTorch on the same cores (only where torch is installed).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import flax
import jax
import numpy as np

from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.named_tasks import TASKS, find_task
from jaxprune.tasks.task_programs import TaskPrograms

LAYOUTS = {
    "digits": ("c3 p c3 p", 4),
    "digits-deep": ("c3b c3b p c3b c3b p", 4),
    "fashion": ("v5 p v5 p", 16),
}
"""Task -> its layers for PyTorch (c: SAME, v: VALID convolution, b: batch norm, p: pooling), positions at the end."""


def best_seconds(run: Callable[[], object], rounds: int) -> float:
    """The least wall time of `rounds` runs, after one to warm up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def torch_runner(name: str, programs: TaskPrograms, candidates: int) -> Callable[[], object] | None:
    """Trains the slim network in PyTorch, `candidates` times with the recipe of the task; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    widths = list(programs.rounds[-1].counts.values())
    recipe = programs.recipe()
    x, y = (torch.from_numpy(np.array(part)) for part in programs.data)
    x, y = x.permute(0, 3, 1, 2).contiguous(), y.long()
    held, truth = (torch.from_numpy(np.array(part)) for part in programs.validation)
    held = held.permute(0, 3, 1, 2).contiguous()
    layout, positions = LAYOUTS[name]

    def make() -> torch.nn.Module:
        layers: list[torch.nn.Module] = []
        channels, convolutions = 1, iter(widths[:-1])
        for word in layout.split():
            if word == "p":
                layers.append(torch.nn.MaxPool2d(2))
                continue
            size, width = int(word[1]), next(convolutions)
            layers.append(torch.nn.Conv2d(channels, width, size, padding=size // 2 if word[0] == "c" else 0))
            layers += [torch.nn.BatchNorm2d(width)] if word.endswith("b") else []
            layers.append(torch.nn.ReLU())
            channels = width
        layers += [torch.nn.Flatten(), torch.nn.Linear(channels * positions, widths[-1]), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 10))

    def run() -> None:
        for _ in range(candidates):
            model = make()
            optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
            model.train()
            for _ in range(recipe.epochs):
                order = torch.randperm(len(x))
                for start in range(0, len(x) - recipe.batch_size + 1, recipe.batch_size):
                    rows = order[start : start + recipe.batch_size]
                    optimiser.zero_grad()
                    torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                    optimiser.step()
            model.eval()
            with torch.no_grad():
                (model(held).argmax(1) == truth).float().mean().item()

    return run


def measure(name: str, candidates: int, rounds: int) -> dict[str, float]:
    """Candidates per minute of each way."""
    slim = TaskPrograms(find_task(name))
    masked = TaskPrograms(find_task(name).replace(finetune="masked"), strategy="loop")
    pools = [BasePool(programs, 0, "search", 1) for programs in (slim, masked)]
    vars(pools[1])["bases"] = pools[0].bases  # the same base network for both
    entries = [Entry(0, draw=draw) for draw in range(candidates)]
    seconds = {
        "jaxprune": best_seconds(lambda: list(pools[0].finetune(entries)), rounds) / candidates,
        # one by one, and fewer: it is the slow one
        "masked": best_seconds(lambda: [pools[1].finetune_one(entry) for entry in entries[:2]], rounds) / 2,
    }
    torch_run = torch_runner(name, slim, candidates)
    if torch_run is not None:
        seconds["torch"] = best_seconds(torch_run, rounds) / candidates
    return {way: 60 / value for way, value in seconds.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{jax.default_backend()}, {os.cpu_count()} cores, jax {jax.__version__}, flax {flax.__version__}")
    print("| task | candidates / minute | masked one by one | ratio | PyTorch slim | ratio |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in options.tasks.split(","):
        found = measure(name, options.candidates, options.rounds)
        theirs = found.get("torch")
        torch_cells = f"{theirs:.0f} | {found['jaxprune'] / theirs:.2f}x" if theirs else "not installed |"
        print(
            f"| {name} | {found['jaxprune']:.0f} | {found['masked']:.0f} | "
            f"{found['jaxprune'] / found['masked']:.1f}x | {torch_cells} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
