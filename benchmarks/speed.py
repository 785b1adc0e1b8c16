"""How much faster networks run with half of their channels; against the same networks pruned by Torch-Pruning.

    python benchmarks/speed.py [--networks resnet18,resnet56] [--threads 1,all] [--batches 1,16] [--rounds 20]

Every network has random weights and loses half of the channels of each group by the size of its weights. The dense and
the slim one, in both libraries, are compiled, warmed up and then measured in turns: milliseconds of one batch, median
of the rounds, with the quartiles of the ratio. Each network and number of threads has a process of its own, which
runs on that many cores.

Torch-Pruning is measured in the same run where torch and torch_pruning can be imported; else the speed-ups that it was
measured with before stand in, marked by a star. The target is at least .9x its speed-up on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

RECORDED = {
    "resnet18": {1: 2.9, 16: 3.5},
    "resnet50": {1: 3.1, 16: 3.3},
    "resnet56": {1: 1.7, 16: 2.4},
    "mobilenet_v2": {1: 2.0, 16: 2.0},
}
"""Network -> batch size -> speed-up of Torch-Pruning at half of the channels, measured earlier on one thread."""

TARGET = 0.9
Run = Callable[[], object]


def use_cores(threads: str) -> int:
    """Keeps this process on one core, or on all; before JAX is imported, whose thread pool follows."""
    cores = sorted(os.sched_getaffinity(0))
    if threads == "1":
        os.sched_setaffinity(0, cores[:1])
    return len(os.sched_getaffinity(0))


def our_networks(name: str) -> tuple[object, object, object, int, int]:
    """Dense and slim network, their example, and the MACs of both."""
    import jax
    import numpy as np
    from structure import ZOO_NAMES, sizes_of_weights
    from zoo import ZOO

    import jaxprune as jp
    from jaxprune.nets import without_weights
    from jaxprune.structure.model_state import merge_model, split_model

    entry = ZOO[ZOO_NAMES.get(name, name)]
    graphdef, flat, rest = split_model(without_weights(entry.full))
    rng = np.random.default_rng(0)
    arrays = {}
    for path, own in flat.items():  # no initialiser compiles, and activations stay of one size
        values = rng.normal(size=own.shape) * (2 / np.prod(own.shape[:-1])) ** 0.5
        if len(own.shape) == 1:
            values = np.full(own.shape, float(path[-1] in ("scale", "var")))
        arrays[path] = jax.numpy.asarray(values.astype(own.dtype))
    keys = {path: jax.random.key(0) if "key" in str(own.dtype) else np.zeros(own.shape, own.dtype)
            for path, own in rest.items()}  # fmt: skip
    dense = merge_model(graphdef, arrays, keys)
    example = jax.ShapeDtypeStruct((1, *entry.full_input.shape[1:]), entry.full_input.dtype)
    scores = sizes_of_weights(jp.trace_structure(dense, example), jax.device_get(arrays))
    slim = jp.slim(dense, jp.plan(dense, scores, example, kept_fraction=0.5))
    return dense, slim, example, jp.count_macs(dense, example), jp.count_macs(slim, example)


def torch_networks(name: str) -> tuple[object, object, tuple[int, ...]] | None:
    """Dense network, the one that Torch-Pruning makes of it, and the input's shape; None where that cannot be had."""
    if any(importlib.util.find_spec(module) is None for module in ("torch", "torch_pruning")):
        return None
    import torch
    import torch_pruning
    from reference.torch_networks import MAKERS

    make, shape = MAKERS[name]
    torch.manual_seed(0)
    dense, slim = make().eval(), make().eval()
    last = [module for module in slim.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch_pruning.pruner.MagnitudePruner(
        slim,
        torch.randn(shape),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last],
    ).step()
    return dense, slim, shape


def torch_run(model: object, shape: tuple[int, ...], batch: int) -> Run:
    """A function that runs a network of PyTorch once."""
    import torch

    images = torch.randn((batch, *shape[1:]))

    def run() -> object:
        with torch.inference_mode():
            return model(images)  # type: ignore[operator]

    return run


def measure(name: str, threads: str, batches: list[int], rounds: int) -> None:
    """Prints what was measured of a network, as JSON."""
    num_cores = use_cores(threads)
    from jaxprune.deploy.speed import alternating_seconds, compiled_run

    dense, slim, example, dense_macs, slim_macs = our_networks(name)
    theirs = torch_networks(name)
    if theirs:
        import torch

        torch.set_num_threads(num_cores)
    for batch in batches:
        runs: list[Run] = [compiled_run(model, example, batch)[0] for model in (dense, slim)]
        if theirs:
            runs += [torch_run(model, theirs[2], batch) for model in theirs[:2]]
        clock = time.process_time if num_cores == 1 else time.perf_counter
        times = alternating_seconds(runs, rounds, clock=clock)
        ratios = quantiles([before / after for before, after in zip(*times[:2], strict=True)], n=4)
        row = {
            "cores": num_cores,
            "batch": batch,
            "macs": slim_macs / dense_macs,
            "seconds": [median(each) for each in times],
            "quartiles": [ratios[0], ratios[2]],
        }
        print(json.dumps(row), flush=True)


def table_row(name: str, row: dict) -> str:
    """One row of the table."""
    seconds = [f"{1e3 * each:.1f}" for each in row["seconds"]]
    faster = row["seconds"][0] / row["seconds"][1]
    low, high = row["quartiles"]
    if len(seconds) == 4:
        theirs, mark = row["seconds"][2] / row["seconds"][3], ""
    else:
        theirs, mark = RECORDED[name].get(row["batch"], float("nan")), "*"
        seconds += ["", ""]
    cells = [
        name, str(row["cores"]), str(row["batch"]), f"{100 * row['macs']:.0f} %", *seconds[:2],
        f"{faster:.2f}x ({low:.2f} to {high:.2f})", *seconds[2:], f"{theirs:.2f}x{mark}", f"{faster / theirs:.2f}x",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(RECORDED))
    parser.add_argument("--threads", default="1,all")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(
            options.measure, options.threads, [int(b) for b in options.batches.split(",")], options.rounds
        )
        return
    print(
        f"{os.cpu_count()} cores; milliseconds of a batch; the target is {TARGET}x in the last column on one core\n"
    )
    header = [
        "network",
        "cores",
        "batch",
        "MACs left",
        "dense",
        "slim",
        "faster (quartiles)",
        "torch dense",
        "torch slim",
    ]
    print(f"| {' | '.join([*header, 'Torch-Pruning faster', 'ratio'])} |\n|---|{'--:|' * 10}")
    for name in options.networks.split(","):
        for threads in options.threads.split(","):
            command = [
                sys.executable,
                __file__,
                "--measure",
                name,
                "--threads",
                threads,
                "--batches",
                options.batches,
            ]
            command += ["--rounds", str(options.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            for line in done.stdout.splitlines():
                print(table_row(name, json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
