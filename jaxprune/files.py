"""Writing so that a kill at any moment leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used: in use, of another config, of a newer format, not writable, disk full."""


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step, after the text is on the disk.

    Raises:
      RunDirectoryError: if it cannot be written; the old content is still there.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "state.json"
      >>> write_atomically(path, "{}")
      >>> path.read_text()
      '{}'
    """
    beside = path.with_name(f".{path.name}.tmp")
    with explained(f"write {path}"):
        try:
            with beside.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` outlast a power cut, where the file system lets one ask for it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def to_text(plain: object, *, indent: int | None = None) -> str:
    """Plain data as JSON text; floats come back exactly equal, and a NaN is refused.

    Example:
      >>> to_text({"accuracy": 81.25})
      '{"accuracy": 81.25}'
    """
    return json.dumps(plain, indent=indent, allow_nan=False, ensure_ascii=False)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      RunDirectoryError: if the file is not valid JSON or not an object.
    """
    with explained(f"read {path}"):
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunDirectoryError(
                f"{path} needs to be valid JSON, but it is damaged ({error}). Restore it from a backup, or "
                "start in another directory."
            ) from error
    if not isinstance(plain, dict):
        raise RunDirectoryError(f"{path} needs to hold a JSON object, got a {type(plain).__name__}.")
    return plain


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an `OSError` into a `RunDirectoryError` that says what failed and how to go on."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"could not {what}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
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
