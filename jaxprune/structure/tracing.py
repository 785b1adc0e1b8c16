"""Finds the structure of any Flax network: traces it, groups its channels, and tries out code that may hold sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, cast
from weakref import WeakValueDictionary

import jax
from flax import nnx

from jaxprune.nets.foreign_layers import tied_values
from jaxprune.nets.function_network import FunctionNetwork, Params
from jaxprune.nets.inputs import Batch, Example, Inputs, example_of
from jaxprune.structure.groups import Structure, structure_from
from jaxprune.structure.identity import identity_of
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

_KNOWN: WeakValueDictionary[Hashable, Structure] = WeakValueDictionary()
"""The structures that are in use, of a plan or of what was observed, by network and shapes of the input."""
_LATEST: list[Structure] = []
"""The latest structures, which are known even if nothing else uses them."""
_NUM_LATEST = 4


def trace_structure(model: nnx.Module, example: Batch) -> Structure:
    """Finds the groups of a network by tracing it in evaluation mode.

    Only shapes are used. What the tracer does not understand is frozen, with a reason that names the operation and the
    source line; inputs and outputs of the network are never cut. Networks that store the same and run the same code
    share a structure: the latest few, and those of plans and of what was observed, are not found again. A function or
    class that was defined anew, in a notebook say, is other code.

    Args:
      model: NNX module; it is not changed. Its arrays may be abstract (`jaxprune.nets.without_weights(Net)`).
      example: a batch as the network takes it: an array, batch axis first; a dict or another pytree of arrays; a tuple
        of arguments; or `jaxprune.Inputs`. Values and batch size do not matter, and shapes with dtypes
        (`jax.ShapeDtypeStruct`) may stand in for arrays.

    Returns:
      The structure; `structure.groups` is empty if nothing can be pruned (see `Structure.require_groups`).

    Raises:
      TypeError: if `model` is not an NNX module.
      ValueError: if the network does not run on such an example.

    Example:
      >>> import jax
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


def trace_params(
    fn: Callable[..., Any],
    params: Params,
    *inputs: Batch,
    **keywords: Batch,
) -> Structure:
    """Finds the groups of a network that is a pure function of its parameters: Linen, Equinox, raw JAX.

    Args:
      fn: `fn(params, *inputs)`, pure and in evaluation mode.
      params: pytree of arrays, or of their shapes. A parameter is named by the keys of its path, joined by dots.
      inputs: a batch as the function takes it, as for `trace_structure`.
      keywords: likewise, by name.

    Returns:
      The structure, as `trace_structure` gives it for NNX modules.

    Raises:
      TypeError: if `fn` is not callable.
      ValueError: if `params` holds no array, or the function does not run on such inputs.

    Example:
      >>> import jax
      >>> params = {"first": jax.numpy.ones((3, 5)), "second": jax.numpy.ones((5, 2))}
      >>> structure = trace_params(
      ...     lambda p, x: jax.nn.relu(x @ p["first"]) @ p["second"], params, jax.numpy.ones((4, 3))
      ... )
      >>> structure.widths
      {'first': 5}
    """
    return trace_structure(FunctionNetwork(fn, params), Inputs(*inputs, **keywords))


def structure_of_parts(parts: Parts, example: Batch | Example) -> Structure:
    """Does what `trace_structure` does, for a model that has been taken apart already.

    Args:
      parts: the model, taken apart.
      example: as for `trace_structure`.

    Returns:
      The structure.

    Raises:
      ValueError: if the network does not run on such an example.
    """
    inputs = example_of(example, parts.model).with_batch_size(2)
    key = _key_of(parts[:3], inputs)
    structure = _KNOWN.get(key)
    if structure is None:
        _KNOWN[key] = structure = _trace_anew(parts, inputs)
    _LATEST[:] = [structure, *(each for each in _LATEST if each is not structure)][:_NUM_LATEST]
    return structure


def clear_structures() -> None:
    """Forgets all structures, so that the next network is traced again."""
    _KNOWN.clear()
    _LATEST.clear()


def structure_of(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: RestState,
    example: Batch | Example,
    like: Structure,
    *,
    batch: int,
) -> Structure:
    """Returns the structure of a network whose groups are known, traced at another batch size.

    Args:
      graphdef, flat, rest: the network, from `split_model`.
      example: what the network takes; a tuple is one argument unless an `Example` says otherwise.
      like: the known structure.
      batch: the batch size; a structure for one example tells its axes apart less well, but where to observe it.

    Returns:
      A structure with the same groups.
    """
    inputs = example_of(example).with_batch_size(batch)
    key = _key_of((graphdef, flat, rest), inputs)
    structure = _KNOWN.get(key)
    if structure is None:
        start = like.families.trace.start
        assert start is not None
        trace = propagate_and_factor(trace_program(graphdef, flat, rest, inputs), like.trained, start)
        structure = structure_from(trace, like.fingerprint, like.families.refused, like.sites)
        _KNOWN[key] = structure = replace(structure, attribute_axes=like.attribute_axes, like=like)
    return structure


def _key_of(
    parts: tuple[nnx.GraphDef[nnx.Module], Mapping[Path, Array], RestState], inputs: Example
) -> Hashable:
    """Returns what is equal for networks of one structure: all but the values of their arrays."""
    graphdef, flat, rest = parts
    leaves, treedef = jax.tree.flatten(inputs.batch)
    return identity_of(
        (graphdef, fingerprint(flat), passed_values(rest), treedef, leaves, inputs.call, inputs.is_batched)
    )


def _trace_anew(parts: Parts, inputs: Example) -> Structure:
    """Finds the structure of a network that is not in the cache."""
    program = trace_program(*parts[:3], inputs)
    shapes = {path: program.shapes[number] for path, number in program.parameters.items()}
    start = starting_labels(shapes, _tied_axes(parts.model, shapes))
    trace = propagate_and_factor(program, parts.trained, start)
    pad_ties = [axis.ties for axis in trace.suspect_axes if axis.is_fill and axis.ties is not None]
    if pad_ties:
        trace = propagate_and_factor(program, trace.trained, with_ties(trace, pad_ties))
    return try_groups(parts, structure_from(trace, fingerprint(parts.flat)))


def _tied_axes(
    model: nnx.Module, shapes: Mapping[Path, tuple[int, ...]]
) -> list[tuple[tuple[Path, int], tuple[Path, int]]]:
    """Returns pairs of axes in Flax's layers that must stay equally long although no operation combines them.

    Flax's attention refuses values of another size than its queries.
    """
    pairs: list[tuple[tuple[Path, int], tuple[Path, int]]] = []
    if isinstance(model, FunctionNetwork):
        kernels = tied_values(shapes)
        return [
            ((query, len(shapes[query]) - 1), (value, len(shapes[value]) - 1)) for query, value in kernels
        ]
    if not any(isinstance(module, nnx.MultiHeadAttention) for module in modules_of(model)):
        return pairs  # finding paths takes several times as long as finding modules
    for key, module in nnx.iter_modules(model):
        if isinstance(module, nnx.MultiHeadAttention):
            query, value = ((*cast(Path, key), name, "kernel") for name in ("query", "value"))
            if query in shapes and value in shapes:
                pairs.append(((query, len(shapes[query]) - 1), (value, len(shapes[value]) - 1)))
    return pairs
