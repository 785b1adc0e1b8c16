"""Consumer sites: the layers that read the channels of a group, and what a correction of their weights has to know.

A layer qualifies if its output is a sum over channels with a stored kernel that nothing else reads. Then it can make
good for removed channels what it can compute of them from those that stay (see `pruning/compensation.py`). A grouped
convolution is several such layers, one for each block of channels that it reads. For everything else that reads
channels of a group there is a reason in words why it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.structure.labels import distinct
from jaxprune.structure.liveness import is_dead
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.producer_sites import indices_in_array, indices_in_value
from jaxprune.structure.program import Operation
from jaxprune.structure.propagation import BATCH
from jaxprune.structure.trace import ChannelRead

_DOT, _CONV = "dot_general", "conv_general_dilated"
_SAME = "convert_element_type copy layout_constraint name pvary reshard sharding_constraint".split()
"""Operations on one array that return it."""
_ALONG = (*_SAME, "reshape", "broadcast_in_dim", "squeeze")
"""Operations that leave the entries of a vector in order along the one axis that they are on."""


class Shift(NamedTuple):
    """A vector that shifts the output of a layer before anything else happens to it, and that nothing else reads."""

    path: Path
    """[channels made] a bias, or the mean of a batch norm."""
    sign: int
    """1 if it is added, -1 if it is subtracted."""
    kernel_axis: int
    """Axis of the layer's kernel for the channels that it makes."""


@dataclass(frozen=True, eq=False)
class ConsumerSite:
    """A layer, or a block of a grouped convolution, that reads the channels of a group as a sum with a kernel."""

    group: str
    kernel: Path
    axis: int
    """Axis of the kernel that the channels lie on."""
    positions: np.ndarray
    """[C, m] the indices of each channel on that axis."""
    shift: Shift | None
    """None if nothing shifts the output by one number a channel."""
    value: int
    """Number of the activations that enter the layer, in the program."""
    value_axis: int
    value_positions: np.ndarray
    """[C, m] the indices of each channel on `value_axis`: the same, but for a block those within the block."""
    batch_axis: int
    kernel_axis: int | None
    """Axis of the kernel for the channels that it makes; None where several axes are, or a stride lies in the input."""
    block: tuple[int, int] | None = None
    """(number, count) where this is one block of a grouped convolution, which makes a block of channels."""

    @property
    def name(self) -> str:
        """The group and the layer, for keys and messages."""
        block = "" if self.block is None else f" block {self.block[0] + 1} of {self.block[1]}"
        return f"{self.group} -> {dotted(self.kernel)}{block}"

    def own_outputs(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Returns a view of the part of an array that makes this block's channels.

        Args:
          array: the kernel, or a vector that shifts its output.
          axis: the axis of the channels that it makes.
        """
        if self.block is None:
            return array
        number, count = self.block
        size = array.shape[axis] // count
        return array[(slice(None),) * axis + (slice(number * size, (number + 1) * size),)]


class Consumers(NamedTuple):
    """Who reads the channels of each group."""

    sites: Mapping[str, tuple[ConsumerSite, ...]]
    """Group -> layers."""
    problems: Mapping[str, tuple[str, ...]]
    """Group -> what reads its channels otherwise, in words, for groups where anything does."""


@lru_cache(maxsize=16)
def find_consumers(structure: Structure) -> Consumers:
    """Finds who reads the channels of each group.

    A depthwise convolution, and any other operation that treats each channel on its own, only passes channels on: what
    reads its output counts. A grouped convolution passes on whole blocks of its channels likewise, and mixes the
    channels within each block.

    Args:
      structure: groups of the network.

    Returns:
      The consumers; the last ones are cached.
    """
    finder = _Finder(structure)
    sites, problems = {}, {}
    for family, name in enumerate(structure.groups):
        reads = [structure.families.trace.reads[index] for index in structure.families.reads[family]]
        found = [finder.find(family, name, read) for read in reads]
        sites[name] = tuple(site for sites in found if isinstance(sites, tuple) for site in sites)
        words = [*(text for text in found if isinstance(text, str)), *finder.reductions.get(family, ())]
        if words:
            problems[name] = tuple(dict.fromkeys(words))
    return Consumers(sites, problems)


class _Finder:
    """Finds consumers in one network.

    Args:
      structure: groups of the network.
    """

    def __init__(self, structure: Structure) -> None:
        self._families, self._program = structure.families, structure.program
        self._trace = structure.families.trace
        self._paths = {number: path for path, number in self._program.parameters.items()}
        self._users: dict[int, list[Operation]] = {}
        for operation in (each for each in self._program.operations if not is_dead(each, self._trace.live)):
            for number in operation.inputs:
                if isinstance(number, int):
                    self._users.setdefault(number, []).append(operation)
        self.reductions = self._find_reductions()
        """Family -> what is computed from all its channels together, in words."""

    def find(self, family: int, group: str, read: ChannelRead) -> tuple[ConsumerSite, ...] | str | None:
        """Returns the layer or its blocks that read channels, why it does not qualify, or None if it passes them on."""
        operations = [
            operation for operation in self._users.get(read.value_number, []) if self._is_of(operation, read)
        ]
        kernel = "other activations or a constant" if read.kernel is None else dotted(read.kernel)
        if not operations:
            return f"{kernel}, in a loop or a branch"
        value_channels = indices_in_value(self._families, family, read.value)
        if value_channels is not None and all(
            _is_passed_on(operation, read, value_channels.axes) for operation in operations
        ):
            return None
        operation = operations[0]
        if read.kernel is None:
            return f"the product with {kernel} in {operation.location}"
        number = operation.inputs[1 - operation.inputs.index(read.value_number)]
        if len(operations) > 1 or self._source(number, _SAME) != read.kernel:
            return f"{kernel}, which is not read just once, and as it is stored"
        channels = indices_in_array(self._families, family, read.kernel, sorted(read.kernel_axes))
        batch_marker = self._trace.labels.fixed_marker(BATCH)
        batch_axes = [axis for axis, marker in enumerate(read.value.fixed) if marker == batch_marker]
        batch_size = self._program.example.batch_size
        if (
            channels is None
            or value_channels is None
            or len(value_channels.axes) != 1
            or [read.value.shape[axis] for axis in batch_axes] != [batch_size]
        ):
            return f"{kernel}, whose input has no plain batch and channel axes"
        made = _made_axes(operation, read)
        count = int(operation.equation.params["feature_group_count"]) if operation.name == _CONV else 1
        if count > 1 and channels.axes[0] == operation.equation.params["dimension_numbers"].rhs_spec[0]:
            return None  # whole blocks, with the channels that are made of them
        in_blocks = _in_blocks(
            value_channels.positions, channels.positions, count, read.value.shape[value_channels.axes[0]]
        )
        if in_blocks is None or (count > 1 and made is None):
            kind = ", a grouped convolution" if count > 1 else ""
            return f"{kernel}{kind}, whose input has no plain batch and channel axes"
        shift = self._find_shift(operation, made)
        return tuple(
            ConsumerSite(
                group=group,
                kernel=read.kernel,
                axis=channels.axes[0],
                positions=channels.positions,
                shift=shift,
                value=read.value_number,
                value_axis=value_channels.axes[0],
                value_positions=positions,
                batch_axis=batch_axes[0],
                kernel_axis=None if made is None else made[0],
                block=(number, count) if count > 1 else None,
            )
            for number, positions in enumerate(in_blocks)
        )

    def _is_of(self, operation: Operation, read: ChannelRead) -> bool:
        """Whether an operation is the contraction, or one of several, that a read was noted for."""
        if operation.name not in (_DOT, _CONV):
            return False
        other = operation.inputs[1 - operation.inputs.index(read.value_number)]
        value = self._trace.values[other] if isinstance(other, int) else None
        has_kernel = value is not None and bool(value.sources) and not value.is_activation
        if read.kernel is None:
            return not has_kernel
        return value is not None and has_kernel and read.kernel in value.sources

    def _source(self, number: object, allowed: Sequence[str]) -> Path | None:
        """The parameter that a value is, up to some operations; None if there are others, or other readers."""
        while isinstance(number, int) and len(self._users.get(number, [])) == 1:
            if number in self._paths:
                return self._paths[number]
            maker = self._program.makers.get(number)
            if maker is None or maker.name not in allowed:
                return None
            number = maker.inputs[0]
        return None

    def _find_shift(self, operation: Operation, made: tuple[int, int] | None) -> Shift | None:
        """What shifts the channels that an operation makes; `made` are their axes in the kernel and in its output."""
        number = operation.outputs[0]
        while made and number not in self._program.outputs and len(self._users.get(number, [])) == 1:
            (user,) = self._users[number]
            if user.name in ("add", "sub"):
                other = user.inputs[1 - user.inputs.index(number)]
                path = self._vector(other, made[1], self._program.shapes[number])
                return None if path is None else Shift(path, 1 if user.name == "add" else -1, made[0])
            if user.name not in _SAME:
                break
            number = user.outputs[0]
        return None

    def _vector(self, number: object, axis: int, shape: Sequence[int]) -> Path | None:
        """The parameter, a vector along one axis of a value of this shape, that another value repeats."""
        path = self._source(number, _ALONG)
        if path is None or not isinstance(number, int):
            return None
        followed = self._trace.values[number].source_axes
        length = self._program.shapes[self._program.parameters[path]]
        is_along = all(bool(axes) == (index == axis) for index, axes in enumerate(followed))
        return path if length == (shape[axis],) and (is_along or length == (1,)) else None

    def _find_reductions(self) -> dict[int, list[str]]:
        """Family -> sums, largest values and the like over its channels, in words with their lines."""
        families, found = self._families, dict[int, list[str]]()
        for operation in _all_operations(self._program.operations):
            is_reduction = operation.name.startswith("reduce_") and "axes" in operation.equation.params
            if not is_reduction or is_dead(operation, self._trace.live):
                continue
            (number, *_), axes = operation.inputs, set(operation.equation.params["axes"])
            value = self._trace.values.get(number) if isinstance(number, int) else None
            for field in value.fields if value is not None and value.is_activation else ():
                if axes.isdisjoint(field.axes):
                    continue
                at = families.locate(self._trace.labels.find(field.labels))[0]
                for family in distinct(at[at >= 0].reshape(-1)).tolist():
                    words = f"a value of all channels together (a norm, say) in {operation.location}"
                    found.setdefault(family, []).append(words)
        return found


def _all_operations(operations: Sequence[Operation]) -> Iterator[Operation]:
    """Yields operations with those inside of loops and branches."""
    for operation in operations:
        yield operation
        for body in operation.bodies:
            yield from _all_operations(body.operations)


def _is_passed_on(operation: Operation, read: ChannelRead, axes: Sequence[int]) -> bool:
    """Whether an operation computes each channel of its output from one channel; `axes` hold the channels."""
    params, side = operation.equation.params, operation.inputs.index(read.value_number)
    if operation.name == _CONV:
        num_groups, spec = int(params["feature_group_count"]), params["dimension_numbers"].lhs_spec
        return side == 0 and num_groups > 1 and read.value.shape[spec[1]] == num_groups
    return set(axes) <= set(params["dimension_numbers"][1][side])


def _in_blocks(
    in_value: np.ndarray, in_kernel: np.ndarray, count: int, length: int
) -> list[np.ndarray] | None:
    """Returns the positions [C, m] of each channel in each block of an input; None where blocks are not alike.

    Args:
      in_value: [C, count * m] positions in the whole input, rising.
      in_kernel: [C, m] positions on the axis of the kernel, which is as long as a block.
      count: number of blocks.
      length: of the whole input.
    """
    if count == 1:
        return [in_value] if np.array_equal(in_value, in_kernel) else None
    blocks = [in_kernel + number * (length // count) for number in range(count)]
    return blocks if np.array_equal(np.concatenate(blocks, axis=1), in_value) else None


def _made_axes(operation: Operation, read: ChannelRead) -> tuple[int, int] | None:
    """The axis of the kernel for the channels that an operation makes, and their axis in its output.

    None where these are several axes, or where a constant input does not make a constant output (in a transposed
    convolution, where zeros lie between the entries).
    """
    params, side = operation.equation.params, operation.inputs.index(read.value_number)
    if operation.name == _CONV:
        numbers = params["dimension_numbers"]
        is_plain = side == 0 and all(step == 1 for step in params["lhs_dilation"])
        return (numbers.rhs_spec[0], numbers.out_spec[1]) if is_plain else None
    summed, batched = params["dimension_numbers"]
    ranks = [len(getattr(variable.aval, "shape", ())) for variable in operation.equation.invars]
    left = [
        [axis for axis in range(rank) if axis not in {*summed[number], *batched[number]}]
        for number, rank in enumerate(ranks)
    ]
    if batched[0] or len(left[1 - side]) != 1:
        return None
    return left[1 - side][0], len(left[0]) if side == 0 else 0
