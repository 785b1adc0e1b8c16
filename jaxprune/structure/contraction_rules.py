"""Rules for matrix products and convolutions, the operations that make channels and read them.

Both are treated as an index-by-index product over all axes that take part, followed by a sum over some of these. The
first unites the labels of the two operands, the second drops the axes that are summed over. For a matrix product, the
axes of the product are (batch, left, right, summed). For a convolution they are (batch, image, group, made, read,
window): every input channel is (group, read) and every output channel (group, made), with one group unless the
convolution is grouped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.structure.elementwise_rules import clusters_of_axes, combine, drop_axes, unite_along
from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.model_state import Path
from jaxprune.structure.movement_rules import reshape, with_new_axes
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    NO_AXES,
    ChannelRead,
    ContractionMacs,
    LabelField,
    LabelledValue,
    Trace,
    computed_from,
    labels_over,
    move_axes,
    output_shapes,
    select_axes,
)
from jaxprune.structure.weight_norms import note_read, note_sum

_IMAGE_AXIS = "an image axis of a convolution"


class _Operand(NamedTuple):
    """One of the two inputs of a contraction."""

    value: LabelledValue
    number: int | None
    """Number of the value in the program; None for a literal."""
    read_axes: tuple[int, ...]
    """Axes of the value that are summed over, or that the other operand has too."""
    shared_axes: frozenset[int]
    """Those of them that are not summed over."""
    laid_out: LabelledValue
    """The value with one axis for each axis of the product that it takes part in."""
    product_axes: tuple[int, ...]
    """For each axis of `laid_out`, its axis in the product."""

    def source_axes_on(self, product_axes: Collection[int]) -> frozenset[int]:
        """The axes of the source that are followed by some axes of the product."""
        pairs = zip(self.product_axes, self.laid_out.source_axes, strict=True)
        return NO_AXES.union(*(source_axes for axis, source_axes in pairs if axis in product_axes))


def dot_general(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Propagates labels through a matrix product.

    Args:
      trace: notes which channels are read and made.
      operation: the product.
      inputs: its two operands.

    Returns:
      Its one result.
    """
    summed_pairs, batch_pairs = operation.equation.params["dimension_numbers"]
    ranks = [len(value.shape) for value in inputs]
    product_axes = [[-1] * rank for rank in ranks]
    num_axes = len(batch_pairs[0])
    for axes, batch_axes, summed_axes in zip(product_axes, batch_pairs, summed_pairs, strict=True):
        for number, axis in enumerate(batch_axes):
            axes[axis] = number
        for axis in range(len(axes)):
            if axis not in batch_axes and axis not in summed_axes:
                axes[axis] = num_axes
                num_axes += 1
    for axes, summed_axes in zip(product_axes, summed_pairs, strict=True):
        for number, axis in enumerate(summed_axes):
            axes[axis] = num_axes + number
    operands = [
        _Operand(
            value,
            _number(operation, side),
            (*batch_pairs[side], *summed_pairs[side]),
            frozenset(batch_pairs[side]),
            value,
            tuple(axes),
        )
        for side, (value, axes) in enumerate(zip(inputs, product_axes, strict=True))
    ]
    shape = _product_shape(operands, num_axes + len(summed_pairs[0]))
    return [_contract(trace, operation, operands, shape, num_axes, range(len(batch_pairs[0])))]


def convolution(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Propagates labels through a convolution, grouped or not, with any number of image axes.

    Args:
      trace: notes which channels are read and made.
      operation: the convolution.
      inputs: images and kernel.

    Returns:
      Its one result.
    """
    params, (output_shape,) = operation.equation.params, output_shapes(operation)
    numbers, num_groups = params["dimension_numbers"], int(params["feature_group_count"])
    if int(params["batch_group_count"]) != 1:
        return frozen_outputs(trace, operation, inputs, f"batches are grouped in {operation.location}")
    images, kernel = inputs
    num_image_axes = len(numbers.lhs_spec) - 2
    image, (group, made, read) = range(1, 1 + num_image_axes), range(1 + num_image_axes, 4 + num_image_axes)
    window = range(read + 1, read + 1 + num_image_axes)
    mixed_images = _without_image_labels(trace, images, numbers.lhs_spec[2:])
    for axis in numbers.rhs_spec[2:]:
        trace.freeze(kernel.over(axis), _IMAGE_AXIS)
    laid_images = _with_groups(trace, operation, mixed_images, numbers.lhs_spec[1], num_groups)
    laid_kernel = _with_groups(trace, operation, kernel, numbers.rhs_spec[0], num_groups)
    image_axes = _product_axes(numbers.lhs_spec, [(0,), (group, read), *((axis,) for axis in image)])
    kernel_axes = _product_axes(numbers.rhs_spec, [(group, made), (read,), *((axis,) for axis in window)])
    # The images enter the product with the lengths that image axes have in the output.
    lengths = dict(zip(image, (output_shape[axis] for axis in numbers.out_spec[2:]), strict=True))
    sizes = [lengths.get(axis, size) for axis, size in zip(image_axes, laid_images.shape, strict=True)]
    at_output = dataclasses.replace(laid_images, shape=tuple(sizes))
    operands = [
        _Operand(images, _number(operation, 0), (numbers.lhs_spec[1],), NO_AXES, at_output, image_axes),
        _Operand(
            kernel, _number(operation, 1), tuple(numbers.rhs_spec[:2]), NO_AXES, laid_kernel, kernel_axes
        ),
    ]
    shape = _product_shape(operands, window.stop)
    result = _contract(trace, operation, operands, shape, read, (group,))
    joined = (*shape[:group], num_groups * shape[made])
    channels_last = reshape(trace, operation, result, joined, is_users=False)
    new_axis = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    order = [new_axis.index(axis) for axis in range(len(new_axis))]
    return [select_axes(channels_last, order, move_axes(channels_last.fields, new_axis))]


def frozen_outputs(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue], reason: str
) -> list[LabelledValue]:
    """Freezes everything that an operation reads, and returns outputs whose axes all stay.

    Args:
      trace: holds the labels.
      operation: an operation of which it is not known what it does.
      inputs: its inputs.
      reason: why they are frozen.

    Returns:
      Its outputs.
    """
    marker = trace.freeze_and_mark((field for value in inputs for field in value.fields), reason)
    return [
        computed_from(inputs, shape, (), [marker if size > 1 else FREE for size in shape], ())
        for shape in output_shapes(operation)
    ]


def _number(operation: Operation, index: int) -> int | None:
    number = operation.inputs[index]
    return number if isinstance(number, int) else None


def _product_shape(operands: Sequence[_Operand], num_axes: int) -> tuple[int, ...]:
    sizes = [1] * num_axes
    for operand in operands:
        for axis, size in zip(operand.product_axes, operand.laid_out.shape, strict=True):
            sizes[axis] = max(sizes[axis], size)
    return tuple(sizes)


def _product_axes(spec: Sequence[int], targets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """For each axis of a laid-out operand its axis in the product; axis `spec[i]` becomes the axes `targets[i]`."""
    by_axis = dict(zip(spec, targets, strict=True))
    return tuple(target for axis in range(len(spec)) for target in by_axis[axis])


def _without_image_labels(trace: Trace, images: LabelledValue, image_axes: Sequence[int]) -> LabelledValue:
    """Images without labels along image axes, which stay; channels that had different ones there are united."""
    fields: list[LabelField] = []
    for field in images.fields:
        if set(image_axes).isdisjoint(field.axes):
            fields.append(field)
            continue
        without = unite_along(trace, field, image_axes)
        if without is not None:
            fields.append(without)
        else:
            trace.freeze([field], _IMAGE_AXIS)
    marker = trace.labels.fixed_marker(_IMAGE_AXIS)
    fixed = [marker if axis in image_axes and old == FREE else old for axis, old in enumerate(images.fixed)]
    return dataclasses.replace(images, fields=tuple(fields), fixed=tuple(fixed))


def _with_groups(
    trace: Trace, operation: Operation, value: LabelledValue, axis: int, num_groups: int
) -> LabelledValue:
    """A value whose axis of channels is split into (group, channel of the group)."""
    shape = (*value.shape[:axis], num_groups, value.shape[axis] // num_groups, *value.shape[axis + 1 :])
    if num_groups > 1:
        return reshape(trace, operation, value, shape, is_users=False)
    return with_new_axes(value, shape, [old + (old >= axis) for old in range(len(value.shape))])


def _contract(
    trace: Trace,
    operation: Operation,
    operands: Sequence[_Operand],
    shape: tuple[int, ...],
    num_left: int,
    shared: Collection[int],
) -> LabelledValue:
    """Unites the labels of two operands over the axes of their product, and sums over all but the first `num_left`.

    `shape` is that of the product, and `shared` are the axes other than those summed over that both operands have.
    """
    summed = range(num_left, len(shape))
    producers = _note_reads_and_producers(trace, operation, operands, summed, shared)
    values = []
    for operand in operands:
        fixed = [FREE] * len(shape)
        for axis, marker in zip(operand.product_axes, operand.laid_out.fixed, strict=True):
            fixed[axis] = marker
        fields = move_axes(operand.laid_out.fields, operand.product_axes)
        values.append(LabelledValue(shape, fields, tuple(fixed)))
    product_fields, product_fixed = combine(trace, operation, values, shape)
    trace.contraction_macs.append(_macs(product_fields, shape, trace.iterations))
    result = computed_from(
        [operand.value for operand in operands],
        shape[:num_left],
        drop_axes(trace, product_fields, summed),
        product_fixed[:num_left],
        [
            NO_AXES.union(*(operand.source_axes_on((axis,)) for operand in operands))
            for axis in range(num_left)
        ],
    )
    sums = result.weight_sums
    if not result.is_activation:
        values = [operand.value for operand in operands]  # a product with constants sums the other operand
        are_shifted = all(value.is_shifted or not value.sources for value in values)
        for operand in operands:
            num_entries = math.prod(shape[axis] for axis in summed)
            over = _fields_over(operand, summed)
            sums |= note_sum(trace, operation, operand.laid_out, over, num_entries, sees_zeros=are_shifted)
    return dataclasses.replace(result, producers=result.producers | producers, weight_sums=sums)


def _fields_over(operand: _Operand, product_axes: Collection[int]) -> list[LabelField]:
    """The fields of an operand over some axes of the product."""
    axes = {axis for axis, product in enumerate(operand.product_axes) if product in product_axes}
    return [field for field in operand.laid_out.fields if not axes.isdisjoint(field.axes)]


def _note_reads_and_producers(
    trace: Trace,
    operation: Operation,
    operands: Sequence[_Operand],
    summed: Collection[int],
    shared: Collection[int],
) -> frozenset[int]:
    """Notes which channels the contraction reads and which it makes; returns the new producer uses."""
    producers: set[int] = set()
    for operand, other in (operands, operands[::-1]):
        if not operand.value.is_activation:
            continue
        has_kernel = bool(other.value.sources) and not other.value.is_activation
        path = _kernel_path(trace, other.value) if has_kernel else None
        if operand.number is not None:
            kernel_axes = other.source_axes_on({*summed, *shared})
            num_affine_uses = len(trace.affine_uses)
            trace.reads.append(
                ChannelRead(
                    operand.number,
                    operand.value,
                    operand.read_axes,
                    operand.shared_axes,
                    path,
                    kernel_axes,
                    num_affine_uses,
                )
            )
            if other.value.is_shifted:
                note_read(trace, operation, other.laid_out, _fields_over(other, summed))
        made = {axis for axis in other.product_axes if axis not in summed}
        fields = [
            field
            for field in other.laid_out.fields
            if has_kernel and any(other.product_axes[axis] in made for axis in field.axes)
        ]
        if fields and path is None:
            trace.freeze(fields, f"weights that are not one parameter in {operation.location}")
        elif fields and path is not None:
            labels = distinct(np.concatenate([field.labels.reshape(-1) for field in fields]))
            producers.add(
                trace.add_producer_use(operation, path, other.source_axes_on(made), labels[labels >= 0])
            )
    return frozenset(producers)


def _kernel_path(trace: Trace, kernel: LabelledValue) -> Path | None:
    """The one parameter of highest rank that a kernel is computed from; biases or statistics may be folded into it."""
    ranks = {path: len(trace.array_labels[path]) for path in kernel.sources}
    largest = [path for path, rank in ranks.items() if rank == max(ranks.values())]
    return largest[0] if len(largest) == 1 else None


def _macs(fields: Sequence[LabelField], shape: tuple[int, ...], iterations: int) -> ContractionMacs:
    """Multiply-adds of a product of this shape that runs so often; `fields` are its labels."""
    clusters = clusters_of_axes([fields])
    labelled = {axis for axes, _ in clusters for axis in axes}
    constant = math.prod(size for axis, size in enumerate(shape) if axis not in labelled)
    flat_labels = tuple(
        tuple(labels_over(field, axes, shape).reshape(-1) for field in on_axes)
        for axes, (on_axes,) in clusters
    )
    return ContractionMacs(constant * iterations, flat_labels)
