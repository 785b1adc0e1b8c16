"""Handles Ctrl-C and SIGTERM as requests: what is running ends in good order, everything is saved, then the run stops.

While work is done that may be dropped (`Interrupts.at_once`), a signal ends it at once by a `KeyboardInterrupt`. Python
drops that exception if it was inside a callback of JAX's, a finaliser or a garbage collection at that moment. So the
signal is also noted, and `look_for_interrupts` raises the exception again at the next place where work can be left.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop. It has saved everything and can go on.

    Args:
      message: what happened and how to go on.
      signal_number: the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """The exit status that a shell expects: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number


class SearchInterrupted(Interrupted):
    """The search was asked to stop; see `Interrupted`."""


class Interrupts:
    """A context in which the first SIGINT or SIGTERM is only noted in `received`; the second acts as usual.

    The signal of a terminal that is closed is only noted in `hung_up`, because a run can go on without one.
    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Args:
      numbers: the signals; others act as usual.
    """

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers or (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self.received: int | None = None
        self.hung_up = False
        self._is_immediate = False
        self._stop: Callable[[], None] = _go_on
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in set(self.numbers) - {signal.SIGHUP}:
                if signal.getsignal(number) is None:  # not Python's handler, which could not be put back
                    continue
                self._previous_handlers[number] = signal.signal(number, self._note)
            is_usual = (
                signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
            )  # otherwise somebody chose, such as nohup
            if signal.SIGHUP in self.numbers and is_usual:
                self._previous_handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._note_hang_up)
            _contexts.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(*self._previous_handlers)
        if self in _contexts:
            _contexts.remove(self)

    @contextlib.contextmanager
    def at_once(self, stop: Callable[[], None] | None = None) -> Iterator[None]:
        """Marks work that may be dropped at any point: inside it, a signal raises `KeyboardInterrupt` immediately.

        Args:
          stop: raises an exception if the work is to end for another reason; called by `look_for_interrupts`.

        Raises:
          KeyboardInterrupt: after a signal, also one that came before.
        """
        self._is_immediate, self._stop = True, stop or _go_on
        try:
            self._raise_if_received()
            yield
            self._raise_if_received()
        finally:
            self._is_immediate, self._stop = False, _go_on

    def look_again(self) -> None:
        """Raises an exception if work is done that may be dropped, and it is to end.

        Raises:
          KeyboardInterrupt: inside `at_once`, if a signal came.
        """
        self._raise_if_received()
        self._stop()

    def request(self, number: int) -> None:
        """Notes a signal that another process got; one of this process's own is still the first."""
        if self.received is None:
            self.received = number

    def _raise_if_received(self) -> None:
        """Raises a `KeyboardInterrupt` inside `at_once` if a signal came."""
        if self._is_immediate and self.received is not None:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Notes the signal; the next one acts as usual."""
        self.received = number
        self._restore(signal.SIGINT, signal.SIGTERM)
        if self._is_immediate:
            raise KeyboardInterrupt

    def _note_hang_up(self, number: int, frame: FrameType | None) -> None:
        """Notes that the terminal was closed."""
        self.hung_up = True

    def _restore(self, *numbers: int) -> None:
        """Gives signals the handlers that they had before."""
        for number in numbers:
            if number in self._previous_handlers:
                signal.signal(number, self._previous_handlers.pop(number))


def _go_on() -> None:
    """Does nothing, where there is no other reason to stop."""


@contextlib.contextmanager
def ctrl_c_once_more() -> Iterator[None]:
    """Lets Ctrl-C act as in any Python program, and once more at the next report of progress if Python dropped it.

    Where Ctrl-C is ignored, or somebody else handles it, it does nothing.

    Raises:
      KeyboardInterrupt: after Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with Interrupts(signal.SIGINT) as interrupts, interrupts.at_once():
        yield


_contexts: list[Interrupts] = []
"""The contexts that the main thread is in."""


def look_for_interrupts() -> None:
    """Ends work that may be dropped: after a signal whose `KeyboardInterrupt` Python dropped, or after the time limit.

    `notify` and the `note` of commands call it, after each base network that is trained and at each other report of
    progress. It does nothing outside `Interrupts.at_once`, and in threads other than the main one.

    Raises:
      KeyboardInterrupt: if a signal came inside `Interrupts.at_once`; or what the `stop` of `at_once` raises.
    """
    if threading.current_thread() is threading.main_thread():
        for interrupts in _contexts:
            interrupts.look_again()


def request_stop(number: int) -> None:
    """Asks a run to stop as a signal would, from any thread, for a signal that another process of its job got.

    As a signal, it reaches the innermost context that handles it.

    Args:
      number: the signal's number.
    """
    for interrupts in reversed(tuple(_contexts)):
        if number in interrupts.numbers:
            interrupts.request(number)
            return
