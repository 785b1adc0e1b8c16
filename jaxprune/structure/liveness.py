"""Finds the values of a program that its outputs depend on; what computes the others is dead code.

JAX records dead code too: what a network sows, an auxiliary head that is not used in evaluation mode, a branch of a
library function for a case that does not arise. It still runs on the slim network, so its shapes must fit, but what it
computes does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax.extend.core as jex

from jaxprune.structure.program import Body, Input, Operation, Program

WATCHES = frozenset("check dce_sink debug_callback debug_print inspect_sharding".split())
"""Operations with an effect that is not part of what the network computes."""


def live_values(program: Program) -> frozenset[int]:
    """Returns the numbers of all values, those in loops and branches included, that an output depends on.

    Arrays without entries do not count, nor does what is only printed. What is written into a mutable array counts.

    Args:
      program: the network.

    Returns:
      The numbers.
    """
    empty = frozenset(number for number, shape in program.shapes.items() if 0 in shape)
    live = set(program.outputs)
    _add_needed(program.operations, live, empty)
    return frozenset(live)


def is_dead(operation: Operation, live: frozenset[int]) -> bool:
    """Tells whether nothing that an operation computes matters.

    Args:
      operation: an operation of a program.
      live: `live_values` of the program.
    """
    return live.isdisjoint(operation.outputs) and not _has_effect(operation)


def _has_effect(operation: Operation) -> bool:
    return bool(operation.equation.effects) and operation.name not in WATCHES


def _add_needed(operations: Sequence[Operation], live: set[int], empty: frozenset[int]) -> None:
    """Adds to the live values everything that they depend on."""
    for operation in reversed(operations):
        if _has_effect(operation):
            live.update(operation.outputs)
        elif live.isdisjoint(operation.outputs):
            continue
        inputs = _inputs_of_bodies(operation, live, empty) if operation.bodies else operation.inputs
        live.update(_numbers(inputs) - empty)


def _inputs_of_bodies(operation: Operation, live: set[int], empty: frozenset[int]) -> Iterable[Input]:
    """Adds the live values inside a loop or a branch; returns the inputs of the operation that they depend on."""
    if operation.name == "while":  # how often it runs depends on what it hands on
        for body in operation.bodies:
            live.update(_numbers(body.outputs))
            _add_needed(body.operations, live, empty)
        return operation.inputs
    first = len(operation.inputs) - len(operation.bodies[0].inputs)  # a branch is chosen by the first input
    for body in operation.bodies:
        is_live = [number in live for number in operation.outputs]
        num_live = -1
        while num_live < sum(is_live):
            num_live = sum(is_live)
            live.update(_numbers(value for value, used in zip(body.outputs, is_live, strict=True) if used))
            _add_needed(body.operations, live, empty)
            if operation.name == "scan":
                is_live = _with_carried(operation, body, is_live, live)
    needed = [
        value
        for index, value in enumerate(operation.inputs[first:])
        if any(body.inputs[index] in live for body in operation.bodies)
    ]
    return [*operation.inputs[:first], *needed]


def _with_carried(operation: Operation, body: Body, is_live: Sequence[bool], live: set[int]) -> list[bool]:
    """Which outputs of a loop matter, with those that it hands on to another turn that reads them."""
    params = operation.equation.params
    num_consts, num_carry = int(params["num_consts"]), int(params["num_carry"])
    carried = body.inputs[num_consts : num_consts + num_carry]
    return [used or carried[i] in live if i < num_carry else used for i, used in enumerate(is_live)]


def _numbers(values: Iterable[Input]) -> set[int]:
    return {value for value in values if not isinstance(value, jex.Literal)}
