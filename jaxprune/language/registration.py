"""Adds operands and operators of one's own to the language."""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import AXES, Type, is_axis
from jaxprune.language.operators import (
    ATOM_LEVEL,
    ELEMENTWISE,
    MODULES,
    NUM_BATCH_AXES,
    OPERATORS,
    AxisMasks,
    Fragment,
    Implementation,
    Operator,
    Params,
    Shape,
    Signature,
    for_backend,
)
from jaxprune.language.vocabulary import OPERANDS, Operand, Reader
from jaxprune.types import Array, Namespace

_CODE_NAMES = frozenset(
    "features labels kernel outgoing weight_gradient feature_gradient is_class c k index dtype scores num_channels "
    "np jnp jax torch".split()
)


def register_operand(
    name: str,
    *,
    type: Type,
    read: Reader,
    description: str = "",
    latex: str | None = None,
    per_class: bool = False,
) -> Operand:
    """Makes one's own quantity readable by formulas; parsing, printing, scoring and evolution then know it.

    Args:
      name: a new identifier, as formulas will spell it.
      type: its axes for one channel, out of `D NX N NQ F O C`; `()` for one number a channel.
      read: takes scoring's `Operands`, returns a [C, *axes] array ([C, K, *axes] if `per_class`), or None
        where the layer has none.
      description: one phrase for lists and generated code.
      latex: its symbol; the name upright by default.
      per_class: whether its value depends on the class.

    Returns:
      The registered operand.

    Raises:
      ValueError: if the name is taken (by an operator or within generated code too) or no identifier, or the
        type has an unknown axis.

    Example:
      >>> entropy = register_operand("entropy", type=(), read=lambda operands: operands.extras.get("entropy"))
      >>> entropy.type
      ()
      >>> del OPERANDS["entropy"]
    """
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        raise ValueError(
            f"An operand's name must be an ASCII identifier, got {name!r}. Use letters, digits, '_'."
        )
    if name in OPERANDS:
        raise ValueError(
            f"An operand's name must be new, got {name!r}, which is {OPERANDS[name].description or 'registered'}. "
            "Choose another name."
        )
    if name in _names_in_use():
        raise ValueError(
            f"An operand's name must be new, got {name!r}, which operators or generated code use. "
            "Choose another name."
        )
    unknown = [axis for axis in type if not is_axis(axis)]
    if unknown:
        raise ValueError(
            f"The type of operand {name!r} must be made of the axes {' '.join(AXES)}, got {unknown}. "
            "Use () for one number a channel."
        )
    if {"N", "NQ"} & set(type) and not per_class:
        raise ValueError(
            f"Operand {name!r} has rows of one class, so it depends on the class, got per_class=False. "
            "Pass per_class=True, or use NX for all examples."
        )
    symbol = latex if latex is not None else rf"\mathrm{{{name}}}".replace("_", r"\_")
    operand = Operand(name, tuple(type), description, symbol, per_class, read=read)
    OPERANDS[name] = operand
    return operand


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


def _names_in_use() -> frozenset[str]:
    """Names that an operand of one's own would hide in formulas or in generated code."""
    helpers = "\n".join(source for operator in OPERATORS.values() for source in operator.helper.values())
    return _CODE_NAMES.union(OPERATORS, re.findall(r"^def (\w+)", helpers, re.MULTILINE))


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
