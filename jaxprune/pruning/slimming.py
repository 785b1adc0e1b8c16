"""Slim networks: pruned channels physically gone, from arrays and from the layers' static attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.pruning.groups import Structure
from jaxprune.pruning.indices import KeptIndices, gather, index_arrays
from jaxprune.pruning.planning import Plan, check_plan
from jaxprune.pruning.program import trace_program
from jaxprune.pruning.states import FlatState, Mode, Path, merge_model, split_model
from jaxprune.types import Array


def slim(model: nnx.Module, plan: Plan) -> nnx.Module:
    """A smaller model without the pruned channels, computing what the masked one does.

    Args:
      model: the network the plan was made for; it is not changed.
      plan: what to keep.

    Returns:
      A new model: arrays gathered, sizes in Flax's own layers set, and its forward pass checked on shapes.

    Raises:
      ValueError: if the plan was made for another network, or if code of the model still counts on an old size.
    """
    structure = check_plan(model, plan)
    _, flat, rest = split_model(model)
    smaller = slim_state(structure, jax.device_get(flat), plan.kept)  # on the host: nothing compiles
    graphdef = slim_graphdef(model, structure, {name: len(kept) for name, kept in plan.kept.items()})
    result = merge_model(graphdef, jax.tree.map(jnp.asarray, smaller), rest)
    _check_forward(result, structure, plan)
    return result


def slim_state(structure: Structure, flat: Mapping[Path, Array], kept: KeptIndices) -> FlatState:
    """The arrays of the slim network: gathers only, so jit and vmap over many candidates are fine.

    Args:
      structure: groups of the full network.
      flat: path -> array; anything of the same paths and shapes, optimizer moments too. Other paths pass.
      kept: group name -> kept indices, NumPy or (traced) JAX; groups left out stay whole.

    Returns:
      Path -> smaller array, new arrays also where nothing is cut under `jit`.

    Raises:
      ValueError: for indices that do not fit the groups.
    """
    indices = index_arrays(structure, kept)
    return {
        path: gather(array, structure.layouts[path], indices) if path in structure.layouts else array
        for path, array in flat.items()
    }


def slim_graphdef(
    model: nnx.Module, structure: Structure, widths: Mapping[str, int], mode: Mode = "as_is"
) -> nnx.GraphDef[nnx.Module]:
    """The static graph of the slim network: sizes of Flax's own layers set to `widths`.

    Args:
      model: the full network; it is not changed.
      structure: its groups.
      widths: group name -> kept channels; groups left out stay whole.
      mode: as in `split_model`.

    Returns:
      A graph that merges with what `slim_state` returns; equal widths give equal graphs.
    """
    copy = merge_model(*split_model(model))
    for key, module in nnx.iter_modules(copy):
        path = cast(Path, key)
        shapes = {
            name: _shape(structure, (*path, name), widths) for name in ("kernel", "scale", "bias", "mean")
        }
        _resize(module, {name: shape for name, shape in shapes.items() if shape is not None})
    return split_model(copy, mode)[0]


def _shape(structure: Structure, path: Path, widths: Mapping[str, int]) -> tuple[int, ...] | None:
    layout = structure.layouts.get(path)
    if layout is None:
        return None
    shape = []
    for axis in layout:
        length = 1
        for name, size in axis:
            length *= size if name is None else widths.get(name, size)
        shape.append(length)
    return tuple(shape)


def _resize(module: nnx.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Sets the attributes of a Flax layer that repeat the sizes of its arrays."""
    kernel = shapes.get("kernel")
    if isinstance(module, nnx.Conv) and kernel is not None:
        module.kernel_shape = kernel
        module.in_features, module.out_features = kernel[-2] * module.feature_group_count, kernel[-1]
    elif isinstance(module, nnx.ConvTranspose) and kernel is not None:
        module.kernel_shape = kernel
        module.in_features, module.out_features = kernel[:-3:-1] if module.transpose_kernel else kernel[-2:]
    elif isinstance(module, nnx.Linear) and kernel is not None:
        module.in_features, module.out_features = kernel
    elif isinstance(module, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm):
        vectors = [shape for name, shape in shapes.items() if name != "kernel" and len(shape) == 1]
        if vectors:
            module.num_features = vectors[0][0]


def _check_forward(smaller: nnx.Module, structure: Structure, plan: Plan) -> None:
    """Runs the slim network on shapes and compares what comes out with the full one."""
    graphdef, flat, rest = split_model(smaller, "evaluation")
    try:
        program = trace_program(graphdef, flat, rest, structure.example)
    except ValueError as error:
        sizes = ", ".join(f"{name} {plan.widths[name]} -> {len(kept)}" for name, kept in plan.kept.items())
        cause = error.__cause__
        raise ValueError(
            f"needs a network whose code follows the sizes of its arrays, but after slimming ({sizes}) it failed "
            f"with {type(cause).__name__}: {cause}. Replace the fixed number in its code (often in a reshape) by "
            "a shape read from the array, such as x.reshape(x.shape[0], -1)."
        ) from error
    full, found = ([run.shapes[number] for number in run.outputs] for run in (structure.program, program))
    if full != found:
        raise ValueError(
            f"needs a slim network with the outputs of the full one, {full}, got {found}. "
            f"A fixed size in its code regroups what was pruned; ignore these groups: {[*plan.kept]}."
        )
