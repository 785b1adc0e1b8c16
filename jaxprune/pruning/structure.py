"""The structure of any Flax network: traced, taken apart into groups, and tried out where code may count on sizes.

Where channels are split, padded or regrouped, the network's code may hold a number that pruning would make wrong (two
halves, eight heads). Those groups are tried on shapes: cut, traced again and compared. What does not stand the trial is
frozen, with what went wrong as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
from flax import nnx

from jaxprune.pruning.factoring import settled_trace
from jaxprune.pruning.groups import Structure, structure_from
from jaxprune.pruning.program import trace_program
from jaxprune.pruning.retracing import Misfit, find_misfit, remembered_sizes
from jaxprune.pruning.states import FlatState, Path, fingerprint, parameter_paths, split_model
from jaxprune.types import Array

_MOST_TRIALS = 24


def trace_structure(model: nnx.Module, example: Array | jax.ShapeDtypeStruct) -> Structure:
    """Finds the groups of a network by tracing it in evaluation mode.

    Only shapes are used. What the tracer does not understand is frozen with a reason that names the operation and the
    source line; inputs and outputs of the network are never cut.

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
    graphdef, flat, rest = split_model(model, "evaluation")
    structure = structure_of(graphdef, flat, rest, parameter_paths(model), example, batch=2)
    return _tried(model, structure)


def structure_of(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: FlatState,
    trained: frozenset[Path],
    example: Array | jax.ShapeDtypeStruct,
    *,
    batch: int,
    like: Structure | None = None,
) -> Structure:
    """The structure of a model already taken apart, at a given batch size (at least 2), as its labels alone tell.

    With `like`, a structure of the same network, what is frozen there is frozen here.
    """
    if len(example.shape) == 0:
        raise ValueError("needs an example with a batch axis, got a scalar. Pass images[:1].")
    shape = (batch, *example.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(example.dtype))
    trace = settled_trace(trace_program(graphdef, flat, rest, images), trained)
    return structure_from(trace, fingerprint(flat), images, None if like is None else like.families.refused)


def _tried(model: nnx.Module, structure: Structure) -> Structure:
    """The structure without groups that code with fixed numbers does not let go."""
    suspects = _suspects(structure)
    frozen: dict[int, str] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    trials = 0
    if not suspects or find_misfit(model, structure, _half(structure, suspects)) is None:
        return structure
    for kind in _kinds(suspects):
        names = list(kind)
        while names and trials < _MOST_TRIALS:
            trials += 1
            misfit = find_misfit(model, structure, _half(structure, names))
            if misfit is None:
                break
            remembered = _attributes_that_help(model, structure, names)
            if remembered:
                attributes.update(dict.fromkeys(names, remembered))
                break
            wrong = misfit.groups & set(names) or set(names)
            frozen.update(_refusals(structure, sorted(wrong), misfit))
            names = [name for name in names if name not in wrong]
        else:
            if names:
                frozen.update(
                    _refusals(structure, names, Misfit("it was not tried: too many parts need a trial"))
                )
    if frozen:
        never = {**structure.families.refused, **frozen}
        structure = structure_from(structure.families.trace, structure.fingerprint, structure.example, never)
        left = _suspects(structure)
        together = [name for name in left if name not in attributes]
        misfit = find_misfit(model, structure, _half(structure, together)) if together else None
        if misfit is not None:  # fine one by one, but not together
            never |= _refusals(structure, sorted(misfit.groups & set(together)) or together, misfit)
            structure = structure_from(
                structure.families.trace, structure.fingerprint, structure.example, never
            )
    known = {name: own for name, own in attributes.items() if name in structure.groups}
    return replace(structure, attributes=known)


def _suspects(structure: Structure) -> list[str]:
    """Groups with channels on an axis that is cut, padded or taken apart."""
    families, names = structure.families, list(structure.groups)
    found: set[int] = set()
    for _, labels in families.trace.delicate:
        members, _ = families.of(families.trace.labels.find(labels))
        found.update(np.unique(members[members >= 0]).tolist())
    return [names[family] for family in sorted(found)]


def _kinds(names: Sequence[str]) -> list[list[str]]:
    """Groups alike but for the numbers of their blocks."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return list(kinds.values())


def _half(structure: Structure, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The first channels of each group, about half of them: what is split in halves is then uneven."""
    return {name: np.arange(max(1, structure.widths[name] // 2)) for name in names}


def _refusals(structure: Structure, names: Sequence[str], misfit: Misfit) -> dict[int, str]:
    order = list(structure.groups)
    reason = f"the network's code counts on their number: when pruned, {misfit.reason}"
    return {int(root): reason for name in names for root in structure.families.members[order.index(name)]}


def _attributes_that_help(model: nnx.Module, structure: Structure, names: Sequence[str]) -> tuple[str, ...]:
    """Attributes of the user's classes that hold an old size and, when set to the new one, make the network fit."""
    kept = _half(structure, names)
    sizes = {structure.widths[name]: len(own) for name, own in kept.items()}
    found = remembered_sizes(model, sizes)
    by_name: dict[str, list[str]] = {}
    for path in found:
        by_name.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    tried = 0
    for number in range(1, len(by_name) + 1):
        for chosen in combinations(by_name.values(), number):
            if tried == _MOST_TRIALS // 4:
                return ()
            tried += 1
            paths = [path for own in chosen for path in own]
            if find_misfit(model, structure, kept, {path: found[path] for path in paths}) is None:
                return tuple(paths)
    return ()
