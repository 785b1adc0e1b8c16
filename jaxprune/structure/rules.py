"""Rules: for each primitive of JAX, what an operation does to the labels of its inputs.

A rule takes the trace, the operation and its labelled inputs, and returns its labelled outputs. This module has the
rules for elementwise operations, reductions, windows, look-ups and others, and the table of all rules, `apply_rule`.
Nothing is guessed: a primitive without a rule freezes every label that it touches, and the reason names the line of the
user's code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jaxprune.structure.contraction_rules import convolution, dot_general, frozen_outputs
from jaxprune.structure.elementwise_rules import combine, drop_axes, unite_along
from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.movement_rules import MOVEMENTS, Rule
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
    NO_AXES,
    AffineUse,
    LabelField,
    LabelledValue,
    Trace,
    computed_from,
    output_shapes,
    select_axes,
)
from jaxprune.structure.weight_norms import combined, note_sum, sees_zeros

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clip
convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow
is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or population_count pow real
reduce_precision rem round rsqrt select_n shift_left shift_right_logical shift_right_arithmetic sign sin sinh
sqrt square stop_gradient sub tan tanh xor
""".split()
_REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split()
_WINDOWS = "reduce_window_max reduce_window_min reduce_window_sum".split()
_ALONG_AXIS = "cumsum cumprod cummax cummin cumlogsumexp sort top_k".split()


def apply_rule(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Propagates labels through one operation that is neither a loop nor a branch.

    Args:
      trace: holds the labels, and notes what the operation tells about them.
      operation: the operation.
      inputs: its inputs.

    Returns:
      Its outputs; all frozen if there is no rule for the primitive.
    """
    rule = _RULES.get(operation.name)
    if rule is None:
        return frozen_outputs(trace, operation, inputs, f"no rule for {operation.location}")
    return rule(trace, operation, inputs)


def _elementwise(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Unites labels index by index, and notes learned scales and shifts."""
    (shape,) = output_shapes(operation)
    if len(inputs) == 1:
        return [combined(trace, operation, inputs, dataclasses.replace(inputs[0], shape=shape))]
    if operation.name in ("mul", "add", "div"):
        for value, parameter in (inputs, inputs[::-1]):
            if value.is_activation and parameter.sources and value.producers and parameter.fields:
                labels = np.concatenate([field.labels.reshape(-1) for field in parameter.fields])
                is_scale = operation.name != "add"
                trace.affine_uses.append(AffineUse(is_scale, value.producers, parameter.sources, labels))
    fields, fixed = combine(trace, operation, inputs, shape)
    return [combined(trace, operation, inputs, computed_from(inputs, shape, fields, fixed))]


def _reduce(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Drops the axes that are summed over, or the like."""
    axes, value = {int(axis) for axis in operation.equation.params["axes"]}, inputs[0]
    if operation.name in ("argmax", "argmin"):
        for axis in axes:
            trace.freeze(value.over(axis), f"the place of a channel is the result of {operation.location}")
    other_axes = [axis for axis in range(len(value.shape)) if axis not in axes]
    fields = [
        LabelField(tuple(other_axes.index(axis) for axis in field.axes), field.labels)
        for field in drop_axes(trace, value.fields, axes)
    ]
    result = select_axes(value, other_axes, fields)
    if not value.sources:  # an activation or a constant
        return [result]
    summed = [field for field in value.fields if not axes.isdisjoint(field.axes)]
    count = math.prod(value.shape[axis] for axis in axes)
    sums = note_sum(trace, operation, value, summed, count, sees_zeros=sees_zeros(trace, operation, value))
    return [dataclasses.replace(result, weight_sums=result.weight_sums | sums)]


def _window(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Pooling: unites the labels that a window mixes; axes along which it slides are frozen."""
    value, (shape,) = inputs[0], output_shapes(operation)
    window = operation.equation.params["window_dimensions"]
    sizes = zip(window, value.shape, shape, strict=True)
    is_whole = [int(length) == 1 and before == after for length, before, after in sizes]
    window_axes = {axis for axis, whole in enumerate(is_whole) if not whole}
    fields, mixed = [], []
    for field in value.fields:
        if window_axes.isdisjoint(field.axes) or window_axes.issuperset(field.axes):
            fields.append(field)
        elif (united := unite_along(trace, field, window_axes)) is not None:
            mixed.append(united)
    value = dataclasses.replace(value, fields=(*fields, *mixed))
    return [_pass_whole_axes(trace, operation, value, is_whole, shape)]


def _along_axis(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Sorting and running sums: along one axis, indices change places or add up."""
    params, shapes = operation.equation.params, output_shapes(operation)
    axis = int(params.get("axis", params.get("dimension", -1))) % len(inputs[0].shape)
    outputs = []
    for index, shape in enumerate(shapes):
        value = inputs[min(index, len(inputs) - 1)]
        is_whole = [other != axis for other in range(len(shape))]
        outputs.append(_pass_whole_axes(trace, operation, value, is_whole, shape))
    if len(outputs) > 1:
        fields, fixed = combine(trace, operation, outputs, shapes[0])
        outputs = [dataclasses.replace(value, fields=fields, fixed=fixed) for value in outputs]
    return outputs


def _pass_whole_axes(
    trace: Trace,
    operation: Operation,
    value: LabelledValue,
    is_whole: Sequence[bool],
    shape: tuple[int, ...],
) -> LabelledValue:
    """An output of this shape, in which axes that are whole keep their labels and the others are frozen."""
    fields, fixed = [], list(value.fixed)
    for field in value.fields:
        if all(is_whole[axis] for axis in field.axes):
            fields.append(field)
        else:
            trace.freeze([field], f"cut, padded or reordered by {operation.location}")
    for axis, whole in enumerate(is_whole):
        if not whole and fixed[axis] == FREE and shape[axis] > 1:
            fixed[axis] = trace.labels.fixed_marker(f"cut, padded or reordered by {operation.name}")
    return dataclasses.replace(value, shape=shape, fields=tuple(fields), fixed=tuple(fixed))


def _iota(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Numbers 0, 1, 2, ...: an axis along which they rise has to stay."""
    (shape,) = output_shapes(operation)
    fixed = [FREE] * len(shape)
    axis = int(operation.equation.params["dimension"])
    if shape[axis] > 1:
        fixed[axis] = trace.labels.fixed_marker(f"counted by {operation.location}")
    return [LabelledValue(shape, fixed=tuple(fixed))]


def _gather(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Looks up slices by number: whole axes keep their labels, those along which is looked up stay.

    A look-up in a parameter is an embedding, which makes channels.
    """
    table, indices = inputs
    (shape,), params = output_shapes(operation), operation.equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    removed = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    slice_axes = [axis for axis in range(len(sizes)) if axis not in removed]
    new_axis = dict(zip(slice_axes, numbers.offset_dims, strict=True))
    reason = f"looked up by number in {operation.location}"
    marker = trace.freeze_and_mark(indices.fields, reason)
    fixed, source_axes = [FREE] * len(shape), [NO_AXES] * len(shape)
    index_axes = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    for axis, index_marker in zip(index_axes, indices.fixed[:-1], strict=True):
        if shape[axis] > 1:
            fixed[axis] = index_marker if index_marker != FREE else marker
    fields = []
    for field in table.fields:
        if all(axis in new_axis and sizes[axis] == table.shape[axis] for axis in field.axes):
            fields.append(LabelField(tuple(new_axis[axis] for axis in field.axes), field.labels))
        else:
            trace.freeze([field], reason)
    labelled = {axis for field in fields for axis in field.axes}
    for axis, new in new_axis.items():
        source_axes[new] = table.source_axes[axis]
        if new not in labelled and shape[new] > 1:
            fixed[new] = table.fixed[axis] if sizes[axis] == table.shape[axis] else marker
    result = computed_from(inputs, shape, fields, fixed, source_axes)
    if len(table.sources) != 1 or not result.is_activation or not fields:
        return [result]
    labels = distinct(np.concatenate([field.labels.reshape(-1) for field in fields]))
    (path,), axes = table.sources, NO_AXES.union(*source_axes)
    producer = trace.add_producer_use(operation, path, axes, labels[labels >= 0])
    return [dataclasses.replace(result, producers=result.producers | {producer})]


def _dynamic_slice(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]
) -> list[LabelledValue]:
    """Slices at an index that is computed: axes that are not whole are frozen."""
    value, (shape,) = inputs[0], output_shapes(operation)
    is_whole = [before == after for before, after in zip(value.shape, shape, strict=True)]
    return [_pass_whole_axes(trace, operation, value, is_whole, shape)]


def _dynamic_update_slice(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]
) -> list[LabelledValue]:
    """Writes one value into another: their labels are united on axes that are whole, the others are frozen."""
    value, update = inputs[:2]
    is_whole = [before == after for before, after in zip(value.shape, update.shape, strict=True)]
    shape = tuple(size if whole else 1 for size, whole in zip(value.shape, is_whole, strict=True))
    parts = [_pass_whole_axes(trace, operation, part, is_whole, shape) for part in (value, update)]
    fields, fixed = combine(trace, operation, parts, shape)
    marker = trace.labels.fixed_marker(f"written into by {operation.name}")
    fixed = tuple(own if whole else marker for own, whole in zip(fixed, is_whole, strict=True))
    return [computed_from(inputs, value.shape, fields, fixed)]


def _bitcast(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    if output_shapes(operation) != [inputs[0].shape]:
        reason = f"numbers of another width in {operation.location}"
        return frozen_outputs(trace, operation, inputs, reason)
    return _elementwise(trace, operation, inputs)


def _random_bits(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Random numbers: in training they are new each time, so it does not matter which of them a channel meets."""
    if trace.program.mode == "evaluation":
        reason = f"random numbers of its own for each, drawn by {operation.location}"
        return frozen_outputs(trace, operation, inputs, reason)
    return [LabelledValue(shape) for shape in output_shapes(operation)]


def _barrier(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return list(inputs)


_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _elementwise),
        **dict.fromkeys(_REDUCTIONS, _reduce),
        **dict.fromkeys(_WINDOWS, _window),
        **dict.fromkeys(_ALONG_AXIS, _along_axis),
        **MOVEMENTS,
        "iota": _iota,
        "gather": _gather,
        "dynamic_slice": _dynamic_slice,
        "dynamic_update_slice": _dynamic_update_slice,
        "optimization_barrier": _barrier,
        "bitcast_convert_type": _bitcast,
        "random_bits": _random_bits,
        "dot_general": dot_general,
        "conv_general_dilated": convolution,
    }
)
"""Primitive -> its rule."""
