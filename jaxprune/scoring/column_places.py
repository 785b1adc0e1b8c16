"""What columns are made of: what is wanted of them, where they lie, and how their values stand in buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from jax.sharding import Mesh

from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View
from jaxprune.scoring.kernels import Spec
from jaxprune.scoring.layers import Layer
from jaxprune.types import Array

Kind = Literal["value", "finite"]


class Item(NamedTuple):
    """What is wanted of every class and channel: a scalar, or whether all entries of a value are finite."""

    kind: Kind
    node: Expression
    view: View


class Span(NamedTuple):
    """Some channels of a layer; on a mesh, of each shard."""

    first: int
    number: int


class Piece(NamedTuple):
    """An item's values, flat, for some classes and channels of a layer; one number stands for a whole span."""

    item: Item
    layer: Layer
    first_class: int
    spec: Spec
    span: Span
    is_whole_buffer: bool
    """Whether the buffer holds as many channels as it is long, not those of the spec."""
    values: Array


class Place(NamedTuple):
    """Where a column lies."""

    layer: Layer
    member: int
    first_class: int
    first_channel: int


class Planes(Protocol):
    """Where columns read scalars."""

    num_classes: int
    num_lanes: int
    mesh: Mesh | None

    def source(self, node: Expression, view: View) -> Array:
        """[K, lanes] values of a scalar in a buffer that data can be gathered from."""


class Extent(NamedTuple):
    """What kind of columns: their classes and channels, and whether they read the bank of one member."""

    num_classes: int
    num_channels: int
    has_bank: bool


def contiguous(spec: Spec) -> tuple[int, ...]:
    """Strides of classes, channels and axes; 0 for classes and channels that are not there.

    Example:
      >>> contiguous(Spec(1, 4, (8, 2)))
      (0, 16, 2, 1)
    """
    axes = [math.prod(spec.shape[axis + 1 :]) for axis in range(len(spec.shape))]
    channels = spec.row if spec.channels > 1 else 0
    return (spec.channels * spec.row if spec.classes > 1 else 0, channels, *axes)


def is_contiguous(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether digits of these sizes and strides count through a buffer one by one.

    Example:
      >>> is_contiguous((2, 8), (8, 1)), is_contiguous((2, 8), (1, 2))
      (True, False)
    """
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
