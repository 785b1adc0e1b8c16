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

from jaxprune.nets.inputs import Batch, Example, arrays_of, random_values
from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import gather
from jaxprune.structure.model_state import (
    is_abstract,
    merge_model,
    merge_to_run,
    set_mode,
    split_model,
    take_apart,
)
from jaxprune.structure.verification import find_misfit, slim_graph

SecondsOf = Callable[[Mapping[str, int]], tuple[float, float]]
"""Group name -> kept channels, of all groups, to the seconds of one call of the slim and of the full network."""

NUM_MEASUREMENTS = 7
"""Networks of different sizes that are measured, besides perhaps the smallest one."""
LEAST_CALLS = 5
"""Calls of each network that are timed at least; the fastest counts, as others were disturbed."""
SECONDS_OF_CALLS = 0.5
"""Calls of a slim network, and of the full one in turn, are timed for about so long."""


class FastEnough(NamedTuple):
    """The largest measured network that is fast enough."""

    counts: dict[str, int]
    met: float
    """Its latency, as a fraction of the full network's."""
    table: tuple[Mapping[str, float], ...]
    """All measurements, from the smallest network to the largest."""


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
    full_macs = structure.count_macs()
    rows: dict[float, tuple[dict[str, int], float, float]] = {}

    def is_fast(counts: dict[str, int]) -> bool:
        at = structure.count_macs(counts) / full_macs
        if at not in rows:
            rows[at] = (counts, *seconds_of(counts))
        return rows[at][1] <= fraction * rows[at][2]

    if fraction == 1:
        full_seconds = seconds_of(structure.widths)[1]
        rows[1.0] = (structure.widths, full_seconds, full_seconds)
    low, high = structure.count_macs(smallest) / full_macs, 1.0
    for _ in range(NUM_MEASUREMENTS if fraction < 1 else 0):
        middle = (low + high) / 2
        counts = counts_within(middle)
        low, high = (middle, high) if counts is None or is_fast(counts) else (low, middle)
    fast = [at for at, (counts, _, _) in rows.items() if is_fast(counts)]
    if not fast and is_fast(dict(smallest)):
        fast = [structure.count_macs(smallest) / full_macs]
    table = tuple(
        {"macs_fraction": at, "seconds": seconds, "full_seconds": full, "latency_fraction": seconds / full}
        for at, (_, seconds, full) in sorted(rows.items())
    )
    if not fast:
        fastest = min(table, key=lambda row: row["latency_fraction"])
        raise ValueError(
            f"latency_fraction={fraction} cannot be met: of {len(rows)} networks down to the smallest, the fastest "
            f"took {math.ceil(fastest['latency_fraction'] * 1e4) / 1e4:.4f} of the full network's "
            f"{fastest['full_seconds']:.3g} s, the closest that can be reached here. Raise it, ignore fewer groups, or "
            "pass an example of another batch size."
        )
    counts, seconds, full = rows[max(fast)]
    return FastEnough(counts, seconds / full, table)


def make_timer(model: nnx.Module, structure: Structure, example: Batch | Example) -> SecondsOf:
    """Returns a function that measures the slim network of some counts, jitted, on an example.

    Each network is compiled and run once before it is timed; then the fastest of its calls counts. The full network is
    timed anew beside each slim one, in turn.

    Args:
      model: the full network; it is not changed.
      structure: its groups.
      example: a batch as the network takes it, or its shapes and dtypes, for which random values stand in.

    Raises:
      ValueError: if the network has shapes in place of weights. What is returned raises it for a slim network that
        does not run, and names the groups.
    """
    parts = take_apart(set_mode(merge_model(*split_model(model)), "evaluation"))
    if is_abstract(parts.flat):
        raise ValueError(
            "latency_fraction needs a network with weights to measure, got one of shapes alone. Make it with "
            "weights, or use macs_fraction."
        )
    given = arrays_of(example.batch if isinstance(example, Example) else example)
    inputs = jax.device_put(
        [random_values(each) if isinstance(each, jax.ShapeDtypeStruct) else each for each in given]
    )
    full_call: list[Callable[[], object]] = []

    def seconds_of(counts: Mapping[str, int]) -> tuple[float, float]:
        if not full_call:
            full_call.append(compiled(structure.widths))
        return _fastest(compiled(counts), full_call[0])

    def compiled(counts: Mapping[str, int]) -> Callable[[], object]:
        kept = {
            name: np.arange(count, dtype=np.int32)
            for name, count in counts.items()
            if count < structure.widths[name]
        }
        attributes = structure.attributes_for(counts)
        graphdef = slim_graph(parts, structure, kept, attributes)
        if kept and (misfit := find_misfit(parts, structure, kept, attributes, graph=graphdef)):
            sizes = ", ".join(f"{name} {structure.widths[name]} -> {len(kept[name])}" for name in kept)
            raise ValueError(
                f"latency_fraction needs slim networks that run, but with {sizes} {misfit.reason}. Leave groups "
                "whose sizes depend on each other whole with ignore=, or give kept_counts."
            )
        arrays = {
            path: jax.device_put(
                gather(array, structure.layouts[path], kept) if path in structure.layouts else array
            )
            for path, array in jax.device_get(parts.flat).items()
        }
        call = jax.jit(
            lambda arrays, inputs: structure.example.call_network(
                merge_to_run(graphdef, arrays, parts.rest), inputs
            )
        )
        return lambda: jax.block_until_ready(call(arrays, inputs))

    return seconds_of


def _fastest(call: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds of the fastest calls of two functions, called in turn, so that both are disturbed alike."""
    call(), other()  # compiles
    times: list[tuple[float, float]] = []
    while len(times) < LEAST_CALLS or sum(map(sum, times)) < SECONDS_OF_CALLS:
        start = time.perf_counter()
        call()
        middle = time.perf_counter()
        other()
        times.append((middle - start, time.perf_counter() - middle))
    first, second = map(min, zip(*times, strict=True))
    return first, second
