"""Files that are always whole: a kill at any moment leaves either the old file or the new one.

Files of JSON carry a checksum of their content, so that a change by hand or a flipped bit is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

CHECK = "check"
"""The key of the checksum in the JSON objects that `sealed` returns."""

_Content = TypeVar("_Content")

_RESUME = "go on with resume=True (--resume)"


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used: in use, of another config, of a newer format, not writable, disk full."""


@contextlib.contextmanager
def atomic_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there becomes `path` in one step at the end.

    The content is on the disk before the step. If anything fails, `path` stays as it was and the temporary file
    is removed.

    Args:
      path: the file to write; its folder must exist.
      overwrite: whether an existing file is replaced. If not, a kill in the moment between taking the name and
        giving it the content leaves an empty file.

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
        if (
            not overwrite
        ):  # takes the name, which one process alone can do, also where there are no hard links
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(temporary, path)
        except OSError:
            if not overwrite:  # the name is ours, and empty
                path.unlink(missing_ok=True)
            raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(
        OSError
    ):  # the rename outlasts a power cut where the file system lets one ask for it
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder beside `path`; with what is written there it becomes `path` in one step at the end.

    If anything fails, `path` stays as it was and the new folder is removed. A folder that is replaced is moved aside
    first: a kill between the two steps leaves both under other names, beginning with a dot.

    Args:
      path: the folder to write; the folder that it is in must exist.
      overwrite: whether what is at `path` is replaced.

    Yields:
      The folder to write to.

    Raises:
      FileExistsError: if there is something at `path` and `overwrite` is false.
      OSError: if the folder cannot be written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "network"
      >>> with atomic_folder(path) as temporary:
      ...     _ = (temporary / "plan.json").write_text("{}")
      >>> [file.name for file in path.iterdir()], len(list(path.parent.iterdir()))
      (['plan.json'], 1)
    """
    if _is_there(path) and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    owner = f"{os.getpid()}-{threading.get_ident()}"
    temporary, replaced = (path.with_name(f".{path.name}.{owner}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _sync(written)
        if _is_there(path):
            path.rename(replaced)
        try:
            temporary.rename(path)
        except OSError:
            if _is_there(replaced):
                replaced.rename(path)
            raise
    finally:
        for folder in (temporary, replaced):
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        _sync(path.parent)


def write_atomically(path: Path, text: str, *, again: str = _RESUME) -> None:
    """Replaces a file of a run directory by `text` in one step.

    Args:
      path: the file to write.
      text: the new content.
      again: how to go on after an error, for the message.

    Raises:
      RunDirectoryError: if it cannot be written; the old content is still there.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "state.json"
      >>> write_atomically(path, "{}")
      >>> path.read_text()
      '{}'
    """
    with explained(f"write {path}", again=again), atomic_file(path) as temporary:
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


def checksum(plain: object, before: str = "") -> str:
    """Computes the checksum of plain data.

    Args:
      plain: dictionaries, lists, texts, numbers, booleans and None.
      before: a text that the checksum also depends on, such as the checksum of what came before.

    Returns:
      16 hexadecimal digits.

    Raises:
      ValueError: if a number is infinite or NaN.

    Example:
      >>> checksum({"accuracy": 80.0}) == checksum({"accuracy": 80.5})
      False
    """
    return hashlib.sha256((before + to_text(plain)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sealed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object with its checksum as its first entry, for `unsealed`.

    Example:
      >>> sealed({"opened": []})
      {'check': '85062b615e330f02', 'opened': []}
    """
    return {CHECK: checksum(plain), **plain}


def unsealed(plain: Mapping[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """Returns the object without its checksum; one without a checksum, of an older version, is returned as it is.

    Args:
      plain: the object as it was read.
      path: its file, for the message.
      remedy: how to go on after damage, for the message.

    Raises:
      RunDirectoryError: if the content is not what the checksum was computed for.

    Example:
      >>> unsealed(sealed({"opened": []}), Path("record.json"), "Restore it.")
      {'opened': []}
    """
    content = {name: value for name, value in plain.items() if name != CHECK}
    if CHECK in plain:
        try:
            is_intact = plain[CHECK] == checksum(content)
        except ValueError:  # an infinite number
            is_intact = False
        if not is_intact:
            raise RunDirectoryError(
                f"{path} needs the content that jaxprune wrote, but it was changed or damaged since (its checksum "
                f"differs). {remedy}"
            )
    return content


def parse_json(text: str | bytes) -> object:
    """Returns the plain data in a JSON text, which may begin with a byte-order mark if it is given as bytes.

    Raises:
      ValueError: if it is no JSON; also for numbers that are infinite or NaN, and brackets that are too deep.

    Example:
      >>> parse_json('{"opened": [1]}')
      {'opened': [1]}
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


def read_json(
    path: Path, remedy: str = "Restore it from a backup, or start in another directory."
) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
      path: the file.
      remedy: how to go on if it is damaged, for the message.

    Raises:
      RunDirectoryError: if the file cannot be read, is not valid JSON or holds no object.
    """
    with explained(f"read {path}", again="try again"):
        content = path.read_bytes()
    try:
        data = parse_json(content)
    except ValueError as error:
        raise RunDirectoryError(
            f"{path} needs to be valid JSON, but it is damaged ({error}). {remedy}"
        ) from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path} needs to hold a JSON object, got a {type(data).__name__}. {remedy}")
    return data


def append_whole(descriptor: int, line: bytes, path: Path) -> None:
    """Appends a whole line to an open file and waits until it is on the disk; if that fails, appends nothing.

    Args:
      descriptor: the file, opened for appending.
      line: the line with its newline.
      path: the file's name, for messages.

    Raises:
      RunDirectoryError: if the line cannot be written, or the file was deleted.
    """
    status = os.fstat(descriptor)
    with explained(f"append to {path}"):
        if status.st_nlink == 0:  # otherwise the line would go to a file that nobody can open
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, "the line was cut short")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, status.st_size)
            raise


def repair_lines(
    path: Path, read: Callable[[bytes], _Content | None], beside: Path
) -> tuple[list[_Content], int]:
    r"""Reads a file of independent lines; moves damaged ones to another file, and ends the last line.

    Args:
      path: the file; it need not exist.
      read: returns what a line holds; None if the line is damaged.
      beside: the file that damaged lines are appended to.

    Returns:
      What the other lines hold, and the number of damaged lines.

    Raises:
      RunDirectoryError: if a file cannot be read or written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
      >>> path.write_text("1\nx\n2\n")
      6
      >>> read = lambda line: int(line) if line.isdigit() else None
      >>> repair_lines(path, read, path.with_name("damaged.txt")), path.read_text()
      (([1, 2], 1), '1\n2\n')
    """
    if not path.exists():
        return [], 0
    with explained(f"repair {path}"):
        content = path.read_bytes()
    found = [(line, read(line)) for line in content.splitlines()]
    damaged = [line for line, held in found if held is None]
    if damaged:
        with explained(f"write {beside}"), beside.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in damaged))
    if damaged or (content and not content.endswith(b"\n")):
        whole = b"".join(line + b"\n" for line, held in found if held is not None)
        write_atomically(path, whole.decode("utf-8"))
    return [held for _, held in found if held is not None], len(damaged)


@contextlib.contextmanager
def explained(action: str, *, again: str = _RESUME, place: str = "run directory") -> Iterator[None]:
    """Turns an `OSError` inside the block into a `RunDirectoryError` that says what failed and how to go on.

    Args:
      action: what is done in the block, as it follows "could not": "write state.json", say.
      again: how to go on when the cause is gone.
      place: what may be chosen elsewhere.

    Raises:
      RunDirectoryError: for any `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"could not {action}: {_advice(error, again, place)}") from error


def is_disk_full(error: OSError) -> bool:
    """Tells whether an error says that there is no room left on a disk, or for a user on it.

    Example:
      >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device")), is_disk_full(OSError("no file"))
      (True, False)
    """
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_writable(folder: Path) -> None:
    """Checks that files can be made in a folder, or in the nearest one above that is there; makes nothing.

    Args:
      folder: it need not exist.

    Raises:
      OSError: if none can be made.

    Example:
      >>> import tempfile
      >>> check_writable(Path(tempfile.mkdtemp()) / "runs" / "first")
    """
    nearest = next((above for above in (folder, *folder.parents) if _is_there(above)), Path.cwd())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def _is_there(path: Path) -> bool:
    """Tells whether something has that name, also a link to nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()
        return True
    return False


def _sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> None:
    """Refuses NaN and Infinity, which Python would read although JSON has no such numbers."""
    raise ValueError(f"{name} is no JSON number")


def _advice(error: OSError, again: str, place: str) -> str:
    """The cause of an error and how to go on."""
    if is_disk_full(error):
        kept = "Everything up to the last complete line is kept: free" if again == _RESUME else "Free"
        return f"the disk is full. {kept} some space and {again}."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"it is not writable ({error.strerror}). Change its permissions or choose another {place}."
    if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO):
        return (
            f"it is not there ({error.strerror}): it was deleted or moved, or its disk is gone. Put it back and "
            f"{again}; without a copy, what it held is lost and has to be run again."
        )
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        return f"its file system does not offer that ({error.strerror}). Choose a {place} on a local disk."
    return f"{error.strerror or error}. When the cause is gone, {again} from what is there."


def put_aside(path: Path) -> Path:
    """Renames a file or folder to the first free name with "damaged" behind its own, and returns the new path."""
    names = (f"{path.name}.damaged{number or ''}" for number in count())
    aside = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(aside)
    return aside
