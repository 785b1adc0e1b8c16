"""What the tracer knows of an intermediate value: which labels its indices carry, and where it comes from.

A *field* spreads labels over one or more axes of a value: a kernel [c_in, c_out] has one field over each axis, what
`reshape` makes of [.., heads * size] has one over two axes. An index of a value is there as long as none of its labels
is cut. Axes of the input, the batch for instance, are *fixed*: they have no labels, and freeze those they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxprune.pruning.labels import FREE
from jaxprune.pruning.states import Path


class LabelField(NamedTuple):
    """Labels over some axes of a value."""

    axes: tuple[int, ...]
    """Rising."""
    labels: np.ndarray
    """One axis for each of these, of their lengths."""


@dataclass(frozen=True)
class Value:
    """An intermediate: shape, labels, and what it is made of.

    `fixed` holds for each axis `FREE` or the number of the reason why it stays (see `Labels.fixed`); axes with labels
    are not fixed. `sources` are parameters it is made of, empty for activations and constants; `origin` says for each
    axis which axes of the parameter it follows. `producers` numbers the productions (see `records.py`) it carries.
    """

    shape: tuple[int, ...]
    fields: tuple[LabelField, ...] = ()
    fixed: tuple[int, ...] = ()
    sources: frozenset[Path] = frozenset()
    origin: tuple[frozenset[int], ...] = ()
    is_activation: bool = False
    producers: frozenset[int] = field(default=frozenset())

    def over(self, axis: int) -> list[LabelField]:
        """The fields that an axis takes part in."""
        return [own for own in self.fields if axis in own.axes]


def free_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The `fixed` of a value whose axes may go with whatever they meet."""
    return (FREE,) * len(shape)


def moved(fields: Sequence[LabelField], new_axis: Sequence[int]) -> tuple[LabelField, ...]:
    """Fields after axis i has become axis `new_axis[i]`.

    Example:
      >>> moved([LabelField((0, 2), np.array([[1, 2, 3]]))], (1, 2, 0))[0].labels.shape
      (3, 1)
    """
    result = []
    for own in fields:
        axes = [new_axis[axis] for axis in own.axes]
        if all(a < b for a, b in zip(axes, axes[1:], strict=False)):
            result.append(LabelField(tuple(axes), own.labels))
        else:
            order = np.argsort(axes)
            result.append(LabelField(tuple(sorted(axes)), own.labels.transpose(order)))
    return tuple(result)


def stretched(fields: Sequence[LabelField], shape: Sequence[int]) -> tuple[LabelField, ...]:
    """Fields of a value whose axes of length one have grown to `shape`: one label stands all along them.

    Example:
      >>> stretched([LabelField((0,), np.array([7]))], (3,))[0].labels.tolist()
      [7, 7, 7]
    """
    sizes = [tuple(shape[axis] for axis in own.axes) for own in fields]
    return tuple(
        own if own.labels.shape == size else LabelField(own.axes, np.broadcast_to(own.labels, size))
        for own, size in zip(fields, sizes, strict=True)
    )


def spread(own: LabelField, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Labels over more axes than the field has: `shape` is that of the value, `axes` rise and hold the field's."""
    sizes = [shape[axis] if axis in own.axes else 1 for axis in axes]
    return np.broadcast_to(own.labels.reshape(sizes), [shape[axis] for axis in axes])


def tidied(axes: Sequence[int], labels: np.ndarray) -> LabelField | None:
    """A field without the axes along which its labels do not change; None where it holds no label.

    Axes of length one go too, unless nothing else is left.
    """
    if labels.size == 0 or bool((labels == FREE).all()):
        return None
    kept = list(axes)
    for position in reversed(range(len(kept))):
        if len(kept) == 1:
            break
        first = labels.take([0], axis=position)
        if labels.shape[position] == 1 or bool((labels == first).all()):
            labels = first.squeeze(position)
            del kept[position]
    return LabelField(tuple(kept), labels)
