"""A traced network as a flat list of operations on numbered values, nested calls opened.

The tracer reads it, and `evaluate` runs it while keeping chosen intermediate values: that is how activations are
observed without touching the network's code. Zeros added to such values are what the loss is differentiated by.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import flax
import jax
import jax.extend.core as jex
import jaxlib
import optax
from flax import nnx

from jaxprune.structure.model_state import FlatState, Path, RunMode, merge_model, set_mode
from jaxprune.types import Array

_LIBRARIES = (
    *(os.path.dirname(module.__file__ or "") for module in (jax, jaxlib, flax, optax)),
    os.path.dirname(__file__),
)


LOOPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
)
"""What runs other programs in ways of its own, and the parameters that hold these."""


@dataclass(frozen=True)
class Operation:
    """One operation: what it is, which values it reads (a number, or a literal) and which it makes."""

    equation: jex.JaxprEqn
    inputs: tuple[int | jex.Literal, ...]
    outputs: tuple[int, ...]
    callers: tuple[jex.JaxprEqn, ...] = ()
    """The nested calls it sits in, innermost first."""
    bodies: tuple[Body, ...] = ()
    """What a loop or a branch runs, with numbers of its own."""

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.equation.primitive.name

    @cached_property
    def location(self) -> str:
        """The primitive with the user's source line, for messages."""
        # a library function's own jit knows no user line, the call of it does
        for frame in (frame for equation in (self.equation, *self.callers) for frame in _frames(equation)):
            if not frame.file_name.startswith(_LIBRARIES):
                return f"{self.name} at {frame.file_name}:{frame.line_num} ({frame.function_name})"
        return self.name


@dataclass(frozen=True)
class Body:
    """The steps of a loop's turn or of a branch; nothing but its inputs comes from outside."""

    inputs: tuple[int, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[int | jex.Literal, ...]
    rules: tuple[Rule, ...] = ()

    @cached_property
    def value_numbers(self) -> frozenset[int]:
        """Of all values within, those of nested loops too."""
        own = {number for step in self.operations for number in step.outputs}
        return frozenset(
            own.union(self.inputs, *(body.value_numbers for step in self.operations for body in step.bodies))
        )


@dataclass(frozen=True)
class Rule:
    """A nested call with its own derivative (`jax.custom_jvp`, `jax.custom_vjp`), and the steps it was opened into."""

    call: Operation
    opened: range


@dataclass(frozen=True)
class Program:
    """A network in one mode, evaluation where nothing else is said: steps over numbered values.

    `parameters` numbers the arrays by path, `example` is the number of the images, `outputs` those of what the
    network returns, `constants` are arrays baked into the trace, `shapes` gives every value's shape, `rules` the calls
    whose derivative is not that of their steps, outer before inner.
    """

    operations: tuple[Operation, ...]
    parameters: Mapping[Path, int]
    example: int
    constants: Mapping[int, jax.Array]
    outputs: tuple[int, ...]
    shapes: Mapping[int, tuple[int, ...]]
    rules: tuple[Rule, ...] = ()
    mode: RunMode = "evaluation"


def trace_program(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array | jax.ShapeDtypeStruct],
    rest: FlatState,
    example: jax.ShapeDtypeStruct,
    mode: RunMode = "evaluation",
) -> Program:
    """Runs the network on shapes alone and records its operations.

    Args:
      graphdef, flat, rest: what `split_model(model)` returns; only shapes of `flat` are read.
      example: shape and dtype of the images, batch first.
      mode: what batch norm and dropout are switched to, whatever they are in `graphdef`.

    Raises:
      ValueError: if the network cannot be run on such an input; the message carries the network's own error.
    """
    paths, random = list(flat), list(rest)

    def forward(arrays: list[Array], others: list[Array], images: jax.Array) -> Array:
        own = dict(zip(paths, arrays, strict=True))
        network = merge_model(graphdef, own, dict(zip(random, others, strict=True)))
        return cast(Array, set_mode(network, mode)(images))

    shapes = [jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype) for path in paths]
    keys = [jax.ShapeDtypeStruct(rest[path].shape, rest[path].dtype) for path in random]
    try:
        closed = jax.make_jaxpr(forward)(shapes, keys, example)
    except Exception as error:
        raise ValueError(
            f"needs a network that runs on images of shape {example.shape} and dtype {example.dtype}, but it failed "
            f"with {type(error).__name__}: {error}. Pass an example like the ones the network was built for."
        ) from error
    flattening = _Flattening()
    inputs = [flattening.number(variable) for variable in closed.jaxpr.invars]
    constants = {
        flattening.number(variable): value
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    constants.update(zip(inputs[len(paths) :], rest.values(), strict=False))
    flattening.constants.update(constants)
    flattening.open(closed.jaxpr)
    outputs = tuple(
        flattening.number(variable)
        for variable in closed.jaxpr.outvars
        if not isinstance(variable, jex.Literal)
    )
    return Program(
        operations=tuple(flattening.steps),
        parameters=dict(zip(paths, inputs, strict=False)),
        example=inputs[-1],
        constants=flattening.constants,
        outputs=outputs,
        shapes=flattening.shapes,
        rules=_outer_first(flattening.rules),
        mode=mode,
    )


def evaluate(
    program: Program,
    flat: Mapping[Path, Array],
    images: jax.Array,
    wanted: Sequence[int],
    added: Mapping[int, jax.Array] | None = None,
) -> list[jax.Array]:
    """Runs the program and returns the values numbered `wanted`; steps that nothing needs are left out.

    Args:
      program: what to run.
      flat: the network's arrays.
      images: of the shape that the program was traced with.
      wanted: numbers of values.
      added: by number, what to add to a value as soon as it is known. The result can then be differentiated with
        respect to it: the network's own derivative rules hold, but for those of a function that makes a wanted value
        within, or that hands on what it was given.
    """
    values: dict[int, Any] = {number: flat[path] for path, number in program.parameters.items()}
    values.update(program.constants)
    values[program.example] = images
    _run(program, values, frozenset(wanted), {} if added is None else added)
    return [values[number] for number in wanted]


def _run(
    part: Program | Body, values: dict[int, Any], wanted: frozenset[int], added: Mapping[int, jax.Array]
) -> None:
    """Adds to `values` what is wanted, and everything it follows from."""
    needed = set(wanted)
    chosen: list[Operation] = []
    for step in reversed(part.operations if not added else _with_rules(part, wanted)):
        if needed.intersection(step.outputs) or any(wanted & body.value_numbers for body in step.bodies):
            chosen.append(step)
            needed.update(value for value in step.inputs if isinstance(value, int))
    for step in reversed(chosen):
        inputs = [values[value] if isinstance(value, int) else value.val for value in step.inputs]
        within = [number for number in wanted if any(number in body.value_numbers for body in step.bodies)]
        if within:
            results = _run_loop(step, inputs, values, sorted(within), added)
        else:
            results = _bind(step, inputs)
        for number, value in zip(step.outputs, results, strict=True):
            values[number] = value + added[number] if number in added else value


def _bind(step: Operation, inputs: Sequence[Any]) -> Sequence[Any]:
    primitive = step.equation.primitive
    bound = primitive.get_bind_params(step.equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older JAX versions
    with step.equation.ctx.manager:
        result = primitive.bind(*functions, *inputs, **params)
    return result if primitive.multiple_results else [result]


def _run_loop(
    step: Operation,
    inputs: Sequence[Any],
    values: dict[int, Any],
    within: Sequence[int],
    added: Mapping[int, jax.Array],
) -> Sequence[Any]:
    """Runs a `scan` that also hands out values from inside, stacked over its turns, and what is added to them."""
    (body,), params = step.bodies, step.equation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, rest = tuple(inputs[:num_consts]), inputs[num_consts:]
    carry, slices = tuple(rest[:num_carry]), tuple(rest[num_carry:])
    own = {number: value for number, value in added.items() if number in body.value_numbers}
    outputs = [number for number in body.outputs if isinstance(number, int)]
    outer = dict(values)

    def turn(carry: tuple[Any, ...], given: tuple[tuple[Any, ...], dict[int, Any]]) -> tuple[Any, Any]:
        inner = {**outer, **dict(zip(body.inputs, (*consts, *carry, *given[0]), strict=True))}
        _run(body, inner, frozenset((*within, *outputs)), given[1])
        found = [inner[value] if isinstance(value, int) else value.val for value in body.outputs]
        return tuple(found[:num_carry]), (tuple(found[num_carry:]), [inner[number] for number in within])

    carry, (stacked, handed_out) = jax.lax.scan(
        turn, carry, (slices, own), length=params["length"], reverse=params["reverse"]
    )
    values.update(zip(within, handed_out, strict=True))
    return (*carry, *stacked)


def _with_rules(program: Program | Body, wanted: frozenset[int]) -> tuple[Operation, ...]:
    """The steps, with calls that have a derivative of their own in one piece where only their results are wanted."""
    steps: list[Operation] = []
    position = 0
    for rule in program.rules:
        if rule.opened.start < position:  # within a call that is kept already
            continue
        inside = {number for index in rule.opened for number in program.operations[index].outputs}
        if wanted & (inside - set(rule.call.outputs)) or not inside.issuperset(rule.call.outputs):
            continue
        steps += [*program.operations[position : rule.opened.start], rule.call]
        position = rule.opened.stop
    return (*steps, *program.operations[position:])


def shape_of(variable: jex.Var | jex.Literal) -> tuple[int, ...]:
    """The shape of a variable of a trace."""
    return tuple(getattr(variable.aval, "shape", ()))


class _Flattening:
    """Numbers variables and opens nested calls; one instance per trace."""

    def __init__(self) -> None:
        self.steps: list[Operation] = []
        self.constants: dict[int, jax.Array] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.rules: list[Rule] = []
        self._numbers: dict[jex.Var, Any] = {}  # a number, or the literal an inner call was given

    def number(self, variable: jex.Var) -> int:
        if variable not in self._numbers:
            self._numbers[variable] = self._fresh(variable)
        return self._numbers[variable]

    def open(self, jaxpr: jex.Jaxpr, callers: tuple[jex.JaxprEqn, ...] = ()) -> None:
        """Appends the steps of `jaxpr`, whose inputs have numbers already."""
        for equation in jaxpr.eqns:
            inputs = tuple(
                value if isinstance(value, jex.Literal) else self._read(value) for value in equation.invars
            )
            inner = _called(equation)
            if inner is None:
                bodies = tuple(self._body(part, (equation, *callers)) for part in _bodies(equation))
                outputs = tuple(self.number(variable) for variable in equation.outvars)
                self.steps.append(Operation(equation, inputs, outputs, callers, bodies))
            else:
                self._call(inner, inputs, equation, callers)

    def _body(self, inner: jex.ClosedJaxpr, callers: tuple[jex.JaxprEqn, ...]) -> Body:
        saved = self._numbers, self.steps, self.rules
        self._numbers, self.steps, self.rules = {}, [], []
        inputs = tuple(self.number(variable) for variable in inner.jaxpr.invars)
        for variable, value in zip(inner.jaxpr.constvars, inner.consts, strict=True):
            self.constants[self.number(variable)] = value
        self.open(inner.jaxpr, callers)
        outputs = tuple(
            variable if isinstance(variable, jex.Literal) else self._read(variable)
            for variable in inner.jaxpr.outvars
        )
        body = Body(inputs, tuple(self.steps), outputs, _outer_first(self.rules))
        self._numbers, self.steps, self.rules = saved
        return body

    def _call(
        self,
        inner: jex.ClosedJaxpr | jex.Jaxpr,
        inputs: tuple[int | jex.Literal, ...],
        equation: jex.JaxprEqn,
        callers: tuple[jex.JaxprEqn, ...],
    ) -> None:
        jaxpr = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
        consts = inner.consts if isinstance(inner, jex.ClosedJaxpr) else ()
        saved, start = self._numbers, len(self.steps)
        # the same inner jaxpr may be called twice: its variables get fresh numbers each time
        self._numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            self.constants[self.number(variable)] = value
        self.open(jaxpr, (equation, *callers))
        results = [
            variable if isinstance(variable, jex.Literal) else self._read(variable)
            for variable in jaxpr.outvars
        ]
        self._numbers = saved
        self._numbers.update(zip(equation.outvars, results, strict=True))
        numbers = tuple(number for number in results if isinstance(number, int))
        if equation.primitive.name.startswith("custom_") and len(numbers) == len(results):
            call = Operation(equation, inputs, numbers, callers)
            self.rules.append(Rule(call, range(start, len(self.steps))))

    def _read(self, variable: jex.Var) -> int | jex.Literal:
        return self._numbers[variable] if variable in self._numbers else self.number(variable)

    def _fresh(self, variable: jex.Var) -> int:
        number = len(self.shapes)
        self.shapes[number] = shape_of(variable)
        return number


def _outer_first(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple(sorted(rules, key=lambda rule: (rule.opened.start, -rule.opened.stop)))


def _called(equation: jex.JaxprEqn) -> jex.ClosedJaxpr | jex.Jaxpr | None:
    """The one program that an equation calls once with exactly its own inputs and outputs, whatever it is called."""
    inner = [value for value in equation.params.values() if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)]
    if len(inner) != 1 or equation.primitive.name in LOOPS:
        return None
    jaxpr = inner[0].jaxpr if isinstance(inner[0], jex.ClosedJaxpr) else inner[0]
    pairs = ((equation.invars, jaxpr.invars), (equation.outvars, jaxpr.outvars))
    if any([_kind(x) for x in outside] != [_kind(x) for x in inside] for outside, inside in pairs):
        return None
    return inner[0]


def _kind(variable: jex.Var | jex.Literal) -> tuple[object, ...]:
    # a kernel's references have the shape of arrays without being any
    return (shape_of(variable), getattr(variable.aval, "dtype", None), hasattr(variable.aval, "inner_aval"))


def _bodies(equation: jex.JaxprEqn) -> tuple[jex.ClosedJaxpr, ...]:
    names = LOOPS.get(equation.primitive.name, ())
    found: list[jex.ClosedJaxpr] = []
    for name in names:
        value = equation.params[name]
        found += value if isinstance(value, tuple | list) else [value]
    return tuple(found)


def _frames(equation: jex.JaxprEqn) -> list[Any]:
    traceback: Any = equation.source_info.traceback
    return [] if traceback is None else list(traceback.frames)
