"""Axes and types: what the entries of a formula's value are indexed by.

A type is a tuple of axis names, one for each dimension of the array that a formula gives for one channel and one
class: `()` is a scalar, `("D",)` a vector over positions, `("N", "D")` the examples of a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

Type = tuple[str, ...]
"""Axis names, one for each dimension; `()` is a scalar."""

AXES: Mapping[str, str] = MappingProxyType(
    {
        "D": "positions of the channel (height x width; 1 for a dense layer)",
        "NX": "all examples",
        "N": "examples of class k",
        "NQ": "examples of the other classes",
        "F": "entries of the channel's producing filter",
        "O": "entries of the weights that consume the channel",
        "C": "channels of the layer",
    }
)
"""Axis name -> what its entries are. A slice of the positions is written `D[i:j]`."""

SAMPLE_AXES = frozenset({"NX", "N", "NQ"})
NUM_SLICE_PARTS = 8
"""The bounds of `slice(A, i, j)` count eighths of the positions."""

_SLICED = re.compile(r"D\[([0-8]):([0-8])\]")


def type_name(type: Type) -> str:
    """Returns the type as it is shown to users.

    Example:
      >>> type_name(("NX", "D")), type_name(())
      ('(NX, D)', '()')
    """
    return f"({', '.join(type)})"


def is_sample_axis(axis: str) -> bool:
    """Returns whether the axis counts examples."""
    return axis in SAMPLE_AXES


def is_position_axis(axis: str) -> bool:
    """Returns whether the axis counts positions: `D` or a slice of it.

    Example:
      >>> is_position_axis("D"), is_position_axis("D[2:5]"), is_position_axis("F")
      (True, True, False)
    """
    return axis == "D" or slice_range(axis) is not None


def is_axis(axis: str) -> bool:
    """Returns whether `axis` is one of `AXES` or a slice of the positions."""
    return axis in AXES or slice_range(axis) is not None


def slice_range(axis: str) -> tuple[int, int] | None:
    """Returns the bounds (i, j) of an axis `D[i:j]`, or None for any other axis.

    Example:
      >>> slice_range("D[2:5]")
      (2, 5)
    """
    match = _SLICED.fullmatch(axis)
    if match is None or int(match[1]) >= int(match[2]):
        return None
    return int(match[1]), int(match[2])


def sliced_axis(first: int, last: int) -> str:
    """Returns the name of the axis that `slice(A, first, last)` makes from `D`."""
    return f"D[{first}:{last}]"


def slice_bounds(num_positions: int, first: int, last: int) -> tuple[int, int]:
    """Returns which positions `slice(A, first, last)` selects: at least one.

    Args:
      num_positions: the true number of positions, at least 1.
      first: 0 to 7, in eighths of the positions.
      last: first + 1 to 8.

    Returns:
      (start, stop) of the range [start, stop), with 0 <= start < stop <= num_positions.

    Example:
      >>> slice_bounds(16, 2, 5), slice_bounds(1, 7, 8)
      ((4, 10), (0, 1))
    """
    start = first * num_positions // NUM_SLICE_PARTS
    return start, max(last * num_positions // NUM_SLICE_PARTS, start + 1)
