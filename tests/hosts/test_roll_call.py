"""The roll call of a job: each process comes once, and all are told what is wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from processes import free_port

from jaxprune.hosts.roll_call import answer_roll, call_roll
from jaxprune.hosts.watching import AbsentError

HOST = socket.gethostname()


def roll(count: int, *others: tuple[int, int], seconds: float = 10) -> list[BaseException | None]:
    """What process 0 and others, with their number and count, raise."""
    port = free_port()
    found: list[Any] = [None] * (1 + len(others))

    def note(place: int, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except (ValueError, AbsentError) as error:
            found[place] = error

    threads = [threading.Thread(target=note, args=(0, call_roll, port, count, seconds))]
    for place, other in enumerate(others, 1):
        arguments = (place, answer_roll, ("127.0.0.1", port), *other, seconds)
        threads.append(threading.Thread(target=note, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return found


def test_all_go_on_when_all_came_in_any_order() -> None:
    assert roll(3, (2, 3), (1, 3)) == [None, None, None]


def test_a_number_that_comes_twice_is_named_on_all() -> None:
    found = roll(3, (1, 3), (1, 3))
    message = (
        f"each process of a job needs a number of its own (--process-id), got 1 on {HOST} and on {HOST}."
    )
    assert [(type(error), str(error)) for error in found] == [(ValueError, message)] * 3


def test_processes_that_count_otherwise_do_not_wait_for_more() -> None:
    message = (
        "all processes of a job need the same --num-processes, got 2 on process 0, but 3 on process 1 on "
        f"{HOST}."
    )
    assert [(type(error), str(error)) for error in roll(2, (1, 3))] == [(ValueError, message)] * 2


def test_who_does_not_come_is_named_on_all() -> None:
    found = roll(4, (2, 4), seconds=0.5)
    assert {type(error) for error in found} == {AbsentError}
    assert str(found[0]).endswith(
        "not all 4 processes came, without 1, 3. Start the others, or say how many there are: --num-processes."
    )


def test_a_process_that_was_started_again_takes_its_place_and_strangers_do_not_count() -> None:
    port, address = free_port(), "127.0.0.1"
    leader = threading.Thread(target=call_roll, args=(port, 3, 10))
    leader.start()
    for words in (b"GET / HTTP/1.1\n", b"", b"jaxprune 1 3 here\n"):
        while True:
            with contextlib.suppress(ConnectionRefusedError):  # it does not listen yet
                with socket.create_connection((address, port)) as stranger:
                    stranger.sendall(words)
                break
    other = threading.Thread(target=answer_roll, args=((address, port), 2, 3, 10))
    other.start()
    other.join(0.3)
    assert other.is_alive() and leader.is_alive()  # the first process 1 has died: all wait for its successor
    answer_roll((address, port), 1, 3, 10)
    for thread in (other, leader):
        thread.join(10)
        assert not thread.is_alive()


def test_process_0_needs_its_port_for_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            AbsentError, match=f"needs port {port} for itself, got: Address already in use. End what"
        ):
            call_roll(port, 2, 1)
        with pytest.raises(
            AbsentError, match=rf"needs process 0 at 127.0.0.1:{port}, got no answer within 0.5 s \("
        ):
            answer_roll(("127.0.0.1", port), 1, 2, 0.5)
