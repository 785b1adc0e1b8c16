"""A whole population on a whole network: every distinct value once, no compilation per formula.

Scalars are *planes* [K, lanes] over all channels of all layers, one call of NumPy each. What is summed up to them is
computed in columns (see `column_programs.py`). Work goes in levels: the columns of level 1 read scalars that are given,
those of level 2 read scalars that follow from level 1, and so on.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from threading import RLock
from typing import cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from threadpoolctl import ThreadpoolController

from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View, evaluated_nodes, lanes_of, moment_answer, reads_activations
from jaxprune.scoring.column_places import Item, Kind, Piece
from jaxprune.scoring.column_plans import Plans, least_bytes, plans_of
from jaxprune.scoring.kernel_table import KernelTable
from jaxprune.scoring.kernels import (
    Spec,
    buffer_length,
    runs_on_host,
    source_length,
)
from jaxprune.scoring.lane_kernels import lane_kernel
from jaxprune.scoring.lanes import split_params
from jaxprune.scoring.layers import Layer
from jaxprune.scoring.twins import twin_of
from jaxprune.types import Array

LEAST_BYTES = 16 << 20
"""A smaller budget counts as that for columns: buffers have a least length."""
COLUMN_ENTRIES = {"cpu": 1 << 18}
"""Entries of the largest value of a column by backend, as measured: fewer cost calls, more cost memory."""
DEFAULT_COLUMN_ENTRIES = 1 << 24
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "abs": np.abs,
    "square": np.square,
    "sqrt": np.sqrt,
    **dict.fromkeys(("sum", "mean", "product"), np.asarray),
    **dict.fromkeys(("var", "std"), lambda plane: plane * 0),
    "count": np.ones_like,
}
"""Operators on scalars, of which a reduction is what it is of one number: itself, or 0 where it is finite. They run on
the host: measured on 2 CPU cores and 20,000 numbers, NumPy takes 6 us and a call of a kernel takes 26."""


class Engine:
    """Scalars of formulas on some layers, remembered up to a number of bytes.

    Args:
      layers: of equal dtype and classes, side by side.
      num_lanes: of a plane, at least the sum of the layers' widths.
      budget_bytes: for values besides the tables of the layers. A quarter each serves to remember planes, to keep those
        that are asked for, and for columns; the rest is for masks and what comes and goes.
      column_entries: entries of the largest value of a column.
    """

    def __init__(
        self, layers: Sequence[Layer], num_lanes: int, budget_bytes: int, column_entries: int | None = None
    ) -> None:
        self.layers, self.num_lanes = layers, num_lanes
        self.num_classes = layers[0].samples.num_classes
        self.dtype = layers[0].members[0].dtype
        self._cache_bytes = budget_bytes // 4
        self._column_bytes = max(budget_bytes, LEAST_BYTES) // 4
        default = COLUMN_ENTRIES.get(jax.default_backend(), DEFAULT_COLUMN_ENTRIES)
        self._column_entries = column_entries or min(
            default, max(1, budget_bytes // (32 * self.dtype.itemsize))
        )
        self._is_full = all(one.sample_is_full for layer in layers for one in layer.members)
        self.mesh = layers[0].mesh
        self._planes: OrderedDict[tuple[Expression, View | None], np.ndarray] = OrderedDict()
        self._pinned: dict[tuple[Expression, View | None], np.ndarray] = {}
        self._cached_bytes = 0
        self._lock = RLock()
        self._finite: dict[tuple[Expression, View | None], np.ndarray] = {}

    def scores(self, wanted: Sequence[tuple[Expression, View]]) -> np.ndarray:
        """[P, lanes] mean scores over classes of functions, with the view each one reads."""
        self._evaluate([Item("value", f, view) for f, view in wanted])
        found = np.zeros((len(wanted), self.num_lanes), self.dtype)
        with np.errstate(all="ignore"):
            for row, (f, view) in enumerate(wanted):
                found[row] = self.plane(f, view).mean(axis=0)  # of one class where none makes a difference
        self._pinned.clear()
        return found

    def finite(self, wanted: Sequence[tuple[Expression, View]]) -> list[np.ndarray]:
        """Per node [lanes] booleans: whether all entries of its value are finite, over classes."""
        if len(self._finite) * self.num_lanes > self._cache_bytes:
            self._finite.clear()
        asked = [Item("finite", node, view) for node, view in map(self._finite_form, wanted)]
        missing = [
            item for item in dict.fromkeys(asked) if self._key(item.node, item.view) not in self._finite
        ]
        plane = self.num_classes * self.num_lanes * self.dtype.itemsize
        at_once = max(1, self._cache_bytes // plane)
        for first in range(0, len(missing), at_once):
            self._find_finite(missing[first : first + at_once])
        return [self._finite[self._key(item.node, item.view)] for item in asked]

    def _find_finite(self, items: Sequence[Item]) -> None:
        self._evaluate([item._replace(kind="value") if item.node.type == () else item for item in items])
        for item in items:
            if item.node.type == ():
                is_finite = np.isfinite(self.plane(item.node, item.view)).all(axis=0)
                own = np.broadcast_to(is_finite, (self.num_lanes,))
                self._finite[self._key(item.node, item.view)] = own
        self._pinned.clear()

    def least_bytes(self, f: Expression, view: View, lanes: Sequence[int]) -> int:
        """What the columns of a function hold at once for one class and channel, at these lanes; nothing is run."""
        layers = [
            layer
            for layer in self.layers
            if any(layer.lane <= lane < layer.lane + layer.num_channels for lane in lanes)
        ]
        roots = [node for node in evaluated_nodes(f) if node.type != () or needs_columns(node)]
        shapes = _Shapes(self)
        kinds: tuple[Kind, ...] = ("value", "finite")
        items = [Item(kind, node, view) for node in roots for kind in kinds]
        return max((least_bytes(item, layer, shapes) for layer in layers for item in items), default=0)

    def warm_up(self, most_entries: int) -> None:
        """Compiles every kernel that a value of at most so many entries can ask for."""
        table = KernelTable(
            self.layers,
            self.num_lanes,
            self._column_entries,
            most_entries,
            compiled_only=runs_on_host(self.mesh),
        )
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            for _ in pool.map(self._call, table):
                pass

    def _call(self, compile_one: Callable[[], object]) -> None:
        with jax.enable_x64(self.dtype == np.float64):
            compile_one()

    def plane(self, node: Expression, view: View) -> np.ndarray:
        """[K or 1, lanes or 1] values of a scalar whose columns, if it needs any, have been computed."""
        with self._lock, np.errstate(all="ignore"):
            return self._plane(node, view)

    def _plane(self, node: Expression, view: View) -> np.ndarray:
        key = self._key(node, view)
        found = self._pinned.get(key)
        if found is not None:
            return found
        found = self._planes.get(key)
        if found is None:
            found = self._compute(node, view)
            self._remember(key, found)
        else:
            self._planes.move_to_end(key)
        return found

    def _key(self, node: Expression, view: View) -> tuple[Expression, View | None]:
        if not reads_activations(node):
            return node, None
        return node, "full" if self._is_full else view

    def _finite_form(self, wanted: tuple[Expression, View]) -> tuple[Expression, View]:
        """All classes together read every row: then a value without class turn is as finite as its twin."""
        node, view = wanted
        twin = twin_of(node) if node.type != () else None
        return (node if twin is None else twin), view

    def _compute(self, node: Expression, view: View) -> np.ndarray:
        answer = moment_answer(node)
        if answer is not None:
            return self._assemble([(layer, layer.scalar_statistics(answer, view)) for layer in self.layers])
        if node.is_literal:
            return np.full((1, 1), node.value, self.dtype)
        if node.is_operand:
            own = [(layer, layer.scalars(node.name, view)) for layer in self.layers]
            return self._assemble([(layer, value) for layer, value in own if value is not None])
        arguments = [self._plane(child, view) for child in node.children]
        arithmetic = _ARITHMETIC.get(node.operator or "")
        if arithmetic is not None:
            return np.asarray(arithmetic(*arguments))
        static, traced = split_params(node)
        numbers = tuple(np.asarray(number, self.dtype) for number in traced)
        spec = Spec(self.num_classes, self.num_lanes, ())
        implement = cast(Hashable, OPERATORS[node.operator].implement)
        kernel = lane_kernel(implement, static, (spec,) * len(arguments), ())
        flat = tuple(self._in_buffer(plane, buffer_length(spec.entries)) for plane in arguments)
        found = kernel(None, flat, ((),) * len(arguments), numbers)
        return np.asarray(found)[: spec.entries].reshape(self.num_classes, -1)

    def _assemble(self, parts: Sequence[tuple[Layer, np.ndarray]]) -> np.ndarray:
        """A plane from [K or 1, C or 1] values of layers; NaN where there are none."""
        rows = max((len(values) for _, values in parts), default=1)
        plane = np.full((rows, self.num_lanes), np.nan, self.dtype)
        for layer, values in parts:
            plane[:, layer.lane : layer.lane + layer.num_channels] = values
        return plane

    def _in_buffer(self, plane: np.ndarray, length: int) -> np.ndarray:
        """All [K, lanes] numbers of a plane, flat, in a buffer."""
        flat = np.zeros(length, self.dtype)
        size = self.num_classes * self.num_lanes
        flat[:size].reshape(self.num_classes, -1)[...] = plane
        return flat

    def source(self, node: Expression, view: View) -> Array:
        """The plane of a scalar in a buffer that data can be gathered from, on all devices of a mesh."""
        length = source_length(self.num_classes * self.num_lanes)
        flat = self._in_buffer(self.plane(node, view), length)
        if self.mesh is None:
            return flat if runs_on_host(None) else jax.device_put(flat)
        copies = np.broadcast_to(flat, (self.mesh.size, length))
        return jax.device_put(copies, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names)))

    def _evaluate(self, items: Sequence[Item]) -> None:
        """Computes, level by level, everything the items need from columns."""
        levels: dict[int, dict[Item, None]] = {}
        for item in items:
            self._plan(item, levels)
        for level in sorted(levels):
            work = list(levels[level])
            cores = min(len(self.layers), os.cpu_count() or 1)
            plans = self._plans(work, self._column_bytes // cores)
            largest = max((plan.bytes for own in plans.values() for plan in own), default=1)
            workers = max(1, min(cores, self._column_bytes // max(1, largest)))
            planes = {item: self._empty(item.node) for item in work}
            with _single_blas(workers), ThreadPoolExecutor(max_workers=workers) as pool:
                for _ in pool.map(partial(self._run, plans, planes), self.layers):
                    pass
            for plan in (plan for own in plans.values() for plan in own):
                plan.program.drop()
            self._keep(planes)

    def _empty(self, node: Expression) -> np.ndarray:
        classes = self.num_classes if lanes_of(node).per_class else 1
        return np.full((classes, self.num_lanes), np.nan, self.dtype)

    def _plan(self, item: Item, levels: dict[int, dict[Item, None]]) -> None:
        """Adds what an item needs to the work of each level."""
        roots = [Item("value", node, item.view) for node in evaluated_nodes(item.node) if needs_columns(node)]
        roots += [item] if item.node.type != () else []
        for root in roots:
            key = self._key(root.node, root.view)
            if root.kind == "finite":
                is_known = key in self._finite
            else:
                is_known = key in self._pinned or key in self._planes
                if is_known and key not in self._pinned:
                    self._pinned[key] = self._planes[key]
            if not is_known:
                level = column_level(root.node) + (root.kind == "finite")
                levels.setdefault(level, {})[root._replace(view=key[1] or "full")] = None

    def _plans(self, work: Sequence[Item], share: int) -> Plans:
        """What does the work, for each signature of a layer."""
        found: Plans = {}
        for layer in self.layers:
            if layer.signature not in found:
                found[layer.signature] = plans_of(layer, work, self, self._column_entries, share)
        return found

    def _run(self, plans: Plans, planes: dict[Item, np.ndarray], layer: Layer) -> None:
        """Fills the planes of one layer; on a thread, which does not know whether its caller enabled float64."""

        def store(pieces: list[Piece]) -> None:
            found = jax.device_get([piece.values for piece in pieces])
            for piece, values in zip(pieces, found, strict=True):
                for shard, own in enumerate(np.reshape(values, (piece.layer.num_shards, -1))):
                    _fill(planes[piece.item], piece, shard, own)

        with jax.enable_x64(self.dtype == np.float64), np.errstate(all="ignore"):
            for plan in plans[layer.signature]:
                plan.program.run(layer, plan.with_classes, store, self._column_bytes // 16)

    def _keep(self, planes: dict[Item, np.ndarray]) -> None:
        """Remembers planes: numbers, or whether all is finite."""
        while planes:
            item, plane = planes.popitem()
            key = self._key(item.node, item.view)
            if item.kind == "finite":
                self._finite[key] = np.asarray(np.isfinite(plane).all(axis=0))
            else:
                self._pinned[key] = plane
                self._remember(key, plane)

    def _remember(self, key: tuple[Expression, View | None], plane: np.ndarray) -> None:
        if key in self._planes:
            return
        self._planes[key] = plane
        self._cached_bytes += plane.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._planes) > 1:
            _, dropped = self._planes.popitem(last=False)
            self._cached_bytes -= dropped.nbytes


def _single_blas(workers: int) -> AbstractContextManager[object]:
    """Products of matrices on one core each while several threads run: BLAS threads of both would wait for each other.

    Measured with another process on one of 2 cores: 11 s for a product that takes 0.4 s so.
    """
    return _blas().limit(limits=1, user_api="blas") if workers > 1 else nullcontext()


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _fill(plane: np.ndarray, piece: Piece, shard: int, values: np.ndarray) -> None:
    """Puts the values of one shard of a piece to their place in a [K, lanes] plane."""
    layer, spec = piece.layer, piece.spec
    start = shard * layer.shard_channels + piece.span.first
    width = min(piece.span.number, layer.num_channels - start)
    if width <= 0:
        return
    # Statistics of sets come with all classes, and as many channels as their buffer holds.
    channels = spec.channels if piece.is_whole_buffer is False else len(values) // spec.classes
    rows = values[: spec.classes * channels].reshape(spec.classes, channels)
    is_every = not lanes_of(piece.item.node).per_class
    classes = slice(None) if is_every else slice(piece.first_class, piece.first_class + spec.classes)
    lanes = slice(layer.lane + start, layer.lane + start + width)
    plane[classes, lanes] = rows[:, : min(width, channels)]


class _Shapes:
    """Planes of which only the shape matters."""

    def __init__(self, engine: Engine) -> None:
        self.num_classes, self.num_lanes, self.mesh = engine.num_classes, engine.num_lanes, engine.mesh
        length = source_length(buffer_length(self.num_classes * self.num_lanes))
        self._zeros = np.broadcast_to(np.zeros((), engine.dtype), (length,))

    def source(self, node: Expression, view: View) -> np.ndarray:
        """Zeros that take no memory."""
        return self._zeros


@lru_cache(maxsize=1 << 16)
def needs_columns(node: Expression) -> bool:
    """Whether a scalar is made from larger values that no moment stands for."""
    return node.type == () and moment_answer(node) is None and any(child.type for child in node.children)


@lru_cache(maxsize=1 << 16)
def column_level(node: Expression) -> int:
    """How many times, one after another, columns must be computed for a node's value."""
    if moment_answer(node) is not None or not node.children:
        return 0
    below = max(column_level(child) for child in node.children)
    return below + needs_columns(node)
