"""Scores 1,000 different random formulas on a network of one's own, and shows which of them say the same.

    python experiments/scoring_many/run.py

Read it from top to bottom like a notebook: every step prints what it found. README.md says what came out.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import clustering
import config
import jax
import numpy as np
import optax
from flax import nnx
from jax import monitoring

import jaxprune as jp
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.scoring.metrics import metrics
from jaxprune.scoring.ranking import score_functions

RESULTS = Path(__file__).parent / "results"
compilations = Counter()
monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compilations.update([event]))


def main() -> None:
    data = jp.load_dataset("digits")
    network = train(config.Mine(nnx.Rngs(config.SEED)), *data.train)
    accuracy = float(np.mean(np.argmax(network(data.validation.images), -1) == data.validation.labels))
    print(
        f"a network of {jp.count_parameters(network):,} parameters, {accuracy:.1%} of validation images right"
    )

    observed, seconds, _ = timed(
        lambda: jp.observe(network, *(part[: config.NUM_IMAGES] for part in data.train))
    )
    channels = {group: observed[paths[0]].num_channels for group, paths in observed.groups.items()}
    print(f"observed {config.NUM_IMAGES} images in {seconds:.1f} s; channels by group: {channels}")

    keys = jax.random.split(jax.random.key(config.SEED), 2 * config.NUM_FORMULAS)
    vocabulary = DEFAULT_VOCABULARY.restrict({*DEFAULT_VOCABULARY.operands} - {"gamma", "beta", "GW", "GX"})
    drawn = dict.fromkeys(random_expression(key, vocabulary) for key in keys)  # without repeats
    formulas = [*drawn][: config.NUM_FORMULAS]
    facts = {"channels": channels, "accuracy": accuracy, "observe_seconds": seconds}
    for number in ("first", "second"):
        scored, seconds, compiled = timed(lambda: score_functions(formulas, observed))
        print(f"{number} time: {len(formulas)} formulas in {seconds:.1f} s, {compiled} compilations")
        facts |= {f"{number}_seconds": seconds, f"{number}_compilations": compiled}
    status = Counter(each.status for each in scored)
    print("status:", ", ".join(f"{count} {name}" for name, count in status.most_common()))
    for name in status - Counter(ok=status["ok"]):
        f, each = next((f, each) for f, each in zip(formulas, scored, strict=True) if each.status == name)
        print(f"  for example {f}: {each.status} {each.detail}")

    known = dict(zip(metrics, score_functions([*metrics.values()], observed), strict=True))
    facts |= {"status": dict(status)} | clustering.clusters(formulas, scored, known, RESULTS / "clusters.png")
    (RESULTS / "summary.json").write_text(json.dumps(facts, indent=1) + "\n")


def train(network: nnx.Module, images: np.ndarray, labels: np.ndarray) -> nnx.Module:
    """Plain Adam, as anybody would."""
    optimizer = nnx.Optimizer(network, optax.adam(2e-3), wrt=nnx.Param)

    @nnx.jit
    def step(network: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        def loss(network: nnx.Module) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()

        optimizer.update(network, nnx.grad(loss)(network))

    rng = np.random.default_rng(config.SEED)
    for _ in range(config.EPOCHS):
        order = rng.permutation(len(images) // config.BATCH_SIZE * config.BATCH_SIZE)
        for batch in order.reshape(-1, config.BATCH_SIZE):
            step(network, optimizer, images[batch], labels[batch])
    network.eval()
    return network


def timed(run):  # noqa: ANN001, ANN201
    """The result, its seconds, and how many programs were compiled."""
    before, start = compilations["/jax/core/compile/backend_compile_duration"], time.perf_counter()
    result = run()
    compiled = compilations["/jax/core/compile/backend_compile_duration"] - before
    return result, time.perf_counter() - start, compiled


if __name__ == "__main__":
    main()
