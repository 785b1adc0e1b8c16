"""The groups of a network: which indices of which arrays fall together, and what must stay whole and why.

`Structure` is the result of `trace_structure`. Everything that comes later (observing, planning, masking, slimming)
reads the structure and never the network's code.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from jaxprune.nets.inputs import Example
from jaxprune.structure.channel_classes import ChannelFamilies, find_families, name_families
from jaxprune.structure.labels import Labels, distinct
from jaxprune.structure.layouts import Field, Layout, count_kept, holds_any
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.nesting import inner_groups, is_of_blocks
from jaxprune.structure.producer_sites import ProducerSite, find_sites
from jaxprune.structure.program import Program
from jaxprune.structure.propagation import propagate
from jaxprune.structure.trace import Trace
from jaxprune.structure.weight_norms import NormalisedWeight, normalised_weights


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one array that loses indices with the group."""

    path: Path
    axis: int
    channels: np.ndarray
    """[length] the channel at each index, -1 at indices of no channel of the group."""

    @property
    def indices_per_channel(self) -> int:
        """How many indices of the axis fall with each channel."""
        return int((self.channels >= 0).sum()) // (int(self.channels.max()) + 1)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Member)
            and (self.path, self.axis) == (other.path, other.axis)
            and np.array_equal(self.channels, other.channels)
        )

    def __hash__(self) -> int:
        return hash((self.path, self.axis))

    def __str__(self) -> str:
        return f"{dotted(self.path)} axis {self.axis}{_pattern(self.channels)}"


@dataclass(frozen=True)
class Group:
    """Channels that are kept or removed together.

    `name` is the dotted path of the first kernel that makes them, with a mark if that kernel makes several groups.
    `producers` are scored (kernels, in program order); `consumers` read the channels. `inner` names finer groups that
    share indices with this one: a group of heads has the group of channels within each head as an inner group.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    inner: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    """The axes on which a channel has several indices, in words."""
    is_of_blocks: bool = False
    """Whether a channel is several neighbouring indices of the kernel that first makes it, such as a whole head."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The groups of one network, what is frozen and why, and its size as a function of the groups' widths.

    Structures are compared by identity, so that they can be static arguments of `jax.jit`.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, str]
    """`"path[axis]"` -> reason, for every axis longer than one that is not, or not entirely, in groups."""
    sites: Mapping[str, ProducerSite]
    """Producer -> what to observe for it: its path, followed by the group's name if it makes several groups."""
    layouts: Mapping[Path, Layout]
    """Path of an array -> for each axis, the groups along it."""
    shapes: Mapping[Path, tuple[int, ...]]
    """Path of an array -> its shape in the full network."""
    trained: frozenset[Path]
    """Paths of the trained parameters, without batch statistics."""
    fingerprint: str
    """A digest of the network's paths, shapes and dtypes."""
    program: Program
    families: ChannelFamilies
    """The groups before they had names, and the trace that they come from."""
    attribute_axes: Mapping[str, tuple[Field, ...]] = dataclasses.field(default_factory=dict)
    """Whole number in the user's own classes, by dotted path -> the channels along the axis whose length it is."""
    like: Structure | None = None
    """The structure that this is at another batch size; kept so that the network is not traced again."""

    @property
    def example(self) -> Example:
        """The inputs that the network was traced with."""
        return self.program.example

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels, in program order."""
        return {name: group.size for name, group in self.groups.items()}

    @cached_property
    def attributes(self) -> Mapping[str, tuple[str, ...]]:
        """Group -> whole numbers in the user's own classes that must change with its width (see `slim`)."""
        named = {
            name: tuple(
                path
                for path, fields in self.attribute_axes.items()
                if any(field.group == name for field in fields)
            )
            for name in self.groups
        }
        return {name: paths for name, paths in named.items() if paths}

    def attributes_for(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Returns the numbers in the user's own classes that have to change, with their new values.

        Args:
          widths: group -> number of channels; groups left out are whole.
        """
        changed = {name for name, width in widths.items() if width != self.widths[name]}
        return {
            path: count_kept(fields, len(fields[0].channels), widths)
            for path, fields in self.attribute_axes.items()
            if any(field.group in changed for field in fields)
        }

    def fields_of(self, factors: Sequence[np.ndarray]) -> tuple[Field, ...]:
        """Returns the groups along an axis with these labels, [length] for each factor of the axis."""
        names, families = list(self.groups), self.families
        fields = []
        for labels in factors:
            family_at, channel_at = families.locate(families.trace.labels.find(labels))
            fields += [
                Field(names[family], np.where(family_at == family, channel_at, -1).astype(np.int32))
                for family in distinct(family_at[family_at >= 0]).tolist()
            ]
        return tuple(fields)

    def shared_groups(self, factor: Literal["inner", "outer", "both"]) -> frozenset[str]:
        """Returns the groups that stay whole because another group that shares their indices loses channels instead.

        With "inner", groups of whole blocks (such as heads) stay too if an attribute of the user's stores their number.

        Args:
          factor: which of two groups that share indices loses channels.
        """
        if factor == "both":
            return frozenset()
        if factor == "outer":
            return frozenset(inner for group in self.groups.values() for inner in group.inner)
        has_inner = (name for name, group in self.groups.items() if group.inner)
        return frozenset((*has_inner, *(name for name in self.attributes if self.groups[name].is_of_blocks)))

    def count_macs(
        self, widths: Mapping[str, int] | None = None, among: Collection[str] | None = None
    ) -> int:
        """Counts the multiply-adds of convolutions and matrix products for one example.

        Args:
          widths: group -> number of channels; groups left out are whole.
          among: counts only products that make or read channels of these groups; all by default.
        """
        return sum(
            constant * prod(count_kept(fields, length, widths or {}) for fields, length in factors)
            for constant, factors in self._macs_factors
            if holds_any((fields for fields, _ in factors), among)
        )

    def count_parameters(
        self, widths: Mapping[str, int] | None = None, among: Collection[str] | None = None
    ) -> int:
        """Counts the trained parameters.

        Args:
          widths: group -> number of channels; groups left out are whole.
          among: counts only arrays with channels of these groups; all by default.
        """
        paths = (path for path in self.trained if holds_any(self.layouts[path], among))
        return sum(prod(self.slim_shape(path, widths or {})) for path in paths)

    def slim_shape(self, path: Path, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the shape of an array for some widths of the groups.

        Args:
          path: of the array.
          widths: group -> number of channels; groups left out are whole.
        """
        return tuple(
            count_kept(fields, length, widths) if fields else length
            for fields, length in zip(self.layouts[path], self.shapes[path], strict=True)
        )

    @cached_property
    def _macs_factors(self) -> list[tuple[int, list[tuple[tuple[Field, ...], int]]]]:
        """For each contraction its multiply-adds for one example: a constant, and (fields, length) of other factors."""
        batch_size = self.example.batch_size
        contractions = []
        for macs in self.families.trace.contraction_macs:
            constant = macs.constant
            factors: list[tuple[tuple[Field, ...], int]] = []
            for cluster in macs.clusters:
                if fields := self.fields_of(cluster):
                    factors.append((fields, len(cluster[0])))
                else:
                    constant *= len(cluster[0])
            contractions.append((constant // batch_size, factors))
        return contractions

    @cached_property
    def normalised(self) -> Mapping[str, tuple[NormalisedWeight, ...]]:
        """Group -> kernels that are computed, before their use, from sums over the group's own channels."""
        return normalised_weights(self.families, list(self.groups))

    @property
    def settled(self) -> Trace:
        """The trace of another pass that starts with united labels, so that each has one name everywhere; cached."""
        trace = self.families.trace
        if trace.settled is None:
            seeds = {path: tuple(tuple(axis) for axis in axes) for path, axes in self.families.roots.items()}
            labels = Labels(len(self.families.family_of))
            trace.settled = propagate(self.program, self.trained, seeds, labels)
        return trace.settled

    def why_frozen(self, path: str) -> str:
        """Says in words why axes of a parameter, or factors of them such as heads, are never cut.

        Args:
          path: dotted path of the parameter.

        Returns:
          One line for each axis with a reason; a sentence that nothing is frozen if there is none.

        Raises:
          ValueError: if the network has no such parameter.
        """
        names = {dotted(array) for array in self.layouts}
        if path not in names:
            raise ValueError(
                f"needs the dotted path of an array of the network, got {path!r}; it has {sorted(names)}."
            )
        reasons = {**self.frozen, **self._frozen_factors}
        lines = [f"{key}: {reason}" for key, reason in reasons.items() if key.rpartition("[")[0] == path]
        return "\n".join(lines) or f"nothing of {path} is frozen"

    @cached_property
    def _frozen_factors(self) -> dict[str, str]:
        """Like `frozen`, for factors of axes that otherwise lose channels: heads, where channels in each can go."""
        reasons: dict[str, str] = {}
        for path, axes in self.families.roots.items():
            for axis, factors in enumerate(axes):
                key = f"{dotted(path)}[{axis}]"
                axis_reasons: dict[str, None] = {}
                for roots in factors:
                    labels = distinct(roots).tolist()
                    if len(labels) > 1 and not (self.families.locate(roots)[0] >= 0).any():
                        refusals = (self.families.refused.get(label) for label in labels)
                        axis_reasons.update(
                            dict.fromkeys(reason for reason in refusals if reason is not None)
                        )
                if axis_reasons and key not in self.frozen:
                    note = f"(one of {len(factors)} factors of the axis, not all of it)"
                    reasons[key] = f"{'; '.join(axis_reasons)} {note}"
        return reasons

    def require_groups(self) -> None:
        """Checks that something can be pruned.

        Raises:
          ValueError: if there is no group at all; the message lists the reasons.
        """
        if not self.groups:
            reasons = "; ".join(f"{key}: {reason}" for key, reason in self.frozen.items())
            raise ValueError(
                "needs a network with at least one channel that can be removed, but every axis is frozen "
                f"({reasons or 'it has no parameters'}). Hidden layers between two layers with weights can be pruned."
            )


def structure_from(
    trace: Trace,
    digest: str,
    never: Mapping[int, str] | None = None,
    like: Mapping[str, ProducerSite] | None = None,
) -> Structure:
    """Builds the structure from a finished trace.

    Args:
      trace: what the rules noted about the network.
      digest: fingerprint of the network.
      never: label -> reason, for further labels that are not cut.
      like: sites of the same network, traced with several examples.

    Returns:
      The structure.
    """
    families = find_families(trace, never)
    names = name_families(families)
    sites, missing = find_sites(families, names, (like or {}).values())
    if missing:  # what cannot be scored is not pruned
        reasons = {
            int(root): reason for family, reason in missing.items() for root in families.channel_roots[family]
        }
        return structure_from(trace, digest, {**(never or {}), **reasons}, like)
    shapes = {path: trace.program.shapes[number] for path, number in trace.program.parameters.items()}
    layouts = {
        path: tuple(
            tuple(
                Field(names[family], channels)
                for family, factors in families.on_axis(path, axis).items()
                for channels in factors
            )
            for axis in range(len(shape))
        )
        for path, shape in shapes.items()
    }
    num_groups = Counter(kernel for _, kernel in sites)
    named_sites: dict[str, ProducerSite] = {}
    for (family, kernel), site in sites.items():
        producer, group = dotted(kernel), names[family]
        if num_groups[kernel] > 1 and group != producer:  # the kernel makes several groups
            producer = group if group.startswith(f"{producer}:") else f"{producer}|{group}"
        named_sites[producer] = site
    groups = _groups(families, names, layouts, named_sites)
    return Structure(
        groups=groups,
        frozen=_frozen_axes(families, layouts, shapes),
        sites={name: named_sites[name] for group in groups.values() for name in group.producers},
        layouts=layouts,
        shapes=shapes,
        trained=trace.trained & set(layouts),
        fingerprint=digest,
        program=trace.program,
        families=families,
    )


def _groups(
    families: ChannelFamilies,
    names: Sequence[str],
    layouts: Mapping[Path, Layout],
    named_sites: Mapping[str, ProducerSite],
) -> dict[str, Group]:
    """Returns the group of each family, by name."""
    members: dict[str, list[Member]] = {name: [] for name in names}
    for path, layout in layouts.items():
        for axis, fields in enumerate(layout):
            for field in fields:
                members[field.group].append(Member(path, axis, field.channels))
    inner = inner_groups(families, names, layouts)
    groups = {}
    for family, name in enumerate(names):
        consumers = (families.trace.reads[index].kernel for index in families.reads[family])
        groups[name] = Group(
            name=name,
            size=len(families.channel_roots[family]),
            members=tuple(members[name]),
            producers=tuple(producer for producer, site in named_sites.items() if site.group == name),
            consumers=tuple(dict.fromkeys(dotted(kernel) for kernel in consumers if kernel is not None)),
            inner=inner[name],
            constraints=tuple(
                f"{member.indices_per_channel} indices of {dotted(member.path)} axis {member.axis} with each channel"
                for member in members[name]
                if member.indices_per_channel > 1
            ),
            is_of_blocks=is_of_blocks(families, family),
        )
    return groups


def _frozen_axes(
    families: ChannelFamilies, layouts: Mapping[Path, Layout], shapes: Mapping[Path, tuple[int, ...]]
) -> dict[str, str]:
    """`"path[axis]"` -> reason, for every axis longer than one that is not entirely in groups."""
    frozen: dict[str, str] = {}
    for path, shape in shapes.items():
        for axis, size in enumerate(shape):
            is_frozen = np.ones(size, bool)
            for field in layouts[path][axis]:
                is_frozen &= field.channels < 0
            if size == 1 or not is_frozen.any():
                continue
            roots = [
                root for factor in families.roots[path][axis] for root in distinct(factor[is_frozen]).tolist()
            ]
            reasons = dict.fromkeys(families.refused[root] for root in roots if root in families.refused)
            num_frozen = int(is_frozen.sum())
            part = "" if num_frozen == size else f" ({num_frozen} of {size} indices)"
            frozen[f"{dotted(path)}[{axis}]"] = (
                "; ".join(reasons) or "a single channel, unlike all others"
            ) + part
    return frozen


def _pattern(channels: np.ndarray) -> str:
    """Says in short how channels sit along an axis, unless each channel is one index, in order.

    Example:
      >>> _pattern(np.array([0, 1, 2])), _pattern(np.array([0, 1, 0, 1])), _pattern(np.array([-1, 0, 1]))
      ('', ' as 2 x channel x 1', ' at 1-2')
    """
    num_channels = int(channels.max()) + 1
    if np.array_equal(channels, np.arange(num_channels)):
        return ""
    changes = np.flatnonzero(channels != channels[0])
    block = int(changes[0]) if changes.size else len(channels)
    repeats = max(1, len(channels) // (block * num_channels))
    if np.array_equal(channels, np.tile(np.repeat(np.arange(num_channels), block), repeats)):
        return f" as {repeats} x channel x {block}"
    indices = np.flatnonzero(channels >= 0)
    if np.array_equal(channels[indices], np.arange(num_channels)) and np.ptp(indices) == num_channels - 1:
        return f" at {indices[0]}-{indices[-1]}"
    return f" at {len(indices)} indices"
