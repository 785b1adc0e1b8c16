"""Measures how much faster a slim network is than the dense one, and how much less memory it takes.

Both are compiled first and then run in turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import jax
from flax import nnx

from jaxprune.deploy.evaluation_call import evaluation_call
from jaxprune.files import to_text
from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.inputs import Batch, random_values
from jaxprune.text import markdown_table
from jaxprune.types import is_whole

_RUN_SECONDS = 0.005
"""Runs that are shorter are measured several at a time."""


@dataclass(frozen=True)
class Speed:
    """One network at one batch size."""

    seconds: float
    """Latency of a batch: the median over rounds."""
    quartiles: tuple[float, float]
    """A quarter of the rounds took less than the first, and a quarter more than the second."""
    peak_bytes: int | None
    """Memory for weights, inputs, outputs and everything in between, by XLA's analysis of the compiled program; None if
    the backend does not tell."""


@dataclass(frozen=True)
class SpeedRow:
    """Both networks at one batch size."""

    batch_size: int
    dense: Speed
    slim: Speed

    @property
    def speed_up(self) -> float:
        """How many times faster the slim network is."""
        return self.dense.seconds / self.slim.seconds


@dataclass(frozen=True)
class SpeedReport:
    """What `compare_speed` measured."""

    rows: tuple[SpeedRow, ...]
    """One for each batch size."""
    macs: tuple[int, int]
    """Multiply-accumulates for one example: dense and slim."""
    parameters: tuple[int, int]
    """Trained parameters: dense and slim."""
    device: str
    versions: str
    rounds: int

    @property
    def macs_ratio(self) -> float:
        """How many times fewer multiply-accumulates the slim network has."""
        return self.macs[0] / max(self.macs[1], 1)

    def to_json(self) -> str:
        """Returns the report as JSON text; `from_json` reads it."""
        return to_text(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> SpeedReport:
        """Returns the report that `to_json` wrote."""
        record = json.loads(text)
        rows = tuple(
            SpeedRow(row["batch_size"], *(_speed_from(row[name]) for name in ("dense", "slim")))
            for row in record["rows"]
        )
        pairs = {name: tuple(record[name]) for name in ("macs", "parameters")}
        return cls(**{**record, "rows": rows, **pairs})

    def to_markdown(self) -> str:
        """Returns the report as two sentences and a Markdown table with a row for each batch size.

        The latency is the median, with its quartiles in brackets, and the throughput belongs to it.
        """
        header = ["batch", "dense, ms", "slim, ms", "faster", "fewer MACs", "examples/s", "peak MiB"]
        rows = [
            [
                str(row.batch_size),
                _milliseconds(row.dense),
                _milliseconds(row.slim),
                f"{row.speed_up:.2f}x",
                f"{self.macs_ratio:.2f}x",
                " to ".join(f"{row.batch_size / each.seconds:,.0f}" for each in (row.dense, row.slim)),
                " to ".join(_mebibytes(each.peak_bytes) for each in (row.dense, row.slim)),
            ]
            for row in self.rows
        ]
        sizes = " and ".join(
            f"{before:,} to {after:,} {name}"
            for (before, after), name in (
                (self.macs, "MACs for one example"),
                (self.parameters, "parameters"),
            )
        )
        return (
            f"From {sizes}. Measured on {self.device} with {self.versions}: medians of {self.rounds} rounds, quartiles "
            f"in brackets, compilation left out.\n\n{markdown_table(header, rows)}"
        )


def compare_speed(
    dense: nnx.Module,
    slim: nnx.Module,
    example: Batch,
    *,
    batch_sizes: Sequence[int] = (1, 16),
    rounds: int = 20,
) -> SpeedReport:
    """Measures latency, throughput and peak memory of a network before and after pruning.

    Both networks are compiled in evaluation mode for each batch size, run twice to warm up, and then measured in turns,
    round by round. Fewer multiply-accumulates rarely make a network as much faster: memory traffic, small operations
    and overheads stay, so the report has both ratios side by side. Measure where the network will run, with nothing
    else running there.

    Args:
      dense: the network before pruning; it is not changed.
      slim: the one after it, which takes the same inputs.
      example: a batch as the networks take it, or its shapes and dtypes, as for `trace_structure`; the batch size does
        not matter, and random numbers stand in for values.
      batch_sizes: how many examples at a time.
      rounds: how often each network is measured at each batch size, at least 3.

    Returns:
      The report; `print(report.to_markdown())` shows it.

    Raises:
      ValueError: for batch sizes that are no whole numbers >= 1, or fewer than 3 rounds.

    Example:
      >>> import jaxprune as jp
      >>> import numpy as np
      >>> dense, slim = (jp.PlainConvNet(nnx.Rngs(0), widths=widths) for widths in ((8, 8, 8), (4, 4, 4)))
      >>> report = jp.compare_speed(dense, slim, np.zeros((1, 8, 8, 1)), batch_sizes=(2,), rounds=3)
      >>> report.rows[0].batch_size, report.macs_ratio > 2, report.rows[0].speed_up > 0
      (2, True, True)
    """
    if not batch_sizes or not all(is_whole(size, smallest=1) for size in batch_sizes):
        raise ValueError(f"batch_sizes needs whole numbers >= 1, got {batch_sizes!r}.")
    if not is_whole(rounds, smallest=3):
        raise ValueError(f"rounds needs a whole number >= 3, to tell how much they differ, got {rounds!r}.")
    device = jax.devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else device.device_kind
    return SpeedReport(
        rows=tuple(_measure(dense, slim, example, int(size), int(rounds)) for size in batch_sizes),
        macs=(count_macs(dense, example), count_macs(slim, example)),
        parameters=(count_parameters(dense), count_parameters(slim)),
        device=f"{device.platform} ({kind})",
        versions=f"jax {jax.__version__}",
        rounds=int(rounds),
    )


def _measure(dense: nnx.Module, slim: nnx.Module, example: Batch, batch_size: int, rounds: int) -> SpeedRow:
    """Measures both networks at one batch size, in turns."""
    runs, peaks = zip(*(compiled_run(model, example, batch_size) for model in (dense, slim)), strict=True)
    times = alternating_seconds(runs, rounds)
    speeds = [
        Speed(median(each), tuple(quantiles(each, n=4)[::2]), peak)  # type: ignore[arg-type]
        for each, peak in zip(times, peaks, strict=True)
    ]
    return SpeedRow(batch_size, *speeds)


def compiled_run(model: nnx.Module, example: Batch, batch_size: int) -> tuple[Callable[[], Any], int | None]:
    """Compiles a network in evaluation mode.

    Args:
      model: the network.
      example: a batch as it takes it, or its shapes and dtypes.
      batch_size: how many examples at a time.

    Returns:
      A function that runs it once on random values and waits for it, and the program's peak memory in bytes, None if
      the backend does not tell.

    Example:
      >>> import numpy as np
      >>> run, peak_bytes = compiled_run(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), np.ones((1, 2)), 4)
      >>> run().shape
      (4, 3)
    """
    forward, arrays, taken = evaluation_call(model, example)
    values = [random_values(each) for each in taken.with_batch_size(batch_size).arrays]
    program = jax.jit(forward).lower(arrays, values).compile()
    arrays = jax.device_put(arrays)
    return lambda: jax.block_until_ready(program(arrays, values)), _peak_bytes(program.memory_analysis())


def alternating_seconds(
    runs: Sequence[Callable[[], object]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Returns how long each function takes, measured in turns.

    Args:
      runs: functions that return when their work is done.
      rounds: how often each is measured, in alternating order, after two calls to warm up.
      clock: tells the time; `time.process_time` counts the seconds of all cores that this process was given.

    Returns:
      For each function, the seconds of one call in each round.

    Example:
      >>> [len(seconds) for seconds in alternating_seconds([lambda: None, lambda: None], 3)]
      [3, 3]
    """
    counts = []
    for run in runs:
        run()
        start = clock()
        run()
        counts.append(max(1, round(_RUN_SECONDS / max(clock() - start, 1e-9))))
    times: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    for _ in range(rounds):
        for number in order:
            start = clock()
            for _ in range(counts[number]):
                runs[number]()
            times[number].append((clock() - start) / counts[number])
        order.reverse()
    return times


def _peak_bytes(analysis: Any) -> int | None:  # noqa: ANN401 - of XLA, without a public type
    """Memory that a program takes at most; XLA's own peak where it tells, else the sum of its parts."""
    if analysis is None:
        return None
    peak = getattr(analysis, "peak_memory_in_bytes", 0)
    parts = (getattr(analysis, f"{name}_size_in_bytes", 0) for name in ("argument", "output", "temp"))
    return int(peak) or int(sum(parts) - getattr(analysis, "alias_size_in_bytes", 0)) or None


def _speed_from(record: dict[str, Any]) -> Speed:
    """Returns the speed in an object of JSON."""
    return Speed(**{**record, "quartiles": tuple(record["quartiles"])})


def _milliseconds(speed: Speed) -> str:
    """Median and quartiles."""
    low, high = speed.quartiles
    return f"{1e3 * speed.seconds:.3g} ({1e3 * low:.3g} to {1e3 * high:.3g})"


def _mebibytes(num_bytes: int | None) -> str:
    """A size, or a question mark."""
    return "?" if num_bytes is None else f"{num_bytes / 2**20:.1f}"
