"""A signal whose exception is lost, as in a finaliser or a callback of JAX's, is found again; threads are not left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from test_proposals import after
from toy_problem import SMALL, ToyProblem

from jaxprune.cli import main
from jaxprune.commands.output import note
from jaxprune.interrupts import Interrupts, SearchInterrupted
from jaxprune.language.expression import Expression
from jaxprune.search.callbacks import notify
from jaxprune.search.evaluation import SearchStopped, evaluate
from jaxprune.search.problem import Behaviour, Outcome, Trial
from jaxprune.search.proposals import ask
from jaxprune.search.search import evolve_problem, init_search
from jaxprune.training.trainer import map_in_order
from jaxprune.types import Invalid

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def press(number: int) -> None:
    """Sends a signal to this process, and lets Python handle it."""
    os.kill(os.getpid(), number)
    for _ in range(100):
        pass


class Finalised:
    """An object that gets a signal while it is deleted, when Python drops every exception."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        press(self.number)


class Referenced:
    """An object that weak references look at."""


def lose_in_finaliser(number: int) -> None:
    target = Finalised(number)
    del target


def lose_in_weak_reference(number: int) -> None:
    target = Referenced()
    reference = weakref.ref(target, lambda _: press(number))
    del target
    assert reference() is None


def lose_in_handler(number: int) -> None:
    with contextlib.suppress(BaseException):  # as some libraries do
        press(number)


WAYS = [lose_in_finaliser, lose_in_weak_reference, lose_in_handler]
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("lose", WAYS)
def test_a_lost_interrupt_is_raised_at_the_end(lose: Callable[[int], None], number: int) -> None:
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts, interrupts.at_once():
        lose(number)
    assert interrupts.received == number


@pytest.mark.parametrize("lose", WAYS)
def test_a_lost_interrupt_is_raised_at_the_next_report_of_progress(lose: Callable[[int], None]) -> None:
    interrupts, reached = Interrupts(), list[str]()
    with pytest.raises(KeyboardInterrupt), interrupts, interrupts.at_once():
        notify([], "on_base")
        lose(signal.SIGINT)
        reached.append("work goes on for a while")
        notify([], "on_base")  # between two base networks, with a callback or without one
        reached.append("too long")
    assert reached == ["work goes on for a while"]
    notify([], "on_base")  # the context is over


def test_outside_immediate_work_a_signal_is_only_noted() -> None:
    with Interrupts() as interrupts:
        press(signal.SIGINT)
        notify([], "on_evaluation")
        assert interrupts.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            pytest.fail("this work must not begin")


class Losing(ToyProblem):
    """Loses a signal while it scores generation 1."""

    def __init__(self, lose: Callable[[int], None]) -> None:
        super().__init__()
        self.lose, self.num_later = lose, 0

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        if self.ran:
            self.num_later += 1
            self.lose(signal.SIGINT)
        return super().behaviours(functions)


def test_a_search_stops_before_it_goes_on_with_a_lost_interrupt(tmp_path: Path) -> None:
    problem = Losing(lose_in_finaliser)
    with pytest.raises(SearchInterrupted, match=r"stopped by signal 2 after 1 complete generation"):
        evolve_problem(problem, SMALL.replace(generations=2), tmp_path)
    assert problem.num_later == 1
    assert (
        evolve_problem(ToyProblem(), SMALL.replace(generations=2), tmp_path, resume=True).state.generation
        == 3
    )


class Threaded(ToyProblem):
    """Runs its trials on threads, as the tasks do on a CPU."""

    def run_many(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        yield from map_in_order(self.run, trials, workers=2)


def test_no_thread_trains_on_after_a_search_has_stopped() -> None:
    state = after(init_search(Threaded(delay_seconds=0.002), SMALL), 1)
    threads, calls = threading.active_count(), iter([None, None, None])
    problem = state.problem
    num_before = problem.num_calls  # type: ignore[attr-defined]
    with pytest.raises(SearchStopped) as caught:
        evaluate(state, ask(state), should_stop=lambda: next(calls, "enough"))
    assert threading.active_count() == threads, caught  # while the traceback still holds all frames
    assert problem.num_calls <= num_before + 3 + 4  # type: ignore[attr-defined]  # those begun, of dozens


@pytest.mark.parametrize("lose", WAYS)
def test_every_command_finds_a_lost_ctrl_c_at_its_next_line_of_progress(
    lose: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> int:
        lose(signal.SIGINT)
        note("base network 0")
        return pytest.fail("it went on")

    monkeypatch.setattr("jaxprune.commands.list.run_list", run)
    assert main(["list", "tasks"]) == 130
    assert capsys.readouterr().err == "base network 0\nstopped.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_leaves_other_handlers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run(arguments: object) -> int:
        seen.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
        return 0

    before = [signal.SIG_IGN, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)]
    monkeypatch.setattr("jaxprune.commands.list.run_list", run)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(["list", "tasks"]) == 0
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == before
