"""Work that all processes share: process 0 deals it out and gets the results, the others do what it says.

Process 0 sends one order at a time, a block of items of one kind, in which each process has its share, process 0 itself
among them. The results come back in the order of the items. Nothing is exchanged between devices.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from jaxprune.hosts.channel import SLICE_SECONDS, Channel, Store
from jaxprune.hosts.encoding import with_head, without_head
from jaxprune.hosts.watching import HostsError, Watch
from jaxprune.interrupts import Interrupted, look_for_interrupts

Run = Callable[[list[Any]], Iterator[bytes]]
"""Runs plain items (as JSON gives them back) and yields the result of each in order."""

_FAILED = 2
"""Exit status after an error."""


class Hosts:
    """The processes of one job, as one of them sees it; a context that ends in good order on all of them together.

    Every process makes the same objects, which `offer` what they can run. Then process 0 does the work, and calls `map`
    where it can be shared; the others `serve`. If one process leaves the context by an exception, all end.

    Args:
      store: what all processes see.
      watch: notices failures of others.
      rank: number of this process, 0 for the leader.
      count: number of processes.
      shut_down: called at the very end, when all processes are about to leave.
    """

    def __init__(
        self,
        store: Store,
        watch: Watch,
        rank: int,
        count: int,
        *,
        shut_down: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank, self.count, self.watch = rank, count, watch
        self.num_run = 0
        self._store, self._shut_down = store, shut_down
        self._channel = Channel(store, self.look)
        self._runs: dict[str, Run] = {}
        self._listeners: dict[str, Callable[[bytes], None]] = {}
        self._saving: set[str] = set()
        self._number = self._num_exchanges = 0
        self._under_way: str | None = None
        self._open: _Block | None = None
        self._is_running_own = False
        self._signals = contextlib.ExitStack()

    @property
    def is_leader(self) -> bool:
        """Whether this process decides, and writes all files."""
        return self.rank == 0

    def __enter__(self) -> Self:
        """Starts to watch the other processes."""
        self.watch.start()
        if not self.is_leader and threading.current_thread() is threading.main_thread():
            self._signals.enter_context(self.watch.passing_signals_on())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all processes: in good order after a success, at once after a failure or an interruption."""
        self.watch.is_leaving = True
        late: BaseException | None = None
        if self.is_leader and error is None:
            try:
                self._wait_until_done()
            except (HostsError, KeyboardInterrupt) as found:
                late = found
        ending = error or late
        status = 0 if ending is None else _status(ending)
        if self.is_leader:
            if isinstance(ending, KeyboardInterrupt):
                self._let_others_save(int(getattr(ending, "signal_number", signal.SIGINT)))
            self.watch.stop(status, self._reason(ending, status))
            if self._open is not None:
                self._open.close()
        elif isinstance(ending, Interrupted):  # nothing is lost
            self.watch.pass_on(ending.signal_number)
            self.watch.wait_for_stop()
        elif status:
            self.watch.fail(_in_one_line(ending))
            self.watch.wait_for_stop()
        self.watch.finish()
        self._signals.close()
        self._shut_down()
        if late is not None:
            raise late

    def offer(
        self,
        kind: str,
        run: Run,
        *,
        listen: Callable[[bytes], None] | None = None,
        saves_itself: bool = False,
    ) -> None:
        """Says how this process runs items of a kind.

        Args:
          kind: the name by which process 0 asks for it.
          run: runs a process's share.
          listen: gets what process 0 tells about this kind.
          saves_itself: whether a run that is asked to stop, as by a signal, saves where it is and raises `Interrupted`.
            Process 0 waits for that when it is stopped; runs of other kinds end at once.
        """
        if saves_itself:
            self._saving.add(kind)
        self._runs[kind] = run
        if listen is not None:
            self._listeners[kind] = listen

    def map(
        self, kind: str, items: Sequence[Any], capacity: int, sorts: Sequence[str] | None = None
    ) -> Iterator[bytes]:
        """Runs items on all processes; for process 0.

        A call from within a share that is being run runs its items here alone.

        Args:
          kind: what they are, as all processes offer it.
          items: plain data, which JSON gives back as it is (floats too, exactly).
          capacity: number of items that one process runs well together; that many for each process are a block, which
            is lost if a process dies.
          sorts: of each item, what makes it as long as others of one sort; every process gets equally many of each. By
            default items are all of one sort.

        Yields:
          The result of each item in order, as soon as it is known.

        Raises:
          HostsError: if a process failed.
        """
        if self._is_running_own:
            yield from self._runs[kind](list(items))
            return
        size = capacity * self.count
        for first in range(0, len(items), size):
            part = list(items[first : first + size])
            owners = _dealt(sorts[first : first + size] if sorts else [""] * len(part), self.count)
            block = self._begin(kind, part, owners)
            try:
                for number in range(block.size):
                    yield block.result(number)
            finally:
                block.close()

    def tell(self, kind: str, content: bytes) -> None:
        """Gives all other processes what they need to run items of a kind; for process 0.

        Args:
          kind: what is offered with a listener.
          content: what the listeners get.
        """
        self._send({"tell": kind}, content)

    def agree(self, what: str, facts: Mapping[str, str]) -> None:
        """Compares what should be the same on all processes; all of them call it.

        Args:
          what: what is compared, for the message.
          facts: name -> value on this process.

        Raises:
          ValueError: on all processes, if something differs; names it and the processes.
          HostsError: if a process failed before it came here.
        """
        everybody = self.exchange(what, facts)
        ours = everybody[0]
        differences = [
            f"{name} is {ours.get(name, 'not there')} on {self.watch.name_of(0)}, "
            f"but {theirs.get(name, 'not there')} on {self.watch.name_of(rank)}"
            for rank, theirs in enumerate(everybody)
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if differences:
            raise ValueError(
                f"all processes of a job need the same {what}, got differences: {'; '.join(differences)}. "
                "Start all of them with the same versions, options and data."
            )

    def exchange(self, what: str, facts: Mapping[str, str]) -> list[dict[str, str]]:
        """Returns the facts of all processes, which all of them state.

        Args:
          what: what the facts are about.
          facts: name -> value on this process.
        """
        self._num_exchanges += 1
        name = f"{self._num_exchanges}-{what.replace(' ', '-')}"
        mine = {"host": self.watch.host, "facts": dict(facts)}
        self._channel.send(f"facts/{name}/{self.rank}", json.dumps(mine).encode())
        found = [json.loads(self._channel.receive(f"facts/{name}/{rank}")) for rank in range(self.count)]
        self.watch.know({rank: theirs["host"] for rank, theirs in enumerate(found)})
        return [theirs["facts"] for theirs in found]

    def serve(self) -> NoReturn:
        """Does what process 0 orders, until it needs this process no more; for the others.

        Raises:
          SystemExit: with status 0, when everything is done.
          HostsError: if a process failed.
        """
        while True:
            self._number += 1
            order, content = without_head(self._channel.receive(f"order/{self._number}"))
            if "tell" in order:
                self._listeners[order["tell"]](content)
            else:
                self._run_share(order["kind"], order["items"], order["owners"])
            self._say_done()

    def look(self) -> None:
        """Looks whether this process is to go on; for work that takes long, and while it waits.

        Raises:
          HostsError: on process 0, if another one failed.
          SystemExit: on other processes, after everything is done.
          KeyboardInterrupt: on process 0, after a signal.
        """
        self.watch.look()
        if self.is_leader:
            look_for_interrupts()

    def _say_done(self) -> None:
        """Says that nothing of the last order is left to do here."""
        self._store.set(f"done/{self._number}/{self.rank}", b"")

    def _run_share(self, kind: str, items: list[Any], owners: list[int]) -> None:
        """Runs this process's items of a block, unless process 0 drops it."""
        numbers = [number for number, owner in enumerate(owners) if owner == self.rank]
        try:
            with contextlib.closing(_as_generator(self._runs[kind]([items[i] for i in numbers]))) as results:
                for number, result in zip(numbers, results, strict=True):
                    self.num_run += 1
                    self._channel.send(f"result/{self._number}/{number}", result)
                    if self._store.get(f"dropped/{self._number}", 0) is not None:
                        return
        except Interrupted:
            self._say_done()
            raise

    def _begin(self, kind: str, items: list[Any], owners: list[int]) -> _Block:
        """Orders a block, after the one before it is complete."""
        self._send({"kind": kind, "items": items, "owners": owners}, b"")
        self._under_way = kind
        own = [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]
        self._open = _Block(self, self._number, owners, _as_generator(self._runs[kind](own)))
        return self._open

    def _send(self, order: Mapping[str, Any], content: bytes) -> None:
        """Sends an order, after everybody has done the one before it."""
        self._wait_until_done()
        self._number += 1
        self._channel.send(f"order/{self._number}", with_head(order, content))

    def _wait_until_done(self) -> None:
        """Waits until all other processes have done the last order, and removes what is left of it."""
        if self._open is not None:
            self._open.complete()
        if self._number:
            for rank in range(1, self.count):
                self._channel.wait(f"done/{self._number}/{rank}")
            self._under_way = None
            for name in ("order", "result", "done", "dropped"):
                self._store.delete(f"{name}/{self._number}")

    def _let_others_save(self, number: int) -> None:
        """Waits until the other processes have saved what they are in the middle of, if that is of such a kind."""
        if self._under_way not in self._saving:
            return
        self.watch.ask_to_save(number)
        for rank in range(1, self.count):
            while not self.watch.is_failed(rank):
                if self._store.get(f"done/{self._number}/{rank}", SLICE_SECONDS) is not None:
                    break

    def _next_own(self, own: Iterator[bytes]) -> bytes:
        """Runs the next item of this process's own share."""
        self._is_running_own = True
        try:
            self.num_run += 1
            return next(own)
        finally:
            self._is_running_own = False

    def _reason(self, error: BaseException | None, status: int) -> str:
        """Says to the others why this process, the leader, ends."""
        origin = error if isinstance(error, HostsError) else error.__cause__ if error else None
        if isinstance(origin, HostsError):
            return str(origin)
        if status != _FAILED:
            return f"{self.watch.name_of(0)} was stopped and saved everything (status {status})"
        return f"{self.watch.name_of(0)} failed: {_in_one_line(error)}"


class _Block:
    """The results of one order, each asked for once."""

    def __init__(
        self, hosts: Hosts, number: int, owners: list[int], own: Generator[bytes, None, None]
    ) -> None:
        self.size, self._owners = len(owners), owners
        self._hosts, self._number, self._own = hosts, number, own
        self._results: dict[int, bytes] = {}
        self._next = 0
        self._is_closed = False

    def result(self, number: int) -> bytes:
        """Returns the result of an item, after those before it."""
        if number not in self._results:
            self._fetch()
        return self._results.pop(number)

    def complete(self) -> None:
        """Gets all results that are left, because another block is to be ordered."""
        while self._next < self.size:
            self._fetch()
        self._release()

    def close(self) -> None:
        """Drops the results that nobody asked for."""
        if self._is_closed:
            return
        if self._next < self.size and not self._hosts.watch.is_leaving:
            self._hosts._store.set(f"dropped/{self._number}", b"")
        self._release()

    def _fetch(self) -> None:
        """Gets the next result."""
        hosts, number = self._hosts, self._next
        if self._owners[number] == hosts.rank:
            self._results[number] = hosts._next_own(self._own)
        else:
            self._results[number] = hosts._channel.take(f"result/{self._number}/{number}")
        self._next += 1

    def _release(self) -> None:
        """Ends what runs here."""
        self._is_closed = True
        self._hosts._open = None
        self._own.close()


def _dealt(sorts: Sequence[str], count: int) -> list[int]:
    """Deals items out to processes, sort by sort in turn; returns the process of each."""
    owners = [0] * len(sorts)
    for turn, number in enumerate(sorted(range(len(sorts)), key=lambda number: sorts[number])):
        owners[number] = turn % count
    return owners


def _as_generator(results: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Returns an iterator that can be closed."""
    yield from results


def _status(error: BaseException) -> int:
    """Returns the exit status of a process that leaves by an exception."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return int(getattr(error, "exit_status", 130 if isinstance(error, KeyboardInterrupt) else _FAILED))


def _in_one_line(error: BaseException | None) -> str:
    """Returns what happened, for the standard error of another process."""
    return " ".join(str(error).split()) or type(error).__name__
