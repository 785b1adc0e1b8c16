"""The structure of any Flax network: traced, taken apart into groups, and tried out where code may count on sizes.

Where channels are split, padded or regrouped, the network's code may hold a number that pruning would make wrong (two
halves, eight heads). Those groups are tried on shapes: cut, traced again and compared. What does not stand the trial is
frozen, with what went wrong as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice, takewhile
from typing import cast

import jax
import numpy as np
from flax import nnx

from jaxprune.pruning.factoring import first_state, settled_trace, tied_state
from jaxprune.pruning.groups import Structure, structure_from
from jaxprune.pruning.labels import distinct
from jaxprune.pruning.program import trace_program
from jaxprune.pruning.retracing import Misfit, find_misfit, remembered_sizes
from jaxprune.pruning.states import FlatState, Path, dotted, fingerprint, parameter_paths, split_model
from jaxprune.types import Array

Choose = Callable[[Structure, Sequence[str]], dict[str, np.ndarray]]
"""Which channels to keep of some groups."""
_KNOWN: dict[object, Structure] = {}
"""The last structures, by architecture and shape of the input."""
_MOST_KNOWN = 4
_MOST_ROUNDS = 6
_MOST_SETS_OF_ATTRIBUTES = 6


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
    graphdef, flat, rest = split_model(model, "evaluation")
    images = _at_batch(example, 2)
    key = (graphdef, fingerprint(flat), images.shape, images.dtype)
    try:
        known = _KNOWN.get(key)
    except TypeError:  # a network may remember what has no hash
        return _traced(model, graphdef, flat, rest, images)
    if known is None:
        known = _traced(model, graphdef, flat, rest, images)
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = known
    return known


def _traced(
    model: nnx.Module,
    graphdef: nnx.GraphDef[nnx.Module],
    flat: FlatState,
    rest: FlatState,
    images: jax.ShapeDtypeStruct,
) -> Structure:
    program = trace_program(graphdef, flat, rest, images)
    shapes = {path: program.shapes[number] for path, number in program.parameters.items()}
    state = first_state(shapes, tied_axes(model, shapes))
    trace = settled_trace(program, parameter_paths(model), state)
    fills = [delicate.ties for delicate in trace.delicate if delicate.is_fill and delicate.ties is not None]
    if fills:
        trace = settled_trace(program, trace.trained, tied_state(trace, fills))
    return _tried(model, structure_from(trace, fingerprint(flat), images))


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
    assert known.state is not None
    trace = settled_trace(trace_program(graphdef, flat, rest, images), like.trained, known.state)
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
    for key, module in nnx.iter_modules(model):
        if isinstance(module, nnx.MultiHeadAttention):  # refuses values of another size than queries
            left, right = ((*cast(Path, key), name, "kernel") for name in ("query", "value"))
            if left in shapes and right in shapes:
                pairs.append(((left, len(shapes[left]) - 1), (right, len(shapes[right]) - 1)))
    return pairs


def _tried(model: nnx.Module, structure: Structure) -> Structure:
    """The structure without groups that code with fixed numbers does not let go."""
    never: dict[int, str] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    tried: set[str] = set()
    tied_by_module: set[str] = set()
    for _ in range(_MOST_ROUNDS):
        suspects = _suspects(structure)
        free = [name for name in suspects if name not in attributes]
        found_first = _misfit(model, structure, free)
        if found_first is None:
            break
        misfit, choose = found_first
        failing: dict[str, Misfit] = {}
        for kind in _kinds(structure, free):
            found = find_misfit(model, structure, choose(structure, kind))
            helping = () if found is None else _attributes_that_help(model, structure, kind)
            if helping:
                attributes.update((name, _nearest(helping, name)) for name in kind)
            elif found is not None:
                wrong = [name for name in kind if name in found.groups] or kind
                failing.update(dict.fromkeys(wrong, found))
        if not failing and any(name in attributes for name in free):
            continue  # what is left may be fine
        if not failing:  # fine kind by kind, but not together
            wrong = [name for name in free if name in misfit.groups] or free
            failing = dict.fromkeys(wrong, misfit)
        families = {list(structure.groups).index(name) for name in failing}
        ties = _ties(structure, families) if not set(failing) <= tried else []
        tried.update(failing)
        if not ties and not set(failing) <= tied_by_module:
            ties = _ties_of_modules(structure, failing)
            tied_by_module.update(failing)
        trace = structure.families.trace
        if ties:
            state = tied_state(trace, ties)
            trace = settled_trace(structure.program, trace.trained, state)
            never = {}
        else:
            never = {**never, **_refusals(structure, failing)}
        structure = structure_from(trace, structure.fingerprint, structure.example, never)
    else:
        left = _suspects(structure)
        reason = Misfit("it kept failing in other ways")
        never = {**never, **_refusals(structure, dict.fromkeys(left, reason))}
        structure = structure_from(structure.families.trace, structure.fingerprint, structure.example, never)
    known = {name: own for name, own in attributes.items() if name in structure.groups}
    return replace(structure, attributes=known)


def _misfit(model: nnx.Module, structure: Structure, names: Sequence[str]) -> tuple[Misfit, Choose] | None:
    """What goes wrong when groups lose channels, tried with very different choices, and the choice."""
    # a single channel divides into no parts, and what is cut alone must not need the others to be cut alike
    for choose, own in (
        (_first_half, names),
        (_mixed_half, names),
        (_first_one, names[::2]),
        (_first_one, names[1::2]),
    ):
        misfit = find_misfit(model, structure, choose(structure, own)) if own else None
        if misfit is not None:
            return misfit, choose
    return None


def _suspects(structure: Structure) -> list[str]:
    """Groups with channels on an axis that is cut, padded or taken apart."""
    names = list(structure.groups)
    found: set[int] = set()
    for delicate in structure.families.trace.delicate:
        found |= _families_of(structure, delicate.labels)
    return [names[family] for family in sorted(found)]


def _families_of(structure: Structure, labels: np.ndarray) -> set[int]:
    families = structure.families
    members, _ = families.of(families.trace.labels.find(labels))
    return set(distinct(members[members >= 0]).tolist())


def _ties(structure: Structure, families: set[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What would have to fall together, and does not yet, for axes with channels of these to be cut evenly."""
    trace = structure.families.trace
    return [
        delicate.ties
        for delicate in trace.delicate
        if delicate.ties is not None
        and _families_of(structure, delicate.labels) & families
        and not np.array_equal(trace.labels.find(delicate.ties[0]), trace.labels.find(delicate.ties[1]))
    ]


def _ties_of_modules(structure: Structure, names: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Equally wide groups of one module channel by channel: one remembered size may stand for all of them."""
    order = list(structure.groups)
    alike: dict[tuple[Path, int], list[int]] = {}
    for name in names:
        kernel = structure.sites[structure.groups[name].producers[0]].kernel
        alike.setdefault((kernel[:-2], structure.widths[name]), []).append(order.index(name))
    members = structure.families.members
    return [(members[own[0]], members[other]) for own in alike.values() for other in own[1:]]


def _nearest(attributes: Sequence[str], name: str) -> tuple[str, ...]:
    """The attributes of the modules nearest to a group, by the length of the path they share."""
    parts = name.split(".")
    pairs = [zip(path.split("."), parts, strict=False) for path in attributes]
    shared = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], own)) for own in pairs]
    return tuple(path for path, own in zip(attributes, shared, strict=True) if own == max(shared))


def _kinds(structure: Structure, names: Sequence[str]) -> list[list[str]]:
    """Groups on the same axes of the same arrays, but for the numbers of their blocks."""
    kinds: dict[object, list[str]] = {}
    for name in names:
        axes = frozenset(
            (re.sub(r"\d+", "*", dotted(own.path)), own.axis) for own in structure.groups[name].members
        )
        kinds.setdefault((re.sub(r"\d+", "*", name), axes), []).append(name)
    return list(kinds.values())


def _first_half(structure: Structure, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The first channels of each group: what is split in halves is then uneven."""
    return {name: np.arange(max(1, structure.widths[name] // 2)) for name in names}


def _first_one(structure: Structure, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.zeros(1, np.int64) for name in names}


def _mixed_half(structure: Structure, names: Sequence[str]) -> dict[str, np.ndarray]:
    """About half of each group, here and there."""
    found = {}
    for number, name in enumerate(names):
        width = structure.widths[name]
        order = np.random.default_rng(number).permutation(width)
        found[name] = np.sort(order[: max(1, (width + number % 2) // 2)])
    return found


def _refusals(structure: Structure, failing: Mapping[str, Misfit]) -> dict[int, str]:
    order = list(structure.groups)
    return {
        int(root): f"the network's code counts on their number: when some are gone, {misfit.reason}"
        for name, misfit in failing.items()
        for root in structure.families.members[order.index(name)]
    }


def _attributes_that_help(model: nnx.Module, structure: Structure, names: Sequence[str]) -> tuple[str, ...]:
    """Attributes of the user's classes that hold an old size and, when set to the new one, make the network fit."""
    kept = _first_half(structure, names)
    sizes = {structure.widths[name]: len(own) for name, own in kept.items()}
    found = remembered_sizes(model, sizes)
    by_name: dict[str, list[str]] = {}
    for path in found:
        by_name.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    sets = (
        chosen for number in range(1, len(by_name) + 1) for chosen in combinations(by_name.values(), number)
    )
    for chosen in islice(sets, _MOST_SETS_OF_ATTRIBUTES):
        paths = [path for own in chosen for path in own]
        if find_misfit(model, structure, kept, {path: found[path] for path in paths}) is None:
            return tuple(paths)
    return ()
