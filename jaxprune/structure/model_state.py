"""A Flax NNX network as plain data: a static graph, a flat dictionary of arrays, and the rest.

Everything that changes a network works on the flat dictionary (path -> array), so the caller's model is never
edited: `split_model` takes it apart and `merge_model` builds a new one. Random-number state (dropout keys and
counters) stays apart in `rest`, because it is neither scored nor sliced.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.types import Array

Path: TypeAlias = tuple[str | int, ...]
"""Where an array lives in a model: `("conv1", "kernel")`; positions in an `nnx.List` are whole numbers."""

FlatState: TypeAlias = dict[Path, Array]
"""Path -> NumPy or JAX array, for parameters and batch statistics (and any other non-random variable)."""

Running: TypeAlias = Literal["evaluation", "training"]
Mode: TypeAlias = Literal["as_is"] | Running


_LEAVES = (
    nnx.Variable,
    jax.Array,
    np.ndarray,
    str,
    int,
    float,
    complex,
    bytes,
    type(None),
    FunctionType,
    type,
)
"""Attributes that hold no module."""
_NODES: dict[type, bool] = {}
"""Whether other types are nodes of Flax's graphs."""


class Parts(NamedTuple):
    """A model taken apart."""

    graphdef: nnx.GraphDef[nnx.Module]
    flat: FlatState
    rest: FlatState
    """Random state."""
    trained: frozenset[Path]
    """Paths of the parameters (`nnx.Param`) among `flat`, without batch statistics."""
    model: nnx.Module
    """Itself; it is not changed."""


def dotted(path: Path) -> str:
    """The name a user sees for a path.

    Example:
      >>> dotted(("layers", 0, "kernel"))
      'layers.0.kernel'
    """
    return ".".join(str(part) for part in path)


def split_model(
    model: nnx.Module, mode: Mode = "as_is"
) -> tuple[nnx.GraphDef[nnx.Module], FlatState, FlatState]:
    """Takes a model apart into a static graph, its arrays by path, and its random state by path.

    The model itself is not changed: batch norm and dropout are switched on a copy,
    and only the arrays (which JAX never changes in place) are handed out.

    Args:
      model: any NNX module.
      mode: `"evaluation"` uses running statistics and no dropout, `"training"` the opposite, `"as_is"` neither.

    Returns:
      `(graphdef, flat, rest)`; `merge_model` puts them together again. Equal architectures have equal graphs.

    Raises:
      TypeError: if `model` is not an NNX module.

    Example:
      >>> graphdef, flat, rest = split_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> {dotted(path): array.shape for path, array in flat.items()}
      {'bias': (3,), 'kernel': (2, 3)}
    """
    parts = take_apart(model)
    if mode != "as_is":
        parts = take_apart(switch(merge_model(*parts[:3]), mode))
    return parts[:3]


def take_apart(model: nnx.Module) -> Parts:
    """`split_model` of a model as it is, with the paths of the trained parameters.

    Raises:
      TypeError: if `model` is not an NNX module.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"needs a Flax NNX module (flax.nnx.Module), got {type(model).__name__}. "
            "Wrap a function and its parameters in an nnx.Module whose __call__ takes the images."
        )
    graphdef, random, *others = nnx.split(model, nnx.RngState, ...)
    variables = nnx.to_flat_state(others[0])
    return Parts(
        graphdef,
        {cast(Path, path): _array(variable) for path, variable in variables},
        {cast(Path, path): _array(variable) for path, variable in nnx.to_flat_state(random)},
        frozenset(cast(Path, path) for path, variable in variables if isinstance(variable, nnx.Param)),
        model,
    )


def switch(model: nnx.Module, mode: Running) -> nnx.Module:
    """Switches batch norm and dropout of a model that belongs to the caller, in place, as `nnx.view` does to a copy."""
    for module in modules_of(model):
        names = _mode_names(type(module))
        if names:
            module.set_view(**dict.fromkeys(names, mode == "evaluation"))  # type: ignore[attr-defined]
    return model


def modules_of(model: nnx.Module) -> Iterator[nnx.Module]:
    """Every module of a model once, itself first: what `nnx.iter_modules` finds, several times faster."""
    seen: set[int] = set()
    waiting: list[Any] = [model]
    while waiting:
        node = waiting.pop()
        kind = _kind_of(cast(Hashable, type(node)))
        if kind == "leaf" or id(node) in seen:
            continue
        seen.add(id(node))
        if kind == "module":
            yield node
            waiting += vars(node).values()
        elif kind == "sequence":
            waiting += node
        elif kind == "mapping":
            waiting += node.values()
        elif _is_node(node):
            waiting += [module for _, module in nnx.iter_modules(node)]


def _is_node(thing: object) -> bool:
    if type(thing) not in _NODES:
        _NODES[type(thing)] = bool(nnx.graph.is_node(thing))
    return _NODES[type(thing)]


@lru_cache(maxsize=4096)
def _kind_of(kind: type[Any]) -> Literal["leaf", "module", "sequence", "mapping", "other"]:
    if issubclass(kind, nnx.Module):
        return "module"
    if issubclass(kind, _LEAVES):
        return "leaf"
    if issubclass(kind, list | tuple):
        return "sequence"
    return "mapping" if issubclass(kind, dict) else "other"


@lru_cache(maxsize=1024)
def _mode_names(kind: type[nnx.Module]) -> tuple[str, ...]:
    """Which of the two modes a class of modules can be switched between."""
    method = getattr(kind, "set_view", None)
    parameters = {} if method is None else inspect.signature(method).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return tuple(name for name in ("use_running_average", "deterministic") if takes_any or name in parameters)


def merge_model(
    graphdef: nnx.GraphDef[nnx.Module], flat: Mapping[Path, Array], rest: Mapping[Path, Array]
) -> nnx.Module:
    """Builds a new model from what `split_model` returned; usable inside `jax.jit` and `jax.vmap`.

    Example:
      >>> parts = split_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> merge_model(*parts)(jax.numpy.ones((4, 2))).shape
      (4, 3)
    """
    return nnx.merge(graphdef, _state(flat), _state(rest))


def parameter_paths(model: nnx.Module) -> frozenset[Path]:
    """Paths of the trained parameters (`nnx.Param`), without batch statistics."""
    return take_apart(model).trained


def fingerprint(flat: Mapping[Path, Array | jax.ShapeDtypeStruct]) -> str:
    """Sixteen hexadecimal digits that say which paths, shapes and dtypes a network has (not their values).

    Example:
      >>> flat = {("kernel",): jax.numpy.zeros((2, 3))}
      >>> fingerprint(flat) == fingerprint({("kernel",): jax.numpy.ones((2, 3))})
      True
    """
    rows = sorted([dotted(path), list(array.shape), str(array.dtype)] for path, array in flat.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _array(variable: nnx.Variable[Any] | Array) -> Array:
    # of a model that was never given weights, its shape and dtype
    return cast(Array, variable.get_value()) if isinstance(variable, nnx.Variable) else variable


def _state(flat: Mapping[Path, Array]) -> nnx.State[Any, Any]:
    return nnx.from_flat_state(list(flat.items()))
