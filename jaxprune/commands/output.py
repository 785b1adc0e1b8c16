"""What commands print, and how they write files: never over one that is there, unless `--overwrite` says so."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.files import atomic_file, check_writable, is_disk_full
from jaxprune.interrupts import look_for_interrupts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxprune.tasks.base_networks import Base


STANDARD_OUTPUT = "the standard output"
"""What errors call it in the place of a file's name."""

_PLAIN = {
    "±": "+-",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "·": ".",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
}
"""What is shown for a sign that the terminal's encoding does not have; for others a question mark."""


def prepare_streams() -> None:
    """Lets the standard streams show what their encoding can, and ignores what is written to a closed error stream."""
    codecs.register_error("jaxprune", _plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) == "strict":
            reconfigure(errors="jaxprune")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Names the standard output in errors of writing to it, on a full disk for instance.

    Raises:
      OSError: if it cannot be written, with its name.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), STANDARD_OUTPUT) from error


def say(text: str = "") -> None:
    """Prints a line of a command's result to the standard output."""
    with printing():
        sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Prints a line about progress to the standard error, so that results can be piped; lost if nobody reads it.

    Raises:
      KeyboardInterrupt: if Ctrl-C was pressed before, and Python dropped its exception.
    """
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    look_for_interrupts()


@contextlib.contextmanager
def noted_warnings() -> Iterator[None]:
    """Prints warnings as lines about progress, without the place in the code that a programmer would want."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place, **more: note(str(message))
        yield


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--overwrite`, without which no command replaces a file."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results that are there already (default: refuse)"
    )


def claim(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Checks before the work that its results can be written, and that they replace nothing unasked.

    Args:
      paths: the files that will be written.
      overwrite: whether files that are there may be replaced.

    Raises:
      ValueError: if two of them are one file, one is there already or is a folder, or one cannot be written.
    """
    names = [os.path.realpath(path).casefold() for path in paths]  # a disk may not tell capitals apart
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        if name in names[:number]:
            other = paths[names.index(name)]
            raise ValueError(
                f"each result needs a file of its own, got {other} and {path}. Choose other names."
            )
    present = [path for path in paths if _is_there(path)]
    folders = [path for path in present if path.is_dir()]
    if folders:
        raise ValueError(f"Cannot write to {folders[0]}: it is a folder. Choose another path.")
    if present and not overwrite:
        raise ValueError(
            f"nothing is replaced unasked, and there {'is' if len(present) == 1 else 'are'} "
            f"{', '.join(map(str, present))} already. Choose another path, or say --overwrite."
        )
    for folder in dict.fromkeys(path.parent for path in paths):
        with _naming(folder):
            check_writable(folder)


def on_base(task: str, base: Base) -> None:
    """Prints that a base network is ready.

    Args:
      task: its task.
      base: the trained network.
    """
    note(f"base network {base.index} of {task}: {base.accuracy:.1f} % validation accuracy")


def check_folder(folder: Path) -> None:
    """Checks that a folder is there or can be made; whether it has to be written is not known yet.

    Raises:
      ValueError: if it is a file, or cannot be made.
    """
    with _naming(folder):
        if not folder.is_dir():
            check_writable(folder)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the folder of a file, writes the file, and prints where it is.

    Args:
      path: the file.
      write: writes a file at the path that it gets.

    Raises:
      ValueError: if the file cannot be written.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    note(f"wrote {path}")


def write_text(path: Path, text: str) -> None:
    """Writes a text file as `write_file` does, in one step.

    Args:
      path: the file.
      text: its content.

    Raises:
      ValueError: if the file cannot be written.
    """

    def write(path: Path) -> None:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")

    write_file(path, write)


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as `write_file` does.

    Args:
      path: the PNG file.
      figure: what to write.

    Raises:
      ValueError: if the file cannot be written.
    """
    from jaxprune.figures.style import save_figure

    write_file(path, lambda path: save_figure(figure, path))


def has_matplotlib() -> bool:
    """Returns whether figures can be drawn; if not, prints what to install."""
    if util.find_spec("matplotlib") is not None:
        return True
    note('no figure: matplotlib is not installed. Run pip install "jaxprune[report]" for it.')
    return False


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Returns what to show for signs that an encoding does not have; an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def _is_there(path: Path) -> bool:
    """Returns whether something has that name, also a link to nothing."""
    with _naming(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()
        return True
    return False


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns errors of writing into one that names the path and says how to go on."""
    try:
        yield
    except OSError as error:
        remedy = "Choose another path."
        if is_disk_full(error):
            remedy = "Free some space, or choose a path on another disk."
        raise ValueError(f"Cannot write to {path}: {error.strerror or error}. {remedy}") from error
