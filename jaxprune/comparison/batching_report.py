"""How fine-tunings of a task are best batched on this machine, as a table and as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import jax

from jaxprune.tasks.batching_speed import Timing
from jaxprune.text import markdown_table
from jaxprune.training.batching import Batching


@dataclass(frozen=True)
class BatchingReport:
    """What was measured of one task.

    Args:
      task: its name.
      num_steps: steps of one fine-tuning.
      timings: one or more, each of another way to batch.
      devices: where it was measured.

    Example:
      >>> timings = Timing(Batching("scan", 1, "patches"), 2, 0.04, 3.0), Timing(Batching("vmap", 8), 8, 0.12, 5.0)
      >>> BatchingReport("digits", 42, timings, "1 x cpu").options
      '--batching vmap --chunk 8'
    """

    task: str
    num_steps: int
    timings: tuple[Timing, ...]
    devices: str

    @property
    def fastest(self) -> Timing:
        """The timing with the least time for each member where all are busy."""
        return min(self.timings, key=lambda timing: timing.member_seconds)

    @property
    def options(self) -> str:
        """What to pass to `jaxprune evolve` for the fastest."""
        return _options_of(self.fastest.batching)

    def to_markdown(self) -> str:
        """Returns a table with the fastest named below it."""
        rows = [
            [
                timing.batching.strategy,
                str(timing.batching.chunk) if timing.batching.strategy == "vmap" else "",
                timing.batching.convolution,
                str(timing.num_members),
                f"{timing.member_seconds * 1e3:.1f}" + (" (fastest)" if timing == self.fastest else ""),
                f"{timing.seconds:.3f}",
                f"{timing.first_seconds:.1f}",
            ]
            for timing in self.timings
        ]
        heads = ["batching", "chunk", "convolution", "networks at once", "ms a network", "s together"]
        return "\n\n".join(
            [
                f"## {self.task}: {self.num_steps} steps of fine-tuning, {self.devices}",
                markdown_table([*heads, "first call, s"], rows),
                f"Fastest for `jaxprune evolve`: `{self.options}`. That holds for full rows. Where a generation does "
                "not fill them, a smaller chunk may take less time: rows times seconds together.",
            ]
        )

    def to_json(self) -> str:
        """Returns it as JSON."""
        plain = asdict(self) | {
            "timings": [
                timing._asdict() | {"batching": timing.batching._asdict()} for timing in self.timings
            ],
            "fastest": self.fastest.batching._asdict(),
            "options": self.options,
        }
        return json.dumps(plain, indent=2)


def local_devices_in_words() -> str:
    """Returns number and kind of the local devices.

    Example:
      >>> local_devices_in_words() == f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
      True
    """
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def _options_of(batching: Batching) -> str:
    """Returns a batching as options of `jaxprune evolve`.

    Example:
      >>> _options_of(Batching("scan", 1, "patches"))
      '--batching scan --convolution patches'
    """
    chunk = f" --chunk {batching.chunk}" if batching.strategy == "vmap" else ""
    convolution = "" if batching.convolution == "auto" else f" --convolution {batching.convolution}"
    return f"--batching {batching.strategy}{chunk}{convolution}"
