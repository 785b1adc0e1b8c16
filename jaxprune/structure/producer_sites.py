"""Producer sites: where the channels of a group are made and read, and the arrays there in the shapes for scoring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.channel_classes import ChannelFamilies
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.propagation import BATCH
from jaxprune.structure.trace import ChannelRead, LabelledValue
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
    """Where the operands of one producer of a group are read: its kernel, the norm after it, and its first consumer.

    `value` is the number of the activations that enter that consumer, and `batch_axis` their batch axis. If they are in
    loops, there is one value for each iteration; `loop_lengths` are the numbers of iterations, outermost loop first.
    """

    group: str
    kernel: Path
    kernel_channels: ChannelIndices
    gamma: tuple[Path, ChannelIndices] | None
    beta: tuple[Path, ChannelIndices] | None
    consumer: Path | None
    """The kernel that first reads the channels; None where they are multiplied with other activations."""
    consumer_channels: ChannelIndices | None
    value: int
    value_channels: ChannelIndices
    batch_axis: int
    loop_lengths: tuple[int, ...]


def find_sites(
    families: ChannelFamilies, names: Sequence[str], loop_lengths: Mapping[int, tuple[int, ...]]
) -> tuple[dict[tuple[int, Path], ProducerSite], dict[int, str]]:
    """Finds the site of every producer of every family.

    Args:
      families: families of the network.
      names: a name for each family.
      loop_lengths: number of a value in loops -> lengths of the loops around it, outermost first.

    Returns:
      (family, kernel) -> site, and family -> reason for the families that cannot be scored.
    """
    sites: dict[tuple[int, Path], ProducerSite] = {}
    reasons: dict[int, str] = {}
    for family, use_numbers in enumerate(families.producer_uses):
        for use_number in use_numbers:
            kernel = families.trace.producer_uses[use_number].kernel
            if (family, kernel) in sites:  # a shared kernel is read at its first use
                continue
            site = _find_site(families, family, use_number, names[family], loop_lengths)
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
    loop_lengths: Mapping[int, tuple[int, ...]],
) -> ProducerSite | str:
    """Returns the site of one use of a producer, or the reason why there is none."""
    trace, use = families.trace, families.trace.producer_uses[use_number]
    reads = [trace.reads[index] for index in families.reads[family]]
    read = next((read for read in reads if use_number in read.value.producers), None)
    if read is None:
        return f"channels of {dotted(use.kernel)} never enter a layer with weights"
    read = _before_reshapes(families, family, read)
    batch_marker = trace.labels.fixed_marker(BATCH)
    batch_axes = [axis for axis, marker in enumerate(read.value.fixed) if marker == batch_marker]
    value_channels = indices_in_value(families, family, read.value)
    kernel_channels = indices_in_array(families, family, use.kernel, sorted(use.axes))
    if len(batch_axes) != 1 or value_channels is None or kernel_channels is None:
        return f"activations of {dotted(use.kernel)} have no plain batch and channel axes"
    gamma, beta = _find_norm(families, family, use_number, read)
    consumer_channels = None
    if read.kernel is not None:
        consumer_channels = indices_in_array(families, family, read.kernel, sorted(read.kernel_axes))
    return ProducerSite(
        group=name,
        kernel=use.kernel,
        kernel_channels=kernel_channels,
        gamma=gamma,
        beta=beta,
        consumer=read.kernel if consumer_channels is not None else None,
        consumer_channels=consumer_channels,
        value=read.value_number,
        value_channels=value_channels,
        batch_axis=batch_axes[0],
        loop_lengths=loop_lengths.get(read.value_number, ()),
    )


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


def channels_last(value: jax.Array, site: ProducerSite) -> jax.Array:
    """Returns the activations of a site (or their gradient) with examples first and channels last.

    Args:
      value: the value that enters the site's first consumer, in the network's own order of axes; if it is in loops,
        one for each iteration, along leading axes.
      site: the producer site.

    Returns:
      [N, *space, C], at least float32.
    """
    num_loops = len(site.loop_lengths)
    moved = jnp.moveaxis(value, site.batch_axis + num_loops, 0)
    axes = [axis + num_loops + (axis < site.batch_axis) for axis in site.value_channels.axes]
    activations = with_channels_last(moved, axes, site.value_channels.positions)
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
