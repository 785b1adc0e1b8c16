"""What a search tells its callbacks."""

from __future__ import annotations

from collections.abc import Sequence

from jaxprune.interrupts import look_for_interrupts
from jaxprune.search.evaluation import TrialRecord
from jaxprune.search.state import GenerationSummary, SearchState
from jaxprune.tasks.base_networks import warn


class Callback:
    """Receives the progress of a search. Every method does nothing; override those of interest."""

    def on_start(self, state: SearchState) -> None:
        """Called once, with the initial state or the one that a resumed run goes on from."""

    def on_evaluation(self, record: TrialRecord) -> None:
        """Called after every fine-tuning, cached ones included."""

    def on_generation(self, summary: GenerationSummary) -> None:
        """Called after every generation, when its checkpoint is on the disk."""

    def on_message(self, message: str) -> None:
        """Called with messages for the user: repairs, retries, why the search ended."""


def notify(callbacks: Sequence[object], method: str, *arguments: object) -> bool:
    """Calls a method of every callback that has it, unless the run was asked to stop.

    Args:
      callbacks: any objects.
      method: the name of the method.
      arguments: its arguments.

    Returns:
      Whether any callback has the method.

    Raises:
      KeyboardInterrupt: if a signal came while work was done that may be dropped (see `look_for_interrupts`).
    """
    look_for_interrupts()
    methods = [getattr(callback, method) for callback in callbacks if hasattr(callback, method)]
    for call in methods:
        call(*arguments)
    return bool(methods)


def notify_or_warn(callbacks: Sequence[object], message: str) -> None:
    """Tells a message to the callbacks by `on_message`, or shows it as a warning if none has that method.

    Args:
      callbacks: any objects.
      message: the message.

    Raises:
      KeyboardInterrupt: as `notify`.
    """
    if not notify(callbacks, "on_message", message):
        warn(message)
