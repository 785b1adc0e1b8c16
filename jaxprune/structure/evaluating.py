"""Runs the operations of a program on arrays, and reads values on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxprune.nets.inputs import Batch, arrays_of
from jaxprune.structure.model_state import Path
from jaxprune.structure.program import Body, Operation, Program
from jaxprune.types import Array


def evaluate(
    program: Program,
    flat: Mapping[Path, Array],
    inputs: Batch,
    wanted: Sequence[int],
    added: Mapping[int, jax.Array] | None = None,
) -> list[jax.Array]:
    """Runs a program and returns chosen values; operations that none of them depends on are left out.

    Args:
      program: what to run.
      flat: the network's arrays by path.
      inputs: arrays of the shapes that the program was traced with, in the order of its example, or one array.
      wanted: numbers of the values to return. A value inside a `scan` is returned for all iterations, stacked.
      added: value number -> array that is added to the value as soon as it is computed. The result can be
        differentiated with respect to these arrays. The network's own derivatives are used, except for a function
        that computes a wanted value on the way or returns one of its inputs.

    Returns:
      The values, in the order of `wanted`.
    """
    values: dict[int, Any] = {number: flat[path] for path, number in program.parameters.items()}
    values.update(program.constants)
    values.update(zip(program.inputs, arrays_of(inputs), strict=True))
    _run(program, values, frozenset(wanted), {} if added is None else added)
    return [values[number] for number in wanted]


def _run(
    part: Program | Body, values: dict[int, Any], wanted: frozenset[int], added: Mapping[int, jax.Array]
) -> None:
    """Computes the wanted values, and everything that they depend on, into `values`."""
    needed = set(wanted)
    chosen: list[Operation] = []
    for operation in reversed(_with_custom_derivatives(part, wanted) if added else part.operations):
        if needed.intersection(operation.outputs) or any(
            wanted & body.value_numbers for body in operation.bodies
        ):
            chosen.append(operation)
            needed.update(number for number in operation.inputs if isinstance(number, int))
    for operation in reversed(chosen):
        inputs = [values[number] if isinstance(number, int) else number.val for number in operation.inputs]
        inside = [
            number for number in wanted if any(number in body.value_numbers for body in operation.bodies)
        ]
        if inside:
            results = _run_scan(operation, inputs, values, sorted(inside), added)
        else:
            results = _bind(operation, inputs)
        for number, value in zip(operation.outputs, results, strict=True):
            values[number] = value + added[number] if number in added else value


def _bind(operation: Operation, inputs: Sequence[Any]) -> Sequence[Any]:
    """Runs one operation as JAX would."""
    primitive = operation.equation.primitive
    bound = primitive.get_bind_params(operation.equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older JAX versions
    with operation.equation.ctx.manager:
        result = primitive.bind(*functions, *inputs, **params)
    return result if primitive.multiple_results else [result]


def _run_scan(
    operation: Operation,
    inputs: Sequence[Any],
    values: dict[int, Any],
    inside: Sequence[int],
    added: Mapping[int, jax.Array],
) -> Sequence[Any]:
    """Runs a `scan`, and stores the values `inside` it, stacked over the iterations.

    The arrays added to these are stacked in the same way.
    """
    (body,), params = operation.bodies, operation.equation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, rest = inputs[:num_consts], inputs[num_consts:]
    added_inside = {number: array for number, array in added.items() if number in body.value_numbers}
    wanted = frozenset((*inside, *(number for number in body.outputs if isinstance(number, int))))
    outer = dict(values)

    def iterate(carry: Sequence[Any], slices: tuple[Sequence[Any], dict[int, Any]]) -> tuple[Any, Any]:
        inner = {**outer, **dict(zip(body.inputs, (*consts, *carry, *slices[0]), strict=True))}
        inner |= {number: inner[number] + slices[1][number] for number in body.inputs if number in slices[1]}
        _run(body, inner, wanted, slices[1])
        results = [inner[number] if isinstance(number, int) else number.val for number in body.outputs]
        return results[:num_carry], (results[num_carry:], [inner[number] for number in inside])

    carry, (stacked, stacked_inside) = jax.lax.scan(
        iterate,
        list(rest[:num_carry]),
        (list(rest[num_carry:]), added_inside),
        length=params["length"],
        reverse=params["reverse"],
    )
    values.update(zip(inside, stacked_inside, strict=True))
    return (*carry, *stacked)


def _with_custom_derivatives(part: Program | Body, wanted: frozenset[int]) -> tuple[Operation, ...]:
    """The operations, with calls that have a derivative of their own put back where only their results are wanted."""
    operations: list[Operation] = []
    position = 0
    for custom in part.custom_derivatives:
        if custom.span.start < position:  # inside a call that was put back already
            continue
        inside = {number for index in custom.span for number in part.operations[index].outputs}
        results = set(custom.call.outputs)
        if not wanted & (inside - results) and inside >= results:
            operations += [*part.operations[position : custom.span.start], custom.call]
            position = custom.span.stop
    return (*operations, *part.operations[position:])
