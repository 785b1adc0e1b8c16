"""The journal of a run: an append-only file with one JSON object per line, each on the disk before the run goes on.

A resumed run starts from the last checkpoint, which stores how many lines came before it. The lines after these belong
to the generation that was interrupted. Their results are used instead of running the fine-tunings again, and the lines
are recognised instead of written again, so that the file ends up as if nothing had happened.
"""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxprune.files import RunDirectoryError, explained, to_text
from jaxprune.search.problem import Outcome, TrialKey

TIMES = ("seconds", "eta_seconds")
"""The fields that differ between two runs with the same seed."""


def without_times(plain: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a journal line without its times, comparable between runs.

    Example:
      >>> without_times({"accuracy": 80.0, "seconds": 1.5})
      {'accuracy': 80.0}
    """
    return {name: value for name, value in plain.items() if name not in TIMES}


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a journal as plain data; an incomplete last line is left out.

    Raises:
      RunDirectoryError: if a complete line is not JSON.
    """
    with explained(f"read {path}"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                plain = json.loads(line)
            except ValueError as error:
                raise RunDirectoryError(
                    f"line {number} of {path} needs to be a JSON object, but it is damaged ({error}). "
                    "Restore the file from a backup, or start in another directory."
                ) from error
            yield plain


class Journal:
    """An open journal: appends lines, and recognises those that an interrupted run wrote after its last checkpoint."""

    def __init__(self, path: Path, num_checkpointed: int, notice: Callable[[str], None]) -> None:
        """Opens or creates the journal, and drops an incomplete last line.

        Args:
          path: the file.
          num_checkpointed: number of lines up to the last checkpoint.
          notice: called with a message about each repair.

        Raises:
          RunDirectoryError: if the file cannot be opened, is damaged, or is shorter than the checkpoint says.
        """
        self.path = path
        self._notice = notice
        with explained(f"open {path}"):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        _drop_incomplete_line(path, notice)
        lines = list(read_journal(path))
        if len(lines) < num_checkpointed:
            self.close()
            raise RunDirectoryError(
                f"{path} needs at least the {num_checkpointed} lines that state.json accounts for, got "
                f"{len(lines)}. Restore it, or delete state.json to build the state again from the journal."
            )
        self._pending = deque(lines[num_checkpointed:])
        self.num_lines = num_checkpointed

    def recorded_outcomes(self) -> dict[TrialKey, Outcome]:
        """Returns the outcomes of the fine-tunings that the interrupted run finished after its last checkpoint."""
        return {
            (line["task"], line["pool"], line["base"], line["repeat"], line["digest"]): Outcome(
                line["accuracy"], line["seconds"]
            )
            for line in self._pending
            if line["kind"] == "trial"
        }

    def write(self, plain: dict[str, Any]) -> bool:
        """Appends one line and waits until it is on the disk.

        Args:
          plain: the line's content.

        Returns:
          False if the interrupted run had written this very line already, so that nothing was appended.

        Raises:
          RunDirectoryError: if the line cannot be written; the lines before it are intact.
        """
        if self._pending:
            if without_times(self._pending[0]) == without_times(plain):
                self._pending.popleft()
                self.num_lines += 1
                return False
            self._discard_pending()
        self._append(to_text(plain).encode() + b"\n")
        self.num_lines += 1
        return True

    def close(self) -> None:
        """Closes the file, whose lines are all on the disk already."""
        os.close(self._descriptor)

    def _append(self, line: bytes) -> None:
        """Appends a whole line or, if that fails, nothing."""
        size = os.fstat(self._descriptor).st_size
        with explained(f"append to {self.path}"):
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, "the line was cut short")
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise

    def _discard_pending(self) -> None:
        """Moves the pending lines to another file, because the generation did not repeat as they say."""
        beside = self.path.with_name("journal.discarded.jsonl")
        with explained(f"write {beside}"), beside.open("ab") as file:
            for line in self._pending:
                file.write(to_text(line).encode() + b"\n")
        num_bytes = 0
        with explained(f"shorten {self.path}"):
            with self.path.open("rb") as file:
                for _ in range(self.num_lines):
                    num_bytes += len(file.readline())
            os.truncate(self.path, num_bytes)
        self._notice(
            f"the interrupted generation did not repeat as recorded (another machine or version?): its "
            f"{len(self._pending)} remaining journal lines are now in {beside.name}"
        )
        self._pending.clear()


def _drop_incomplete_line(path: Path, notice: Callable[[str], None]) -> None:
    """Cuts off what follows the last newline, because a kill or power cut interrupted that write."""
    with explained(f"repair {path}"):
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(path, end)
            notice(
                f"the last line of {path.name} was incomplete ({len(content) - end} bytes of an interrupted "
                "write) and was dropped; what it held is run again"
            )
