"""Rules for operations that read from, or write to, places that are computed: look-ups, scatters, dynamic slices.

Axes that such an operation leaves whole keep their labels; those along which it looks for places stay. Along batching
axes, table, indices and result go side by side, so their labels are united there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jaxprune.structure.elementwise_rules import combine
from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.movement_rules import Rule
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    NO_AXES,
    LabelField,
    LabelledValue,
    Trace,
    computed_from,
    move_axes,
    output_shapes,
    stretch,
)


def pass_whole_axes(
    trace: Trace,
    operation: Operation,
    value: LabelledValue,
    is_whole: Sequence[bool],
    shape: tuple[int, ...],
    verb: str = "cut, padded or reordered",
) -> LabelledValue:
    """Returns an output in which axes that are whole keep their labels; labels on the others are frozen.

    Args:
      trace: holds the labels.
      operation: the operation.
      value: its input.
      is_whole: for each axis, whether the operation treats every index of it alike and in place.
      shape: shape of the output, of the same rank.
      verb: what the operation does to the other axes.

    Returns:
      The output.
    """
    fields, fixed = [], list(value.fixed)
    for field in value.fields:
        if all(is_whole[axis] for axis in field.axes):
            fields.append(field)
        else:
            trace.freeze([field], f"{verb} by {operation.location}")
    for axis, whole in enumerate(is_whole):
        if not whole and fixed[axis] == FREE and shape[axis] > 1:
            fixed[axis] = trace.labels.fixed_marker(f"{verb} by {operation.name}")
    return dataclasses.replace(value, shape=shape, fields=tuple(fields), fixed=tuple(fixed))


def _placed(
    trace: Trace, value: LabelledValue, new_axis: Mapping[int, int], shape: tuple[int, ...], reason: str
) -> LabelledValue:
    """A value laid out on the axes of a result, where its axis i is `new_axis[i]`; labels on axes left out freeze."""
    fields = []
    for field in value.fields:
        if all(axis in new_axis for axis in field.axes):
            fields.append(field)
        else:
            trace.freeze([field], reason)
    fixed = [FREE] * len(shape)
    for axis, new in new_axis.items():
        if value.shape[axis] == shape[new]:
            fixed[new] = value.fixed[axis]
    moved = move_axes(fields, [new_axis.get(axis, -1) for axis in range(len(value.shape))])
    return LabelledValue(shape, stretch(moved, shape), tuple(fixed))


def _with_markers(
    fields: Sequence[LabelField], fixed: Sequence[int], markers: Mapping[int, int]
) -> list[int]:
    """The markers of a result, with some more on axes that have neither labels nor a marker."""
    labelled = {axis for field in fields for axis in field.axes}
    return [
        markers.get(axis, FREE) if own == FREE and axis not in labelled else own
        for axis, own in enumerate(fixed)
    ]


def _gather(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Looks up slices by number. A look-up in a parameter is an embedding, which makes channels."""
    table, indices = inputs
    (shape,), params = output_shapes(operation), operation.equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    offset_axes = [int(axis) for axis in numbers.offset_dims]
    index_axes = [axis for axis in range(len(shape)) if axis not in offset_axes]
    removed = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    slice_axes = [axis for axis in range(len(sizes)) if axis not in removed]
    new_axis = dict(zip(slice_axes, offset_axes, strict=True))
    whole = {axis: new for axis, new in new_axis.items() if sizes[axis] == table.shape[axis]}
    batching = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    whole |= {int(axis): index_axes[at] for axis, at in batching}
    reason = f"looked up by number in {operation.location}"
    from_table = _placed(trace, table, whole, shape, reason)
    from_indices = _placed(trace, indices, dict(enumerate(index_axes)), shape, reason)
    fields, fixed = combine(trace, operation, [from_table, from_indices], shape)
    marker = trace.labels.fixed_marker(reason)
    cut = {new: marker for axis, new in new_axis.items() if axis not in whole and shape[new] > 1}
    source_axes = [NO_AXES] * len(shape)
    for axis, new in new_axis.items():
        source_axes[new] = table.source_axes[axis]
    result = computed_from(inputs, shape, fields, _with_markers(fields, fixed, cut), source_axes)
    made = [field for field in from_table.fields if not set(offset_axes).isdisjoint(field.axes)]
    if len(table.sources) != 1 or not result.is_activation or not made:
        return [result]
    labels = distinct(np.concatenate([field.labels.reshape(-1) for field in made]))
    (path,), axes = table.sources, NO_AXES.union(*source_axes)
    producer = trace.add_producer_use(operation, path, axes, labels[labels >= 0])
    return [dataclasses.replace(result, producers=result.producers | {producer})]


def _scatter(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Writes slices at numbers, or adds them to what is there: labels are united on axes that are whole."""
    target, indices, updates = inputs
    numbers, shape = operation.equation.params["dimension_numbers"], target.shape
    removed = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window_axes = [axis for axis in range(len(shape)) if axis not in removed]
    index_axes = [axis for axis in range(len(updates.shape)) if axis not in numbers.update_window_dims]
    pairs = zip(map(int, numbers.update_window_dims), window_axes, strict=True)
    of_updates = {axis: new for axis, new in pairs if updates.shape[axis] == shape[new]}
    of_indices = dict(
        zip(map(int, numbers.scatter_indices_batching_dims), numbers.operand_batching_dims, strict=True)
    )
    of_updates |= {index_axes[at]: new for at, new in of_indices.items()}
    reason = f"written by number in {operation.location}"
    placed = [
        _placed(trace, target, {axis: axis for axis in of_updates.values()}, shape, reason),
        _placed(trace, indices, of_indices, shape, reason),
        _placed(trace, updates, of_updates, shape, reason),
    ]
    fields, fixed = combine(trace, operation, placed, shape)
    marker = trace.labels.fixed_marker(reason)
    cut = {axis: target.fixed[axis] for axis in range(len(shape)) if axis not in of_updates.values()}
    markers = {axis: marker if own == FREE else own for axis, own in cut.items() if shape[axis] > 1}
    return [computed_from(inputs, shape, fields, _with_markers(fields, fixed, markers))]


def _dynamic_slice(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]
) -> list[LabelledValue]:
    """Slices at an index that is computed: axes that are not whole are frozen."""
    value, (shape,) = inputs[0], output_shapes(operation)
    is_whole = [before == after for before, after in zip(value.shape, shape, strict=True)]
    return [pass_whole_axes(trace, operation, value, is_whole, shape)]


def _dynamic_update_slice(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]
) -> list[LabelledValue]:
    """Writes one value into another: their labels are united on axes that are whole, the others are frozen."""
    value, update = inputs[:2]
    is_whole = [before == after for before, after in zip(value.shape, update.shape, strict=True)]
    shape = tuple(size if whole else 1 for size, whole in zip(value.shape, is_whole, strict=True))
    parts = [pass_whole_axes(trace, operation, part, is_whole, shape) for part in (value, update)]
    fields, fixed = combine(trace, operation, parts, shape)
    marker = trace.labels.fixed_marker(f"written into by {operation.name}")
    fixed = tuple(own if whole else marker for own, whole in zip(fixed, is_whole, strict=True))
    return [computed_from(inputs, value.shape, fields, fixed)]


INDEXING: Mapping[str, Rule] = MappingProxyType(
    {
        "gather": _gather,
        **dict.fromkeys(
            "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split(), _scatter
        ),
        "dynamic_slice": _dynamic_slice,
        "dynamic_update_slice": _dynamic_update_slice,
    }
)
"""Primitive -> its rule."""
