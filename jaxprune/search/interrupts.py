"""Handles Ctrl-C and SIGTERM as requests: the running fine-tuning ends, everything is saved, then the run stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class SearchInterrupted(KeyboardInterrupt):
    """The search was asked to stop. It has saved everything and can be resumed.

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


class Interrupts:
    """A context in which the first SIGINT or SIGTERM is only noted in `received`; the second acts as usual.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_immediate = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Marks work that may be dropped at any point: inside it, a signal raises `KeyboardInterrupt` immediately.

        Raises:
          KeyboardInterrupt: after a signal, also one that came before.
        """
        self._is_immediate = True
        try:
            if self.received is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_immediate = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Notes the signal; the next one acts as usual."""
        self.received = number
        self._restore()
        if self._is_immediate:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()
