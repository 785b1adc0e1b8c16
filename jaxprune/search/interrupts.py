"""Ctrl-C and SIGTERM as a wish: the fine-tuning under way ends, everything is saved, then the run stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class SearchInterrupted(KeyboardInterrupt):
    """The search was asked to stop, has saved everything, and can be resumed.

    Args:
      message: what happened and how to go on.
      signal_number: the signal; a command line exits with `exit_status`, 128 plus its number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """What a shell expects: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is remembered; the second acts as it did before.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be dropped at any point: a signal ends it by a `KeyboardInterrupt` right there."""
        self._is_immediate = True
        try:
            if self.received is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_immediate = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if self._is_immediate:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
