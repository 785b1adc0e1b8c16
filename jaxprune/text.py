"""Short pieces of text: suggestions, durations, aligned columns, Markdown tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def closest(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the known name nearest to `name`; empty if none is near.

    Example:
      >>> closest("generatoins", ["generations", "seed"])
      " Did you mean 'generations'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def duration(seconds: float) -> str:
    """A time that is short to read.

    Example:
      >>> duration(0.31), duration(41.6), duration(75), duration(3700)
      ('0.3 s', '42 s', '1:15', '1:01:40')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shortened(text: str, length: int) -> str:
    """The text, cut to at most `length` characters with an ellipsis at the end.

    Example:
      >>> shortened("sum(abs(WI))", 8)
      'sum(abs…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def columns(rows: Iterable[Sequence[object]], *, indent: int = 0) -> str:
    """Rows of text in aligned columns; columns of numbers are aligned to the right.

    Example:
      >>> print(columns([("l1", 3), ("l2", 14)]))
      l1   3
      l2  14
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    numeric = [
        all(_is_number(row[at]) for row in cells[-1:] + cells[1:] if row[at]) for at in range(len(cells[0]))
    ]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    ]
    return "\n".join(" " * indent + line.rstrip() for line in lines)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return False
    return True


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right.

    Example:
      >>> print(markdown_table(["name", "n"], [["l1", "4"]]))
      | name | n |
      |---|--:|
      | l1 | 4 |
    """
    lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def with_error(mean: float | None, se: float | None, *, signed: bool = False) -> str:
    """A mean with its standard error, or what is known of it.

    Example:
      >>> with_error(1.234, 0.5, signed=True), with_error(80.0, None), with_error(None, None)
      ('+1.2 ± 0.5', '80.0', '')
    """
    if mean is None:
        return ""
    shown = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return shown if se is None else f"{shown} ± {se:.1f}"
