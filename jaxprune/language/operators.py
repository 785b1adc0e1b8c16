"""Operators: for each one a definition that holds everything any part of the package needs to know about it.

An operator states its signatures over axis variables, its implementation on arrays, its LaTeX and SymPy forms, its
source text in generated code, and its complexity. `basic_operators` and `matrix_operators` register the built-in
ones; users add their own with `register_operator`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from jaxprune.language.axes import Type, is_axis, is_position_axis, is_sample_axis, sliced_axis, type_name
from jaxprune.types import Array, Namespace

Backend = Literal["numpy", "jax", "torch"]
AxisMasks = tuple[Array | None, ...]
"""For each axis of a value: [M or 1, K or 1, C or 1, size] booleans, True for real entries; None if all are real."""
Masks = Sequence[AxisMasks] | None
"""The axis masks of each argument of an operator; None if all entries of all arguments are real."""
NUM_BATCH_AXES = 3
"""Values have axes for members of a population, classes and channels before those of their type."""
Params = tuple[float, ...]
Shape = tuple[int, ...]

SUM_LEVEL, PRODUCT_LEVEL, ATOM_LEVEL = 1, 2, 3
"""How tightly a piece of text binds; a piece that binds more loosely than its surroundings gets parentheses."""

ELEMENTWISE = ("* -> *",)
BROADCAST = ("*, * -> *", "(), * -> *", "*, () -> *", "(d), (n,d) -> (n,d)", "(n,d), (d) -> (n,d)")
"""The signatures of `+ - * /`: equal types, a scalar with anything, positions with examples row by row."""

MODULES: Mapping[str, str] = {"numpy": "np", "jax": "jnp", "torch": "torch"}
"""Backend -> the name of its array module in generated code."""


class IllTypedError(ValueError):
    """An operator was applied to values that none of its signatures accepts."""


class Implementation(Protocol):
    """Computes an operator for all members, classes and channels at once, with NumPy or with JAX.

    Values have the shape [M or 1, K or 1, C or 1, *axes of their type], where an axis has size 1 if the value does not
    depend on the member, class or channel.
    """

    def __call__(self, xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
        """Computes the result with `xp`, which is `numpy` or `jax.numpy`; `masks[i]` belongs to `values[i]`."""


class Fragment(NamedTuple):
    """A piece of LaTeX, how tightly it binds, and the type of the value that it stands for."""

    text: str
    level: int = ATOM_LEVEL
    type: Type = ()

    def within(self, level: int) -> str:
        """Returns the text, in parentheses if it binds more loosely than `level`."""
        return self.text if self.level >= level else rf"\left({self.text}\right)"


@dataclass(frozen=True)
class Signature:
    """The types that an operator accepts and returns, as patterns.

    A pattern is `*` (any type; the same one wherever it appears in the signature) or a tuple of axes: upper-case
    names stand for themselves, `n` and `m` for a sample axis, `d` for a position axis (`D` or a slice of it), other
    lower-case letters for any axis; a letter is the same axis throughout. `D[i:j]` takes i and j from the parameters.
    """

    arguments: tuple[tuple[str, ...], ...]
    result: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Reads a signature such as `"(a,b), (b,c) -> (a,c)"`.

        Raises:
          ValueError: if the text is not patterns, an arrow and one pattern, or a pattern has an unknown axis.

        Example:
          >>> Signature.parse("(a,b), (b,c) -> (a,c)").infer((("F", "C"), ("C", "O")), ())
          ('F', 'O')
        """
        sides = [re.findall(r"\*|\([^()]*\)", side) for side in text.split("->")]
        if len(sides) != 2 or not sides[0] or len(sides[1]) != 1:
            raise ValueError(f"A signature must read like '(a,b), (b,c) -> (a,c)' or '* -> *', got {text!r}.")
        arguments, results = ([_parse_pattern(pattern) for pattern in side] for side in sides)
        return cls(tuple(arguments), results[0])

    def infer(self, child_types: Sequence[Type], params: Params) -> Type | None:
        """Returns the type of the result.

        Args:
          child_types: the arguments' types.
          params: the operator's literal parameters, which only the bounds of a slice depend on.

        Returns:
          The type, or None if the signature does not accept these arguments.
        """
        if len(child_types) != len(self.arguments):
            return None
        bindings: dict[str, Type] = {}
        for pattern, type in zip(self.arguments, child_types, strict=True):
            if pattern == ("*",):
                if bindings.setdefault("*", type) != type:
                    return None
            elif len(pattern) != len(type) or not all(
                _binds(bindings, variable, axis) for variable, axis in zip(pattern, type, strict=True)
            ):
                return None
        result: list[str] = []
        for variable in self.result:
            if variable == "D[i:j]":
                result.append(sliced_axis(*map(int, params)))
            else:
                result.extend(bindings.get(variable, (variable,)))
        return tuple(result)

    def __str__(self) -> str:
        *arguments, result = [
            "*" if pattern == ("*",) else f"({','.join(pattern)})"
            for pattern in (*self.arguments, self.result)
        ]
        return f"{', '.join(arguments)} -> {result}"


@dataclass(frozen=True)
class Operator:
    """Everything the package knows about one operator.

    Attributes:
      name: its key in `OPERATORS`; `+ - * /` are written between their arguments, all others as `name(...)`.
      signatures: the argument and result types that it accepts, tried in order.
      implement: computes it for many channels and classes at once (see `Implementation`).
      latex: makes its LaTeX from that of the arguments and the parameters.
      sympy: makes a SymPy expression from SymPy arguments and parameters; None gives an undefined function.
      code: backend -> source template with `{0}`, `{1}` for arguments and `{p0}` for parameters.
      helper: backend -> source of a function that the template calls, or "".
      level: how tightly its infix text binds; `ATOM_LEVEL` for calls.
      complexity: what a node adds to `Expression.complexity`.
      flops: computes, from the arguments' shapes, the arithmetic operations for one channel and one class.
      parameter_choices: parameters that random generation draws from; their length is the number that it takes.
      check_params: says what is wrong with parameters, or returns "".
      is_commutative: whether its two arguments may be swapped.
    """

    name: str
    signatures: tuple[Signature, ...]
    implement: Implementation
    latex: Callable[[Sequence[Fragment], Params], Fragment | str]
    sympy: Callable[..., object] | None
    code: Mapping[str, str]
    helper: Mapping[str, str]
    level: int
    complexity: int
    flops: Callable[[Sequence[Shape]], float]
    parameter_choices: tuple[Params, ...]
    check_params: Callable[[Params], str]
    is_commutative: bool

    @property
    def is_infix(self) -> bool:
        """Whether it is written between two arguments."""
        return self.level != ATOM_LEVEL

    @property
    def num_params(self) -> int:
        """How many literal numbers follow its arguments."""
        return len(self.parameter_choices[0])


OPERATORS: dict[str, Operator] = {}
"""Name -> operator; grows by `register_operator`."""


def infer_type(operator: str, child_types: Sequence[Type], params: Params = ()) -> Type:
    """Returns the type of `operator` applied to values of these types.

    Args:
      operator: a name in `OPERATORS`.
      child_types: the arguments' types.
      params: the literal parameters.

    Returns:
      The result of the first signature that accepts the arguments.

    Raises:
      IllTypedError: if no signature accepts them, the parameters are wrong, or the operator is unknown.

    Example:
      >>> infer_type("mean_samples", [("N", "D")])
      ('D',)
    """
    if operator not in OPERATORS:
        raise IllTypedError(f"An operator must be one of {' '.join(OPERATORS)}, got {operator!r}.")
    definition = OPERATORS[operator]
    if len(params) != definition.num_params:
        raise IllTypedError(
            f"{operator} needs {definition.num_params} literal parameters, got {len(params)}."
        )
    if complaint := definition.check_params(params):
        raise IllTypedError(f"{operator} {complaint}")
    for signature in definition.signatures:
        result = signature.infer(child_types, params)
        if result is not None:
            return result
    raise IllTypedError(
        f"{operator} needs {' or '.join(map(str, definition.signatures))}, "
        f"got {', '.join(map(type_name, child_types)) or 'nothing'}."
    )


def for_backend(source: str, backend: str) -> str:
    """Returns source text written for NumPy with the array module of another backend.

    Example:
      >>> for_backend("np.sum({0})", "jax")
      'jnp.sum({0})'
    """
    return re.sub(r"\bnp\.", f"{MODULES[backend]}.", source)


def _parse_pattern(text: str) -> tuple[str, ...]:
    """Reads `*` or a tuple of axes."""
    axes = ("*",) if text == "*" else tuple(axis.strip() for axis in text[1:-1].split(",") if axis.strip())
    for axis in axes:
        if axis not in ("*", "D[i:j]") and not (axis.islower() and len(axis) == 1) and not is_axis(axis):
            raise ValueError(
                f"A signature's axes must be single lower-case letters or axis names, got {axis!r}."
            )
    return axes


def _binds(bindings: dict[str, Type], variable: str, axis: str) -> bool:
    """Returns whether a variable of a pattern accepts the axis, and binds it to the axis."""
    if not variable.islower():
        return variable == axis
    if variable in "nm" and not is_sample_axis(axis) or variable == "d" and not is_position_axis(axis):
        return False
    return bindings.setdefault(variable, (axis,)) == (axis,)
