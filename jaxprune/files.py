"""Files that are always whole: a kill at any moment leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used: in use, of another config, of a newer format, not writable, disk full."""


@contextlib.contextmanager
def atomic_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there becomes `path` in one step at the end.

    The content is on the disk before the step. If anything fails, `path` stays as it was and the temporary file
    is removed.

    Args:
      path: the file to write; its folder must exist.
      overwrite: whether an existing file is replaced.

    Yields:
      The path to write to, in the same folder.

    Raises:
      FileExistsError: if `path` exists and `overwrite` is false.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
      >>> with atomic_file(path) as temporary:
      ...     _ = temporary.write_text("done")
      >>> path.read_text(), len(list(path.parent.iterdir()))
      ('done', 1)
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(
        OSError
    ):  # the rename outlasts a power cut where the file system lets one ask for it
        _sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file of a run directory by `text` in one step.

    Args:
      path: the file to write.
      text: the new content.

    Raises:
      RunDirectoryError: if it cannot be written; the old content is still there.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "state.json"
      >>> write_atomically(path, "{}")
      >>> path.read_text()
      '{}'
    """
    with explained(f"write {path}"), atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def to_text(data: object, *, indent: int | None = None) -> str:
    """Returns plain data as JSON text from which floats come back exactly equal.

    Args:
      data: dictionaries, lists, texts, numbers, booleans and None.
      indent: as in `json.dumps`.

    Raises:
      ValueError: if a number is infinite or NaN.

    Example:
      >>> to_text({"accuracy": 81.25})
      '{"accuracy": 81.25}'
    """
    return json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
      RunDirectoryError: if the file cannot be read, is not valid JSON or holds no object.
    """
    with explained(f"read {path}"):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunDirectoryError(
                f"{path} needs to be valid JSON, but it is damaged ({error}). Restore it from a backup, or "
                "start in another directory."
            ) from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path} needs to hold a JSON object, got a {type(data).__name__}.")
    return data


@contextlib.contextmanager
def explained(action: str) -> Iterator[None]:
    """Turns an `OSError` inside the block into a `RunDirectoryError` that says what failed and how to go on.

    Args:
      action: what is done in the block, as it follows "could not": "write state.json", say.

    Raises:
      RunDirectoryError: for any `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"could not {action}: {_advice(error)}") from error


def _sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(error: OSError) -> str:
    """The cause of an error and how to go on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "the disk is full. Everything up to the last complete line is kept: "
            "free some space and go on with resume=True (--resume)."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"it is not writable ({error.strerror}). Change its permissions or choose another run directory."
        )
    return f"{error.strerror or error}. Nothing that was written before is lost."
