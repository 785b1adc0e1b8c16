"""What is known of a network's values while labels are propagated through it, and what is noted on the way.

A `LabelledValue` says which label is at which index of one intermediate value. A rule for each kind of operation
(`rules.py`) turns the labelled inputs of the operation into its labelled outputs. On the way, the rules note in the
`Trace` where kernels make channels, where channels are read, how many multiply-adds contractions take, and which labels
have to be split into factors. `channel_classes.py` turns a finished trace into channels and families of channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxprune.structure.labels import FREE, Labels
from jaxprune.structure.model_state import Path
from jaxprune.structure.program import Operation, Program, shape_of

ArrayLabels = dict[Path, tuple[tuple[np.ndarray, ...], ...]]
"""The labels of a network's arrays: path -> for each axis its factors, each with [axis length] labels.

An axis of length one has no factor and most axes have one. An axis that holds [heads, size] in one has two: a label for
the head, and one for the position within a head."""

NO_AXES: frozenset[int] = frozenset()
"""The source axes of an axis that follows none."""


class LabelField(NamedTuple):
    """Labels over some axes of a value: the index (i, j) of these axes belongs to the channel `labels[i, j]`."""

    axes: tuple[int, ...]
    """Axes of the value, rising."""
    labels: np.ndarray
    """Labels, `FREE` and markers, one axis for each of `axes` and as long."""


@dataclass(frozen=True)
class LabelledValue:
    """An intermediate value of the network: its shape, its labels, and what it was computed from.

    An index of the value can be removed only together with the labels that all fields have there.
    """

    shape: tuple[int, ...]
    fields: tuple[LabelField, ...] = ()
    fixed: tuple[int, ...] = ()
    """For each axis `FREE`, or the marker that says why the axis stays whole; an axis with labels has `FREE`."""
    sources: frozenset[Path] = frozenset()
    """The parameters that it was computed from; empty for activations and constants."""
    source_axes: tuple[frozenset[int], ...] = ()
    """For each axis, the axes of the source that it follows."""
    is_activation: bool = False
    """Whether it depends on the network's input."""
    producers: frozenset[int] = frozenset()
    """Which of `Trace.producer_uses` made the channels that it carries."""
    weight_sums: frozenset[int] = frozenset()
    """Which of `Trace.weight_sums` it depends on; empty for activations."""
    is_shifted: bool = False
    """Whether it may be other than zero where the parameters that it is computed from are zero."""

    def __post_init__(self) -> None:
        """Fills in what was left out for each axis: nothing is fixed, and no axis of a source is followed."""
        object.__setattr__(self, "fixed", self.fixed or (FREE,) * len(self.shape))
        object.__setattr__(self, "source_axes", self.source_axes or (NO_AXES,) * len(self.shape))

    def over(self, axis: int) -> list[LabelField]:
        """Returns the fields whose labels depend on the index of this axis."""
        return [field for field in self.fields if axis in field.axes]


class ProducerUse(NamedTuple):
    """One use of a kernel that makes channels."""

    kernel: Path
    axes: frozenset[int]
    """Axes of the kernel that the channels lie on."""
    labels: np.ndarray
    """The distinct labels of the channels."""


class ChannelRead(NamedTuple):
    """A contraction that reads channels of an activation."""

    value_number: int
    """Number of the activation in the program."""
    value: LabelledValue
    axes: tuple[int, ...]
    """Axes of the activation that are summed over, or multiplied index by index."""
    shared_axes: frozenset[int]
    """Those that are only multiplied index by index."""
    kernel: Path | None
    """The kernel that it is contracted with; None where that is another activation."""
    kernel_axes: frozenset[int]
    """Axes of the kernel that meet `axes`."""
    num_affine_uses: int
    """How many affine uses were noted before it."""


class AffineUse(NamedTuple):
    """A learned scale or shift that is applied to an activation."""

    is_scale: bool
    producers: frozenset[int]
    """Producer uses whose channels are scaled or shifted."""
    sources: frozenset[Path]
    """Parameters that the scale or shift is computed from."""
    labels: np.ndarray


class WeightSum(NamedTuple):
    """A sum, or the like, over entries of a value that is computed from parameters alone."""

    sources: frozenset[Path]
    labels: np.ndarray
    """The labels along the axes that it runs over."""
    num_entries: int
    """How many entries are summed up to one."""
    operation: Operation
    sees_zeros: bool
    """Whether it is another one if there are zeros in place of entries that are removed."""


class WeightNorm(NamedTuple):
    """A use of parameters that depends on a sum over themselves, or is not zero where they are."""

    sources: frozenset[Path]
    labels: np.ndarray
    """The labels that the sum runs over, or on the axes that are not zero."""
    operation: Operation
    is_norm: bool
    """Whether there is a sum."""
    sees_zeros: bool
    """Whether zeros in place of entries do not give the same as removing them."""


class ContractionMacs(NamedTuple):
    """Multiply-adds of one contraction for a whole batch: a constant times the labelled sizes of each cluster.

    A cluster is a set of axes that share fields. For each cluster there are flat arrays of labels, one for each field
    and all of one length; the number of indices that are left when channels are removed multiplies the constant.
    """

    constant: int
    clusters: tuple[tuple[np.ndarray, ...], ...]


class SuspectAxis(NamedTuple):
    """Labels on an axis that is sliced, padded or split, so that the network's code may rely on its length."""

    labels: np.ndarray
    ties: tuple[np.ndarray, np.ndarray] | None
    """Pairs of labels that would have to be united for the parts of the axis to stay equally long."""
    is_fill: bool = False
    """Whether these are labels for what a padding adds; `ties` then makes it as long in front as behind."""


class StartingLabels(NamedTuple):
    """What is known of labels before they are propagated."""

    array_labels: ArrayLabels
    num_labels: int
    ties: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """Pairs of arrays of labels that are united from the start."""


class FactorRequest(NamedTuple):
    """Labels that an operation needs to see as combinations of several labels, the factors.

    The labels lie along an axis, or several, whose flat index is split into digits, such as (head, position in head).
    """

    labels: np.ndarray
    """[n] the labels as they are."""
    digits: tuple[np.ndarray, ...]
    """For each factor, [n] the digit of each label."""


@dataclass
class Trace:
    """Everything that is found out while labels are propagated through a program once."""

    program: Program
    labels: Labels
    array_labels: ArrayLabels
    trained: frozenset[Path]
    """Paths of the trained parameters."""
    live: frozenset[int]
    """Numbers of the values that an output of the network depends on."""
    with_dead_code: bool = True
    """Whether what computes other values unites labels, which keeps shapes alike that it brings together."""
    values: dict[int, LabelledValue] = field(default_factory=dict)
    """What is known of every value of the program, by number."""
    producer_uses: list[ProducerUse] = field(default_factory=list)
    reads: list[ChannelRead] = field(default_factory=list)
    affine_uses: list[AffineUse] = field(default_factory=list)
    weight_sums: list[WeightSum] = field(default_factory=list)
    weight_norms: list[WeightNorm] = field(default_factory=list)
    contraction_macs: list[ContractionMacs] = field(default_factory=list)
    factor_requests: list[FactorRequest] = field(default_factory=list)
    unions: list[tuple[Operation, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Labels that were united for the first time, and by which operation."""
    reshaped: dict[int, int] = field(default_factory=dict)
    """Number of the result of a reshape -> number of the value that was reshaped."""
    suspect_axes: list[SuspectAxis] = field(default_factory=list)
    split_labels: dict[tuple[int, int], tuple[Operation, np.ndarray]] = field(default_factory=dict)
    """(value number, index of a field) -> the slice, split or reshape that made it, and its labels there."""
    start: StartingLabels | None = None
    """What was known before."""
    settled: Trace | None = None
    """Another trace of the program, made by `Structure.settled` from the united labels and cached here."""
    iterations: int = 1
    """How often the current operation runs: the product of the lengths of the loops around it."""
    _producer_index: dict[tuple[int, Path], int] = field(default_factory=dict)

    def add_producer_use(
        self, operation: Operation, kernel: Path, axes: frozenset[int], labels: np.ndarray
    ) -> int:
        """Notes that an operation makes channels with a kernel.

        Args:
          operation: the contraction or look-up.
          kernel: path of the kernel.
          axes: its axes that the channels lie on.
          labels: the labels of the channels, repeated or not.

        Returns:
          Index of the use in `producer_uses`, the same each time that a loop comes back to the operation.
        """
        key = (operation.outputs[0], kernel)
        if key not in self._producer_index:
            self._producer_index[key] = len(self.producer_uses)
            self.producer_uses.append(ProducerUse(kernel, axes, labels))
        return self._producer_index[key]

    @contextmanager
    def noting_only_unions(self) -> Iterator[None]:
        """Until the context ends, rules freeze nothing, and only what concerns shapes is kept of what they note.

        Without `with_dead_code`, not even labels are united, nor split into factors for that.
        """
        lists: list[list[Any]] = [self.reads, self.affine_uses, self.weight_norms]
        lists += [self.contraction_macs, self.unions, self.producer_uses]
        if not self.with_dead_code:
            lists.append(self.factor_requests)
        lengths, num_splits = [len(noted) for noted in lists], len(self.split_labels)
        with self.labels.lenient(unites=self.with_dead_code):
            yield
        for noted, length in zip(lists, lengths, strict=True):
            del noted[length:]
        for key in list(self.split_labels)[num_splits:]:
            del self.split_labels[key]
        for use in [use for use, index in self._producer_index.items() if index >= len(self.producer_uses)]:
            del self._producer_index[use]

    def freeze(self, fields: Iterable[LabelField], reason: str) -> None:
        """Forbids removing any label of some fields, for the given reason."""
        for _, labels in fields:
            self.labels.freeze(labels, reason)

    def freeze_and_mark(self, fields: Iterable[LabelField], reason: str) -> int:
        """Freezes some fields and returns the marker for axes that stay for the same reason."""
        self.freeze(fields, reason)
        return self.labels.fixed_marker(reason)


def output_shapes(operation: Operation) -> list[tuple[int, ...]]:
    """Returns the shape of each output of an operation."""
    return [shape_of(variable) for variable in operation.equation.outvars]


def computed_from(
    inputs: Sequence[LabelledValue],
    shape: tuple[int, ...],
    fields: Sequence[LabelField] = (),
    fixed: Sequence[int] = (),
    source_axes: Sequence[frozenset[int]] | None = None,
) -> LabelledValue:
    """Returns a value that is computed from others.

    It is an activation if any of the inputs is one; otherwise its sources are the sources of all of them.

    Args:
      inputs: the values that it is computed from.
      shape: its shape.
      fields: its labels.
      fixed: for each axis `FREE` or a marker; all `FREE` if left out.
      source_axes: for each axis, the axes of the source that it follows; ignored for an activation. If left out,
        those of the first input with sources and the same shape.

    Returns:
      The value.
    """
    is_activation = any(value.is_activation for value in inputs)
    if source_axes is None:
        same_shape = (value.source_axes for value in inputs if value.sources and value.shape == shape)
        source_axes = next(same_shape, ())
    return LabelledValue(
        shape=shape,
        fields=tuple(fields),
        fixed=tuple(fixed),
        sources=frozenset() if is_activation else frozenset().union(*(value.sources for value in inputs)),
        source_axes=() if is_activation else tuple(source_axes),
        is_activation=is_activation,
        producers=frozenset().union(*(value.producers for value in inputs)),
        weight_sums=frozenset()
        if is_activation
        else frozenset().union(*(value.weight_sums for value in inputs)),
        is_shifted=not is_activation and any(value.is_shifted for value in inputs),
    )


def select_axes(value: LabelledValue, axes: Sequence[int], fields: Iterable[LabelField]) -> LabelledValue:
    """Returns a value with only some of its axes, in a new order.

    Args:
      value: the value before.
      axes: for each axis of the result, the axis of `value` that it is.
      fields: the labels of the result.
    """
    return dataclasses.replace(
        value,
        shape=tuple(value.shape[axis] for axis in axes),
        fields=tuple(fields),
        fixed=tuple(value.fixed[axis] for axis in axes),
        source_axes=tuple(value.source_axes[axis] for axis in axes),
    )


def move_axes(fields: Sequence[LabelField], new_axis: Sequence[int]) -> tuple[LabelField, ...]:
    """Returns fields of a value whose axis i has become axis `new_axis[i]`.

    Example:
      >>> move_axes([LabelField((0, 2), np.array([[1, 2, 3]]))], (1, 2, 0))[0].labels.shape
      (3, 1)
    """
    result = []
    for axes, labels in fields:
        new_axes = [new_axis[axis] for axis in axes]
        if len(axes) > 1:
            labels = labels.transpose(np.argsort(new_axes))
        result.append(LabelField(tuple(sorted(new_axes)), labels))
    return tuple(result)


def stretch(fields: Sequence[LabelField], shape: Sequence[int]) -> tuple[LabelField, ...]:
    """Returns fields of a value that is broadcast to `shape`: along an axis that was one long, labels repeat.

    Example:
      >>> stretch([LabelField((0,), np.array([7]))], (3,))[0].labels.tolist()
      [7, 7, 7]
    """
    sizes = [tuple(shape[axis] for axis in field.axes) for field in fields]
    return tuple(
        field if field.labels.shape == size else LabelField(field.axes, np.broadcast_to(field.labels, size))
        for field, size in zip(fields, sizes, strict=True)
    )


def labels_over(field: LabelField, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Returns a field's labels over more axes, along which they repeat.

    Args:
      field: a field of a value.
      axes: rising axes of the value, those of the field among them.
      shape: shape of the value.

    Returns:
      Labels with one axis for each of `axes`.
    """
    if field.axes == tuple(axes):
        return field.labels
    sizes = [shape[axis] if axis in field.axes else 1 for axis in axes]
    return np.broadcast_to(field.labels.reshape(sizes), [shape[axis] for axis in axes])


def varying_field(axes: Sequence[int], labels: np.ndarray) -> LabelField | None:
    """Returns a field over those axes alone along which its labels change.

    Args:
      axes: axes of a value, rising.
      labels: labels with one axis for each of these.

    Returns:
      The field, over at least one axis; None if there is no label in it.
    """
    if labels.size == 0 or bool((labels == FREE).all()):
        return None
    varying = list(axes)
    for position in reversed(range(len(varying))):
        first = labels.take([0], axis=position)
        if len(varying) > 1 and bool((labels == first).all()):
            labels = first.squeeze(position)
            del varying[position]
    return LabelField(tuple(varying), labels)
