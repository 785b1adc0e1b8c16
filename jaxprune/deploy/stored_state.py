"""Takes everything out of a network that a factory does not make, and puts it into a network of shapes.

Arrays of all variables go by dotted path. Variables that hold several values, numbers or texts go leaf by leaf, and
random keys as the numbers that they consist of. What a forward pass sowed is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.structure.model_state import (
    FlatState,
    Path,
    RestState,
    dotted,
    is_abstract,
    merge_model,
    take_apart,
)

_READERS: Mapping[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: text == "True",
}
"""Type of a value that is no array -> what makes it from its text."""

_KEY_KINDS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
"""Dtype of random keys -> the name of their generator."""


class StoredState(NamedTuple):
    """What a saved network holds, as plain data."""

    arrays: Mapping[str, np.ndarray]
    """Dotted path -> array, `path:number` for a leaf of a variable that holds several values."""
    random: Mapping[str, str]
    """Dotted path of random state -> generator of its keys; "" for counters."""
    values: Mapping[str, tuple[str, str]]
    """`path:number` -> type and text of a number or text in a variable."""


class ArrayPlace(NamedTuple):
    """What a network expects at a path."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def stored_state(model: nnx.Module) -> StoredState:
    """Returns the state of a network; the network is not changed.

    Args:
      model: any NNX module.

    Returns:
      Its arrays on the host, in the dtypes in which they are stored.

    Raises:
      ValueError: if two arrays have the same dotted path, or the network has shapes in place of arrays.

    Example:
      >>> state = stored_state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
      >>> sorted(state.arrays)
      ['bias', 'mean', 'scale', 'var']
    """
    parts = take_apart(model)
    if is_abstract(parts.flat):
        raise ValueError(
            "saving needs a network with weights, got one of shapes alone. Fill in its arrays first."
        )
    found: list[tuple[str, Any]] = [(dotted(path), array) for path, array in parts.flat.items()]
    random: dict[str, str] = {}
    for path, value in parts.rest.items():
        if not isinstance(value, nnx.Variable):
            random[dotted(path)] = ""
            found.append((dotted(path), value))
        elif not isinstance(value, nnx.Intermediate):
            found += _leaves(path, value)
    arrays: dict[str, np.ndarray] = {}
    values: dict[str, tuple[str, str]] = {}
    names = [name for name, _ in found]
    if (
        repeated := sorted({name for name in names if names.count(name) > 1})
        if len(set(names)) < len(names)
        else []
    ):
        raise ValueError(
            f"saving needs arrays of different dotted paths, got several called {', '.join(repeated)}. Rename a module."
        )
    for name, value in found:
        if not hasattr(value, "dtype"):
            kind = type(value).__name__
            values.update({name: (kind, str(value))} if kind in _READERS else {})
        elif jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            random[name] = str(jax.random.key_impl(value))
            arrays[name] = np.asarray(jax.random.key_data(value))
        else:
            arrays[name] = np.asarray(value)
    return StoredState(arrays, random, values)


def fill(model: nnx.Module, state: StoredState, recast: Iterable[str] = ()) -> nnx.Module:
    """Returns a network of shapes with the arrays of a stored one.

    Random keys and counters that were not stored, or are of another form, are made anew.

    Args:
      model: the network of shapes; it is not changed.
      state: what to put in.
      recast: names of arrays that may be of another dtype than the network's; they keep their own.

    Returns:
      A new network, whose arrays are where JAX puts new arrays.

    Raises:
      ValueError: if arrays are missing, unexpected, or of another shape or dtype; lists all of them.

    Example:
      >>> from jaxprune.nets import without_weights
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> shapes = without_weights(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
      >>> bool((fill(shapes, stored_state(model)).kernel[...] == model.kernel[...]).all())
      True
    """
    parts = take_apart(model)
    if problems := mismatches(model, state, recast):
        raise ValueError(
            "the network that its factory and plan make needs other arrays than the saved ones: "
            f"{'; '.join(problems)}. Name the factory, its options and the plan that the saved network was made with."
        )
    flat: FlatState = {path: _array(state, dotted(path)) for path in parts.flat}
    rest: RestState = {}
    for path, value in parts.rest.items():
        if isinstance(value, nnx.Variable):
            rest[path] = _filled_variable(path, value, state)
        else:
            rest[path] = _random_state(dotted(path), value, state)
    return merge_model(parts.graphdef, flat, rest)


def mismatches(model: nnx.Module, state: StoredState, recast: Iterable[str] = ()) -> list[str]:
    """Says how the arrays of a stored network differ from those that a network of shapes needs; [] if they do not.

    Args:
      model: the network of shapes.
      state: the stored network's.
      recast: names of arrays that may be of another dtype.
    """
    parts, allowed = take_apart(model), set(recast)
    needed = {dotted(path): ArrayPlace(array.shape, array.dtype) for path, array in parts.flat.items()}
    for path, variable in parts.rest.items():
        if isinstance(variable, nnx.Variable):
            leaves = {name: leaf for name, leaf in _leaves(path, variable) if hasattr(leaf, "dtype")}
            needed |= {
                name: ArrayPlace(leaf.shape, leaf.dtype)
                for name, leaf in leaves.items()
                if name not in state.values
            }
    problems = [f"{name} is missing" for name in needed if name not in state.arrays]
    problems += [
        f"{name} is saved and not in the network"
        for name in state.arrays
        if name not in needed and name not in state.random and name not in _leaf_names(parts.rest)
    ]
    for name, place in needed.items():
        if name in state.arrays:
            problems += _differences(name, place, state, name in allowed)
    return problems


def _differences(name: str, place: ArrayPlace, state: StoredState, may_be_recast: bool) -> Iterator[str]:
    """Says how a stored array differs from what is needed."""
    shape, dtype = state.arrays[name].shape, state.arrays[name].dtype
    if kind := state.random.get(name):  # keys are stored as rows of numbers
        if _KEY_KINDS.get(str(place.dtype)) != kind or shape[:-1] != place.shape:
            yield f"{name} is saved as {kind} keys {shape[:-1]} and needed as {place.dtype} {place.shape}"
        return
    if shape != place.shape:
        yield f"{name} is saved as {shape} and needed as {place.shape}"
    if dtype != place.dtype and not may_be_recast:
        yield f"{name} is saved as {dtype} and needed as {place.dtype}"
    if dtype != jax.dtypes.canonicalize_dtype(dtype):
        yield f'{name} is saved as {dtype}, which needs jax.config.update("jax_enable_x64", True)'


def _leaves(path: Path, variable: nnx.Variable[Any]) -> list[tuple[str, Any]]:
    """Returns what a variable holds that is not one array, by name."""
    return [
        (f"{dotted(path)}:{number}", leaf)
        for number, leaf in enumerate(jax.tree.leaves(variable.get_raw_value()))
    ]


def _leaf_names(rest: RestState) -> set[str]:
    """Names of all leaves of a network's variables that do not hold one array."""
    return {
        name
        for path, value in rest.items()
        if isinstance(value, nnx.Variable)
        for name, _ in _leaves(path, value)
    }


def _array(state: StoredState, name: str) -> jax.Array:
    """Returns a stored array; random keys as keys."""
    array = jax.device_put(state.arrays[name])
    kind = state.random.get(name)
    return jax.random.wrap_key_data(array, impl=kind) if kind else array


def _filled_variable(path: Path, variable: nnx.Variable[Any], state: StoredState) -> nnx.Variable[Any]:
    """Returns a copy of a variable with the leaves that were stored; others are as the factory made them."""
    _, treedef = jax.tree.flatten(variable.get_raw_value())
    leaves = []
    for name, leaf in _leaves(path, variable):
        if name in state.values:
            kind, text = state.values[name]
            leaves.append(_READERS[kind](text))
        else:
            leaves.append(_array(state, name) if name in state.arrays else leaf)
    filled: nnx.Variable[Any] = variable.copy()
    filled.set_raw_value(jax.tree.unflatten(treedef, leaves))
    return filled


def _random_state(name: str, place: Any, state: StoredState) -> jax.Array:  # noqa: ANN401 - an array or its shape
    """Returns stored random state, or makes it anew."""
    kind = _KEY_KINDS.get(str(place.dtype), "")
    stored = state.arrays.get(name)
    if stored is not None and state.random.get(name) == kind:
        shape = stored.shape[:-1] if kind else stored.shape
        if shape == place.shape and (kind or stored.dtype == place.dtype):
            return _array(state, name)
    if not kind:
        return jax.device_put(np.zeros(place.shape, place.dtype))
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(place.shape, place.dtype))
    numbers = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 2**32, data.shape, np.uint32)
    return jax.random.wrap_key_data(jax.device_put(numbers), impl=kind)
