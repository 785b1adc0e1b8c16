"""How the labels of several values are brought together index by index, and how axes with labels disappear.

Operations such as additions, and products of matrices too, bring indices of their inputs together. If all inputs have
labels over the same axes, labels at the same index are simply united (`combine`). It is more difficult if one input has
a label for each index of an axis of length heads * size, and another one for each head alone. Then the first needs two
labels in place of each of its own: one for the head and one for the position in it. Such a split of labels into factors
is requested in the trace, and the propagation starts again with the new labels (see `propagation.py`).

To find this out, axes that share labels are read as one flat index, in row-major order. A *digit* (low, high) of this
index i is (i // low) % (high // low): in a flat index of [heads, size] the digit (size, heads * size) is the head and
(1, size) is the position in it. Each field of labels follows some of these digits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    FactorRequest,
    LabelField,
    LabelledValue,
    Trace,
    labels_over,
    stretch,
    varying_field,
)

Fields = tuple[LabelField, ...]

Digit = tuple[int, int]
"""(low, high): the digit (i // low) % (high // low) of a flat index i."""


class _DigitField(NamedTuple):
    """A field, with the digits of the flat index over a cluster of axes that its labels follow."""

    field: LabelField
    digits: tuple[Digit, ...]


def combine(
    trace: Trace, operation: Operation, operands: Sequence[LabelledValue], shape: tuple[int, ...]
) -> tuple[Fields, tuple[int, ...]]:
    """Unites the labels of values that an operation brings together index by index.

    Args:
      trace: notes the unions, and what has to be split into factors.
      operation: the operation.
      operands: its inputs; axes of length one are broadcast, and inputs of another rank (scalars) have no labels.
      shape: shape of the result.

    Returns:
      The labels of the result, and for each of its axes `FREE` or the marker of why the axis stays whole.
    """
    operands = [value for value in operands if len(value.shape) == len(shape)]
    if len(operands) == 1 and operands[0].shape == shape:  # the others are scalars
        return operands[0].fields, operands[0].fixed
    fixed = [
        next((value.fixed[axis] for value in operands if value.fixed[axis] != FREE), FREE)
        for axis in range(len(shape))
    ]
    labelled = [stretch(value.fields, shape) for value in operands if value.fields]
    fields: list[LabelField] = []
    if len(labelled) == 1 and all(fixed[axis] == FREE for field in labelled[0] for axis in field.axes):
        fields = list(labelled[0])
    else:
        for axes, fields_of_values in clusters_of_axes(labelled):
            fields += _combine_cluster(trace, operation, axes, fields_of_values, fixed, shape)
    labelled_axes = {axis for field in fields for axis in field.axes}
    return tuple(fields), tuple(
        FREE if axis in labelled_axes else marker for axis, marker in enumerate(fixed)
    )


def clusters_of_axes(
    fields_of_values: Sequence[Sequence[LabelField]],
) -> list[tuple[tuple[int, ...], list[list[LabelField]]]]:
    """Splits the labelled axes into the smallest sets, clusters, such that no field lies in two of them.

    Args:
      fields_of_values: the fields of each of several values with the same axes.

    Returns:
      For each cluster its axes, rising, and the fields on them of each value that has any.
    """
    first = next((fields[0].axes for fields in fields_of_values if fields), ())
    if all(len(fields) == 1 and fields[0].axes == first for fields in fields_of_values):  # as nearly always
        return [(first, [list(fields) for fields in fields_of_values])] if first else []
    axis_sets: list[set[int]] = []
    for fields in fields_of_values:
        for field in fields:
            touched = [axes for axes in axis_sets if axes & set(field.axes)]
            axis_sets = [axes for axes in axis_sets if axes not in touched]
            axis_sets.append(set(field.axes).union(*touched))
    clusters = []
    for axes in axis_sets:
        in_cluster = [[field for field in fields if field.axes[0] in axes] for fields in fields_of_values]
        clusters.append((tuple(sorted(axes)), [fields for fields in in_cluster if fields]))
    return clusters


def _combine_cluster(
    trace: Trace,
    operation: Operation,
    axes: tuple[int, ...],
    fields_of_values: Sequence[Sequence[LabelField]],
    fixed: Sequence[int],
    shape: tuple[int, ...],
) -> list[LabelField]:
    """Unites the labels of several values on one cluster of axes; `fixed` and `shape` are those of the result."""
    fixed_axes = [axis for axis in axes if fixed[axis] != FREE]
    if not fixed_axes and len(fields_of_values) == 1:
        return list(fields_of_values[0])
    matching = _matching_fields(fields_of_values)
    if not fixed_axes and matching is not None:
        return [_unite_fields(trace, operation, fields) for fields in matching]
    all_fields = [field for fields in fields_of_values for field in fields]
    digit_fields = [known for field in all_fields if (known := _digit_field(field, axes, shape)) is not None]
    digits_of_fixed = {axis: _digit_of_axis(axes, shape, axis) for axis in fixed_axes}
    digits = [*(digit for known in digit_fields for digit in known.digits), *digits_of_fixed.values()]
    size = math.prod(shape[axis] for axis in axes)
    bounds = sorted({1, size, *(bound for digit in digits for bound in digit)})
    is_divisible = all(high % low == 0 for low, high in zip(bounds, bounds[1:], strict=False))
    if len(digit_fields) < len(all_fields) or not is_divisible:
        reason = f"axes regrouped in a way that does not line up: {operation.location}"
        trace.freeze(all_fields, reason)
        return all_fields[:1]
    for axis, (low, high) in digits_of_fixed.items():
        for field, own_digits in digit_fields:
            if all(low <= digit[0] and digit[1] <= high for digit in own_digits):
                trace.labels.unite(field.labels, np.full(field.labels.size, fixed[axis]))
    return _unite_by_digits(trace, operation, digit_fields, axes, shape, bounds)


def _matching_fields(fields_of_values: Sequence[Sequence[LabelField]]) -> list[list[LabelField]] | None:
    """The fields of all values side by side, if each value has the same number of fields over the same axes.

    Where that is more than one, they must also have the same patterns, so that it is clear which belong together.
    """
    columns = [list(column) for column in zip(*fields_of_values, strict=False)]
    if any(len(fields) != len(columns) for fields in fields_of_values):
        return None
    for first, *others in columns:
        for field in others:
            if field.axes != first.axes:
                return None
            if len(columns) > 1 and not _has_same_pattern(field.labels, first.labels):
                return None
    return columns


def _has_same_pattern(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays of labels are equal after some renaming of the labels."""
    are_labels = (left >= 0) & (right >= 0)
    left, right = left[are_labels], right[are_labels]
    if np.array_equal(left, right):
        return True
    num_pairs = np.unique(np.stack([left, right]), axis=1).shape[1]
    return num_pairs == len(distinct(left)) == len(distinct(right))


def _unite_by_digits(
    trace: Trace,
    operation: Operation,
    digit_fields: Sequence[_DigitField],
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    bounds: Sequence[int],
) -> list[LabelField]:
    """Unites fields that follow the same single digit, and requests factors for those that follow several.

    `bounds` are the bounds of all digits; neighbours among them are the smallest digits.
    """
    by_digits: dict[tuple[Digit, ...], list[LabelField]] = {}
    for field, digits in digit_fields:
        by_digits.setdefault(digits, []).append(field)
    united: list[LabelField] = []
    waiting: list[LabelField] = []
    for digits, fields in by_digits.items():
        smallest = [
            (low, high)
            for low, high in zip(bounds, bounds[1:], strict=False)
            if any(digit[0] <= low and high <= digit[1] for digit in digits)
        ]
        if len(smallest) > 1:
            for field in fields:
                _request_factors(trace, field, axes, [shape[axis] for axis in axes], smallest)
            waiting.append(fields[0])
            continue
        first = fields[0]
        for field in fields[1:]:
            if field.axes != first.axes:
                left, right = (labels_over(either, axes, shape).reshape(-1) for either in (first, field))
                _unite(trace, operation, left, right)
        united.append(
            _unite_fields(trace, operation, [field for field in fields if field.axes == first.axes])
        )
    # Before the labels are split, it is not known what they share with the others.
    return waiting[:1] or united


def _request_factors(
    trace: Trace, field: LabelField, axes: Sequence[int], sizes: Sequence[int], digits: Sequence[Digit]
) -> None:
    """Requests that the labels of a field are split into one factor for each digit of the flat index over `axes`."""
    flat_index = np.arange(math.prod(sizes)).reshape(sizes)
    at_field = flat_index[tuple(slice(None) if axis in field.axes else 0 for axis in axes)].reshape(-1)
    digits_of_labels = tuple((at_field // low) % (high // low) for low, high in digits)
    trace.factor_requests.append(FactorRequest(field.labels.reshape(-1), digits_of_labels))


def _unite_fields(trace: Trace, operation: Operation, fields: Sequence[LabelField]) -> LabelField:
    """Unites fields over the same axes; returns one with, at each index, a label if any field has one."""
    labels = fields[0].labels
    for field in fields[1:]:
        _unite(trace, operation, labels, field.labels)
        if (labels < 0).any():  # a label of the other field, or else a marker rather than FREE
            others = np.where(field.labels >= 0, field.labels, np.minimum(labels, field.labels))
            labels = np.where(labels >= 0, labels, others)
    return LabelField(fields[0].axes, labels)


def _unite(trace: Trace, operation: Operation, left: np.ndarray, right: np.ndarray) -> None:
    if trace.labels.unite(left, right):
        trace.unions.append((operation, left, right))


def _digit_of_axis(axes: tuple[int, ...], shape: tuple[int, ...], axis: int) -> Digit:
    """The digit of the flat index over `axes` that is the index of one of them."""
    low = math.prod(shape[later] for later in axes[axes.index(axis) + 1 :])
    return low, low * shape[axis]


def _digit_field(field: LabelField, axes: tuple[int, ...], shape: tuple[int, ...]) -> _DigitField | None:
    """A field with the digits of the flat index over `axes` that it follows; None if it does not follow any."""
    own_digits = _digits_of_labels(field.labels.reshape(-1))
    if own_digits is None:
        return None
    runs: list[Digit] = []  # neighbouring axes make one digit
    for low, high in (_digit_of_axis(axes, shape, axis) for axis in field.axes):
        if runs and runs[-1][0] == high:
            runs[-1] = (low, runs[-1][1])
        else:
            runs.append((low, high))
    if own_digits == ((1, field.labels.size),):
        return _DigitField(field, tuple(runs))
    if len(runs) > 1:  # a part of an axis may follow fewer axes than the whole of it did
        fewer = varying_field(field.axes, field.labels)
        return None if fewer is None or fewer.axes == field.axes else _digit_field(fewer, axes, shape)
    lowest = runs[0][0]
    return _DigitField(field, tuple((lowest * low, lowest * high) for low, high in own_digits))


def _digits_of_labels(labels: np.ndarray) -> tuple[Digit, ...] | None:
    """The digits of the index i that decide which label is at i, the highest first; None if none do.

    Each combination of them has a label of its own.

    Example:
      >>> _digits_of_labels(np.array([7, 7, 8, 8, 7, 7, 8, 8]))
      ((2, 4),)
      >>> _digits_of_labels(np.array([5, 6, 5, 6, 7, 8, 7, 8]))  # as when heads are repeated
      ((4, 8), (1, 2))
    """
    known = labels[labels >= 0]
    if len(distinct(known)) == len(known):
        return ((1, len(labels)),)
    digits: list[Digit] = []
    low = 1
    while len(labels) > 1:
        changes = np.flatnonzero(labels != labels[0])
        run = int(changes[0]) if changes.size else len(labels)
        if len(labels) % run or not np.array_equal(np.repeat(labels[::run], run), labels):
            return None
        labels, low = labels[::run], low * run
        repeats = np.flatnonzero(labels[1:] == labels[0])
        period = int(repeats[0]) + 1 if repeats.size else len(labels)
        if len(labels) % period:
            return None
        rows = labels.reshape(-1, period)
        kinds, first, kind_of = np.unique(rows[:, 0], return_index=True, return_inverse=True)
        if len(distinct(labels)) < len(kinds) * period or not np.array_equal(rows[first[kind_of]], rows):
            return None
        if period > 1:
            digits.append((low, low * period))
        labels, low = rows[:, 0], low * period
    return tuple(reversed(digits))


def drop_axes(trace: Trace, fields: Sequence[LabelField], axes: Collection[int]) -> tuple[LabelField, ...]:
    """Returns the fields that are left after a sum, or the like, over some axes.

    Args:
      trace: notes that labels over axes of which only some disappear have to be split into factors.
      fields: the labels before.
      axes: the axes that disappear.

    Returns:
      The fields over none of these axes; the numbers of axes are still those from before.
    """
    left = []
    for field in fields:
        is_dropped = [axis in axes for axis in field.axes]
        if not any(is_dropped):
            left.append(field)
        elif not all(is_dropped):  # what stays gets labels of its own when the propagation starts again
            sizes = field.labels.shape
            bounds = [1]
            for position in reversed(range(len(sizes))):
                if position < len(sizes) - 1 and is_dropped[position] == is_dropped[position + 1]:
                    bounds[-1] *= sizes[
                        position
                    ]  # neighbours that both stay or both disappear make one digit
                else:
                    bounds.append(bounds[-1] * sizes[position])
            _request_factors(trace, field, field.axes, sizes, list(zip(bounds, bounds[1:], strict=False)))
    return tuple(left)


def unite_along(trace: Trace, field: LabelField, axes: Collection[int]) -> LabelField | None:
    """Unites labels that differ only in their index along some axes, because a window mixes these indices.

    Args:
      trace: holds the labels.
      field: the labels before.
      axes: axes of the value, such as the image axes of a convolution.

    Returns:
      The labels over the other axes of the field; None if there are none.
    """
    first = field.labels[tuple(slice(0, 1) if axis in axes else slice(None) for axis in field.axes)]
    trace.labels.unite(np.broadcast_to(first, field.labels.shape), field.labels)
    others = [position for position, axis in enumerate(field.axes) if axis not in axes]
    if not others:
        return None
    return LabelField(
        tuple(field.axes[position] for position in others),
        first.reshape([first.shape[position] for position in others]),
    )
