"""Jitted calls that compute one operator for many formulas, all classes and all channels of a network at once.

A program is vmapped over the members of a stack: nodes of different formulas, or of different networks, that apply the
same operator to values of the same types. Layers of equal shape stand side by side in batches; one call covers them
all. Values stay on the device: a scalar is one array [K, channels of all batches], a larger value one array
[M, K or 1, C or 1, *axes] for each batch. Scalars and vectors of positions are stored for all classes even where
classes do not differ: that makes programs fewer, and takes more memory where there are many classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import Type, is_position_axis
from jaxprune.language.operators import AxisMasks, Implementation, Params
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import View
from jaxprune.scoring.compute import Value, compute_node
from jaxprune.scoring.graph import Kind
from jaxprune.scoring.layer_batches import LayerBatchShape, moment_values, operand_value
from jaxprune.types import Array

STACK_SIZES = (1, 8, 64)
"""How many members a program may have; smaller stacks are filled up with copies of their last member."""
TRACED_PARAMS = frozenset({"rbf"})
"""Operators whose parameters are passed as arrays, so that another value needs no other program."""
_CPU_OPTIONS: dict[str, Value] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""On a CPU, programs only show what an accelerator would do; these options halve the time to compile them."""
_UNMASKED = frozenset({"+", "-", "*", "/", "abs", "square", "sqrt", "transpose", "outer"})

Members = tuple[tuple[Operands, ...], ...]
"""Operands of one network, by batch."""


class ValueSpec(NamedTuple):
    """What a program needs to know of an argument or a result."""

    axes: Type
    """All slices of the positions are `D`: they are stored at its full length, with a mask."""
    view: View = "full"
    """Where positions are counted; "full" where there are none."""
    per_class: bool = True
    per_channel: bool = True
    is_scalar: bool = False
    """Whether it is stored as one array for all batches."""
    one_class: bool = False
    """Whether only one class is read of what is stored for all classes, because all are the same."""
    is_whole: bool = False
    """Whether all channels are stored, of which a block is read: scalars and operands."""


class Spec(NamedTuple):
    """Everything that tells one program from another."""

    kind: Kind | Literal["mean"]
    name: str
    implement: Implementation | None
    """Of the operator: one that is registered again under its name is another program."""
    params: Params
    type: Type
    arguments: tuple[ValueSpec, ...]
    result: ValueSpec
    size: int
    """Members of the stack."""
    num_blocks: int
    """How many blocks the channels of every batch are split into."""


class Inputs(NamedTuple):
    """What a program takes, or the shapes of it."""

    stacks: Sequence[Sequence[Value]]
    """For each argument the values of all members."""
    masks: Sequence[Sequence[Value]]
    """For each pair of `masked_axes` and each member which positions are real, by batch."""
    params: Sequence[Value]
    """Numbers of each member, of operators that trace them."""
    offsets: Value
    """[batches] the first channel of the block in each batch."""
    bases: Sequence[Value]
    """For each member the scalar that earlier blocks have filled; empty where there is one block."""


class Programs:
    """The programs for some batches of layers, compiled when they are first called.

    Args:
      batches: shapes of the batches of one network.
      dtype: of values.
    """

    def __init__(self, batches: tuple[LayerBatchShape, ...], dtype: np.dtype) -> None:
        self.batches, self.dtype = batches, dtype
        self.num_classes = batches[0].num_classes
        self.num_channels = sum(batch.width for batch in batches)
        self.compiled: dict[Spec, Callable[[Inputs], Value]] = {}
        self.moments = jax.jit(self._moments, static_argnums=1)
        self.operand = jax.jit(self._operand, static_argnums=(1, 2))
        self._lock = Lock()

    def __call__(self, spec: Spec, inputs: Inputs) -> Value:
        """Returns the results of the members of a stack; those of kind `mean` in one array.

        Args:
          spec: of the program.
          inputs: what it takes.
        """
        program = self.compiled.get(spec)
        if program is None:
            program = self._compile(spec)
        return program(inputs)

    def compile_all(self, specs: Sequence[Spec]) -> int:
        """Compiles programs in advance, several at a time.

        Args:
          specs: of the programs; those that are compiled already are skipped.

        Returns:
          How many programs there are now.
        """
        new = [spec for spec in dict.fromkeys(specs) if spec not in self.compiled]
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self._compile, new):
                pass
        return len(self.compiled)

    def _compile(self, spec: Spec) -> Callable[[Inputs], Value]:
        with jax.enable_x64(self.dtype == np.float64):  # a thread does not know what its caller enabled
            options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
            program = jax.jit(self.function(spec)).lower(self.inputs(spec)).compile(options)
        with self._lock:
            return self.compiled.setdefault(spec, program)

    def function(self, spec: Spec) -> Callable[[Inputs], Value]:
        """Returns what is compiled, as a function of arrays."""

        def program(inputs: Inputs) -> Value:
            if spec.kind == "mean":
                return jnp.stack(list(inputs.stacks[0])).mean(axis=1)
            if all(argument.is_scalar for argument in spec.arguments):
                return self._compute_scalars(spec, inputs)
            by_batch = [self._compute_batch(spec, number, inputs) for number in range(len(self.batches))]
            if spec.result.is_scalar:
                return [
                    self._join_batches([values[member] for values in by_batch], inputs, member)
                    for member in range(spec.size)
                ]
            return [
                jax.tree.map(lambda *parts: parts, *(values[member] for values in by_batch))
                for member in range(spec.size)
            ]

        return program

    def inputs(self, spec: Spec) -> Inputs:
        """Returns the shapes of what a program takes."""
        scalar = self._struct((self.num_classes, self.num_channels))
        values: list[Value] = []
        for argument in spec.arguments:
            shapes = [self._shape(batch, argument, spec.num_blocks) for batch in self.batches]
            values.append(scalar if argument.is_scalar else tuple(self._struct(shape) for shape in shapes))
        masks = []
        for index, _ in masked_axes(spec):
            view = spec.arguments[index].view
            lengths = [batch.axes(("D",), view)[0] for batch in self.batches]
            masks.append(tuple(jax.ShapeDtypeStruct((1, 1, 1, length), np.dtype(bool)) for length in lengths))
        has_bases = spec.result.is_scalar and spec.num_blocks > 1
        return Inputs(
            [[value] * spec.size for value in values],
            [[mask] * spec.size for mask in masks],
            [self._struct(())] * (spec.size if is_traced(spec.kind, spec.name) else 0),
            jax.ShapeDtypeStruct((len(self.batches),), np.int32),
            [scalar] * (spec.size if has_bases else 0),
        )

    def _moments(self, members: Members, view: View) -> dict[str, Value]:
        """Returns all moments of a network, as programs take them."""
        by_batch = [moment_values(jnp, own, view) for own in members]
        types: dict[int, Type] = {3: (), 4: ("D",)}
        return {
            name: self.stored([values[name] for values in by_batch], types[by_batch[0][name].ndim])
            for name in by_batch[0]
        }

    def _operand(self, members: Members, name: str, type: Type) -> Value:
        """Returns an operand of a network, as programs take it."""
        values = [operand_value(jnp, own, name) for own in members]
        return self.stored([value for value in values if value is not None], type)

    def stored(self, values: Sequence[Array], type: Type) -> Value:
        """Brings a value into the form in which programs take it.

        Args:
          values: of each batch, [M, K or 1, C or 1, *axes].
          type: of the value.

        Returns:
          One array [K, channels of all batches] for a scalar, else one for each batch.
        """
        if type not in ((), ("D",)):
            return tuple(values)
        of_all = [
            jnp.broadcast_to(value, (value.shape[0], self.num_classes, batch.num_channels, *value.shape[3:]))
            for value, batch in zip(values, self.batches, strict=True)
        ]
        if type == ("D",):
            return tuple(of_all)
        rows = [jnp.swapaxes(value, 0, 1).reshape(self.num_classes, -1) for value in of_all]
        return jnp.concatenate(rows, axis=1)

    def channels(self, batch: LayerBatchShape, num_blocks: int) -> int:
        """Returns the number of channels of a block.

        Args:
          batch: whose channels are split.
          num_blocks: into how many blocks.
        """
        return -(-batch.num_channels // num_blocks)

    def value_bytes(self, spec: ValueSpec, num_blocks: int) -> int:
        """Returns the memory that a value takes for a block of all batches.

        Args:
          spec: of the value.
          num_blocks: how many blocks the channels are split into.
        """
        if spec.is_scalar:
            return self.num_classes * self.num_channels * self.dtype.itemsize
        shapes = (self._shape(batch, spec, num_blocks) for batch in self.batches)
        return sum(int(np.prod(shape)) for shape in shapes) * self.dtype.itemsize

    def _compute_scalars(self, spec: Spec, inputs: Inputs) -> list[Array]:
        """Computes scalars from scalars: all batches are one row of channels."""
        shape = (self.num_classes, self.num_channels)
        if spec.kind == "literal":
            return [jnp.full(shape, number) for number in inputs.params]
        values = [jnp.stack(list(stack))[:, None] for stack in inputs.stacks]  # [S, 1, K, channels]
        results = jax.vmap(lambda *own: compute_node(jnp, spec, own, self.batches[0].rows))(*values)
        return [jnp.broadcast_to(result[0], shape) for result in results]

    def _compute_batch(self, spec: Spec, number: int, inputs: Inputs) -> Value:
        """Computes the results of all members for one batch."""
        batch = self.batches[number]
        values = [
            jnp.stack([self._read(value, argument, spec, number, inputs.offsets) for value in stack])
            for stack, argument in zip(inputs.stacks, spec.arguments, strict=True)
        ]
        positions = [jnp.stack([mask[number] for mask in stack]) for stack in inputs.masks]
        has_params = bool(inputs.params)
        numbers = jnp.stack(list(inputs.params)) if has_params else jnp.zeros(spec.size, self.dtype)

        def compute(values: Sequence[Array], positions: Sequence[Array], number: Array) -> Value:
            if spec.kind == "statistic":
                return self._broadcast(values[0], spec, batch)
            if spec.name == "slice":  # the slice moves to the front; a mask says how long it is
                return jnp.roll(values[0], -jnp.argmax(positions[0]), axis=-1)
            masks = self._masks(spec, batch, positions)
            params = (number,) if has_params else None
            result = compute_node(jnp, spec, values, batch.rows, masks=masks, params=params)
            if spec.kind == "statistics":
                return {
                    name: jnp.broadcast_to(value, (value.shape[0], self.num_classes, *value.shape[2:]))
                    for name, value in result.items()
                }
            return self._broadcast(result, spec, batch)

        results = jax.vmap(compute)(values, positions, numbers)
        return [jax.tree.map(lambda array, i=member: array[i], results) for member in range(spec.size)]

    def _broadcast(self, result: Array, spec: Spec, batch: LayerBatchShape) -> Array:
        """Broadcasts a result to all classes and channels that are stored."""
        shape = self._shape(batch, spec.result, spec.num_blocks)
        if spec.result.is_scalar:
            shape = (batch.num_members, self.num_classes, self.channels(batch, spec.num_blocks))
        return jnp.broadcast_to(result, shape)

    def _read(self, value: Value, argument: ValueSpec, spec: Spec, number: int, offsets: Array) -> Array:
        """Returns [M, K or 1, C or 1, *axes] an argument's part of one batch."""
        batch = self.batches[number]
        size = self.channels(batch, spec.num_blocks)
        if argument.is_scalar:
            members = value[:, batch.start : batch.start + batch.width].reshape(
                self.num_classes, batch.num_members, batch.num_channels
            )
            part = jnp.swapaxes(jax.lax.dynamic_slice_in_dim(members, offsets[number], size, 2), 0, 1)
        elif argument.is_whole:
            part = jax.lax.dynamic_slice_in_dim(value[number], offsets[number], size, 2)
        else:
            part = value[number]
        part = part[:, :1] if argument.one_class else part
        return part if spec.result.per_channel else part[:, :, :1]  # the same for all channels

    def _join_batches(self, parts: Sequence[Array], inputs: Inputs, member: int) -> Array:
        """Returns [K, channels] a scalar from the results of each batch for a block."""
        rows = []
        for number, (part, batch) in enumerate(zip(parts, self.batches, strict=True)):
            row = jnp.swapaxes(part, 0, 1)  # [K, M, C of the block]
            if inputs.bases:
                whole = inputs.bases[member][:, batch.start : batch.start + batch.width]
                whole = whole.reshape(self.num_classes, batch.num_members, batch.num_channels)
                row = jax.lax.dynamic_update_slice_in_dim(whole, row, inputs.offsets[number], 2)
            rows.append(row.reshape(self.num_classes, batch.width))
        return jnp.concatenate(rows, axis=1)

    def _masks(self, spec: Spec, batch: LayerBatchShape, positions: Sequence[Array]) -> list[AxisMasks]:
        """Returns for each argument and axis what is real."""
        remaining = iter(positions)
        masks: list[AxisMasks] = []
        for argument in spec.arguments:
            by_axis = zip(argument.axes, batch.rows.masks(argument.axes), strict=True)
            masks.append(
                tuple(next(remaining, None) if is_position_axis(axis) else mask for axis, mask in by_axis)
            )
        return masks

    def _shape(self, batch: LayerBatchShape, spec: ValueSpec, num_blocks: int) -> tuple[int, ...]:
        return (
            batch.num_members,
            self.num_classes if spec.per_class else 1,
            self.channels(batch, 1 if spec.is_whole else num_blocks) if spec.per_channel else 1,
            *batch.axes(spec.axes, spec.view),
        )

    def _struct(self, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, self.dtype)


programs_for = lru_cache(maxsize=8)(Programs)
"""The programs that networks of equal shapes share."""


def masked_axes(spec: Spec) -> list[tuple[int, int]]:
    """Returns the (argument, axis) pairs of positions for each of which a program takes a mask."""
    if spec.kind in ("rows", "statistic") or (spec.kind == "operator" and spec.name in _UNMASKED):
        return []
    return [
        (index, number)
        for index, argument in enumerate(spec.arguments)
        for number, axis in enumerate(argument.axes)
        if is_position_axis(axis)
    ]


def is_traced(kind: str, name: str) -> bool:
    """Whether a program takes its number as an array.

    Args:
      kind: of the node.
      name: of its operator.
    """
    return kind == "literal" or (kind == "operator" and name in TRACED_PARAMS)
