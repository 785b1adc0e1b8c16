"""Layers of Linen and Equinox follow the sizes of their arrays.

A Linen layer holds its width as an attribute, and refuses arrays of another size; while a network runs here, such
attributes are those of the arrays that it is given. An Equinox layer holds sizes beside its arrays, which are set in
the new tree. Neither library is imported: a network that uses one has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax

Sizes = Mapping[str, Any]
"""Name of an attribute -> what it has to be: a size, or a tuple of sizes."""

_Layer = Any
_Arrays = Mapping[str, Any]
"""The parameters of a Linen layer, by name."""


def with_sizes_of_arrays(found: dict[str, dict[str, Any]] | None = None) -> AbstractContextManager[Any]:
    """Returns a context in which every layer of Linen has the sizes of the arrays that it is given.

    Args:
      found: where to note sizes that were others: path of the layer -> attribute -> size.

    Example:
      >>> with with_sizes_of_arrays():
      ...     pass
    """
    linen = sys.modules.get("flax.linen")
    if linen is None:
        return nullcontext()
    rules = [(getattr(linen, name), rule) for name, rule in _LINEN.items() if hasattr(linen, name)]

    def call(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:  # noqa: ANN401
        layer = context.module
        rule = next((rule for kind, rule in rules if isinstance(layer, kind)), None)
        if rule is None or context.method_name not in ("setup", "__call__"):
            return next_call(*args, **kwargs)
        arrays = jax.tree.map(lambda leaf: leaf, linen.meta.unbox(layer.variables.get("params", {})))
        sizes = rule(layer, arrays, args) if arrays else {}
        changed = {name: size for name, size in sizes.items() if not _is_same(getattr(layer, name), size)}
        if changed and found is not None:
            found[".".join(map(str, layer.path))] = changed
        with _set(layer, changed):
            return next_call(*args, **kwargs)

    return linen.intercept_methods(call)


def sizes_from_arrays(tree: Any) -> Any:  # noqa: ANN401
    """Returns a new pytree in which layers of Equinox store the sizes of their arrays.

    Args:
      tree: fresh from `jax.tree.unflatten`; its layers are changed in place.
    """
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return tree
    for layer in _modules_in(tree, equinox.Module):
        for kind in type(layer).__mro__:
            if kind.__module__.startswith("equinox.nn") and kind.__name__ in _EQUINOX:
                for name, size in _EQUINOX[kind.__name__](layer).items():
                    if not _is_same(getattr(layer, name), size):
                        object.__setattr__(layer, name, size)
                break
    return tree


def tied_values(paths: Iterable[tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Returns (query, value) kernels of Linen's attention layers, whose heads are as long: one attribute says both.

    Args:
      paths: of all arrays of a network.

    Example:
      >>> import flax.linen
      >>> tied_values([("a", name, "kernel") for name in ("query", "key", "value", "out")])
      [(('a', 'query', 'kernel'), ('a', 'value', 'kernel'))]
    """
    every = set(paths) if "flax.linen" in sys.modules else set()
    ends = [(name, "kernel") for name in ("query", "key", "value", "out")]
    owners = sorted({path[:-2] for path in every if path[-2:] == ends[0]}, key=str)
    return [
        ((*owner, *ends[0]), (*owner, *ends[2]))
        for owner in owners
        if all((*owner, *end) in every for end in ends)
    ]


@contextmanager
def _set(layer: _Layer, sizes: Sizes) -> Iterator[None]:
    """Sets attributes of a frozen layer for a while."""
    before = {name: getattr(layer, name) for name in sizes}
    try:
        for name, size in sizes.items():
            object.__setattr__(layer, name, size)
        yield
    finally:
        for name, size in before.items():
            object.__setattr__(layer, name, size)


def _is_same(old: object, new: object) -> bool:
    """Whether an attribute says the same as a size; "scalar" means something else than a size and stays."""
    if isinstance(old, str):
        return True
    pair = [tuple(each) if isinstance(each, list | tuple) else (each,) for each in (old, new)]
    return pair[0] == pair[1]


def _shape(arrays: _Arrays, *names: str) -> tuple[int, ...]:
    """Returns the shape of an array of a layer, () if it has none."""
    value: Any = arrays
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            return ()
        value = value[name]
    return tuple(getattr(value, "shape", ()))


def _dense(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    kernel = _shape(arrays, "kernel")
    return {"features": kernel[-1]} if kernel else {}


def _dense_general(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    kernel = _shape(arrays, "kernel")
    count = 1 if isinstance(layer.features, int) else len(layer.features)
    sizes = kernel[len(kernel) - count :]
    return {"features": sizes[0] if isinstance(layer.features, int) else sizes} if kernel else {}


def _conv(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    kernel = _shape(arrays, "kernel")
    if not kernel:
        return {}
    is_grouped = layer.feature_group_count > 1 and args and args[0].shape[-1] % kernel[-2] == 0
    groups = {"feature_group_count": args[0].shape[-1] // kernel[-2]} if is_grouped else {}
    return {"features": kernel[-1], **groups}


def _conv_transpose(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    kernel = _shape(arrays, "kernel")
    return {"features": kernel[-2 if layer.transpose_kernel else -1]} if kernel else {}


def _embed(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    table = _shape(arrays, "embedding")
    return {"num_embeddings": table[0], "features": table[-1]} if table else {}


def _einsum(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    kernel = _shape(arrays, "kernel")
    return {"shape": kernel} if kernel else {}


def _attention(layer: _Layer, arrays: _Arrays, args: tuple[Any, ...]) -> Sizes:
    query, out = _shape(arrays, "query", "kernel"), _shape(arrays, "out", "kernel")
    if not query or not out:
        return {}
    sizes = {"qkv_features": query[-2] * query[-1], "out_features": out[-1]}
    # without an attribute the layer takes the size of its input
    needed = {name: n for name, n in sizes.items() if getattr(layer, name) is not None or n != query[-3]}
    return {"num_heads": query[-2], **needed}


_LINEN: Mapping[str, Callable[[_Layer, _Arrays, tuple[Any, ...]], Sizes]] = {
    "Dense": _dense,
    "DenseGeneral": _dense_general,
    "Conv": _conv,
    "ConvLocal": _dense,
    "ConvTranspose": _conv_transpose,
    "Embed": _embed,
    "Einsum": _einsum,
    "MultiHeadDotProductAttention": _attention,
}
"""Class of Linen -> the attributes that follow its arrays."""


def _weight(layer: _Layer, name: str = "weight") -> tuple[int, ...]:
    """Returns the shape of a weight of a layer, () if it has none."""
    return tuple(getattr(getattr(layer, name, None), "shape", ()))


def _equinox_linear(layer: _Layer) -> Sizes:
    weight = _weight(layer)
    return {"in_features": weight[1], "out_features": weight[0]} if len(weight) == 2 else {}


def _equinox_conv(layer: _Layer) -> Sizes:
    weight = _weight(layer)
    if not weight or type(layer).__name__.startswith("ConvTranspose"):
        return {}
    is_depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    groups = weight[0] // (layer.out_channels // layer.groups) if is_depthwise else layer.groups
    return {"in_channels": weight[1] * groups, "groups": groups, "out_channels": weight[0]}


def _equinox_norm(layer: _Layer) -> Sizes:
    weight = _weight(layer) or _weight(layer, "bias")
    return {"shape": weight} if weight else {}


def _equinox_group_norm(layer: _Layer) -> Sizes:
    weight = _weight(layer)
    return {"channels": weight[0]} if weight else {}


def _equinox_batch_norm(layer: _Layer) -> Sizes:
    weight = _weight(layer)
    return {"input_size": weight[0]} if weight else {}


def _equinox_embedding(layer: _Layer) -> Sizes:
    weight = _weight(layer)
    return {"num_embeddings": weight[0], "embedding_size": weight[1]} if len(weight) == 2 else {}


def _equinox_cell(layer: _Layer) -> Sizes:
    inputs, hidden = _weight(layer, "weight_ih"), _weight(layer, "weight_hh")
    return {"input_size": inputs[1], "hidden_size": hidden[1]} if inputs and hidden else {}


_EQUINOX: Mapping[str, Callable[[_Layer], Sizes]] = {
    "Linear": _equinox_linear,
    "Conv": _equinox_conv,
    "LayerNorm": _equinox_norm,
    "RMSNorm": _equinox_norm,
    "GroupNorm": _equinox_group_norm,
    "BatchNorm": _equinox_batch_norm,
    "Embedding": _equinox_embedding,
    "GRUCell": _equinox_cell,
    "LSTMCell": _equinox_cell,
}
"""Class of Equinox -> the attributes that follow its arrays."""


def _modules_in(tree: Any, kind: type[Any]) -> Iterator[Any]:  # noqa: ANN401
    """Yields every module in a pytree, outer ones first."""
    if isinstance(tree, kind):
        yield tree
        parts = list(vars(tree).values())
    elif isinstance(tree, Mapping):
        parts = list(tree.values())
    else:
        parts = list(tree) if isinstance(tree, list | tuple) else []
    for part in parts:
        yield from _modules_in(part, kind)
