"""Values too large for all members and channels at once, computed block by block.

A *big* value has more than `block_bytes` over all members, classes and channels; a *boundary* is a small node with a
big argument. Boundaries are computed on one member and a few channels at a time, then joined. Blocks have a size
that depends on the layer (halved for heavier formulas), so new formulas bring no new shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxprune.language.axes import SAMPLE_AXES
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View, bytes_per_channel, evaluated_nodes, lanes_of, moment_answer
from jaxprune.scoring.graph import NodeKey, ValueGraph
from jaxprune.scoring.lanes import block_operands, full_lanes
from jaxprune.types import Array

BLOCK_BYTES = {"cpu": 4 << 20}
"""Size of a block's largest value by backend: on a CPU it should stay in cache."""
DEFAULT_BLOCK_BYTES = 256 << 20


class Layout(NamedTuple):
    """What decides which values are big."""

    lanes: tuple[int, int, int]
    sizes: Mapping[str, int]
    itemsize: int
    block_bytes: int

    def is_big(self, node: Expression) -> bool:
        """Whether a node's value has more than `block_bytes`; scalars never have."""
        if (
            node.type == ()
            or node.children == ()
            and moment_answer(node) is None
            and not lanes_of(node).channel
        ):
            return False
        members, _, channels = full_lanes(node, self.lanes)
        return members * channels * bytes_per_channel(node, self.sizes, self.itemsize) > self.block_bytes

    def block_channels(self, node: Expression) -> int:
        """Channels per block for a boundary: a power of two, fewer for heavier formulas, at most C."""
        nodes = [part for part in evaluated_nodes(node) if lanes_of(part).channel]
        own = max((bytes_per_channel(part, self.sizes, self.itemsize) for part in nodes), default=1)
        classes, positions = self.sizes["K"], self.sizes["D"]
        entries = max(classes * positions, self.sizes["F"], self.sizes["O"])
        if any(not SAMPLE_AXES.isdisjoint(part.type) for part in nodes):
            entries = max(entries, classes * self.sizes["NQ"] * positions)
        fitting = max(1, self.block_bytes // max(own, entries * self.itemsize))
        return min(1 << int(math.log2(fitting)), self.lanes[2])


def default_block_bytes() -> int:
    """The block size for the backend in use."""
    return BLOCK_BYTES.get(jax.default_backend(), DEFAULT_BLOCK_BYTES)


def boundaries(f: Expression, layout: Layout) -> list[Expression]:
    """Small nodes of `f` that have a big argument, children first, none within a big value.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> sizes = {"K": 2, "NX": 100, "N": 60, "NQ": 60, "D": 4, "C": 8}
      >>> layout = Layout((1, 2, 8), sizes, 4, block_bytes=10_000)
      >>> [str(node) for node in boundaries(parse("mean(abs(X)) + var(P) + sum(square(mX))"), layout)]
      ['mean(abs(X))']
    """
    return [
        node
        for node in evaluated_nodes(f)
        if not layout.is_big(node)
        and moment_answer(node) is None
        and any(layout.is_big(child) for child in node.children)
    ]


def give_boundaries(graph: ValueGraph, wanted: Iterable[tuple[Expression, View]], layout: Layout) -> None:
    """Computes all boundaries of the wanted functions in blocks and gives their values to the graph."""
    groups: dict[tuple[View, int], dict[Expression, None]] = {}
    for f, view in wanted:
        for node in boundaries(f, layout):
            if not graph.is_known(node, view):
                groups.setdefault((view, layout.block_channels(node)), {})[node] = None
    for (view, num_channels), nodes in groups.items():
        _give_group(graph, list(nodes), view, num_channels, layout)


def block_of(
    graph: ValueGraph, member: int, channel: int, num_channels: int, layout: Layout
) -> tuple[ValueGraph, int]:
    """The graph of the block that holds a channel of a member, and the channel's place in it."""
    start = channel // num_channels * num_channels
    return _block(graph, member, start, num_channels, layout), channel - start


def _give_group(
    graph: ValueGraph, nodes: list[Expression], view: View, num_channels: int, layout: Layout
) -> None:
    """Runs all blocks of one size; each block's values are dropped before the next begins."""
    pieces: list[list[list[Array]]] = []  # [member][block][node]
    looked: list[list[dict[NodeKey, list[Array]]]] = []
    for member in range(layout.lanes[0]):
        pieces.append([])
        looked.append([])
        for start in range(0, layout.lanes[2], num_channels):
            block = _block(graph, member, start, num_channels, layout)
            pieces[-1].append([block.value(node, view) for node in nodes])
            looked[-1].append(
                {key: list(found) for node in nodes for key, found in block.hidden(node, view).items()}
            )
    lookups = {key: _join_lookups(looked, key, num_channels, layout.lanes[2]) for key in looked[0][0]}
    for position, node in enumerate(nodes):
        rows = [[np.asarray(values[position]) for values in blocks] for blocks in pieces]
        graph.give(node, view, _join(rows, node, layout), lookups)


def _block(graph: ValueGraph, member: int, start: int, num_channels: int, layout: Layout) -> ValueGraph:
    """The last block is filled up with its last channel, so that all blocks have one shape."""
    channels = np.minimum(start + np.arange(num_channels), layout.lanes[2] - 1).astype(np.int32)
    operands = block_operands(graph.operands, np.int32(member), channels)
    return ValueGraph(operands, cache_bytes=16 * layout.block_bytes)


def _join(rows: list[list[np.ndarray]], node: Expression, layout: Layout) -> Array:
    """Blocks of one node's value, [member][block], to the value over all members and channels."""
    has_channels = node.type == () or lanes_of(node).channel
    members = [
        np.concatenate(blocks, axis=2)[:, :, : layout.lanes[2]] if has_channels else blocks[0]
        for blocks in rows
    ]
    return jax.numpy.asarray(np.concatenate(members, axis=0))


def _join_lookups(
    looked: list[list[dict[NodeKey, list[Array]]]], key: NodeKey, num_channels: int, total: int
) -> list[Array]:
    def rows(blocks: list[dict[NodeKey, list[Array]]]) -> Iterator[np.ndarray]:
        for block in blocks:
            together = np.logical_and.reduce([np.asarray(found) for found in block[key]])
            yield np.broadcast_to(together, (1, num_channels))

    return [np.concatenate([np.concatenate(list(rows(blocks)), axis=1)[:, :total] for blocks in looked])]
