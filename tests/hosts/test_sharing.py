"""Work dealt out to processes, here threads: order, exactness, ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from threads_as_hosts import on_hosts
from toy_problem import SMALL, ToyLandscapeProblem, ToyProblem

from jaxprune.hosts.sharing import Hosts
from jaxprune.hosts.watching import HostsError
from jaxprune.search.evaluation import evaluate
from jaxprune.search.led_problem import LedProblem
from jaxprune.search.problem import BatchProblem, IdentifiedProblem, LandscapeProblem, StructuredProblem
from jaxprune.search.proposals import propose
from jaxprune.search.search import init_search
from jaxprune.search.update import tell


def squares(hosts: Hosts, items: list[Any]) -> Iterator[bytes]:
    """The square of each number and who computed it."""
    for item in items:
        yield f"{item * item} by {hosts.rank}".encode()


@pytest.mark.parametrize(("count", "capacity"), [(1, 3), (2, 1), (3, 2)])
def test_results_come_in_order_and_nothing_stays_in_the_store(count: int, capacity: int) -> None:
    stores = []

    def act(hosts: Hosts) -> list[bytes] | None:
        hosts.offer("squares", lambda items: squares(hosts, items))
        if not hosts.is_leader:
            hosts.serve()
        stores.append(hosts._store)
        return [*hosts.map("squares", range(7), capacity), *hosts.map("squares", [], capacity)]

    found, *others = on_hosts(count, act)
    block = count * capacity
    assert found == [f"{i * i} by {i % block % count}".encode() for i in range(7)]
    assert [type(error) for error in others] == [SystemExit] * (count - 1)
    assert stores[0].values == {}


def test_every_process_gets_equally_many_of_each_sort() -> None:
    def act(hosts: Hosts) -> list[bytes] | None:
        hosts.offer("squares", lambda items: squares(hosts, items))
        if not hosts.is_leader:
            hosts.serve()
        return list(hosts.map("squares", range(8), 4, ["short", "long"] * 4))

    found = on_hosts(2, act)[0]
    # In turn by sort, or all that are long would be with one process.
    owners = [0, 0, 1, 1, 0, 0, 1, 1]
    assert found == [f"{i * i} by {owner}".encode() for i, owner in enumerate(owners)]


def test_a_block_that_is_given_up_is_dropped_and_the_next_one_is_right() -> None:
    def act(hosts: Hosts) -> list[bytes] | None:
        hosts.offer("squares", lambda items: squares(hosts, items))
        if not hosts.is_leader:
            hosts.serve()
        given_up = hosts.map("squares", range(10), 5)
        next(given_up)
        given_up.close()
        return list(hosts.map("squares", [3, 4], 5))

    assert on_hosts(2, act)[0] == [b"9 by 0", b"16 by 1"]


def test_two_kinds_of_work_may_be_taken_by_turns() -> None:
    def act(hosts: Hosts) -> list[tuple[bytes, bytes]] | None:
        for kind in ("first", "second"):
            hosts.offer(kind, lambda items: squares(hosts, items))
        if not hosts.is_leader:
            hosts.serve()
        first, second = hosts.map("first", [1, 2, 3], 2), hosts.map("second", [4, 5, 6], 2)
        return list(zip(first, second, strict=True))

    assert on_hosts(2, act)[0] == [
        (b"1 by 0", b"16 by 0"), (b"4 by 1", b"25 by 1"), (b"9 by 0", b"36 by 0"),
    ]  # fmt: skip


def test_work_that_needs_work_runs_it_where_it_is() -> None:
    def act(hosts: Hosts) -> list[bytes] | None:
        hosts.offer("inner", lambda items: squares(hosts, items))
        hosts.offer(
            "outer", lambda items: hosts.map("inner", items, 1) if hosts.is_leader else squares(hosts, items)
        )
        if not hosts.is_leader:
            hosts.serve()
        return list(hosts.map("outer", [1, 2], 1))

    assert on_hosts(2, act)[0] == [b"1 by 0", b"4 by 1"]


def test_what_is_told_is_there_before_the_work_that_needs_it() -> None:
    def act(hosts: Hosts) -> list[bytes] | None:
        told = [b"zero"]
        hosts.offer(
            "say", lambda items: iter(told * len(items)), listen=lambda content: told.__setitem__(0, content)
        )
        if not hosts.is_leader:
            hosts.serve()
        hosts.tell("say", b"one")
        return list(hosts.map("say", [0, 0], 1))

    assert on_hosts(2, act)[0] == [b"zero", b"one"]


def test_what_differs_is_named_on_all_processes() -> None:
    def act(hosts: Hosts) -> None:
        hosts.agree("versions", {"jax": "1"})
        hosts.agree(
            "settings", {"seed": str(hosts.rank), "same": "a", **({"extra": "b"} if hosts.rank else {})}
        )

    found = on_hosts(2, act)
    assert {str(error) for error in found} == {str(found[0])}
    host = socket.gethostname()
    assert str(found[0]).endswith(
        f"need the same settings, got differences: extra is not there on process 0 on {host}, but b on process 1 on "
        f"{host}; seed is 0 on process 0 on {host}, but 1 on process 1 on {host}. "
        "Start all of them with the same versions, options and data."
    )


def test_the_failure_of_a_process_reaches_process_0_where_it_waits() -> None:
    def act(hosts: Hosts) -> None:
        if hosts.rank == 1:
            hosts.watch.fail("no data here")
            return
        while not hosts.watch._failures:
            hosts.watch.beat()
        hosts._channel.receive("result/1/1")

    error = on_hosts(2, act)[0]
    assert isinstance(error, HostsError) and str(error) == "process 1 on host-1 failed: no data here"


def test_a_led_problem_has_the_outcomes_of_the_problem_and_is_what_it_is() -> None:
    def searched(problem: ToyProblem | LedProblem) -> Any:
        state = init_search(problem, SMALL)
        for _ in range(2):
            state = tell(state, evaluate(state, propose(state).proposals))
        return state.results

    problems = [ToyProblem(), ToyProblem()]

    def act(hosts: Hosts) -> Any:
        led = LedProblem(problems[hosts.rank], hosts)
        if not hosts.is_leader:
            hosts.serve()
        assert isinstance(led, BatchProblem) and not isinstance(led, LandscapeProblem)
        led_landscape = LedProblem(ToyLandscapeProblem(), hosts)
        assert isinstance(led_landscape, LandscapeProblem)
        assert not isinstance(led_landscape, StructuredProblem | IdentifiedProblem)
        hosts.offer("trials", led._shared._run_share)
        return searched(led)

    assert on_hosts(2, act)[0] == searched(ToyProblem())
    assert all(problem.ran for problem in problems)
