"""Producer sites: where the channels of a group are made and read, and the arrays there in the shapes for scoring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.channel_classes import ChannelFamilies
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.program import Operation
from jaxprune.structure.propagation import BATCH
from jaxprune.structure.trace import ChannelRead, LabelledValue, Trace
from jaxprune.types import Array


@dataclass(frozen=True, eq=False)
class ChannelIndices:
    """The indices of an array, or of an activation, that belong to each channel of a group.

    The array is read with `axes` as its last axes, flattened into one; `positions` [C, m] are indices of that axis.
    """

    axes: tuple[int, ...]
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class ProducerSite:
    """Where the operands of one producer of a group are read: its kernel, the norm after it, and its first consumer."""

    group: str
    kernel: Path
    kernel_channels: ChannelIndices
    gamma: tuple[Path, ChannelIndices] | None
    beta: tuple[Path, ChannelIndices] | None
    consumer: Path | None
    """The kernel that first reads the channels; None where they are multiplied with other activations."""
    consumer_channels: ChannelIndices | None
    activations: ActivationSite | None
    """None where they cannot be told apart by channel, or are read in branches and `while` loops alone."""


@dataclass(frozen=True, eq=False)
class ActivationSite:
    """Where the activations of a producer are read: as they enter its first consumer, of those where it is possible."""

    value: int
    """Their number in the program; in loops there is one value for each iteration."""
    channels: ChannelIndices
    batch_axis: int | None
    """The axis that counts examples; None where no axis does this alone, as with windows merged into the batch."""
    loop_lengths: tuple[int, ...]
    """The numbers of iterations of the loops that they are in, outermost loop first."""
    num_moves: int
    """How many reshapes, transposes and slices of a loop come between them and the consumer.

    There are some where an axis counts the examples only before these."""
    sizes: tuple[int, ...]
    """Sizes of the value without its batch axis and axes of length one."""


_MOVES = ("reshape", "transpose", "squeeze")
"""Operations that only move entries."""


class _Loops(NamedTuple):
    """What is known of the values in loops and branches, by their numbers."""

    lengths: dict[int, tuple[int, ...] | None]
    """Lengths of the loops around a value, outermost first; None in branches and `while` loops."""
    slices: dict[int, int]
    """What one iteration sees of an array that a loop runs along -> the array."""


def find_sites(
    families: ChannelFamilies,
    names: Sequence[str],
    like: Iterable[ProducerSite] = (),
) -> tuple[dict[tuple[int, Path], ProducerSite], dict[int, str]]:
    """Finds the site of every producer of every family.

    Args:
      families: families of the network.
      names: a name for each family.
      like: sites of the same network for several examples; a single one is observed at the same places.

    Returns:
      (family, kernel) -> site, and family -> reason for the families whose weights cannot be told apart by channel.
    """
    sites: dict[tuple[int, Path], ProducerSite] = {}
    reasons: dict[int, str] = {}
    loops = _Loops({}, {})
    _add_loops(loops, families.trace.program.operations, ())
    activations = {(site.group, site.kernel): site.activations for site in like}
    for family, use_numbers in enumerate(families.producer_uses):
        for use_number in use_numbers:
            kernel = families.trace.producer_uses[use_number].kernel
            if (family, kernel) in sites:  # a shared kernel is read at its first use
                continue
            known = activations.get((names[family], kernel))
            site = _find_site(families, family, use_number, names[family], loops, known)
            if isinstance(site, ProducerSite):
                sites[family, kernel] = site
            else:
                reasons.setdefault(family, site)
    return {key: site for key, site in sites.items() if key[0] not in reasons}, reasons


def _find_site(
    families: ChannelFamilies,
    family: int,
    use_number: int,
    name: str,
    loops: _Loops,
    like: ActivationSite | None,
) -> ProducerSite | str:
    """Returns the site of one use of a producer, or the reason why there is none."""
    trace, use = families.trace, families.trace.producer_uses[use_number]
    kernel_channels = indices_in_array(families, family, use.kernel, sorted(use.axes))
    if kernel_channels is None:
        return f"weights of {dotted(use.kernel)} hold these channels in several places"
    reads = [trace.reads[index] for index in families.reads[family]]
    reads = [read for read in reads if use_number in read.value.producers]
    gamma, beta = _find_norm(families, family, use_number, reads[0]) if reads else (None, None)
    found = (_find_activations(families, family, each, loops, like) for each in reads)
    read = _first_kernel_read(families, family, reads)
    consumer_channels = None
    if read is not None and read.kernel is not None:
        consumer_channels = indices_in_array(families, family, read.kernel, sorted(read.kernel_axes))
    return ProducerSite(
        group=name,
        kernel=use.kernel,
        kernel_channels=kernel_channels,
        gamma=gamma,
        beta=beta,
        consumer=read.kernel if read is not None and consumer_channels is not None else None,
        consumer_channels=consumer_channels,
        activations=next((site for site in found if site is not None), None),
    )


def _first_kernel_read(
    families: ChannelFamilies, family: int, reads: Sequence[ChannelRead]
) -> ChannelRead | None:
    """Returns the first read of a producer's channels that is not a product which treats each channel on its own.

    The weights of attention are multiplied with each head's values; only the layer behind them reads the heads.
    """
    for read in reads:
        channels = indices_in_value(families, family, read.value)
        if read.kernel is not None or channels is None or not set(channels.axes) <= read.shared_axes:
            return read
    return None


def _find_activations(
    families: ChannelFamilies, family: int, read: ChannelRead, loops: _Loops, like: ActivationSite | None
) -> ActivationSite | None:
    """Returns where the activations that a contraction reads are observed, or None where they cannot be."""
    places = _places(families, family, _before_reshapes(families, family, read), loops)
    if not places:
        return None
    batch_axis = _batch_axis(families.trace, places[-1][0])
    found = 0 if batch_axis is None else len(places) - 1
    shapes = [families.trace.values[number].shape for number, _ in places]
    if like is not None and families.trace.program.example.batch_size == 1:
        same = [moves for moves, shape in enumerate(shapes) if _sizes(shape, None) == like.sizes]
        found = max((moves for moves in same if moves <= like.num_moves), default=0)
    number, channels = places[found]
    lengths, sizes = loops.lengths.get(number) or (), _sizes(shapes[found], batch_axis)
    return ActivationSite(number, channels, batch_axis, lengths, found, sizes)


def _sizes(shape: Sequence[int], batch_axis: int | None) -> tuple[int, ...]:
    """The sizes of what belongs to one example, without axes of length one."""
    return tuple(size for axis, size in enumerate(shape) if axis != batch_axis and size > 1)


def _places(
    families: ChannelFamilies, family: int, read: ChannelRead, loops: _Loops
) -> list[tuple[int, ChannelIndices]]:
    """Returns the value that is read, and those that it is a reshape, transpose or slice of, with its channels in each.

    They end at the first with an axis that counts the examples, where channels cannot be told apart, and before what is
    in a branch or a `while` loop.
    """
    program, places, number = families.trace.program, list[tuple[int, ChannelIndices]](), read.value_number
    while loops.lengths.get(number, ()) is not None:
        channels = indices_in_value(families, family, families.trace.values[number])
        if channels is None:
            break
        places.append((number, channels))
        if _batch_axis(families.trace, number) is not None:
            break
        maker = program.makers.get(number)
        if number in loops.slices:
            number = loops.slices[number]
        elif maker is not None and maker.name in _MOVES and isinstance(maker.inputs[0], int):
            number = maker.inputs[0]
        else:
            break
    return places


def _add_loops(loops: _Loops, operations: Sequence[Operation], outer: tuple[int, ...] | None) -> None:
    """Notes the loops among some operations, and those inside of them."""
    for operation in operations:
        is_scan = operation.name == "scan"
        lengths = None
        if is_scan:
            params = operation.equation.params
            first = int(params["num_consts"]) + int(params["num_carry"])
            pairs = zip(operation.bodies[0].inputs[first:], operation.inputs[first:], strict=True)
            loops.slices.update({inside: array for inside, array in pairs if isinstance(array, int)})
            lengths = None if outer is None else (*outer, int(params["length"]))
        for body in operation.bodies:
            loops.lengths.update(dict.fromkeys(body.value_numbers, lengths))
            _add_loops(loops, body.operations, lengths)


def _batch_axis(trace: Trace, number: int) -> int | None:
    """Returns the axis of a value that counts the examples; None if no axis does this alone."""
    value, batch_marker = trace.values[number], trace.labels.fixed_marker(BATCH)
    if trace.program.example.batch_size == 1:
        return None
    axes = [axis for axis, marker in enumerate(value.fixed) if marker == batch_marker]
    is_plain = [value.shape[axis] for axis in axes] == [trace.program.example.batch_size]
    return axes[0] if is_plain else None


def _before_reshapes(families: ChannelFamilies, family: int, read: ChannelRead) -> ChannelRead:
    """Goes back over reshapes of the activations as long as that leaves fewer indices to each channel."""
    trace = families.trace
    indices = indices_in_value(families, family, read.value)
    while indices is not None and indices.positions.shape[1] > 1 and read.value_number in trace.reshaped:
        number = trace.reshaped[read.value_number]
        earlier = indices_in_value(families, family, trace.values[number])
        if earlier is None or earlier.positions.shape[1] >= indices.positions.shape[1]:
            break
        read, indices = read._replace(value_number=number, value=trace.values[number]), earlier
    return read


def indices_in_value(families: ChannelFamilies, family: int, value: LabelledValue) -> ChannelIndices | None:
    """Returns where a family sits in a value; None where it sits in no field, in several, or unevenly.

    Args:
      families: families of the network.
      family: number of the family.
      value: the value.
    """
    result: ChannelIndices | None = None
    for field in value.fields:
        family_at, channel_at = families.locate(families.trace.labels.find(field.labels))
        if not (family_at == family).any():
            continue
        channels = np.where(family_at == family, channel_at, -1).reshape(-1)
        positions = _positions_of(channels, len(families.channel_roots[family]))
        if result is not None or positions is None:
            return None
        result = ChannelIndices(field.axes, positions)
    return result


def indices_in_array(
    families: ChannelFamilies, family: int, path: Path, axes: Sequence[int]
) -> ChannelIndices | None:
    """Returns where a family sits on some axes of an array; None where it sits on no axis, on several, or unevenly.

    Args:
      families: families of the network.
      family: number of the family.
      path: path of the array.
      axes: axes of the array.
    """
    result: ChannelIndices | None = None
    for axis in axes:
        for channels in families.on_axis(path, axis).get(family, []):
            positions = _positions_of(channels, len(families.channel_roots[family]))
            if result is not None or positions is None:
                return None
            result = ChannelIndices((axis,), positions)
    return result


def _positions_of(channels: np.ndarray, num_channels: int) -> np.ndarray | None:
    """Returns the [C, m] positions of each channel; None where channels have different numbers of positions.

    Example:
      >>> _positions_of(np.array([0, 1, 0, 1, -1]), 2).tolist()
      [[0, 2], [1, 3]]
    """
    occupied = np.flatnonzero(channels >= 0)
    if occupied.size == 0 or occupied.size % num_channels:
        return None
    order = np.argsort(channels[occupied], kind="stable")
    positions = occupied[order].reshape(num_channels, -1)
    return positions if (channels[positions] == np.arange(num_channels)[:, None]).all() else None


def _find_norm(
    families: ChannelFamilies, family: int, use_number: int, read: ChannelRead
) -> tuple[tuple[Path, ChannelIndices] | None, tuple[Path, ChannelIndices] | None]:
    """Returns the first learned scale after a producer and before its channels are read, and the first later shift."""
    trace = families.trace
    gamma: Path | None = None
    beta: Path | None = None
    is_scaled = False
    for affine in trace.affine_uses[: read.num_affine_uses]:
        if use_number not in affine.producers or affine.is_scale == is_scaled:
            continue
        if not (families.locate(trace.labels.find(affine.labels))[0] == family).any():
            continue
        paths = sorted((affine.sources & trace.trained) - {gamma}, key=str)
        path = paths[0] if len(paths) == 1 else None
        if affine.is_scale:
            is_scaled, gamma = True, path
        else:
            beta = path
            break

    def with_indices(path: Path | None) -> tuple[Path, ChannelIndices] | None:
        if path is None:
            return None
        indices = indices_in_array(families, family, path, range(len(families.roots[path])))
        return None if indices is None else (path, indices)

    return with_indices(gamma), with_indices(beta)


def channels_last(value: jax.Array, site: ActivationSite) -> jax.Array:
    """Returns the activations of a site (or their gradient) with examples first and channels last.

    Args:
      value: the value that enters the site's first consumer, in the network's own order of axes; if it is in loops,
        one for each iteration, along leading axes. If no axis of it counts the examples, there is one such value for
        each example, along the first axis of all.
      site: where it was read.

    Returns:
      [N, *space, C], at least float32.
    """
    num_loops = len(site.loop_lengths)
    if site.batch_axis is None:
        axes = [axis + num_loops + 1 for axis in site.channels.axes]
    else:
        value = jnp.moveaxis(value, site.batch_axis + num_loops, 0)
        axes = [axis + num_loops + (axis < site.batch_axis) for axis in site.channels.axes]
    activations = with_channels_last(value, axes, site.channels.positions)
    if site.batch_axis is None:  # the axis of the one example is no axis of space
        examples, *space, channels = activations.shape
        activations = activations.reshape(examples, *(size for size in space if size > 1), channels)
    return activations.astype(jnp.promote_types(activations.dtype, jnp.float32))


def channel_columns(array: Array, indices: ChannelIndices) -> jax.Array:
    """Returns the entries of a kernel (or its gradient) as a matrix with one column for each channel.

    Args:
      array: the kernel.
      indices: where the channels sit in it.

    Returns:
      [F, C], of the array's dtype.
    """
    matrix = with_channels_last(jnp.asarray(array), list(indices.axes), indices.positions)
    return matrix.reshape(math.prod(matrix.shape[:-1]), matrix.shape[-1])


def with_channels_last(array: jax.Array, axes: list[int], positions: np.ndarray) -> jax.Array:
    """Moves channels to the last axis; where each has several positions, these stay at the first of the axes.

    Args:
      array: of any shape.
      axes: the axes that hold the channels, rising; `positions` are indices of these axes, flattened into one.
      positions: [C, m] positions of each channel.
    """
    first = axes[0]
    joined = jnp.moveaxis(array, axes, range(first, first + len(axes)))
    joined = joined.reshape((*joined.shape[:first], -1, *joined.shape[first + len(axes) :]))
    num_channels, num_positions = positions.shape
    if not np.array_equal(positions.T, np.arange(joined.shape[first])[None]):
        joined = jnp.take(joined, positions.T.reshape(-1), axis=first)
    apart = joined.reshape((*joined.shape[:first], num_positions, num_channels, *joined.shape[first + 1 :]))
    result = jnp.moveaxis(apart, first + 1, -1)
    return result[(slice(None),) * first + (0,)] if num_positions == 1 else result
