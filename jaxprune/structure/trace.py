"""What a walk through a network notes down: who makes and who reads channels, costs, and what must be taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxprune.structure.labels import FREE, Labels
from jaxprune.structure.model_state import Path
from jaxprune.structure.program import Operation, Program, shape_of

Seeds = dict[Path, tuple[tuple[np.ndarray, ...], ...]]
"""For every array and axis its labels: one [length] array, or several where the axis is a product of factors."""


class ProducerUse(NamedTuple):
    """One use of a kernel that makes channels: its axes that the channels follow."""

    kernel: Path
    axes: frozenset[int]
    labels: np.ndarray
    """Some of those of the channels."""


class ChannelRead(NamedTuple):
    """Where channels are read: the value, those of its axes, and the kernel with the axes that meet them."""

    value_number: int
    value: LabelledValue
    axes: tuple[int, ...]
    kernel: Path | None
    kernel_axes: frozenset[int]
    num_affine_uses: int
    """How many touches came before it."""


class AffineUse(NamedTuple):
    """A learned scale or shift of activations."""

    is_scale: bool
    producers: frozenset[int]
    sources: frozenset[Path]
    labels: np.ndarray


class ContractionMacs(NamedTuple):
    """Multiply-adds of one contraction (of a whole batch): a constant, and fields over the axes that may be cut."""

    constant: int
    clusters: tuple[tuple[np.ndarray, ...], ...]
    """Of axes that share fields: flat labels, a factor each, all of one length."""


class SuspectAxis(NamedTuple):
    """Labels on an axis that is cut, padded or taken apart: code there may count on their number."""

    labels: np.ndarray
    ties: tuple[np.ndarray, np.ndarray] | None
    """Labels that would have to fall together for parts to stay equally long."""
    is_fill: bool = False
    """Whether these are the ends that a pad adds: as many before as behind, whatever else the code counts on."""


class StartingLabels(NamedTuple):
    """Labels before a walk: those of every array, how many there are, and which of them are the same."""

    seeds: Seeds
    size: int
    same: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


class FactorRequest(NamedTuple):
    """Labels whose indices an operation takes apart: label i stands for the pair, or more, of its coordinates."""

    labels: np.ndarray
    coordinates: tuple[np.ndarray, ...]


@dataclass
class Trace:
    """The result of a walk, still in terms of labels; `groups.py` turns it into groups."""

    program: Program
    labels: Labels
    seeds: Seeds
    trained: frozenset[Path]
    values: dict[int, LabelledValue] = field(default_factory=dict)
    producer_uses: list[ProducerUse] = field(default_factory=list)
    reads: list[ChannelRead] = field(default_factory=list)
    affine_uses: list[AffineUse] = field(default_factory=list)
    contraction_macs: list[ContractionMacs] = field(default_factory=list)
    factor_requests: list[FactorRequest] = field(default_factory=list)
    unions: list[tuple[Operation, np.ndarray, np.ndarray]] = field(default_factory=list)
    reshaped: dict[int, int] = field(default_factory=dict)
    """LabelledValue -> the value that it is, differently laid out."""
    suspect_axes: list[SuspectAxis] = field(default_factory=list)
    split_labels: dict[tuple[int, int], tuple[Operation, np.ndarray]] = field(default_factory=dict)
    """Value and number of the field -> what split it off or took it apart, and the labels where they are then."""
    start: StartingLabels | None = None
    """From what the walk began, and what was found out since."""
    settled: Trace | None = None
    """A walk that began with all that this one found out about labels, once it has been asked for."""
    _numbers: dict[tuple[int, Path], int] = field(default_factory=dict)
    turns: int = 1
    """How often what is walked now runs: the turns of the loops around it."""

    def produce(self, step: Operation, kernel: Path, axes: frozenset[int], labels: np.ndarray) -> int:
        """Notes that a kernel makes channels; returns the production's number, the same one in every turn."""
        key = (step.outputs[0], kernel)
        if key not in self._numbers:
            self._numbers[key] = len(self.producer_uses)
            self.producer_uses.append(ProducerUse(kernel, axes, labels))
        return self._numbers[key]

    def consume(
        self,
        number: int,
        value: LabelledValue,
        axes: tuple[int, ...],
        kernel: Path | None,
        kernel_axes: frozenset[int],
    ) -> None:
        """Notes that channels on some axes are read."""
        self.reads.append(ChannelRead(number, value, axes, kernel, kernel_axes, len(self.affine_uses)))

    def touch(self, value: LabelledValue, parameter: LabelledValue, *, is_scale: bool) -> None:
        """Notes a learned scale or shift."""
        if value.producers and parameter.fields:
            labels = np.concatenate([own.labels.reshape(-1) for own in parameter.fields])
            self.affine_uses.append(AffineUse(is_scale, value.producers, parameter.sources, labels))

    def freeze(self, fields: list[LabelField] | tuple[LabelField, ...], reason: str) -> None:
        """Forbids cutting all labels of some fields."""
        for own in fields:
            self.labels.freeze(own.labels, reason)


def output_shapes(step: Operation) -> list[tuple[int, ...]]:
    """Shapes of what a step makes."""
    return [shape_of(variable) for variable in step.equation.outvars]


# === merged: """What the tracer knows of an intermediate value: which labels its indices carry, and whe


class LabelField(NamedTuple):
    """Labels over some axes of a value."""

    axes: tuple[int, ...]
    """Rising."""
    labels: np.ndarray
    """One axis for each of these, of their lengths."""


@dataclass(frozen=True)
class LabelledValue:
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
