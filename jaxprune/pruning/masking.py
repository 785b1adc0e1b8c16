"""Masked networks: the same shapes, pruned channels zeroed, and held at zero while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune.pruning.planning import KeptIndices, Plan, check_plan, index_arrays
from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import keep_mask
from jaxprune.structure.model_state import FlatState, Path, merge_model, take_apart
from jaxprune.types import Array


def mask(model: nnx.Module, plan: Plan) -> nnx.Module:
    """A copy of the model whose pruned channels are zero everywhere they are made and read.

    Zeroed are the producing kernels and biases, scale, shift and statistics of a normalisation, and the consuming
    rows. The last make the masked network compute exactly what the slim one does, whatever the activation does to
    a zero.

    Args:
      model: the network the plan was made for; it is not changed.
      plan: what to keep.

    Returns:
      A new model of the same shapes.

    Raises:
      ValueError: if the plan was made for another network.
    """
    parts = take_apart(model)
    structure = check_plan(parts, plan)
    masked = apply_masks(
        jax.device_get(parts.flat), channel_masks(structure, plan.kept)
    )  # on the host: nothing compiles
    return merge_model(parts.graphdef, jax.tree.map(jnp.asarray, masked), parts.rest)


def channel_masks(structure: Structure, kept: KeptIndices) -> dict[Path, Array]:
    """Boolean arrays, True where an entry stays, for every array of the network.

    Args:
      structure: groups of the network.
      kept: group name -> kept indices (traced arrays are fine: jit and vmap over candidates); groups left out
        stay whole.

    Returns:
      Path -> bool array of the array's shape, for parameters and batch statistics.

    Raises:
      ValueError: for indices that do not fit the groups.
    """
    indices = index_arrays(structure, kept)
    return {
        path: keep_mask(layout, structure.shapes[path], indices) for path, layout in structure.layouts.items()
    }


def apply_masks(flat: Mapping[Path, Array], masks: Mapping[Path, Array]) -> FlatState:
    """The arrays with zeros where a mask is False; arrays without a mask pass.

    Example:
      >>> apply_masks({("w",): jnp.ones(2)}, {("w",): jnp.array([True, False])})[("w",)]
      Array([1., 0.], dtype=float32)
    """
    return {path: _zeroed(array, masks[path]) if path in masks else array for path, array in flat.items()}


def keep_masked(
    masks: Mapping[Path, Array], optimizer: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Holds masked parameters at exactly zero, under any optimizer, momentum and weight decay.

    Gradients of masked entries are dropped before `optimizer`, so that they reach no norm and no momentum, and its
    updates are dropped after it. Without `optimizer` it only drops updates: put it last in an `optax.chain`.

    Args:
      masks: from `channel_masks`.
      optimizer: any Optax transformation.

    Returns:
      An Optax transformation for parameters in whatever tree they come, as long as its paths are the model's:
      a flat dictionary path -> array, or an NNX state.

    Raises:
      ValueError: at the first `update`, if no parameter has a mask.

    Example:
      >>> held = keep_masked({("w",): jnp.array([True, False])}, optax.sgd(1.0))
      >>> parameters = {("w",): jnp.array([1.0, 0.0])}
      >>> updates, _ = held.update({("w",): jnp.ones(2)}, held.init(parameters), parameters)
      >>> updates[("w",)]
      Array([-1.,  0.], dtype=float32)
    """
    inner = optax.identity() if optimizer is None else optimizer

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        changes, state = inner.update(_masked(updates, masks), state, params)
        return _masked(changes, masks), state

    return optax.GradientTransformation(inner.init, update)


def _masked(tree: optax.Updates, masks: Mapping[Path, Array]) -> optax.Updates:
    leaves, definition = jax.tree_util.tree_flatten_with_path(tree)
    found = 0
    result = []
    for keys, leaf in leaves:
        held = _lookup(keys, masks)
        found += held is not None
        result.append(leaf if held is None else _zeroed(leaf, held))
    if masks and not found:
        paths = ", ".join(jax.tree_util.keystr(keys) for keys, _ in leaves[:3])
        raise ValueError(
            f"needs updates whose paths are those of the masks, such as {next(iter(masks))}, got {paths}. "
            "Use the flat dictionary of split_model or an nnx.State of the same model."
        )
    return jax.tree_util.tree_unflatten(definition, result)


def _zeroed(array: Array, held: Array) -> Array:
    if isinstance(array, np.ndarray) and isinstance(held, np.ndarray):
        return np.where(held, array, np.zeros_like(array))
    return jnp.where(held, array, jnp.zeros_like(array))


def _lookup(keys: tuple[Any, ...], masks: Mapping[Path, Array]) -> Array | None:
    """The mask of a leaf: its tree path without the wrappers that NNX variables add at the end."""
    path: list[str | int] = []
    for key in keys:
        name = getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))
        path.extend(name if isinstance(name, tuple) else (name,) if isinstance(name, str | int) else ())
    while path:
        if tuple(path) in masks:
            return masks[tuple(path)]
        path.pop()
    return None
