"""The structure of any Flax network: traced, taken apart into groups, and tried out where code may count on sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import jax
from flax import nnx

from jaxprune.structure.groups import Structure, structure_from
from jaxprune.structure.model_state import FlatState, Parts, Path, fingerprint, modules_of, take_apart
from jaxprune.structure.program import trace_program
from jaxprune.structure.propagation import propagate_and_factor, starting_labels, with_ties
from jaxprune.structure.trial_pruning import tried
from jaxprune.types import Array

_KNOWN: dict[object, Structure] = {}
"""The last structures, by architecture and shape of the input."""
_MOST_KNOWN = 4


def trace_structure(model: nnx.Module, example: Array | jax.ShapeDtypeStruct) -> Structure:
    """Finds the groups of a network by tracing it in evaluation mode.

    Only shapes are used. What the tracer does not understand is frozen with a reason that names the operation and the
    source line; inputs and outputs of the network are never cut. Networks of one architecture have one structure: the
    last few are remembered, so that planning and slimming do not trace anew.

    Args:
      model: NNX module called as `model(images)`; it is not changed. Its arrays may be abstract
        (`nnx.eval_shape(lambda: Net(nnx.Rngs(0)))`).
      example: images as the network takes them, batch first (values and batch size do not matter), or their shape
        and dtype.

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
    """`trace_structure` of a model that has been taken apart already."""
    images = _at_batch(example, 2)
    key = (parts.graphdef, fingerprint(parts.flat), images.shape, images.dtype)
    try:
        known = _KNOWN.get(key)
    except TypeError:  # a network may remember what has no hash
        return _traced(parts, images)
    if known is None:
        known = _traced(parts, images)
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = known
    return known


def forget_structures() -> None:
    """Lets go of the last structures, so that the next network is traced anew."""
    _KNOWN.clear()


def _traced(parts: Parts, images: jax.ShapeDtypeStruct) -> Structure:
    program = trace_program(*parts[:3], images)
    shapes = {path: program.shapes[number] for path, number in program.parameters.items()}
    state = starting_labels(shapes, tied_axes(parts.model, shapes))
    trace = propagate_and_factor(program, parts.trained, state)
    fills = [
        delicate.ties for delicate in trace.suspect_axes if delicate.is_fill and delicate.ties is not None
    ]
    if fills:
        trace = propagate_and_factor(program, trace.trained, with_ties(trace, fills))
    return tried(parts, structure_from(trace, fingerprint(parts.flat), images))


def structure_of(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: FlatState,
    example: Array | jax.ShapeDtypeStruct,
    like: Structure,
    *,
    batch: int,
) -> Structure:
    """The structure of a network already known, traced at another batch size (at least 2); its groups are the same."""
    images = _at_batch(example, batch)
    known = like.families.trace
    assert known.start is not None
    trace = propagate_and_factor(trace_program(graphdef, flat, rest, images), like.trained, known.start)
    return replace(
        structure_from(trace, like.fingerprint, images, like.families.refused), attributes=like.attributes
    )


def _at_batch(example: Array | jax.ShapeDtypeStruct, batch: int) -> jax.ShapeDtypeStruct:
    if len(example.shape) == 0:
        raise ValueError("needs an example with a batch axis, got a scalar. Pass images[:1].")
    return jax.ShapeDtypeStruct((batch, *example.shape[1:]), jax.dtypes.canonicalize_dtype(example.dtype))


def tied_axes(
    model: nnx.Module, shapes: Mapping[Path, tuple[int, ...]]
) -> list[tuple[tuple[Path, int], tuple[Path, int]]]:
    """Axes of Flax's own layers that must stay equally long though nothing computes with both."""
    pairs: list[tuple[tuple[Path, int], tuple[Path, int]]] = []
    if not any(isinstance(module, nnx.MultiHeadAttention) for module in modules_of(model)):
        return pairs  # looking for paths costs several times as much
    for key, module in nnx.iter_modules(model):
        if isinstance(module, nnx.MultiHeadAttention):  # refuses values of another size than queries
            left, right = ((*cast(Path, key), name, "kernel") for name in ("query", "value"))
            if left in shapes and right in shapes:
                pairs.append(((left, len(shapes[left]) - 1), (right, len(shapes[right]) - 1)))
    return pairs
