"""Rules for matrix products and convolutions: labels of what is summed over are united, the rest goes on.

Both are an entrywise product over all axes in play, followed by a sum over some of them. A grouped convolution has an
axis for its groups: the input is [groups, c_in / groups] there, and the kernel's output axis [groups, c_out / groups].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.structure.elementwise_rules import combine, drop_axes
from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.model_state import Path
from jaxprune.structure.movement_rules import NO_ORIGIN, regrouped
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    ContractionMacs,
    LabelField,
    LabelledValue,
    Trace,
    moved,
    output_shapes,
    spread,
)

_IMAGE_AXIS = "an image axis of a convolution"


class _Side(NamedTuple):
    """One operand laid over the axes of the product."""

    value: LabelledValue
    """As it came in."""
    number: int | None
    """Of the value in the program."""
    read: tuple[int, ...]
    """Its axes that are summed over, or shared with the other operand."""
    axes: tuple[int, ...]
    """For each axis of the laid-out value, its axis in the product."""
    laid_out: LabelledValue


def dot_general(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """A matrix product."""
    (left_in, right_in), (left_batch, right_batch) = step.equation.params["dimension_numbers"]
    left, right = inputs
    left_axes, right_axes = [-1] * len(left.shape), [-1] * len(right.shape)
    count = 0
    for a, b in zip(left_batch, right_batch, strict=True):
        left_axes[a] = right_axes[b] = count
        count += 1
    for axes in (left_axes, right_axes):
        taken = {*left_batch, *left_in} if axes is left_axes else {*right_batch, *right_in}
        for axis in range(len(axes)):
            if axis not in taken:
                axes[axis] = count
                count += 1
    summed = list(range(count, count + len(left_in)))
    for place, (a, b) in zip(summed, zip(left_in, right_in, strict=True), strict=True):
        left_axes[a] = right_axes[b] = place
    sides = [
        _Side(left, _number(step, 0), (*left_batch, *left_in), tuple(left_axes), left),
        _Side(right, _number(step, 1), (*right_batch, *right_in), tuple(right_axes), right),
    ]
    shape = _joint_shape(sides, count + len(left_in))
    batch = tuple(range(len(left_batch)))
    return [_contract(trace, step, sides, shape, tuple(summed), batch, output_shapes(step)[0])]


def convolution(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """A convolution, grouped or not, of any number of image axes."""
    params, (shape,) = step.equation.params, output_shapes(step)
    numbers, groups = params["dimension_numbers"], int(params["feature_group_count"])
    if int(params["batch_group_count"]) != 1:
        return frozen_outputs(trace, step, inputs, f"batches are grouped in {step.location}")
    images, kernel = inputs
    num_spatial = len(numbers.lhs_spec) - 2
    flat_images = _image_fields_gone(trace, images, numbers.lhs_spec[2:])
    for axis in numbers.rhs_spec[2:]:
        trace.freeze(kernel.over(axis), _IMAGE_AXIS)
    # axes of the product: batch, image, group, made, read, window
    group, made, read = 1 + num_spatial, 2 + num_spatial, 3 + num_spatial
    left_axes = _places(numbers.lhs_spec, [0, -1, *range(1, 1 + num_spatial)], [group, read])
    window = range(4 + num_spatial, 4 + 2 * num_spatial)
    right_axes = _places(numbers.rhs_spec, [-1, read, *window], [group, made])
    laid_images = _with_groups(trace, step, flat_images, numbers.lhs_spec[1], groups)
    laid_kernel = _with_groups(trace, step, kernel, numbers.rhs_spec[0], groups)
    at_output = _at_output(laid_images, left_axes, [shape[axis] for axis in numbers.out_spec[2:]])
    sides = [
        _Side(images, _number(step, 0), (numbers.lhs_spec[1],), tuple(left_axes), at_output),
        _Side(kernel, _number(step, 1), numbers.rhs_spec[:2], tuple(right_axes), laid_kernel),
    ]
    joint = _joint_shape(sides, 4 + 2 * num_spatial)
    found = _contract(trace, step, sides, joint, (read, *window), (group,), joint[:read])
    flat = regrouped(trace, step, found, (*joint[: 1 + num_spatial], groups * joint[made]), is_delicate=False)
    order = [0] * len(shape)
    for place, axis in enumerate((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])):
        order[axis] = place
    new_axis = [order.index(place) for place in range(len(shape))]
    return [
        dataclasses.replace(
            flat,
            shape=shape,
            fields=moved(flat.fields, new_axis),
            fixed=tuple(flat.fixed[place] for place in order),
        )
    ]


def _number(step: Operation, index: int) -> int | None:
    number = step.inputs[index]
    return number if isinstance(number, int) else None


def _joint_shape(sides: Sequence[_Side], count: int) -> tuple[int, ...]:
    sizes = [1] * count
    for side in sides:
        for axis, size in zip(side.axes, side.laid_out.shape, strict=True):
            sizes[axis] = max(sizes[axis], size)
    return tuple(sizes)


def _places(spec: Sequence[int], wanted: Sequence[int], pair: Sequence[int]) -> list[int]:
    """For each axis, its axis in the product; the one that is wanted at -1 becomes the pair."""
    by_axis = dict(zip(spec, wanted, strict=True))
    found: list[int] = []
    for axis in range(len(spec)):
        found += [by_axis[axis]] if by_axis[axis] >= 0 else list(pair)
    return found


def _with_groups(
    trace: Trace, step: Operation, value: LabelledValue, axis: int, groups: int
) -> LabelledValue:
    size = value.shape[axis] // groups
    if groups > 1:
        shape = (*value.shape[:axis], groups, size, *value.shape[axis + 1 :])
        return regrouped(trace, step, value, shape, is_delicate=False)
    new_axis = [place + (place >= axis) for place in range(len(value.shape))]
    fixed, origin = list(value.fixed), list(value.origin)
    fixed.insert(axis, FREE)
    if origin:
        origin.insert(axis, NO_ORIGIN)
    return dataclasses.replace(
        value,
        shape=(*value.shape[:axis], 1, *value.shape[axis:]),
        fields=moved(value.fields, new_axis),
        fixed=tuple(fixed),
        origin=tuple(origin),
    )


def _image_fields_gone(trace: Trace, images: LabelledValue, spatial: Sequence[int]) -> LabelledValue:
    """Windows mix what lies along image axes: labels that change along them are one."""
    fields: list[LabelField] = []
    for own in images.fields:
        inside = [axis in spatial for axis in own.axes]
        if not any(inside):
            fields.append(own)
            continue
        index = tuple(slice(0, 1) if is_image else slice(None) for is_image in inside)
        first = np.ascontiguousarray(np.broadcast_to(own.labels[index], own.labels.shape))
        trace.labels.unite(first, np.ascontiguousarray(own.labels))
        kept = tuple(axis for axis, is_image in zip(own.axes, inside, strict=True) if not is_image)
        gone = tuple(place for place, is_image in enumerate(inside) if is_image)
        if kept:
            fields.append(LabelField(kept, own.labels[index].squeeze(gone)))
        else:
            trace.freeze([own], _IMAGE_AXIS)
    wall = trace.labels.fixed_marker(_IMAGE_AXIS)
    fixed = tuple(wall if axis in spatial and own == FREE else own for axis, own in enumerate(images.fixed))
    return dataclasses.replace(images, fields=tuple(fields), fixed=fixed)


def _at_output(value: LabelledValue, axes: Sequence[int], sizes: Sequence[int]) -> LabelledValue:
    """The images with the lengths of the result's image axes."""
    lengths = {1 + index: size for index, size in enumerate(sizes)}
    shape = tuple(lengths.get(axis, size) for axis, size in zip(axes, value.shape, strict=True))
    return dataclasses.replace(value, shape=shape)


def _contract(
    trace: Trace,
    step: Operation,
    sides: Sequence[_Side],
    joint: tuple[int, ...],
    summed: tuple[int, ...],
    shared: tuple[int, ...],
    shape: tuple[int, ...],
) -> LabelledValue:
    operands = [_over_joint(side, joint) for side in sides]
    producers = _note_uses(trace, step, sides, summed, shared)
    fields, fixed = combine(trace, step, operands, joint)
    trace.contraction_macs.append(_cost(joint, fields, trace.turns))
    kept = drop_axes(trace, fields, summed, joint)
    is_activation = any(side.value.is_activation for side in sides)
    left = len(joint) - len(summed)
    origin = () if is_activation else _origin_of_product(sides, left)
    return LabelledValue(
        shape=shape,
        fields=kept,
        fixed=tuple(fixed[:left]),
        sources=frozenset() if is_activation else frozenset().union(*(side.value.sources for side in sides)),
        origin=origin,
        is_activation=is_activation,
        producers=producers,
    )


def _origin_of_product(sides: Sequence[_Side], count: int) -> tuple[frozenset[int], ...]:
    found = [NO_ORIGIN] * count
    for side in sides:
        for axis, own in zip(side.axes, side.laid_out.origin, strict=False):
            if axis < count:
                found[axis] |= own
    return tuple(found)


def _over_joint(side: _Side, joint: tuple[int, ...]) -> LabelledValue:
    fixed = [FREE] * len(joint)
    for axis, own in zip(side.axes, side.laid_out.fixed, strict=True):
        fixed[axis] = own
    return LabelledValue(shape=joint, fields=moved(side.laid_out.fields, side.axes), fixed=tuple(fixed))


def _note_uses(
    trace: Trace, step: Operation, sides: Sequence[_Side], summed: tuple[int, ...], shared: tuple[int, ...]
) -> frozenset[int]:
    """Notes who reads channels and who makes them; returns the productions that the result carries."""
    carried: frozenset[int] = frozenset()
    for side, other in (sides, sides[::-1]):
        if not side.value.is_activation:
            continue
        is_layer = bool(other.value.sources) and not other.value.is_activation
        path = kernel_path(trace, other.value) if is_layer else None
        met = NO_ORIGIN.union(*_origins(other, (*summed, *shared)))
        if side.number is not None:
            trace.consume(side.number, side.value, side.read, path, met)
        carried |= side.value.producers
        if is_layer:
            carried |= _note_production(trace, step, path, other, summed)
    return carried


def _origins(side: _Side, places: Sequence[int]) -> list[frozenset[int]]:
    return [own for place, own in zip(side.axes, side.laid_out.origin, strict=False) if place in places]


def _note_production(
    trace: Trace, step: Operation, path: Path | None, kernel: _Side, summed: tuple[int, ...]
) -> frozenset[int]:
    made = [place for place in kernel.axes if place not in summed]
    own = [each for each in kernel.laid_out.fields if any(kernel.axes[axis] in made for axis in each.axes)]
    if not own:
        return frozenset()
    if path is None:
        trace.freeze(own, f"weights that are not one parameter in {step.location}")
        return frozenset()
    labels = distinct(np.concatenate([each.labels.reshape(-1) for each in own]))
    axes = NO_ORIGIN.union(*_origins(kernel, made))
    return frozenset({trace.produce(step, path, axes, labels[labels >= 0])})


def kernel_path(trace: Trace, kernel: LabelledValue) -> Path | None:
    """The one parameter that a kernel is made of (biases and statistics folded into it do not count)."""
    ranks = {path: len(trace.seeds[path]) for path in kernel.sources}
    largest = [path for path, rank in ranks.items() if rank == max(ranks.values())]
    return largest[0] if len(largest) == 1 else None


def _cost(joint: tuple[int, ...], fields: Sequence[LabelField], turns: int) -> ContractionMacs:
    clusters: list[tuple[tuple[int, ...], list[LabelField]]] = []
    for own in fields:
        touching = [known for known in clusters if set(known[0]) & set(own.axes)]
        clusters = [known for known in clusters if known not in touching]
        axes = sorted({*own.axes, *(axis for known in touching for axis in known[0])})
        clusters.append((tuple(axes), [*(each for known in touching for each in known[1]), own]))
    covered = {axis for axes, _ in clusters for axis in axes}
    constant = math.prod(size for axis, size in enumerate(joint) if axis not in covered)
    flat = tuple(
        tuple(np.ascontiguousarray(spread(own, axes, joint)).reshape(-1) for own in members)
        for axes, members in clusters
    )
    return ContractionMacs(constant * turns, flat)


def frozen_outputs(
    trace: Trace, step: Operation, inputs: Sequence[LabelledValue], reason: str
) -> list[LabelledValue]:
    """What an operation makes that nothing is known of: whatever it touches stays."""
    for value in inputs:
        trace.freeze(value.fields, reason)
    wall = trace.labels.fixed_marker(reason)
    is_activation = any(value.is_activation for value in inputs)
    return [
        LabelledValue(
            shape=shape,
            fixed=tuple(wall if size > 1 else FREE for size in shape),
            sources=frozenset() if is_activation else frozenset().union(*(v.sources for v in inputs)),
            origin=() if is_activation else (NO_ORIGIN,) * len(shape),
            is_activation=is_activation,
            producers=frozenset().union(*(value.producers for value in inputs)),
        )
        for shape in output_shapes(step)
    ]
