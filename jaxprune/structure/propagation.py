"""Propagates labels through a network: applies the rule of every operation, again until all labels are fine enough.

One pass (`propagate`) goes through the operations in program order. Take `relu(x @ w1 + b) @ w2`, where the second axis
of w1 has the labels 3-6, b has 7-10 and the first axis of w2 has 11-14. The first product carries 3-6 on its last axis,
the addition unites these with 7-10, relu passes them on, and the second product unites them with 11-14. So 3, 7 and 11
are one channel: one column of w1, one bias and one row of w2. The labels of w1's first axis meet the input of the
network and those of w2's second axis reach its output; they are frozen. The body of a loop is treated like any other
operations, except that what an iteration hands to the next one must have the labels that it was given itself.

At first, an axis has one label at each index. Operations may need more: after a reshape from [heads * size] to
[heads, size], one for the head and one for the position in it. `propagate_and_factor` then splits the labels of the
axis into such factors and starts another pass.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.contraction_rules import frozen_outputs
from jaxprune.structure.elementwise_rules import combine
from jaxprune.structure.labels import FREE, Labels
from jaxprune.structure.liveness import is_dead, live_values
from jaxprune.structure.model_state import Path
from jaxprune.structure.program import Body, Input, Operation, Program, shape_of
from jaxprune.structure.rules import apply_rule
from jaxprune.structure.trace import (
    NO_AXES,
    ArrayLabels,
    LabelField,
    LabelledValue,
    StartingLabels,
    Trace,
    computed_from,
    output_shapes,
    select_axes,
)

BATCH = "the batch axis of the input"
"""Why the first axis of the input stays."""
_INPUT = "input of the network"
_MAX_PASSES = 10
_MAX_ROUNDS = 4
"""How often the body of a loop is gone through, at most, in one pass."""


def starting_labels(
    shapes: Mapping[Path, tuple[int, ...]], tied: Sequence[tuple[tuple[Path, int], tuple[Path, int]]] = ()
) -> StartingLabels:
    """Gives a label of its own to every index of every axis longer than one.

    Args:
      shapes: path -> shape of every array.
      tied: pairs of (path, axis) of axes whose channels must be removed together.

    Returns:
      The labels.
    """
    count = 0
    array_labels: ArrayLabels = {}
    for path, shape in shapes.items():
        axes: list[tuple[np.ndarray, ...]] = []
        for size in shape:
            axes.append((np.arange(count, count + size, dtype=np.int64),) if size > 1 else ())
            count += size if size > 1 else 0
        array_labels[path] = tuple(axes)
    pairs = [(array_labels[left][i], array_labels[right][j]) for (left, i), (right, j) in tied]
    ties = tuple((left[0], right[0]) for left, right in pairs if left and right)
    return StartingLabels(array_labels, count, ties)


def propagate_and_factor(program: Program, trained: frozenset[Path], start: StartingLabels) -> Trace:
    """Propagates labels through a network until no operation needs them to be split any further.

    Args:
      program: the network.
      trained: paths of its trained parameters.
      start: the labels to begin with.

    Returns:
      The trace of the last pass. Its `start` has the labels that it began with, all splits included.
    """
    trace = _propagate_from(program, trained, start)
    for _ in range(_MAX_PASSES - 1):
        if not trace.factor_requests:
            break
        start = _split_into_factors(trace, start)
        trace = _propagate_from(program, trained, start)
    for request in trace.factor_requests:
        trace.labels.freeze(request.labels, "axes are taken apart in ways that do not go together")
    return trace


def _propagate_from(program: Program, trained: frozenset[Path], start: StartingLabels) -> Trace:
    labels = Labels(start.num_labels)
    for left, right in start.ties:
        labels.unite(left, right)
    trace = propagate(program, trained, start.array_labels, labels)
    trace.start = start
    return trace


def with_ties(trace: Trace, ties: Sequence[tuple[np.ndarray, np.ndarray]]) -> StartingLabels:
    """Returns the labels that a trace started with, with more of them united.

    Args:
      trace: a trace made by `propagate_and_factor`.
      ties: pairs of arrays of its labels. Labels that it added on the way are ignored, as they end with it.

    Returns:
      The labels to begin another trace with.
    """
    assert trace.start is not None
    start, pairs = trace.start, []
    for left, right in ties:
        left_roots, right_roots = trace.labels.find(left), trace.labels.find(right)
        lower, higher = np.minimum(left_roots, right_roots), np.maximum(left_roots, right_roots)
        is_from_start = (lower >= 0) & (higher < start.num_labels)
        pairs.append((left_roots[is_from_start], right_roots[is_from_start]))
    return start._replace(ties=(*start.ties, *pairs))


def propagate(
    program: Program,
    trained: frozenset[Path],
    array_labels: ArrayLabels,
    labels: Labels,
    *,
    with_dead_code: bool = True,
) -> Trace:
    """Propagates labels through a network once, in program order.

    Args:
      program: the network.
      trained: paths of its trained parameters; only these are recognised as learned scales and shifts of a norm.
      array_labels: the labels of every array.
      labels: these labels, united and frozen as far as is known already; changed in place.
      with_dead_code: whether operations that no output depends on unite labels too. They freeze none in any case.

    Returns:
      The trace, in which inputs and outputs of the network are frozen.
    """
    trace = Trace(program, labels, array_labels, trained, live_values(program), with_dead_code)
    for path, number in program.parameters.items():
        shape = program.shapes[number]
        fields = tuple(
            LabelField((axis,), factor)
            for axis, factors in enumerate(array_labels[path])
            for factor in factors
        )
        source_axes = tuple(frozenset({axis}) for axis in range(len(shape)))
        trace.values[number] = LabelledValue(
            shape, fields, sources=frozenset({path}), source_axes=source_axes
        )
    for number, is_batched in zip(program.inputs, program.example.is_batched, strict=True):
        shape = program.shapes[number]
        reasons = [BATCH if axis == 0 and is_batched else _INPUT for axis in range(len(shape))]
        fixed = tuple(
            labels.fixed_marker(reason) if size > 1 else FREE
            for reason, size in zip(reasons, shape, strict=True)
        )
        trace.values[number] = LabelledValue(shape, fixed=fixed, is_activation=True)
    for number, array in program.constants.items():
        trace.values[number] = _constant(trace, array)
    _propagate_through(trace, program.operations)
    for number in program.outputs:
        trace.freeze(trace.values[number].fields, "output of the network")
    return trace


def _propagate_through(trace: Trace, operations: Sequence[Operation]) -> None:
    for operation in operations:
        inputs = [_read(trace, value) for value in operation.inputs]
        if is_dead(operation, trace.live):
            with trace.noting_only_unions():
                outputs = _outputs_of(trace, operation, inputs)
        else:
            outputs = _outputs_of(trace, operation, inputs)
        trace.values.update(zip(operation.outputs, outputs, strict=True))


def _outputs_of(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]
) -> Sequence[LabelledValue]:
    """Applies the rule of an operation; one that fails freezes what the operation reads, as no rule would."""
    shapes, iterations = output_shapes(operation), trace.iterations
    if shapes and all(0 in shape for shape in shapes):
        return [computed_from(inputs, shape) for shape in shapes]  # arrays without entries hold no channels
    try:
        outputs = CONTROL_FLOW.get(operation.name, apply_rule)(trace, operation, inputs)
        if [value.shape for value in outputs] != shapes:
            raise ValueError(f"shapes {[value.shape for value in outputs]} instead of {shapes}")
    except Exception as error:
        if isinstance(error, RuntimeWarning):  # of an operation inside this one, where warnings are errors
            raise
        trace.iterations = iterations
        reason = f"the rule failed with {type(error).__name__} for {operation.location}"
        warnings.warn(
            f"{reason}: {error}. What it reads stays whole. This is a fault of jaxprune: please report it.",
            RuntimeWarning,
        )
        return frozen_outputs(trace, operation, inputs, reason)
    return outputs


def _read(trace: Trace, value: Input) -> LabelledValue:
    if isinstance(value, jex.Literal):
        return _constant(trace, value.val) if shape_of(value) else LabelledValue(())
    return trace.values[value]


def _constant(trace: Trace, array: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> LabelledValue:
    """An array built into the network's code: free along axes on which it does not change."""
    shape = tuple(array.shape)
    if isinstance(array, jax.ShapeDtypeStruct) or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return LabelledValue(shape)  # random keys, which have no axes of channels
    values = np.asarray(array)
    marker = trace.labels.fixed_marker("an array of fixed size built into the network's code")
    is_free = [
        size <= 1 or bool((values == values.take([0], axis=axis)).all()) for axis, size in enumerate(shape)
    ]
    return LabelledValue(shape, fixed=tuple(FREE if free else marker for free in is_free))


def _scan(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    params, (body,) = operation.equation.params, operation.bodies
    num_consts, length = int(params["num_consts"]), int(params["length"])
    first_slice = num_consts + int(params["num_carry"])
    consts, carry = inputs[:num_consts], inputs[num_consts:first_slice]
    slices = [_slice_of(trace, operation, value) for value in inputs[first_slice:]]
    iterations = trace.iterations
    trace.iterations *= length
    carry, results = _iterate(trace, operation, body, consts, carry, slices)
    trace.iterations = iterations
    return [*carry, *(_stacked(trace, value, length) for value in results)]


def _while(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    params, (condition, body) = operation.equation.params, operation.bodies
    num_condition = int(params["cond_nconsts"])
    first_carry = num_condition + int(params["body_nconsts"])
    consts = inputs[num_condition:first_carry]
    carry, _ = _iterate(trace, operation, body, consts, inputs[first_carry:], [])
    _run_body(trace, condition, [*inputs[:num_condition], *carry])
    return carry


def _cond(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    branches = [_run_body(trace, body, inputs[1:]) for body in operation.bodies]
    return [_either(trace, operation, values) for values in zip(*branches, strict=True)]


CONTROL_FLOW = {"scan": _scan, "while": _while, "cond": _cond}


def _iterate(
    trace: Trace,
    operation: Operation,
    body: Body,
    consts: Sequence[LabelledValue],
    carry: Sequence[LabelledValue],
    slices: Sequence[LabelledValue],
) -> tuple[list[LabelledValue], list[LabelledValue]]:
    """Goes through the body of a loop until what it carries from one iteration to the next no longer changes.

    Returns what the loop carries to its end, and the other results of an iteration.
    """
    carry = list(carry)
    num_reads, num_affine, num_macs = len(trace.reads), len(trace.affine_uses), len(trace.contraction_macs)
    results: list[LabelledValue] = []
    for _ in range(_MAX_ROUNDS):
        del trace.reads[num_reads:]  # only what the last round notes is kept
        del trace.affine_uses[num_affine:]
        del trace.contraction_macs[num_macs:]
        results = _run_body(trace, body, [*consts, *carry, *slices])
        pairs = zip(carry, results[: len(carry)], strict=True)
        before, carry = carry, [_either(trace, operation, pair) for pair in pairs]
        if all(_summary(old) == _summary(new) for old, new in zip(before, carry, strict=True)):
            break
    else:
        for value in carry:
            trace.freeze(
                value.fields, f"what the turns of a loop hand on never settles: {operation.location}"
            )
    return carry, results[len(carry) :]


def _summary(value: LabelledValue) -> object:
    """What has to be the same before and after an iteration."""
    return [field.axes for field in value.fields], value.fixed, value.producers


def _either(trace: Trace, operation: Operation, values: Sequence[LabelledValue]) -> LabelledValue:
    """A value that is one of several, depending on the branch or the iteration."""
    fields, fixed = combine(trace, operation, values, values[0].shape)
    return computed_from(values, values[0].shape, fields, fixed)


def _run_body(trace: Trace, body: Body, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    trace.values.update(zip(body.inputs, inputs, strict=True))
    _propagate_through(trace, body.operations)
    return [_read(trace, value) for value in body.outputs]


def _slice_of(trace: Trace, operation: Operation, value: LabelledValue) -> LabelledValue:
    """What one iteration sees of an array whose first axis the loop runs along."""
    trace.freeze(value.over(0), f"one for each turn of {operation.location}")
    fields = [
        LabelField(tuple(axis - 1 for axis in field.axes), field.labels)
        for field in value.fields
        if 0 not in field.axes
    ]
    return select_axes(value, range(1, len(value.shape)), fields)


def _stacked(trace: Trace, value: LabelledValue, length: int) -> LabelledValue:
    """The results of all iterations along a new first axis."""
    marker = trace.labels.fixed_marker("the turns of a loop") if length > 1 else FREE
    return dataclasses.replace(
        value,
        shape=(length, *value.shape),
        fields=tuple(LabelField(tuple(axis + 1 for axis in axes), labels) for axes, labels in value.fields),
        fixed=(marker, *value.fixed),
        source_axes=(NO_AXES, *value.source_axes),
    )


def _split_into_factors(trace: Trace, start: StartingLabels) -> StartingLabels:
    """The labels that a trace started with, those replaced by several factors for which it requests that.

    Two new labels are united if their digits belong to labels that were united.
    """
    count, ties = start.num_labels, list(start.ties)
    split_roots: set[int] = set()
    tables: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for request in trace.factor_requests:
        is_label = request.labels >= 0
        roots = trace.labels.find(request.labels[is_label])
        if roots.size == 0 or not split_roots.isdisjoint(roots.tolist()):
            continue  # these labels are split for another request; the next pass will tell more
        split_roots.update(roots.tolist())
        unique_roots, root_index = np.unique(roots, return_inverse=True)
        factors = []
        for digits in request.digits:
            values, value_index = np.unique(digits[is_label], return_inverse=True)
            # Indices of one channel may have different digits; the lowest stands for all of them.
            lowest = np.full(len(unique_roots), len(values), np.int64)
            np.minimum.at(lowest, root_index, value_index)
            ties.append((count + value_index, count + lowest[root_index]))
            is_single = len(np.unique(lowest)) == 1  # nothing could be removed
            factors.append(np.full(len(unique_roots), FREE) if is_single else count + lowest)
            count += len(values)
        tables.append((unique_roots, factors))
    table = _FactorTable.join(tables)
    array_labels: ArrayLabels = {
        path: tuple(
            _merge_disjoint(
                [factor for labels in axis for factor in table.split(labels, trace.labels.find(labels))]
            )
            for axis in axes
        )
        for path, axes in start.array_labels.items()
    }
    return StartingLabels(array_labels, count, tuple(ties))


class _FactorTable(NamedTuple):
    """The factors of all labels that are split."""

    roots: np.ndarray
    """[n] roots of the labels, rising."""
    factors: np.ndarray
    """[n, largest number of factors] the new labels, `FREE` where there are fewer."""

    @classmethod
    def join(cls, tables: Sequence[tuple[np.ndarray, list[np.ndarray]]]) -> _FactorTable:
        """Joins tables of (roots, factors), which have no root in common."""
        if not tables:
            return cls(np.zeros(0, np.int64), np.zeros((0, 0), np.int64))
        width = max(len(factors) for _, factors in tables)
        rows = []
        for roots, factors in tables:
            row = np.full((len(roots), width), FREE)
            row[:, : len(factors)] = np.stack(factors, axis=1)
            rows.append(row)
        all_roots = np.concatenate([roots for roots, _ in tables])
        order = np.argsort(all_roots)
        return cls(all_roots[order], np.concatenate(rows)[order])

    def split(self, labels: np.ndarray, roots: np.ndarray) -> list[np.ndarray]:
        """The arrays of labels that replace one; labels that are not split stay in the first of them."""
        if not len(self.roots):
            return [labels]
        row = np.minimum(np.searchsorted(self.roots, roots), len(self.roots) - 1)
        is_split = self.roots[row] == roots
        if not is_split.any():
            return [labels]
        first = np.where(is_split, self.factors[row, 0], labels)
        others = [
            np.where(is_split, self.factors[row, column], FREE) for column in range(1, self.factors.shape[1])
        ]
        return [factor for factor in (first, *others) if (factor != FREE).any()]


def _merge_disjoint(factors: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The factors of one axis, with those merged into one that have labels at different indices.

    In a fused projection of queries, keys and values, the values may be split in a later pass than the queries; their
    heads still make one factor.

    Example:
      >>> _merge_disjoint([np.array([1, 1, -1]), np.array([3, 4, 5]), np.array([-1, -1, 2])])
      (array([1, 1, 2]), array([3, 4, 5]))
    """
    merged: list[np.ndarray] = []
    for factor in factors:
        for position, other in enumerate(merged):
            if ((factor == FREE) | (other == FREE)).all():
                merged[position] = np.where(factor == FREE, other, factor)
                break
        else:
            merged.append(factor)
    return tuple(merged)
