"""Slim networks: pruned channels physically gone, from arrays and from the layers' static attributes."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.pruning.planning import KeptIndices, Plan, check_plan, index_arrays
from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import gather
from jaxprune.structure.model_state import FlatState, Parts, Path, merge_model, take_apart
from jaxprune.structure.verification import Attributes, find_misfit, remembered_sizes, slim_graph
from jaxprune.types import Array


def slim(model: nnx.Module, plan: Plan, *, attributes: Attributes | None = None) -> nnx.Module:
    """A smaller model without the pruned channels.

    It computes what the masked one does, wherever no normalisation runs across pruned channels; else, what a network
    built smaller does. Sizes that Flax's own layers remember are set. The new model is traced on shapes, and every
    operation must bring together the same channels as before.

    Args:
      model: the network the plan was made for; it is not changed.
      plan: what to keep.
      attributes: values for whole numbers that classes of your own remember, by dotted path, such as
        `{"blocks.0.attention.head_dim": 16}`.

    Returns:
      A new model.

    Raises:
      ValueError: if the plan was made for another network, or if code of the model still counts on an old size; names
        the attributes that hold one, with the values they need.
    """
    parts = take_apart(model)
    structure = check_plan(parts, plan)
    kept = {
        name: np.asarray(own, np.int32) for name, own in plan.kept.items() if len(own) < plan.widths[name]
    }
    graphdef = slim_graph(parts, structure, kept, attributes)
    _check_meaning(parts, structure, plan, kept, attributes or {}, graphdef)
    smaller = slim_state(structure, jax.device_get(parts.flat), plan.kept)  # on the host: nothing compiles
    return merge_model(graphdef, jax.tree.map(jnp.asarray, smaller), parts.rest)


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


def _check_meaning(
    parts: Parts,
    structure: Structure,
    plan: Plan,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes,
    graphdef: nnx.GraphDef[nnx.Module],
) -> None:
    """Traces the slim network on shapes and compares what meets what with the full one."""
    needed = _needed_attributes(structure, kept)
    missing = {path: value for path, value in needed.items() if path not in attributes}
    misfit = None if missing else find_misfit(parts, structure, kept, attributes, graph=graphdef)
    if misfit is None and not missing:
        return
    sizes = ", ".join(f"{name} {plan.widths[name]} -> {len(own)}" for name, own in kept.items())
    if not missing:
        changed = {plan.widths[name]: len(own) for name, own in kept.items()}
        found = remembered_sizes(parts, changed)
        missing = {path: value for path, value in found.items() if path not in attributes}
    advice = (
        "Replace the fixed number in its code (often in a reshape) by a shape read from the array, such as "
        "x.reshape(x.shape[0], -1)"
    )
    if missing:
        advice = (
            f"These attributes still hold an old size: pass slim(..., attributes={missing}), or: {advice}"
        )
    what = "attributes of its own classes must change" if misfit is None else misfit.reason
    raise ValueError(
        f"needs a network whose code follows the sizes of its arrays, but after slimming ({sizes}) {what}. {advice}."
    )


def _needed_attributes(structure: Structure, kept: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Attributes that must follow the widths of groups, with the values they need."""
    return {
        path: len(kept[name])
        for name, paths in structure.attributes.items()
        if name in kept
        for path in paths
    }
