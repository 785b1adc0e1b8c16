"""Jitted calls that compute one operator for many formulas, all classes and all channels of a network at once.

A program is vmapped over the members of a stack: steps of different formulas, or of different networks, that apply the
same operator to values of the same types. Layers of equal shape stand side by side in groups; one call covers them all.
Values stay on the device: a scalar is one array [K, channels of all groups], a larger value one array
[M, K or 1, C or 1, *axes] for each group. Scalars and vectors of positions are stored for all classes even where these
do not differ: that keeps programs few, and costs memory where classes are many.
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
from jaxprune.scoring.compute import Value, compute_step
from jaxprune.scoring.graph import Kind
from jaxprune.scoring.layer_batches import LayerBatchShape
from jaxprune.scoring.leaves import moment_values, operand_value
from jaxprune.types import Array

STACK_SIZES = (1, 8, 64)
"""How many members a program has; what is left of a stack is filled up with copies of its last member."""
TRACED_PARAMS = frozenset({"rbf"})
"""Operators whose parameters are ordinary numbers: another width is no other program."""
_ON_CPU: dict[str, Value] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""There programs only show what an accelerator would do: they compile in half the time so."""
_UNMASKED = frozenset({"+", "-", "*", "/", "abs", "square", "sqrt", "transpose", "outer"})


Members = tuple[tuple[Operands, ...], ...]
"""Operands of one network, by group."""


class ValueSpec(NamedTuple):
    """What a program needs to know of an argument or a result."""

    axes: Type
    """All slices of the positions are `D`: they are stored at its full length, behind a mask."""
    view: View = "full"
    """Where positions are counted; "full" where there are none."""
    per_class: bool = True
    per_channel: bool = True
    is_scalar: bool = False
    """Whether it is stored as one array for all groups."""
    one_class: bool = False
    """Whether what is stored for all classes is read for one, as it is the same for all."""
    is_whole: bool = False
    """Whether all channels are there, of which a block is read: scalars and operands."""


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
    """A block has one part in so many of the channels of every group."""


class Inputs(NamedTuple):
    """What a program takes, or the shapes of it."""

    stacks: Sequence[Sequence[Value]]
    """For each argument the values of all members."""
    masks: Sequence[Sequence[Value]]
    """For each pair of `masked_axes` and each member which positions are real, by group."""
    params: Sequence[Value]
    """Numbers of each member, of operators that trace them."""
    offsets: Value
    """[groups] the first channel of the block in each."""
    bases: Sequence[Value]
    """For each member the scalar that blocks before have filled; empty where there is one block."""


class Programs:
    """The programs for some groups of layers, compiled when they are first asked for.

    Args:
      groups: of one network.
      dtype: of values.
    """

    def __init__(self, groups: tuple[LayerBatchShape, ...], dtype: np.dtype) -> None:
        self.groups, self.dtype = groups, dtype
        self.num_classes = groups[0].num_classes
        self.num_channels = sum(group.width for group in groups)
        self.compiled: dict[Spec, Callable[[Inputs], Value]] = {}
        self.moments = jax.jit(self._moments, static_argnums=1)
        self.operand = jax.jit(self._operand, static_argnums=(1, 2))
        self._lock = Lock()

    def __call__(self, spec: Spec, inputs: Inputs) -> Value:
        """The results of the members of a stack; of kind `mean` one array of them."""
        program = self.compiled.get(spec)
        if program is None:
            program = self._compile(spec)
        return program(inputs)

    def function(self, spec: Spec) -> Callable[[Inputs], Value]:
        """What is compiled, as a function of arrays."""

        def program(inputs: Inputs) -> Value:
            if spec.kind == "mean":
                return jnp.stack(list(inputs.stacks[0])).mean(axis=1)
            if all(argument.is_scalar for argument in spec.arguments):
                return self._scalars(spec, inputs)
            found = [self._of_group(spec, number, inputs) for number in range(len(self.groups))]
            if spec.result.is_scalar:
                return [
                    self._joined([each[member] for each in found], inputs, member)
                    for member in range(spec.size)
                ]
            return [
                jax.tree.map(lambda *each: each, *(one[member] for one in found))
                for member in range(spec.size)
            ]

        return program

    def inputs(self, spec: Spec) -> Inputs:
        """Shapes of what the program takes."""
        values = [self._shapes(argument, spec) for argument in spec.arguments]
        masks = [self._mask_shapes(spec.arguments[index]) for index, _ in masked_axes(spec)]
        scalar = self._struct((self.num_classes, self.num_channels))
        has_bases = spec.result.is_scalar and spec.num_blocks > 1
        return Inputs(
            [[value] * spec.size for value in values],
            [[mask] * spec.size for mask in masks],
            [self._struct(())] * (spec.size if is_traced(spec.kind, spec.name) else 0),
            jax.ShapeDtypeStruct((len(self.groups),), np.int32),
            [scalar] * (spec.size if has_bases else 0),
        )

    def _moments(self, members: Members, view: View) -> dict[str, Value]:
        """All moments of a network, as programs take them; `members` are those of each group."""
        found = [moment_values(jnp, own, view) for own in members]
        types: dict[int, Type] = {3: (), 4: ("D",)}
        return {
            name: self.stored([own[name] for own in found], types[found[0][name].ndim]) for name in found[0]
        }

    def _operand(self, members: Members, name: str, type: Type) -> Value:
        """A built-in operand of a network, as programs take it."""
        found = [operand_value(jnp, own, name) for own in members]
        return self.stored([value for value in found if value is not None], type)

    def stored(self, values: Sequence[Array], type: Type) -> Value:
        """A value of all groups as programs take it."""
        if type not in ((), ("D",)):
            return tuple(values)
        of_all = [
            jnp.broadcast_to(value, (value.shape[0], self.num_classes, group.num_channels, *value.shape[3:]))
            for value, group in zip(values, self.groups, strict=True)
        ]
        if type == ("D",):
            return tuple(of_all)
        joined = [jnp.swapaxes(value, 0, 1).reshape(self.num_classes, -1) for value in of_all]
        return jnp.concatenate(joined, axis=1)

    def channels(self, group: LayerBatchShape, num_blocks: int) -> int:
        """Channels of a block of a group."""
        return -(-group.num_channels // num_blocks)

    def value_bytes(self, spec: ValueSpec, num_blocks: int) -> int:
        """Of a value for a block of all groups."""
        if spec.is_scalar:
            return self.num_classes * self.num_channels * self.dtype.itemsize
        shapes = (self._shape(group, spec, num_blocks) for group in self.groups)
        return sum(int(np.prod(shape)) for shape in shapes) * self.dtype.itemsize

    def compile_all(self, specs: Sequence[Spec]) -> int:
        """Compiles programs ahead, several at a time; returns how many there are now."""
        wanted = [spec for spec in dict.fromkeys(specs) if spec not in self.compiled]
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self._compile, wanted):
                pass
        return len(self.compiled)

    def _compile(self, spec: Spec) -> Callable[[Inputs], Value]:
        with jax.enable_x64(self.dtype == np.float64):  # a thread does not know what its caller enabled
            options = _ON_CPU if jax.default_backend() == "cpu" else None
            program = jax.jit(self.function(spec)).lower(self.inputs(spec)).compile(options)
        with self._lock:
            return self.compiled.setdefault(spec, program)

    def _scalars(self, spec: Spec, inputs: Inputs) -> list[Array]:
        """Scalars from scalars: all groups are one row of channels."""
        shape = (self.num_classes, self.num_channels)
        if spec.kind == "literal":
            return [jnp.full(shape, number) for number in inputs.params]
        values = [jnp.stack(list(stack))[:, None] for stack in inputs.stacks]  # [S, 1, K, channels]
        found = jax.vmap(lambda *own: compute_step(jnp, spec, own, self.groups[0].rows))(*values)
        return [jnp.broadcast_to(each[0], shape) for each in found]

    def _of_group(self, spec: Spec, number: int, inputs: Inputs) -> Value:
        """Results of one group, stacked over members."""
        group = self.groups[number]
        values = [
            jnp.stack([self._read(value, argument, spec, number, inputs.offsets) for value in stack])
            for stack, argument in zip(inputs.stacks, spec.arguments, strict=True)
        ]
        positions = [jnp.stack([mask[number] for mask in stack]) for stack in inputs.masks]
        has_params = bool(inputs.params)
        numbers = jnp.stack(list(inputs.params)) if has_params else jnp.zeros(spec.size, self.dtype)

        def one(values: Sequence[Array], positions: Sequence[Array], number: Array) -> Value:
            if spec.kind == "statistic":
                return self._whole(values[0], spec, group)
            if (
                spec.name == "slice"
            ):  # what is kept comes to the front; a mask says how many positions that are
                return jnp.roll(values[0], -jnp.argmax(positions[0]), axis=-1)
            masks = self._masks(spec, group, positions)
            own = (number,) if has_params else None
            found = compute_step(jnp, spec, values, group.rows, masks=masks, params=own)
            if spec.kind == "statistics":
                return {name: self._for_all_classes(value) for name, value in found.items()}
            return self._whole(found, spec, group)

        found = jax.vmap(one)(values, positions, numbers)
        return [jax.tree.map(lambda each, i=member: each[i], found) for member in range(spec.size)]

    def _for_all_classes(self, value: Array) -> Array:
        return jnp.broadcast_to(value, (value.shape[0], self.num_classes, *value.shape[2:]))

    def _whole(self, found: Array, spec: Spec, group: LayerBatchShape) -> Array:
        """The result with all classes and channels that its values are stored with."""
        shape = self._shape(group, spec.result, spec.num_blocks)
        if spec.result.is_scalar:
            shape = (group.num_members, self.num_classes, self.channels(group, spec.num_blocks))
        return jnp.broadcast_to(found, shape)

    def _read(self, value: Value, argument: ValueSpec, spec: Spec, number: int, offsets: Array) -> Array:
        """[M, K or 1, C or 1, *axes] an argument's part of one group."""
        group = self.groups[number]
        if not argument.is_scalar:
            own = value[number]
            if argument.is_whole:
                size = self.channels(group, spec.num_blocks)
                own = jax.lax.dynamic_slice_in_dim(own, offsets[number], size, 2)
        else:
            members = value[:, group.start : group.start + group.width].reshape(
                self.num_classes, group.num_members, group.num_channels
            )
            size = self.channels(group, spec.num_blocks)
            own = jnp.swapaxes(jax.lax.dynamic_slice_in_dim(members, offsets[number], size, 2), 0, 1)
        own = own[:, :1] if argument.one_class else own
        return own if spec.result.per_channel else own[:, :, :1]  # the same for all channels

    def _joined(self, parts: Sequence[Array], inputs: Inputs, member: int) -> Array:
        """[K, channels] a scalar from what each group gave for a block."""
        found = []
        for number, (part, group) in enumerate(zip(parts, self.groups, strict=True)):
            own = jnp.swapaxes(part, 0, 1)  # [K, M, C of the block]
            if inputs.bases:
                whole = inputs.bases[member][:, group.start : group.start + group.width]
                whole = whole.reshape(self.num_classes, group.num_members, group.num_channels)
                own = jax.lax.dynamic_update_slice_in_dim(whole, own, inputs.offsets[number], 2)
            found.append(own.reshape(self.num_classes, group.width))
        return jnp.concatenate(found, axis=1)

    def _masks(self, spec: Spec, group: LayerBatchShape, positions: Sequence[Array]) -> list[AxisMasks]:
        """For each argument and axis what is real."""
        own = iter(positions)
        found: list[AxisMasks] = []
        for argument in spec.arguments:
            by_axis = group.rows.masks(argument.axes)
            masks = [
                next(own, None) if is_position_axis(axis) else mask
                for axis, mask in zip(argument.axes, by_axis, strict=True)
            ]
            found.append(tuple(masks))
        return found

    def _mask_shapes(self, argument: ValueSpec) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(
            jax.ShapeDtypeStruct((1, 1, 1, group.axes(("D",), argument.view)[0]), np.dtype(bool))
            for group in self.groups
        )

    def _shapes(self, argument: ValueSpec, spec: Spec) -> Value:
        if argument.is_scalar:
            return self._struct((self.num_classes, self.num_channels))
        return tuple(self._struct(self._shape(group, argument, spec.num_blocks)) for group in self.groups)

    def _shape(self, group: LayerBatchShape, spec: ValueSpec, num_blocks: int) -> tuple[int, ...]:
        return (
            group.num_members,
            self.num_classes if spec.per_class else 1,
            self.channels(group, 1 if spec.is_whole else num_blocks) if spec.per_channel else 1,
            *group.axes(spec.axes, spec.view),
        )

    def _struct(self, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, self.dtype)


programs_for = lru_cache(maxsize=8)(Programs)
"""The programs that networks of equal shapes share."""


def masked_axes(spec: Spec) -> list[tuple[int, int]]:
    """(argument, axis) pairs of positions, for each of which a program takes a mask."""
    if spec.kind in ("rows", "statistic") or (spec.kind == "operator" and spec.name in _UNMASKED):
        return []
    return [
        (index, number)
        for index, argument in enumerate(spec.arguments)
        for number, axis in enumerate(argument.axes)
        if is_position_axis(axis)
    ]


def is_traced(kind: str, name: str) -> bool:
    """Whether a program takes its numbers as arrays."""
    return kind == "literal" or (kind == "operator" and name in TRACED_PARAMS)
