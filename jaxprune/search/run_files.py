"""Reads the files of a run directory: what is damaged or was changed is found here, and refused with a way to go on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune.files import (
    RunDirectoryError,
    explained,
    parse_json,
    read_json,
    repair_lines,
    to_text,
    unsealed,
)
from jaxprune.search.problem import Problem
from jaxprune.search.serialization import state_from_json
from jaxprune.search.state import SearchState
from jaxprune.types import is_whole

FORMAT = 1
"""The format version of the journal and of the files in `REMEDIES`; newer ones are refused."""

REMEDIES = {
    "config.json": "Restore it from a backup. Limits of a run are changed by options, not in this file; as settings "
    'of a new run, use a copy without the line "check".',
    "state.json": "Restore it from a backup, or delete it and go on with resume=True (--resume): it is then built "
    "again from the journal, and nothing is run again.",
    "final.json": "Delete it and write the report again: the final comparison is then measured again.",
}
"""File -> how to go on when it is damaged."""


def read_run_file(path: Path) -> dict[str, Any]:
    """Reads one of the files in `REMEDIES`, and checks its format and checksum.

    Args:
      path: the file.

    Returns:
      The content without the checksum.

    Raises:
      RunDirectoryError: if the file cannot be read, is damaged or was changed, or is of a newer format.
    """
    remedy = REMEDIES[path.name]
    return checked_content(read_json(path, remedy), path, remedy)


def checked_content(plain: Mapping[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """Returns the content of a run's file without the checksum, after checking its format and checksum.

    Args:
      plain: the object as it was read.
      path: the file, for messages.
      remedy: how to go on if it is damaged, for messages.

    Raises:
      RunDirectoryError: if a newer version wrote the file, or it is not what jaxprune wrote.
    """
    version = plain.get("format")
    if not is_whole(version, smallest=1):
        raise RunDirectoryError(
            f"{path} needs format {FORMAT} or older, but it is damaged (its format is {version!r}). {remedy}"
        )
    if version > FORMAT:
        raise RunDirectoryError(
            f"{path} needs format {FORMAT} or older, got {version!r}, of a newer jaxprune. Upgrade jaxprune, or "
            "start in another directory."
        )
    return unsealed(plain, path, remedy)


def state_of(saved: Mapping[str, Any], problem: Problem, path: Path) -> SearchState:
    """Returns the state in the content of state.json, which may be of a version without checksums.

    Args:
      saved: the content.
      problem: the problem that the state refers to.
      path: the file, for messages.

    Raises:
      RunDirectoryError: if the content is no state.
    """
    try:
        if not is_whole(saved["journal_lines"], smallest=0):
            raise ValueError("journal_lines is no number of lines")
        state = state_from_json(saved["state"], problem)
        if sorted(state.scales) != sorted(task.name for task in state.tasks):
            raise ValueError("tasks and scales have other names")
        if not state.ranked():
            raise ValueError("no candidate has a fitness")
        for id_ in state.archive:
            state.individual(id_)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunDirectoryError(
            f"{path} needs the state of a search, but it is damaged ({error!r}). {REMEDIES[path.name]}"
        ) from error
    return state


def log_event(folder: Path, kind: str, message: str) -> None:
    """Appends an event with the current time to `events.jsonl` of a run directory, which may be in use.

    Args:
      folder: the run directory.
      kind: what happened, in one word.
      message: the details.

    Raises:
      RunDirectoryError: if the line cannot be written.
    """
    line = to_text({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, "message": message})
    path = folder / "events.jsonl"
    with explained(f"append to {path}"), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_events(path: Path) -> list[dict[str, str]]:
    """Returns the events in `events.jsonl`, without damaged lines; none if there is no such file.

    Raises:
      RunDirectoryError: if the file cannot be read.
    """
    with explained(f"read {path}"):
        lines = path.read_bytes().splitlines() if path.exists() else []
    return [event for line in lines if (event := _event_in(line)) is not None]


def repair_events(folder: Path) -> int:
    """Moves damaged lines of `events.jsonl` to `events.discarded.jsonl`, and ends its last line.

    Args:
      folder: the run directory.

    Returns:
      The number of damaged lines.

    Raises:
      RunDirectoryError: if a file cannot be read or written.
    """
    path, beside = folder / "events.jsonl", folder / "events.discarded.jsonl"
    return repair_lines(path, _event_in, beside)[1]


def _event_in(line: bytes) -> dict[str, str] | None:
    """Returns the event in a line of events.jsonl; None if the line is damaged."""
    try:
        plain = parse_json(line)
    except ValueError:
        return None
    if isinstance(plain, dict) and all(isinstance(plain.get(name), str) for name in ("event", "message")):
        return plain
    return None
