"""Regularisers that make whole channels small while a network trains, as Optax transformations.

They add the gradient of a penalty to the gradients that they are given, so they come before the optimizer:

    structure = jp.trace_structure(model, images)
    optimizer = nnx.Optimizer(model, optax.chain(jp.group_lasso(structure, 1e-4), optax.sgd(0.1)), wrt=nnx.Param)

Afterwards the metrics `l2` or `bn_scale` tell which channels have become small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.pruning.tree_paths import find_places, names_of
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import Path, dotted
from jaxprune.types import Array

Penalty = Callable[[Mapping[Path, jax.Array]], Mapping[Path, jax.Array]]
"""Path -> parameter to path -> gradient of a penalty, for some of the paths."""


def group_lasso(structure: Structure, strength: float) -> optax.GradientTransformation:
    """Returns a transformation that adds the gradient of a group lasso over the channels of a network.

    The penalty is `strength` times the sum, over all groups and their channels, of the Euclidean norm of all weights
    that fall with a channel: those that make it, its biases and scales, and those that read it. Weights that fall with
    two channels, one on each side of a kernel, count for both. Where a norm is zero, its gradient is zero.

    Args:
      structure: from `trace_structure`.
      strength: factor of the penalty, >= 0.

    Returns:
      A transformation for parameters in any tree whose paths are the model's; its `update` needs them.

    Raises:
      TypeError: if `structure` is none.
      ValueError: if the strength is negative or not finite, or the network has no groups; at `update` if parameters are
        missing or have other shapes than the structure's.

    Example:
      >>> from flax import nnx
      >>> from jaxprune.nets import PlainConvNet
      >>> from jaxprune.structure.tracing import trace_structure
      >>> model = PlainConvNet(nnx.Rngs(0), widths=(2, 2, 2))
      >>> regulariser = group_lasso(trace_structure(model, np.zeros((1, 8, 8, 1), np.float32)), 1.0)
      >>> weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
      >>> gradients, _ = regulariser.update(jax.tree.map(jnp.zeros_like, weights), regulariser.init(weights), weights)
      >>> bool(jnp.isfinite(gradients["conv1"]["kernel"]).all())
      True

    Source:
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016; our groups go across layers, as in Fang
      et al., DepGraph, 2023, without their growing strengths.
    """
    _check_structure(structure)
    paths = {
        member.path for group in structure.groups.values() for member in group.members
    } & structure.trained

    def penalty(params: Mapping[Path, jax.Array]) -> dict[Path, jax.Array]:
        gradients: dict[Path, jax.Array] = {}
        norms = group_norms(structure, params)
        for name, group in structure.groups.items():
            is_zero = norms[name] == 0
            factors = jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, norms[name]))
            factors = jnp.concatenate([factors, jnp.zeros(1, factors.dtype)])  # the last is for no channel
            for member in group.members:
                if member.path not in params:
                    continue
                weights = params[member.path]
                shape = [-1 if axis == member.axis else 1 for axis in range(weights.ndim)]
                added = weights * factors[member.channels].reshape(shape)
                gradients[member.path] = gradients.get(member.path, 0) + added
        return gradients

    return _adding("group_lasso", structure, paths, penalty, strength)


def group_norms(structure: Structure, params: Mapping[Path, Array]) -> dict[str, jax.Array]:
    """Returns the Euclidean norm of all weights that fall with each channel.

    Args:
      structure: groups of the network.
      params: path -> array; paths that are left out do not count.

    Returns:
      Group name -> [C] norms.
    """
    norms = {}
    for name, group in structure.groups.items():
        squares = jnp.zeros(group.size + 1)
        for member in group.members:
            if member.path in params:
                others = tuple(axis for axis in range(params[member.path].ndim) if axis != member.axis)
                sums = jnp.sum(jnp.square(params[member.path].astype(squares.dtype)), axis=others)
                squares = squares.at[member.channels].add(sums)  # -1 is the last entry, which no channel has
        is_zero = squares[:-1] == 0
        norms[name] = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares[:-1])))
    return norms


def scale_l1(structure: Structure, strength: float) -> optax.GradientTransformation:
    """Returns a transformation that adds the gradient of an L1 penalty on the scales of normalisations.

    It acts on the scales that stand between the layer that makes a channel and the first that reads it, for channels
    of groups (`gamma` of the formulas). The gradient is `strength` times the sign of a scale, and zero at zero.

    Args:
      structure: from `trace_structure`.
      strength: factor of the penalty, >= 0.

    Returns:
      A transformation, as of `group_lasso`.

    Raises:
      ValueError: as `group_lasso`, or if no group has a normalisation with a trained scale.

    Example:
      >>> from flax import nnx
      >>> from jaxprune.nets.factories import find_network
      >>> from jaxprune.structure.tracing import trace_structure
      >>> model = find_network("resnet20", has_weights=False)
      >>> len(scale_l1(trace_structure(model, np.zeros((1, 32, 32, 3), np.float32)), 1e-4))
      2

    Source:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, eq. 1.
    """
    _check_structure(structure)
    norms = {site.gamma[0] for site in structure.sites.values() if site.gamma is not None}
    paths = frozenset(norms) & structure.trained
    if not paths:
        raise ValueError(
            "scale_l1 needs a network whose groups have normalisations with trained scales, got none in the groups "
            f"{', '.join(structure.groups)}. Use group_lasso."
        )
    in_groups = {path: _is_in_groups(structure, path) for path in paths}

    def penalty(params: Mapping[Path, jax.Array]) -> dict[Path, jax.Array]:
        return {path: jnp.where(in_groups[path], jnp.sign(params[path]), 0) for path in paths}

    return _adding("scale_l1", structure, paths, penalty, strength)


def _check_structure(structure: object) -> None:
    """Raises an error for what is no structure with groups."""
    if not isinstance(structure, Structure):
        raise TypeError(
            f"a penalty needs a Structure, got {type(structure).__name__}. Pass jp.trace_structure(model, images)."
        )
    structure.require_groups()


def _is_in_groups(structure: Structure, path: Path) -> np.ndarray:
    """Which entries of an array belong to a channel of any group."""
    shape = structure.shapes[path]
    found = np.zeros(shape, bool)
    for axis, fields in enumerate(structure.layouts[path]):
        for field in fields:
            found |= (field.channels >= 0).reshape([-1 if own == axis else 1 for own in range(len(shape))])
    return found


def _adding(
    name: str, structure: Structure, paths: frozenset[Path] | set[Path], penalty: Penalty, strength: object
) -> optax.GradientTransformation:
    """A transformation that adds `strength` times a gradient to the updates of some parameters."""
    if not isinstance(strength, int | float) or not 0 <= strength < float("inf"):
        raise ValueError(f"{name} needs a finite strength >= 0, got {strength!r}. Start with 1e-4.")
    factor = float(strength)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                f"{name} needs the parameters in update, got none. Call update(gradients, state, params)."
            )
        own = _by_path(params, structure)
        problems = [
            f"{dotted(path)} {own[path].shape if path in own else 'missing'} instead of {structure.shapes[path]}"
            for path in sorted(paths, key=dotted)
            if path not in own or own[path].shape != structure.shapes[path]
        ]
        if problems:
            more = f"; and {len(problems) - 6} others" if len(problems) > 6 else ""
            raise ValueError(
                f"{name} needs the parameters of the network that was traced, got {'; '.join(problems[:6])}{more}. "
                "Trace this network, and give all of its parameters to the optimizer."
            )
        added = penalty({path: own[path] for path in paths})
        keyed, treedef = jax.tree_util.tree_flatten_with_path(updates)
        places = find_places([names_of(keys) for keys, _ in keyed], structure.shapes)
        changed = [
            leaf
            if place is None or place.parameter not in added
            else leaf + (factor * added[place.parameter]).astype(leaf.dtype)
            for (_, leaf), place in zip(keyed, places, strict=True)
        ]
        return jax.tree_util.tree_unflatten(treedef, changed), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_path(tree: optax.Params, structure: Structure) -> dict[Path, jax.Array]:
    """Path of the network -> array of a tree of parameters."""
    keyed = jax.tree_util.tree_flatten_with_path(tree)[0]
    places = find_places([names_of(keys) for keys, _ in keyed], structure.shapes)
    return {
        place.parameter: leaf for (_, leaf), place in zip(keyed, places, strict=True) if place is not None
    }
