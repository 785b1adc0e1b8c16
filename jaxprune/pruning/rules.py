"""What each primitive does to axes and channels: one small function per kind of operation.

A rule takes the trace, the step and its input values and returns its output values. A primitive without a rule
freezes every axis it touches and names the source line; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from jaxprune.pruning.atoms import Dim
from jaxprune.pruning.program import Step, shape_of
from jaxprune.pruning.records import Cost, Trace, Value, output_shapes
from jaxprune.pruning.states import Path

Rule = Callable[[Trace, Step, Sequence[Value]], list[Value]]

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clip convert_element_type copy copy_p
cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic
lt max min mul ne neg nextafter not or population_count pow real reduce_precision rem round rsqrt select_n sign sin sinh
sqrt square stop_gradient sub tan tanh xor
""".split()


def apply_rule(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    """The values a step makes, by its primitive's rule; without a rule, frozen ones."""
    return _RULES.get(step.name, _unknown)(trace, step, inputs)


def _combined(inputs: Sequence[Value], dims: tuple[Dim, ...]) -> Value:
    """A value made of `inputs`: an activation if any of them is one, else made of all their parameters."""
    is_activation = any(value.is_activation for value in inputs)
    return Value(
        dims,
        sources=frozenset() if is_activation else frozenset().union(*(value.sources for value in inputs)),
        is_activation=is_activation,
        producers=frozenset().union(*(value.producers for value in inputs)),
    )


def _unknown(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    reason = f"no rule for {step.where}"
    for value in inputs:
        for dim in value.dims:
            trace.atoms.freeze(dim, reason)
    return [
        _combined(inputs, tuple(trace.atoms.dim(size, reason) for size in shape))
        for shape in output_shapes(step)
    ]


def _elementwise(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    (shape,) = output_shapes(step)
    arrays = [value for value in inputs if len(value.dims) == len(shape)]
    dims: list[Dim] = []
    for axis in range(len(shape)):
        present = [value.dims[axis] for value in arrays if value.dims[axis]]
        for other in present[1:]:
            trace.atoms.unite(present[0], other, step.where)
        dims.append(present[0] if present else ())
    if step.name in ("mul", "add", "div"):
        for value, parameter in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
            if value.is_activation and parameter.sources:
                (trace.shift if step.name == "add" else trace.scale)(value, parameter)
    return [_combined(inputs, tuple(dims))]


def _reshape(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    if step.equation.params.get("dimensions") is not None:
        return _unknown(trace, step, inputs)
    (shape,) = output_shapes(step)
    dims = trace.atoms.regroup(inputs[0].dims, shape, step.where)
    return [_combined(inputs[:1], tuple(dims))]


def _transpose(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    order = step.equation.params["permutation"]
    return [_combined(inputs, tuple(inputs[0].dims[axis] for axis in order))]


def _squeeze(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    dropped = step.equation.params["dimensions"]
    return [_combined(inputs, tuple(dim for axis, dim in enumerate(inputs[0].dims) if axis not in dropped))]


def _expand_dims(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    kept = iter(inputs[0].dims)
    (shape,) = output_shapes(step)
    new = step.equation.params["dimensions"]
    return [_combined(inputs, tuple(() if axis in new else next(kept) for axis in range(len(shape))))]


def _broadcast(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    (shape,) = output_shapes(step)
    source = dict(zip(step.equation.params["broadcast_dimensions"], inputs[0].dims, strict=True))
    # a new axis repeats one value: it may be cut with whatever it meets
    dims = tuple(source.get(axis) or trace.atoms.dim(size) for axis, size in enumerate(shape))
    return [_combined(inputs[:1], dims)]


def _reduce(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    axes = step.equation.params["axes"]
    for axis in axes:
        trace.atoms.freeze(inputs[0].dims[axis], f"a statistic runs across the channels: {step.where}")
    dims = tuple(dim for axis, dim in enumerate(inputs[0].dims) if axis not in axes)
    return [_combined(inputs[:1], dims)]


def _along(trace: Trace, step: Step, value: Value, is_whole: Sequence[bool]) -> list[Value]:
    """Axes that pass whole stay; the others are frozen before and after."""
    (shape,) = output_shapes(step)
    reason = f"cut, padded or reordered by {step.where}"
    dims: list[Dim] = []
    for dim, size, whole in zip(value.dims, shape, is_whole, strict=True):
        if not whole:
            trace.atoms.freeze(dim, reason)
        dims.append(dim if whole else trace.atoms.dim(size, reason))
    return [_combined([value], tuple(dims))]


def _pad(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    return _along(
        trace, step, inputs[0], [config == (0, 0, 0) for config in step.equation.params["padding_config"]]
    )


def _slice(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    params = step.equation.params
    sizes = shape_of(step.equation.invars[0])
    strides = params["strides"] or (1,) * len(sizes)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, sizes, strict=True)
    is_whole = [(start, stop, stride) == (0, size, 1) for start, stop, stride, size in bounds]
    return _along(trace, step, inputs[0], is_whole)


def _reverse(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    reversed_axes = step.equation.params["dimensions"]
    return _along(trace, step, inputs[0], [axis not in reversed_axes for axis in range(len(inputs[0].dims))])


def _cumulative(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    axis = step.equation.params["axis"]
    return _along(trace, step, inputs[0], [index != axis for index in range(len(inputs[0].dims))])


def _window(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    (shape,) = output_shapes(step)
    sizes = shape_of(step.equation.invars[0])
    window = step.equation.params["window_dimensions"]
    is_whole = [
        length == 1 and before == after for length, before, after in zip(window, sizes, shape, strict=True)
    ]
    return _along(trace, step, inputs[0], is_whole)


def _concatenate(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    joined = step.equation.params["dimension"]
    (shape,) = output_shapes(step)
    reason = f"joined with other channels by {step.where}"
    dims: list[Dim] = []
    for axis, size in enumerate(shape):
        parts = [value.dims[axis] for value in inputs]
        if axis == joined:
            for part in parts:
                trace.atoms.freeze(part, reason)
            dims.append(trace.atoms.dim(size, reason))
        else:
            for part in parts[1:]:
                trace.atoms.unite(parts[0], part, step.where)
            dims.append(parts[0])
    return [_combined(inputs, tuple(dims))]


def _barrier(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    return list(inputs)


def _dot(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    left, right = inputs
    (left_in, right_in), (left_batch, right_batch) = step.equation.params["dimension_numbers"]
    for a, b in zip((*left_in, *left_batch), (*right_in, *right_batch), strict=True):
        trace.atoms.unite(left.dims[a], right.dims[b], step.where)
    batch = [left.dims[axis] for axis in left_batch]
    left_free = [dim for axis, dim in enumerate(left.dims) if axis not in (*left_in, *left_batch)]
    right_free = [dim for axis, dim in enumerate(right.dims) if axis not in (*right_in, *right_batch)]
    contracted = [left.dims[axis] for axis in left_in]
    kernel_in = [right.dims[axis] for axis in right_in] if left.is_activation else contracted
    dims = (*batch, *left_free, *right_free)
    trace.costs.append(Cost((*dims, *contracted)))
    if left.is_activation == right.is_activation or batch:
        return _opaque_contraction(trace, step, inputs, contracted + batch, dims)
    index, kernel, kernel_free = (0, right, right_free) if left.is_activation else (1, left, left_free)
    return [_layer(trace, step, inputs, index, kernel, kernel_free, kernel_in, dims)]


def _convolution(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    params = step.equation.params
    numbers = params["dimension_numbers"]
    (shape,) = output_shapes(step)
    images, kernel = inputs
    reason = f"image axis of {step.where}"
    for value, spec in ((images, numbers.lhs_spec), (kernel, numbers.rhs_spec)):
        for axis in spec[2:]:
            trace.atoms.freeze(value.dims[axis], reason)
    batch, features = images.dims[numbers.lhs_spec[0]], images.dims[numbers.lhs_spec[1]]
    made, read = kernel.dims[numbers.rhs_spec[0]], kernel.dims[numbers.rhs_spec[1]]
    dims: list[Dim] = [trace.atoms.dim(size, reason) for size in shape]
    dims[numbers.out_spec[0]], dims[numbers.out_spec[1]] = batch, made
    trace.costs.append(Cost((*dims, read, *(kernel.dims[axis] for axis in numbers.rhs_spec[2:]))))
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        grouped = f"grouped convolution: {step.where}"
        for dim in (features, made, read):
            trace.atoms.freeze(dim, grouped)
        return [_combined(inputs, tuple(dims))]
    trace.atoms.unite(features, read, step.where)
    if not images.is_activation or kernel.is_activation:
        return _opaque_contraction(trace, step, inputs, [features], tuple(dims))
    return [_layer(trace, step, inputs, 0, kernel, [made], [read], tuple(dims))]


def _layer(
    trace: Trace,
    step: Step,
    inputs: Sequence[Value],
    index: int,
    kernel: Value,
    made: Sequence[Dim],
    contracted: Sequence[Dim],
    dims: tuple[Dim, ...],
) -> Value:
    """A contraction of activations (input `index`) with a parameter: consumes its channels, produces new ones."""
    value, number = inputs[index], step.inputs[index]
    path = _kernel_path(trace, kernel)
    if path is None or not isinstance(number, int):
        for dim in (*made, *contracted):
            trace.atoms.freeze(dim, f"weights that are not one parameter in {step.where}")
        return Value(dims, is_activation=True, producers=value.producers)
    ended = trace.consume(number, value, tuple(contracted), path)
    cuttable = [dim for dim in made if dim]
    if len(cuttable) > 1:
        for dim in cuttable:
            trace.atoms.freeze(dim, f"a kernel with several output axes in {step.where}")
    produced = frozenset({trace.produce(path, cuttable[0])}) if len(cuttable) == 1 else frozenset[int]()
    return Value(dims, is_activation=True, producers=(value.producers - ended) | produced)


def _kernel_path(trace: Trace, kernel: Value) -> Path | None:
    """The one parameter that a kernel is made of (biases and statistics folded into it do not count)."""
    ranks = {path: len(trace.layouts[path]) for path in kernel.sources}
    largest = [path for path, rank in ranks.items() if rank == max(ranks.values())]
    return largest[0] if len(largest) == 1 else None


def _opaque_contraction(
    trace: Trace, step: Step, inputs: Sequence[Value], touched: Sequence[Dim], dims: tuple[Dim, ...]
) -> list[Value]:
    for dim in touched:
        trace.atoms.freeze(dim, f"contracted without one layer's weights: {step.where}")
    return [_combined(inputs, dims)]


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
        **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
        "reshape": _reshape,
        "transpose": _transpose,
        "squeeze": _squeeze,
        "expand_dims": _expand_dims,
        "broadcast_in_dim": _broadcast,
        "pad": _pad,
        "slice": _slice,
        "rev": _reverse,
        "concatenate": _concatenate,
        "optimization_barrier": _barrier,
        "dot_general": _dot,
        "conv_general_dilated": _convolution,
    }
)
