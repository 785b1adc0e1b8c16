"""What processes compare before they start: their settings, and that they see one run directory."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from jaxprune.files import explained
from jaxprune.hosts.sharing import Hosts

FOLDER_SECONDS = 10.0
"""How long a file of one process may take to be seen by the others, on a mounted bucket for instance."""


def facts_of(document: str) -> dict[str, str]:
    """Returns the single values of a JSON document, for `Hosts.agree`.

    Args:
      document: JSON text of nested objects.

    Returns:
      Dotted name -> value as text.

    Example:
      >>> facts_of('{"config": {"seed": 0}, "guesses": []}')
      {'config.seed': '0', 'guesses': '[]'}
    """
    return dict(_leaves(json.loads(document), ""))


def check_one_folder(
    hosts: Hosts, folder: Path, *, option: str = "--run-dir", seconds: float = FOLDER_SECONDS
) -> None:
    """Checks that a folder is the same on all processes; all of them call it.

    Process 0 writes a file there for a moment. A resumed job needs it, because any host can be process 0 then.

    Args:
      hosts: the processes.
      folder: where this process sees it; created by process 0.
      option: names it on the command line.
      seconds: how long a file may take to be seen.

    Raises:
      ValueError: on all processes, if some do not see the file; names them.
      RunDirectoryError: on process 0, if it cannot write.
    """
    name = f".seen-by-all-{uuid4().hex}" if hosts.is_leader else ""
    if hosts.is_leader:
        with explained(f"write in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    try:
        name = hosts.exchange("file in the folder", {"name": name})[0]["name"]
        is_seen = comes_into_sight(folder / name, seconds)
        seen = hosts.exchange("folder seen", {"seen": str(is_seen), "path": str(folder.resolve())})
    finally:
        if hosts.is_leader:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    blind = [
        f"{hosts.watch.name_of(rank)} sees another folder at {facts['path']}"
        for rank, facts in enumerate(seen)
        if facts["seen"] != "True"
    ]
    if blind:
        raise ValueError(
            f"the folder of results needs to be one for all processes, got {seen[0]['path']} on "
            f"{hosts.watch.name_of(0)}, but {'; '.join(blind)}. Name a folder on a shared disk or a mounted bucket: "
            f"{option}."
        )


def comes_into_sight(path: Path, seconds: float = FOLDER_SECONDS) -> bool:
    """Waits until a file of another process is seen here; returns whether it came.

    Args:
      path: the file.
      seconds: how long to wait.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _leaves(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Yields the values in nested dictionaries with their dotted names."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value)
