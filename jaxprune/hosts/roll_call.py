"""Who comes to a job: before JAX's runtime starts, every process says its number to process 0, which answers all.

JAX's runtime would abort with pages of C++ text where a number comes twice, and wait in vain where one does not come.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import NamedTuple

from jaxprune.hosts.watching import AbsentError

_GO, _WRONG, _LATE = "go", "wrong", "late"
"""How answers of process 0 begin."""
_HELLO = "jaxprune"
_LONGEST_LINE = 4096
_HELLO_SECONDS = 2.0
"""How long process 0 waits for the words of somebody who has connected."""
_PAUSE_SECONDS, _SHORTEST_WAIT = 0.2, 0.01


def call_roll(port: int, count: int, seconds: float) -> None:
    """Waits at a port until each of the other processes has come once; for process 0.

    Args:
      port: where to listen; free again when this returns.
      count: number of processes.
      seconds: how long to wait.

    Raises:
      ValueError: on all processes, if one comes twice, or was started for another number of processes.
      AbsentError: on all processes that came, if others did not; on process 0, if the port is in use.
    """
    deadline = time.monotonic() + seconds
    with _listening(port) as server, contextlib.ExitStack() as connections:
        came: dict[int, _Guest] = {}
        answer = ""
        try:
            while len(came) < count - 1:
                server.settimeout(max(_SHORTEST_WAIT, deadline - time.monotonic()))
                guest = _guest(connections.enter_context(server.accept()[0]))
                if guest is not None:
                    _admit(guest, count, came)
                if len(came) == count - 1:  # who died meanwhile has to come again
                    came = {rank: other for rank, other in came.items() if not _is_gone(other.connection)}
            answer = _GO
        except TimeoutError:
            missing = ", ".join(str(rank) for rank in range(1, count) if rank not in came)
            text = (
                f"process 0 of {count} waited {seconds:g} s (--join-timeout) at port {port}: not all {count} processes "
                f"came, without {missing}. Start the others, or say how many there are: --num-processes."
            )
            answer = f"{_LATE} {text}"
            raise AbsentError(text) from None
        except ValueError as error:
            answer = f"{_WRONG} {error}"
            raise
        finally:
            for guest in came.values():
                with contextlib.suppress(OSError):  # it has gone
                    guest.connection.sendall(f"{answer}\n".encode())


def answer_roll(address: tuple[str, int], rank: int, count: int, seconds: float) -> None:
    """Says to process 0 that this process came, and waits until all have come; for the others.

    Args:
      address: where process 0 listens.
      rank: number of this process.
      count: number of processes.
      seconds: how long to wait.

    Raises:
      ValueError: if process 0 says that the processes do not fit together.
      AbsentError: if process 0 does not answer, or others did not come.
    """
    deadline = time.monotonic() + seconds
    reason = "nothing"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as connection:
                connection.sendall(f"{_HELLO} {rank} {count} {socket.gethostname()}\n".encode())
                kind, _, text = _line(connection).partition(" ")
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if kind == _GO:
                return
            _raise_answer(kind, text)
            reason = "something else listens there, or the job runs already"
        time.sleep(_PAUSE_SECONDS)
    raise AbsentError(
        f"process {rank} of {count} needs process 0 at {address[0]}:{address[1]}, got no answer within "
        f"{seconds:g} s ({reason}). Start process 0, open the port between the hosts, or correct --coordinator."
    )


class _Guest(NamedTuple):
    """A process that came to process 0."""

    rank: int
    num_processes: int
    host: str
    connection: socket.socket


def _listening(port: int) -> socket.socket:
    """Listens at the port of process 0, where JAX's runtime will listen next; it crashes if the port is in use."""
    is_dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=is_dual)
    except OSError as error:
        raise AbsentError(
            f"process 0 needs port {port} for itself, got: {os.strerror(error.errno or 0)}. End what uses it, such as "
            "another process 0, or name another port on all processes: --coordinator."
        ) from error


def _guest(connection: socket.socket) -> _Guest | None:
    """Reads who has connected; None if it is no process of a job."""
    connection.settimeout(_HELLO_SECONDS)
    try:
        hello, rank, count, host = _line(connection).split(" ", 3)
        return _Guest(int(rank), int(count), host, connection) if hello == _HELLO else None
    except (OSError, ValueError):  # it says nothing, or something else
        return None


def _admit(guest: _Guest, count: int, came: dict[int, _Guest]) -> None:
    """Notes a process that came, instead of one of its number that has gone again."""
    earlier = came.get(guest.rank)
    came[guest.rank] = guest
    if guest.num_processes != count:
        raise ValueError(
            f"all processes of a job need the same --num-processes, got {count} on process 0, but "
            f"{guest.num_processes} on process {guest.rank} on {guest.host}."
        )
    if earlier is not None and not _is_gone(earlier.connection):
        came[-1] = earlier  # is answered too
        raise ValueError(
            f"each process of a job needs a number of its own (--process-id), got {guest.rank} on {earlier.host} and "
            f"on {guest.host}."
        )


def _is_gone(connection: socket.socket) -> bool:
    """Whether the other side of a connection that has nothing more to say was closed."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_HELLO_SECONDS)


def _line(connection: socket.socket) -> str:
    """Reads a line; what is no text has no meaning."""
    with connection.makefile("rb") as file:
        return file.readline(_LONGEST_LINE).decode(errors="replace").rstrip("\n")


def _raise_answer(kind: str, text: str) -> None:
    """Raises what process 0 says that is wrong, if it says so."""
    if kind == _WRONG:
        raise ValueError(text)
    if kind == _LATE:
        raise AbsentError(text)
