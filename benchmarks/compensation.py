"""What compensation for removed channels gives: accuracies right after pruning and after fine-tuning, with and without.

    python benchmarks/compensation.py [--tasks digits,digits-deep] [--bases 6] [--draws 2]

Plans and fine-tuning are equal; gains are paired over base networks, with their standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune.language.library import library, own_seeds
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.named_tasks import find_task
from jaxprune.tasks.task_programs import TaskPrograms

ROWS = {"l2": library["l2"], "mean_shift_outgoing": own_seeds["mean_shift_outgoing"], "random": None}


def entries_of(pool: BasePool, base: int, draws: int) -> dict[str, list[Entry]]:
    """The networks of each row on one base network."""
    return {
        name: [Entry(base, draw=draw) for draw in range(draws)]
        if function is None
        else [Entry(base, function=function)]
        for name, function in ROWS.items()
    }


def accuracies(pool: BasePool, draws: int) -> Mapping[str, np.ndarray]:
    """Row -> [bases] validation accuracies, the mean over draws."""
    by_base = [entries_of(pool, base, draws) for base in range(pool.num_bases)]

    def mean(entries: Sequence[Entry]) -> float:
        return float(np.mean([trained.accuracies[-1] for trained in pool.finetune(entries)]))

    return {name: np.array([mean(entries[name]) for entries in by_base]) for name in ROWS}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="digits,digits-deep")
    parser.add_argument("--bases", type=int, default=6)
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args()
    print("| task, plan | training | without | with | gain |\n|---|---|--:|--:|--:|")
    for name in options.tasks.split(","):
        task = find_task(name).replace(bases=options.bases, extra_bases=0)
        recipe, bases = task.recipes[0], None
        for training, changed in (
            ("none", recipe.replace(epochs=1, learning_rate=1e-12)),
            ("fine-tuned", recipe),
        ):
            found = []
            for compensate in (False, True):
                programs = TaskPrograms(task.replace(recipe=changed.replace(compensate=compensate)))
                pool = BasePool(programs, 0, "search", options.bases)
                if bases is not None:
                    pool.bases = bases  # base networks do not depend on how they are pruned
                bases = pool.bases
                found.append(accuracies(pool, options.draws))
            for row in ROWS:
                before, after = (each[row] for each in found)
                gain, error = (after - before).mean(), (after - before).std(ddof=1) / len(before) ** 0.5
                cells = f"{before.mean():.1f} | {after.mean():.1f} | {gain:+.1f} ± {error:.1f}"
                print(f"| {name}, `{row}` | {training} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
