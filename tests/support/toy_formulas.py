"""What the tests of the language share: random formulas, values to compute them on, and padded copies of those."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxprune.language.axes import slice_bounds, slice_range
from jaxprune.language.expression import Expression, apply, literal, operand
from jaxprune.language.operators import OPERATORS, IllTypedError
from jaxprune.language.parsing import parse
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS

SIZES = {"D": 4, "NX": 7, "N": 3, "NQ": 4, "F": 6, "O": 5, "C": 3}
PADDED = {"D": 8, "NX": 8, "N": 8, "NQ": 6, "F": 8, "O": 8, "C": 4}
ARGUMENTS = tuple(
    parse(text)
    for text in (
        "N", "X", "P", "Q", "mX", "mP", "WI", "W", "WO", "transpose(X)", "matmul(transpose(X), X)", "rbf(X, 1)",
        "slice(P, 2, 5)", "slice(mX, 2, 5)",
    )
)  # fmt: skip


def applications(name: str) -> list[Expression]:
    """The operator applied to some combinations, of all its signatures, of a few arguments that it takes."""
    formulas = []
    operator = OPERATORS[name]
    for arity in sorted({len(signature.arguments) for signature in operator.signatures}):
        for children in itertools.product(ARGUMENTS, repeat=arity):
            for params in {operator.parameter_choices[0], operator.parameter_choices[-1]}:
                try:
                    formulas.append(apply(name, *children, params=params))
                except IllTypedError:
                    continue
    return formulas[:: max(1, len(formulas) // 5)]


@st.composite
def expressions(draw: st.DrawFn, steps: int = 8, scalar: bool = True) -> Expression:
    """A well-typed formula, grown from leaves by applying random operators to what there is."""
    names = draw(st.lists(st.sampled_from(DEFAULT_VOCABULARY.operands), min_size=1, max_size=4))
    numbers = draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=2))
    pool = [*map(operand, names), *map(literal, numbers)]
    for _ in range(draw(st.integers(0, steps))):
        name = draw(st.sampled_from(sorted(OPERATORS)))
        operator = OPERATORS[name]
        arity = len(draw(st.sampled_from(operator.signatures)).arguments)
        children = [draw(st.sampled_from(pool)) for _ in range(arity)]
        params = draw(st.sampled_from(operator.parameter_choices))
        try:
            pool.append(apply(name, *children, params=params))
        except IllTypedError:
            pool.append(apply("abs", pool[-1]))
    return apply("mean", pool[-1]) if scalar and pool[-1].type else pool[-1]


def values(seed: int = 0, sizes: dict[str, int] = SIZES) -> dict[str, jax.Array]:
    """A consistent value per operand for one channel and one class: the first N rows of X are P."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(0.5, 1.0, [sizes[axis] for axis in operand.type])
        for name, operand in OPERANDS.items()
    }
    arrays["P"], arrays["Q"] = arrays["X"][: sizes["N"]], arrays["X"][sizes["N"] :]
    arrays |= {f"m{name}": arrays[name].mean(0) for name in "XPQ"}
    arrays |= {"N": sizes["N"], "NQ": sizes["NQ"], "NX": sizes["NX"], "WI": arrays["W"][:, 0]}
    return {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}


def masks_of(f: Expression) -> tuple[np.ndarray, ...]:
    """Which entries of a padded value are real, per axis."""
    return tuple(_mask(axis) for axis in f.type)


def padded(value: jax.Array, f: Expression) -> jax.Array:
    """The value with NaN up to the padded sizes; a slice of the positions is padded up to all of them."""
    if not f.type:
        return value
    sizes = [len(mask) for mask in masks_of(f)]
    widths = [(0, size - length) for size, length in zip(sizes, value.shape, strict=True)]
    return np.pad(np.asarray(value), widths, constant_values=np.nan)


def compute(name, *arrays, masks=None, params=(), xp=jnp):
    """An operator of arrays for one channel and one class, with [size] masks; with JAX in one program."""
    implement = OPERATORS[name].implement
    if xp is jnp:
        return _jitted(implement, params)(arrays, masks)
    with np.errstate(all="ignore"):
        return _apply(np, implement, params, arrays, masks)


def _apply(xp, implement, params, arrays, masks):
    values = [xp.asarray(array)[None, None, None] for array in arrays]
    batched_masks = masks and [
        tuple(None if mask is None else xp.asarray(mask)[None, None, None] for mask in by_axis)
        for by_axis in masks
    ]
    return implement(xp, *values, masks=batched_masks, params=params)[0, 0, 0]


@functools.cache
def _jitted(implement, params):
    return jax.jit(functools.partial(_apply, jnp, implement, params))


def evaluate(f: Expression, of: dict[str, jax.Array], *, is_padded: bool = False, xp=None) -> jax.Array:
    """The value of a formula for one channel and one class, operator by operator; with NumPy unless JAX traces it."""
    is_traced = any(isinstance(value, jax.core.Tracer) for value in of.values())
    xp = xp or (jnp if is_traced else np)

    def combine(node: Expression, children: list[jax.Array]) -> jax.Array:
        if node.is_operand:
            return padded(of[node.name], node) if is_padded else of[node.name]
        if node.is_literal:
            return np.float32(node.value)
        if is_padded and node.operator == "slice":  # which is never asked for a part of what is padded
            real = real_part(children[0], node.children[0])
            return padded(compute("slice", real, params=node.params, xp=np), node)
        masks = [masks_of(child) for child in node.children] if is_padded else None
        return compute(node.operator, *children, masks=masks, params=node.params, xp=xp)

    return f.fold(combine)


def real_part(value: jax.Array, f: Expression) -> np.ndarray:
    """A padded value without its padding."""
    return (
        np.asarray(value)[np.ix_(*(np.asarray(mask) for mask in masks_of(f)))]
        if f.type
        else np.asarray(value)
    )


def _mask(axis: str) -> np.ndarray:
    bounds = slice_range(axis)
    start, stop = slice_bounds(SIZES["D"], *bounds) if bounds else (0, SIZES.get(axis, 0))
    return np.arange(PADDED["D" if bounds else axis]) < stop - start
