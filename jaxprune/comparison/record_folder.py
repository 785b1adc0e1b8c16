"""A folder of results for one process at a time, to go on from: settings, and a file of records that only grows.

config.json        settings, and what the images and the network are
results.jsonl      append-only records, each line with a checksum of its own; a damaged line is moved aside
lock               locked while a process uses the folder
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from jaxprune.files import (
    CHECK,
    RunDirectoryError,
    append_whole,
    checksum,
    explained,
    parse_json,
    read_json,
    repair_lines,
    sealed,
    to_text,
    write_atomically,
)
from jaxprune.search.resumption import ABSENT, differences
from jaxprune.search.run_directory import lock_folder
from jaxprune.search.run_files import checked_content

_CONFIG = "config.json"
_RESULTS = "results.jsonl"
REMEDY = "Restore it from a backup, or start in another folder."
_AGAIN = "give the same command again"


class Records:
    """What is known of a folder of results, without a lock on it.

    Args:
      path: the folder.
      records: lines of its results.jsonl, without checksums.
    """

    def __init__(self, path: Path, records: Sequence[dict[str, Any]] = ()) -> None:
        self.path, self.records = path, list(records)

    def records_of(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yields the records of one kind, without their kind.

        Args:
          kind: as it was added.
        """
        for record in self.records:
            if record["record"] == kind:
                yield {name: value for name, value in record.items() if name != "record"}


class RecordFolder(Records):
    """A locked folder of results, to be used as a context manager.

    Attributes:
      path: the folder.
      records: the lines of results.jsonl, without checksums, in their order.
    """

    what = "run"
    """What the folder is of, in messages."""

    format = 1
    """The version of its files; newer versions are refused."""

    def __init__(
        self, path: Path, document: Mapping[str, Any], notice: Callable[[str], None] = lambda message: None
    ) -> None:
        """Creates the folder, or opens one of the same settings, and locks it.

        Args:
          path: the folder.
          document: plain data that who goes on has to agree with.
          notice: called with a message about each repair.

        Raises:
          RunDirectoryError: if another process uses the folder, it holds other settings or other files, it is of a
            newer version, or it cannot be written.
        """
        super().__init__(path)
        self.check(path, document)
        with explained(f"create {path}", again=_AGAIN, place="folder"):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(path)
        try:
            if not (path / _CONFIG).exists():
                text = to_text(sealed({"format": self.format, **document}), indent=2)
                write_atomically(path / _CONFIG, f"{text}\n", again=_AGAIN)
            self.records, num_damaged = repair_lines(
                path / _RESULTS, _record_in, path / "results.discarded.jsonl"
            )
        except BaseException:
            os.close(self._lock)
            raise
        if num_damaged:
            notice(
                f"{_RESULTS} had {num_damaged} damaged line(s), which are now in results.discarded.jsonl: what they "
                "held is done again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)  # releases the lock; the file stays, so that nobody locks a deleted file

    def add(self, kind: str, plain: Mapping[str, Any]) -> None:
        """Appends a line, and waits until it is on the disk.

        Args:
          kind: what the record is, "row" say.
          plain: its content.

        Raises:
          RunDirectoryError: if it cannot be written.
        """
        record = {"record": kind, **plain}
        path = self.path / _RESULTS
        with explained(f"open {path}", again=_AGAIN, place="folder"):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            append_whole(descriptor, to_text(sealed(record)).encode() + b"\n", path)
        finally:
            os.close(descriptor)
        self.records.append(record)

    @classmethod
    def check(cls, path: Path, document: Mapping[str, Any]) -> None:
        """Checks whether a folder may be used with these settings, before anything is made or changed.

        Args:
          path: the folder; it need not exist.
          document: plain data that the settings in the folder have to agree with.

        Raises:
          RunDirectoryError: if the folder holds other settings, or something else.
        """
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"a {cls.what} needs a folder, got the file {path}. Name another folder.")
        config = path / _CONFIG
        if not config.exists():
            names = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
            names = [name for name in names if name not in ("lock", "compiled")]
            if names:
                raise RunDirectoryError(
                    f"{path} needs to be a new or empty folder, or one of a {cls.what}, got one with "
                    f"{', '.join(names[:4])}{' and others' if len(names) > 4 else ''}. Name another folder."
                )
            return
        existing = checked_content(read_json(config, REMEDY), config, REMEDY)
        wanted = {"format": cls.format, **document}
        changes = [
            f"{name} was {_shown(before)} and is now {_shown(now)}"
            for name, before, now in differences(existing, parse_json(to_text(wanted)))  # type: ignore[arg-type]
            if name != "format" and not (before in (None, ABSENT) and now in (None, ABSENT))
        ]
        if changes:
            raise RunDirectoryError(
                f"{path} holds a {cls.what} with other settings: {'; '.join(changes)}. Go on with the settings it was "
                "started with, or name another folder."
            )


def _shown(value: object) -> str:
    """A setting in a message."""
    return "not set" if value in (None, ABSENT) else repr(value)


def _record_in(line: bytes) -> dict[str, Any] | None:
    """The record in a line of results.jsonl; None if it is damaged."""
    try:
        plain = parse_json(line)
        if not isinstance(plain, dict) or not isinstance(plain.get("record"), str):
            return None
        content = {name: value for name, value in plain.items() if name != CHECK}
        return content if plain.get(CHECK) == checksum(content) else None
    except ValueError:
        return None
