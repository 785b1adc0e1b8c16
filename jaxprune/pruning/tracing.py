"""Walks a traced network in program order and carries out every operation on labels.

Loops are walked once, whatever the number of their turns: what a turn hands to the next one carries the labels of what
it was given. Two walks are common: where labels must be taken apart (see `factoring.py`), the walk begins anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.extend.core as jex
import numpy as np

from jaxprune.pruning.combining import combine
from jaxprune.pruning.labels import FREE, Labels
from jaxprune.pruning.program import Body, Program, Step, shape_of
from jaxprune.pruning.records import Seeds, Trace
from jaxprune.pruning.rules import apply_rule, constant, mixed
from jaxprune.pruning.states import Path
from jaxprune.pruning.values import LabelField, Value

BATCH = "the batch axis of the input"
_INPUT = "input of the network"
_MOST_ROUNDS = 4


def walk(program: Program, trained: frozenset[Path], seeds: Seeds, labels: Labels) -> Trace:
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
        labels.fixed(BATCH if axis == 0 else _INPUT) if size > 1 else FREE for axis, size in enumerate(shape)
    ]
    trace.values[program.example] = Value(shape, fixed=tuple(fixed), is_activation=True)
    for number, array in program.constants.items():
        trace.values[number] = constant(trace, array)
    _walk_steps(trace, program.steps)
    for number in program.outputs:
        trace.freeze(trace.values[number].fields, "output of the network")
    return trace


def _parameter(path: Path, shape: tuple[int, ...], seeds: Sequence[Sequence[np.ndarray]]) -> Value:
    fields = tuple(LabelField((axis,), own) for axis, parts in enumerate(seeds) for own in parts)
    origin = tuple(frozenset({axis}) for axis in range(len(shape)))
    return Value(shape, fields, (FREE,) * len(shape), frozenset({path}), origin)


def _walk_steps(trace: Trace, steps: Sequence[Step]) -> None:
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


def _read(trace: Trace, value: int | jex.Literal) -> Value:
    if isinstance(value, int):
        return trace.values[value]
    shape = shape_of(value)
    return Value(shape, fixed=(FREE,) * len(shape)) if not shape else constant(trace, value.val)


def _scan(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    params, (body,) = step.equation.params, step.bodies
    num_consts, num_carry = int(params["num_consts"]), int(params["num_carry"])
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    slices = [_turn_of(trace, step, value) for value in inputs[num_consts + num_carry :]]
    trace.turns *= int(params["length"])
    carry, stacked = _repeat(trace, step, body, consts, carry, slices)
    trace.turns //= max(1, int(params["length"]))
    return [*carry, *(_stack_of(trace, step, value, int(params["length"])) for value in stacked)]


def _while(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    params, (condition, body) = step.equation.params, step.bodies
    first, second = int(params["cond_nconsts"]), int(params["body_nconsts"])
    consts, carry = inputs[first : first + second], inputs[first + second :]
    carry, _ = _repeat(trace, step, body, consts, carry, [])
    _run_body(trace, condition, [*inputs[:first], *carry])
    return carry


def _cond(trace: Trace, step: Step, inputs: Sequence[Value]) -> list[Value]:
    found = [_run_body(trace, body, inputs[1:]) for body in step.bodies]
    return [_same(trace, step, values) for values in zip(*found, strict=True)]


def _repeat(
    trace: Trace,
    step: Step,
    body: Body,
    consts: Sequence[Value],
    carry: Sequence[Value],
    slices: Sequence[Value],
) -> tuple[list[Value], list[Value]]:
    """What a loop carries to its end, and the other results of a turn; walked until nothing new is learned."""
    noted = _noted(trace)
    carried = list(carry)
    found: list[Value] = []
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
        trace.freeze(value.fields, f"what the turns of a loop hand on never settles: {step.where}")
    return carried, found[len(carried) :]


def _noted(trace: Trace) -> list[tuple[list[object], int]]:
    records: list[list[object]] = [trace.consumptions, trace.touches, trace.costs]  # type: ignore[list-item]
    return [(own, len(own)) for own in records]


def _layout(value: Value) -> object:
    return [own.axes for own in value.fields], value.fixed, value.producers


def _same(trace: Trace, step: Step, values: Sequence[Value]) -> Value:
    """One value that may be any of some."""
    fields, fixed = combine(trace, step, values, values[0].shape)
    return mixed(trace, step, values, values[0].shape, fields, fixed)


def _run_body(trace: Trace, body: Body, inputs: Sequence[Value]) -> list[Value]:
    trace.values.update(zip(body.inputs, inputs, strict=True))
    _walk_steps(trace, body.steps)
    return [_read(trace, value) for value in body.outputs]


def _turn_of(trace: Trace, step: Step, value: Value) -> Value:
    """What one turn of a loop sees of an array that it runs along."""
    fields = []
    for own in value.fields:
        if 0 in own.axes:
            trace.freeze([own], f"one for each turn of {step.where}")
        else:
            fields.append(LabelField(tuple(axis - 1 for axis in own.axes), own.labels))
    return dataclasses.replace(
        value, shape=value.shape[1:], fields=tuple(fields), fixed=value.fixed[1:], origin=value.origin[1:]
    )


def _stack_of(trace: Trace, step: Step, value: Value, length: int) -> Value:
    fields = tuple(LabelField(tuple(axis + 1 for axis in own.axes), own.labels) for own in value.fields)
    wall = trace.labels.fixed("the turns of a loop") if length > 1 else FREE
    return dataclasses.replace(
        value,
        shape=(length, *value.shape),
        fields=fields,
        fixed=(wall, *value.fixed),
        origin=(frozenset(), *value.origin) if value.origin else (),
    )
