"""Notices that a process died, failed or was told to stop, within seconds, on all processes.

Every process says each second in the store that it lives, and looks whether the others do. JAX's own heartbeat would
abort the others with pages of C++ text, which cannot be caught; it is set to be slower. Process 0 holds the store, so
its death is seen at once, and JAX aborts at once too: the abort is delayed for the seconds that a line of ours needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from jaxprune.interrupts import request_stop

if TYPE_CHECKING:
    from jaxprune.hosts.channel import Store

BEAT_SECONDS = 1.0
"""How often a process says that it lives."""

HEARTBEAT_SECONDS = 10
"""After so many seconds of silence a process is dead, by default."""

EXIT_LOST = 75
"""Exit status where a process died or did not come: starting all again may help."""

_AGAIN = (
    "Start all processes again with --resume (resume=True): at most one block of fine-tunings is run again."
)

_SHOW_CURSOR = "\x1b[?25h\n"
"""Ends the live table, which hides the cursor, where nobody else can."""


class AbsentError(RuntimeError):
    """Not all processes came together at the start; starting them again may help."""

    exit_status = EXIT_LOST


class HostsError(RuntimeError):
    """A process of the job failed, and the others cannot go on without it."""


class Watch:
    """Two threads: one says that this process lives and looks at the others, one guards that the first can.

    Args:
      store: what all processes see.
      rank: number of this process.
      count: number of processes.
      heartbeat: seconds of silence after which a process is dead.
      is_leader_there: whether anybody answers at the address of process 0.
      leave: called before this process ends because process 0 said so.
      end: ends the process with a status; `os._exit` but in tests.

    Attributes:
      again: says, after the death of a process, how to go on; that of a search unless it is set.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        *,
        heartbeat: int = HEARTBEAT_SECONDS,
        is_leader_there: Callable[[], bool] = lambda: True,
        leave: Callable[[], None] = lambda: None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.store, self.rank, self.count, self.leave, self.end = store, rank, count, leave, end
        self.heartbeat, self.is_leader_there = heartbeat, is_leader_there
        self.host = socket.gethostname()
        self.again = _AGAIN
        self.is_told_to_stop = False
        self.is_leaving = False
        self._names: dict[int, str] = {rank: self.host}
        self._failures: dict[int, str] = {}
        self._last: dict[int, bytes] = {}
        self._silent: dict[int, int] = {}
        self._num_beats = self._num_looks_without_beat = 0
        self._ended = threading.Event()
        self._only_one_line = threading.Lock()
        self._signals, self._noted = socket.socketpair()
        self._noted.setblocking(False)

    def start(self) -> None:
        """Starts the threads."""
        for loop in (self._beat_on, self._guard):
            threading.Thread(target=loop, daemon=True).start()

    def finish(self) -> None:
        """Ends the threads, because this process leaves in good order."""
        self._ended.set()

    def name_of(self, rank: int) -> str:
        """Returns what messages call a process.

        Args:
          rank: its number.
        """
        return f"process {rank} on {self._names[rank]}" if rank in self._names else f"process {rank}"

    def know(self, names: Mapping[int, str]) -> None:
        """Learns on which hosts processes run.

        Args:
          names: number of the process -> host.
        """
        self._names |= names

    def look(self) -> None:
        """Raises an exception if this process, waiting for others, is not to go on.

        Raises:
          HostsError: on process 0, if another one failed; says which and why.
          SystemExit: with status 0, on other processes than 0 after everything is done.
        """
        for rank, text in self._failures.items() if self.rank == 0 else ():
            raise HostsError(f"{self.name_of(rank)} failed: {text}")
        if self.is_told_to_stop:
            raise SystemExit(0)

    def is_failed(self, rank: int) -> bool:
        """Returns whether a process said that it failed.

        Args:
          rank: its number.
        """
        return rank in self._failures

    def pass_on(self, number: int) -> None:
        """Passes a signal of this process on to process 0.

        Args:
          number: of the signal.
        """
        self.store.set(f"state/signal/{self.rank}", str(number).encode())

    def ask_to_save(self, number: int) -> None:
        """Asks the other processes to save what they are in the middle of, as a signal would; for process 0.

        Args:
          number: of the signal.
        """
        self.store.set("state/save/0", str(number).encode())

    def fail(self, text: str) -> None:
        """Tells the other processes that this one failed."""
        self.store.set(f"state/failed/{self.rank}", text.encode())

    def stop(self, status: int, text: str = "") -> None:
        """Tells the other processes to end; for process 0.

        Args:
          status: their exit status.
          text: why, if it is not 0.
        """
        self.store.set("state/stop/0", json.dumps([status, text]).encode())

    def wait_for_stop(self) -> None:
        """Waits until process 0 knows that this process failed, and has told all to end."""
        while self.store.get("state/stop/0", BEAT_SECONDS) is None:
            pass

    def lost(self, rank: int, what: str = "died") -> NoReturn:
        """Ends this process, because another one is gone: nothing can be saved or told any more.

        Args:
          rank: number of the lost process.
          what: what happened to it.
        """
        if self._ended.is_set():  # this process leaves, and so does the other
            if not self.is_leaving:
                self._only_one_line.acquire()  # for ever: the thread that obeys process 0 ends the process
            raise SystemExit(EXIT_LOST)  # in a thread, that ends the thread
        self._only_one_line.acquire()  # never released: the process ends
        say(f"{self.name_of(rank)} {what}. {self.again}")
        self.end(EXIT_LOST)
        raise SystemExit(EXIT_LOST)

    @contextlib.contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """Passes SIGINT and SIGTERM of this process on to process 0, which saves everything and stops all.

        They are noticed at once, also while a long computation runs.
        """
        previous = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        descriptor = signal.set_wakeup_fd(self._noted.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def beat(self) -> None:
        """Says that this process lives, and notes the state of the others."""
        self._num_beats += 1
        self.store.set(f"state/beat/{self.rank}", f"{self._num_beats} {self.host}".encode())
        state = self.store.below("state")
        self._num_looks_without_beat = 0
        for key, value in state.items():
            kind, _, number = key.partition("/")
            rank = int(number)
            if kind == "stop" and self.rank and not self.is_leaving:
                self._obey(*json.loads(value))
            if rank == self.rank or kind == "stop":
                continue
            if kind == "failed":
                self._failures[rank] = value.decode()
            elif kind == "save" or (kind == "signal" and self.rank == 0):
                request_stop(int(value))
            elif kind == "beat":
                self._names[rank] = value.decode().partition(" ")[2]
                self._silent[rank] = 0 if value != self._last.get(rank) else self._silent[rank] + 1
                self._last[rank] = value
        # Counted in beats of this process, which may have been suspended.
        for rank, silent in self._silent.items():
            if silent * BEAT_SECONDS > self.heartbeat and rank not in self._failures:
                self.lost(rank)

    def _beat_on(self) -> None:
        """Beats until the end."""
        while not self._ended.is_set():
            self.beat()
            if select.select([self._signals], [], [], BEAT_SECONDS)[0]:
                for number in {signal.SIGINT, signal.SIGTERM} & set(self._signals.recv(64)):
                    self.pass_on(int(number))

    def _guard(self) -> None:
        """Notices that process 0 is gone, without asking the store: while JAX aborts, nothing of it answers."""
        while not self._ended.wait(BEAT_SECONDS):
            self._num_looks_without_beat += 1  # counted: this process may have been suspended
            if self._num_looks_without_beat * BEAT_SECONDS > self.heartbeat:
                self.lost(0, "cannot be reached")
            if self._num_looks_without_beat > 1 and not self.is_leader_there() and not self._ended.is_set():
                self.lost(0)

    def _obey(self, status: int, text: str) -> None:
        """Ends this process as process 0 says; after a success the main thread does so itself."""
        if status == 0:
            self.is_told_to_stop = True
            return
        self._only_one_line.acquire()
        self._ended.set()
        say(f"{self.name_of(self.rank)}: stopped, because {text}")
        self.leave()
        self.end(status)


def delay_aborts() -> None:
    """Lets an abort wait for seconds (as many as the signal's number), in which other threads go on.

    JAX's runtime aborts the process from one of its own threads when process 0 is gone. The handler is C's `sleep`
    itself, so nothing of Python runs in that thread; when it returns, the abort goes on.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _note(number: int, frame: object) -> None:
    """Handles a signal in Python's sense; the wake-up descriptor has noted it already."""


def say(line: str) -> None:
    """Writes a line on the standard error, whatever has become of it.

    Args:
      line: without its end.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
