"""Simulates in seconds how long networks take to train on any number of devices, and where the device time goes.

The events are those of a search: the leader scores and sends work orders; every host trains its share, a row of one
chunk on each of its devices; the slowest device ends the block; the leader gathers, one host after another; the next
block begins. A stage begins when all results of the one before are known. A host that dies ends the job: the block
under way is lost, and done again after the restart, because the journal holds all others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

PARTS = (
    "useful",
    "chunk",
    "padding",
    "stragglers",
    "scoring on hosts",
    "gathering",
    "leader",
    "compiling",
    "deaths",
)
"""Where device time goes: training at the fastest chunk; what this chunk takes longer; copies that fill rows, and hosts
without a share; waiting for the slowest device; waiting for plans of later rounds, which a host makes one after
another; for messages; for the leader's scoring; for compilation, on all hosts at the same time; and blocks lost by
deaths, with restarts."""

MOST_DEATHS = 1000
"""Deaths in one block after which it is given up."""


class NeverEndsError(ValueError):
    """Raised if hosts die so often that a block never ends."""


@dataclass(frozen=True)
class Program:
    """The training of networks of one task by one compiled program.

    Args:
      name: of the task and what is trained.
      row_seconds: chunk -> seconds of a row of so many members on one device; seconds between lie on lines.
      host_seconds: per member, what its host computes for it apart from training, one member after another.

    Raises:
      ValueError: without a row, or if a chunk or its time is not above 0.
    """

    name: str
    row_seconds: Mapping[int, float]
    host_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.row_seconds or min(*self.row_seconds, *self.row_seconds.values()) <= 0:
            raise ValueError(
                f"{self.name} needs seconds > 0 of rows of one or more chunks > 0, got {dict(self.row_seconds)}."
            )

    def seconds(self, chunk: int) -> float:
        """Returns the seconds of a row of this chunk."""
        chunks = sorted(self.row_seconds)
        if not chunks[0] <= chunk <= chunks[-1]:
            raise ValueError(
                f"{self.name} needs a chunk from {chunks[0]} to {chunks[-1]}, whose rows have known times, got {chunk}."
            )
        return float(np.interp(chunk, chunks, [self.row_seconds[each] for each in chunks]))

    @property
    def best_seconds(self) -> float:
        """Device seconds of one member at the fastest chunk."""
        return min(seconds / chunk for chunk, seconds in self.row_seconds.items())


@dataclass(frozen=True)
class Stage:
    """Networks that may be trained at the same time, and what the leader computes before it knows them.

    Args:
      purpose: why they are trained.
      members: programs and numbers of networks; one program is run after the other.
      leader_seconds: of scoring, before which nothing is trained.
      compile_seconds: in which each host compiles what it then runs.
    """

    purpose: str
    members: tuple[tuple[Program, int], ...]
    leader_seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def num_members(self) -> int:
        """Networks of all programs."""
        return sum(number for _, number in self.members)


@dataclass(frozen=True)
class Machine:
    """Devices and what goes wrong with them.

    Args:
      devices: number of devices, up to `devices_per_host` or a multiple of it.
      devices_per_host: of each host.
      chunk: members of a row on each device.
      gather_seconds: until the results of one host are with the leader; nothing where there is one host.
      straggler_sigma: standard deviation of the logarithm of a device's slowness in a row, whose mean is 1.
      deaths_per_host_hour: how often a host dies.
      restart_seconds: from a death until the first block runs again.

    Raises:
      ValueError: for numbers out of range or hosts that are not full.
    """

    devices: int
    devices_per_host: int = 8
    chunk: int = 16
    gather_seconds: float = 0.0
    straggler_sigma: float = 0.0
    deaths_per_host_hour: float = 0.0
    restart_seconds: float = 0.0

    def __post_init__(self) -> None:
        if min(self.devices, self.devices_per_host, self.chunk) < 1:
            raise ValueError(
                f"a machine needs devices, devices per host and a chunk >= 1, got {self.devices}, "
                f"{self.devices_per_host} and {self.chunk}."
            )
        times = (self.gather_seconds, self.straggler_sigma, self.deaths_per_host_hour, self.restart_seconds)
        if not all(0 <= time < math.inf for time in times):
            raise ValueError(
                f"a machine needs gather seconds, sigma, deaths and restart seconds >= 0, got {times}."
            )
        if self.devices > self.devices_per_host and self.devices % self.devices_per_host:
            raise ValueError(
                f"a machine needs full hosts, got {self.devices} devices on hosts of {self.devices_per_host}. "
                "Choose a multiple, or other devices per host."
            )

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return max(1, self.devices // self.devices_per_host)

    @property
    def block_size(self) -> int:
        """Members that all devices take together: a row on each host."""
        return self.devices * self.chunk

    def num_blocks(self, members: int) -> int:
        """Rows that each host runs for this many members of one program; on one host these are all rows."""
        return -(-members // self.block_size)

    def idle_share(self, members: int) -> float:
        """Share of the places in these rows that copies of members take."""
        return 1 - members / (self.num_blocks(members) * self.block_size)


@dataclass
class Account:
    """What a simulation comes to: seconds, and device seconds by what they were spent on, a key of `PARTS`."""

    devices: int
    seconds: float = 0.0
    deaths: int = 0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @property
    def efficiency(self) -> float:
        """Useful device seconds, divided by all; 1 for one device at its fastest chunk that never waits."""
        return self.spent["useful"] / (self.devices * self.seconds) if self.seconds else 1.0

    def shares(self) -> dict[str, float]:
        """Returns the share of each part in all device seconds."""
        whole = self.devices * self.seconds or 1.0
        return {part: seconds / whole for part, seconds in self.spent.items()}

    def largest_loss(self) -> str:
        """Names the part that takes most device time beside useful training, with its share."""
        shares = self.shares()
        part = max(PARTS[1:], key=lambda name: shares[name])
        return f"{part} {shares[part]:.0%}"


def simulate(
    stages: Iterable[Stage],
    machine: Machine,
    *,
    seed: int = 0,
    slowness: Callable[[int, int], np.ndarray] | None = None,
    deaths: Iterator[float] | None = None,
) -> Account:
    """Simulates stages one after another.

    Args:
      stages: what is trained.
      machine: on what.
      seed: of stragglers and deaths.
      slowness: (hosts H, devices D of each) -> [H, D] factors on the seconds of a row; by default drawn.
      deaths: times in which the job runs from its (re)start until a host dies; by default drawn.

    Returns:
      Seconds and where device time went; the parts sum up to devices x seconds.

    Raises:
      NeverEndsError: if hosts die so often that a block never ends.
    """
    if slowness is None:
        generator, sigma = np.random.default_rng(seed), machine.straggler_sigma
        slowness = lambda hosts, devices: generator.lognormal(-(sigma**2) / 2, sigma, (hosts, devices))  # noqa: E731
    deaths = _lifetimes(machine, np.random.default_rng((seed, 1))) if deaths is None else deaths
    clock = _Clock(Account(machine.devices), deaths, machine.restart_seconds)
    for stage in stages:
        clock.run(stage.leader_seconds, {"leader": stage.leader_seconds * machine.devices})
        clock.run(stage.compile_seconds, {"compiling": stage.compile_seconds * machine.devices})
        for program, members in stage.members:
            left = members
            while left > 0:
                share = min(left, machine.block_size)
                clock.run(*_block(program, share, machine, slowness))
                left -= share
    return clock.account


def _block(
    program: Program, members: int, machine: Machine, slowness: Callable[[int, int], np.ndarray]
) -> tuple[float, dict[str, float]]:
    """Returns the seconds of one block, and its device seconds by part; member i is on host i mod hosts."""
    row, devices, hosts = program.seconds(machine.chunk), machine.devices, machine.hosts
    working = np.arange(min(members, hosts))
    on_host = program.host_seconds * np.ceil((members - working) / hosts)
    rows = row * slowness(len(working), devices // hosts).max(axis=1)
    gathering = machine.gather_seconds * hosts if hosts > 1 else 0.0
    seconds = float((on_host + rows).max()) + gathering
    useful, in_chunks = members * program.best_seconds, members * row / machine.chunk
    return seconds, {
        "useful": useful,
        "chunk": in_chunks - useful,
        "padding": row * devices - in_chunks,
        "stragglers": (seconds - gathering - row - on_host[0]) * devices,
        "scoring on hosts": on_host[0] * devices,
        "gathering": gathering * devices,
    }


def _lifetimes(machine: Machine, generator: np.random.Generator) -> Iterator[float]:
    """Draws how long the job runs until one of its hosts dies, from each start."""
    rate = machine.deaths_per_host_hour * machine.hosts / 3600
    return (generator.exponential(1 / rate) if rate else math.inf for _ in itertools.count())


class _Clock:
    """Runs what has to end without a death in between, again if it did not, and keeps the account."""

    def __init__(self, account: Account, deaths: Iterator[float], restart_seconds: float) -> None:
        self.account, self.deaths, self.restart_seconds = account, deaths, restart_seconds
        self.left = next(deaths, math.inf)

    def run(self, seconds: float, spent: Mapping[str, float]) -> None:
        """Advances by so many seconds, and by what deaths in them cost."""
        account, before = self.account, self.account.deaths
        while self.left < seconds:
            if account.deaths - before >= MOST_DEATHS:
                raise NeverEndsError(
                    f"a block needs to end before a host dies, got {MOST_DEATHS} deaths in one of {seconds:.0f} s. "
                    "Choose a smaller chunk, fewer hosts, or fewer deaths."
                )
            lost = self.left + self.restart_seconds
            account.seconds += lost
            account.spent["deaths"] += lost * account.devices
            account.deaths += 1
            self.left = next(self.deaths, math.inf)
        self.left -= seconds
        account.seconds += seconds
        for part, device_seconds in spent.items():
            account.spent[part] += device_seconds
