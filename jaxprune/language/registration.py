"""Adds users' own operands and operators to the language."""

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
    Masks,
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
"""Variables of generated code, which an operand of the same name would hide."""


def register_operand(
    name: str,
    *,
    type: Type,
    read: Reader,
    description: str = "",
    latex: str | None = None,
    per_class: bool = False,
) -> Operand:
    """Adds a quantity that formulas may read; parsing, printing, scoring and evolution then know it.

    Args:
      name: a new identifier, as formulas will spell it.
      type: its axes for one channel, out of `D NX N NQ F O C`; `()` for one number per channel.
      read: takes a layer's `Operands` and returns a [C, *axes] array ([C, K, *axes] if `per_class`), or None
        where the layer has none.
      description: one phrase for lists and generated code.
      latex: its symbol; by default the name in upright letters.
      per_class: whether its value depends on the class.

    Returns:
      The registered operand.

    Raises:
      ValueError: if the name is not an identifier or is taken (also by an operator or by generated code), or the
        type has an unknown axis.

    Example:
      >>> entropy = register_operand("entropy", type=(), read=lambda operands: operands.extras.get("entropy"))
      >>> entropy.type
      ()
      >>> del OPERANDS["entropy"]
    """
    _check_identifier("An operand's name", name)
    helpers = "\n".join(source for operator in OPERATORS.values() for source in operator.helper.values())
    if name in OPERANDS:
        user = OPERANDS[name].description or "registered"
    elif name in _CODE_NAMES.union(OPERATORS, re.findall(r"^def (\w+)", helpers, re.MULTILINE)):
        user = "used by operators or generated code"
    else:
        user = ""
    if user:
        raise ValueError(
            f"An operand's name must be new, got {name!r}, which is {user}. Choose another name."
        )
    unknown_axes = [axis for axis in type if not is_axis(axis)]
    if unknown_axes:
        raise ValueError(
            f"The type of operand {name!r} must be made of the axes {' '.join(AXES)}, got {unknown_axes}. "
            "Use () for one number per channel."
        )
    if {"N", "NQ"} & set(type) and not per_class:
        raise ValueError(
            f"Operand {name!r} has an axis for the examples of one class, so its value depends on the class. "
            "Pass per_class=True, or use the axis NX for all examples."
        )
    symbol = latex if latex is not None else rf"\mathrm{{{name}}}".replace("_", r"\_")
    OPERANDS[name] = Operand(name, tuple(type), description, symbol, per_class, read=read)
    return OPERANDS[name]


def register_operator(
    name: str, implement: Callable[..., Array], *, signatures: Sequence[str] = ELEMENTWISE, uses_masks: bool = False,
    is_batched: bool = False, latex: Callable[[Sequence[Fragment], Params], Fragment | str] | None = None,
    sympy: Callable[..., object] | None = None, code: str | Mapping[str, str] | None = None,
    helper: str | Mapping[str, str] = "", level: int = ATOM_LEVEL, complexity: int = 1,
    flops: Callable[[Sequence[Shape]], float] | None = None, parameter_choices: Sequence[Params] = ((),),
    check_params: Callable[[Params], str] | None = None, is_commutative: bool = False,
) -> Operator:  # fmt: skip
    """Adds an operator to the language; parsing, printing, scoring and evolution then know it.

    An elementwise operator needs only `name` and `implement`. Printing works whatever is left out.

    Args:
      name: a new identifier.
      implement: `implement(*arrays, *params)` for an elementwise operator, for one channel and one class, in
        `jax.numpy`; with `uses_masks`, `implement(*arrays, masks=..., params=...)`, where `masks[i]` holds for each
        axis of `arrays[i]` [size] booleans or None. Padding may hold NaN, so select with `where`.
      signatures: patterns as in `Signature`; `ELEMENTWISE` by default, `BROADCAST` for one like `+`.
      uses_masks: needed by operators that combine entries, so that padding never reaches the result.
      is_batched: whether `implement` is an `Implementation`, for all channels at once, as the built-in ones are.
      latex, sympy, code, helper, level, complexity, flops, parameter_choices, check_params, is_commutative: as in
        `Operator`. One string as `code` serves all backends: its `np.` is replaced by each one's module.

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
    if level == ATOM_LEVEL:
        _check_identifier("An operator's name", name)
    if name in OPERATORS or name in OPERANDS:
        raise ValueError(
            f"An operator's name must be new, got {name!r}, which is registered. Choose another name."
        )
    parsed = tuple(map(Signature.parse, signatures))
    if code is None:
        code, helper = _call_template(name, parsed[0], parameter_choices[0]), _helper_stub(name, implement)
    if not is_batched:
        implement = _per_channel(implement if uses_masks else _elementwise(name, implement, parsed))
    OPERATORS[name] = Operator(
        name=name, signatures=parsed, implement=implement, latex=latex or functools.partial(_call_latex, name),
        sympy=sympy, code=_per_backend(code), helper=_per_backend(helper), level=level, complexity=complexity,
        flops=flops or _num_entries, parameter_choices=tuple(parameter_choices),
        check_params=check_params or (lambda params: ""), is_commutative=is_commutative,
    )  # fmt: skip
    return OPERATORS[name]


def _check_identifier(subject: str, name: str) -> None:
    """Checks that formulas can spell the name; `subject` says whose name it is."""
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        raise ValueError(f"{subject} must be an ASCII identifier, got {name!r}. Use letters, digits, '_'.")


def _elementwise(
    name: str, function: Callable[..., Array], signatures: Sequence[Signature]
) -> Callable[..., Array]:
    """Adapts `function(*arrays, *params)` to `_per_channel`; positions are laid along the rows of examples."""
    for signature in signatures:
        num_axes = max(map(len, signature.arguments), default=0)
        if signature.result not in [pattern for pattern in signature.arguments if len(pattern) == num_axes]:
            raise ValueError(
                f"Operator {name!r} combines entries ({signature}), so it must read masks to ignore padding; "
                "write implement(*arrays, masks=None, params=()) and pass uses_masks=True."
            )

    def implement(*arrays: jax.Array, masks: Sequence[AxisMasks], params: Params) -> Array:
        num_axes = max((array.ndim for array in arrays), default=0)
        return function(*(array[None] if 0 < array.ndim < num_axes else array for array in arrays), *params)

    return implement


def _per_channel(function: Callable[..., Array]) -> Implementation:
    """Maps an implementation for one channel and one class over members, classes and channels."""

    @functools.partial(jax.jit, static_argnums=2)
    def mapped(values: tuple[Array, ...], masks: Sequence[AxisMasks], params: Params) -> Array:
        leaves, tree = jax.tree.flatten((values, masks))
        batch = jnp.broadcast_shapes(*(leaf.shape[:NUM_BATCH_AXES] for leaf in leaves))

        def compute(*leaves_of_channel: jax.Array) -> Array:
            arrays, channel_masks = jax.tree.unflatten(tree, leaves_of_channel)
            return function(*arrays, masks=channel_masks, params=params)

        for _ in batch:
            compute = jax.vmap(compute)
        return compute(*(jnp.broadcast_to(leaf, batch + leaf.shape[NUM_BATCH_AXES:]) for leaf in leaves))

    def implement(xp: Namespace, *values: Array, masks: Masks = None, params: Params = ()) -> Array:
        masks = tuple(map(tuple, masks or [(None,) * (value.ndim - NUM_BATCH_AXES) for value in values]))
        if xp is not np:
            return mapped(values, masks, params)
        with jax.enable_x64(values[0].dtype == np.float64):  # a thread does not inherit its caller's setting
            return np.asarray(mapped(values, masks, params))

    return implement


def _call_latex(name: str, arguments: Sequence[Fragment], params: Params) -> str:
    """The LaTeX of a call, with the name in upright letters."""
    inside = ", ".join([*(argument.text for argument in arguments), *(f"{param:g}" for param in params)])
    escaped = name.replace("_", r"\_")
    return rf"\operatorname{{{escaped}}}\left({inside}\right)"


def _call_template(name: str, signature: Signature, params: Params) -> str:
    """The source template of a call of the function `name`."""
    slots = [f"{{{index}}}" for index in range(len(signature.arguments))]
    return f"{name}({', '.join([*slots, *(f'{{p{index}}}' for index in range(len(params)))])})"


def _per_backend(source: str | Mapping[str, str]) -> dict[str, str]:
    """The source text for each backend, translated if it is given once, written for NumPy."""
    if isinstance(source, str):
        return {backend: for_backend(source, backend) for backend in MODULES}
    return {backend: source.get(backend, "") for backend in MODULES}


def _helper_stub(name: str, implement: Callable[..., Array]) -> dict[str, str]:
    """A placeholder in generated code for an operator without source text, which says what to fill in."""
    try:
        original = inspect.getsource(implement)
    except (OSError, TypeError):
        original = f"(source of {name} not available)"
    comment = "\n".join(f"    # {line}".rstrip() for line in original.rstrip().splitlines())
    message = f"write {name} here, or register it with code="
    stub = f"def {name}(*arguments):\n{comment}\n    raise NotImplementedError({message!r})"
    return dict.fromkeys(MODULES, stub)


def _num_entries(shapes: Sequence[Shape]) -> float:
    """The number of entries of the largest argument: what an elementwise operator computes."""
    return float(max((math.prod(shape) for shape in shapes), default=1))
