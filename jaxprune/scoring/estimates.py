"""What a function costs on one layer, estimated from shapes before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxprune.language.axes import Type, slice_bounds, slice_range
from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import lanes_of, moment_answer
from jaxprune.scoring.twins import set_answer, twin_of

_PRODUCTS = 3
"""Matrix products with class membership that split the values of a twin by class."""


class Cost(NamedTuple):
    """What a function costs on one member of one layer, estimated from shapes."""

    bytes_per_channel: int
    """Of the largest value, for one channel and one class: the least that must be held at once."""
    flops: float
    """Of all values, over all classes and channels; what no class turn distinguishes counts once."""


def value_shape(type: Type, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a value for one channel and one class.

    Example:
      >>> value_shape(("N", "D[0:4]"), {"N": 5, "D": 16})
      (5, 8)
    """
    return tuple(_axis_size(axis, sizes) for axis in type)


def estimate_cost(f: Expression, sizes: Mapping[str, int], itemsize: int) -> Cost:
    """The cost of a function from axis sizes, `K` classes and `C` channels; nothing is run.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> estimate_cost(parse("sum(abs(WI))"), {"F": 9, "C": 4, "K": 10}, 4)
      Cost(bytes_per_channel=36, flops=72.0)
    """
    largest, flops = itemsize, 0.0
    seen: set[Expression] = set()
    stack = [f]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        largest = max(largest, itemsize * math.prod(value_shape(node.type, sizes)))
        if moment_answer(node) is not None or not node.children:
            continue
        lanes = lanes_of(node)
        channels = sizes["C"] if lanes.channel else 1
        answer, twin = set_answer(node), twin_of(node)
        if answer is not None:
            entries = math.prod(value_shape(answer.twin.type, sizes))
            flops += channels * 2.0 * _PRODUCTS * sizes["K"] * entries
            stack.append(answer.twin)
        elif twin is not None and twin is not node:
            stack.append(twin)
        else:
            shapes = [value_shape(child.type, sizes) for child in node.children]
            flops += (
                channels * (sizes["K"] if lanes.per_class else 1) * OPERATORS[node.operator].flops(shapes)
            )
            stack += node.children
    return Cost(largest, flops)


def explain_refusal(cost: Cost, budget_bytes: int, max_flops: float) -> str | None:
    """Why a function of this cost is not evaluated, or None.

    Example:
      >>> explain_refusal(Cost(100, 1e3), budget_bytes=200, max_flops=1e9)
      'refused: needs values of 1.0e+02 bytes for one channel, more than a quarter of the budget of 2.0e+02'
    """
    if cost.flops > max_flops:
        return f"refused: needs {cost.flops:.1e} operations on this layer, more than {max_flops:.1e}"
    if 4 * cost.bytes_per_channel > budget_bytes:
        return (
            f"refused: needs values of {cost.bytes_per_channel:.1e} bytes for one channel, "
            f"more than a quarter of the budget of {budget_bytes:.1e}"
        )
    return None


def _axis_size(axis: str, sizes: Mapping[str, int]) -> int:
    part = slice_range(axis)
    if part is None:
        return sizes[axis]
    start, stop = slice_bounds(sizes["D"], *part)
    return stop - start
