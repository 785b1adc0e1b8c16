"""Whether a slim network means the same as the full one: its code is traced again, with the labels that are left.

Shapes that fit do not prove it: code that splits channels in halves puts the border elsewhere when one half has lost
more of them. So every operation of the slim network is carried out on what is left of the full network's labels, and
must bring together exactly those that belong together there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.structure.groups import Structure
from jaxprune.structure.labels import Labels
from jaxprune.structure.layer_sizes import resize_layers
from jaxprune.structure.model_state import FlatState, Parts, Path, dotted, merge_model, take_apart
from jaxprune.structure.program import Operation, Program, trace_program
from jaxprune.structure.propagation import propagate
from jaxprune.structure.slim_axes import AxisCut, cut_arrays, cut_shape, num_copies
from jaxprune.structure.trace import Trace

Attributes = Mapping[str, int]
"""Dotted path of an attribute -> its value in the slim network."""


class Misfit(NamedTuple):
    """Why a slim network would not mean the same."""

    reason: str
    groups: frozenset[str] = frozenset()
    """Those whose channels were mixed up, as far as that is known; none where the network did not even run."""


def slim_graph(
    parts: Parts,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None = None,
) -> nnx.GraphDef[nnx.Module]:
    """The graph of a model whose layers have the sizes of the slim network, to be merged with the cut arrays.

    Args:
      parts: of the full network; its weights are not read.
      structure: its groups.
      kept: group -> kept channels; groups left out are whole.
      attributes: to set besides.
    """
    return _resized(parts, structure, cut_arrays(structure, kept), attributes)


def _resized(
    parts: Parts,
    structure: Structure,
    cuts: Mapping[Path, tuple[AxisCut, ...]],
    attributes: Attributes | None,
) -> nnx.GraphDef[nnx.Module]:
    copy, old = merge_model(*parts[:3]), dict(structure.shapes)

    def outer_kept(path: Path, axis: int, blocks: int) -> int | None:
        """Of equal blocks, those that stay: as many as labels that are one for a whole block."""
        whole = [
            (own, roots)
            for own, roots in zip(cuts[path][axis].labels, structure.families.roots[path][axis], strict=True)
            if bool((roots.reshape(blocks, -1) == roots.reshape(blocks, -1)[:, :1]).all())
        ]
        if not whole or _num_columns([roots for _, roots in whole]) < blocks:
            return None  # blocks that are one to the network all stay
        return _num_columns([own for own, _ in whole])

    resize_layers(copy, old, {path: cut_shape(axes) for path, axes in cuts.items()}, outer_kept)
    for name, value in (attributes or {}).items():
        _set_attribute(copy, name, value)
    return take_apart(copy).graphdef


def _num_columns(rows: list[np.ndarray]) -> int:
    return int(np.unique(np.stack(rows), axis=1).shape[1])


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
    parts: Parts,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None = None,
    *,
    graph: nnx.GraphDef[nnx.Module] | None = None,
    only_runs: bool = False,
) -> Misfit | None:
    """Traces the slim network on shapes alone; None if it means what it should.

    Args:
      parts: of the full network; its weights are not read.
      structure: its groups.
      kept: group -> kept channels; groups left out are whole.
      attributes: to set before.
      graph: what `slim_graph` gives for the same, where it is known.
      only_runs: ask only whether it runs and returns the same shapes, which takes a part of the time.

    Returns:
      What is wrong, in words, or None.
    """
    cuts = cut_arrays(structure, kept)
    graph = _resized(parts, structure, cuts, attributes) if graph is None else graph
    program = _slim_program(parts, structure, cuts, graph)
    if only_runs:
        return program if isinstance(program, Misfit) else None
    copies = num_copies(structure, kept)
    if not isinstance(program, Misfit) and copies > 1:
        cuts = cut_arrays(structure, kept, copies=copies)
        twins = {name: copies if value == 1 else value for name, value in (attributes or {}).items()}
        program = _slim_program(parts, structure, cuts, _resized(parts, structure, cuts, twins))
    return program if isinstance(program, Misfit) else _mixed_up(structure, program, cuts, kept, copies)


def _slim_program(
    parts: Parts,
    structure: Structure,
    cuts: Mapping[Path, tuple[AxisCut, ...]],
    graphdef: nnx.GraphDef[nnx.Module],
) -> Program | Misfit:
    arrays = {
        path: jax.ShapeDtypeStruct(cut_shape(axes), parts.flat[path].dtype) for path, axes in cuts.items()
    }
    try:
        program = trace_program(graphdef, cast(FlatState, arrays), parts.rest, structure.example)
    except ValueError as error:
        cause = error.__cause__ or error
        return Misfit(f"it failed with {type(cause).__name__}: {cause}")
    full, found = ([run.shapes[number] for number in run.outputs] for run in (structure.program, program))
    return program if full == found else Misfit(f"its outputs have shapes {found} instead of {full}")


def _mixed_up(
    structure: Structure,
    program: Program,
    cuts: Mapping[Path, tuple[AxisCut, ...]],
    kept: Mapping[str, np.ndarray],
    copies: int,
) -> Misfit | None:
    families = structure.families
    seeds = {path: tuple(axis.labels for axis in axes) for path, axes in cuts.items()}
    labels = Labels(copies * len(families.family_of))
    labels.freeze_each(families.refused)
    trace = propagate(program, structure.trained, seeds, labels)
    names = list(structure.groups)
    family_of = np.tile(families.family_of, copies)
    is_active = family_of >= 0
    for step, left, right in trace.unions:
        a, b = left.reshape(-1), right.reshape(-1)
        known = (a >= 0) & (b >= 0)
        a, b = a[known], b[known]
        inner = len(is_active)  # labels of the slim walk alone are behind those of the full network
        known = (a < inner) & (b < inner)
        a, b = a[known], b[known]
        wrong = (a != b) & (is_active[a] | is_active[b])
        if wrong.any():
            mixed = np.unique(family_of[np.concatenate([a[wrong], b[wrong]])])
            groups = frozenset(names[family] for family in mixed.tolist() if family >= 0)
            return Misfit(
                f"channels of {', '.join(sorted(groups))} meet others than before in {step.location}", groups
            )
    lost = {
        root: reason
        for root, reason in trace.labels.reason_by_root().items()
        if root < len(is_active) and is_active[root]
    }
    if lost:
        mixed_up = [names[int(family_of[root])] for root in lost]
        reason = next(iter(lost.values()))
        return Misfit(
            f"channels of {mixed_up[0]} cannot be told apart any more: {reason}", frozenset(mixed_up)
        )
    active = np.flatnonzero(is_active)
    is_met = np.zeros(len(trace.labels), bool)
    is_met[trace.labels.find(active)] = True
    if is_met.sum() < len(active):
        return Misfit("channels meet others than before")
    if trace.factor_requests:
        return Misfit("an axis that was taken apart evenly no longer is")
    place = misplaced(structure, trace, kept, len(family_of))
    if place is not None:
        where, groups = place
        return Misfit(
            f"channels of {', '.join(sorted(groups))} are in other parts than before of {where}", groups
        )
    return None


def remembered_sizes(parts: Parts, sizes: Mapping[int, int]) -> dict[str, int]:
    """Whole numbers that modules which are not Flax's own remember, where they equal an old size.

    Args:
      parts: of the full network.
      sizes: old size -> new one.

    Returns:
      Dotted path of the attribute -> the new size.
    """
    found: dict[str, int] = {}
    for path, module in nnx.iter_modules(parts.model):
        if type(module).__module__.split(".")[0] == "flax":
            continue
        for name, value in vars(module).items():
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if is_whole and value in sizes and not name.startswith("_"):
                found[dotted((*cast(Path, path), name))] = sizes[value]
    return found


# === merged: """Which channels lie in which part of an axis that is split or taken apart, in the full n


def misplaced(
    structure: Structure, slim: Trace, kept: Mapping[str, np.ndarray], most: int
) -> tuple[str, frozenset[str]] | None:
    """Where the first part is that does not hold what is left of the same part of the full network, and whose channels.

    Args:
      structure: of the full network.
      slim: a walk of the slim one, with labels of the full one; numbers beyond these stand for copies of channels.
      kept: group -> kept channels.
      most: labels from here on belong to the slim network alone.
    """
    families, names = structure.families, list(structure.groups)
    if not slim.split_labels and not families.trace.split_labels:
        return None
    stays = families.family_of >= 0
    for name, own in kept.items():
        members = families.channel_roots[names.index(name)]
        stays[np.delete(members, own)] = False
    # The sum of a random number for each channel tells sets of channels apart (64 bits).
    numbers = np.random.default_rng(0).integers(1, 1 << 63, len(stays), dtype=np.uint64)
    expected, found = (_in_order(trace) for trace in (structure.settled, slim))
    for key in (own for own in expected if own not in found):  # there are no parts any more
        lost = _channels(expected[key][1], stays, len(stays))
        if (lost >= 0).any():
            mixed = np.unique(families.family_of[lost[lost >= 0]])
            return expected[key][0].location, frozenset(names[family] for family in mixed.tolist())
    for key, (step, labels) in found.items():
        if key not in expected:
            continue  # the slim network takes another way through its code
        before = _channels(expected[key][1], stays, len(stays))  # without copies: behind is fill
        after = _channels(slim.labels.find(labels), stays, most)
        pairs = zip(_parts(before, numbers), _parts(after, numbers), strict=False)
        is_same = before.ndim == after.ndim and all(np.array_equal(left, right) for left, right in pairs)
        if not is_same:
            mixed = np.unique(families.family_of[np.concatenate([before[before >= 0], after[after >= 0]])])
            return step.location, frozenset(names[family] for family in mixed.tolist())
    return None


def _in_order(trace: Trace) -> dict[tuple[str, int], tuple[Operation, np.ndarray]]:
    """By operation and source line, numbered where one line does several."""
    found: dict[tuple[str, int], tuple[Operation, np.ndarray]] = {}
    times: dict[str, int] = {}
    for step, labels in trace.split_labels.values():
        times[step.location] = times.get(step.location, -1) + 1
        found[step.location, times[step.location]] = (step, labels)
    return found


def _channels(labels: np.ndarray, stays: np.ndarray, most: int) -> np.ndarray:
    """The channel at each place, -1 where there is none that stays."""
    known = (labels >= 0) & (labels < most)
    own = np.where(known, labels % len(stays), 0)
    return np.where(known & stays[own], own, -1)


def _parts(channels: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """For each way to read the axes as rows, numbers for the sets of channels in the rows.

    Rows without any are left out, and so are those equal to the one before: copies are one.
    """
    found = []
    for axis in range(channels.ndim):
        rows = np.sort(channels.reshape(math.prod(channels.shape[:axis]), -1), axis=1)
        is_first = np.diff(rows, axis=1, prepend=-1) != 0
        sums = np.where(is_first & (rows >= 0), numbers[np.maximum(rows, 0)], 0).sum(axis=1)
        sums = sums[sums != 0]
        found.append(sums[np.diff(sums, prepend=np.uint64(0)) != 0])
    return found
