"""Layers as the engine reads them: every operand a flat table padded to whole buckets, with the true sizes beside it.

Sizes are padded to powers of two, so that layers of many shapes, and a network before and after pruning, run the same
compiled kernels. Layers of equal sizes stand side by side as one. Padding is done on the host: it compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune.language.axes import SAMPLE_AXES, Type, slice_bounds, slice_range
from jaxprune.language.operands import OPERANDS
from jaxprune.scoring.analysis import View
from jaxprune.scoring.gradients import Gradients
from jaxprune.scoring.kernels import RowMask, Spec, bucket, grow, runs_on_host, source_length
from jaxprune.scoring.lanes import is_built_in, registered_value
from jaxprune.scoring.records import Operands
from jaxprune.scoring.samples import MASK_BYTES, Samples
from jaxprune.scoring.set_statistics import SMALLEST_MOMENTS, set_moments, set_statistics
from jaxprune.types import Array

PADDING = 0.0
"""What fills tables up; no result depends on it."""
MOST_CHANNELS = 512
"""So many channels stand side by side at most, unless one layer alone has more: threads share the work by layers."""


class Table(NamedTuple):
    """What one operand holds for every class and channel."""

    values: Array
    """Flat, its length a power of four; one for each shard on a mesh."""
    shape: tuple[int, ...]
    """Of one class and channel, padded."""
    class_stride: int
    """0 where all classes share the values."""
    channel_stride: int
    """0 where all channels do."""


class Layer:
    """Some members of producers with equal sizes, side by side.

    Args:
      members: operands, not stacked.
      samples: the rows' classes.
      lane: place of the first channel in planes that hold all layers.
      mesh: whose devices share the channels, if any; then there is one member.
    """

    def __init__(self, members: Sequence[Operands], samples: Samples, lane: int, mesh: Mesh | None) -> None:
        self.members, self.samples, self.lane, self.mesh = tuple(members), samples, lane, mesh
        self.num_channels = sum(one.num_channels for one in members)
        self.num_shards = 1 if mesh is None else mesh.size
        self.shard_channels = -(-self.num_channels // self.num_shards)
        self.width = bucket(self.shard_channels)
        self._tables: dict[tuple[str, View | None], Table | None] = {}
        self._statistics: dict[View, dict[str, Array]] = {}
        self._shapes: dict[tuple[Type, View], tuple[int, ...]] = {}

    @cached_property
    def _true(self) -> dict[View, dict[str, int]]:
        return {"full": true_sizes(self.members[0], "full"), "sample": true_sizes(self.members[0], "sample")}

    def true_size(self, axis: str, view: View) -> int | np.ndarray:
        """The size of an axis without padding; [K] for rows of a class."""
        if axis in SAMPLE_AXES:
            return self.samples.true_sizes[axis]
        part = slice_range(axis)
        if part is None:
            return self._true[view][axis]
        start, stop = slice_bounds(self._true[view]["D"], *part)
        return stop - start

    def shape(self, type: Type, view: View) -> tuple[int, ...]:
        """The padded shape of a value for one channel and one class."""
        if (type, view) not in self._shapes:
            self._shapes[type, view] = tuple(
                self.samples.padded[axis] if axis in SAMPLE_AXES else bucket(int(self.true_size(axis, view)))
                for axis in type
            )
        return self._shapes[type, view]

    @cached_property
    def signature(self) -> Hashable:
        """Equal for layers on which the same programs run."""
        positions = (self._true["full"]["D"], self._true["sample"]["D"])  # slices depend on the true number
        widths = tuple(one.num_channels for one in self.members)
        return id(self.samples), widths, self.shape(("F", "O", "C"), "full"), positions

    @cached_property
    def belongs(self) -> Array:
        """[K, padded NX] 1 where a row is of a class, on every device."""
        return self._shared(self.samples.belongs)

    @cached_property
    def class_sizes(self) -> Array:
        """[K] rows of each class in the sample, on every device."""
        return self._shared(self.samples.belongs.sum(axis=1))

    def mask(
        self, type: Type, view: View, spec: Spec, first_class: int, *, row: int = 0, length: int = 0
    ) -> RowMask:
        """Which entries of a value's rows are real, for the classes that a column has.

        Args:
          type, view, spec: of the value.
          first_class: of the column.
          row: entries of a row, by default all of a class and channel.
          length: of the buffer, by default the value's.
        """
        row, length = row or spec.row, length or spec.length
        classes = (first_class, spec.classes) if {"N", "NQ"} & set(type) else (0, 1)
        sizes = tuple(axis if axis in SAMPLE_AXES else int(self.true_size(axis, view)) for axis in type)
        key = (sizes, classes, spec, row, length, self.mesh)
        return self.samples.masks.get(
            key, lambda: self._make_mask(type, view, spec, first_class, row, length)
        )

    def _make_mask(
        self, type: Type, view: View, spec: Spec, first_class: int, row: int, length: int
    ) -> RowMask:
        flat = np.zeros(length, bool)
        shape = (spec.classes, spec.channels, *spec.shape)
        real = flat[: spec.entries].reshape(shape)
        real[...] = True
        for number, own in enumerate(self.axis_masks(type, view, spec, first_class)):
            by_axis = (spec.shape[number] if other == number else 1 for other in range(len(type)))
            real &= own.reshape(-1, 1, *by_axis)
        by_row = flat.reshape(-1, row)
        count = np.maximum(by_row.sum(axis=1), 1).astype(self.members[0].dtype)
        arrays = (flat, by_row.argmax(axis=1).astype(np.int32), count)
        prefix = _prefix(by_row[: spec.entries // row]) if runs_on_host(self.mesh) else None
        placed = [self._shared(array) for array in arrays]
        return RowMask(placed[0], placed[1], placed[2], prefix)

    def axis_masks(self, type: Type, view: View, spec: Spec, first_class: int) -> tuple[np.ndarray, ...]:
        """[classes or 1, length] booleans for each axis of a value."""
        classes = slice(first_class, first_class + spec.classes)
        found = []
        for axis, length in zip(type, spec.shape, strict=True):
            size = None if axis == "NQ" else np.atleast_1d(self.true_size(axis, view))
            if size is None:
                found.append(self.samples.is_other[classes])
            else:
                found.append(np.arange(length) < (size[classes] if axis == "N" else size)[:, None])
        return tuple(found)

    def start(self, axis: str, view: View) -> int:
        """The first position of a sliced axis."""
        part = slice_range(axis)
        assert part is not None
        return slice_bounds(self._true[view]["D"], *part)[0]

    def scalars(self, name: str, view: View) -> np.ndarray | None:
        """[K or 1, C or 1] values of a scalar operand; None where the layer has none."""
        if name in ("N", "NQ", "NX"):
            moments = self.members[0].moments if view == "full" else self.members[0].sample_moments
            count = np.asarray(moments.count)[:, None]
            total = count.sum(axis=0, keepdims=True)
            return {"N": count, "NQ": total - count, "NX": total}[name]
        own = [_scalar(one, name) for one in self.members]
        found = [value for value in own if value is not None]
        return np.concatenate(found, axis=1) if len(found) == len(own) else None

    def table(self, name: str, view: View) -> Table | None:
        """A non-scalar operand, `P` and `Q` apart (they are rows of `X`); None where the layer has none."""
        key = (name, None if name in ("WI", "WO", "GW") else view)
        if key not in self._tables:
            self._tables[key] = self._make(name, view)
        return self._tables[key]

    def bank(self, member: int) -> Table:
        """The weights that produce all channels of a member."""
        key = (f"W {member}", None)
        if key not in self._tables:
            shape = self.shape(("F", "C"), "full")
            padded = _padded(np.asarray(self.members[member].bank), dict(enumerate(shape)))
            self._tables[key] = Table(self._place([padded] * self.num_shards), shape, 0, 0)
        found = self._tables[key]
        assert found is not None
        return found

    def position_means(self, answer: str, view: View) -> Table:
        """`mean_samples(P)` and so on as a table."""
        if (answer, view) not in self._tables:
            values = self.statistics(view)[answer]
            positions = self.shape(("D",), view)
            num_sets = 1 if answer.endswith("(X)") else self.samples.num_classes
            stride = values.shape[-1] // num_sets if num_sets > 1 else 0
            grown = grow(self.mesh, values, source_length(values.shape[-1]))
            self._tables[answer, view] = Table(grown, positions, stride, positions[0])
        found = self._tables[answer, view]
        assert found is not None
        return found

    def scalar_statistics(self, answer: str, view: View) -> np.ndarray:
        """`mean(P)` and so on, [K or 1, C]."""
        values = np.asarray(self.statistics(view)[answer])
        num_sets = 1 if answer.endswith("(X)") else self.samples.num_classes
        by_shard = values.reshape(self.num_shards, num_sets, -1)[..., : self.shard_channels]
        return np.moveaxis(by_shard, 0, 1).reshape(num_sets, -1)[:, : self.num_channels]

    def statistics(self, view: View) -> dict[str, Array]:
        """Moments of `X`, `P` and `Q` of all members, as `set_statistics` gives them."""
        view = "full" if all(one.sample_is_full for one in self.members) else view
        if view not in self._statistics:
            own = [one.moments if view == "full" else one.sample_moments for one in self.members]
            positions = self.shape(("D",), view)[0]
            joined = {
                name: np.concatenate([np.asarray(getattr(one, name)) for one in own], axis=-1)
                for name in ("pivot", "offset", "m2")
            }
            parts = [
                self._place(self._shards(np.swapaxes(value, -1, -2), {-1: positions}), SMALLEST_MOMENTS)
                for value in (joined["pivot"], joined["offset"], joined["m2"])
            ]
            count = np.asarray(own[0].count)
            found = set_moments(self.mesh, *parts, self._shared(count))
            mask = self.mask(("D",), view, Spec(1, 1, (positions,)), 0)
            self._statistics[view] = set_statistics(self.mesh, *found, mask.is_real, positions)
        return self._statistics[view]

    def _make(self, name: str, view: View) -> Table | None:
        own = [_operand(one, name) for one in self.members]
        found = [value for value in own if value is not None]
        if not found or len(found) < len(own):
            return None
        value = np.concatenate(found, axis=1)
        type = OPERANDS[name].type
        for axis, kind in enumerate(type, start=2):
            if kind == "NQ":
                value = self._on_all_rows(value, axis)
        shape = self.shape(type, view)
        sizes = {2 + axis: size for axis, size in enumerate(shape)}
        row = math.prod(shape)
        stride = self.width * row if value.shape[0] > 1 else 0
        return Table(self._place(self._shards(value, sizes)), shape, stride, row)

    def _shards(self, value: np.ndarray, sizes: dict[int, int]) -> list[np.ndarray]:
        """Parts of [K or 1, C, *axes] or, for moments, [..., C, D] values, each padded to the width."""
        axis = value.ndim - 2 if -1 in sizes else 1
        starts = range(0, self.shard_channels * self.num_shards, self.shard_channels)
        parts = [
            np.take(value, np.arange(first, min(first + self.shard_channels, self.num_channels)), axis=axis)
            for first in starts
        ]
        return [_padded(part, sizes | {axis: self.width}) for part in parts]

    def _place(self, shards: Sequence[np.ndarray], smallest: int = 0) -> Array:
        """Shards on their devices: tables flat up to a power of four, moments [..., m] of at least so many entries."""
        dtype = self.members[0].dtype
        if smallest:
            flat = [shard.reshape(*shard.shape[:-2], -1) for shard in shards]
            length = max(smallest, flat[0].shape[-1])
        else:
            flat = [shard.reshape(-1) for shard in shards]
            length = source_length(len(flat[0]))
        padded = [_padded(shard, {-1: length}).astype(dtype, copy=False) for shard in flat]
        if self.mesh is None:
            return jax.device_put(padded[0])
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return jax.device_put(np.stack(padded), sharding)

    def _shared(self, array: np.ndarray) -> Array:
        if self.mesh is None:
            return jax.device_put(array)
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))

    def _on_all_rows(self, value: np.ndarray, axis: int) -> np.ndarray:
        """Moves the rows of the other classes, which come first in `value`, to their places among all rows."""
        rows = np.moveaxis(value, axis, 2)
        placed = np.zeros((*rows.shape[:2], self.samples.padded["NX"], *rows.shape[3:]), value.dtype)
        for k, is_other in enumerate(self.samples.is_other):
            placed[k, :, is_other] = np.moveaxis(rows[k, :, : is_other.sum()], 1, 0)
        return np.moveaxis(placed, 2, axis)


def _prefix(rows: np.ndarray) -> int | None:
    """How many entries of each row are real, where they are the first ones of every row."""
    number = int(rows[0].sum()) if len(rows) else 0
    return number if number and rows[:, :number].all() and not rows[:, number:].any() else None


def true_sizes(one: Operands, view: View) -> dict[str, int]:
    """The sizes of the axes of one layer, rows of samples apart; `O` is 1 where there are no outgoing weights."""
    moments = one.moments if view == "full" else one.sample_moments
    return {
        "F": one.filters.shape[0],
        "C": one.bank.shape[-1],
        "O": 1 if one.outgoing is None else one.outgoing.shape[0],
        "D": moments.pivot.shape[0],
    }


def layers_of(
    operands: Sequence[Operands], mesh: Mesh | None = None, mask_bytes: int = MASK_BYTES
) -> tuple[list[Layer], list[list[int]], int]:
    """All members of all producers as layers, side by side.

    Returns:
      (layers, for each producer the first lane of each of its members, the number of lanes).
    """
    samples: dict[tuple[int, ...], Samples] = {}
    members: dict[Hashable, list[tuple[int, Operands]]] = {}
    for number, one in enumerate(operands):
        samples.setdefault(one.class_counts, Samples(one.class_counts, one.dtype, mask_bytes))
        for index in range(one.num_members):
            member = one.member(index) if one.is_stacked else one
            key = (one.class_counts, *_alike(member)) if mesh is None else (number, index)
            members.setdefault(key, []).append((number, member))
    layers: list[Layer] = []
    starts: list[list[int]] = [[] for _ in operands]
    lane = 0
    for own in members.values():
        at_once = max(1, MOST_CHANNELS // own[0][1].num_channels)
        for first in range(0, len(own), at_once):
            part = own[first : first + at_once]
            layers.append(Layer([one for _, one in part], samples[part[0][1].class_counts], lane, mesh))
            for number, one in part:
                starts[number].append(lane)
                lane += one.num_channels
    return layers, starts, lane


def _alike(one: Operands) -> tuple[Hashable, ...]:
    """Equal for operands that can stand side by side."""
    present = (
        one.outgoing is None,
        one.gamma is None,
        one.beta is None,
        one.gradients is None,
        *sorted(one.extras),
    )
    sizes = (tuple(true_sizes(one, view).values()) for view in ("full", "sample"))
    return (*present, *sizes, one.sample_is_full)


def _scalar(one: Operands, name: str) -> np.ndarray | None:
    if name in ("gamma", "beta"):
        value = getattr(one, name)
        return None if value is None else np.asarray(value)[None]
    return _registered(one, name)


def _operand(one: Operands, name: str) -> np.ndarray | None:
    """[K or 1, C or 1, *axes] values of an operand, or None."""
    gradients = one.gradients or Gradients()
    channels_last = {
        "X": one.samples,
        "WI": one.filters,
        "WO": one.outgoing,
        "GW": gradients.weights,
        "GX": gradients.samples,
    }
    if name not in channels_last:
        return _registered(one, name)
    given = channels_last[name]
    return None if given is None else np.moveaxis(np.asarray(given), -1, 0)[None]


def _registered(one: Operands, name: str) -> np.ndarray | None:
    if is_built_in(name):
        return None
    value = registered_value(jax.tree.map(lambda leaf: leaf[None], one), name)
    return None if value is None else np.asarray(value[0])


def _padded(array: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    widths = [(0, 0)] * array.ndim
    for axis, size in sizes.items():
        widths[axis] = (0, size - array.shape[axis])
    return np.pad(array, widths, constant_values=PADDING)
