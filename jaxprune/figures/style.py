"""Defines how every figure looks, and writes figures to files.

The colours are the palette of Okabe and Ito, which people with any kind of colour vision can tell apart; each named
function also has a marker and a line style of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxprune.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DARK, GREY, LIGHT = "#222222", "#8a8a8a", "#d9d9d9"
DPI = 150
NAME_LENGTH = 26
"""Characters of a function's name that a figure shows."""


@dataclass(frozen=True)
class Look:
    """The colour, marker and line style of one function in every figure."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


LOOKS = {
    "winner": Look("#D55E00", "o", "-"),
    "l2": Look("#000000", "s", "--"),
    "l1": Look("#8a8a8a", "D", ":"),
    "random": Look("#E69F00", "X", "-."),
    "scratch": Look("#CC79A7", "v", (0, (5, 1, 1, 1, 1, 1))),
    "oracle": Look("#117733", "*", "-"),
}
"""The looks of the functions and controls that most comparisons have."""

OTHERS = (
    Look("#0072B2", "^", "-"),
    Look("#009E73", "P", "-"),
    Look("#56B4E9", "<", "--"),
    Look("#7a5195", ">", "-."),
    Look("#a07800", "h", ":"),
)
"""The looks that further functions take in turn."""

_RC: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": DARK,
    "text.parse_math": False,
}


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """Returns a look for each name: fixed for winner, l2, l1 and the controls, in turn for all others.

    Example:
      >>> looks_of(["winner", "fdr"])["fdr"].color
      '#0072B2'
    """
    others = [name for name in dict.fromkeys(names) if name not in LOOKS]
    return {name: LOOKS.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Makes a figure in the common style, to be drawn inside the `with`; opens no window and keeps no global state.

    Args:
      width: in inches.
      height: in inches.

    Raises:
      ImportError: if matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib, which is not installed. Run pip install "jaxprune[report]".'
        ) from error
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as PNG in one step, and makes its folder; the same figure gives the same bytes.

    Args:
      figure: of this package.
      path: the file to write.

    Returns:
      The path.

    Raises:
      OSError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, new_figure(1, 1):  # the style also counts while the text is laid out
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """Adds panels in rows; the rest of the last row stays empty.

    Args:
      figure: gets the panels.
      count: how many.
      columns: panels of a row.

    Returns:
      The panels, row by row.
    """
    axes_of: list[Axes] = list(figure.subplots(-(-count // columns), columns, squeeze=False).ravel())
    for axes in axes_of[count:]:
        axes.set_axis_off()
    return axes_of[:count]


def legend_below(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """Adds one legend for all panels below them, in as many columns as fit.

    Args:
      figure: gets the legend.
      handles: name -> a line that looks like it.
    """
    width = 0.085 * max(map(len, handles)) + 0.65
    columns = max(1, min(len(handles), int(figure.get_figwidth() / width)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
