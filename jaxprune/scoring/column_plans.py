"""Which columns compute what: as large as the cache likes, and never more at once than a share of the budget."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import lanes_of, moment_answer
from jaxprune.scoring.column_contractions import TILED, tiled_entries
from jaxprune.scoring.column_operators import all_finite, lower
from jaxprune.scoring.column_places import Extent, Item, Planes
from jaxprune.scoring.column_programs import ColumnProgram
from jaxprune.scoring.kernels import bucket
from jaxprune.scoring.layers import Layer
from jaxprune.scoring.twins import set_answer, twin_of


class Plan(NamedTuple):
    """A program, and how it goes through a layer."""

    program: ColumnProgram
    with_classes: bool
    bytes: int
    """The most that it holds at once."""


Plans = dict[Hashable, list[Plan]]
"""Signature of a layer -> what is to run there."""


def plans_of(
    layer: Layer, work: Sequence[Item], planes: Planes, column_entries: int, share: int
) -> list[Plan]:
    """Programs that do the work on a layer.

    Args:
      layer: one of those with its signature.
      work: what is wanted.
      planes: scalars that the work reads.
      column_entries: of the largest value of a column of several channels.
      share: bytes that a program may hold at once, unless one item for one class and channel needs more.
    """
    by_kind: dict[tuple[bool, Extent], list[Item]] = {}
    for item in work:
        by_kind.setdefault(extent_of(item, layer, planes.num_classes, column_entries), []).append(item)
    found: list[Plan] = []
    waiting = list(by_kind.items())[::-1]
    while waiting:
        (with_classes, extent), items = waiting.pop()
        plan = _plan(layer, items, with_classes, extent, planes)
        if plan.bytes <= share:
            found.append(plan)
        elif len(items) > 1:
            half = len(items) // 2
            waiting += [((with_classes, extent), part) for part in (items[half:], items[:half])]
        elif extent.num_classes > 1:
            waiting.append(((with_classes, extent._replace(num_classes=1)), items))
        elif extent.num_channels > 1:
            smaller = extent._replace(num_channels=extent.num_channels // 2)
            waiting.append(((with_classes, smaller), items))
        else:
            found.append(plan)
    return found


def least_bytes(item: Item, layer: Layer, planes: Planes) -> int:
    """What an item holds at once for one class and channel."""
    with_classes, extent = extent_of(item, layer, planes.num_classes, column_entries=1)
    return _plan(layer, [item], with_classes, extent, planes).bytes


def _plan(layer: Layer, items: Sequence[Item], with_classes: bool, extent: Extent, planes: Planes) -> Plan:
    program = ColumnProgram(layer, extent, planes, lower)
    for item in items:
        program.add(item, all_finite)
    size = program.peak_entries(with_classes) * layer.members[0].dtype.itemsize
    return Plan(program, with_classes, size * layer.num_shards)


def extent_of(item: Item, layer: Layer, num_classes: int, column_entries: int) -> tuple[bool, Extent]:
    """Whether columns go class by class, and how large they are."""
    node, view = item.node, item.view
    lanes = lanes_of(node)
    has_bank = "W" in node.operands
    is_tiled = any(part.operator in TILED for part in node.walk())
    entries = tiled_entries if is_tiled else math.prod
    largest = max(entries(layer.shape(type, view)) for type in column_types(node))
    fitting = 1 << int(math.log2(max(1, column_entries / largest)))
    widest = bucket(layer.members[0].num_channels) if has_bank and layer.mesh is None else layer.width
    width = min(fitting, widest) if lanes.channel else 1
    answered = item.kind == "value" and set_answer(node) is not None
    if not lanes.per_class or answered:
        return False, Extent(1, width, has_bank)
    is_small = num_classes * width * largest <= column_entries and width in (1, widest)
    if is_small and layer.samples.class_stride:
        return True, Extent(num_classes, width, has_bank)
    return True, Extent(1, width, has_bank)


@lru_cache(maxsize=1 << 16)
def column_types(node: Expression) -> frozenset[tuple[str, ...]]:
    """Types of all values that a column holds for a node."""
    answer = set_answer(node)
    start = node if answer is None else answer.twin
    found: set[tuple[str, ...]] = {()}
    by_channel = lanes_of(node).channel
    stack = [start]
    while stack:
        part = stack.pop()
        if lanes_of(part).channel or not by_channel:  # the bank is there once for all channels
            found.add(part.type)
        inner, twin = set_answer(part), twin_of(part)
        if inner is not None:
            stack.append(inner.twin)
        elif twin is not None and twin is not part:
            stack.append(twin)
        elif moment_answer(part) is None:
            stack += [child for child in part.children if child.type != ()]
    return frozenset(found)
