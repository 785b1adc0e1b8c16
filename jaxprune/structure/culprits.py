"""Finds out which parts of a change are to blame for its failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_Part = TypeVar("_Part")


def smallest_failing(parts: Sequence[_Part], fails: Callable[[Sequence[_Part]], bool]) -> list[list[_Part]]:
    """Returns small sets of parts that fail on their own, from parts that fail together.

    Halves are tried, and halves of those that fail. Where each half is fine alone, parts are left out one by one.

    Args:
      parts: what fails together, at least one.
      fails: tells whether some of the parts fail.

    Returns:
      At least one set; every part that fails alone is one.

    Example:
      >>> smallest_failing([1, 2, 3, 4], lambda chosen: 3 in chosen or {1, 4} <= set(chosen))
      [[3]]
      >>> smallest_failing([1, 2, 3, 4], lambda chosen: {1, 4} <= set(chosen))
      [[1, 4]]
    """
    if len(parts) == 1:
        return [list(parts)]
    half = len(parts) // 2
    failing = [side for side in (parts[:half], parts[half:]) if fails(side)]
    if failing:
        return [found for side in failing for found in smallest_failing(side, fails)]
    needed = list(parts)
    for part in parts:
        others = [other for other in needed if other is not part]
        if len(needed) > 2 and fails(others):
            needed = others
    return [needed]
