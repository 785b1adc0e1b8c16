"""The groups of a network: which indices of which arrays fall together, and what must stay whole and why.

`trace_structure` is the one entry: model and example in, `Structure` out. Everything after it (observing, planning,
masking, slimming) reads the structure and never the network's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import jax
from flax import nnx

from jaxprune.pruning.atoms import Dim
from jaxprune.pruning.program import Program, trace_program
from jaxprune.pruning.records import Production, Trace, Use
from jaxprune.pruning.states import FlatState, Path, dotted, fingerprint, parameter_paths, split_model
from jaxprune.pruning.tracing import walk
from jaxprune.types import Array

Layout = tuple[tuple[tuple[str | None, int], ...], ...]
"""Per axis its factors, slowest first, as (group name or None, size): what slicing and masking need."""


@dataclass(frozen=True)
class Member:
    """One axis of one array that loses indices with the group.

    The axis is `before` x channels x `after`, slowest first: both 1 for a plain channel axis, `before` = h*w for a
    dense layer after flattening [h, w, c].
    """

    path: Path
    axis: int
    before: int
    after: int

    def __str__(self) -> str:
        repeats = "" if (self.before, self.after) == (1, 1) else f" as {self.before} x channel x {self.after}"
        return f"{dotted(self.path)} axis {self.axis}{repeats}"


@dataclass(frozen=True)
class Site:
    """What is read for one producer of a group: its kernel, the norm after it, and its first consumer.

    `value` numbers the activations entering that consumer; `value_layout` gives their factors in order as
    `"batch"`, `"channel"` or `"position"` with sizes.
    """

    group: str
    kernel: Path
    axis: int
    gamma: Path | None
    beta: Path | None
    consumer: Path
    consumer_axis: int
    value: int
    value_layout: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Group:
    """Channels that are kept or removed together.

    `name` is the dotted path of the first producing kernel in program order; `producers` are scored, `consumers`
    read the channels.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Structure:
    """Groups of one network, what is frozen and why, and its costs as functions of the groups' widths.

    Compared by identity, so that it can be a static argument of `jax.jit`.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, str]
    """`"path[axis]"` -> reason, for every parameter axis longer than one that belongs to no group."""
    sites: Mapping[str, Site]
    """Producer path -> what to observe for it."""
    layouts: Mapping[Path, Layout]
    trained: frozenset[Path]
    contractions: tuple[tuple[int, tuple[str, ...]], ...]
    """Multiply-adds per example: sum of constant x product of the named groups' widths."""
    fingerprint: str
    example: jax.ShapeDtypeStruct
    program: Program

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels, in program order."""
        return {name: group.size for name, group in self.groups.items()}

    def count_macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-adds of convolutions and matrix products for one example, at these widths."""
        full = {**self.widths, **(widths or {})}
        return sum(constant * prod(full[name] for name in names) for constant, names in self.contractions)

    def count_parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of trained parameters at these widths."""
        full = {**self.widths, **(widths or {})}
        return sum(
            prod(
                full[name] if name is not None else size for axis in self.layouts[path] for name, size in axis
            )
            for path in self.trained
        )

    def why_frozen(self, path: str) -> str:
        """Why a parameter's axes are never cut, in words; says so when they can be.

        Raises:
          ValueError: if the network has no such parameter.
        """
        names = {dotted(known) for known in self.layouts}
        if path not in names:
            raise ValueError(
                f"needs the dotted path of an array of the network, got {path!r}; it has {sorted(names)}."
            )
        lines = [f"{key}: {reason}" for key, reason in self.frozen.items() if key.rpartition("[")[0] == path]
        return "\n".join(lines) or f"nothing of {path} is frozen"

    def require_groups(self) -> None:
        """Raises if nothing can be pruned, with the reasons.

        Raises:
          ValueError: if there is no group at all.
        """
        if not self.groups:
            reasons = "; ".join(f"{key}: {reason}" for key, reason in self.frozen.items())
            raise ValueError(
                "needs a network with at least one channel that can be removed, but every axis is frozen "
                f"({reasons or 'it has no parameters'}). Hidden layers between two layers with weights can be pruned."
            )


def trace_structure(model: nnx.Module, example: Array | jax.ShapeDtypeStruct) -> Structure:
    """Finds the groups of a network by tracing it once in evaluation mode.

    Only shapes are used. Layers that the tracer does not understand are frozen with a reason that names the
    operation and the source line; inputs and outputs of the network are never cut.

    Args:
      model: NNX module called as `model(images)`; it is not changed.
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
    return structure_of(graphdef, flat, rest, parameter_paths(model), example, batch=2)


def structure_of(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: FlatState,
    trained: frozenset[Path],
    example: Array | jax.ShapeDtypeStruct,
    *,
    batch: int,
) -> Structure:
    """`trace_structure` for a model already taken apart, at a given batch size (at least 2)."""
    if len(example.shape) == 0:
        raise ValueError("needs an example with a batch axis, got a scalar. Pass images[:1].")
    shape = (batch, *example.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(example.dtype))
    trace = walk(trace_program(graphdef, flat, rest, images), trained)
    return _Grouping(trace).structure(fingerprint(flat), images)


class _Grouping:
    """Turns the atoms of a finished walk into groups."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.atoms = trace.atoms
        self.batch = trace.atoms.leaves(trace.batch)
        self.axes = {path: [self.atoms.leaves(dim) for dim in dims] for path, dims in trace.layouts.items()}
        self.consumed: dict[int, list[str]] = {}
        for path, dim in trace.consumers:
            for leaf in self.atoms.leaves(dim):
                self.consumed.setdefault(leaf, []).append(dotted(path))
        self.made: dict[int, list[Production]] = {}

    def structure(self, digest: str, example: jax.ShapeDtypeStruct) -> Structure:
        for production in self.trace.productions:
            self._check(production)
        for leaf, productions in list(self.made.items()):
            if self.atoms.reason(leaf) is not None or self._unusable(leaf, productions):
                del self.made[leaf]
        names = {leaf: dotted(productions[0].kernel) for leaf, productions in self.made.items()}
        groups = {name: self._group(leaf, name) for leaf, name in names.items()}
        sites = {
            dotted(production.kernel): self._site(leaf, names[leaf], production)
            for leaf, productions in self.made.items()
            for production in reversed(productions)  # of a shared kernel's uses the first one is read
        }
        layouts = {
            path: tuple(tuple((names.get(leaf), self.atoms.size(leaf)) for leaf in axis) for axis in axes)
            for path, axes in self.axes.items()
        }
        return Structure(
            groups=groups,
            frozen=self._frozen(names),
            sites={producer: sites[producer] for group in groups.values() for producer in group.producers},
            layouts=layouts,
            trained=self.trace.trained & set(layouts),
            contractions=self._contractions(names),
            fingerprint=digest,
            example=example,
            program=self.trace.program,
        )

    def _check(self, production: Production) -> None:
        """Files a production under its channel atom, or freezes what is not one whole kernel axis."""
        leaves = self.atoms.leaves(production.dim)
        path = production.kernel
        if len(leaves) != 1:
            self.atoms.freeze(leaves, f"the output channels of {dotted(path)} are split into several axes")
        elif self._axis(path, production.dim) is None:
            self.atoms.freeze(leaves, f"{dotted(path)} has no axis of its own for its output channels")
        else:
            self.made.setdefault(leaves[0], []).append(production)

    def _unusable(self, leaf: int, productions: Sequence[Production]) -> bool:
        """Freezes channels that no layer reads, or whose activations cannot be read channel by channel."""
        reason = None
        if leaf not in self.consumed:
            reason = "no layer with weights reads these channels"
        for production in productions:
            if production.use is None:
                reason = reason or f"channels of {dotted(production.kernel)} never enter a layer with weights"
                continue
            leaves = [part for dim in production.use.dims for part in self.atoms.leaves(dim)]
            if leaves.count(leaf) != 1 or any(leaves.count(part) != 1 for part in self.batch):
                reason = (
                    reason
                    or f"activations of {dotted(production.kernel)} have no plain batch and channel axes"
                )
            if self._consumer_axis(leaf, production.use) is None:
                reason = (
                    reason or f"{dotted(production.use.kernel)} reads these channels on no axis of its own"
                )
        if reason is not None:
            self.atoms.freeze((leaf,), reason)
        return reason is not None

    def _axis(self, path: Path, dim: Dim) -> int | None:
        """Which axis of an array `dim` is; by its atoms as first numbered, so that tied axes stay apart."""
        axes = [axis for axis, known in enumerate(self.trace.layouts[path]) if known == dim]
        return axes[0] if len(axes) == 1 else None

    def _consumer_axis(self, leaf: int, use: Use) -> int | None:
        axes = [self._axis(use.kernel, dim) for dim in use.contracted if leaf in self.atoms.leaves(dim)]
        if len(axes) != 1 or axes[0] is None or self.axes[use.kernel][axes[0]].count(leaf) != 1:
            return None
        return axes[0]

    def _group(self, leaf: int, name: str) -> Group:
        members = [
            Member(
                path,
                axis,
                before=prod(self.atoms.size(part) for part in leaves[:position]),
                after=prod(self.atoms.size(part) for part in leaves[position + 1 :]),
            )
            for path, axes in self.axes.items()
            for axis, leaves in enumerate(axes)
            for position, part in enumerate(leaves)
            if part == leaf
        ]
        return Group(
            name=name,
            size=self.atoms.size(leaf),
            members=tuple(members),
            producers=tuple(dict.fromkeys(dotted(production.kernel) for production in self.made[leaf])),
            consumers=tuple(dict.fromkeys(self.consumed[leaf])),
        )

    def _site(self, leaf: int, group: str, production: Production) -> Site:
        use, axis = production.use, self._axis(production.kernel, production.dim)
        assert use is not None and axis is not None  # checked by _unusable and _check
        consumer_axis = self._consumer_axis(leaf, use)
        assert consumer_axis is not None
        leaves = [part for dim in use.dims for part in self.atoms.leaves(dim)]
        kinds = {leaf: "channel", **dict.fromkeys(self.batch, "batch")}
        return Site(
            group=group,
            kernel=production.kernel,
            axis=axis,
            gamma=production.gamma,
            beta=production.beta,
            consumer=use.kernel,
            consumer_axis=consumer_axis,
            value=use.value,
            value_layout=tuple((kinds.get(part, "position"), self.atoms.size(part)) for part in leaves),
        )

    def _frozen(self, names: Mapping[int, str]) -> dict[str, str]:
        result: dict[str, str] = {}
        for path, axes in self.axes.items():
            for axis, leaves in enumerate(axes):
                free = [leaf for leaf in leaves if leaf not in names]
                if leaves and len(free) == len(leaves):
                    reasons = [reason for leaf in free if (reason := self.atoms.reason(leaf)) is not None]
                    result[f"{dotted(path)}[{axis}]"] = (
                        reasons[0] if reasons else "no layer makes these indices"
                    )
        return result

    def _contractions(self, names: Mapping[int, str]) -> tuple[tuple[int, tuple[str, ...]], ...]:
        result = []
        for cost in self.trace.costs:
            leaves: Dim = tuple(leaf for dim in cost.dims for leaf in self.atoms.leaves(dim))
            constant = prod(
                self.atoms.size(leaf) for leaf in leaves if leaf not in names and leaf not in self.batch
            )
            result.append((constant, tuple(names[leaf] for leaf in leaves if leaf in names)))
        return tuple(result)
