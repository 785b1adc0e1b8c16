"""Latency budgets: measures slim networks on this machine until one is fast enough.

A measured time depends on the machine, on what else runs there, and on the batch size of the example. So the plan
holds the table of what was measured, and another machine may see other fractions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import gather
from jaxprune.structure.model_state import merge_model, merge_to_run, set_mode, split_model, take_apart
from jaxprune.structure.verification import slim_graph
from jaxprune.types import Array

SecondsOf = Callable[[Mapping[str, int]], float]
"""Group name -> kept channels, of all groups, to the seconds that one call of the slim network takes."""

NUM_MEASUREMENTS = 7
"""Networks of different sizes that are measured, besides the full and perhaps the smallest one."""
NUM_TIMINGS = 5
"""Timings of each network, of which the fastest counts: others were disturbed."""

_SECONDS_OF_A_TIMING = 0.02
_MOST_CALLS = 1000


class FastEnough(NamedTuple):
    """The largest measured network that is fast enough."""

    counts: dict[str, int]
    met: float
    """Its latency, as a fraction of the full network's."""
    table: tuple[Mapping[str, float], ...]
    """All measurements, from the smallest network to the full one."""


def fastest_enough(
    structure: Structure,
    smallest: Mapping[str, int],
    fraction: float,
    counts_within: Callable[[float], dict[str, int] | None],
    seconds_of: SecondsOf,
) -> FastEnough:
    """Finds, by bisection over the fraction of multiply-adds, a network that takes at most a fraction of the time.

    Args:
      structure: groups of the network.
      smallest: counts of the smallest network.
      fraction: of the full network's latency.
      counts_within: fraction of multiply-adds -> counts of all groups, or None if that is too small.
      seconds_of: measures a network.

    Returns:
      The largest measured network that is fast enough.

    Raises:
      ValueError: if not even the smallest network is; the message says how fast that is.
    """
    full, full_macs = structure.widths, structure.count_macs()
    full_seconds = seconds_of(full)
    rows = {1.0: (full, full_seconds)}
    low, high = structure.count_macs(smallest) / full_macs, 1.0
    for _ in range(NUM_MEASUREMENTS if fraction < 1 else 0):
        full_seconds = min(full_seconds, seconds_of(full))  # beside each other, as other work comes and goes
        middle = (low + high) / 2
        counts = counts_within(middle)
        if counts is None:
            low = middle
            continue
        at = structure.count_macs(counts) / full_macs
        if at not in rows:
            rows[at] = (counts, seconds_of(counts))
        is_fast = rows[at][1] <= fraction * full_seconds
        low, high = (middle, high) if is_fast else (low, middle)
    rows[1.0] = (full, full_seconds)
    if not any(seconds <= fraction * full_seconds for _, seconds in rows.values()):
        rows[structure.count_macs(smallest) / full_macs] = (dict(smallest), seconds_of(smallest))
    fast = [at for at, (_, seconds) in rows.items() if seconds <= fraction * full_seconds]
    if not fast:
        fastest = math.ceil(min(seconds for _, seconds in rows.values()) / full_seconds * 1e4) / 1e4
        raise ValueError(
            f"latency_fraction={fraction} cannot be met: of {len(rows)} networks down to the smallest, the fastest "
            f"took {fastest:.4f} of the full network's {full_seconds:.3g} s, the closest that can be reached here. "
            "Raise it, ignore fewer groups, or pass an example of another batch size."
        )
    table = tuple(
        {"macs_fraction": at, "seconds": rows[at][1], "latency_fraction": rows[at][1] / full_seconds}
        for at in sorted(rows)
    )
    counts, seconds = rows[max(fast)]
    return FastEnough(counts, seconds / full_seconds, table)


def make_timer(model: nnx.Module, structure: Structure, example: Array | jax.ShapeDtypeStruct) -> SecondsOf:
    """Returns a function that measures the slim network of some counts, jitted, on an example.

    Each network is compiled and run once before it is timed. The fastest of a few timings counts. The full network is
    compiled once, however often it is measured.

    Args:
      model: the full network; it is not changed.
      structure: its groups.
      example: a batch of images, or its shape and dtype.
    """
    parts = take_apart(set_mode(merge_model(*split_model(model)), "evaluation"))
    images = jax.device_put(_values(example))

    calls: dict[str, Callable[[], object]] = {}

    def seconds_of(counts: Mapping[str, int]) -> float:
        if dict(counts) != structure.widths:
            return _fastest(compiled(counts))
        if "full" not in calls:
            calls["full"] = compiled(counts)
        return _fastest(calls["full"])

    def compiled(counts: Mapping[str, int]) -> Callable[[], object]:
        kept = {
            name: np.arange(count, dtype=np.int32)
            for name, count in counts.items()
            if count < structure.widths[name]
        }
        attributes = {path: len(kept[name]) for name in kept for path in structure.attributes.get(name, ())}
        graphdef = slim_graph(parts, structure, kept, attributes)
        arrays = {
            path: jax.device_put(
                gather(array, structure.layouts[path], kept) if path in structure.layouts else array
            )
            for path, array in jax.device_get(parts.flat).items()
        }
        call = jax.jit(lambda arrays, images: merge_to_run(graphdef, arrays, parts.rest)(images))
        return lambda: jax.block_until_ready(call(arrays, images))

    return seconds_of


def _values(example: Array | jax.ShapeDtypeStruct) -> Array:
    """Returns images; where only their shape is known, random ones."""
    if not isinstance(example, jax.ShapeDtypeStruct):
        return example
    values = np.random.default_rng(0).normal(size=example.shape)
    return values.astype(example.dtype)


def _fastest(call: Callable[[], object]) -> float:
    """Returns the seconds that a call takes in the fastest of some timings of many calls each."""
    call()  # compiles
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    num_calls = max(1, min(_MOST_CALLS, round(_SECONDS_OF_A_TIMING / max(once, 1e-9))))
    best = math.inf
    for _ in range(NUM_TIMINGS):
        start = time.perf_counter()
        for _ in range(num_calls):
            call()
        best = min(best, (time.perf_counter() - start) / num_calls)
    return best
