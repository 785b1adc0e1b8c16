"""A network that is a pure function of its parameters, as the NNX module that everything else takes.

Linen, Equinox and raw JAX have a pytree of parameters and a function `fn(params, *inputs)`. Here every array of the
pytree becomes a variable at its path, so that the network is traced, observed, planned and cut like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.nets.foreign_layers import sizes_from_arrays, with_sizes_of_arrays
from jaxprune.nets.inputs import Outputs
from jaxprune.text import shortened

Params = Any
"""Any pytree with arrays: a dict, a Linen `FrozenDict`, an Equinox module."""

_STATISTICS = ("batch_stats",)
"""Collections of Linen that hold no parameters."""


@dataclass(frozen=True)
class _Static:
    """What of a network is no array; equal for equal functions, trees and values."""

    fn: Callable[..., Any]
    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[Any, ...]
    """Path of each array, or a value that is no array."""
    is_array: tuple[bool, ...]


class FunctionNetwork(nnx.Module):
    """A network that is a pure function of its parameters, for everything that takes an NNX network.

    `jp.observe`, `jp.plan`, `jp.mask`, `jp.slim` and `jp.count_macs` take it like any module; what mask and slim return
    has the smaller parameters as `.parameters`. Layers of Linen and Equinox follow the sizes of their arrays; numbers
    that the function's own code holds do not.

    Args:
      fn: `fn(params, *inputs)`, pure and in evaluation mode: `model.apply` of a Linen module, or
        `lambda model, x: jax.vmap(model)(x)` for an Equinox one.
      params: pytree of arrays; other leaves, such as activation functions, are kept as they are. Every array of floats
        is a parameter, except those of a Linen collection `batch_stats`.

    Raises:
      TypeError: if `fn` is not callable.
      ValueError: if `params` holds no array, or two of one path.

    Example:
      >>> network = FunctionNetwork(lambda params, x: x @ params["w"], {"w": jnp.ones((3, 2))})
      >>> network(jnp.ones((4, 3))).shape, network.parameters["w"].shape
      ((4, 2), (3, 2))
    """

    def __init__(self, fn: Callable[..., Any], params: Params) -> None:
        if not callable(fn):
            raise TypeError(f"needs a function fn(params, *inputs), got {type(fn).__name__}.")
        pairs, treedef = jax.tree_util.tree_flatten_with_path(params)
        names = _paths_of([path for path, _ in pairs])
        is_array = tuple(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for _, leaf in pairs)
        if not any(is_array):
            raise ValueError(
                f"needs params that hold arrays, got {shortened(repr(params), 60)}. Pass the parameters first: "
                "(fn, params, *inputs)."
            )
        leaves = []
        for (_, leaf), name, is_one in zip(pairs, names, is_array, strict=True):
            leaves.append(name if is_one else leaf)
            if is_one:
                is_trained = name[0] not in _STATISTICS and jnp.issubdtype(leaf.dtype, jnp.inexact)
                self._put(name, nnx.Param(leaf) if is_trained else nnx.BatchStat(leaf))
        self.static_parts = _Static(fn, treedef, tuple(leaves), is_array)

    def __call__(self, *args: Any, **kwargs: Any) -> Outputs:  # noqa: ANN401
        """Returns `fn(params, *args, **kwargs)`."""
        with with_sizes_of_arrays():
            return self.static_parts.fn(self.parameters, *args, **kwargs)

    @property
    def parameters(self) -> Params:
        """The parameters, in the pytree that was given."""
        static = self.static_parts
        leaves = [
            self._get(leaf) if is_one else leaf
            for leaf, is_one in zip(static.leaves, static.is_array, strict=True)
        ]
        return sizes_from_arrays(jax.tree.unflatten(static.treedef, leaves))

    def as_function(self) -> Callable[..., Any]:
        """Returns `fn(params, *inputs)` for parameters of any size: layers of Linen have the sizes of their arrays."""
        fn = self.static_parts.fn

        @wraps(fn)
        def with_own_sizes(params: Params, *args: Any, **kwargs: Any) -> Outputs:  # noqa: ANN401
            with with_sizes_of_arrays():
                return fn(params, *args, **kwargs)

        return with_own_sizes

    def _put(self, path: tuple[str, ...], variable: nnx.Variable[Any]) -> None:
        """Stores a variable as an attribute of nested modules."""
        module: Any = self
        for name in path[:-1]:
            if not hasattr(module, name):
                setattr(module, name, _Node())
            module = getattr(module, name)
        setattr(module, path[-1], variable)

    def _get(self, path: tuple[str, ...]) -> Any:  # noqa: ANN401
        """Returns the array at a path."""
        value: Any = self
        for name in path:
            value = getattr(value, name)
        return value.get_raw_value()


class _Node(nnx.Module):
    """A branch of the tree of parameters."""


def _paths_of(keys: list[tuple[Any, ...]]) -> list[tuple[str, ...]]:
    """Returns the path of each leaf as names of attributes, apart from those that every module has."""
    taken = {*dir(FunctionNetwork), "static_parts"}
    paths = []
    for path in keys:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        paths.append(tuple(f"{part}_" if part in taken else part for part in parts) or ("array",))
    branches = {path[:end] for path in paths for end in range(1, len(path))}
    if len(set(paths)) < len(paths) or branches & set(paths):
        raise ValueError(
            "needs params whose keys differ as text, got several arrays of one path. Rename keys such as 1 and '1'."
        )
    return paths
