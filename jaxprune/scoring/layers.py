"""One layer as the engine reads it: every operand a table padded to whole buckets, with the true sizes beside it.

Sizes are padded to powers of two, so that layers of many shapes, and a network before and after pruning, run the same
compiled kernels. Padding is done on the host: it compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import SAMPLE_AXES, Type, slice_bounds, slice_range
from jaxprune.language.operands import OPERANDS
from jaxprune.scoring.analysis import View
from jaxprune.scoring.gradients import Gradients
from jaxprune.scoring.kernels import moment_statistics
from jaxprune.scoring.lanes import is_built_in, registered_value
from jaxprune.scoring.moments import Moments
from jaxprune.scoring.records import Operands
from jaxprune.types import Array

PADDING = 0.0
"""What fills tables up; no result depends on it."""
SMALLEST_WIDTH = 16
"""Least number of channels a layer is padded to."""

Table = jax.Array
"""[K or 1, C or 1, *axes], all padded: what one operand holds for every class and channel of a layer."""


def bucket(size: int, smallest: int = 1) -> int:
    """The power of two that a size is padded to.

    Example:
      >>> bucket(1), bucket(9), bucket(3, smallest=16)
      (1, 16, 16)
    """
    return max(smallest, 1 << (size - 1).bit_length())


class Samples:
    """Which rows of a class-sorted sample belong to which class; the same for all layers of a network.

    Args:
      class_counts: number of rows of each class.
    """

    def __init__(self, class_counts: tuple[int, ...], dtype: np.dtype) -> None:
        counts = np.asarray(class_counts)
        ids = np.repeat(np.arange(len(counts)), counts)
        self.num_classes = len(counts)
        self.true_sizes: dict[str, int | np.ndarray] = {"NX": len(ids), "N": counts}
        self.padded = {"NX": bucket(len(ids)), "N": bucket(int(counts.max()))}
        self.padded["NQ"] = self.padded["NX"]
        belongs = np.zeros((self.num_classes, self.padded["NX"]), dtype)
        belongs[ids, np.arange(len(ids))] = 1
        self.belongs = jnp.asarray(belongs)
        """[K, padded NX] 1 where a row is of a class."""
        is_row = np.arange(self.padded["NX"]) < len(ids)
        self.is_other = np.asarray((belongs == 0) & is_row)
        """[K, padded NX] whether a row is of another class; `Q` is `X` with this mask."""
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        rows = starts[:, None] + np.minimum(np.arange(self.padded["N"]), counts[:, None] - 1)
        self.rows = jnp.asarray(rows, jnp.int32)
        """[K, padded N] numbers of the rows of each class."""


class Layer:
    """One member of one producer.

    Args:
      operands: not stacked.
      samples: the rows' classes.
      lane: place of its first channel in planes that hold all layers.
    """

    def __init__(self, operands: Operands, samples: Samples, lane: int) -> None:
        self.operands, self.samples, self.lane = operands, samples, lane
        self.num_channels = operands.num_channels
        self.width = bucket(self.num_channels, SMALLEST_WIDTH)
        self._tables: dict[tuple[str, View | None], Table | None] = {}
        self._statistics: dict[View, dict[str, Table]] = {}
        self._sizes: dict[tuple[str, View, int, int], Array] = {}
        self._shapes: dict[tuple[Type, View], tuple[int, ...]] = {}

    @cached_property
    def _true(self) -> dict[View, dict[str, int]]:
        fixed = {
            "F": self.operands.filters.shape[0],
            "C": self.operands.bank.shape[-1],
            "O": 1 if self.operands.outgoing is None else self.operands.outgoing.shape[0],
        }
        return {
            "full": fixed | {"D": self.operands.moments.pivot.shape[0]},
            "sample": fixed | {"D": self.operands.sample_moments.pivot.shape[0]},
        }

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
        return id(self.samples), self.width, self.shape(("F", "O", "C"), "full"), positions

    def sizes(self, type: Type, view: View, first_class: int, num_classes: int) -> tuple[Array, ...]:
        """Per axis which entries are real (see `kernels.Sizes`), on the device, for some classes."""
        found = []
        for axis in type:
            key = (axis, view, first_class, num_classes) if axis in ("N", "NQ") else (axis, view, 0, 0)
            if key not in self._sizes:
                classes = slice(first_class, first_class + num_classes)
                if axis == "NQ":
                    self._sizes[key] = jnp.asarray(self.samples.is_other[classes])
                else:
                    size = np.atleast_1d(self.true_size(axis, view)).astype(np.int32)
                    self._sizes[key] = jnp.asarray(size[classes] if axis == "N" else size)
            found.append(self._sizes[key])
        return tuple(found)

    def start(self, axis: str, view: View) -> Array:
        """The first position of a sliced axis."""
        part = slice_range(axis)
        assert part is not None
        key = ("start " + axis, view, 0, 0)
        if key not in self._sizes:
            self._sizes[key] = jnp.asarray(slice_bounds(self._true[view]["D"], *part)[0], jnp.int32)
        return self._sizes[key]

    def scalars(self, name: str, view: View) -> np.ndarray | None:
        """[K or 1, C or 1] values of a scalar operand, without padding; None where the layer has none."""
        operands = self.operands
        if name in ("gamma", "beta"):
            value = getattr(operands, name)
            return None if value is None else np.asarray(value)[None]
        if name in ("N", "NQ", "NX"):
            moments = operands.moments if view == "full" else operands.sample_moments
            count = np.asarray(moments.count)[:, None]
            total = count.sum(axis=0, keepdims=True)
            return {"N": count, "NQ": total - count, "NX": total}[name]
        return self._registered(name)

    def table(self, name: str, view: View) -> Table | None:
        """A non-scalar operand, `P` and `Q` apart (they are rows of `X`); None where the layer has none."""
        key = (name, None if name in ("WI", "WO", "W", "GW") else view)
        if key not in self._tables:
            self._tables[key] = self._make(name, view)
        return self._tables[key]

    def statistics(self, view: View) -> dict[str, Table]:
        """Moments of `X`, `P` and `Q`: `mean(P)` [K or 1, C] and `mean_samples(P)` [K or 1, C, D], padded."""
        view = "full" if self.operands.sample_is_full else view
        if view not in self._statistics:
            moments = self.operands.moments if view == "full" else self.operands.sample_moments
            positions = bucket(self._true[view]["D"])
            whole = {-1: self.width, -2: positions}
            padded = Moments(
                moments.count,
                self._pad(moments.pivot, whole),
                self._pad(moments.offset, whole),
                self._pad(moments.m2, whole),
                self._pad(moments.active, {-1: self.width}),
            )
            self._statistics[view] = moment_statistics(padded, *self.sizes(("D",), view, 0, 0))
        return self._statistics[view]

    def _make(self, name: str, view: View) -> Table | None:
        operands = self.operands
        if name == "W":
            return self._padded(np.asarray(operands.bank)[None, None], ("F", "C"), view)
        gradients = operands.gradients or Gradients()
        channels_last = {
            "X": operands.samples,
            "WI": operands.filters,
            "WO": operands.outgoing,
            "GW": gradients.weights,
            "GX": gradients.samples,
        }
        if name in channels_last:
            given = channels_last[name]
            value = None if given is None else np.moveaxis(np.asarray(given), -1, 0)[None]
        else:
            value = self._registered(name)
        return None if value is None else self._padded(value, OPERANDS[name].type, view)

    def _registered(self, name: str) -> np.ndarray | None:
        if is_built_in(name):
            return None
        value = registered_value(jax.tree.map(lambda leaf: leaf[None], self.operands), name)
        return None if value is None else np.asarray(value[0])

    def _padded(self, value: np.ndarray, type: Type, view: View) -> Table:
        for axis, name in enumerate(type, start=2):
            if name == "NQ":
                value = self._on_all_rows(value, axis)
        sizes: dict[int, int] = {2 + i: size for i, size in enumerate(self.shape(type, view))}
        if value.shape[1] > 1 or self.num_channels == 1:
            sizes[1] = self.width
        return self._pad(value, sizes)

    def _on_all_rows(self, value: np.ndarray, axis: int) -> np.ndarray:
        """Moves the rows of the other classes, which come first in `value`, to their places among all rows."""
        rows = np.moveaxis(value, axis, 2)
        placed = np.zeros((*rows.shape[:2], self.samples.padded["NX"], *rows.shape[3:]), value.dtype)
        for k, is_other in enumerate(self.samples.is_other):
            placed[k, :, is_other] = np.moveaxis(rows[k, :, : is_other.sum()], 1, 0)
        return np.moveaxis(placed, 2, axis)

    def _pad(self, value: Array, sizes: dict[int, int]) -> jax.Array:
        array = np.asarray(value)
        widths = [(0, 0)] * array.ndim
        for axis, size in sizes.items():
            widths[axis] = (0, size - array.shape[axis])
        return jnp.asarray(np.pad(array, widths, constant_values=PADDING), self.operands.dtype)


def layers_of(operands: Sequence[Operands]) -> tuple[list[Layer], int]:
    """Every member of every producer as a layer, side by side, and the number of lanes they take."""
    first = operands[0]
    samples = Samples(first.class_counts, first.dtype)
    layers: list[Layer] = []
    lane = 0
    for one in operands:
        own = samples if one.class_counts == first.class_counts else Samples(one.class_counts, one.dtype)
        for index in range(one.num_members):
            layers.append(Layer(one.member(index) if one.is_stacked else one, own, lane))
            lane += layers[-1].width
    return layers, bucket(lane, 64) if lane <= 1024 else 1024 * math.ceil(lane / 1024)
