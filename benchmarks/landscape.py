"""How fast a search on landscapes tries functions, against fine-tuning one network for each.

    python benchmarks/landscape.py [--bases 32] [--generations 25] [--tasks digits,digits-deep,digits-dw]

Base networks are untrained and the values of their channels made up, which changes no cost: proposing, scoring,
ranking, predicting and selecting are those of `jaxprune evolve`. One fine-tuning of each task is timed in the same run.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from jaxprune.keys import generator
from jaxprune.search.evaluation import evaluate
from jaxprune.search.landscape import Landscape
from jaxprune.search.problem import BankFacts
from jaxprune.search.proposals import propose
from jaxprune.search.search import init_search
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import TaskProblem
from jaxprune.search.update import tell
from jaxprune.tasks.base_networks import Base, Entry
from jaxprune.tasks.named_tasks import find_task


class MadeUp(TaskProblem):
    """Tasks with untrained base networks and made-up landscapes."""

    def fit_landscapes(self, num_plans: int, on_status: object = None) -> dict[str, BankFacts]:
        """Makes landscapes of random values."""
        for name, pool in self.pools.items():
            this_round = self.programs[name].rounds[0]
            widths = {group: this_round.structure.widths[group] for group in this_round.counts}
            bases = (Base(i, pool._initial_weights(jax.random.key(i)), 50.0) for i in range(pool.num_bases))
            pool.__dict__["bases"] = tuple(bases)
            values = generator(jax.random.key(0)).normal(size=(pool.num_bases, sum(widths.values())))
            self._landscapes[name] = Landscape(widths, np.full(pool.num_bases, 50.0), values)
            self._l2_predictions[name] = np.full(pool.num_bases, 50.0)
        return {}


def main() -> None:
    """Runs the generations and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", type=int, default=32)
    parser.add_argument("--generations", type=int, default=25)
    parser.add_argument("--tasks", default="digits,digits-deep,digits-dw")
    options = parser.parse_args()
    tasks = [find_task(name).replace(bases=options.bases, extra_bases=0) for name in options.tasks.split(",")]
    problem = MadeUp(tasks)
    problem.fit_landscapes(50)
    state = init_search(problem, EvolveConfig(generations=options.generations))
    seconds, proposed = [], 0
    for _ in range(options.generations + 1):
        started = time.perf_counter()
        batch = propose(state)
        state = tell(state, evaluate(state, batch.proposals), tally=batch.tally)
        seconds.append(time.perf_counter() - started)
        proposed += batch.tally.proposed
    tried, total = len(state.candidates), sum(seconds[1:])
    print(
        f"{tried} behaviours of {proposed} formulas on {options.bases} bases of {options.tasks}: {total:.1f} s"
    )
    print(
        f"{1e3 * total / tried:.1f} ms a behaviour; generation 0, with gradients and moments, {seconds[0]:.1f} s"
    )
    for name, pool in problem.pools.items():
        entries = [Entry(0, 0, kept=pool.random_kept(0, draw)) for draw in range(5)]
        times = [result.seconds for result in pool.finetune(entries)][1:]
        alone = float(np.median(times)) * options.bases
        print(
            f"{name}: fine-tuning one function on all bases {alone:.1f} s, {alone * tried / total:.0f} times as long"
        )


if __name__ == "__main__":
    main()
