"""Checks that a slim network means the same as the full one: it is traced again, with the labels that are left.

Matching shapes are no proof: code that splits channels in halves puts the border elsewhere when one half has lost more
of them. So every operation of the slim network is carried out on the labels that are left of the full network, and
must bring together exactly the labels that belong together there.

A group that keeps a single channel needs care: an axis of length one could be any axis, and when one of two heads is
gone, the other looks like one head in two halves. So several copies of such a channel, each with labels of its own, are
placed side by side wherever the channel sits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from jaxprune.structure.groups import Structure
from jaxprune.structure.labels import FREE, Labels, distinct
from jaxprune.structure.layer_sizes import resize_layers
from jaxprune.structure.layouts import axis_keep
from jaxprune.structure.model_state import FlatState, Parts, Path, merge_model
from jaxprune.structure.own_sizes import set_size
from jaxprune.structure.program import Operation, Program, line_of, trace_program
from jaxprune.structure.propagation import propagate
from jaxprune.structure.trace import Trace

Attributes = Mapping[str, int]
"""Dotted path of an attribute -> its value in the slim network."""


class Misfit(NamedTuple):
    """Why a slim network would not mean the same as the full one."""

    reason: str
    groups: frozenset[str] = frozenset()
    """Groups whose channels were mixed up, where that is known; empty if the network did not even run."""
    runs: bool = True
    """Whether the network runs, and returns the same shapes."""


class AxisCut(NamedTuple):
    """What is left of one axis of an array: old indices in their new order, and the labels there."""

    indices: np.ndarray
    labels: tuple[np.ndarray, ...]
    """One array for each factor of the axis."""


Cuts = Mapping[Path, tuple[AxisCut, ...]]
"""Path of an array -> what is left of each of its axes."""


def slim_graph(
    parts: Parts,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None = None,
) -> nnx.GraphDef[nnx.Module]:
    """Returns the graph of a model whose layers store the sizes of the slim network, to be merged with the cut arrays.

    Args:
      parts: the full network, taken apart; its weights are not read.
      structure: groups of the full network.
      kept: group -> kept channels; groups left out are whole.
      attributes: sizes to set besides those of Flax's own layers.

    Returns:
      The graph of the slim network.

    Raises:
      ValueError: if the network has no such attribute.
    """
    model = merge_model(*parts[:3])
    _resize(model, structure, _cut_arrays(structure, kept), attributes)
    return nnx.graphdef(model)


def find_misfit(
    parts: Parts,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    attributes: Attributes | None = None,
    *,
    graph: nnx.GraphDef[nnx.Module] | None = None,
    only_runs: bool = False,
) -> Misfit | None:
    """Traces the slim network on shapes alone and says what is wrong with it.

    Args:
      parts: the full network, taken apart; its weights are not read.
      structure: groups of the full network.
      kept: group -> kept channels; groups left out are whole.
      attributes: sizes to set before tracing.
      graph: the result of `slim_graph` for the same arguments, if it is known.
      only_runs: only checks that the network runs and returns the same shapes, which is faster.

    Returns:
      What is wrong, or None if the slim network means the same as the full one.
    """
    attributes = attributes or {}
    cuts = _cut_arrays(structure, kept)
    program = _slim_program(parts, structure, cuts, attributes, graph)
    if isinstance(program, Misfit) or only_runs:
        return program if isinstance(program, Misfit) else None
    single_widths = {structure.widths[name] for name, channels in kept.items() if len(channels) == 1}
    copies = 1
    if single_widths:
        # Code rarely holds such a number by chance. With as many copies as the group has channels, the network would
        # look as if nothing were gone.
        copies = next((count for count in (3, 5, 7, 11) if count not in single_widths), 13)
        cuts = _cut_arrays(structure, kept, copies)
        counts = {name: copies if len(channels) == 1 else len(channels) for name, channels in kept.items()}
        known = structure.attributes_for(counts)
        attributes = {
            name: known.get(name, copies if size == 1 else size) for name, size in attributes.items()
        }
        program = _slim_program(parts, structure, cuts, attributes)
    if isinstance(program, Misfit):
        return program._replace(runs=True)  # only the copies stop it
    return _find_mix_up(structure, program, cuts, kept, copies)


def _cut_arrays(structure: Structure, kept: Mapping[str, np.ndarray], copies: int = 1) -> Cuts:
    """Cuts every axis of every array, with several copies of each channel that is left alone in its group."""
    return {
        path: tuple(_cut_axis(structure, path, axis, kept, copies) for axis in range(len(shape)))
        for path, shape in structure.shapes.items()
    }


def _cut_axis(
    structure: Structure, path: Path, axis: int, kept: Mapping[str, np.ndarray], copies: int
) -> AxisCut:
    """Cuts one axis of an array."""
    length = structure.shapes[path][axis]
    fields, roots = structure.layouts[path][axis], structure.families.roots[path][axis]
    if not fields:
        return AxisCut(np.arange(length), tuple(roots))
    indices = np.flatnonzero(np.asarray(axis_keep(fields, length, kept)))
    cut = AxisCut(indices, tuple(labels[indices] for labels in roots))
    if copies == 1:
        return cut
    all_runs = {  # number of the field -> for each index the number of its run of one channel
        number: np.where(field.channels >= 0, np.cumsum(np.diff(field.channels, prepend=FREE - 1) != 0), FREE)
        for number, field in enumerate(fields)
        if len(kept.get(field.group, ())) == 1
    }
    runs = {number: run_of[indices] for number, run_of in all_runs.items()}
    for number in sorted(runs, key=lambda number: int(all_runs[number].max())):
        # Coarse fields come first: every copy of a head then holds all copies of a position in a head.
        cut, runs = _with_copies(structure, cut, runs, number, fields[number].group, copies)
    return cut


def _with_copies(
    structure: Structure, cut: AxisCut, runs: Mapping[int, np.ndarray], number: int, group: str, copies: int
) -> tuple[AxisCut, dict[int, np.ndarray]]:
    """Repeats every run of a group's channel along an axis; each copy has its own labels for the group."""
    family = list(structure.groups).index(group)
    num_labels = len(structure.families.family_of)
    run_of = runs[number]
    is_repeated = run_of >= 0
    positions = np.concatenate([np.arange(len(run_of)), *[np.flatnonzero(is_repeated)] * (copies - 1)])
    copy_of = np.repeat(np.arange(copies), [len(run_of), *[int(is_repeated.sum())] * (copies - 1)])
    run_numbers = np.cumsum(np.diff(run_of, prepend=FREE - 1) != 0)
    order = np.lexsort((positions, copy_of, run_numbers[positions]))
    positions, copy_of = positions[order], copy_of[order]
    labels = []
    for factor in cut.labels:
        repeated = factor[positions]
        original = np.where(repeated >= 0, repeated % num_labels, FREE)
        is_of_group = structure.families.locate(original)[0] == family
        labels.append(np.where(is_of_group, repeated + copy_of * num_labels, repeated))
    num_runs = 1 + max(int(numbers.max(initial=0)) for numbers in runs.values())
    repeated_runs = {
        key: np.where(numbers[positions] >= 0, numbers[positions] + copy_of * num_runs, FREE)
        for key, numbers in runs.items()
    }
    return AxisCut(cut.indices[positions], tuple(labels)), repeated_runs


def _resize(
    model: nnx.Module, structure: Structure, cuts: Cuts, attributes: Attributes | None = None
) -> None:
    """Makes the layers of a copy of the model store the sizes of the cut arrays."""

    def blocks_kept(path: Path, axis: int, blocks: int) -> int | None:
        """Counts the blocks that stay by the labels that are the same all over a block."""
        all_labels, labels_left = [], []
        for roots, labels in zip(structure.families.roots[path][axis], cuts[path][axis].labels, strict=True):
            by_block = roots.reshape(blocks, -1)
            if bool((by_block == by_block[:, :1]).all()):
                all_labels.append(roots)
                labels_left.append(labels)
        if not all_labels or np.unique(np.stack(all_labels), axis=1).shape[1] < blocks:
            return None  # blocks that the network does not tell apart all stay
        return int(np.unique(np.stack(labels_left), axis=1).shape[1])

    new_shapes = {path: tuple(len(axis.indices) for axis in axes) for path, axes in cuts.items()}
    resize_layers(model, structure.shapes, new_shapes, blocks_kept)
    for name, size in (attributes or {}).items():
        set_size(model, name, size)


def _slim_program(
    parts: Parts,
    structure: Structure,
    cuts: Cuts,
    attributes: Attributes,
    graph: nnx.GraphDef[nnx.Module] | None = None,
) -> Program | Misfit:
    """Traces the slim network on shapes alone."""
    resize = None
    if graph is None:  # resized in the trace, as taking a resized copy apart would take half as long as that
        graph = parts.graphdef
        resize = partial(_resize, structure=structure, cuts=cuts, attributes=attributes)
    arrays = {
        path: jax.ShapeDtypeStruct(tuple(len(axis.indices) for axis in axes), parts.flat[path].dtype)
        for path, axes in cuts.items()
    }
    try:
        program = trace_program(graph, cast(FlatState, arrays), parts.rest, structure.example, resize=resize)
    except ValueError as error:
        cause = error.__cause__ or error
        reason = f"it failed with {type(cause).__name__}: {cause}{line_of(cause)}{_advice(cause)}"
        return Misfit(reason, runs=False)
    full_shapes, slim_shapes = (
        [run.shapes[number] for number in run.outputs] for run in (structure.program, program)
    )
    if full_shapes != slim_shapes:
        return Misfit(f"its outputs have shapes {slim_shapes} instead of {full_shapes}", runs=False)
    return program


def _advice(cause: BaseException) -> str:
    """Says what to do about layers of Linen and Haiku, which compare every array with a shape of their own."""
    if type(cause).__name__ == "ScopeParamShapeError" or "retrieved shape" in str(cause):
        return (
            "; this code declares the shapes of its parameters, so that only a module that is built with the smaller "
            "sizes takes them"
        )
    return ""


def _find_mix_up(
    structure: Structure, program: Program, cuts: Cuts, kept: Mapping[str, np.ndarray], copies: int
) -> Misfit | None:
    """Says where the slim network brings together other channels than the full one."""
    # The family of every label of the full network, and of its copies.
    family_of = np.tile(structure.families.family_of, copies)
    labels = Labels(len(family_of))
    labels.freeze_each(structure.families.refused)
    seeds = {path: tuple(axis.labels for axis in axes) for path, axes in cuts.items()}
    trace = propagate(program, structure.trained, seeds, labels, with_dead_code=False)
    for operation, left, right in trace.unions:
        pairs = np.stack([left.reshape(-1), right.reshape(-1)])
        pairs = pairs[:, ((pairs >= 0) & (pairs < len(family_of))).all(axis=0)]  # not the slim network's own
        mixed = pairs[:, (pairs[0] != pairs[1]) & (family_of[pairs] >= 0).any(axis=0)]
        if mixed.size:
            groups = _groups_in(structure, family_of[mixed])
            return Misfit(
                f"channels of {', '.join(sorted(groups))} meet others than before in {operation.location}",
                groups,
            )
    reasons = {
        root: reason
        for root, reason in trace.labels.reason_by_root().items()
        if root < len(family_of) and family_of[root] >= 0
    }
    if reasons:
        groups = _groups_in(structure, family_of[list(reasons)])
        first, reason = next(iter(reasons.items()))
        name = list(structure.groups)[family_of[first]]
        return Misfit(f"channels of {name} cannot be told apart any more: {reason}", groups)
    channels = np.flatnonzero(family_of >= 0)
    if len(distinct(trace.labels.find(channels))) < len(channels):
        return Misfit("channels meet others than before")
    for request in trace.factor_requests:
        # Of what stays whole, the full network may have made the same request.
        roots = trace.labels.find(request.labels)
        if groups := _groups_in(structure, family_of[roots[(roots >= 0) & (roots < len(family_of))]]):
            names = ", ".join(sorted(groups))
            return Misfit(
                f"an axis with channels of {names} that was taken apart evenly no longer is", groups
            )
    return _find_moved_part(structure, trace, kept, len(family_of))


def _find_moved_part(
    structure: Structure, slim_trace: Trace, kept: Mapping[str, np.ndarray], num_labels: int
) -> Misfit | None:
    """Says where a part of a split axis holds other channels than what is left of that part in the full network.

    Args:
      structure: of the full network.
      slim_trace: trace of the slim network, with labels of the full one.
      kept: group -> kept channels.
      num_labels: number of labels of the full network and their copies; labels from here on are the slim network's own.
    """
    families = structure.families
    if not slim_trace.split_labels and not families.trace.split_labels:
        return None
    stays = families.family_of >= 0
    for name, channels in kept.items():
        roots = families.channel_roots[list(structure.groups).index(name)]
        stays[np.delete(roots, channels)] = False

    def channels_at(labels: np.ndarray, limit: int) -> np.ndarray:
        """Returns the channel at each position, -1 where no channel is or where it does not stay."""
        is_known = (labels >= 0) & (labels < limit)
        channels = np.where(is_known, labels % len(stays), 0)
        return np.where(is_known & stays[channels], channels, -1)

    # The sum of one random number per channel identifies a set of channels (64 bits).
    numbers = np.random.default_rng(0).integers(1, 1 << 63, len(stays), dtype=np.uint64)
    full_splits, slim_splits = (_splits_in_order(trace) for trace in (structure.settled, slim_trace))
    for key in [*(key for key in full_splits if key not in slim_splits), *slim_splits]:
        if key not in full_splits:
            continue  # the slim network takes another way through its code
        operation, labels = full_splits[key]
        before = channels_at(labels, len(stays))
        if key not in slim_splits:  # nothing is split there any more
            after, is_same = before, not (before >= 0).any()
        else:
            operation, labels = slim_splits[key]
            after = channels_at(slim_trace.labels.find(labels), num_labels)
            is_same = before.ndim == after.ndim and all(
                np.array_equal(left, right)
                for left, right in zip(_part_sums(before, numbers), _part_sums(after, numbers), strict=False)
            )
        if not is_same:
            roots = np.concatenate([before[before >= 0], after[after >= 0]])
            groups = _groups_in(structure, families.family_of[roots])
            reason = f"channels of {', '.join(sorted(groups))} are in other parts than before of {operation.location}"
            return Misfit(reason, groups)
    return None


def _splits_in_order(trace: Trace) -> dict[tuple[str, int], tuple[Operation, np.ndarray]]:
    """Returns what was split, by source line, numbered where one line splits several times."""
    splits: dict[tuple[str, int], tuple[Operation, np.ndarray]] = {}
    counts: Counter[str] = Counter()
    for operation, labels in trace.split_labels.values():
        splits[operation.location, counts[operation.location]] = (operation, labels)
        counts[operation.location] += 1
    return splits


def _part_sums(channels: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """For each axis, read as rows of all later axes, returns the sums of the numbers of the channels in each row.

    Rows without any channel are left out, and so are rows equal to the one before, which are copies, and all turns but
    the first of rows that come in turns: there is one for each channel of another group, which may be cut.
    """
    all_sums = []
    for axis in range(channels.ndim):
        rows = np.sort(channels.reshape(math.prod(channels.shape[:axis]), -1), axis=1)
        is_first = np.diff(rows, axis=1, prepend=-1) != 0
        sums = np.where(is_first & (rows >= 0), numbers[np.maximum(rows, 0)], 0).sum(axis=1)
        sums = sums[sums != 0]
        sums = sums[np.diff(sums, prepend=np.uint64(0)) != 0]
        turns = (length for length in range(1, len(sums) + 1) if len(sums) % length == 0)
        all_sums.append(next((sums[:n] for n in turns if (sums.reshape(-1, n) == sums[:n]).all()), sums))
    return all_sums


def _groups_in(structure: Structure, families: np.ndarray) -> frozenset[str]:
    """Returns the names of the groups of some families; -1 stands for none."""
    names = list(structure.groups)
    return frozenset(names[family] for family in distinct(families).tolist() if family >= 0)
