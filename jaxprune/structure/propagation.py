"""Walks a traced network in program order and carries out every operation on labels.

Loops are walked once, whatever the number of their turns: what a turn hands to the next one carries the labels of what
it was given. Two walks are common: where labels must be taken apart (see `factoring.py`), the walk begins anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.extend.core as jex
import numpy as np

from jaxprune.structure.elementwise_rules import combine
from jaxprune.structure.labels import FREE, Labels
from jaxprune.structure.model_state import Path
from jaxprune.structure.program import Body, Operation, Program, shape_of
from jaxprune.structure.rules import apply_rule, constant, mixed
from jaxprune.structure.trace import FactorRequest, LabelField, LabelledValue, Seeds, StartingLabels, Trace

BATCH = "the batch axis of the input"
_INPUT = "input of the network"
_MOST_ROUNDS = 4


def propagate(program: Program, trained: frozenset[Path], seeds: Seeds, labels: Labels) -> Trace:
    """Applies the rule of every step in program order.

    Args:
      program: a network traced in evaluation mode.
      trained: paths of the trained parameters; others (batch statistics) are never gamma or beta.
      seeds: the labels of every array.
      labels: as many as there are in `seeds`; what is known of them already is kept.

    Returns:
      The trace; inputs and outputs of the network are frozen in it.
    """
    trace = Trace(program, labels, seeds, trained)
    for path, number in program.parameters.items():
        trace.values[number] = _parameter(path, program.shapes[number], seeds[path])
    shape = program.shapes[program.example]
    fixed = [
        labels.fixed_marker(BATCH if axis == 0 else _INPUT) if size > 1 else FREE for axis, size in enumerate(shape)
    ]
    trace.values[program.example] = LabelledValue(shape, fixed=tuple(fixed), is_activation=True)
    for number, array in program.constants.items():
        trace.values[number] = constant(trace, array)
    _walk_steps(trace, program.operations)
    for number in program.outputs:
        trace.freeze(trace.values[number].fields, "output of the network")
    return trace


def _parameter(path: Path, shape: tuple[int, ...], seeds: Sequence[Sequence[np.ndarray]]) -> LabelledValue:
    fields = tuple(LabelField((axis,), own) for axis, parts in enumerate(seeds) for own in parts)
    origin = tuple(frozenset({axis}) for axis in range(len(shape)))
    return LabelledValue(shape, fields, (FREE,) * len(shape), frozenset({path}), origin)


def _walk_steps(trace: Trace, steps: Sequence[Operation]) -> None:
    for step in steps:
        inputs = [_read(trace, value) for value in step.inputs]
        if step.name == "scan":
            outputs = _scan(trace, step, inputs)
        elif step.name == "while":
            outputs = _while(trace, step, inputs)
        elif step.name == "cond":
            outputs = _cond(trace, step, inputs)
        else:
            outputs = apply_rule(trace, step, inputs)
        trace.values.update(zip(step.outputs, outputs, strict=True))


def _read(trace: Trace, value: int | jex.Literal) -> LabelledValue:
    if isinstance(value, int):
        return trace.values[value]
    shape = shape_of(value)
    return LabelledValue(shape, fixed=(FREE,) * len(shape)) if not shape else constant(trace, value.val)


def _scan(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    params, (body,) = step.equation.params, step.bodies
    num_consts, num_carry = int(params["num_consts"]), int(params["num_carry"])
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    slices = [_turn_of(trace, step, value) for value in inputs[num_consts + num_carry :]]
    trace.turns *= int(params["length"])
    carry, stacked = _repeat(trace, step, body, consts, carry, slices)
    trace.turns //= max(1, int(params["length"]))
    return [*carry, *(_stack_of(trace, step, value, int(params["length"])) for value in stacked)]


def _while(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    params, (condition, body) = step.equation.params, step.bodies
    first, second = int(params["cond_nconsts"]), int(params["body_nconsts"])
    consts, carry = inputs[first : first + second], inputs[first + second :]
    carry, _ = _repeat(trace, step, body, consts, carry, [])
    _run_body(trace, condition, [*inputs[:first], *carry])
    return carry


def _cond(trace: Trace, step: Operation, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    found = [_run_body(trace, body, inputs[1:]) for body in step.bodies]
    return [_same(trace, step, values) for values in zip(*found, strict=True)]


def _repeat(
    trace: Trace,
    step: Operation,
    body: Body,
    consts: Sequence[LabelledValue],
    carry: Sequence[LabelledValue],
    slices: Sequence[LabelledValue],
) -> tuple[list[LabelledValue], list[LabelledValue]]:
    """What a loop carries to its end, and the other results of a turn; walked until nothing new is learned."""
    noted = _noted(trace)
    carried = list(carry)
    found: list[LabelledValue] = []
    for _ in range(_MOST_ROUNDS):
        for records, length in noted:
            del records[length:]
        found = _run_body(trace, body, [*consts, *carried, *slices])
        joined = [_same(trace, step, pair) for pair in zip(carried, found[: len(carried)], strict=True)]
        is_known = all(_layout(a) == _layout(b) for a, b in zip(carried, joined, strict=True))
        carried = joined
        if is_known:
            return carried, found[len(carried) :]
    for value in carried:
        trace.freeze(value.fields, f"what the turns of a loop hand on never settles: {step.location}")
    return carried, found[len(carried) :]


def _noted(trace: Trace) -> list[tuple[list[object], int]]:
    records: list[list[object]] = [trace.reads, trace.affine_uses, trace.contraction_macs]  # type: ignore[list-item]
    return [(own, len(own)) for own in records]


def _layout(value: LabelledValue) -> object:
    return [own.axes for own in value.fields], value.fixed, value.producers


def _same(trace: Trace, step: Operation, values: Sequence[LabelledValue]) -> LabelledValue:
    """One value that may be any of some."""
    fields, fixed = combine(trace, step, values, values[0].shape)
    return mixed(trace, step, values, values[0].shape, fields, fixed)


def _run_body(trace: Trace, body: Body, inputs: Sequence[LabelledValue]) -> list[LabelledValue]:
    trace.values.update(zip(body.inputs, inputs, strict=True))
    _walk_steps(trace, body.operations)
    return [_read(trace, value) for value in body.outputs]


def _turn_of(trace: Trace, step: Operation, value: LabelledValue) -> LabelledValue:
    """What one turn of a loop sees of an array that it runs along."""
    fields = []
    for own in value.fields:
        if 0 in own.axes:
            trace.freeze([own], f"one for each turn of {step.location}")
        else:
            fields.append(LabelField(tuple(axis - 1 for axis in own.axes), own.labels))
    return dataclasses.replace(
        value, shape=value.shape[1:], fields=tuple(fields), fixed=value.fixed[1:], origin=value.origin[1:]
    )


def _stack_of(trace: Trace, step: Operation, value: LabelledValue, length: int) -> LabelledValue:
    fields = tuple(LabelField(tuple(axis + 1 for axis in own.axes), own.labels) for own in value.fields)
    wall = trace.labels.fixed_marker("the turns of a loop") if length > 1 else FREE
    return dataclasses.replace(
        value,
        shape=(length, *value.shape),
        fields=fields,
        fixed=(wall, *value.fixed),
        origin=(frozenset(), *value.origin) if value.origin else (),
    )


# === merged: """First labels of every array, and new ones for axes that a network takes apart.

_MOST_WALKS = 10


def first_seeds(shapes: Mapping[Path, tuple[int, ...]]) -> tuple[Seeds, int]:
    """One label for every index of every axis longer than one, and their number."""
    count = 0
    seeds: Seeds = {}
    for path, shape in shapes.items():
        axes: list[tuple[np.ndarray, ...]] = []
        for size in shape:
            axes.append((np.arange(count, count + size, dtype=np.int64),) if size > 1 else ())
            count += size if size > 1 else 0
        seeds[path] = tuple(axes)
    return seeds, count


def starting_labels(
    shapes: Mapping[Path, tuple[int, ...]], tied: Sequence[tuple[tuple[Path, int], tuple[Path, int]]] = ()
) -> StartingLabels:
    """Labels before the first walk; `tied` are (path, axis) pairs whose indices fall together."""
    seeds, count = first_seeds(shapes)
    same = [(seeds[a][i][0], seeds[b][j][0]) for (a, i), (b, j) in tied if seeds[a][i] and seeds[b][j]]
    return StartingLabels(seeds, count, tuple(same))


def propagate_and_factor(program: Program, trained: frozenset[Path], state: StartingLabels) -> Trace:
    """The trace of a network whose labels are taken apart as far as its operations need it.

    Args:
      program: of the network.
      trained: paths of its trained parameters.
      state: labels to begin with.
    """
    trace = _walked(program, trained, state)
    for _ in range(_MOST_WALKS - 1):
        if not trace.factor_requests:
            break
        seeds, count, found = _taken_apart(trace, state.seeds, state.size)
        state = StartingLabels(seeds, count, (*state.same, *found))
        trace = _walked(program, trained, state)
    for request in trace.factor_requests:
        trace.labels.freeze(request.labels, "axes are taken apart in ways that do not go together")
    return trace


def _walked(program: Program, trained: frozenset[Path], state: StartingLabels) -> Trace:
    labels = Labels(state.size)
    for left, right in state.same:
        labels.unite(left, right)
    trace = propagate(program, trained, state.seeds, labels)
    trace.start = state
    return trace


def with_ties(trace: Trace, ties: Sequence[tuple[np.ndarray, np.ndarray]]) -> StartingLabels:
    """The state of a walk with further labels that fall together."""
    assert trace.start is not None
    count = trace.start.size
    pairs = []
    for left, right in ties:
        a, b = trace.labels.find(left), trace.labels.find(right)
        known = (a >= 0) & (b >= 0) & (a < count) & (b < count)  # the walk's own labels are gone with it
        pairs.append((a[known], b[known]))
    return trace.start._replace(same=(*trace.start.same, *pairs))


def _taken_apart(
    trace: Trace, seeds: Seeds, count: int
) -> tuple[Seeds, int, list[tuple[np.ndarray, np.ndarray]]]:
    """Seeds with new labels for what was requested, their number, and which of the new ones are the same."""
    roots_of = {
        path: [[trace.labels.find(own) for own in axis] for axis in axes] for path, axes in seeds.items()
    }
    done: set[int] = set()
    same: list[tuple[np.ndarray, np.ndarray]] = []
    tables: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for request in trace.factor_requests:
        roots, coordinates = _roots_and_coordinates(trace.labels, request)
        if roots.size == 0 or done.intersection(roots.tolist()):
            continue  # of what was taken apart before, the next walk knows more
        done.update(roots.tolist())
        unique, where = np.unique(roots, return_inverse=True)
        columns = []
        for coordinate in coordinates:
            values, own = np.unique(coordinate, return_inverse=True)
            first = np.full(len(unique), len(values), np.int64)
            np.minimum.at(first, where, own)
            same.append((count + own, count + first[where]))
            is_one = len(np.unique(first)) == 1  # of which nothing could be cut
            columns.append(np.full(len(unique), FREE) if is_one else count + first)
            count += len(values)
        tables.append((unique, columns))
    lookup = _Lookup(tables)
    result = {
        path: tuple(
            _side_by_side(
                [part for own, roots in zip(axis, found, strict=True) for part in lookup.parts(own, roots)]
            )
            for axis, found in zip(axes, roots_of[path], strict=True)
        )
        for path, axes in seeds.items()
    }
    return result, count, same


def _roots_and_coordinates(labels: Labels, request: FactorRequest) -> tuple[np.ndarray, list[np.ndarray]]:
    is_label = request.labels >= 0
    return labels.find(request.labels[is_label]), [own[is_label] for own in request.coordinates]


def _side_by_side(fields: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Fields of one axis, those in one that have labels at different indices.

    Of a fused projection, values are taken apart in a later walk than queries and keys, but heads are heads.

    Example:
      >>> _side_by_side([np.array([1, 1, -1]), np.array([3, 4, 5]), np.array([-1, -1, 2])])
      (array([1, 1, 2]), array([3, 4, 5]))
    """
    found: list[np.ndarray] = []
    for own in fields:
        for place, other in enumerate(found):
            if ((own == FREE) | (other == FREE)).all():
                found[place] = np.where(own == FREE, other, own)
                break
        else:
            found.append(own)
    return tuple(found)


class _Lookup:
    """New labels by old representative: a row for each, as many columns as the longest request has coordinates."""

    def __init__(self, tables: Sequence[tuple[np.ndarray, list[np.ndarray]]]) -> None:
        width = max((len(columns) for _, columns in tables), default=0)
        roots = [unique for unique, _ in tables]
        rows = [
            np.stack([*columns, *[np.full(len(unique), FREE)] * (width - len(columns))], axis=1)
            for unique, columns in tables
        ]
        self._roots = np.concatenate(roots) if roots else np.zeros(0, np.int64)
        self._rows = np.concatenate(rows) if rows else np.zeros((0, 0), np.int64)
        order = np.argsort(self._roots)
        self._roots, self._rows = self._roots[order], self._rows[order]

    def parts(self, own: np.ndarray, roots: np.ndarray) -> list[np.ndarray]:
        """The fields that take the place of one."""
        if not len(self._roots):
            return [own]
        place = np.minimum(np.searchsorted(self._roots, roots), len(self._roots) - 1)
        is_found = self._roots[place] == roots
        if not is_found.any():
            return [own]
        found = []
        for column in range(self._rows.shape[1]):
            other = own if column == 0 else np.full_like(own, FREE)
            part = np.where(is_found, self._rows[place, column], other)
            if (part != FREE).any():
                found.append(part)
        return found
