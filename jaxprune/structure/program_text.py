"""A network's program as text that is equal wherever the network is the same, to be hashed.

JAX's own text of a program is made for the eye: it has colours on a terminal, addresses of functions, and names of
calls that change from version to version. Here are only the operations that are left when calls are replaced by what
they do, with shapes, types and those parameters that are plain data and not the default.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.extend.core as jex
import numpy as np

from jaxprune.structure.model_state import array_content, dotted
from jaxprune.structure.program import Body, Input, Operation, Program

_SKIPPED = frozenset({"name", "jaxpr", "cond_jaxpr", "body_jaxpr", "branches"})
"""Parameters that are names for the eye, or the bodies of loops and branches, which are written out below them."""


def program_text(program: Program) -> str:
    """Writes a program as lines of text, one for each operation.

    Args:
      program: the program.

    Returns:
      The text. Values are called after the parameters they are, or numbered in the order in which they are made.

    Example:
      >>> from flax import nnx
      >>> from jaxprune.structure.model_state import split_model
      >>> from jaxprune.structure.program import trace_program
      >>> model = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
      >>> image = jax.ShapeDtypeStruct((4, 2), jax.numpy.float32)
      >>> print(program_text(trace_program(*split_model(model), image)))
      dot_general ["images", "kernel"] [[[4, 3], "float32"]] {"dimension_numbers": [[[1], [0]], [[], []]]}
      results [2]
    """
    names: dict[int, object] = {number: dotted(path) for path, number in program.parameters.items()}
    names |= zip(program.inputs, program.example.names, strict=True)
    names |= {number: array_content(array) for number, array in program.constants.items()}
    lines = [*_lines(program.operations, names), f"results {_to_json(_named(program.outputs, names))}"]
    return "\n".join(lines)


def _lines(operations: Sequence[Operation], names: dict[int, object]) -> Iterator[str]:
    """Yields the line of each operation, those of its bodies after it; names the values that they make."""
    for operation in operations:
        inputs = _named(operation.inputs, names)
        for number in operation.outputs:
            names.setdefault(number, len(names))
        outputs = [_kind(variable) for variable in operation.equation.outvars]
        params = {
            name: value
            for name, given in sorted(operation.equation.params.items())
            if name not in _SKIPPED and not _is_default(value := _plain(given))
        }
        yield f"{operation.name} {_to_json(inputs)} {_to_json(outputs)} {_to_json(params)}"
        for body in operation.bodies:
            yield from _body_lines(body, names)


def _body_lines(body: Body, names: dict[int, object]) -> Iterator[str]:
    """Yields the lines of one body between two brackets."""
    for number in body.inputs:
        names.setdefault(number, len(names))
    yield f"( {_to_json(_named(body.inputs, names))}"
    yield from _lines(body.operations, names)
    yield f") {_to_json(_named(body.outputs, names))}"


def _named(values: Sequence[Input], names: dict[int, object]) -> list[object]:
    """The names of values; a scalar written into the program is its value and type."""
    return [
        names.setdefault(value, len(names))
        if isinstance(value, int)
        else [np.asarray(value.val).tolist(), _kind(value)]
        for value in values
    ]


def _kind(variable: jex.Var | jex.Literal) -> list[object]:
    """Shape and type of a variable."""
    shape = [_plain(size) for size in getattr(variable.aval, "shape", ())]
    return [shape, str(getattr(variable.aval, "dtype", ""))]


def _plain(value: object) -> object:
    """A parameter as plain data; None for what is none, such as functions and placements on devices."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return array_content(np.asarray(value)) if np.ndim(value) else _plain(np.asarray(value).item())
    if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr):
        equations = getattr(value, "jaxpr", value).eqns
        return [[each.primitive.name, *map(_kind, each.outvars)] for each in equations]
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return str(np.dtype(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if hasattr(value, "_asdict"):  # named tuples get new fields in later versions
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        pairs = {str(name): _plain(part) for name, part in value.items()}
        return {name: pairs[name] for name in sorted(pairs) if not _is_default(pairs[name])}
    if isinstance(value, set | frozenset):
        return sorted((_plain(part) for part in value), key=_to_json)
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None


def _is_default(value: object) -> bool:
    """Whether a parameter says nothing: one that a later version adds, and an older network does not use."""
    return value is None or value is False or value in ("", [], {})


def _to_json(value: object) -> str:
    return json.dumps(value, default=str)
