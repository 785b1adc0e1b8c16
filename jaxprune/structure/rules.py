"""Rules: for each primitive of JAX, what an operation does to the labels of its inputs.

A rule takes the trace, the operation and its labelled inputs, and returns its labelled outputs. This module has the
rules for elementwise operations, reductions, windows and others, and the table of all rules, `RULES`.
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
from jaxprune.structure.indexing_rules import INDEXING, pass_whole_axes
from jaxprune.structure.labels import FREE
from jaxprune.structure.liveness import WATCHES
from jaxprune.structure.movement_rules import MOVEMENTS, Rule
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import (
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
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
convert_element_type cos cosh digamma div empty empty2 eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul mulhi ne neg
nextafter not or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt
select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta
""".split()
_IDENTITIES = """
consume copy device_put layout_constraint name optimization_barrier pin preduced pvary reduced_vary_cast_p reshard
shard_alike sharding_constraint stage stop_gradient unpin vary_unreduced_cast_p xla_metadata_value
""".split()
_REDUCTIONS = """
argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor
""".split()
_OVER_MAPPED_AXES = "pmax pmin psum".split()
_WINDOWS = "reduce_window_max reduce_window_min reduce_window_sum".split()
_ALONG_AXIS = "approx_top_k cumlogsumexp cummax cummin cumprod cumsum sort top_k".split()

_FROZEN = {
    "mixes all entries of a matrix": """
cholesky cholesky_update custom_linear_solve eig eigh geqp3 geqrf hessenberg householder_product linear_call lu
lu_pivots_to_permutation ormqr qr schur svd symmetric_product triangular_solve tridiagonal tridiagonal_solve
""",
    "moves data between devices": """
all_gather all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start all_gather_start all_to_all
all_to_all_done all_to_all_start axis_index global_array_to_host_local_array host_local_array_to_global_array
pbroadcast pbroadcast_done pbroadcast_start ppermute ppermute_done ppermute_start precv psend psum_done psum_invariant
psum_invariant_start psum_start ragged_all_to_all reduce_scatter reduce_scatter_done reduce_scatter_start shard_map
unreduced_psum unreduced_psum_start unreduced_reduce_scatter unreduced_reduce_scatter_start
""",
    "runs code that JAX does not see": "buffer_callback call_exported ffi_call io_callback pure_callback",
    "is a kernel of its own": """
cudnn_fusion dot_product_attention_bwd dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd
dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper
dot_product_attention_fwd dot_product_attention_fwd_wrapper pallas_call ragged_dot_general rnn_bwd rnn_fwd scaled_dot
scaled_matmul scaled_matmul_wrapper
""",
    "changes an array in place": """
accum_grad_in_ref addupdate box_get box_set broadcast_to create_linear empty_ref free_ref freeze get log_extend log_read
new_box new_log new_ref run_state swap
""",
    "draws random numbers": """
iota_2x32_shape philox2x32 philox4x32 random_clone random_fold_in random_gamma random_seed random_split random_unwrap
random_wrap rng_bit_generator rng_uniform threefry2x32 threefry4x32
""",
    "is part of a derivative": """
custom_lin select_and_gather_add select_and_scatter select_and_scatter_add zeros_like
""",
    "works on sparse arrays": """
bcoo_dot_general bcoo_dot_general_sampled bcoo_extract bcoo_fromdense bcoo_sort_indices bcoo_spdot_general
bcoo_sum_duplicates bcoo_todense bcoo_transpose bcsr_dot_general bcsr_extract bcsr_fromdense bcsr_todense coo_fromdense
coo_matmat coo_matvec coo_spmm coo_spmv coo_todense csr_fromdense csr_matmat csr_matvec csr_spmm csr_spmv csr_todense
spsolve todense
""",
    "combines entries by a function of the user's": "reduce reduce_window",
    "is about no array of the network": """
after_all assert_consumed_value create_token dim_as_value dimension_size from_edtype platform_index shape_assertion
to_edtype unreachable
""",
}
FROZEN_ON_PURPOSE: Mapping[str, str] = MappingProxyType(
    {name: why for why, names in _FROZEN.items() for name in names.split()}
)
"""Primitive -> why it has no rule, so that what it reads stays whole. Others without a rule are new to jaxprune."""


def apply_rule(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Propagates labels through one operation that is neither a loop nor a branch.

    Args:
      trace: holds the labels, and notes what the operation tells about them.
      operation: the operation.
      inputs: its inputs.

    Returns:
      Its outputs; all frozen if there is no rule for the primitive.
    """
    rule = RULES.get(operation.name)
    if rule is None:
        why = FROZEN_ON_PURPOSE.get(operation.name)
        reason = f"no rule for {operation.location}" + (f", which {why}" if why else "")
        return frozen_outputs(trace, operation, inputs, reason)
    return rule(trace, operation, inputs)


def _elementwise(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Unites labels index by index, and notes learned scales and shifts."""
    (shape,) = output_shapes(operation)
    if len(inputs) == 1:
        return [combined(trace, operation, inputs, inputs[0])]
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


def _over_mapped_axes(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]
) -> list[LabelledValue]:
    """A reduction over axes of `vmap`, which `vmap` has numbered; axes that still have names lie across devices."""
    params = operation.equation.params
    if (
        len(inputs) > 1
        or params["axis_index_groups"]
        or any(isinstance(axis, str) for axis in params["axes"])
    ):
        reason = f"no rule for {operation.location}, which moves data between devices"
        return frozen_outputs(trace, operation, inputs, reason)
    return _reduce(trace, operation, inputs)


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
    return [pass_whole_axes(trace, operation, value, is_whole, shape)]


def _along_axis(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Sorting and running sums: along one axis, indices change places or add up."""
    params, shapes = operation.equation.params, output_shapes(operation)
    (axis,) = (int(params[name]) for name in ("axis", "dimension", "reduction_dimension") if name in params)
    outputs = []
    for index, shape in enumerate(shapes):
        value = inputs[min(index, len(inputs) - 1)]
        is_whole = [other != axis for other in range(len(shape))]
        outputs.append(pass_whole_axes(trace, operation, value, is_whole, shape))
    if len(outputs) > 1:  # all change places alike
        fields, fixed = combine(trace, operation, outputs, shapes[0])
        outputs = [computed_from([*inputs, value], value.shape, fields, fixed) for value in outputs]
    return outputs


def _iota(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """Numbers 0, 1, 2, ...: an axis along which they rise has to stay."""
    (shape,) = output_shapes(operation)
    fixed = [FREE] * len(shape)
    axis = int(operation.equation.params["dimension"])
    if shape[axis] > 1:
        fixed[axis] = trace.labels.fixed_marker(f"counted by {operation.location}")
    return [LabelledValue(shape, fixed=tuple(fixed))]


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


def _identity(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return list(inputs)


def _tie(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return [inputs[1]]


def _watch(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    return []


def _fourier(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    """A Fourier transform: the last axes are mixed, the others keep their labels."""
    value, (shape,) = inputs[0], output_shapes(operation)
    first = len(shape) - len(operation.equation.params["fft_lengths"])
    is_whole = [axis < first for axis in range(len(shape))]
    return [pass_whole_axes(trace, operation, value, is_whole, shape, "mixed")]


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _elementwise),
        **dict.fromkeys(_IDENTITIES, _identity),
        **dict.fromkeys(_REDUCTIONS, _reduce),
        **dict.fromkeys(_OVER_MAPPED_AXES, _over_mapped_axes),
        **dict.fromkeys(_WINDOWS, _window),
        **dict.fromkeys(_ALONG_AXIS, _along_axis),
        **dict.fromkeys(WATCHES, _watch),
        **MOVEMENTS,
        **INDEXING,
        "iota": _iota,
        "tie": _tie,
        "fft": _fourier,
        "bitcast_convert_type": _bitcast,
        "random_bits": _random_bits,
        "dot_general": dot_general,
        "conv_general_dilated": convolution,
    }
)
"""Primitive -> its rule."""
