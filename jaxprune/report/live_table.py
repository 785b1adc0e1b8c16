"""Shows what a running search does: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxprune.search.callbacks import Callback
from jaxprune.search.state import GenerationSummary, SearchState
from jaxprune.text import duration, shortened

if TYPE_CHECKING:
    from types import TracebackType

    from jaxprune.search.evaluation import TrialRecord
    from jaxprune.tasks.base_networks import Base

COLUMNS = ("gen", "best", "n", "new/unique", "total", "cached", "idle", "time", "left", "formula")
"""Headings of the live table; "idle" is left out where no networks are trained in rows."""

MAX_FORMULA = 100
"""Characters of a formula that a plain line shows."""

STATUS_SECONDS = 10.0
"""Least time between two plain lines on what is going on."""


class LiveTable(Callback):
    """A callback that shows one row per generation, and in a terminal what is going on right now.

    Use it as a context manager, so that the terminal is restored whatever happens. The columns: generation, the
    leader's mean +- standard error and the number n of bases behind it, candidates evaluated of the unique ones
    proposed, candidates evaluated in all, results that were known from equal plans, the share of devices' time that
    went to copies which fill rows of networks, time of the generation, estimated time left, and the leader's formula.

    Args:
      console: where to write; by default the standard output.
      is_live: whether one table is redrawn instead of writing lines; by default only if the console is a terminal.
      on_lost: called with a message when the terminal or pipe is gone; from then on nothing is shown.

    Example:
      >>> from jaxprune.search.state import GenerationSummary
      >>> with LiveTable(Console(width=200, force_terminal=False)) as table:
      ...     table.on_generation(GenerationSummary(1, 10, 7, 1.25, 0.5, "mean(X)", 10, 160, 120, 30, 10, 16, 36, 50,
      ...                                           90, 4, 8, 3, 5, 12.34, 108.0))
      gen  1/10  best +1.25 +- 0.50 (n=10)  16 new of 120 unique  36 in all  3 cached  12 s  left 1:48  mean(X)
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        is_live: bool | None = None,
        on_lost: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.console = console or Console()
        self.console.file = cast(IO[str], _Display(None if console is None else console.file, on_lost))
        is_terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.is_live = is_terminal if is_live is None else is_live
        self._rows: list[GenerationSummary] = []
        self._unit = ""
        self._bases: dict[str, int] = {}
        self._live: Live | None = None
        self._next_status = 0.0
        self._begin("")

    def __enter__(self) -> LiveTable:
        if self.is_live and self._live is None:
            self._live = Live(self, console=self.console, refresh_per_second=4)
            self._live.start()
            atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the table on the screen and restores the terminal; does nothing the second time."""
        if self._live is not None:
            live, self._live, self._status = self._live, None, ""
            live.stop()
            atexit.unregister(self.close)

    def __rich__(self) -> Group:
        """Returns the table with as many of the last rows as fit, and a line on what is going on."""
        num_rows = len(self._rows) if self._live is None else max(3, self.console.height - 8)
        table = self._table(self._rows[-num_rows:])
        if not self._status:
            return Group(table)
        status = f"{self._status} ({duration(time.monotonic() - self._started)})"
        return Group(table, Text(status, style="dim"))

    def on_start(self, state: SearchState) -> None:
        """Shows what is searched on, and the generations that a resumed run has finished.

        Args:
          state: with which the search starts.
        """
        self.__enter__()
        if self._rows and self.is_live:  # of an earlier search, when this is the random search beside it
            self.console.print(self._table(self._rows))
        self._rows = list(state.summaries)
        is_paired, num_generations = state.config.joint == "paired", state.config.generations
        self._unit = " sd" if is_paired else " %"
        tasks = ", ".join(f"{task.name} ({_count(task.bases, 'base')})" for task in state.tasks)
        predicted = "predicted " if state.config.fitness == "landscape" else ""
        meaning = (
            f"{predicted}difference to l2 in standard deviations of the library (sd)"
            if is_paired
            else f"{predicted}{state.config.joint} mean of accuracies (%)"
        )
        self.on_message(
            f"Searching on {tasks}; fitness: {meaning}, mean +- standard error over bases (n, all tasks)."
        )
        if state.summaries:
            last = state.summaries[-1].generation
            self.on_message(f"Going on after generation {last} of {num_generations}.")
        self._begin(f"generation {state.generation} of {num_generations}: preparing")

    def on_base(self, task: str, base: Base) -> None:
        """Shows that a base network is ready.

        Args:
          task: its task.
          base: the trained network.
        """
        self._bases[task] = self._bases.get(task, 0) + 1
        if self.is_live:
            count = self._bases[task]
            self._status = f"base networks of {task}: {count} ready, the last at {base.accuracy:.1f} %"
        else:
            self.on_message(f"base network {base.index} of {task}: {base.accuracy:.1f} % validation accuracy")

    def on_evaluation(self, record: TrialRecord) -> None:
        """Counts a fine-tuning, and shows it in a terminal.

        Args:
          record: of the fine-tuning.
        """
        self._num_run += not record.is_cached
        self._num_cached += record.is_cached
        self._status = (
            f"generation {record.generation}: {_count(self._num_run, 'fine-tuning')}, {self._num_cached} cached; "
            f"{record.purpose} on {record.task}, base {record.base}: {record.accuracy:.1f} %"
        )

    def on_generation(self, summary: GenerationSummary) -> None:
        """Adds the row of a generation.

        Args:
          summary: of the generation.
        """
        self._rows.append(summary)
        if not self.is_live:
            self.on_message(self._line(summary))
        number, last = summary.generation, summary.num_generations
        self._begin("" if number >= last else f"generation {number + 1} of {last}: proposing")

    def on_message(self, message: str) -> None:
        """Shows a message above the table."""
        self.console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_status(self, message: str) -> None:
        """Shows what is going on in the line under the table; without a terminal, as a plain line now and then."""
        if self.is_live:
            self._status = message
        elif time.monotonic() >= self._next_status:
            self._next_status = time.monotonic() + STATUS_SECONDS
            self.on_message(message)

    def _begin(self, status: str) -> None:
        """Starts the clock and the counts of what comes next."""
        self._status, self._started = status, time.monotonic()
        self._num_run = self._num_cached = 0
        self._bases.clear()

    def _table(self, rows: list[GenerationSummary]) -> Table:
        """Returns the rows as a table; a leader that stays the same is dimmed."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        has_rows = any(row.row_seconds for row in rows)
        for name in COLUMNS[:-1] if has_rows else [name for name in COLUMNS[:-1] if name != "idle"]:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(COLUMNS[-1], no_wrap=True, overflow="ellipsis", ratio=1)
        leader: str | None = None
        for row in rows:
            table.add_row(
                f"{row.generation}/{row.num_generations}",
                f"{row.best_mean:+.2f} ± {row.best_se:.2f}{self._unit}",
                str(row.best_bases),
                f"{row.evaluated}/{row.unique}",
                str(row.evaluated_total),
                str(row.cache_hits),
                *([_percent(row.idle_share)] if has_rows else []),
                duration(row.seconds),
                duration(row.eta_seconds) if row.eta_seconds else "",
                Text(row.best_text),  # brackets are no markup
                style="" if row.best_text != leader else "dim",
            )
            leader = row.best_text
        return table

    def _line(self, row: GenerationSummary) -> str:
        """Returns the row of a generation as a plain line."""
        generation = f"{row.generation}/{row.num_generations}"
        parts = [
            f"gen {generation:>5}",
            f"best {row.best_mean:+.2f} +- {row.best_se:.2f}{self._unit} (n={row.best_bases})",
            f"{row.evaluated} new of {row.unique} unique",
            f"{row.evaluated_total} in all",
            f"{row.cache_hits} cached",
            f"{_percent(row.idle_share)} idle" if row.row_seconds else "",
            duration(row.seconds),
            f"left {duration(row.eta_seconds)}" if row.eta_seconds else "",
            shortened(row.best_text, MAX_FORMULA),
        ]
        return "  ".join(part for part in parts if part)


class _Display:
    """A text file that takes everything, also when its terminal or pipe is gone or cannot show a character.

    Args:
      file: where to write; None for the standard output.
      on_lost: called with a message when the file is gone.
    """

    def __init__(self, file: IO[str] | None, on_lost: Callable[[str], None]) -> None:
        self._file, self._on_lost, self._is_lost = file, on_lost, False

    def write(self, text: str) -> int:
        """Writes the text; characters that the file cannot show become question marks."""

        def write(file: IO[str]) -> None:
            try:
                file.write(text)
            except UnicodeEncodeError as error:
                file.write(text.encode(error.encoding, "replace").decode(error.encoding))

        self._try(write)
        return len(text)

    def flush(self) -> None:
        """Flushes the file."""
        self._try(lambda file: file.flush())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._target, name)

    @property
    def _target(self) -> IO[str] | None:
        """The file; never the one by which rich catches what others print."""
        file = sys.stdout if self._file is None else self._file
        return cast(IO[str] | None, getattr(file, "rich_proxied_file", file))

    def _try(self, act: Callable[[IO[str]], object]) -> None:
        """Does something with the file unless it is gone."""
        target = self._target
        if self._is_lost or target is None:  # Python has no standard output if it was closed from the start
            return
        try:
            act(target)
        except OSError as error:
            self._is_lost = True
            if target is sys.__stdout__:
                _discard_output()
            self._on_lost(
                f"nothing is shown any more, because the output is gone ({error.strerror}); the run goes on"
            )


def _discard_output() -> None:
    """Sends to nowhere what is still written to the standard output, and to the standard error if it goes there too."""
    with contextlib.suppress(OSError):
        lost = os.fstat(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            if os.path.samestat(os.fstat(descriptor), lost):
                os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _count(number: int, noun: str) -> str:
    """Returns a number with its noun, in the plural where it is not 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _percent(share: float | None) -> str:
    """Returns a share in percent; "" for none."""
    return "" if share is None else f"{share:.0%}"
