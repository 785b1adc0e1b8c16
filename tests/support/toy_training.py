"""A tiny network with batch norm and dropout, images it can learn, and runs of it in processes that end early."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.datasets.input_pipeline import Batch
from jaxprune.training.recipes import Recipe

RECIPE = Recipe(
    "toy", "sgd", 0.2, epochs=3, batch_size=16, nesterov=True, schedule="cosine", warmup=0.5, label_smoothing=0.1,
    weight_decay=1e-3, ema=0.5, augment="crop_flip",
)  # fmt: skip
NUM_STEPS = 30
PIXELS = {"mean": (0.5,), "std": (0.25,)}
"""Arguments of `train_network`."""

_rng = np.random.default_rng(0)
LABELS = np.arange(64, dtype=np.int32) % 4
_is_bright = np.arange(8)[None, :] // 2 == LABELS[:, None]  # two rows of each image
IMAGES = (_rng.integers(0, 120, (64, 8, 8, 1)) + 120 * _is_bright[:, :, None, None]).astype(np.uint8)


class ToyNet(nnx.Module):
    """Images [N, 8, 8, 1] to 4 logits."""

    def __init__(self, dropout_rate: float = 0.2) -> None:
        rng = np.random.default_rng(1)
        self.kernel = nnx.Param((rng.normal(size=(64, 8)) / 8).astype(np.float32))
        self.output = nnx.Param(rng.normal(size=(8, 4)).astype(np.float32))
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(dropout_rate, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.reshape(x, (len(x), 64)) @ self.kernel[...]
        return self.dropout(jax.nn.relu(self.norm(hidden))) @ self.output[...]


def toy_batches(
    start: int,
    *,
    batch_size: int = 16,
    num_steps: int = NUM_STEPS,
    at_step: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Yields batches that depend on nothing but the step; `at_step` is told the step before."""
    for step in range(start, num_steps):
        if at_step is not None:
            at_step(step)
        rows = np.random.default_rng(step).integers(0, len(LABELS), batch_size)
        yield Batch(IMAGES[rows], LABELS[rows], np.ones(batch_size, np.float32))  # type: ignore[arg-type]


def evaluation_batches() -> Iterator[Batch]:
    """Yields all images in two batches."""
    for rows in (slice(0, 32), slice(32, 64)):
        yield Batch(IMAGES[rows], LABELS[rows], np.ones(32, np.float32))  # type: ignore[arg-type]


def kill_after_a_checkpoint(folder: str) -> None:
    """Trains until step 15, and ends the process as soon as the checkpoint after 10 steps is there."""
    from jaxprune.training.network_training import train_network

    def at_step(step: int) -> None:
        if step == 15:
            while not (Path(folder) / "10").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    train_network(
        ToyNet(), lambda start: toy_batches(start, at_step=at_step), RECIPE, num_steps=NUM_STEPS, **PIXELS,
        evaluate=evaluation_batches, evaluate_every=10, checkpoint_dir=folder, save_every=10,
    )  # fmt: skip


def one_and_all_devices() -> None:
    """Trains on one and on all devices, and prints both losses, numbers of evaluation, and the error of a bad batch."""
    from jaxprune.training.network_training import train_network

    recipe = Recipe("plain", "sgd", 0.05, epochs=1, batch_size=16)
    found = {}
    for count in (1, len(jax.devices())):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
        losses: list[float | None] = []
        trained = train_network(
            ToyNet(0.0), lambda start: toy_batches(start, num_steps=60), recipe, num_steps=60, **PIXELS, mesh=mesh,
            evaluate=evaluation_batches, report_every=1,
            on_progress=lambda progress, losses=losses: losses.append(progress.loss),
        )  # fmt: skip
        found[str(count)] = {"losses": losses[1:], "counts": [list(e.counts) for e in trained.history]}
    try:
        train_network(ToyNet(), toy_batches, recipe.replace(batch_size=12), num_steps=60, **PIXELS)
    except ValueError as error:
        found["error"] = str(error)
    sys.stdout.write(json.dumps(found))


def two_processes(folder: str, rank: int, port: str, last_step: int) -> None:
    """Trains as one of two processes; the second one gets a SIGTERM at a step. Prints what the run ended with."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
    from jaxprune.training.network_training import train_network
    from jaxprune.training.training_run import TrainingInterrupted

    def at_step(step: int) -> None:
        if rank == 1 and step == last_step:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)

    def own_rows(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            half = len(batch.labels) // 2
            yield Batch(*(array[rank * half : (rank + 1) * half] for array in batch))

    try:
        trained = train_network(
            ToyNet(), lambda start: own_rows(toy_batches(start, at_step=at_step)), RECIPE, num_steps=NUM_STEPS,
            **PIXELS, evaluate=lambda: own_rows(evaluation_batches()), checkpoint_dir=folder, save_every=10,
        )  # fmt: skip
        sums = {
            "".join(map(str, path)): np.asarray(array).tobytes().hex()
            for path, array in trained.weights.items()
        }
        result: object = [sums, trained.history[-1].counts]
    except TrainingInterrupted as stop:
        result = [stop.exit_status, str(stop)]
    sys.stdout.write("\n" + json.dumps(result))
    sys.stdout.flush()
    jax.distributed.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "devices":
        one_and_all_devices()
    elif len(sys.argv) > 2:
        two_processes(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        kill_after_a_checkpoint(sys.argv[1])
