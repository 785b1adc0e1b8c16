"""The journal of a run: an append-only file with one JSON object per line, each on the disk before the run goes on.

Each line ends with a checksum of itself and of the line before, so that a line that was changed, removed or moved is
noticed. Times are left out of it, so that two runs with the same seed have the same checksums.

A resumed run starts from the last checkpoint, which stores how many lines came before it. The lines after these belong
to the generation that was interrupted. Their results are used instead of running the fine-tunings again, and the lines
are recognised instead of written again, so that the file ends up as if nothing had happened.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxprune.files import CHECK, RunDirectoryError, append_whole, checksum, explained, parse_json, to_text
from jaxprune.search.problem import Outcome, TrialKey

TIMES = ("seconds", "eta_seconds")
"""The fields that differ between two runs with the same seed."""

_TEXTS, _NUMBERS = ("task", "pool", "digest"), ("base", "repeat", "accuracy")
"""The fields of a fine-tuning that a resumed run needs."""


def without_times(plain: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a journal line without its times, comparable between runs.

    Example:
      >>> without_times({"accuracy": 80.0, "seconds": 1.5})
      {'accuracy': 80.0}
    """
    return {name: value for name, value in plain.items() if name not in TIMES}


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a journal as plain data, without checksums; an incomplete last line is left out.

    Raises:
      RunDirectoryError: if a complete line is damaged or was changed.
    """
    with explained(f"read {path}"), path.open("rb") as file:
        for plain, _ in _checked_lines(path, file):
            yield plain


class Journal:
    """An open journal: appends lines, and recognises those that an interrupted run wrote after its last checkpoint."""

    def __init__(
        self, path: Path, num_checkpointed: int, notice: Callable[[str], None], check: str | None = None
    ) -> None:
        """Opens or creates the journal, and drops an incomplete last line.

        Args:
          path: the file.
          num_checkpointed: number of lines up to the last checkpoint.
          notice: called with a message about each repair.
          check: checksum of the last of these lines, as the checkpoint stores it; None if it stores none.

        Raises:
          RunDirectoryError: if the file cannot be opened, is damaged, is shorter than the checkpoint says, or belongs
            to another checkpoint.
        """
        self.path = path
        self._notice = notice
        with explained(f"open {path}"):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            lines = self._checked_and_repaired(num_checkpointed, check)
        except RunDirectoryError:
            self.close()
            raise
        self.num_lines = num_checkpointed
        self.check = lines[num_checkpointed - 1][1] if num_checkpointed else ""
        self._pending = deque(lines[num_checkpointed:])
        self._recorded = {
            (line["task"], line["pool"], line["base"], line["repeat"], line["digest"]): Outcome(
                line["accuracy"], line.get("seconds", 0.0)
            )
            for line, _ in lines
            if line["kind"] == "trial"
        }

    def recorded_outcomes(self) -> dict[TrialKey, Outcome]:
        """Returns the outcomes of all fine-tunings in the journal when it was opened, also after the checkpoint."""
        return self._recorded

    def next_generation(self) -> dict[str, Any] | None:
        """Returns the first line about a complete generation after the checkpoint, if there is one."""
        return next((line for line, _ in self._pending if line["kind"] == "generation"), None)

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
            if _without_limits(self._pending[0][0]) == _without_limits(plain):
                self.check = self._pending.popleft()[1]
                self.num_lines += 1
                return False
            self._discard_pending()
        check = checksum(without_times(plain), self.check)
        append_whole(self._descriptor, to_text({**plain, CHECK: check}).encode() + b"\n", self.path)
        self.num_lines += 1
        self.check = check
        return True

    def close(self) -> None:
        """Closes the file, whose lines are all on the disk already."""
        os.close(self._descriptor)

    def _checked_and_repaired(
        self, num_checkpointed: int, check: str | None
    ) -> list[tuple[dict[str, Any], str]]:
        """Returns all lines and their checksums; a journal that is not refused ends with a whole line then."""
        with explained(f"read {self.path}"):
            content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        rest = content[end:]
        lacks_newline = _is_object(rest)  # an editor or a copy has removed it
        whole = content + b"\n" if lacks_newline else content[:end]
        lines = list(_checked_lines(self.path, io.BytesIO(whole)))
        _refuse_other_checkpoint(self.path, lines, num_checkpointed, check)
        if lacks_newline:
            append_whole(self._descriptor, b"\n", self.path)
        elif rest:
            self._drop(rest, len(lines) + 1)
        return lines

    def _drop(self, rest: bytes, number: int) -> None:
        """Cuts off what follows the last newline, because a kill or power cut interrupted that write.

        Raises:
          RunDirectoryError: if it cannot be the beginning of a line, so that something else happened to the file.
        """
        if not rest.startswith(b"{") and rest.strip(b"\0"):
            raise _damaged(self.path, number, "it is not the beginning of a line")
        with explained(f"shorten {self.path}"):
            os.truncate(self.path, self.path.stat().st_size - len(rest))
        self._notice(
            f"the last line of {self.path.name} was incomplete ({len(rest)} bytes of an interrupted "
            "write) and was dropped; what it held is run again"
        )

    def _discard_pending(self) -> None:
        """Moves the pending lines to another file, because the generation did not repeat as they say."""
        beside = self.path.with_name("journal.discarded.jsonl")
        with explained(f"write {beside}"), beside.open("ab") as file:
            for line, _ in self._pending:
                file.write(to_text(line).encode() + b"\n")
        num_bytes = 0
        with explained(f"shorten {self.path}"):
            with self.path.open("rb") as file:
                for _ in range(self.num_lines):
                    num_bytes += len(file.readline())
            os.truncate(self.path, num_bytes)
        self._notice(
            f"the interrupted generation did not repeat as recorded (another machine, version or limit?): its "
            f"{len(self._pending)} remaining journal lines are now in {beside.name}, and the results in them are used "
            "where they are needed"
        )
        self._pending.clear()


def _without_limits(plain: dict[str, Any]) -> dict[str, Any]:
    """The content of a line without its times, and without the limits that a resumed run may change."""
    limits = ("num_generations", "max_evaluations")
    return {name: value for name, value in without_times(plain).items() if name not in limits}


def _checked_lines(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every complete line without its checksum, and the checksum ("" for a line of an older version)."""
    before = ""
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            plain, before = _checked(line, before)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
        yield plain, before


def _checked(line: bytes, before: str) -> tuple[dict[str, Any], str]:
    """Reads a line and compares its checksum, given that of the line before.

    Raises:
      ValueError: if it is no journal line, or not the one that was written.
    """
    plain = parse_json(line)
    if not isinstance(plain, dict) or not isinstance(plain.get("kind"), str):
        raise ValueError("it is no object with a kind")
    check = plain.pop(CHECK, "")
    if (check or before) and check != checksum(without_times(plain), before):
        raise ValueError("its checksum differs: it was changed, or the line before it is another")
    if plain["kind"] == "trial":
        wrong = [name for name in _TEXTS if not isinstance(plain.get(name), str)]
        wrong += [name for name in _NUMBERS if not isinstance(plain.get(name), int | float)]
        wrong += [name for name in TIMES if not isinstance(plain.get(name, 0.0), int | float)]
        if wrong:
            raise ValueError(f"it needs other values of {', '.join(wrong)}")
        Outcome(plain["accuracy"])
    return plain, check


def _damaged(path: Path, number: int, reason: str) -> RunDirectoryError:
    """The error for a line that cannot be used."""
    return RunDirectoryError(
        f"line {number} of {path} needs to be a JSON object, but it is damaged ({reason}). "
        "Restore the file from a backup; or cut it off before this line, delete state.json and resume the run: what "
        "is missing then is run again."
    )


def _refuse_other_checkpoint(
    path: Path, lines: list[tuple[dict[str, Any], str]], num_checkpointed: int, check: str | None
) -> None:
    """Raises an error if the journal is not the one that the checkpoint was made from."""
    remedy = (
        "Restore both from one backup, or delete state.json and resume the run: the state is then built again from "
        "the journal, and what is missing there is run again."
    )
    if len(lines) < num_checkpointed:
        raise RunDirectoryError(
            f"{path} needs at least the {num_checkpointed} lines that state.json accounts for, got {len(lines)}. "
            f"{remedy}"
        )
    if check is not None and num_checkpointed and lines[num_checkpointed - 1][1] != check:
        raise RunDirectoryError(
            f"{path} needs to be the journal that state.json was made from, but line {num_checkpointed} of it is "
            f"another. {remedy}"
        )


def _is_object(text: bytes) -> bool:
    """Tells whether a text is a whole JSON object."""
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False
