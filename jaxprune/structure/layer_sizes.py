"""Adjusts the sizes that layers store beside their arrays, after the arrays have been cut.

One table lists, for each of Flax's layer classes, which arrays decide its attributes. Layers without an entry (dropout,
PReLU, `nnx.RNN`, `nnx.WeightNorm`, `nnx.SpectralNorm`) store no sizes of their own. For sizes that classes of the user
store see `own_sizes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

from flax import nnx

from jaxprune.structure.model_state import Path, modules_of

Shape: TypeAlias = tuple[int, ...]

Shapes: TypeAlias = Mapping[Path, Shape]

BlocksKept: TypeAlias = Callable[[Path, int, int], int | None]
"""(path, axis, number of equal blocks along the axis) -> how many whole blocks stay; None for all."""

Blocks: TypeAlias = Callable[[int], int]
"""Number of equal blocks along the last axis of a rule's first array -> how many of them stay."""


class SizeRule(NamedTuple):
    """Which arrays decide the sizes that one class of layers stores."""

    layer: type[nnx.Module]
    arrays: tuple[str, ...]
    """Dotted names of arrays under the layer; `a|b` stands for the first of them that the layer has."""
    sizes: Callable[..., Mapping[str, Any]]
    """(layer, blocks, new shape of each array) -> attribute values."""


def resize_layers(model: nnx.Module, old_shapes: Shapes, new_shapes: Shapes, blocks_kept: BlocksKept) -> None:
    """Edits, in place, the sizes that Flax's layers (and their subclasses) store.

    The arrays stay as they are: take the graph of the edited model (`split_model`) and merge it with the cut arrays.
    Sizes are read from the last axes, so layers stacked by `nnx.vmap` along leading axes are handled too. A layer whose
    arrays did not change is not edited, and shared variables count for every layer that holds them.

    Args:
      model: a copy that belongs to the caller.
      old_shapes: path -> shape of each array in `model`.
      new_shapes: path -> shape after the cut; paths left out do not change.
      blocks_kept: asked where an array's shape cannot tell how many blocks stay: for groups of a convolution, on the
        kernel's output axis, and for groups of a normalisation, on the only axis of its scale (or shift).

    Example:
      >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> resize_layers(layer, {("kernel",): (4, 3)}, {("kernel",): (4, 2)}, lambda path, axis, blocks: None)
      >>> layer.out_features
      2
    """
    path_of = {id(value_at(model, path)): path for path in old_shapes}
    new_shapes = {**old_shapes, **new_shapes}
    for layer in modules_of(model):
        for rule in _rules_of(type(layer)):
            _resize(layer, rule, path_of, old_shapes, new_shapes, blocks_kept)


@lru_cache(maxsize=1024)
def _rules_of(layer: type[nnx.Module]) -> tuple[SizeRule, ...]:
    return tuple(rule for rule in _RULES if issubclass(layer, rule.layer))


def _resize(
    layer: nnx.Module,
    rule: SizeRule,
    path_of: Mapping[int, Path],
    old_shapes: Shapes,
    new_shapes: Shapes,
    blocks_kept: BlocksKept,
) -> None:
    """Applies a rule to a layer; `path_of` maps the identity of a variable to its path."""
    paths: list[Path] = []
    for names in rule.arrays:
        variables = [id(value_at(layer, tuple(name.split(".")))) for name in names.split("|")]
        paths += [path_of[variable] for variable in variables if variable in path_of][:1]
    if len(paths) < len(rule.arrays):
        return
    is_changed = any(old_shapes[path] != new_shapes[path] for path in paths)

    def blocks(count: int) -> int:
        nonlocal is_changed
        old_shape, new_shape = old_shapes[paths[0]], new_shapes[paths[0]]
        if count == 1:
            return 1
        if old_shape[-1] == count:  # every block is a single index
            return new_shape[-1]
        num_kept = blocks_kept(paths[0], len(old_shape) - 1, count)
        # Fewer but longer blocks may fill an axis of the same length.
        is_changed |= num_kept not in (None, count)
        return count if num_kept is None else num_kept

    sizes = rule.sizes(layer, blocks, *(new_shapes[path] for path in paths))
    for name, size in sizes.items() if is_changed else ():
        if getattr(layer, name, size) != size:
            object.__setattr__(layer, name, size)  # Flax would ask again whether it is an array


def value_at(root: object, path: Path) -> object:
    """Returns the object at a path of attributes and keys, or None.

    Args:
      root: a module, or anything that it holds.
      path: names of attributes, keys, and positions in sequences.

    Example:
      >>> value_at({"sizes": (3, 4)}, ("sizes", 1)), value_at({}, ("sizes",))
      (4, None)
    """
    value: Any = root
    for part in path:
        if isinstance(value, Mapping):  # first, because a key may be called "keys"
            value = value.get(part)
        elif isinstance(value, Sequence) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        else:
            value = getattr(value, str(part), None)
    return value


def _like(old: Sequence[int], shape: Shape) -> Sequence[int]:
    """Returns the last sizes of a shape, as many as `old` has, as a list where the user gave a list."""
    last = shape[len(shape) - len(old) :]
    return list(last) if isinstance(old, list) else last


def _conv(layer: nnx.Conv, blocks: Blocks, kernel: Shape) -> Mapping[str, Any]:
    groups = blocks(layer.feature_group_count)
    return {
        "kernel_shape": _like(layer.kernel_shape, kernel),
        "feature_group_count": groups,
        "in_features": kernel[-2] * groups,
        "out_features": kernel[-1],
    }


def _conv_transpose(layer: nnx.ConvTranspose, blocks: Blocks, kernel: Shape) -> Mapping[str, Any]:
    before, after = kernel[:-3:-1] if layer.transpose_kernel else kernel[-2:]
    return {
        "kernel_shape": _like(layer.kernel_shape, kernel),
        "in_features": before,
        "out_features": after,
    }


def _linear(layer: nnx.Linear, blocks: Blocks, kernel: Shape) -> Mapping[str, Any]:
    return {"in_features": kernel[-2], "out_features": kernel[-1]}


def _linear_general(layer: nnx.LinearGeneral, blocks: Blocks, kernel: Shape) -> Mapping[str, Any]:
    num_out = len(layer.out_features)
    num_in = len(layer.in_features)
    sizes = kernel[: len(kernel) - num_out]
    batch = sizes[: len(sizes) - num_in]
    return {
        "in_features": sizes[len(sizes) - num_in :],
        "out_features": kernel[len(kernel) - num_out :],
        "batch_axis": type(layer.batch_axis)(
            zip(layer.batch_axis, batch[len(batch) - len(layer.batch_axis) :], strict=True)
        ),
    }


def _einsum(layer: nnx.Einsum, blocks: Blocks, kernel: Shape) -> Mapping[str, Any]:
    return {"kernel_shape": _like(layer.kernel_shape, kernel)}


def _einsum_bias(layer: nnx.Einsum, blocks: Blocks, bias: Shape) -> Mapping[str, Any]:
    return {"bias_shape": _like(layer.bias_shape or bias, bias)}


def _embed(layer: nnx.Embed, blocks: Blocks, embedding: Shape) -> Mapping[str, Any]:
    return {"num_embeddings": embedding[-2], "features": embedding[-1]}


def _norm(layer: nnx.Module, blocks: Blocks, vector: Shape) -> Mapping[str, Any]:
    return {"num_features": vector[-1]}


def _group_norm(layer: nnx.GroupNorm, blocks: Blocks, vector: Shape) -> Mapping[str, Any]:
    groups = blocks(layer.num_groups)
    return {"num_features": vector[-1], "num_groups": groups, "group_size": vector[-1] // groups}


def _attention(
    layer: nnx.MultiHeadAttention, blocks: Blocks, query: Shape, key: Shape, out: Shape
) -> Mapping[str, Any]:
    return {
        "in_features": query[-3],
        "in_kv_features": key[-3],
        "out_features": out[-1],
        "num_heads": query[-2],
        "num_kv_heads": key[-2],
        "head_dim": query[-1],
        "qkv_features": prod(query[-2:]),
    }


def _cell(layer: nnx.Module, blocks: Blocks, inputs: Shape, hidden: Shape) -> Mapping[str, Any]:
    return {"in_features": inputs[-2], "hidden_features": hidden[-2]}


def _lora(layer: nnx.LoRA, blocks: Blocks, first: Shape, second: Shape) -> Mapping[str, Any]:
    return {"in_features": first[-2], "out_features": second[-1]}


_RULES = (
    SizeRule(nnx.Conv, ("kernel",), _conv),
    SizeRule(nnx.ConvTranspose, ("kernel",), _conv_transpose),
    SizeRule(nnx.Linear, ("kernel",), _linear),
    SizeRule(nnx.LinearGeneral, ("kernel",), _linear_general),
    SizeRule(nnx.Einsum, ("kernel",), _einsum),
    SizeRule(nnx.Einsum, ("bias",), _einsum_bias),
    SizeRule(nnx.Embed, ("embedding",), _embed),
    SizeRule(nnx.BatchNorm, ("scale|bias|mean",), _norm),
    SizeRule(nnx.LayerNorm, ("scale|bias",), _norm),
    SizeRule(nnx.RMSNorm, ("scale",), _norm),
    SizeRule(nnx.InstanceNorm, ("scale|bias",), _norm),
    SizeRule(nnx.GroupNorm, ("scale|bias",), _group_norm),
    SizeRule(nnx.MultiHeadAttention, ("query.kernel", "key.kernel", "out.kernel"), _attention),
    SizeRule(nnx.LSTMCell, ("ii.kernel", "hi.kernel"), _cell),
    SizeRule(nnx.OptimizedLSTMCell, ("dense_i.kernel", "dense_h.kernel"), _cell),
    SizeRule(nnx.GRUCell, ("dense_i.kernel", "dense_h.kernel"), _cell),
    SizeRule(nnx.SimpleCell, ("dense_i.kernel", "dense_h.kernel"), _cell),
    SizeRule(nnx.LoRA, ("lora_a", "lora_b"), _lora),
)
