"""Finds the structure of any Flax network: traces it, groups its channels, and tries out code that may hold sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import jax
from flax import nnx

from jaxprune.structure.groups import Structure, structure_from
from jaxprune.structure.model_state import (
    Parts,
    Path,
    RestState,
    fingerprint,
    modules_of,
    passed_values,
    take_apart,
)
from jaxprune.structure.program import trace_program
from jaxprune.structure.propagation import propagate_and_factor, starting_labels, with_ties
from jaxprune.structure.trial_pruning import try_groups
from jaxprune.types import Array

_CACHE: dict[object, Structure] = {}
"""The latest structures, by architecture and shape of the input."""
_CACHE_SIZE = 4


def trace_structure(model: nnx.Module, example: Array | jax.ShapeDtypeStruct) -> Structure:
    """Finds the groups of a network by tracing it in evaluation mode.

    Only shapes are used. What the tracer does not understand is frozen, with a reason that names the operation and the
    source line; inputs and outputs of the network are never cut. Networks of one architecture share a structure: the
    latest few are cached, so that planning and slimming do not trace the network again.

    Args:
      model: NNX module called as `model(images)`; it is not changed. Its arrays may be abstract
        (`jaxprune.nets.without_weights(Net)`).
      example: images as the network takes them, batch axis first (values and batch size do not matter), or their
        shape and dtype.

    Returns:
      The structure; `structure.groups` is empty if nothing can be pruned (see `Structure.require_groups`).

    Raises:
      TypeError: if `model` is not an NNX module.
      ValueError: if the network does not run on such an example.

    Example:
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
      ...         self.head = nnx.Linear(4 * 64, 10, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.head(nnx.relu(self.conv(x)).reshape(x.shape[0], -1))
      >>> structure = trace_structure(Net(nnx.Rngs(0)), jax.numpy.zeros((1, 8, 8, 1)))
      >>> [str(member) for member in structure.groups["conv.kernel"].members]
      ['conv.bias axis 0', 'conv.kernel axis 3', 'head.kernel axis 0 as 64 x channel x 1']
    """
    return structure_of_parts(take_apart(model), example)


def structure_of_parts(parts: Parts, example: Array | jax.ShapeDtypeStruct) -> Structure:
    """Does what `trace_structure` does, for a model that has been taken apart already.

    Args:
      parts: the model, taken apart.
      example: images as the network takes them, or their shape and dtype.

    Returns:
      The structure.

    Raises:
      ValueError: if the network does not run on such an example.
    """
    images = _with_batch_size(example, 2)
    key = (parts.graphdef, fingerprint(parts.flat), passed_values(parts.rest), images.shape, images.dtype)
    try:
        structure = _CACHE.get(key)
    except TypeError:  # the network stores a value that has no hash
        return _trace_anew(parts, images)
    if structure is None:
        structure = _trace_anew(parts, images)
        while len(_CACHE) >= _CACHE_SIZE:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = structure
    return structure


def clear_structures() -> None:
    """Empties the cache, so that the next network is traced again."""
    _CACHE.clear()


def structure_of(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: RestState,
    example: Array | jax.ShapeDtypeStruct,
    like: Structure,
    *,
    batch: int,
) -> Structure:
    """Returns the structure of a network whose groups are known, traced at another batch size.

    Args:
      graphdef, flat, rest: the network, from `split_model`.
      example: images as the network takes them, or their shape and dtype.
      like: the known structure.
      batch: the batch size, at least 2.

    Returns:
      A structure with the same groups.
    """
    images = _with_batch_size(example, batch)
    start = like.families.trace.start
    assert start is not None
    trace = propagate_and_factor(trace_program(graphdef, flat, rest, images), like.trained, start)
    structure = structure_from(trace, like.fingerprint, images, like.families.refused)
    return replace(structure, attributes=like.attributes)


def _with_batch_size(example: Array | jax.ShapeDtypeStruct, size: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a batch of that size."""
    if len(example.shape) == 0:
        raise ValueError("needs an example with a batch axis, got a scalar. Pass images[:1].")
    return jax.ShapeDtypeStruct((size, *example.shape[1:]), jax.dtypes.canonicalize_dtype(example.dtype))


def _trace_anew(parts: Parts, images: jax.ShapeDtypeStruct) -> Structure:
    """Finds the structure of a network that is not in the cache."""
    program = trace_program(*parts[:3], images)
    shapes = {path: program.shapes[number] for path, number in program.parameters.items()}
    start = starting_labels(shapes, _tied_axes(parts.model, shapes))
    trace = propagate_and_factor(program, parts.trained, start)
    pad_ties = [axis.ties for axis in trace.suspect_axes if axis.is_fill and axis.ties is not None]
    if pad_ties:
        trace = propagate_and_factor(program, trace.trained, with_ties(trace, pad_ties))
    return try_groups(parts, structure_from(trace, fingerprint(parts.flat), images))


def _tied_axes(
    model: nnx.Module, shapes: Mapping[Path, tuple[int, ...]]
) -> list[tuple[tuple[Path, int], tuple[Path, int]]]:
    """Returns pairs of axes in Flax's layers that must stay equally long although no operation combines them.

    Flax's attention refuses values of another size than its queries.
    """
    pairs: list[tuple[tuple[Path, int], tuple[Path, int]]] = []
    if not any(isinstance(module, nnx.MultiHeadAttention) for module in modules_of(model)):
        return pairs  # finding paths takes several times as long as finding modules
    for key, module in nnx.iter_modules(model):
        if isinstance(module, nnx.MultiHeadAttention):
            query, value = ((*cast(Path, key), name, "kernel") for name in ("query", "value"))
            if query in shapes and value in shapes:
                pairs.append(((query, len(shapes[query]) - 1), (value, len(shapes[value]) - 1)))
    return pairs
