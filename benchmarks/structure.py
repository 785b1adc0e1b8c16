"""What it costs to find the groups of a network, to plan, and to make it smaller; against Torch-Pruning.

    python benchmarks/structure.py [--networks lenet5,resnet50] [--rounds 3] [--profile resnet50] [--no-large]

CPU seconds, the least of `--rounds` runs after one to warm up. Every network loses half of its channels by the size of
its weights. *Own work* is everything but `jax.make_jaxpr`, which runs the network's own code on shapes: groups, scores,
plan, and slicing, each once. *All* is what a user waits for: `plan` and `slim` of the public interface, which find the
groups anew each, and all tracing.

Torch-Pruning (graph, scores, slicing) is timed in the same run where torch and torch_pruning can be imported; else the
numbers it was measured with before stand in, marked by a star.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from scoring import peak_bytes
from zoo import ZOO

from jaxprune.nets import without_weights
from jaxprune.pruning.budgets import budget_counts
from jaxprune.pruning.planning import Plan, make_plan, plan, select
from jaxprune.pruning.slimming import slim, slim_state
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, merge_model, split_model, take_apart
from jaxprune.structure.tracing import clear_structures, structure_of_parts, trace_structure
from jaxprune.structure.verification import find_misfit, slim_graph

RECORDED = {
    "lenet5": 0.012, "resnet56": 0.10, "vgg16": 0.21, "resnet18": 0.21, "mobilenet_v2": 0.14,
    "resnet50": 0.39, "vit_s16": 1.3, "densenet121": 3.6,
}  # fmt: skip
"""Network -> CPU seconds of Torch-Pruning 1.6.1, measured earlier on 2 cores."""

ZOO_NAMES = {"resnet56": "resnet56_projected"}
LARGE = ("llama_half_tables", "llama_computed_angles")
"""32 layers each, traced without weights."""


class Clock:
    """CPU seconds spent in `jax.make_jaxpr`, and how often it ran."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Counts while it is open."""
        original = jax.make_jaxpr

        def timed(function: Callable[..., object], **options: object) -> Callable[..., object]:
            def run(*arguments: object) -> object:
                start = time.process_time()
                found = original(function, **options)(*arguments)
                self.seconds += time.process_time() - start
                self.calls += 1
                return found

            return run

        jax.make_jaxpr = timed
        try:
            yield
        finally:
            jax.make_jaxpr = original


def with_random_weights(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """A network with random arrays, made without compiling its initialisers."""
    graphdef, flat, rest = split_model(without_weights(make))
    rng = np.random.default_rng(0)
    arrays = {
        path: jax.numpy.asarray(rng.normal(size=own.shape).astype(own.dtype)) for path, own in flat.items()
    }
    keys = {path: jax.random.key(0) if "key" in str(own.dtype) else np.zeros(own.shape, own.dtype)
            for path, own in rest.items()}  # fmt: skip
    return merge_model(graphdef, arrays, keys)


def sizes_of_weights(structure: Structure, flat: FlatState) -> dict[str, np.ndarray]:
    """A score for each channel: the norm of its weights, mean over producers."""
    found: dict[str, list[np.ndarray]] = {}
    for site in structure.sites.values():
        kernel = flat[site.kernel]
        squares = np.square(kernel).sum(
            tuple(a for a in range(kernel.ndim) if a not in site.kernel_channels.axes)
        )
        norm = squares.reshape(-1)[site.kernel_channels.positions].sum(1)
        found.setdefault(site.group, []).append(np.sqrt(norm))
    return {name: np.mean(own, axis=0) for name, own in found.items()}


def own_steps(model: nnx.Module, example: jax.ShapeDtypeStruct) -> None:
    """Groups, scores, plan, and slicing with its check, each once."""
    clear_structures()
    parts = take_apart(model)
    structure = structure_of_parts(parts, example)
    flat = jax.device_get(parts.flat)
    scores = sizes_of_weights(structure, flat)
    counts = budget_counts(structure, kept_fraction=0.5)
    made: Plan = make_plan(structure, select(scores, counts))
    kept = {name: np.asarray(own) for name, own in made.kept.items() if len(own) < made.widths[name]}
    graph = slim_graph(parts, structure, kept)
    assert find_misfit(parts, structure, kept, graph=graph) is None
    merge_model(graph, slim_state(structure, flat, made.kept), parts.rest)


def user_steps(model: nnx.Module, example: jax.ShapeDtypeStruct, scores: Mapping[str, np.ndarray]) -> None:
    """What a user calls, on a network that has not been seen before."""
    clear_structures()
    slim(model, plan(model, scores, example, kept_fraction=0.5))


def torch_steps(name: str) -> Callable[[], object] | None:
    """Torch-Pruning on the network; None where it cannot be had."""
    if any(importlib.util.find_spec(module) is None for module in ("torch", "torch_pruning")):
        return None
    import torch
    import torch_pruning
    from reference.torch_networks import MAKERS

    torch.set_num_threads(1)  # more threads cost more CPU seconds, waiting for each other
    if name not in MAKERS:
        return None
    make, shape = MAKERS[name]
    example = torch.randn(shape)
    models: list[object] = []

    def run() -> None:
        model = models.pop()
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[last],
        )
        pruner.step()

    run.prepare = lambda: models.append(make().eval())  # type: ignore[attr-defined]
    return run


def least_seconds(run: Callable[[], object], rounds: int) -> tuple[float, float, int]:
    """CPU seconds of the best of some runs after one to warm up; those in JAX's tracing; how often it traced."""
    best = (np.inf, 0.0, 0)
    for number in range(rounds + 1):
        getattr(run, "prepare", lambda: None)()
        clock = Clock()
        with clock.installed():
            start = time.process_time()
            run()
            seconds = time.process_time() - start
        if number and seconds - clock.seconds < best[0] - best[1]:
            best = (seconds, clock.seconds, clock.calls)
    return best


def measure(name: str, rounds: int) -> str:
    """One row of the table."""
    entry = ZOO[ZOO_NAMES.get(name, name)]
    model = with_random_weights(entry.full)
    example = jax.ShapeDtypeStruct((1, *entry.full_input.shape[1:]), entry.full_input.dtype)
    structure = trace_structure(model, example)
    scores = sizes_of_weights(structure, jax.device_get(take_apart(model).flat))
    total, traced, calls = least_seconds(lambda: own_steps(model, example), rounds)
    everything, _, _ = least_seconds(lambda: user_steps(model, example, scores), rounds)
    other = torch_steps(name)
    theirs = least_seconds(other, rounds)[0] if other else RECORDED[name]
    own = total - traced
    mark = "" if other else "*"
    cells = [
        name, f"{len(structure.groups)}", f"{own:.3f}", f"{theirs:.3f}{mark}", f"{own / theirs:.2f}x",
        f"{traced:.2f} ({calls})", f"{everything:.2f}", f"{everything / theirs:.1f}x",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def measure_large(name: str) -> None:
    """Prints what a large network takes without weights: seconds and growth of the process's peak memory."""
    entry = ZOO[name]
    trace_structure(
        without_weights(ZOO["lenet5"].small), ZOO["lenet5"].small_input
    )  # all that is imported late
    before = peak_bytes()
    start, clock = time.process_time(), Clock()
    with clock.installed():
        model = without_weights(entry.full)
        built = time.process_time() - start
        structure = trace_structure(model, entry.full_input)
    seconds = time.process_time() - start
    growth = (peak_bytes() - before) / 2**20
    print(json.dumps({
        "name": name, "parameters": structure.count_parameters(), "groups": len(structure.groups), "built": built,
        "traced": clock.seconds, "seconds": seconds, "growth": growth,
    }))  # fmt: skip


def print_large() -> None:
    """The table of large networks, each in a process of its own."""
    print("\n| without weights | parameters | groups | all s | of it making s | tracing s | memory MiB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in LARGE:
        command = [sys.executable, __file__, "--large", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {row['parameters']:,} | {row['groups']} | {row['seconds']:.1f} | {row['built']:.1f} "
            f"| {row['traced']:.1f} | {row['growth']:.0f} |",
            flush=True,
        )


def print_profile(name: str) -> None:
    """Where the own work of a network goes."""
    entry = ZOO[ZOO_NAMES.get(name, name)]
    model = with_random_weights(entry.full)
    example = jax.ShapeDtypeStruct((1, *entry.full_input.shape[1:]), entry.full_input.dtype)
    own_steps(model, example)
    profile = cProfile.Profile()
    profile.runcall(own_steps, model, example)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(r"jaxprune|make_jaxpr|flax/nnx/graph", 45)
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(RECORDED))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", metavar="NAME")
    parser.add_argument("--large", metavar="NAME")
    parser.add_argument("--no-large", action="store_true")
    options = parser.parse_args()
    if options.large:
        measure_large(options.large)
        return
    if options.profile:
        print_profile(options.profile)
        return
    print(f"{jax.default_backend()}, {os.cpu_count()} cores, jax {jax.__version__}; CPU seconds\n")
    print(
        "| network | groups | own work | Torch-Pruning | ratio | JAX tracing (times) | plan + slim, all | ratio |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.networks.split(","):
        print(measure(name, options.rounds), flush=True)
    if not options.no_large:
        print_large()


if __name__ == "__main__":
    main()
