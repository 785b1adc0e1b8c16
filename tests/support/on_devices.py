"""Trains and searches with "vmap" on all devices; as a script, prints what must not depend on their number."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import normed_task
import numpy as np
from cli_tasks import small
from flax import nnx

from jaxprune.nets import SmallConvNet
from jaxprune.search.search import evolve_problem
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.tasks import Task
from jaxprune.training.loop import Examples, batch_order, split_network
from jaxprune.training.recipes import Recipe
from jaxprune.training.trainer import Job, Trained, Trainer

RECIPE = Recipe("test", "adam", 1e-2, epochs=1, batch_size=10)
CHUNK = 2
NUM_MEMBERS = (
    5  # three rows of one device, the last one not full; two rows of two devices; one of four or eight
)
TIMES = ("seconds", "eta_seconds")


def make_network(seed: int) -> SmallConvNet:
    """A network with batch norm."""
    return SmallConvNet(nnx.Rngs(seed), widths=(2, 2, 3, 3, 4), num_classes=3, image_shape=(8, 8, 1))


def make_trainer() -> Trainer:
    """A trainer of `make_network` by "vmap", on noise with a trace of the label."""
    labels = np.arange(40) % 3
    pixels = np.random.default_rng(1).normal(size=(40, 8, 8, 1)) + labels[:, None, None, None]
    examples = Examples(jnp.asarray(pixels, jnp.float32), jnp.asarray(labels))
    return Trainer(make_network(9), RECIPE, examples, examples, strategy="vmap", chunk=CHUNK)


def normed() -> Task:
    """The task of `normed_task`, trained in few steps."""
    return normed_task.normed().replace(recipe=RECIPE, base_recipe=RECIPE, bases=2)


def make_jobs() -> list[Job]:
    """Members from different weights, with different orders and keys."""
    keys = [jax.random.key(seed) for seed in range(NUM_MEMBERS)]
    weights = [split_network(make_network(seed))[1] for seed in range(NUM_MEMBERS)]
    return [Job(own, batch_order(key, 40, RECIPE), key) for own, key in zip(weights, keys, strict=True)]


def digest(results: list[Trained]) -> list[str]:
    """Hashes all bits of each member's weights and accuracies."""
    return [
        hashlib.sha256(
            b"".join(np.asarray(trained.weights[path]).tobytes() for path in sorted(trained.weights))
            + trained.accuracies.tobytes()
        ).hexdigest()
        for trained in results
    ]


def train_members() -> dict[str, Any]:
    """Trains more members than one row of two devices holds, twice."""
    trainer, jobs = make_trainer(), make_jobs()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    first, again = digest(list(trainer.run(jobs))), digest(list(trainer.run(jobs[:1])))
    assert again == first[:1]
    return {
        "digests": first,
        "compiled": len(compiled),
        "programs": trainer._vmapped._cache_size(),  # type: ignore[attr-defined]
        "devices": len(trainer._placed[0].x.devices()),
    }


def search(folder: Path) -> dict[str, Any]:
    """Searches on a tiny task; returns the journal without times, and the fingerprint of the task."""
    problem = TaskProblem([small()], folder=folder / "bases", strategy="vmap", chunk=CHUNK)
    (programs,) = problem.programs.values()
    config = EvolveConfig(generations=1, population=3, fitness="finetune", proposals_per_slot=3)
    evolve_problem(problem, config, folder / "run")
    lines = map(json.loads, (folder / "run" / "journal.jsonl").read_text().splitlines())
    journal = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    bases = [
        digest([Trained(base.weights, np.array(base.accuracy), 0.0)]) for base in problem.pools["small"].bases
    ]
    archive = (folder / "run" / "archive.json").read_text()
    return {"journal": journal, "archive": archive, "bases": bases, "fingerprint": programs.fingerprint}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(train_members() | search(Path(sys.argv[1]))))
