"""Masks networks: keeps all shapes, zeroes pruned channels, and holds them at zero during training."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune.pruning.plan_checks import KeptIndices, index_arrays
from jaxprune.pruning.planning import Plan, check_plan
from jaxprune.pruning.tree_paths import find_places, names_of
from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import keep_mask
from jaxprune.structure.model_state import (
    FlatState,
    Path,
    dotted,
    is_abstract,
    merge_model,
    put_beside,
    take_apart,
)
from jaxprune.types import Array


def mask(model: nnx.Module, plan: Plan) -> nnx.Module:
    """Returns a copy of the model in which pruned channels are zero wherever they are made and read.

    Zeroed are the kernels and biases that make the channels, the scale, shift and statistics of normalisations, and
    the rows of the kernels that read the channels. Because these rows are zero, the masked network computes exactly
    what the slim one does, whatever an activation function makes of a zero. (A layer norm or the like over activations
    counts their zeros; see `slim`.) Weights that are divided by a norm of themselves are normalised over the channels
    that stay, as in the slim network; weights of which a mean is taken cannot be masked.

    Args:
      model: the network that the plan was made for; it is not changed. One without weights is returned as it is.
      plan: which channels to keep.

    Returns:
      A new model of the same shapes, whose arrays are on the same devices, split in the same way.

    Raises:
      ValueError: if the plan was made for another network, or if the network computes weights in a way that sees zeros
        (with a mean over pruned channels, say), so that the masked network would not compute what the slim one does.
    """
    parts = take_apart(model)
    masks = channel_masks(check_plan(parts, plan), plan.kept)
    if is_abstract(parts.flat):
        return merge_model(*parts[:3])
    # NumPy masks, and device_put moves: jnp.asarray would compile a program for each new shape.
    masked = apply_masks(jax.device_get(parts.flat), masks)
    return merge_model(parts.graphdef, put_beside(masked, parts.flat), parts.rest)


def channel_masks(structure: Structure, kept: KeptIndices) -> dict[Path, Array]:
    """Returns boolean arrays, True where an entry stays, for every array of the network.

    Args:
      structure: groups of the network.
      kept: group name -> kept indices; groups left out stay whole. Traced arrays are allowed, for jit and vmap over
        candidates.

    Returns:
      Path -> bool array of the array's shape, for parameters and batch statistics.

    Raises:
      ValueError: for indices that do not fit the groups, and for weights that see zeros (see `mask`).
    """
    indices = index_arrays(structure, kept)
    check_maskable(structure, {name: len(channels) for name, channels in indices.items()})
    return {
        path: keep_mask(layout, structure.shapes[path], indices) for path, layout in structure.layouts.items()
    }


def check_maskable(structure: Structure, counts: Mapping[str, int]) -> None:
    """Checks that zeros in place of channels give the weights that the slim network has.

    Args:
      structure: groups of the network.
      counts: group name -> number of kept channels; groups left out stay whole.

    Raises:
      ValueError: if the network takes a mean over weights of pruned channels, say; names groups and source lines.
    """
    problems = [
        f"group {name}, over which {dotted(weight.path)} is computed in {weight.location}"
        for name, weights in structure.normalised.items()
        for weight in weights
        if weight.sees_zeros and counts.get(name, structure.widths[name]) < structure.widths[name]
    ]
    if problems:
        raise ValueError(
            "needs weights that are the same with zeros in place of pruned channels as without these, but this network "
            f"takes a mean over the zeros, divides by them or shifts them: {'; '.join(dict.fromkeys(problems))}. "
            "Use slim, or leave these groups out with ignore=."
        )


def apply_masks(flat: Mapping[Path, Array], masks: Mapping[Path, Array]) -> FlatState:
    """Returns the arrays with zeros where their mask is False; arrays without a mask are unchanged.

    Args:
      flat: path -> array.
      masks: path -> bool array of the same shape, from `channel_masks`.

    Returns:
      Path -> array.

    Example:
      >>> apply_masks({("w",): jnp.ones(2)}, {("w",): jnp.array([True, False])})[("w",)]
      Array([1., 0.], dtype=float32)
    """
    return {path: _zeroed(array, masks[path]) if path in masks else array for path, array in flat.items()}


def zero_channels(
    structure: Structure, flat: Mapping[Path, Array], is_kept: Mapping[str, Array]
) -> FlatState:
    """Returns the arrays with zeros at the channels that are not kept.

    It does what `apply_masks` does with `channel_masks`, but its arguments have the same shapes however many channels
    stay, so that one compiled program serves all plans.

    Args:
      structure: groups of the network, which can be masked (`check_maskable`).
      flat: path -> array.
      is_kept: group name -> [C] bool, NumPy or traced; groups left out stay whole.

    Returns:
      Path -> array.
    """
    tables: dict[str, Array] = {
        name: np.append(each, True) if isinstance(each, np.ndarray) else jnp.append(each, True)
        for name, each in is_kept.items()
    }
    masked = dict(flat)
    for path, layout in structure.layouts.items():
        for axis, fields in enumerate(layout):
            for group, channels in fields:
                if group in tables and path in masked:
                    along_axis = [-1 if other == axis else 1 for other in range(len(layout))]
                    # -1, where no channel of the group lies, reads the last entry, which is True.
                    masked[path] = _zeroed(masked[path], tables[group][channels].reshape(along_axis))
    return masked


def keep_masked(
    masks: Mapping[Path, Array], optimizer: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Returns an optimizer that holds masked parameters at exactly zero, even with momentum and weight decay.

    It zeroes the gradients of masked entries before `optimizer`, so that they enter neither norms nor momentum, and
    zeroes the updates of masked entries after it. Without `optimizer` it only zeroes updates: put it last in an
    `optax.chain`.

    Args:
      masks: from `channel_masks`.
      optimizer: any Optax transformation.

    Returns:
      An Optax transformation for parameters in any tree whose paths are the model's: a flat dictionary path -> array,
      or an NNX state.

    Raises:
      ValueError: at the first `update`, if no parameter has a mask.

    Example:
      >>> masked_sgd = keep_masked({("w",): jnp.array([True, False])}, optax.sgd(1.0))
      >>> parameters = {("w",): jnp.array([1.0, 0.0])}
      >>> updates, _ = masked_sgd.update({("w",): jnp.ones(2)}, masked_sgd.init(parameters), parameters)
      >>> updates[("w",)]
      Array([-1.,  0.], dtype=float32)
    """
    inner = optax.identity() if optimizer is None else optimizer

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        changes, state = inner.update(_masked_tree(updates, masks), state, params)
        return _masked_tree(changes, masks), state

    return optax.GradientTransformation(inner.init, update)


def _masked_tree(tree: optax.Updates, masks: Mapping[Path, Array]) -> optax.Updates:
    """Returns a tree of arrays with zeros where the masks of its leaves are False."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    places = find_places([names_of(keys) for keys, _ in leaves], masks)
    leaf_masks = [None if place is None or place.before else masks[place.parameter] for place in places]
    if masks and all(leaf_mask is None for leaf_mask in leaf_masks):
        paths = ", ".join(jax.tree_util.keystr(keys) for keys, _ in leaves[:3])
        raise ValueError(
            f"needs updates whose paths are those of the masks, such as {next(iter(masks))}, got {paths}. "
            "Use the flat dictionary of split_model or an nnx.State of the same model."
        )
    masked = [
        leaf if leaf_mask is None else _zeroed(leaf, leaf_mask)
        for (_, leaf), leaf_mask in zip(leaves, leaf_masks, strict=True)
    ]
    return jax.tree_util.tree_unflatten(treedef, masked)


def _zeroed(array: Array, is_kept: Array) -> Array:
    """Returns the array with zeros where `is_kept` is False; NumPy arrays stay on the host."""
    if isinstance(array, np.ndarray) and isinstance(is_kept, np.ndarray):
        return np.where(is_kept, array, np.zeros_like(array))
    return jnp.where(is_kept, array, jnp.zeros_like(array))
