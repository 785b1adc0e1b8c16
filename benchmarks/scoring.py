"""Populations of pruning functions scored on whole networks, against the forward pass that feeds them and a plain loop.

    python benchmarks/scoring.py [--functions 256] [--images 2000] [--cases vgg,numpy,resnet]

Everything is timed in one process and one run; the last table holds it against the targets. Compilation is counted
by JAX's own monitoring events. Cases:

- vgg: VGG-16 at 32x32, 4,736 channels, 10 classes: functions of moments and weights (70 %), elementwise on samples
  (20 %) and with matrix operators (10 %): cold, a second population, the network with half its channels, and warm;
  seconds against those of the forward pass that `observe` runs, peak memory, compilations;
- numpy: functions of moments and weights at 1,024 positions against a NumPy loop over channels and classes;
- resnet: 1,000 functions on operands of the size of ResNet-56;
- device: the functions of vgg and resnet on the device backend: calls, programs and transfers. A CPU can count them,
  in minutes; its seconds say nothing about an accelerator.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import monitoring

import jaxprune as jp
from jaxprune.keys import derive
from jaxprune.language.expression import Expression
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.observation.moments import Moments
from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import make_observer
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import needs_samples
from jaxprune.scoring.device_programs import programs_for
from jaxprune.scoring.formula_cost import estimate_cost
from jaxprune.scoring.layer_batches import axis_sizes
from jaxprune.scoring.scorer import Scorer
from jaxprune.structure.model_state import split_model

MATRIX = {"matmul", "inverse", "rbf", "outer", "transpose", "trace"}
SHARES = {"moments": 0.7, "samples": 0.2, "matrix": 0.1}
VOCABULARY = DEFAULT_VOCABULARY.restrict(set(DEFAULT_VOCABULARY.operands) - {"GW", "GX"})
REFUSED = 0.05
"""At most this share of the functions is refused, the costliest by estimate."""

WARM_UP = 7 * 256
"""Random functions whose programs are compiled ahead on a device."""
DEVICE_BUDGET = 2 << 30
"""Bytes for values on the device backend where this runs on a CPU: those of a device of 16 GiB."""

RESNET56 = [(16, 1024, 144, 19), (32, 256, 288, 18), (64, 64, 576, 18)]
"""Width, positions, filter entries and number of the layers of a stage: 2,032 producing channels."""

HEADER = (
    "| {} | functions | refused | seconds | of the forward pass | compilations | peak MiB more |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)
compilations = [0]
verdicts: list[tuple[str, float, str, bool]] = []
"""What is aimed at, what was measured, the target and whether it is met."""


def count(event: str, _seconds: float, **_: object) -> None:
    """Counts programs that are lowered, whether or not a persistent cache holds them."""
    compilations[0] += event == "/jax/core/compile/jaxpr_to_mlir_module_duration"


def judge(name: str, measured: float, target: float, *, at_least: bool = False) -> None:
    """Holds a number against its target; `main` prints all of them."""
    is_met = measured >= target if at_least else measured <= target
    verdicts.append((name, measured, f"{'>=' if at_least else '<='} {target:,g}", is_met))


def kind(f: Expression) -> str:
    """Which of the three kinds a function is."""
    if any(node.operator in MATRIX for node in f.walk()):
        return "matrix"
    return "samples" if needs_samples(f) else "moments"


def population(seed: int, size: int, shares: dict[str, float]) -> list[Expression]:
    """Different random functions, so many of each kind."""
    wanted = {name: round(share * size) for name, share in shares.items()}
    wanted[next(iter(wanted))] += size - sum(wanted.values())
    root = derive(jax.random.key(seed), "benchmark")
    found: dict[str, dict[Expression, None]] = {name: {} for name in wanted}
    number = 0
    while any(len(found[name]) < wanted[name] for name in wanted):
        f = random_expression(derive(root, number), VOCABULARY)
        number += 1
        if f.operands and len(found.get(kind(f), ())) < wanted.get(kind(f), 0):
            found[kind(f)][f] = None
    return [f for own in found.values() for f in own]


def timed(run: Callable[[], object]) -> tuple[float, int]:
    """Seconds until everything that `run` returns is there, and compilations."""
    start, before = time.perf_counter(), compilations[0]
    jax.block_until_ready(run())
    return time.perf_counter() - start, compilations[0] - before


def dearest_allowed(functions: Sequence[Expression], layers: Sequence[Operands]) -> float:
    """The most operations on one layer that all but the costliest functions stay below."""
    costs = sorted(
        max(
            estimate_cost(f, axis_sizes(one, "sample" if needs_samples(f) else "full"), 4).flops
            for one in layers
        )
        for f in functions
    )
    return costs[math.ceil(len(costs) * (1 - REFUSED)) - 1]


class Vgg(NamedTuple):
    """VGG-16 observed, with the seconds it took, and two populations."""

    layers: dict[str, Operands]
    forward: float
    observing: float
    first: list[Expression]
    second: list[Expression]
    limit: float
    """Operations on a layer above which functions are refused."""


@lru_cache(maxsize=1)
def observed_vgg(num_images: int, num_functions: int) -> Vgg:
    """Runs and observes the network once for all cases."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((num_images, 32, 32, 3)).astype(np.float32)
    labels = np.arange(num_images) % 10
    model = jp.find_network("vgg16")
    observer, arrays = make_observer(model, images, labels), split_model(model)[1]
    found: list[Observed] = []

    def observed() -> list[Operands]:
        found.append(observer(arrays))
        return list(found[0].values())  # what is still computed would be counted as part of the forward pass

    observing, _ = timed(observed)
    model.eval()
    run = nnx.jit(lambda network, batch: network(batch))
    batches = np.array_split(images, max(1, num_images // 250))
    jax.block_until_ready(run(model, batches[0]))
    forward, _ = timed(lambda: [jax.block_until_ready(run(model, batch)) for batch in batches])
    layers = dict(found[0])
    first, second = (population(seed, num_functions, SHARES) for seed in (0, 1))
    limit = max(dearest_allowed(own, list(layers.values())) for own in (first, second))
    return Vgg(layers, forward, observing, first, second, limit)


def vgg(options: argparse.Namespace) -> None:
    """The acceptance case: a population on VGG-16."""
    layers, forward, observing, first, second, limit = observed_vgg(options.images, options.functions)
    channels = sum(one.num_channels for one in layers.values())
    print(
        f"\nVGG-16, {channels} channels, {options.images} images: forward pass {forward:.1f} s, "
        f"observe (with all moments, compiling included) {observing:.1f} s\n"
    )
    print(f"functions above {limit:.1e} operations on a layer are refused\n")
    print(HEADER.format("population"))
    pruned = {path: one.take(np.arange(0, one.num_channels, 2)) for path, one in layers.items()}
    seconds, compiled, extra = {}, {}, {}
    for name, own, functions in (
        ("cold", layers, first),
        ("second population", layers, second),
        ("after pruning", pruned, second),
        ("warm", layers, first),
    ):
        scorer = Scorer(own, max_flops=limit)
        refused: list[int] = []
        before = reset_peak_bytes()
        work = lambda one=scorer, f=functions, found=refused: found.append(refused_of(one, f))  # noqa: E731
        seconds[name], compiled[name] = timed(work)
        extra[name] = peak_bytes() - before
        row(name, len(functions), sum(refused), seconds[name], forward, compiled[name], extra[name])
        del scorer
        gc.collect()
    judge("VGG-16 warm, of the forward pass", seconds["warm"] / forward, 0.25)
    judge("VGG-16 cold, compiling included, of the forward pass", seconds["cold"] / forward, 0.35)
    judge("VGG-16, another population, of the forward pass", seconds["second population"] / forward, 0.25)
    judge("compilations of all populations", sum(compiled.values()), 0)
    judge("peak extra memory of scoring, GiB", max(extra["warm"], extra["second population"]) / 2**30, 2.0)
    print("\n" + HEADER.format("warm, by kind"))
    for name in SHARES:
        own = [f for f in first if kind(f) == name]
        scorer = Scorer(layers, max_flops=limit)
        refused = []
        before = reset_peak_bytes()
        taken, programs = timed(lambda one=scorer, f=own, found=refused: found.append(refused_of(one, f)))
        row(name, len(own), sum(refused), taken, forward, programs, peak_bytes() - before)


def refused_of(scorer: Scorer, functions: Sequence[Expression]) -> int:
    """Runs a population; how many functions were refused somewhere."""
    found = scorer.run(functions)
    return sum(any(result.reasons[i] for result in found.values()) for i in range(len(functions)))


def row(
    name: str, functions: int, refused: int, seconds: float, forward: float, compiled: int, extra: int
) -> None:
    """Prints a row of a table."""
    print(
        f"| {name} | {functions} | {refused} | {seconds:.1f} | {seconds / forward:.2f}x | {compiled} | "
        f"{extra / 2**20:.0f} |",
        flush=True,
    )


def numpy_loop(options: argparse.Namespace) -> None:
    """Functions of moments and weights: per function and channel, against a loop that splits classes every time."""
    rng = np.random.default_rng(0)
    channels, positions, examples, classes = 64, 1024, options.images, 10
    features = rng.standard_normal((examples, positions, channels)).astype(np.float32)
    labels = np.arange(examples) % classes
    kernel = rng.standard_normal((576, channels)).astype(np.float32)
    ops = Operands.from_arrays(features=features, labels=labels, kernel=kernel)
    readable = VOCABULARY.restrict(set(VOCABULARY.operands) - {"WO", "gamma", "beta"})
    root = derive(jax.random.key(0), "numpy")
    drawn = (random_expression(derive(root, i), readable) for i in range(10_000))
    functions = [f for f in dict.fromkeys(drawn) if f.operands and kind(f) == "moments"][: options.functions]
    Scorer(ops).run(functions)
    seconds, _ = timed(lambda: Scorer(ops).run(functions)[""].scores)
    start = time.perf_counter()
    sample = functions[:: max(1, len(functions) // 5)][:5]
    for f in sample:
        naive(f, features[:, :, 0], labels, kernel[:, 0], kernel)
    loop = (time.perf_counter() - start) / len(sample)
    ours = seconds / len(functions) / channels
    print(
        f"\n{len(functions)} functions of moments and weights, {channels} channels, {positions} positions, "
        f"{examples} images: {ours * 1e6:.2f} us per function and channel, NumPy loop {loop:.3f} s: {loop / ours:.0f}x"
    )
    judge("times faster than a NumPy loop", loop / ours, 10_000, at_least=True)


def naive(f: Expression, x: np.ndarray, labels: np.ndarray, wi: np.ndarray, w: np.ndarray) -> float:
    """One function and channel in plain NumPy, every class taken apart anew."""
    total = 0.0
    for k in np.unique(labels):
        p, q = x[labels == k], x[labels != k]
        given = {"X": x, "P": p, "Q": q, "mX": x.mean(0), "mP": p.mean(0), "mQ": q.mean(0), "WI": wi, "W": w}
        given |= {"N": len(p), "NQ": len(q), "NX": len(x)}
        total += float(f.fold(lambda node, values, given=given: plain(node, values, given)))
    return total / len(np.unique(labels))


def plain(node: Expression, values: Sequence[np.ndarray], given: dict[str, np.ndarray]) -> np.ndarray:
    """The value of one node."""
    if node.is_operand:
        return given[node.name]
    if node.is_literal:
        return np.float32(node.value)
    with np.errstate(all="ignore"):
        if node.operator == "slice":
            return sliced(values[0], *map(int, node.params))
        return PLAIN[node.operator](*values)


def sliced(values: np.ndarray, first: int, last: int) -> np.ndarray:
    """Positions between eighths."""
    start = first * values.shape[-1] // 8
    return values[..., start : max(last * values.shape[-1] // 8, start + 1)]


def medoid(bank: np.ndarray) -> np.ndarray:
    """The column with the least sum of distances to the others."""
    totals = [np.sqrt(((bank - bank[:, [i]]) ** 2).sum(0)).sum() for i in range(bank.shape[1])]
    return bank[:, np.argmin(totals)]


PLAIN: dict[str, Callable[..., np.ndarray]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "abs": np.abs, "square": np.square,
    "sqrt": np.sqrt, "sum": np.sum, "product": np.prod, "mean": np.mean, "std": np.std, "var": np.var,
    "count": np.size, "inner": np.dot, "mean_samples": lambda samples: samples.mean(0), "geometric_median": medoid,
}  # fmt: skip


def resnet(options: argparse.Namespace) -> None:
    """1,000 functions on operands of the size of ResNet-56."""
    layers, flat, vectors = resnet_sized()
    print(
        "\n| ResNet-56 sized, 2,032 channels | functions | cold s | warm s | compilations |\n|---|--:|--:|--:|--:|"
    )
    mixed = flat[:500] + vectors[:500]
    for name, functions, target in (
        ("scalar moments and filters", flat, 2.0),
        ("with position vectors", mixed, 20.0),
    ):
        own = functions[:1000]
        cold, compiled = timed(lambda own=own: refused_of(Scorer(layers), own))
        warm, _ = timed(lambda own=own: refused_of(Scorer(layers), own))
        print(f"| {name} | {len(own)} | {cold:.1f} | {warm:.1f} | {compiled} |", flush=True)
        judge(f"1,000 functions, ResNet-56 sized, {name}, warm seconds", warm, target)


@lru_cache(maxsize=1)
def resnet_sized() -> tuple[dict[str, Operands], list[Expression], list[Expression]]:
    """Operands of the size of ResNet-56, functions of scalars alone, and functions with position vectors."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    layers = {}
    for width, positions, entries, number in RESNET56:
        for index in range(number):
            shape = (10, positions, width)
            moments = Moments(
                np.full(10, 200, np.float32),
                normal(positions, width),
                normal(*shape),
                np.abs(normal(*shape)),
                normal(10, width),
            )
            layers[f"{width}-{index}"] = Operands.build(
                moments=jax.tree.map(jax.numpy.asarray, moments),
                samples=jax.numpy.asarray(normal(10, 1, width)),
                sample_labels=np.arange(10),
                kernel=jax.numpy.asarray(normal(entries, width)),
                outgoing=jax.numpy.asarray(normal(entries, width)),
                gamma=jax.numpy.ones(width),
                beta=jax.numpy.ones(width),
            )
    root = derive(jax.random.key(0), "resnet")
    drawn = dict.fromkeys(random_expression(derive(root, i), VOCABULARY) for i in range(30_000))
    moments_only = [f for f in drawn if f.operands and kind(f) == "moments"]
    flat = [f for f in moments_only if not {"mX", "mP", "mQ", "W"} & f.operands]
    vectors = [f for f in moments_only if {"mX", "mP", "mQ"} & f.operands and "W" not in f.operands]
    return layers, flat, vectors


def device(options: argparse.Namespace) -> None:
    """Calls, programs and transfers of the device backend."""
    budget = None if jax.default_backend() != "cpu" else DEVICE_BUDGET
    print(f"\n{DEVICE_HEADER}")
    network = observed_vgg(options.images, options.functions)
    programs = Scorer(network.layers, max_flops=network.limit, budget_bytes=budget, backend="device")
    residual = Scorer(resnet_sized()[0], budget_bytes=budget, backend="device")
    calls, compiled, new = {}, [], []
    for name, scorer, own in (
        ("VGG-16", programs, network.first),
        ("VGG-16, another population", programs, network.second),
        ("ResNet-56 sized", residual, resnet_sized()[1][:1000]),
    ):
        before, known = scorer.num_calls, scorer.num_programs
        with jax.transfer_guard("disallow"):  # but for what is brought there before and back after
            seconds, _ = timed(lambda scorer=scorer, own=own: refused_of(scorer, own))
        calls[name] = scorer.num_calls - before
        compiled.append(scorer.num_programs)
        new.append(scorer.num_programs - known)
        share = f"{seconds / network.forward:.2f}x" if "VGG" in name else "-"
        print(f"| {name} | {len(own)} | {calls[name]} | {new[-1]} | {seconds:.1f} | {share} |", flush=True)
    programs_for.cache_clear()  # networks of equal shapes share their programs
    ahead = Scorer(network.layers, max_flops=network.limit, budget_bytes=budget, backend="device")
    random = [f for seed in range(3, 3 + WARM_UP // 256) for f in population(seed, 256, SHARES)]
    seconds, _ = timed(lambda: ahead.warm_up([*random, *network.first]))
    known = ahead.num_programs
    ahead.warm_up(network.second)
    print(
        f"\nwarmed up by {WARM_UP} random functions and the first population: {known} programs in {seconds:.0f} s; "
        f"the second one adds {ahead.num_programs - known}"
    )
    judge(
        "device: calls for 256 functions, VGG-16",
        max(calls["VGG-16"], calls["VGG-16, another population"]),
        1500,
    )
    judge("device: calls for 1,000 functions, ResNet-56 sized", calls["ResNet-56 sized"], 600)
    judge("device: programs of a first population", compiled[0], 600)
    judge("device: programs of a second one, of those of the first", new[1] / compiled[0], 0.05)
    judge("device: programs warmed up and of a first population", known, 600)
    judge("device: the same of a second one, of those", (ahead.num_programs - known) / known, 0.05)


DEVICE_HEADER = (
    "| device backend, no transfers in between | functions | calls | programs | seconds | of the forward pass |\n"
    "|---|--:|--:|--:|--:|--:|"
)


def reset_peak_bytes() -> int:
    """Forgets the peak so far where the system can (Linux); the bytes that the process holds, or the peak so far."""
    gc.collect()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Most memory the process has held since the peak was last reset."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


CASES = {"vgg": vgg, "numpy": numpy_loop, "resnet": resnet, "device": device}


def main() -> None:
    """Runs the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=256)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--cases", default=",".join(CASES), help="out of " + ", ".join(CASES))
    options = parser.parse_args()
    monitoring.register_event_duration_secs_listener(count)
    print(f"{os.cpu_count()} CPU cores, {platform.machine()}, {jax.default_backend()}, jax {jax.__version__}")
    for name in options.cases.split(","):
        CASES[name](options)
    print("\n| target | measured | wanted | met |\n|---|--:|--:|---|")
    for what, measured, target, is_met in verdicts:
        print(f"| {what} | {measured:,.2f} | {target} | {'yes' if is_met else 'no'} |")


if __name__ == "__main__":
    main()
