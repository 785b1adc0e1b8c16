"""A network as a `Program`: a flat list of operations on numbered values, made from the jaxpr that JAX traces.

Calls of other jaxprs (`jit`, custom derivatives, checkpoints) are replaced by the operations inside them; loops and
branches stay single operations that hold the operations of their bodies. The rules that propagate labels read the
program; `structure/evaluating.py` runs it and returns chosen intermediate values, so that activations can be observed,
and the loss differentiated with respect to them, without touching the network's code.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, cast

import flax
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jaxlib
import optax
from flax import nnx

from jaxprune.nets import foreign_layers, function_network
from jaxprune.nets import inputs as network_inputs
from jaxprune.nets.inputs import Batch, Example, Outputs, example_of
from jaxprune.structure.model_state import (
    Path,
    RestState,
    RunMode,
    merge_to_run,
    random_state,
    set_mode,
)
from jaxprune.types import Array

_LIBRARIES = (
    *(os.path.dirname(module.__file__ or "") for module in (jax, jaxlib, flax, optax)),
    *(module.__file__ or "" for module in (network_inputs, function_network, foreign_layers)),
    os.path.dirname(__file__),
    *(os.path.dirname(spec.origin) for spec in (find_spec("equinox"),) if spec is not None and spec.origin),
)
"""Folders and files whose lines are not the user's."""

_BODY_PARAMETERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
)
"""Primitives that are loops or branches, and the parameters that hold what they run."""

Input = int | jex.Literal
"""What an operation reads: the number of a value, or a scalar written into the jaxpr."""


@dataclass(frozen=True)
class Operation:
    """One equation of the flattened jaxpr, with the numbers of the values that it reads and makes."""

    equation: jex.JaxprEqn
    inputs: tuple[Input, ...]
    outputs: tuple[int, ...]
    callers: tuple[jex.JaxprEqn, ...] = ()
    """The nested calls that it was inside of, innermost first."""
    bodies: tuple[Body, ...] = ()
    """What it runs if it is a loop or a branch."""

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.equation.primitive.name

    @cached_property
    def location(self) -> str:
        """The primitive's name with the line of the user's code that it comes from, for messages."""
        # A function that a library compiles by itself has no line of the user's; its caller has.
        for equation in (self.equation, *self.callers):
            source: Any = equation.source_info.traceback
            for frame in [] if source is None else source.frames:
                if not frame.file_name.startswith(_LIBRARIES):
                    return f"{self.name} at {frame.file_name}:{frame.line_num} ({frame.function_name})"
        return self.name


def line_of(error: BaseException) -> str:
    """Returns the innermost line of the user's code that an error passed, as " at file:line (function)", or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, "<"))]
    return f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].name})" if own else ""


@dataclass(frozen=True)
class Body:
    """The operations of one iteration of a loop, or of one branch; everything that they read is among its inputs."""

    inputs: tuple[int, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Input, ...]
    custom_derivatives: tuple[CustomDerivative, ...] = ()

    @cached_property
    def value_numbers(self) -> frozenset[int]:
        """Numbers of all values inside, those of nested loops included."""
        outputs = {number for operation in self.operations for number in operation.outputs}
        nested = (body.value_numbers for operation in self.operations for body in operation.bodies)
        return frozenset(outputs.union(self.inputs, *nested))


@dataclass(frozen=True)
class CustomDerivative:
    """A call with a derivative of its own (`jax.custom_jvp`, `jax.custom_vjp`), which was replaced by operations."""

    call: Operation
    """The call as one operation."""
    span: range
    """Indices of the operations that replaced it."""


@dataclass(frozen=True)
class Program:
    """A network, in evaluation mode unless said otherwise, as operations on numbered values."""

    operations: tuple[Operation, ...]
    parameters: Mapping[Path, int]
    """Path of an array -> number of its value."""
    example: Example
    """What it was traced with."""
    inputs: tuple[int, ...]
    """Numbers of the arrays that the network takes."""
    constants: Mapping[int, Array]
    """Value number -> array, for arrays built into the network's code and for random keys."""
    outputs: tuple[int, ...]
    """Numbers of the values that the network returns."""
    results: tuple[Input, ...]
    """Every leaf of what the network returns, scalars written into the program among them."""
    output_tree: jax.tree_util.PyTreeDef
    """What the network returns: an array, a tuple, or any pytree."""
    shapes: Mapping[int, tuple[int, ...]]
    """Value number -> shape, for every value."""
    custom_derivatives: tuple[CustomDerivative, ...] = ()
    """Calls with a derivative of their own, outer ones before those inside them."""
    mode: RunMode = "evaluation"

    @cached_property
    def makers(self) -> Mapping[int, Operation]:
        """Value number -> the operation, outside of loops, that makes it; inputs and constants have none."""
        return {number: operation for operation in self.operations for number in operation.outputs}

    def as_returned(self, values: Sequence[Any]) -> Outputs:
        """Returns the values of `outputs` in the form in which the network returns them."""
        by_number = dict(zip(self.outputs, values, strict=True))
        leaves = [
            by_number[each] if isinstance(each, int) else jnp.asarray(each.val) for each in self.results
        ]
        return jax.tree.unflatten(self.output_tree, leaves)


def trace_program(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array | jax.ShapeDtypeStruct],
    rest: RestState,
    example: Batch | Example,
    mode: RunMode = "evaluation",
    resize: Callable[[nnx.Module], None] | None = None,
) -> Program:
    """Runs a network on shapes alone and returns its operations.

    Args:
      graphdef: the network's graph, from `split_model`.
      flat: its arrays, from `split_model`; only their shapes and dtypes are read.
      rest: its random state, from `split_model`.
      example: what the network takes; a tuple is one argument unless an `Example` says otherwise.
      mode: what batch norm and dropout are switched to, whatever they are in `graphdef`.
      resize: changes, in place, the sizes that the layers of a copy store, before it runs.

    Returns:
      The program.

    Raises:
      ValueError: if the network cannot be run on such inputs; the message carries the network's own error.
    """
    example = example_of(example)
    random = random_state(rest)
    paths, random_paths = list(flat), list(random)

    def forward(arrays: list[Array], random_arrays: list[Array], inputs: list[jax.Array]) -> Outputs:
        by_path = dict(zip(paths, arrays, strict=True))
        network = merge_to_run(
            graphdef, by_path, {**rest, **dict(zip(random_paths, random_arrays, strict=True))}
        )
        if resize is not None:
            resize(network)
        return example.call_network(cast(Callable[..., Any], set_mode(network, mode)), inputs)

    shapes = [jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype) for path in paths]
    random_shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in random.values()]
    try:
        closed, returned = jax.make_jaxpr(forward, return_shape=True)(
            shapes, random_shapes, list(example.arrays)
        )
    except Exception as error:
        raise ValueError(
            f"needs a network that runs on {example.words}, but it failed with {type(error).__name__}: {error}. "
            "Pass an example like the ones the network was built for; its first axis counts examples, and the network "
            "has to take any number of them."
        ) from error
    flattening = _Flattening()
    inputs = [flattening.number(variable) for variable in closed.jaxpr.invars]
    flattening.add_constants(closed.jaxpr, closed.consts)
    flattening.constants.update(zip(inputs[len(paths) :], random.values(), strict=False))
    flattening.add_operations(closed.jaxpr)
    results = tuple(flattening.read(variable) for variable in closed.jaxpr.outvars)
    return Program(
        operations=tuple(flattening.operations),
        parameters=dict(zip(paths, inputs, strict=False)),
        example=example,
        inputs=tuple(inputs[len(inputs) - len(example.arrays) :]),
        constants=flattening.constants,
        outputs=tuple(number for number in results if isinstance(number, int)),
        results=results,
        output_tree=jax.tree.structure(returned),
        shapes=flattening.shapes,
        custom_derivatives=_outer_first(flattening.custom_derivatives),
        mode=mode,
    )


def shape_of(variable: jex.Var | jex.Literal) -> tuple[int, ...]:
    """Returns the shape of a variable of a jaxpr; `()` for one that is no array."""
    return tuple(getattr(variable.aval, "shape", ()))


class _Flattening:
    """Builds the operations of one program from nested jaxprs, and numbers their variables."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.constants: dict[int, Array] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.custom_derivatives: list[CustomDerivative] = []
        self._numbers: dict[jex.Var, Any] = {}
        """Number of each variable of the current jaxpr, or the literal that was passed for it."""

    def read(self, variable: jex.Var | jex.Literal) -> Input:
        """Returns what stands for a variable, a new number if nothing does yet."""
        if isinstance(variable, jex.Literal):
            return variable
        if variable not in self._numbers:
            self._numbers[variable] = len(self.shapes)
            self.shapes[len(self.shapes)] = shape_of(variable)
        return self._numbers[variable]

    def number(self, variable: jex.Var) -> int:
        """Returns the number of a variable that is made here, which no literal stands for."""
        return cast(int, self.read(variable))

    def add_constants(self, jaxpr: jex.Jaxpr, arrays: Sequence[Array]) -> None:
        """Notes the arrays that are built into a jaxpr."""
        for variable, array in zip(jaxpr.constvars, arrays, strict=True):
            self.constants[self.number(variable)] = array

    def add_operations(self, jaxpr: jex.Jaxpr, callers: tuple[jex.JaxprEqn, ...] = ()) -> None:
        """Appends the operations of a jaxpr, whose inputs are numbered already."""
        for equation in jaxpr.eqns:
            inputs = tuple(self.read(variable) for variable in equation.invars)
            called = _called_jaxpr(equation)
            if called is not None:
                self._add_call(called, inputs, equation, callers)
                continue
            bodies = tuple(
                self._body(body, (equation, *callers))
                for name in _BODY_PARAMETERS.get(equation.primitive.name, ())
                for body in _as_tuple(equation.params[name])
            )
            outputs = tuple(self.number(variable) for variable in equation.outvars)
            self.operations.append(Operation(equation, inputs, outputs, callers, bodies))

    def _body(self, closed: jex.ClosedJaxpr, callers: tuple[jex.JaxprEqn, ...]) -> Body:
        saved = self._numbers, self.operations, self.custom_derivatives
        self._numbers, self.operations, self.custom_derivatives = {}, [], []
        inputs = tuple(self.number(variable) for variable in closed.jaxpr.invars)
        self.add_constants(closed.jaxpr, closed.consts)
        self.add_operations(closed.jaxpr, callers)
        outputs = tuple(self.read(variable) for variable in closed.jaxpr.outvars)
        body = Body(inputs, tuple(self.operations), outputs, _outer_first(self.custom_derivatives))
        self._numbers, self.operations, self.custom_derivatives = saved
        return body

    def _add_call(
        self,
        called: jex.ClosedJaxpr,
        inputs: tuple[Input, ...],
        equation: jex.JaxprEqn,
        callers: tuple[jex.JaxprEqn, ...],
    ) -> None:
        jaxpr = called.jaxpr
        saved, start = self._numbers, len(self.operations)
        # The same jaxpr may be called twice; its variables get new numbers each time.
        self._numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        self.add_constants(jaxpr, called.consts)
        self.add_operations(jaxpr, (equation, *callers))
        results = [self.read(variable) for variable in jaxpr.outvars]
        self._numbers = saved
        self._numbers.update(zip(equation.outvars, results, strict=True))
        numbers = tuple(number for number in results if isinstance(number, int))
        if equation.primitive.name.startswith("custom_") and len(numbers) == len(results):
            call = Operation(equation, inputs, numbers, callers)
            self.custom_derivatives.append(CustomDerivative(call, range(start, len(self.operations))))


def _outer_first(custom_derivatives: Sequence[CustomDerivative]) -> tuple[CustomDerivative, ...]:
    return tuple(sorted(custom_derivatives, key=lambda custom: (custom.span.start, -custom.span.stop)))


def _called_jaxpr(equation: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """The jaxpr that an equation runs once on exactly its own inputs and outputs, whatever the primitive's name."""
    jaxprs = [value for value in equation.params.values() if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)]
    if len(jaxprs) != 1 or equation.primitive.name in _BODY_PARAMETERS:
        return None
    (called,) = jaxprs
    jaxpr = called.jaxpr if isinstance(called, jex.ClosedJaxpr) else called
    pairs = ((equation.invars, jaxpr.invars), (equation.outvars, jaxpr.outvars))
    if any([_kind(x) for x in outside] != [_kind(x) for x in inside] for outside, inside in pairs):
        return None
    return called if isinstance(called, jex.ClosedJaxpr) else jex.ClosedJaxpr(called, ())


def _kind(variable: jex.Var | jex.Literal) -> tuple[object, ...]:
    """What variables that stand for each other agree on."""
    # The references that a Pallas kernel reads have the shape of arrays but are none.
    return (shape_of(variable), getattr(variable.aval, "dtype", None), hasattr(variable.aval, "inner_aval"))


def _as_tuple(jaxprs: jex.ClosedJaxpr | Sequence[jex.ClosedJaxpr]) -> Sequence[jex.ClosedJaxpr]:
    return (jaxprs,) if isinstance(jaxprs, jex.ClosedJaxpr) else jaxprs
