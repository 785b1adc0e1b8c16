"""Beats and their absence."""

from __future__ import annotations

import signal
import threading

import pytest
from threads_as_hosts import MemoryStore

from jaxprune.hosts.watching import HEARTBEAT_SECONDS, Watch
from jaxprune.interrupts import Interrupts


def watches(count: int) -> list[Watch]:
    store = MemoryStore()
    return [Watch(store, rank, count, end=lambda status: None) for rank in range(count)]


def test_a_process_is_dead_after_a_heartbeat_of_silence(capsys: pytest.CaptureFixture[str]) -> None:
    leader, worker = watches(2)
    for _ in range(2 * HEARTBEAT_SECONDS):
        worker.beat()
        leader.beat()
    with pytest.raises(SystemExit, match="75"):
        for _ in range(HEARTBEAT_SECONDS + 1):
            leader.beat()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{leader.name_of(1)} died. Start all processes again with --resume (resume=True): at most one block of "
        "fine-tunings is run again."
    )


def test_a_process_that_failed_is_not_called_dead() -> None:
    leader, worker = watches(2)
    worker.beat()
    worker.fail("a reason")
    for _ in range(2 * HEARTBEAT_SECONDS):
        leader.beat()
    with pytest.raises(Exception, match=r"process 1 on .* failed: a reason"):
        leader.look()


def test_a_signal_of_another_process_is_a_request_and_the_own_one_still_the_first() -> None:
    leader, _ = watches(2)
    leader.store.set("state/signal/1", str(int(signal.SIGTERM)).encode())
    with Interrupts() as interrupts:
        leader.beat()
        assert interrupts.received == signal.SIGTERM
        leader.beat()
        signal.raise_signal(signal.SIGTERM)  # would end this process if it were the second
        assert interrupts.received == signal.SIGTERM


def test_a_request_to_save_is_a_signal_on_the_other_processes_alone() -> None:
    leader, worker = watches(2)
    leader.ask_to_save(signal.SIGTERM)
    with Interrupts() as interrupts:
        leader.beat()
        assert interrupts.received is None
        worker.beat()
        assert interrupts.received == signal.SIGTERM


def test_the_order_to_stop_ends_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    leader, done, told = watches(3)
    leader.stop(0)
    done.beat()
    with pytest.raises(SystemExit, match="0"):
        done.look()
    statuses: list[int] = []
    told.end = statuses.append
    leader.stop(143, "process 0 on here was stopped")
    told.beat()
    elsewhere = threading.Thread(
        target=told.lost, args=(0,), daemon=True
    )  # process 0 goes before this one does
    elsewhere.start()
    elsewhere.join(0.2)
    assert elsewhere.is_alive(), "the status is that of the order"
    assert statuses == [143]
    assert capsys.readouterr().err.endswith(": stopped, because process 0 on here was stopped\n")
