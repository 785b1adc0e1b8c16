"""Axes and types: what the entries of a value are indexed by.

A type is a tuple of axis names, one per dimension of the array a value has for one channel and one class:
`()` is a scalar, `("D",)` a vector over positions, `("N", "D")` the samples of a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

Type = tuple[str, ...]
"""Axis names, one per dimension; `()` is a scalar."""

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
"""Axis name -> what its entries are. A sliced position axis is written `D[i:j]`."""

SAMPLE_AXES = frozenset({"NX", "N", "NQ"})
NUM_SLICE_PARTS = 8
"""`slice(A, i, j)` counts in eighths of the positions."""

_SLICED = re.compile(r"D\[([0-8]):([0-8])\]")


def type_name(type: Type) -> str:
    """The type as users read it.

    Example:
      >>> type_name(("NX", "D")), type_name(())
      ('(NX, D)', '()')
    """
    return f"({', '.join(type)})"


def is_sample_axis(axis: str) -> bool:
    """Whether the axis counts examples."""
    return axis in SAMPLE_AXES


def is_position_axis(axis: str) -> bool:
    """Whether the axis counts positions: `D` or a slice of it.

    Example:
      >>> is_position_axis("D"), is_position_axis("D[2:5]"), is_position_axis("F")
      (True, True, False)
    """
    return axis == "D" or slice_range(axis) is not None


def is_axis(axis: str) -> bool:
    """Whether `axis` is one of `AXES` or a slice of the positions."""
    return axis in AXES or slice_range(axis) is not None


def sliced_axis(first: int, last: int) -> str:
    """The name of the axis that `slice(A, first, last)` makes of `D`."""
    return f"D[{first}:{last}]"


def slice_range(axis: str) -> tuple[int, int] | None:
    """(i, j) of an axis `D[i:j]`, None for any other axis.

    Example:
      >>> slice_range("D[2:5]")
      (2, 5)
    """
    match = _SLICED.fullmatch(axis)
    if match is None or int(match[1]) >= int(match[2]):
        return None
    return int(match[1]), int(match[2])


def slice_bounds(num_positions: int, first: int, last: int) -> tuple[int, int]:
    """The positions [start, stop) that `slice(A, first, last)` keeps of `num_positions`; never none.

    Args:
      num_positions: the true number of positions, at least 1.
      first: 0 to 7, in eighths of the positions.
      last: first + 1 to 8.

    Returns:
      (start, stop) with 0 <= start < stop <= num_positions.

    Example:
      >>> slice_bounds(16, 2, 5), slice_bounds(1, 7, 8)
      ((4, 10), (0, 1))
    """
    start = first * num_positions // NUM_SLICE_PARTS
    return start, max(last * num_positions // NUM_SLICE_PARTS, start + 1)
