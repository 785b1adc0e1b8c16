"""Processes of a job as threads of this one, with a store in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn
from unittest import mock

from jaxprune.hosts import channel
from jaxprune.hosts.sharing import Hosts
from jaxprune.hosts.watching import Watch


class MemoryStore:
    """A store of this process; counts what lies in it."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()

    def get(self, key: str, seconds: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self.values, max(seconds, 0))
            return self.values.get(key)

    def delete(self, key: str) -> None:
        with self._changed:
            for name in [name for name in self.values if name == key or name.startswith(f"{key}/")]:
                del self.values[name]

    def below(self, key: str) -> dict[str, bytes]:
        with self._changed:
            folder = f"{key}/"
            return {
                name.removeprefix(folder): value
                for name, value in self.values.items()
                if name.startswith(folder)
            }


@mock.patch.object(channel, "SLICE_SECONDS", 0.02)
def on_hosts(count: int, act: Callable[[Hosts], Any]) -> list[Any]:
    """What `act` returns, or raises, on each of so many processes; process 0 alone ends the others."""
    store = MemoryStore()
    members = [Hosts(store, Watch(store, rank, count), rank, count) for rank in range(count)]
    for hosts in members:
        hosts.watch.know({rank: f"host-{rank}" for rank in range(count)})
    found: list[Any] = [None] * count
    serving: set[int] = set()

    def serve(hosts: Hosts) -> NoReturn:
        serving.add(hosts.rank)
        Hosts.serve(hosts)

    for hosts in members:
        hosts.serve = partial(serve, hosts)  # type: ignore[method-assign]

    def run(hosts: Hosts) -> None:
        try:
            found[hosts.rank] = act(hosts)
        except BaseException as error:
            found[hosts.rank] = error

    threads = [threading.Thread(target=run, args=(hosts,), daemon=True) for hosts in members]
    for thread in threads:
        thread.start()
    threads[0].join(30)
    if not isinstance(found[0], BaseException):
        members[0]._wait_until_done()
        while any(thread.is_alive() and rank not in serving for rank, thread in enumerate(threads)):
            time.sleep(0.005)  # they may still be comparing
        for hosts in members[1:]:
            hosts.watch.is_told_to_stop = True
    deadline = time.monotonic() + 30
    for thread in threads[1:]:
        thread.join(deadline - time.monotonic())
        assert not thread.is_alive()
    return found
