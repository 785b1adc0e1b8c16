"""Rules for operations that move data: they are carried out on the labels themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jaxprune.structure.elementwise_rules import combine
from jaxprune.structure.labels import FREE
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    LabelField,
    LabelledValue,
    SuspectAxis,
    Trace,
    free_axes,
    moved,
    output_shapes,
    spread,
    stretched,
    tidied,
)

Rule = Callable[[Trace, Operation, Sequence[LabelledValue]], list[LabelledValue]]
NO_ORIGIN: frozenset[int] = frozenset()
Block = tuple[list[int], list[int]]
"""Axes before and after a reshape that hold the same entries."""


def _transpose(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, order = inputs[0], [int(axis) for axis in step.equation.params["permutation"]]
    new_axis = [order.index(axis) for axis in range(len(order))]
    return [
        dataclasses.replace(
            value,
            shape=tuple(value.shape[axis] for axis in order),
            fields=moved(value.fields, new_axis),
            fixed=tuple(value.fixed[axis] for axis in order),
            origin=tuple(value.origin[axis] for axis in order) if value.origin else (),
        )
    ]


def _squeeze(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return [without_axes(trace, step, inputs[0], [int(axis) for axis in step.equation.params["dimensions"]])]


def without_axes(trace: Trace, step: Operation, value: LabelledValue, axes: Sequence[int]) -> LabelledValue:
    """A value without axes of length one; what was picked by its place on one of them stays."""
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    new_axis = [kept.index(axis) if axis in kept else -1 for axis in range(len(value.shape))]
    fields = []
    for own in value.fields:
        inside = tuple(place for place, axis in enumerate(own.axes) if new_axis[axis] >= 0)
        if len(inside) == len(own.axes):
            fields.append(LabelField(tuple(new_axis[axis] for axis in own.axes), own.labels))
        elif inside:
            gone = tuple(place for place in range(len(own.axes)) if place not in inside)
            axes_left = tuple(new_axis[own.axes[place]] for place in inside)
            fields.append(LabelField(axes_left, own.labels.squeeze(gone)))
        else:
            trace.freeze([own], f"picked by its place in {step.location}")
    return dataclasses.replace(
        value,
        shape=tuple(value.shape[axis] for axis in kept),
        fields=tuple(fields),
        fixed=tuple(value.fixed[axis] for axis in kept),
        origin=tuple(value.origin[axis] for axis in kept) if value.origin else (),
    )


def _broadcast(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, (shape,) = inputs[0], output_shapes(step)
    places = [int(axis) for axis in step.equation.params["broadcast_dimensions"]]
    return [_laid_out(value, shape, places)]


def _expand_dims(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    (shape,) = output_shapes(step)
    new = {int(axis) for axis in step.equation.params["dimensions"]}
    return [_laid_out(inputs[0], shape, [axis for axis in range(len(shape)) if axis not in new])]


def _laid_out(value: LabelledValue, shape: tuple[int, ...], places: Sequence[int]) -> LabelledValue:
    """A value whose axis i becomes axis `places[i]`; new axes, and axes of length one that grow, are free."""
    fixed, origin = list(free_axes(shape)), [NO_ORIGIN] * len(shape)
    for axis, place in enumerate(places):
        if value.shape[axis] == shape[place]:
            fixed[place] = value.fixed[axis]
            origin[place] = value.origin[axis] if value.origin else NO_ORIGIN
    return dataclasses.replace(
        value,
        shape=shape,
        fields=stretched(moved(value.fields, places), shape),
        fixed=tuple(fixed),
        origin=tuple(origin) if value.origin else (),
    )


def _reshape(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    (shape,) = output_shapes(step)
    result = regrouped(trace, step, inputs[0], shape)
    source = step.inputs[0]
    if isinstance(source, int):
        trace.reshaped[step.outputs[0]] = source
    return [result]


def regrouped(
    trace: Trace,
    step: Operation,
    value: LabelledValue,
    shape: tuple[int, ...],
    *,
    is_delicate: bool = True,
) -> LabelledValue:
    """A value after a row-major reshape; delicate where the network's own code names the shape."""
    fixed, origin = list(free_axes(shape)), [NO_ORIGIN] * len(shape)
    blocks = _blocks(value.shape, shape)
    block_of = {axis: number for number, (before, _) in enumerate(blocks) for axis in before}
    plain = {before[0]: after[0] for before, after in blocks if len(before) == len(after) == 1}
    fields: list[LabelField] = []
    for own in value.fields:
        numbers = sorted({block_of[axis] for axis in own.axes})
        if all(axis in plain for axis in own.axes):
            fields.append(LabelField(tuple(plain[axis] for axis in own.axes), own.labels))
            if is_delicate and any(_is_apart(value, shape, blocks[number]) for number in numbers):
                trace.suspect_axes.append(SuspectAxis(own.labels, None))
            continue
        before = [axis for number in numbers for axis in blocks[number][0]]
        after = [axis for number in numbers for axis in blocks[number][1]]
        labels = spread(own, before, value.shape).reshape([shape[axis] for axis in after])
        if is_delicate and any(_is_apart(value, shape, blocks[number]) for number in numbers):
            trace.suspect_axes.append(SuspectAxis(own.labels, _ties(labels)))
            trace.split_labels[step.outputs[0], len(fields)] = step, labels
        found = tidied(after, labels) if after else None
        if found is not None:
            fields.append(found)
        elif own.labels.size == 1:
            trace.freeze([own], f"picked by its place in {step.location}")
    labelled = {axis for own in fields for axis in own.axes}
    for before, after in blocks:
        reasons = [value.fixed[axis] for axis in before if value.fixed[axis] != FREE]
        for axis in after:
            if reasons and axis not in labelled and shape[axis] > 1:
                fixed[axis] = reasons[0]
            if value.origin:
                origin[axis] = NO_ORIGIN.union(*(value.origin[own] for own in before))
    return dataclasses.replace(
        value,
        shape=shape,
        fields=tuple(fields),
        fixed=tuple(fixed),
        origin=tuple(origin) if value.origin else (),
    )


def _is_apart(value: LabelledValue, shape: Sequence[int], block: tuple[list[int], list[int]]) -> bool:
    """Whether an axis becomes several; of activations one of them may be of length one, all there is of some part."""
    before, after = block
    if not value.is_activation or not after:  # biases get axes of length one before they are added
        return sum(shape[axis] > 1 for axis in after) > 1
    return len(_around(shape, after)) > len(_around(value.shape, before))


def _around(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The axes, with those of length one next to them."""
    near = range(max(0, axes[0] - 1), min(len(shape), axes[-1] + 2))
    return [axis for axis in near if axis in axes or shape[axis] == 1]


def _ties(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels at equal places of the parts that the first long axis counts."""
    apart = labels.reshape([size for size in labels.shape if size > 1])
    if apart.ndim < 2 or bool((apart == apart.take([0], axis=-1)).all()):
        return None  # labels that are one for each part
    first = np.broadcast_to(apart[:1], apart.shape)
    return np.ascontiguousarray(first).reshape(-1), np.ascontiguousarray(apart).reshape(-1)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[Block]:
    """Runs of axes before and after a reshape that hold the same entries; axes of length one stand alone.

    Example:
      >>> _blocks((2, 6, 4), (1, 2, 3, 2, 4))
      [([0], [1]), ([1], [2, 3]), ([2], [4]), ([], [0])]
    """
    lefts, rights = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (before, after))
    found: list[Block] = []
    left, right = 0, 0
    while left < len(lefts) or right < len(rights):
        own: Block = ([], [])
        sizes = [1, 1]
        while sizes[0] != sizes[1] or sizes == [1, 1]:
            if (sizes[0] <= sizes[1] and left < len(lefts)) or right == len(rights):
                own[0].append(lefts[left])
                sizes[0] *= before[lefts[left]]
                left += 1
            else:
                own[1].append(rights[right])
                sizes[1] *= after[rights[right]]
                right += 1
        found.append(own)
    found += [([axis], []) for axis, size in enumerate(before) if size == 1]
    found += [([], [axis]) for axis, size in enumerate(after) if size == 1]
    return found


def _slice(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    params, value = step.equation.params, inputs[0]
    strides = params["strides"] or (1,) * len(value.shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [_cut(trace, step, 0, value, [slice(int(a), int(b), int(c)) for a, b, c in bounds])]


def _split(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, axis, start = inputs[0], int(step.equation.params["axis"]), 0
    found = []
    for number, size in enumerate(step.equation.params["sizes"]):
        index = [slice(None)] * len(value.shape)
        index[axis] = slice(start, start + int(size))
        found.append(_cut(trace, step, number, value, index))
        start += int(size)
    return found


def _cut(
    trace: Trace, step: Operation, number: int, value: LabelledValue, index: Sequence[slice]
) -> LabelledValue:
    shape = tuple(len(range(*own.indices(size))) for own, size in zip(index, value.shape, strict=True))
    fields = []
    for own in value.fields:
        parts = tuple(index[axis] for axis in own.axes)
        if all(shape[axis] == value.shape[axis] for axis in own.axes):
            fields.append(own)
            continue
        trace.suspect_axes.append(SuspectAxis(own.labels, _ties_of_parts(own, index)))
        labels = own.labels[parts]
        trace.split_labels[step.outputs[number], len(fields)] = step, labels
        if not (labels == FREE).all():
            fields.append(LabelField(own.axes, labels))
    return dataclasses.replace(value, shape=shape, fields=tuple(fields))


def _ties_of_parts(own: LabelField, index: Sequence[slice]) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels at equal places of the parts of an axis, of which a slice is one."""
    for place, axis in enumerate(own.axes):
        size = own.labels.shape[place]
        start, stop, stride = index[axis].indices(size)
        length = stop - start
        if stride == 1 and 0 < length < size and size % length == 0 and start % length == 0:
            lines = np.moveaxis(own.labels, place, 0)
            return _ties(lines.reshape(size // length, -1))
    return None


def _pad(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, (shape,) = inputs[0], output_shapes(step)
    config = [tuple(int(number) for number in own) for own in step.equation.params["padding_config"]]
    alone = [axis for axis in range(len(shape)) if config[axis] != (0, 0, 0) and not value.over(axis)]
    stands = {axis: _stands(trace, value, axis) for axis in alone if value.shape[axis] == 1}
    # what fills up an axis without labels may fall all the same
    fixed = [LabelField((axis,), np.full(1, own)) for axis, own in stands.items() if own != FREE]
    fields = []
    for own in (*value.fields, *fixed):
        if all(config[axis] == (0, 0, 0) for axis in own.axes):
            fields.append(own)
            continue
        labels = own.labels
        for place, axis in enumerate(own.axes):
            labels = _padded(labels, place, *config[axis])
        if len(own.axes) == 1:
            labels = _with_labels(trace, labels, *config[own.axes[0]][:2])
        trace.suspect_axes.append(SuspectAxis(own.labels, None))
        fields.append(LabelField(own.axes, labels))
    return [dataclasses.replace(value, shape=shape, fields=tuple(fields))]


def _with_labels(trace: Trace, labels: np.ndarray, low: int, high: int) -> np.ndarray:
    """Labels for the fill before and behind channels: what it meets may fall, as many before as behind."""
    low, high = max(low, 0), max(high, 0)
    fill = trace.labels.add(low + high)
    both = min(low, high)
    ties = (fill[:both], fill[low : low + both]) if both else None
    trace.suspect_axes.append(SuspectAxis(fill, ties, is_fill=True))
    return np.concatenate([fill[:low], labels[low : len(labels) - high], fill[low:]])


def _padded(labels: np.ndarray, place: int, low: int, high: int, interior: int) -> np.ndarray:
    """Labels with free places around, and between, them; negative widths cut."""
    lines = np.moveaxis(labels, place, 0)
    apart = np.full((max(0, (len(lines) - 1) * (interior + 1) + 1), *lines.shape[1:]), FREE)
    apart[:: interior + 1] = lines
    edges = [(max(low, 0), max(high, 0))] + [(0, 0)] * (apart.ndim - 1)
    grown = np.pad(apart, edges, constant_values=FREE)
    return np.moveaxis(grown[max(-low, 0) : len(grown) - max(-high, 0)], 0, place)


def _reverse(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, axes = inputs[0], {int(axis) for axis in step.equation.params["dimensions"]}
    fields = [
        LabelField(own.axes, np.flip(own.labels, tuple(p for p, axis in enumerate(own.axes) if axis in axes)))
        for own in value.fields
    ]
    return [dataclasses.replace(value, fields=tuple(fields))]


def _tile(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, (shape,) = inputs[0], output_shapes(step)
    repeats = [int(number) for number in step.equation.params["reps"]]
    fields = [
        LabelField(own.axes, np.tile(own.labels, [repeats[axis] for axis in own.axes]))
        for own in value.fields
    ]
    fixed = tuple(FREE if size == 1 else own for own, size in zip(value.fixed, value.shape, strict=True))
    return [dataclasses.replace(value, shape=shape, fields=tuple(fields), fixed=fixed)]


def _concatenate(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    axis, (shape,) = int(step.equation.params["dimension"]), output_shapes(step)
    apart = [_without_axis(value, axis) for value in inputs]
    fields, fixed = combine(trace, step, apart, apart[0].shape)
    joined = _joined_along(trace, inputs, axis, shape)
    fixed_here = [value.fixed[axis] for value in inputs]
    own_fixed = list(fixed)
    own_fixed[axis] = fixed_here[0] if not joined and FREE not in fixed_here else FREE
    labelled = {place for own in joined for place in own.axes}
    fields = tuple(own for own in fields if not set(own.axes) & labelled)
    return [
        dataclasses.replace(
            inputs[0],
            shape=shape,
            fields=(*fields, *joined),
            fixed=tuple(FREE if place in labelled else own for place, own in enumerate(own_fixed)),
            sources=frozenset().union(*(value.sources for value in inputs)),
            origin=inputs[0].origin if all(value.origin == inputs[0].origin for value in inputs) else (),
            is_activation=any(value.is_activation for value in inputs),
            producers=frozenset().union(*(value.producers for value in inputs)),
        )
    ]


def _without_axis(value: LabelledValue, axis: int) -> LabelledValue:
    """A value with one index on an axis, as far as its other axes go."""
    shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
    fields = tuple(own for own in value.fields if axis not in own.axes)
    fixed = (*value.fixed[:axis], FREE, *value.fixed[axis + 1 :])
    return dataclasses.replace(value, shape=shape, fields=fields, fixed=fixed)


def _stands(trace: Trace, value: LabelledValue, axis: int) -> int:
    """What stands at the indices of an axis without labels that becomes part of a longer one."""
    if value.fixed[axis] == FREE and value.shape[axis] == 1 and (value.is_activation or value.sources):
        return trace.labels.fixed_marker("a single channel, joined with others or padded")
    return value.fixed[axis]


def _joined_along(
    trace: Trace, inputs: Sequence[LabelledValue], axis: int, shape: tuple[int, ...]
) -> tuple[LabelField, ...]:
    """Fields over the axis on which values are joined, those of different values side by side in one."""
    own = [value.over(axis) for value in inputs]
    number = max(len(fields) for fields in own)
    if number == 0:
        return ()
    axes = sorted({place for fields in own for each in fields for place in each.axes})
    result = []
    for index in range(number):
        parts = []
        for value, fields in zip(inputs, own, strict=True):
            if index < len(fields):
                parts.append(spread(fields[index], axes, value.shape))
            else:
                stands = _stands(trace, value, axis) if index == 0 and not fields else FREE
                parts.append(np.full([value.shape[place] for place in axes], stands))
        found = tidied(axes, np.concatenate(parts, axis=axes.index(axis)))
        if found is not None:
            result.append(found)
    return tuple(result)


MOVEMENTS: Mapping[str, Rule] = MappingProxyType(
    {
        "transpose": _transpose,
        "squeeze": _squeeze,
        "broadcast_in_dim": _broadcast,
        "expand_dims": _expand_dims,
        "reshape": _reshape,
        "slice": _slice,
        "split": _split,
        "pad": _pad,
        "rev": _reverse,
        "tile": _tile,
        "concatenate": _concatenate,
    }
)
