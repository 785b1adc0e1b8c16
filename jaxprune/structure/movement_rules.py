"""Rules for operations that move, cut or join data: they do to the labels what the operation does to the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jaxprune.structure.elementwise_rules import combine
from jaxprune.structure.labels import FREE
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    NO_AXES,
    LabelField,
    LabelledValue,
    SuspectAxis,
    Trace,
    computed_from,
    labels_over,
    move_axes,
    output_shapes,
    select_axes,
    stretch,
    varying_field,
)

Rule = Callable[[Trace, Operation, Sequence[LabelledValue]], list[LabelledValue]]
"""From the labelled inputs of an operation to its labelled outputs."""

AxisBlock = tuple[list[int], list[int]]
"""Axes before a reshape, and the axes after it that hold the same entries."""


def _transpose(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return [_in_order(inputs[0], operation.equation.params["permutation"])]


def _in_order(value: LabelledValue, order: Sequence[int]) -> LabelledValue:
    """A value with its axes in another order."""
    order = [int(axis) for axis in order]
    new_axis = [order.index(axis) for axis in range(len(order))]
    return select_axes(value, order, move_axes(value.fields, new_axis))


def _squeeze(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    removed = {int(axis) for axis in operation.equation.params["dimensions"]}
    return [_without_axes(trace, operation, inputs[0], removed)]


def _without_axes(
    trace: Trace, operation: Operation, value: LabelledValue, removed: Collection[int]
) -> LabelledValue:
    """Removes axes of length one; a channel that was selected by its position on such an axis has to stay."""
    axes = [axis for axis in range(len(value.shape)) if axis not in removed]
    fields = []
    for field in value.fields:
        field_axes = [axis for axis in field.axes if axis not in removed]
        if field_axes:
            labels = field.labels.reshape([value.shape[axis] for axis in field_axes])
            fields.append(LabelField(tuple(axes.index(axis) for axis in field_axes), labels))
        else:
            trace.freeze([field], f"picked by its place in {operation.location}")
    return select_axes(value, axes, fields)


def _broadcast(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    new_axis = [int(axis) for axis in operation.equation.params["broadcast_dimensions"]]
    return [with_new_axes(inputs[0], output_shapes(operation)[0], new_axis)]


def with_new_axes(value: LabelledValue, shape: tuple[int, ...], new_axis: Sequence[int]) -> LabelledValue:
    """Returns a value whose axis i has become axis `new_axis[i]`; axes that are new, or one long before, are free.

    Args:
      value: the value before.
      shape: its new shape.
      new_axis: for each old axis, its number in the new shape, rising.
    """
    fixed, source_axes = [FREE] * len(shape), [NO_AXES] * len(shape)
    for axis, new in enumerate(new_axis):
        if value.shape[axis] == shape[new]:
            fixed[new], source_axes[new] = value.fixed[axis], value.source_axes[axis]
    fields = stretch(move_axes(value.fields, new_axis), shape)
    return dataclasses.replace(
        value, shape=shape, fields=fields, fixed=tuple(fixed), source_axes=tuple(source_axes)
    )


def _reshape(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    source, order, value = operation.inputs[0], operation.equation.params["dimensions"], inputs[0]
    if order is not None:  # JAX lets a reshape transpose as well
        value = _in_order(value, order)
    elif isinstance(source, int):
        trace.reshaped[operation.outputs[0]] = source
    return [reshape(trace, operation, value, output_shapes(operation)[0])]


def reshape(
    trace: Trace, operation: Operation, value: LabelledValue, shape: tuple[int, ...], *, is_users: bool = True
) -> LabelledValue:
    """Returns a value after a row-major reshape, which moves its labels in the same way.

    Args:
      trace: notes axes that are split.
      operation: the operation that does it.
      value: the value before.
      shape: its new shape.
      is_users: whether the shape comes from the network's code, which then may rely on the length of an axis that it
        splits. False for the reshapes that the rules for contractions use for themselves.
    """
    blocks = _axis_blocks(value.shape, shape)
    block_of = {axis: block for block in blocks for axis in block[0]}
    fields: list[LabelField] = []
    for field in value.fields:
        touched = [block for block in blocks if any(block_of[axis] is block for axis in field.axes)]
        before, after = ([axis for block in touched for axis in block[side]] for side in (0, 1))
        is_suspect = is_users and any(_is_split(value, shape, block) for block in touched)
        if all(len(block[0]) == len(block[1]) == 1 for block in touched):
            fields.append(LabelField(tuple(after), field.labels))
            if is_suspect:
                trace.suspect_axes.append(SuspectAxis(field.labels, None))
            continue
        labels = labels_over(field, before, value.shape).reshape([shape[axis] for axis in after])
        if is_suspect:
            trace.suspect_axes.append(SuspectAxis(field.labels, _ties_of_parts(labels)))
            trace.split_labels[operation.outputs[0], len(fields)] = operation, labels
        new_field = varying_field(after, labels) if after else None
        if new_field is not None:
            fields.append(new_field)
        elif field.labels.size == 1:
            trace.freeze([field], f"picked by its place in {operation.location}")
    fixed, source_axes = [FREE] * len(shape), [NO_AXES] * len(shape)
    labelled = {axis for field in fields for axis in field.axes}
    for before, after in blocks:
        markers = [value.fixed[axis] for axis in before if value.fixed[axis] != FREE]
        for axis in after:
            if markers and axis not in labelled and shape[axis] > 1:
                fixed[axis] = markers[0]
            source_axes[axis] = NO_AXES.union(*(value.source_axes[old] for old in before))
    return dataclasses.replace(
        value, shape=shape, fields=tuple(fields), fixed=tuple(fixed), source_axes=tuple(source_axes)
    )


def _axis_blocks(before: Sequence[int], after: Sequence[int]) -> list[AxisBlock]:
    """The smallest runs of axes before and after a reshape that hold the same entries; axes of length one are alone.

    Example:
      >>> _axis_blocks((2, 6, 4), (1, 2, 3, 2, 4))
      [([0], [1]), ([1], [2, 3]), ([2], [4]), ([], [0])]
    """
    old_axes, new_axes = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (before, after))
    blocks: list[AxisBlock] = []
    while old_axes or new_axes:
        block: AxisBlock = ([], [])
        old_size = new_size = 1
        while old_size != new_size or old_size == new_size == 1:
            if (old_size <= new_size and old_axes) or not new_axes:
                block[0].append(old_axes.pop(0))
                old_size *= before[block[0][-1]]
            else:
                block[1].append(new_axes.pop(0))
                new_size *= after[block[1][-1]]
        blocks.append(block)
    blocks += [([axis], []) for axis, size in enumerate(before) if size == 1]
    return blocks + [([], [axis]) for axis, size in enumerate(after) if size == 1]


def _is_split(value: LabelledValue, shape: Sequence[int], block: AxisBlock) -> bool:
    """Whether a reshape splits an axis into several.

    For activations one of these may have length one, where code splits an axis into as many parts as there are of
    something. Biases are given axes of length one just to be added. Several axes that become several others are split.
    """
    before, after = block
    if not value.is_activation or not after or len(before) > 1:
        return sum(shape[axis] > 1 for axis in after) > 1
    return _num_axes_around(shape, after) > _num_axes_around(value.shape, before)


def _num_axes_around(shape: Sequence[int], axes: Sequence[int]) -> int:
    """How many axes there are, together with those of length one next to them."""
    around = range(max(0, axes[0] - 1), min(len(shape), axes[-1] + 2))
    return sum(axis in axes or shape[axis] == 1 for axis in around)


def _ties_of_parts(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Pairs of labels at the same position in the parts that the first axis, of those longer than one, counts.

    None if there is only one label for each part.
    """
    parts = labels.reshape([size for size in labels.shape if size > 1])
    if parts.ndim < 2 or bool((parts == parts.take([0], axis=-1)).all()):
        return None
    return np.broadcast_to(parts[:1], parts.shape).reshape(-1), parts.reshape(-1)


def _slice(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Keeps the labels of the slice, and notes that the code may rely on the length of the axis."""
    params, value = operation.equation.params, inputs[0]
    strides = params["strides"] or (1,) * len(value.shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [_cut(trace, operation, 0, value, [slice(int(a), int(b), int(c)) for a, b, c in bounds])]


def _split(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    params = operation.equation.params
    return _parts(trace, operation, inputs[0], int(params["axis"]), [int(size) for size in params["sizes"]])


def _unstack(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, axis = inputs[0], int(operation.equation.params["axis"])
    parts = _parts(trace, operation, value, axis, [1] * value.shape[axis])
    return [_without_axes(trace, operation, part, {axis}) for part in parts]


def _parts(
    trace: Trace, operation: Operation, value: LabelledValue, axis: int, sizes: Sequence[int]
) -> list[LabelledValue]:
    """Cuts an axis into parts of these sizes."""
    parts, start = [], 0
    for number, size in enumerate(sizes):
        index = [slice(None)] * len(value.shape)
        index[axis] = slice(start, start + size)
        parts.append(_cut(trace, operation, number, value, index))
        start += size
    return parts


def _cut(
    trace: Trace, operation: Operation, output: int, value: LabelledValue, index: Sequence[slice]
) -> LabelledValue:
    """The part of a value at a slice of each axis, which is so much of the operation's outputs."""
    shape = tuple(len(range(*part.indices(size))) for part, size in zip(index, value.shape, strict=True))
    fields = []
    for field in value.fields:
        if all(shape[axis] == value.shape[axis] for axis in field.axes):
            fields.append(field)
            continue
        trace.suspect_axes.append(SuspectAxis(field.labels, _ties_of_slice(field, index)))
        labels = field.labels[tuple(index[axis] for axis in field.axes)]
        trace.split_labels[operation.outputs[output], len(fields)] = operation, labels
        if not (labels == FREE).all():
            fields.append(LabelField(field.axes, labels))
    return dataclasses.replace(value, shape=shape, fields=tuple(fields))


def _ties_of_slice(field: LabelField, index: Sequence[slice]) -> tuple[np.ndarray, np.ndarray] | None:
    """Pairs of labels at the same position in equal parts of an axis, if a slice is one of such parts."""
    for position, axis in enumerate(field.axes):
        size = field.labels.shape[position]
        start, stop, stride = index[axis].indices(size)
        length = stop - start
        if stride == 1 and 0 < length < size and size % length == 0 and start % length == 0:
            return _ties_of_parts(np.moveaxis(field.labels, position, 0).reshape(size // length, -1))
    return None


def _pad(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Pads the labels: with new ones at both ends of an axis if a field follows it alone, otherwise with `FREE`."""
    value, (shape,) = inputs[0], output_shapes(operation)
    widths = [tuple(int(width) for width in axis) for axis in operation.equation.params["padding_config"]]
    padded_axes = {axis for axis, width in enumerate(widths) if width != (0, 0, 0)}
    # Padding can turn an axis of length one without labels into an axis whose new indices have labels.
    markers = {
        axis: _marker_of(trace, value, axis)
        for axis in sorted(padded_axes)
        if not value.over(axis) and value.shape[axis] == 1
    }
    singles = [LabelField((axis,), np.full(1, marker)) for axis, marker in markers.items() if marker != FREE]
    fields = []
    for field in (*value.fields, *singles):
        if padded_axes.isdisjoint(field.axes):
            fields.append(field)
            continue
        labels = field.labels
        for position, axis in enumerate(field.axes):
            labels = _padded(labels, position, *widths[axis])
        if len(field.axes) == 1:
            labels = _with_labelled_ends(trace, labels, *widths[field.axes[0]][:2])
        trace.suspect_axes.append(SuspectAxis(field.labels, None))
        fields.append(LabelField(field.axes, labels))
    return [dataclasses.replace(value, shape=shape, fields=tuple(fields))]


def _padded(labels: np.ndarray, position: int, low: int, high: int, interior: int) -> np.ndarray:
    """Labels with `FREE` in front of, behind and between the indices of one axis; negative widths cut."""
    lines = np.moveaxis(labels, position, 0)
    spaced = np.full((max(0, (len(lines) - 1) * (interior + 1) + 1), *lines.shape[1:]), FREE)
    spaced[:: interior + 1] = lines
    ends = [(max(low, 0), max(high, 0))] + [(0, 0)] * (spaced.ndim - 1)
    padded = np.pad(spaced, ends, constant_values=FREE)
    return np.moveaxis(padded[max(-low, 0) : len(padded) - max(-high, 0)], 0, position)


def _with_labelled_ends(trace: Trace, labels: np.ndarray, low: int, high: int) -> np.ndarray:
    """Gives new labels to what was added to an axis of channels, so that it can be removed with what it meets."""
    low, high = max(low, 0), max(high, 0)
    ends = trace.labels.add(low + high)
    both = min(low, high)
    ties = (ends[:both], ends[low : low + both]) if both else None
    trace.suspect_axes.append(SuspectAxis(ends, ties, is_fill=True))
    return np.concatenate([ends[:low], labels[low : len(labels) - high], ends[low:]])


def _reverse(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, reversed_axes = inputs[0], {int(axis) for axis in operation.equation.params["dimensions"]}
    fields = [
        LabelField(
            axes,
            np.flip(labels, tuple(position for position, axis in enumerate(axes) if axis in reversed_axes)),
        )
        for axes, labels in value.fields
    ]
    return [dataclasses.replace(value, fields=tuple(fields))]


def _tile(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, (shape,) = inputs[0], output_shapes(operation)
    repeats = [int(number) for number in operation.equation.params["reps"]]
    fields = tuple(
        LabelField(axes, np.tile(labels, [repeats[axis] for axis in axes])) for axes, labels in value.fields
    )
    fixed = tuple(FREE if size == 1 else own for own, size in zip(value.fixed, value.shape, strict=True))
    return [dataclasses.replace(value, shape=shape, fields=fields, fixed=fixed)]


def _concatenate(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return [_join(trace, operation, inputs, int(operation.equation.params["dimension"]))]


def _stack(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    axis, shape = int(operation.equation.params["axis"]), inputs[0].shape
    new_axis = [old + (old >= axis) for old in range(len(shape))]
    apart = [with_new_axes(value, (*shape[:axis], 1, *shape[axis:]), new_axis) for value in inputs]
    return [_join(trace, operation, apart, axis)]


def _join(trace: Trace, operation: Operation, values: Sequence[LabelledValue], axis: int) -> LabelledValue:
    """Joins the labels on one axis, and unites those on the other axes."""
    values = [value for value in values if value.shape[axis]] or values
    before, after = values[0].shape[:axis], values[0].shape[axis + 1 :]
    shape = (*before, sum(value.shape[axis] for value in values), *after)
    others, fixed_of_others = combine(
        trace, operation, [_without_labels_on(value, axis) for value in values], (*before, 1, *after)
    )
    joined = _joined_fields(trace, values, axis)
    labelled = {position for field in joined for position in field.axes}
    fixed = [FREE if position in labelled else marker for position, marker in enumerate(fixed_of_others)]
    markers = [value.fixed[axis] for value in values if value.fixed[axis] != FREE]
    fixed[axis] = markers[0] if markers and axis not in labelled else FREE
    fields = [field for field in others if labelled.isdisjoint(field.axes)]
    source_axes = values[0].source_axes
    is_same = all(value.source_axes == source_axes for value in values)
    return computed_from(values, shape, [*fields, *joined], fixed, source_axes if is_same else ())


def _without_labels_on(value: LabelledValue, axis: int) -> LabelledValue:
    """A value that is only one long on an axis, with the labels of its other axes."""
    return dataclasses.replace(
        value,
        shape=(*value.shape[:axis], 1, *value.shape[axis + 1 :]),
        fields=tuple(field for field in value.fields if axis not in field.axes),
        fixed=(*value.fixed[:axis], FREE, *value.fixed[axis + 1 :]),
    )


def _joined_fields(trace: Trace, inputs: Sequence[LabelledValue], axis: int) -> tuple[LabelField, ...]:
    """Fields over the axis along which values are joined; the first field of each value becomes part of the first."""
    fields_of_values = [value.over(axis) for value in inputs]
    axes = sorted({axis, *(axis for fields in fields_of_values for field in fields for axis in field.axes)})
    # What stays whole is told apart from what has no labels yet (an input, and the zeros that a loop starts with).
    is_mixed = len({value.fixed[axis] for value in inputs}) > 1
    joined = []
    for index in range(max(is_mixed, *(len(fields) for fields in fields_of_values))):
        parts = []
        for value, fields in zip(inputs, fields_of_values, strict=True):
            if index < len(fields):
                parts.append(labels_over(fields[index], axes, value.shape))
            else:
                marker = _marker_of(trace, value, axis) if index == 0 else FREE
                parts.append(np.full([value.shape[position] for position in axes], marker))
        joined.append(varying_field(axes, np.concatenate(parts, axis=axes.index(axis))))
    return tuple(field for field in joined if field is not None)


def _marker_of(trace: Trace, value: LabelledValue, axis: int) -> int:
    """What stands at the indices of an axis without labels when it becomes part of a longer axis."""
    is_single = value.fixed[axis] == FREE and value.shape[axis] == 1
    if is_single and (value.is_activation or value.sources):
        return trace.labels.fixed_marker("a single channel, joined with others or padded")
    return value.fixed[axis]


MOVEMENTS: Mapping[str, Rule] = MappingProxyType(
    {
        "transpose": _transpose,
        "squeeze": _squeeze,
        "broadcast_in_dim": _broadcast,
        "reshape": _reshape,
        "slice": _slice,
        "split": _split,
        "unstack": _unstack,
        "pad": _pad,
        "rev": _reverse,
        "tile": _tile,
        "concatenate": _concatenate,
        "stack": _stack,
    }
)
"""Primitive -> its rule."""
