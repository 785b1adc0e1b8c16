"""Whether a slim network means the same as the full one: its code is traced again, with the labels that are left.

Shapes that fit do not prove it: code that splits channels in halves puts the border elsewhere when one half has lost
more of them. So every operation of the slim network is carried out on what is left of the full network's labels, and
must bring together exactly those that belong together there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.pruning.groups import Structure
from jaxprune.pruning.labels import Labels
from jaxprune.pruning.layouts import axis_keep
from jaxprune.pruning.placements import misplaced
from jaxprune.pruning.program import Program, trace_program
from jaxprune.pruning.resizing import resize_layers
from jaxprune.pruning.states import FlatState, Path, dotted, merge_model, split_model
from jaxprune.pruning.tracing import walk

Attributes = Mapping[str, int]
"""Dotted path of an attribute -> its value in the slim network."""


class Misfit(NamedTuple):
    """Why a slim network would not mean the same."""

    reason: str
    groups: frozenset[str] = frozenset()
    """Those whose channels were mixed up, as far as that is known."""


def slim_model_graph(
    model: nnx.Module,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None = None,
) -> nnx.Module:
    """A copy of a model whose layers have the sizes of the slim network; its arrays still have the old ones."""
    copy = merge_model(*split_model(model))
    old = dict(structure.shapes)
    new = {path: _slim_shape(structure, path, kept) for path in old}

    def outer_kept(path: Path, axis: int, blocks: int) -> int | None:
        fields = structure.layouts[path][axis]
        if not any(field.group in kept for field in fields):
            return None
        stays = np.asarray(axis_keep(fields, old[path][axis], kept))
        return int(stays.reshape(blocks, -1).any(axis=1).sum())

    resize_layers(copy, old, new, outer_kept)
    for name, value in (attributes or {}).items():
        _set_attribute(copy, name, value)
    return copy


def _slim_shape(structure: Structure, path: Path, kept: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    return tuple(
        int(np.asarray(axis_keep(fields, length, kept)).sum()) if fields else length
        for fields, length in zip(structure.layouts[path], structure.shapes[path], strict=True)
    )


def _set_attribute(model: nnx.Module, name: str, value: int) -> None:
    *path, last = name.split(".")
    found: object = model
    for part in path:
        found = found[int(part)] if part.isdigit() else getattr(found, part, None)  # type: ignore[index]
    if found is None or not isinstance(getattr(found, last, None), int):
        raise ValueError(
            f"attributes needs names of whole numbers in the network, such as 'block.num_heads', got {name!r}."
        )
    setattr(found, last, value)


def find_misfit(
    model: nnx.Module,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None = None,
) -> Misfit | None:
    """Traces the slim network on shapes alone; None if it means what it should.

    Where a group keeps a single channel, shapes are tried with that and meaning with two: an axis of length one could
    be any.

    Args:
      model: the full network; weights are not read.
      structure: its groups.
      kept: group -> kept channels; groups left out are whole.
      attributes: to set before.

    Returns:
      What is wrong, in words, or None.
    """
    program = _slim_program(model, structure, kept, attributes)
    pairs = {name: _at_least_two(own, structure.widths[name]) for name, own in kept.items()}
    if isinstance(program, Program) and any(len(pairs[name]) > len(own) for name, own in kept.items()):
        kept = pairs
        changed = {name: 2 if value == 1 else value for name, value in (attributes or {}).items()}
        program = _slim_program(model, structure, kept, changed)
    return program if isinstance(program, Misfit) else _mixed_up(structure, program, kept)


def _at_least_two(kept: np.ndarray, width: int) -> np.ndarray:
    return kept if len(kept) > 1 or width == 1 else np.unique([*kept, (int(kept[0]) + 1) % width])


def _slim_program(
    model: nnx.Module,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None,
) -> Program | Misfit:
    copy = slim_model_graph(model, structure, kept, attributes)
    graphdef, flat, rest = split_model(copy, "evaluation")
    arrays = {
        path: jax.ShapeDtypeStruct(_slim_shape(structure, path, kept), flat[path].dtype)
        for path in structure.shapes
    }
    try:
        program = trace_program(graphdef, cast(FlatState, arrays), rest, structure.example)
    except ValueError as error:
        cause = error.__cause__ or error
        return Misfit(f"it failed with {type(cause).__name__}: {cause}")
    full, found = ([run.shapes[number] for number in run.outputs] for run in (structure.program, program))
    return program if full == found else Misfit(f"its outputs have shapes {found} instead of {full}")


def _mixed_up(structure: Structure, program: Program, kept: Mapping[str, np.ndarray]) -> Misfit | None:
    families = structure.families
    seeds = {}
    for path, axes in families.roots.items():
        lengths = structure.shapes[path]
        keeps = [
            np.asarray(axis_keep(fields, length, kept))
            for fields, length in zip(structure.layouts[path], lengths, strict=True)
        ]
        seeds[path] = tuple(
            tuple(own[stays] for own in parts) if stays.sum() > 1 else ()  # what is one long has no labels
            for parts, stays in zip(axes, keeps, strict=True)
        )
    labels = Labels(len(families.family_of))
    for root, reason in families.refused.items():
        labels.freeze(np.asarray([root]), reason)
    trace = walk(program, structure.trained, seeds, labels)
    names = list(structure.groups)
    is_active = families.family_of >= 0
    for step, left, right in trace.unites:
        a, b = left.reshape(-1), right.reshape(-1)
        known = (a >= 0) & (b >= 0)
        a, b = a[known], b[known]
        inner = len(is_active)  # labels of the slim walk alone are behind those of the full network
        known = (a < inner) & (b < inner)
        a, b = a[known], b[known]
        wrong = (a != b) & (is_active[a] | is_active[b])
        if wrong.any():
            mixed = np.unique(families.family_of[np.concatenate([a[wrong], b[wrong]])])
            groups = frozenset(names[family] for family in mixed.tolist() if family >= 0)
            return Misfit(
                f"channels of {', '.join(sorted(groups))} meet others than before in {step.where}", groups
            )
    for root, reason in trace.labels.reason_by_root().items():
        if root < len(is_active) and is_active[root]:
            name = names[int(families.family_of[root])]
            return Misfit(f"channels of {name} cannot be told apart any more: {reason}", frozenset({name}))
    active = np.flatnonzero(is_active)
    if len(np.unique(trace.labels.find(active))) < len(active):
        return Misfit("channels meet others than before")
    if trace.requests:
        return Misfit("an axis that was taken apart evenly no longer is")
    place = misplaced(structure, trace, kept)
    if place is not None:
        where, groups = place
        return Misfit(f"channels of {', '.join(sorted(groups))} are in other parts than before of {where}", groups)
    return None


def remembered_sizes(model: nnx.Module, sizes: Mapping[int, int]) -> dict[str, int]:
    """Whole numbers that modules which are not Flax's own remember, where they equal an old size.

    Args:
      model: the full network.
      sizes: old size -> new one.

    Returns:
      Dotted path of the attribute -> the new size.
    """
    found: dict[str, int] = {}
    for path, module in nnx.iter_modules(model):
        if type(module).__module__.split(".")[0] == "flax":
            continue
        for name, value in vars(module).items():
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if is_whole and value in sizes and not name.startswith("_"):
                found[dotted((*cast(Path, path), name))] = sizes[value]
    return found
