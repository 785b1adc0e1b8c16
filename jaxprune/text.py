"""Text for people to read: suggestions, durations, aligned columns, Markdown tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def closest(name: str, known_names: Iterable[str]) -> str:
    """Returns a sentence that suggests the known name most similar to `name`, or "" if none is similar.

    Upper and lower case count as the same.

    Args:
      name: an unknown name, as somebody typed it.
      known_names: the names there are.

    Returns:
      A sentence to append to an error message; it starts with a space.

    Example:
      >>> closest("generatoins", ["generations", "seed"]), closest("mp", ["mX", "mP"])
      (" Did you mean 'generations'?", " Did you mean 'mP'?")
    """
    spellings = {known_name.lower(): known_name for known_name in known_names}
    matches = difflib.get_close_matches(name.lower(), spellings, n=1)
    return f" Did you mean {spellings[matches[0]]!r}?" if matches else ""


def duration(seconds: float) -> str:
    """Formats a time for reading: seconds below a minute, else minutes or hours with colons.

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
    """Cuts a text to at most `length` characters, the last one an ellipsis where something was cut.

    Args:
      text: any text.
      length: the largest number of characters, >= 1.

    Example:
      >>> shortened("sum(abs(WI))", 8)
      'sum(abs…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def columns(rows: Iterable[Sequence[object]], *, indent: int = 0) -> str:
    """Lays rows out in aligned columns; columns of numbers are aligned to the right.

    Args:
      rows: cells by row, equally many in each; the first row may be a header.
      indent: number of spaces before each line.

    Returns:
      One line per row, without a newline at the end.

    Example:
      >>> print(columns([("l1", 3), ("l2", 14)]))
      l1   3
      l2  14
    """
    table = [[str(cell) for cell in row] for row in rows]
    if not table:
        return ""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    body = table[1:] or table
    is_numeric = [all(_is_number(cell) for cell in column if cell) for column in zip(*body, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_numeric, strict=True)
        )
        for row in table
    ]
    return "\n".join(" " * indent + line.rstrip() for line in lines)


def _is_number(text: str) -> bool:
    """Whether a cell is a number or a percentage."""
    try:
        float(text.rstrip("%"))
    except ValueError:
        return False
    return True


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with the first column aligned to the left and the others to the right.

    Args:
      header: names of the columns.
      rows: cells by row, as many as the header has.

    Example:
      >>> print(markdown_table(["name", "n"], [["l1", "4"]]))
      | name | n |
      |---|--:|
      | l1 | 4 |
    """
    lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def with_error(mean: float | None, se: float | None, *, signed: bool = False, decimals: int = 1) -> str:
    """Formats a mean and its standard error.

    Args:
      mean: the mean; "" is returned if it is None.
      se: its standard error; None leaves it out.
      signed: whether a positive mean gets a plus sign.
      decimals: number of decimals of both.

    Example:
      >>> with_error(1.234, 0.5, signed=True), with_error(80.0, None), with_error(None, None)
      ('+1.2 ± 0.5', '80.0', '')
      >>> with_error(0.196, 0.07, decimals=2)
      '0.20 ± 0.07'
    """
    if mean is None:
        return ""
    text = f"{mean:{'+' if signed else ''}.{decimals}f}"
    return text if se is None else f"{text} ± {se:.{decimals}f}"


def parse_seconds(value: object) -> float | None:
    """Reads a time as people write it, in seconds; "none" is no limit.

    Args:
      value: a number of seconds, or a text like those below.

    Raises:
      ValueError: for anything else, or a time that is not above 0.

    Example:
      >>> [parse_seconds(text) for text in ("90", "90s", "20m", "1h30m", "none")]
      [90.0, 90.0, 1200.0, 5400.0, None]
    """
    if value is None or value == "none":
        return None
    text = str(value).strip().lower()
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text)
    try:
        hours, minutes, seconds = (float(part or 0) for part in (match.groups() if match else ()))
        total = hours * 3600 + minutes * 60 + seconds
    except ValueError:
        total = 0.0
    if not total > 0:
        raise ValueError(f'a time needs to look like "90s", "20m" or "1h30m", and be above 0, got {value!r}.')
    return total
