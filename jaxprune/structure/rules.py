"""What each primitive does to labels: one small function per kind of operation.

A rule takes the trace, the step and its input values and returns its output values. A primitive without a rule
freezes every label it touches and names the source line; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.contraction_rules import convolution, dot_general, frozen_outputs
from jaxprune.structure.elementwise_rules import combine, drop_axes
from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.movement_rules import MOVEMENTS, NO_ORIGIN, Rule
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import LabelField, LabelledValue, Trace, free_axes, output_shapes

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clip
convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow
is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or population_count pow real
reduce_precision rem round rsqrt select_n shift_left shift_right_logical shift_right_arithmetic sign sin sinh
sqrt square stop_gradient sub tan tanh xor
""".split()


def apply_rule(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """The values a step makes, by its primitive's rule; without a rule, frozen ones."""
    rule = _RULES.get(step.name)
    if rule is None:
        return frozen_outputs(trace, step, inputs, f"no rule for {step.location}")
    return rule(trace, step, inputs)


def mixed(
    trace: Trace,
    step: Operation,
    inputs: Sequence[LabelledValue],
    shape: tuple[int, ...],
    fields: Sequence[LabelField],
    fixed: Sequence[int],
) -> LabelledValue:
    """A value made of `inputs`: an activation if any of them is one, else made of all their parameters."""
    is_activation = any(value.is_activation for value in inputs)
    origin: tuple[frozenset[int], ...] = ()
    if not is_activation:
        origin = next((value.origin for value in inputs if value.sources and value.shape == shape), ())
    return LabelledValue(
        shape=shape,
        fields=tuple(fields),
        fixed=tuple(fixed),
        sources=frozenset() if is_activation else frozenset().union(*(value.sources for value in inputs)),
        origin=origin,
        is_activation=is_activation,
        producers=frozenset().union(*(value.producers for value in inputs)),
    )


def _elementwise(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    (shape,) = output_shapes(step)
    if len(inputs) == 1:
        return [dataclasses.replace(inputs[0], shape=shape)]
    if step.name in ("mul", "add", "div"):
        for value, parameter in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
            if value.is_activation and parameter.sources:
                trace.touch(value, parameter, is_scale=step.name != "add")
    fields, fixed = combine(trace, step, inputs, shape)
    return [mixed(trace, step, inputs, shape, fields, fixed)]


def _reduce(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    axes, value = {int(axis) for axis in step.equation.params["axes"]}, inputs[0]
    if step.name in ("argmax", "argmin"):
        for axis in axes:
            trace.freeze(value.over(axis), f"the place of a channel is the result of {step.location}")
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    fields = [
        LabelField(tuple(kept.index(axis) for axis in own.axes), own.labels)
        for own in drop_axes(trace, value.fields, sorted(axes), value.shape)
    ]
    return [
        dataclasses.replace(
            value,
            shape=tuple(value.shape[axis] for axis in kept),
            fields=tuple(fields),
            fixed=tuple(value.fixed[axis] for axis in kept),
            origin=tuple(value.origin[axis] for axis in kept) if value.origin else (),
        )
    ]


def pass_whole(
    trace: Trace, step: Operation, value: LabelledValue, is_whole: Sequence[bool], shape: tuple[int, ...]
) -> LabelledValue:
    """Axes that pass whole keep their labels; the others are frozen before and fixed after."""
    fields, fixed = [], list(value.fixed)
    for own in value.fields:
        if all(is_whole[axis] for axis in own.axes):
            fields.append(own)
        else:
            trace.freeze([own], f"cut, padded or reordered by {step.location}")
    for axis, whole in enumerate(is_whole):
        if not whole and fixed[axis] == FREE and shape[axis] > 1:
            fixed[axis] = trace.labels.fixed_marker(f"cut, padded or reordered by {step.name}")
    return dataclasses.replace(value, shape=shape, fields=tuple(fields), fixed=tuple(fixed))


def _window(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, (shape,) = inputs[0], output_shapes(step)
    window = step.equation.params["window_dimensions"]
    sizes = zip(window, value.shape, shape, strict=True)
    is_whole = [int(length) == 1 and before == after for length, before, after in sizes]
    axes = [axis for axis, whole in enumerate(is_whole) if not whole]
    mixing = [own for own in value.fields if set(own.axes) & set(axes) and not set(own.axes) <= set(axes)]
    for own in mixing:  # what changes along an image axis is one
        index = tuple(slice(0, 1) if axis in axes else slice(None) for axis in own.axes)
        same = np.ascontiguousarray(np.broadcast_to(own.labels[index], own.labels.shape))
        trace.labels.unite(same, np.ascontiguousarray(own.labels))
    kept = [own for own in value.fields if own not in mixing]
    kept += [
        LabelField(
            tuple(axis for axis in own.axes if axis not in axes),
            own.labels[tuple(0 if axis in axes else slice(None) for axis in own.axes)],
        )
        for own in mixing
    ]
    return [pass_whole(trace, step, dataclasses.replace(value, fields=tuple(kept)), is_whole, shape)]


def _along_axis(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Sorting and running sums: entries move, or add up, along one axis."""
    params = step.equation.params
    axis = int(params.get("axis", params.get("dimension", -1)))
    shapes = output_shapes(step)
    axis %= len(inputs[0].shape)
    found = []
    for index, shape in enumerate(shapes):
        value = inputs[min(index, len(inputs) - 1)]
        found.append(pass_whole(trace, step, value, [own != axis for own in range(len(shape))], shape))
    if len(found) > 1:
        fields, fixed = combine(trace, step, found, shapes[0])
        found = [dataclasses.replace(own, fields=fields, fixed=fixed) for own in found]
    return found


def _iota(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    (shape,) = output_shapes(step)
    fixed = list(free_axes(shape))
    axis = int(step.equation.params["dimension"])
    if shape[axis] > 1:
        fixed[axis] = trace.labels.fixed_marker(f"counted by {step.location}")
    return [LabelledValue(shape, fixed=tuple(fixed))]


def _gather(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Rows looked up by number: axes that pass whole keep their labels, those that are looked into stay."""
    value, indices = inputs
    (shape,), params = output_shapes(step), step.equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    offsets = dict(
        zip((axis for axis in range(len(sizes)) if axis not in gone), numbers.offset_dims, strict=True)
    )
    reason = f"looked up by number in {step.location}"
    trace.freeze(indices.fields, reason)
    wall, fixed = trace.labels.fixed_marker(reason), list(free_axes(shape))
    batch = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    for axis, known in zip(batch, indices.fixed[:-1], strict=True):
        fixed[axis] = (known if known != FREE else wall) if shape[axis] > 1 else FREE
    fields = []
    for own in value.fields:
        if all(axis in offsets and sizes[axis] == value.shape[axis] for axis in own.axes):
            fields.append(LabelField(tuple(offsets[axis] for axis in own.axes), own.labels))
        else:
            trace.freeze([own], reason)
    labelled = {axis for own in fields for axis in own.axes}
    for axis, place in offsets.items():
        if place not in labelled and shape[place] > 1:
            is_whole = sizes[axis] == value.shape[axis]
            fixed[place] = value.fixed[axis] if is_whole else wall
    found = mixed(trace, step, inputs, shape, fields, fixed)
    origin = [NO_ORIGIN] * len(shape)
    for axis, place in offsets.items():
        origin[place] = value.origin[axis] if value.origin else NO_ORIGIN
    found = dataclasses.replace(found, origin=tuple(origin) if found.origin or found.sources else ())
    return [_looked_up(trace, step, value, found, offsets)] if value.sources else [found]


def _looked_up(
    trace: Trace, step: Operation, table: LabelledValue, found: LabelledValue, offsets: Mapping[int, int]
) -> LabelledValue:
    """An embedding: the table makes the channels of what is looked up in it."""
    if not found.is_activation or not found.fields or len(table.sources) != 1:
        return found
    (path,) = table.sources
    axes = NO_ORIGIN.union(*(table.origin[axis] for axis in offsets if table.origin))
    labels = distinct(np.concatenate([own.labels.reshape(-1) for own in found.fields]))
    number = trace.produce(step, path, axes, labels[labels >= 0])
    return dataclasses.replace(found, producers=found.producers | {number})


def _dynamic_slice(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    value, (shape,) = inputs[0], output_shapes(step)
    is_whole = [before == after for before, after in zip(value.shape, shape, strict=True)]
    return [pass_whole(trace, step, value, is_whole, shape)]


def _dynamic_update_slice(
    trace: Trace, step: Operation, inputs: Sequence[LabelledValue]
) -> list[LabelledValue]:
    value, update = inputs[:2]
    is_whole = [a == b for a, b in zip(value.shape, update.shape, strict=True)]
    parts = [
        pass_whole(
            trace, step, own, is_whole, tuple(s if w else 1 for s, w in zip(own.shape, is_whole, strict=True))
        )
        for own in (value, update)
    ]
    fields, fixed = combine(trace, step, parts, parts[0].shape)
    wall = trace.labels.fixed_marker(f"written into by {step.name}")
    walls = [own if whole else wall for own, whole in zip(fixed, is_whole, strict=True)]
    return [mixed(trace, step, inputs, value.shape, fields, walls)]


def _bitcast(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    (shape,) = output_shapes(step)
    if shape != inputs[0].shape:
        return frozen_outputs(trace, step, inputs, f"numbers of another width in {step.location}")
    return _elementwise(trace, step, inputs)


def _draw(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Random numbers; in training they are others each time, so it does not matter which ones a channel is given."""
    if trace.program.mode == "evaluation":
        return frozen_outputs(
            trace, step, inputs, f"random numbers of its own for each, drawn by {step.location}"
        )
    return [LabelledValue(shape, fixed=free_axes(shape)) for shape in output_shapes(step)]


def _barrier(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return list(inputs)


def constant(trace: Trace, array: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> LabelledValue:
    """An array built into the program: free along axes on which it does not change."""
    if isinstance(array, jax.ShapeDtypeStruct) or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return LabelledValue(
            tuple(array.shape), fixed=free_axes(array.shape)
        )  # random keys, which have no axes of channels
    known = np.asarray(array)
    wall = trace.labels.fixed_marker("an array of fixed size built into the network's code")
    fixed = []
    for axis, size in enumerate(known.shape):
        same = size <= 1 or bool((known == known.take([0], axis=axis)).all())
        fixed.append(FREE if same else wall)
    return LabelledValue(tuple(known.shape), fixed=tuple(fixed))


_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _elementwise),
        **dict.fromkeys(
            (
                "reduce_sum",
                "reduce_max",
                "reduce_min",
                "reduce_prod",
                "reduce_and",
                "reduce_or",
                "argmax",
                "argmin",
            ),
            _reduce,
        ),
        **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _window),
        **dict.fromkeys(
            ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k"), _along_axis
        ),
        **MOVEMENTS,
        "iota": _iota,
        "gather": _gather,
        "dynamic_slice": _dynamic_slice,
        "dynamic_update_slice": _dynamic_update_slice,
        "optimization_barrier": _barrier,
        "bitcast_convert_type": _bitcast,
        "random_bits": _draw,
        "dot_general": dot_general,
        "conv_general_dilated": convolution,
    }
)
