"""Operators: one record per operator with everything that any part of the package asks of it.

An operator states its signatures over axis variables, its implementation on arrays, its LaTeX and SymPy forms, its
source text in generated code, and its cost. The built-in ones are registered by `arithmetic`, `reductions` and
`matrices`; one's own join by `register_operator`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from jaxprune.language.axes import Type, is_axis, is_position_axis, is_sample_axis, sliced_axis, type_name
from jaxprune.types import Array, Namespace

Backend = Literal["numpy", "jax", "torch"]
AxisMasks = tuple[Array | None, ...]
"""Per axis of a value: [M or 1, K or 1, C or 1, size] booleans, True for real entries, or None when all are real."""
NUM_BATCH_AXES = 3
"""Values have axes for members of a population, classes and channels before those of their type."""
Params = tuple[float, ...]
Shape = tuple[int, ...]

SUM_LEVEL, PRODUCT_LEVEL, ATOM_LEVEL = 1, 2, 3
"""How tightly a piece of text holds together; looser pieces get parentheses."""


class IllTypedError(ValueError):
    """An operator was given values that none of its signatures takes."""


class Implementation(Protocol):
    """Computes an operator for all members, classes and channels at once, with NumPy or with JAX.

    Values are [M or 1, K or 1, C or 1, *axes of their type], 1 where they do not depend on member, class or channel.
    """

    def __call__(
        self, xp: Namespace, *values: Array, masks: Sequence[AxisMasks] | None = None, params: Params = ()
    ) -> Array:
        """`xp` is `numpy` or `jax.numpy`; `masks[i]` says which entries of `values[i]` are real, None all of all."""


class Fragment(NamedTuple):
    """A piece of LaTeX, how tightly it holds together, and the type of the value it stands for."""

    text: str
    level: int = ATOM_LEVEL
    type: Type = ()

    def within(self, level: int) -> str:
        """The text, in parentheses where it holds together less tightly than `level`."""
        return self.text if self.level >= level else rf"\left({self.text}\right)"


@dataclass(frozen=True)
class Signature:
    """Which types an operator takes and gives, as patterns.

    A pattern is `*` (any type; the same one wherever it appears in the signature) or a tuple of axes: upper-case
    names stand for themselves, `n` and `m` for a sample axis, `d` for a position axis (`D` or a slice of it), other
    lower-case letters for any axis; a letter is the same axis throughout. `D[i:j]` takes i, j from the parameters.
    """

    arguments: tuple[tuple[str, ...], ...]
    result: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Reads `"(a,b), (b,c) -> (a,c)"`.

        Raises:
          ValueError: if the text is not patterns, an arrow and one pattern.

        Example:
          >>> Signature.parse("(a,b), (b,c) -> (a,c)").infer((("F", "C"), ("C", "O")), ())
          ('F', 'O')
        """
        sides = text.split("->")
        patterns = [re.findall(r"\*|\([^()]*\)", side) for side in sides]
        if len(sides) != 2 or not patterns[0] or len(patterns[1]) != 1:
            raise ValueError(f"A signature must read like '(a,b), (b,c) -> (a,c)' or '* -> *', got {text!r}.")
        pieces = [[_parse_pattern(pattern) for pattern in side] for side in patterns]
        return cls(tuple(pieces[0]), pieces[1][0])

    def infer(self, child_types: Sequence[Type], params: Params) -> Type | None:
        """The result's type for these arguments, or None if the signature does not take them."""
        if len(child_types) != len(self.arguments):
            return None
        bound: dict[str, Type] = {}
        for pattern, type in zip(self.arguments, child_types, strict=True):
            if pattern == ("*",):
                if bound.setdefault("*", type) != type:
                    return None
            elif len(pattern) != len(type) or not all(map(functools.partial(_binds, bound), pattern, type)):
                return None
        result: list[str] = []
        for axis in self.result:
            result.extend((sliced_axis(*map(int, params)),) if axis == "D[i:j]" else bound.get(axis, (axis,)))
        return tuple(result)

    def __str__(self) -> str:
        shown = [
            "*" if pattern == ("*",) else f"({','.join(pattern)})"
            for pattern in (*self.arguments, self.result)
        ]
        return f"{', '.join(shown[:-1])} -> {shown[-1]}"


@dataclass(frozen=True)
class Operator:
    """Everything the package knows about one operator.

    Attributes:
      name: its key in `OPERATORS`; `+ - * /` are written between their arguments, all others as `name(...)`.
      signatures: the argument and result types it takes, tried in order.
      implement: computes it for many channels and classes at once (see `Implementation`).
      latex: from the arguments' LaTeX and the parameters to its own.
      sympy: from SymPy arguments and parameters to a SymPy expression; None gives an undefined function.
      code: backend -> source template with `{0}`, `{1}` for arguments and `{p0}` for parameters.
      helper: backend -> source of a function that the template calls, or "".
      level: how tightly infix text holds together; `ATOM_LEVEL` for calls.
      complexity: what a node adds to `Expression.complexity`.
      flops: from the arguments' shapes to operations for one channel and one class.
      parameter_choices: parameters that random generation draws from; their length is the number it takes.
      check_params: says what is wrong with parameters, or returns "".
      is_commutative: whether swapping two arguments changes nothing.
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
        """Whether its text stands between two arguments."""
        return self.level != ATOM_LEVEL

    @property
    def num_params(self) -> int:
        """How many literal numbers follow its arguments."""
        return len(self.parameter_choices[0])

    def text(self, arguments: Sequence[str], params: Sequence[str]) -> str:
        """The call or infix text around arguments that already carry the parentheses they need."""
        if self.is_infix:
            return (
                f"{arguments[0]}{self.name}{arguments[1]}"
                if self.name in "*/"
                else f" {self.name} ".join(arguments)
            )
        return f"{self.name}({', '.join([*arguments, *params])})"


OPERATORS: dict[str, Operator] = {}
"""Name -> operator; grows by `register_operator`."""

ELEMENTWISE = ("* -> *",)
BROADCAST = ("*, * -> *", "(), * -> *", "*, () -> *", "(d), (n,d) -> (n,d)", "(n,d), (d) -> (n,d)")
"""The signatures of `+ - * /`: equal types, a scalar with anything, positions with samples row by row."""


def infer_type(operator: str, child_types: Sequence[Type], params: Params = ()) -> Type:
    """The type of `operator` applied to values of these types.

    Raises:
      IllTypedError: if no signature takes them, the parameters are wrong, or the operator is unknown.

    Example:
      >>> infer_type("mean_samples", [("N", "D")])
      ('D',)
    """
    if operator not in OPERATORS:
        raise IllTypedError(f"An operator must be one of {' '.join(OPERATORS)}, got {operator!r}.")
    record = OPERATORS[operator]
    if len(params) != record.num_params:
        raise IllTypedError(f"{operator} needs {record.num_params} literal parameters, got {len(params)}.")
    complaint = record.check_params(params)
    if complaint:
        raise IllTypedError(f"{operator} {complaint}")
    for signature in record.signatures:
        result = signature.infer(child_types, params)
        if result is not None:
            return result
    needed = " or ".join(map(str, record.signatures))
    raise IllTypedError(
        f"{operator} needs {needed}, got {', '.join(map(type_name, child_types)) or 'nothing'}."
    )


MODULES: Mapping[str, str] = {"numpy": "np", "jax": "jnp", "torch": "torch"}
"""Backend -> the name its array module has in generated code."""


def for_backend(source: str, backend: str) -> str:
    """Source written for NumPy with the array module of another backend."""
    return re.sub(r"\bnp\.", f"{MODULES[backend]}.", source)


def _parse_pattern(text: str) -> tuple[str, ...]:
    axes = ("*",) if text == "*" else tuple(axis.strip() for axis in text[1:-1].split(",") if axis.strip())
    for axis in axes:
        if axis not in ("*", "D[i:j]") and not (axis.islower() and len(axis) == 1) and not is_axis(axis):
            raise ValueError(
                f"A signature's axes must be single lower-case letters or axis names, got {axis!r}."
            )
    return axes


def _binds(bound: dict[str, Type], pattern: str, axis: str) -> bool:
    if not pattern.islower():
        return pattern == axis
    if pattern in "nm" and not is_sample_axis(axis) or pattern == "d" and not is_position_axis(axis):
        return False
    return bound.setdefault(pattern, (axis,)) == (axis,)
