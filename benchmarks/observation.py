"""What observing and scoring a network with many classes takes: peak memory and seconds for each number of classes.

    python benchmarks/observation.py [--network resnet50] [--side 64] [--images 1000] [--classes 10,100,1000]
    python benchmarks/observation.py --side 224 --images 5000 --classes 1000 --max-gib 8    # the whole thing: hours

Every number of classes is measured in a process of its own, on random images. What is counted for 224 px, 1,000 classes
and 5,000 images within 8 GiB is printed first; it takes no run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import numpy as np
from flax import nnx

from jaxprune.language.library import library
from jaxprune.nets.factories import find_network
from jaxprune.observation.memory import MemoryPlan, fit, measure
from jaxprune.observation.observer import observe
from jaxprune.scoring.ranking import score
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import structure_of, trace_structure

GIB = 1 << 30


def counted(model: nnx.Module, side: int, num_classes: int, batch: int, max_bytes: int) -> MemoryPlan:
    """What observing takes, from shapes alone."""
    graphdef, flat, rest = split_model(model)
    example = jax.ShapeDtypeStruct((batch, side, side, 3), np.float32)
    structure = structure_of(graphdef, flat, rest, example, trace_structure(model, example), batch=batch)
    return fit(measure(structure, flat, num_classes, num_samples=256, max_positions=64), None, max_bytes)


def described(plan: MemoryPlan) -> str:
    """The plan in words."""
    working = max(each.working_bytes for each in plan.passes)
    return (
        f"{plan.positions or 'all'} positions, {len(plan.passes)} pass(es): operands {plan.operand_bytes / GIB:.2f}, "
        f"work {working / GIB:.2f}, together {plan.peak_bytes / GIB:.2f} GiB"
    )


def peak_gib() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measured(options: argparse.Namespace, num_classes: int) -> dict[str, float]:
    """Observes and scores in this process."""
    side = options.side
    model = find_network(options.network, image_shape=(side, side, 3), num_classes=num_classes)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.images, side, side, 3)).astype(np.float32)
    before, started = peak_gib(), time.perf_counter()
    limits = {"positions": options.positions, "max_bytes": int(options.max_gib * GIB)}
    observed = observe(
        model, images, np.arange(len(images)) % num_classes, batch_size=options.batch, **limits
    )
    jax.block_until_ready([operands.moments.m2 for operands in observed.values()])
    after, observing = peak_gib(), time.perf_counter() - started
    started = time.perf_counter()
    scores = score(library["evolved_eq3"], observed)
    assert all(np.isfinite(each).all() for each in scores.values())
    scoring, operands = time.perf_counter() - started, sum(leaf.nbytes for leaf in jax.tree.leaves(observed))
    return {
        "before": before,
        "observed": after,
        "scored": peak_gib(),
        "operands": operands / GIB,
        "observing": observing,
        "scoring": scoring,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classes", default="10,100,1000")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--positions", type=int, help="by default as many as fit the budget")
    parser.add_argument("--max-gib", type=float, default=8)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options, int(options.classes))))
        return
    whole = find_network(options.network, image_shape=(224, 224, 3), num_classes=1000)
    print(f"counted for {options.network}, 224 px, 1,000 classes, 8 GiB:")
    print(f"  {described(counted(whole, 224, 1000, options.batch, 8 * GIB))}", flush=True)
    print("| classes | operands GiB | peak observing | peak scoring | observing s | scoring s |")
    print("|--:|--:|--:|--:|--:|--:|")
    for num_classes in options.classes.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--classes", num_classes, "--child"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        gib = (row["operands"], *(row[name] - row["before"] for name in ("observed", "scored")))
        cells = [*(f"{each:.2f}" for each in gib), *(f"{row[name]:.1f}" for name in ("observing", "scoring"))]
        print(f"| {num_classes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
