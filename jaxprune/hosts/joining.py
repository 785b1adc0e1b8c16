"""Finds out whether this process is one of several of a job, and joins them through JAX's distributed runtime."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import jax
from jax._src import cloud_tpu_init, clusters, distributed

from jaxprune._version import __version__
from jaxprune.hosts.channel import JaxStore
from jaxprune.hosts.roll_call import answer_roll, call_roll
from jaxprune.hosts.sharing import Hosts
from jaxprune.hosts.watching import EXIT_LOST, HEARTBEAT_SECONDS, Watch, delay_aborts, say

JOIN_SECONDS = 60
"""How long a process waits for the others at the start, by default."""

_LARGEST_PORT = 65_535
_SHUTDOWN_SECONDS = 10
_SLOWER = 3
"""JAX's own heartbeat is slower than ours by this factor, so that our line comes first."""


@dataclass(frozen=True)
class Group:
    """The processes of a job.

    Args:
      coordinator: HOST:PORT where process 0 listens.
      count: number of processes.
      rank: number of this process.
      local_devices: the devices of this host that are this process's; None for all.

    Raises:
      ValueError: if the address has no port, or the port or a number is out of range.
    """

    coordinator: str
    count: int
    rank: int
    local_devices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) <= _LARGEST_PORT:
            raise ValueError(
                f"the coordinator needs to be HOST:PORT of process 0, with a port from 1 to {_LARGEST_PORT}, got "
                f"{self.coordinator!r} (--coordinator)."
            )
        if self.count < 1:
            raise ValueError(f"a job needs 1 process or more, got {self.count} (--num-processes).")
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"the number of a process needs to be from 0 to {self.count - 1}, because there are {self.count} "
                f"(--num-processes), got {self.rank} (--process-id)."
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator.

        Example:
          >>> Group("[::1]:1234", 2, 0).address
          ('::1', 1234)
        """
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_group(
    is_asked: bool | None = None,
    *,
    coordinator: str | None = None,
    count: int | None = None,
    rank: int | None = None,
    seconds: int = JOIN_SECONDS,
) -> Group | None:
    """Returns the job that this process is one of, None if it is alone.

    What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and then from what JAX
    detects: a TPU slice, a Slurm or Open MPI job, an indexed Kubernetes job.

    Args:
      is_asked: True if something must say which process of which job this is, be it the only one; False if this one is
        alone, whatever says otherwise; None to see for oneself.
      coordinator: HOST:PORT where process 0 listens.
      count: number of processes.
      rank: number of this process.
      seconds: how long to wait for the name of process 0 to become known.

    Raises:
      ValueError: if something is missing or wrong.

    Example:
      >>> find_group(False, coordinator="10.0.0.1:1234", count=2, rank=0) is None
      True
      >>> find_group(coordinator="10.0.0.1:1234", count=2, rank=1)
      Group(coordinator='10.0.0.1:1234', count=2, rank=1, local_devices=None)
    """
    if is_asked is False:
        return None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    rank = _number("JAX_PROCESS_ID") if rank is None else rank
    given = (coordinator, count, rank)
    devices: tuple[int, ...] | None = None
    if None in given and (_is_cluster() or is_asked or given != (None, None, None)):
        coordinator, count, rank, devices = _detected(coordinator, count, rank, seconds)
    if (coordinator, count, rank) == (None, None, None) and not is_asked:
        return None
    if coordinator is None or count is None or rank is None:
        names = {"--coordinator": coordinator, "--num-processes": count, "--process-id": rank}
        missing = ", ".join(name for name, value in names.items() if value is None)
        raise ValueError(
            f"several processes need {missing}, and JAX detects no TPU slice, Slurm, Open MPI or Kubernetes job that "
            "says it. Give --coordinator HOST:PORT --num-processes N --process-id I (or JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID) to each, or --no-distributed for one process."
        )
    group = Group(coordinator, count, rank, devices)
    return group if count > 1 else None


@contextlib.contextmanager
def joined(
    group: Group,
    *,
    seconds: int = JOIN_SECONDS,
    heartbeat: int = HEARTBEAT_SECONDS,
    is_spanned: bool = False,
) -> Iterator[Hosts]:
    """Joins the other processes, before the first use of JAX, and compares versions and devices.

    Args:
      group: the job.
      seconds: how long to wait for the others.
      heartbeat: seconds of silence after which a process is dead, and the others end.
      is_spanned: whether a computation will span devices of several processes, as `train_network` on all devices does.
        No shared search or transfer does.

    Yields:
      The processes. When the context ends, it ends for all of them.

    Raises:
      ValueError: if JAX was used before, or processes differ; says what to do.
      AbsentError: if process 0 cannot be reached, its port is in use, or others do not come.
    """
    if not is_spanned:
        # On CPUs, what JAX takes for several processes adds in another order, also among the devices of one.
        jax.config.update("jax_cpu_collectives_implementation", None)
    delay_aborts()
    _connect(group, seconds, heartbeat)
    store = JaxStore(distributed.global_state.client, lambda: watch.lost(0))
    watch = Watch(
        store,
        group.rank,
        group.count,
        heartbeat=heartbeat,
        is_leader_there=lambda: group.rank == 0 or _somebody_answers(group.address),
        leave=_shut_down,
    )
    with Hosts(store, watch, group.rank, group.count, shut_down=_shut_down) as hosts:
        hosts.agree("versions and devices", _machine())
        yield hosts


def _connect(group: Group, seconds: int, heartbeat: int) -> None:
    """Starts JAX's distributed runtime; ends the process if the others do not come in time."""
    if group.rank:
        answer_roll(group.address, group.rank, group.count, seconds)
    else:
        call_roll(group.address[1], group.count, seconds)
    message = (
        f"process {group.rank} of {group.count} waited {seconds} s (--join-timeout) at {group.coordinator}: all "
        f"{group.count} processes came, but JAX's runtime does not join them. Start all of them again."
    )

    def give_up() -> None:  # JAX would abort the process
        say(message)
        os._exit(EXIT_LOST)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    # JAX's handler of signals would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.count,
            group.rank,
            local_device_ids=group.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=2 * seconds + 60,
            heartbeat_timeout_seconds=_SLOWER * heartbeat,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise ValueError(
            f"process {group.rank} needs to join the others at {group.coordinator} before the first use of JAX, got: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    finally:
        timer.cancel()


def _somebody_answers(address: tuple[str, int]) -> bool:
    """Whether a connection can be made."""
    try:
        socket.create_connection(address, timeout=HEARTBEAT_SECONDS / 2).close()
    except OSError:
        return False
    return True


def _shut_down() -> None:
    """Ends JAX's distributed runtime together with the other processes."""
    with contextlib.suppress(RuntimeError):  # one of them was faster
        jax.distributed.shutdown()


def _machine() -> dict[str, str]:
    """What has to be the same on all processes, so that it does not matter which of them does what."""
    devices = jax.local_devices()
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {
        "jaxprune": __version__,
        "python": platform.python_version(),
        **packages,
        "kind of device": devices[0].device_kind,
        "number of devices": str(len(devices)),
    }


def _number(name: str) -> int | None:
    """Reads a number from the environment."""
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise ValueError(f"{name} needs a whole number, got {text!r}.")
    return None if text is None else int(text)


def _is_cluster() -> bool:
    """Whether something says that this process was started as one of several, without asking a network."""
    sizes = (_number("SLURM_NTASKS"), _number("OMPI_COMM_WORLD_SIZE"))
    return (
        any(size is not None and size > 1 for size in sizes)
        or "JOB_COMPLETION_INDEX" in os.environ  # of an indexed Kubernetes job
        or cloud_tpu_init.running_in_cloud_tpu_vm
    )


def _detected(
    coordinator: str | None, count: int | None, rank: int | None, seconds: int
) -> tuple[str | None, int | None, int | None, tuple[int, ...] | None]:
    """Returns what JAX detects in the place of what is missing."""
    try:
        coordinator, count, rank, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, count, rank, None, None, seconds
        )
    except Exception as error:  # of whatever service JAX asks
        raise ValueError(
            f"JAX could not find out whether this is one of several processes ({error}). Say it: --no-distributed, or "
            "--coordinator HOST:PORT --num-processes N --process-id I."
        ) from error
    # JAX gives each process of Slurm and Open MPI one device, which leaves devices idle with one process for each host.
    num_hosts = _number("SLURM_STEP_NUM_NODES")
    is_alone = _number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1 or (num_hosts is not None and num_hosts == count)
    return coordinator, count, rank, None if devices is None or is_alone else tuple(devices)
