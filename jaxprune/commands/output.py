"""What commands print, and how they write files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxprune.tasks.base_networks import Base


def say(text: str = "") -> None:
    """Prints a line of a command's result to the standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Prints a line about progress to the standard error, so that results can be piped."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def on_base(task: str, base: Base) -> None:
    """Prints that a base network is ready.

    Args:
      task: its task.
      base: the trained network.
    """
    note(f"base network {base.index} of {task}: {base.accuracy:.1f} % validation accuracy")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the folder of a file, writes the file, and prints where it is.

    Args:
      path: the file.
      write: writes a file at the path that it gets.

    Raises:
      ValueError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise ValueError(
            f"Cannot write to {path}: {error.strerror or error}. Choose another path."
        ) from error
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
