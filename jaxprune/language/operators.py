"""Operators: one record per operator with everything that any part of the package asks of it.

An operator states its signatures over axis variables, its implementation on arrays, its LaTeX and SymPy forms, its
source text in generated code, and its cost. The built-in ones are registered by `arithmetic`, `reductions` and
`matrices`; one's own join by `register_operator`.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import Type, is_axis, is_position_axis, is_sample_axis, sliced_axis, type_name
from jaxprune.language.operands import OPERANDS
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


def register_operator(
    name: str,
    implement: Callable[..., Array],
    *,
    signatures: Sequence[str] = ELEMENTWISE,
    uses_masks: bool = False,
    is_batched: bool = False,
    latex: Callable[[Sequence[Fragment], Params], Fragment | str] | None = None,
    sympy: Callable[..., object] | None = None,
    code: str | Mapping[str, str] | None = None,
    helper: str | Mapping[str, str] = "",
    level: int = ATOM_LEVEL,
    complexity: int = 1,
    flops: Callable[[Sequence[Shape]], float] | None = None,
    parameter_choices: Sequence[Params] = ((),),
    check_params: Callable[[Params], str] | None = None,
    is_commutative: bool = False,
) -> Operator:
    """Adds an operator to the language; parsing, printing, scoring and evolution then know it.

    Only `name` and `implement` are needed for an elementwise operator; what is left out never makes printing fail.

    Args:
      name: a new identifier.
      implement: `implement(*arrays, *params)` for an elementwise operator, for one channel and one class, in
        `jax.numpy`; with `uses_masks`, `implement(*arrays, masks=..., params=...)`, where `masks[i]` holds for each
        axis of `arrays[i]` [size] booleans or None. Padding may hold NaN: use `where`.
      signatures: patterns as in `Signature`; `ELEMENTWISE` by default, `BROADCAST` for an infix-like one.
      uses_masks: needed by operators that combine entries, so that padding never leaks into the result.
      is_batched: whether `implement` is an `Implementation`, for all channels at once, as the built-in ones are.
      latex, sympy, code, helper, level, complexity, flops, parameter_choices, check_params, is_commutative: as in
        `Operator`. `code` as one string serves all backends, its `np.` being replaced by each one's module.

    Returns:
      The registered operator.

    Raises:
      ValueError: if the name is taken or no identifier, or an operator that combines entries ignores masks.

    Example:
      >>> import numpy as np
      >>> cube = register_operator("cube", lambda values: values**3, code="{0}**3")
      >>> cube.implement(np, np.ones((1, 1, 3)) * 2).tolist()
      [[[8.0, 8.0, 8.0]]]
      >>> del OPERATORS["cube"]
    """
    if level == ATOM_LEVEL and (not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name)):
        raise ValueError(
            f"An operator's name must be an ASCII identifier, got {name!r}. Use letters, digits, '_'."
        )
    if name in OPERATORS or name in OPERANDS:
        raise ValueError(
            f"An operator's name must be new, got {name!r}, which is registered. Choose another name."
        )
    parsed = tuple(Signature.parse(text) for text in signatures)
    if not (uses_masks or is_batched) and any(
        signature.result not in _broadcast_results(signature) for signature in parsed
    ):
        raise ValueError(
            f"Operator {name!r} combines entries ({', '.join(signatures)}), so it must read masks to ignore padding; "
            "write implement(*arrays, masks=None, params=()) and pass uses_masks=True."
        )
    operator = Operator(
        name=name,
        signatures=parsed,
        implement=implement
        if is_batched
        else _per_channel(implement if uses_masks else _elementwise(implement)),
        latex=latex or functools.partial(_call_latex, name),
        sympy=sympy,
        code=_per_backend(code if code is not None else f"{name}({_call_slots(parsed, parameter_choices)})"),
        helper=_per_backend(helper) if code is not None else _helper_stub(name, implement),
        level=level,
        complexity=complexity,
        flops=flops or _entries,
        parameter_choices=tuple(parameter_choices),
        check_params=check_params or (lambda params: ""),
        is_commutative=is_commutative,
    )
    OPERATORS[name] = operator
    return operator


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


def _broadcast_results(signature: Signature) -> tuple[tuple[str, ...], ...]:
    """The result patterns that keep the axes of the widest argument: what an elementwise operator may give."""
    width = max(map(len, signature.arguments), default=0)
    return tuple(pattern for pattern in signature.arguments if len(pattern) == width)


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    """Adapts `function(*arrays, *params)`: masks play no part, positions are laid along the rows of samples."""

    def implement(*arrays: jax.Array, masks: Sequence[AxisMasks], params: Params) -> Array:
        rank = max((array.ndim for array in arrays), default=0)
        aligned = [array[None] if array.ndim and array.ndim < rank else array for array in arrays]
        return function(*aligned, *params)

    return implement


def _per_channel(function: Callable[..., Array]) -> Implementation:
    """Maps an implementation for one channel and one class over members, classes and channels."""

    @functools.partial(jax.jit, static_argnums=2)
    def mapped(values: tuple[Array, ...], masks: Sequence[AxisMasks], params: Params) -> Array:
        leaves, tree = jax.tree.flatten((values, masks))
        batch = jnp.broadcast_shapes(*(leaf.shape[:NUM_BATCH_AXES] for leaf in leaves))

        def one(*parts: jax.Array) -> Array:
            arrays, own = jax.tree.unflatten(tree, parts)
            return function(*arrays, masks=own, params=params)

        for _ in batch:
            one = jax.vmap(one)
        return one(*(jnp.broadcast_to(leaf, batch + leaf.shape[NUM_BATCH_AXES:]) for leaf in leaves))

    def implement(
        xp: Namespace, *values: Array, masks: Sequence[AxisMasks] | None = None, params: Params = ()
    ) -> Array:
        own = tuple(map(tuple, masks or [(None,) * (value.ndim - NUM_BATCH_AXES) for value in values]))
        if xp is not np:
            return mapped(values, own, params)
        with jax.enable_x64(values[0].dtype == np.float64):  # a thread does not know what its caller enabled
            return np.asarray(mapped(values, own, params))

    return implement


def _call_latex(name: str, arguments: Sequence[Fragment], params: Params) -> str:
    inside = ", ".join([*(argument.text for argument in arguments), *(f"{param:g}" for param in params)])
    escaped = name.replace("_", r"\_")
    return rf"\operatorname{{{escaped}}}\left({inside}\right)"


def _call_slots(signatures: Sequence[Signature], choices: Sequence[Params]) -> str:
    arguments = [f"{{{index}}}" for index in range(len(signatures[0].arguments))]
    return ", ".join([*arguments, *(f"{{p{index}}}" for index in range(len(choices[0])))])


def _per_backend(source: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(source, str):
        return {backend: for_backend(source, backend) for backend in MODULES}
    return {backend: source.get(backend, "") for backend in MODULES}


def _helper_stub(name: str, implement: Callable[..., Array]) -> dict[str, str]:
    """A placeholder for an operator registered without source text: code() still works and says what to fill in."""
    try:
        original = inspect.getsource(implement)
    except (OSError, TypeError):
        original = f"(source of {name} not available)"
    comment = "\n".join(f"    # {line}".rstrip() for line in original.rstrip().splitlines())
    message = f"write {name} here, or register it with code="
    stub = f"def {name}(*arguments):\n{comment}\n    raise NotImplementedError({message!r})"
    return dict.fromkeys(MODULES, stub)


def _entries(shapes: Sequence[Shape]) -> float:
    return float(max((math.prod(shape) for shape in shapes), default=1))
