"""Flax's own layers brought in line with their cut arrays: the sizes that a layer remembers next to its arrays.

One table says, per layer class, which arrays its attributes follow. Layers without a row (dropout, PReLU, `nnx.RNN`,
`nnx.WeightNorm`, `nnx.SpectralNorm`) remember no sizes of their own.
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

OuterKept: TypeAlias = Callable[[Path, int, int], int | None]
"""(path, axis, blocks) -> how many whole blocks of an axis made of so many equal blocks stay; None for all."""

Blocks: TypeAlias = Callable[[int], int]
"""Blocks of the last axis of a row's first array -> how many of them stay."""


class Row(NamedTuple):
    """What the attributes of one layer class follow."""

    layer: type[nnx.Module]
    arrays: tuple[str, ...]
    """Dotted names of arrays under the layer; of `a|b` the first that it has."""
    sizes: Callable[..., Mapping[str, Any]]
    """(layer, blocks, new shape of each array) -> attribute values."""


def resize_layers(model: nnx.Module, old_shapes: Shapes, new_shapes: Shapes, outer_kept: OuterKept) -> None:
    """Edits the static sizes of Flax's layers, and of their subclasses, in place.

    Arrays stay as they are: take the graph of the edited model (`split_model`) and merge it with the cut arrays. Sizes
    are read from the last axes, so layers stacked by `nnx.vmap` along leading axes are fine. A layer none of whose
    arrays changed is not touched, and shared variables count for every layer that holds them.

    Args:
      model: a copy that belongs to the caller.
      old_shapes: path -> shape of the arrays as they are in `model`.
      new_shapes: path -> shape after the cut; paths left out do not change.
      outer_kept: asked where an array's shape cannot tell: for convolution groups on the kernel's output axis and
        for normalisation groups on the scale's (or shift's) only axis.

    Example:
      >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> resize_layers(layer, {("kernel",): (4, 3)}, {("kernel",): (4, 2)}, lambda path, axis, blocks: None)
      >>> layer.out_features
      2
    """
    paths = {id(_walk(model, path)): path for path in old_shapes}
    shapes = {**old_shapes, **new_shapes}
    for layer in modules_of(model):
        for row in _rows_of(type(layer)):
            _resize(layer, row, paths, old_shapes, shapes, outer_kept)


@lru_cache(maxsize=1024)
def _rows_of(kind: type[nnx.Module]) -> tuple[Row, ...]:
    return tuple(row for row in _ROWS if issubclass(kind, row.layer))


def _resize(
    layer: nnx.Module,
    row: Row,
    paths: Mapping[int, Path],
    old_shapes: Shapes,
    new_shapes: Shapes,
    outer_kept: OuterKept,
) -> None:
    found = [_first_path(layer, names, paths) for names in row.arrays]
    known = [path for path in found if path is not None]
    if len(known) < len(found):
        return
    is_changed = [any(old_shapes[path] != new_shapes[path] for path in known)]

    def blocks(count: int) -> int:
        path = known[0]
        if (
            count == 1 or old_shapes[path][-1] == count
        ):  # one block is the axis; blocks of one are its indices
            return 1 if count == 1 else new_shapes[path][-1]
        kept = outer_kept(path, len(old_shapes[path]) - 1, count)
        is_changed.append(kept not in (None, count))  # other blocks of another length, side by side as long
        return count if kept is None else kept

    values = row.sizes(layer, blocks, *(new_shapes[path] for path in known))
    for name, value in values.items() if any(is_changed) else ():
        if getattr(layer, name, value) != value:
            setattr(layer, name, value)


def _first_path(layer: nnx.Module, names: str, paths: Mapping[int, Path]) -> Path | None:
    for name in names.split("|"):
        path = paths.get(id(_walk(layer, tuple(name.split(".")))))
        if path is not None:
            return path
    return None


def _walk(node: object, path: Path) -> object:
    """The object at a path of attributes and keys, or None."""
    for part in path:
        if isinstance(node, Mapping | Sequence):  # first, because a key may be called "keys"
            try:
                node = node[part]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                return None
        else:
            node = getattr(node, str(part), None)
    return node


def _like(old: Sequence[int], sizes: Shape) -> Sequence[int]:
    return type(old)(sizes[len(sizes) - len(old) :])  # type: ignore[call-arg]  # a tuple, or a list as users write it


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


_ROWS = (
    Row(nnx.Conv, ("kernel",), _conv),
    Row(nnx.ConvTranspose, ("kernel",), _conv_transpose),
    Row(nnx.Linear, ("kernel",), _linear),
    Row(nnx.LinearGeneral, ("kernel",), _linear_general),
    Row(nnx.Einsum, ("kernel",), _einsum),
    Row(nnx.Einsum, ("bias",), _einsum_bias),
    Row(nnx.Embed, ("embedding",), _embed),
    Row(nnx.BatchNorm, ("scale|bias|mean",), _norm),
    Row(nnx.LayerNorm, ("scale|bias",), _norm),
    Row(nnx.RMSNorm, ("scale",), _norm),
    Row(nnx.InstanceNorm, ("scale|bias",), _norm),
    Row(nnx.GroupNorm, ("scale|bias",), _group_norm),
    Row(nnx.MultiHeadAttention, ("query.kernel", "key.kernel", "out.kernel"), _attention),
    Row(nnx.LSTMCell, ("ii.kernel", "hi.kernel"), _cell),
    Row(nnx.OptimizedLSTMCell, ("dense_i.kernel", "dense_h.kernel"), _cell),
    Row(nnx.GRUCell, ("dense_i.kernel", "dense_h.kernel"), _cell),
    Row(nnx.SimpleCell, ("dense_i.kernel", "dense_h.kernel"), _cell),
    Row(nnx.LoRA, ("lora_a", "lora_b"), _lora),
)
