"""The options by which a command runs as one of several processes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from jaxprune.commands.output import note

if TYPE_CHECKING:
    from jaxprune.hosts.sharing import Hosts


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options.

    Args:
      parser: of the command.
    """
    group = parser.add_argument_group(
        "several processes",
        "One run on all devices of several hosts: start the same command on each. TPU slices, Slurm, Open MPI and "
        "indexed Kubernetes jobs need no option.",
    )
    group.add_argument(
        "--distributed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="be one of several processes (default: if JAX detects, or the options below name, more than one)",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens (default: $JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--num-processes", type=int, metavar="N", help="how many there are (default: $JAX_NUM_PROCESSES)"
    )
    group.add_argument(
        "--process-id",
        type=int,
        metavar="I",
        help="number of this one, from 0 (default: $JAX_PROCESS_ID); process 0 decides, writes and shows",
    )
    group.add_argument(
        "--join-timeout",
        type=int,
        default=60,
        metavar="SECONDS",
        help="how long to wait for the others at the start (default: 60)",
    )


@contextlib.contextmanager
def announced(hosts: Hosts | None) -> Iterator[None]:
    """Says on other processes than 0 for whom they work, and at the end how many networks they trained.

    Args:
      hosts: the processes, or None.
    """
    if hosts is None or hosts.is_leader:
        yield
        return
    name = hosts.watch.name_of(hosts.rank)
    note(f"{name}: works for {hosts.watch.name_of(0)}, one of {hosts.count} processes")
    try:
        yield
    finally:
        note(f"{name}: trained {hosts.num_run} networks")


def with_processes(arguments: argparse.Namespace, run: Callable[[Hosts | None], int]) -> int:
    """Runs a command alone, or as one of several processes.

    Args:
      arguments: the command line.
      run: gets the processes, None if there is only this one, and returns the exit status.

    Raises:
      ValueError: if the other processes cannot be found, or differ.
    """
    if arguments.join_timeout < 1:
        raise ValueError(f"--join-timeout needs to be at least 1 second, got {arguments.join_timeout}.")
    from jaxprune.hosts.joining import find_group, joined

    group = find_group(
        arguments.distributed,
        coordinator=arguments.coordinator,
        count=arguments.num_processes,
        rank=arguments.process_id,
        seconds=arguments.join_timeout,
    )
    if group is None:
        return run(None)
    with joined(group, seconds=arguments.join_timeout) as hosts:
        return run(hosts)
