"""The groups of a network: which indices of which arrays fall together, and what must stay whole and why.

`trace_structure` is the one entry: model and example in, `Structure` out. Everything after it (observing, planning,
masking, slimming) reads the structure and never the network's code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal

import jax
import numpy as np

from jaxprune.structure.channel_classes import ChannelFamilies, find_families, name_families
from jaxprune.structure.labels import Labels, distinct
from jaxprune.structure.layouts import Field, Layout, count_kept
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.producer_sites import ProducerSite, sites_of
from jaxprune.structure.program import Body, Program
from jaxprune.structure.propagation import propagate
from jaxprune.structure.trace import ContractionMacs, Trace


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one array that loses indices with the group."""

    path: Path
    axis: int
    channels: np.ndarray
    """[length] the channel at each index, -1 where none of the group's sits."""

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

    `name` is the dotted path of the first kernel that makes them, with a mark where it makes several groups.
    `producers` are scored (kernels, in program order), `consumers` read the channels. `inner` names groups
    that share indices with this one and are finer: heads have the places within a head as inner groups.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    inner: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    """In words, what falls with a channel by more than being the same channel."""
    is_of_blocks: bool = False
    """Whether a channel is several neighbours on the kernel that first makes it, such as a whole head."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Groups of one network, what is frozen and why, and its costs as functions of the groups' widths.

    Compared by identity, so that it can be a static argument of `jax.jit`.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, str]
    """`"path[axis]"` -> reason, for every axis longer than one that is not, or not all, in groups."""
    sites: Mapping[str, ProducerSite]
    """Producer -> what to observe for it: its path, with the group's name behind it where it makes several groups."""
    layouts: Mapping[Path, Layout]
    shapes: Mapping[Path, tuple[int, ...]]
    trained: frozenset[Path]
    fingerprint: str
    example: jax.ShapeDtypeStruct
    program: Program
    families: ChannelFamilies
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group -> whole numbers in the user's own classes that must follow its width (see `slim`)."""

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels, in program order."""
        return {name: group.size for name, group in self.groups.items()}

    def shared_groups(self, factor: Literal["inner", "outer", "both"]) -> frozenset[str]:
        """Groups that stay whole because another one that shares their indices loses channels instead.

        With "inner", groups of whole blocks (heads, say) whose number an attribute of the user's remembers stay too.
        """
        if factor == "both":
            return frozenset()
        if factor == "outer":
            return frozenset(inner for group in self.groups.values() for inner in group.inner)
        remembered = [name for name in self.attributes if self.groups[name].is_of_blocks]
        return frozenset((*(name for name, group in self.groups.items() if group.inner), *remembered))

    def count_macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-adds of convolutions and matrix products for one example, at these widths."""
        counts = widths or {}
        return sum(
            constant * prod(count_kept(fields, length, counts) for fields, length in factors)
            for constant, factors in self._costs
        )

    def count_parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of trained parameters at these widths."""
        return sum(prod(self.slim_shape(path, widths or {})) for path in self.trained)

    def slim_shape(self, path: Path, widths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of an array when groups have these widths; groups left out are whole."""
        return tuple(
            count_kept(fields, length, widths) if fields else length
            for fields, length in zip(self.layouts[path], self.shapes[path], strict=True)
        )

    @cached_property
    def _costs(self) -> list[tuple[int, list[tuple[tuple[Field, ...], int]]]]:
        batch = self.program.shapes[self.program.example][0]
        names = list(self.groups)
        return [_factored(self.families, names, cost, batch) for cost in self.families.trace.contraction_macs]

    @property
    def settled(self) -> Trace:
        """A walk that begins with all that is known of labels: each has one name wherever it is."""
        known = self.families.trace
        if known.settled is None:  # the same whatever is frozen besides
            seeds = {path: tuple(tuple(axis) for axis in axes) for path, axes in self.families.roots.items()}
            known.settled = propagate(self.program, self.trained, seeds, Labels(len(self.families.family_of)))
        return known.settled

    def why_frozen(self, path: str) -> str:
        """Why a parameter's axes, or factors of them such as heads, are never cut, in words; says so when they can be.

        Raises:
          ValueError: if the network has no such parameter.
        """
        names = {dotted(known) for known in self.layouts}
        if path not in names:
            raise ValueError(
                f"needs the dotted path of an array of the network, got {path!r}; it has {sorted(names)}."
            )
        reasons = {**self.frozen, **self._frozen_factors}
        lines = [f"{key}: {reason}" for key, reason in reasons.items() if key.rpartition("[")[0] == path]
        return "\n".join(lines) or f"nothing of {path} is frozen"

    @cached_property
    def _frozen_factors(self) -> dict[str, str]:
        """Like `frozen`, for what stays of axes that lose channels otherwise: heads, where places in each can go."""
        result: dict[str, str] = {}
        for path, axes in self.families.roots.items():
            for axis, factors in enumerate(axes):
                key = f"{dotted(path)}[{axis}]"
                roots = [distinct(each).tolist() for each in factors if not self._is_in_groups(each)]
                reasons = [self.families.refused.get(root) for own in roots if len(own) > 1 for root in own]
                known = dict.fromkeys(reason for reason in reasons if reason is not None)
                if known and key not in self.frozen:
                    result[key] = (
                        f"{'; '.join(known)} (one of {len(factors)} factors of the axis, not all of it)"
                    )
        return result

    def _is_in_groups(self, roots: np.ndarray) -> bool:
        return bool((self.families.locate(roots)[0] >= 0).any())

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


def structure_from(
    trace: Trace, digest: str, example: jax.ShapeDtypeStruct, never: Mapping[int, str] | None = None
) -> Structure:
    """The structure of a finished walk; `never` says of further labels why they are not cut."""
    families = find_families(trace, never)
    names = name_families(families)
    sites, missing = sites_of(families, names, _turns(trace.program.operations))
    if missing:  # what cannot be scored is not pruned
        more = {
            int(root): reason for family, reason in missing.items() for root in families.channel_roots[family]
        }
        return structure_from(trace, digest, example, {**(never or {}), **more})
    shapes = {path: trace.program.shapes[number] for path, number in trace.program.parameters.items()}
    layouts = {
        path: tuple(_fields(families, names, path, axis) for axis in range(len(shape)))
        for path, shape in shapes.items()
    }
    groups = _groups(families, names, layouts)
    shared: dict[Path, int] = {}
    for _, path in sites:
        shared[path] = shared.get(path, 0) + 1
    keyed = {
        (dotted(path) if shared[path] == 1 else _part_of(dotted(path), names[family])): site
        for (family, path), site in sites.items()
    }
    by_group = {name: tuple(key for key, site in keyed.items() if site.group == name) for name in groups}
    return Structure(
        groups={name: replace(group, producers=by_group[name]) for name, group in groups.items()},
        frozen=_frozen(families, layouts, shapes),
        sites={key: keyed[key] for own in by_group.values() for key in own},
        layouts=layouts,
        shapes=shapes,
        trained=trace.trained & set(layouts),
        fingerprint=digest,
        example=example,
        program=trace.program,
        families=families,
    )


def _part_of(kernel: str, group: str) -> str:
    """What the channels of one group are called on a kernel that makes several groups."""
    return group if group == kernel or group.startswith(f"{kernel}:") else f"{kernel}|{group}"


def _is_of_blocks(families: ChannelFamilies, family: int) -> bool:
    production = families.trace.producer_uses[families.producer_uses[family][0]]
    for axis in sorted(production.axes):
        for channels in families.on_axis(production.kernel, axis).get(family, []):
            own = channels[channels >= 0]
            return bool((np.diff(own) == 0).sum() >= len(families.channel_roots[family]))
    return False


def _turns(steps: Iterable[object], outer: tuple[int, ...] = ()) -> dict[int, tuple[int, ...]]:
    """Value in a loop -> lengths of the loops around it."""
    found: dict[int, tuple[int, ...]] = {}
    for step in steps:
        bodies: tuple[Body, ...] = step.bodies  # type: ignore[attr-defined]
        for body in bodies:
            length = step.equation.params.get("length")  # type: ignore[attr-defined]
            own = (*outer, int(length)) if length is not None else outer
            found.update(dict.fromkeys(body.value_numbers, own))
            found.update(_turns(body.operations, own))
    return found


def _fields(families: ChannelFamilies, names: Sequence[str], path: Path, axis: int) -> tuple[Field, ...]:
    return tuple(
        Field(names[family], channels)
        for family, columns in families.on_axis(path, axis).items()
        for channels in columns
    )


def _groups(
    families: ChannelFamilies, names: Sequence[str], layouts: Mapping[Path, Layout]
) -> dict[str, Group]:
    members: dict[str, list[Member]] = {name: [] for name in names}
    for path, layout in layouts.items():
        for axis, fields in enumerate(layout):
            for own in fields:
                members[own.group].append(Member(path, axis, own.channels))
    inner = _inner_groups(families, names, layouts)
    result = {}
    for family, name in enumerate(names):
        uses = [families.trace.reads[index] for index in families.reads[family]]
        consumers = dict.fromkeys(dotted(use.kernel) for use in uses if use.kernel is not None)
        result[name] = Group(
            name=name,
            size=len(families.channel_roots[family]),
            members=tuple(members[name]),
            producers=(),
            consumers=tuple(consumers),
            inner=inner[name],
            constraints=_constraints(members[name]),
            is_of_blocks=_is_of_blocks(families, family),
        )
    return result


def _inner_groups(
    families: ChannelFamilies, names: Sequence[str], layouts: Mapping[Path, Layout]
) -> dict[str, tuple[str, ...]]:
    """Group -> the finer ones that share indices with it, on an axis or on a later axis of a kernel that makes both."""
    pairs: dict[tuple[str, str], None] = {}
    for layout in layouts.values():
        for fields in layout:
            here = list(dict.fromkeys(own.group for own in fields))
            for name in here:
                pairs.update(
                    ((name, other), None)
                    for other in here
                    if other != name and _is_finer(fields, other, name)
                )
    for production in families.trace.producer_uses:
        axes = [
            dict.fromkeys(own.group for own in layouts[production.kernel][axis])
            for axis in sorted(production.axes)
        ]
        for place, earlier in enumerate(axes):
            later = [name for own in axes[place + 1 :] for name in own]
            pairs.update(((name, other), None) for name in earlier for other in later if other != name)
    return {
        name: tuple(inner for outer, inner in pairs if outer == name and (inner, outer) not in pairs)
        for name in names
    }


def _is_finer(fields: Sequence[Field], group: str, other: str) -> bool:
    """Whether two groups share indices of an axis, and the first changes faster along it."""
    own, rival = ([f.channels for f in fields if f.group == name] for name in (group, other))
    shared = (own[0] >= 0) & (rival[0] >= 0)
    if not shared.any():
        return False
    changes = [int((np.diff(channels[0][shared]) != 0).sum()) for channels in (own, rival)]
    return changes[0] > changes[1]


def _constraints(members: Sequence[Member]) -> tuple[str, ...]:
    found = []
    for member in members:
        places = member.channels[member.channels >= 0]
        times = len(places) // max(1, int(places.max()) + 1)
        if times > 1:
            found.append(f"{times} indices of {dotted(member.path)} axis {member.axis} with each channel")
    return tuple(found)


def _frozen(
    families: ChannelFamilies, layouts: Mapping[Path, Layout], shapes: Mapping[Path, tuple[int, ...]]
) -> dict[str, str]:
    result: dict[str, str] = {}
    for path, shape in shapes.items():
        for axis, size in enumerate(shape):
            is_free = np.zeros(size, bool)
            for own in layouts[path][axis]:
                is_free |= own.channels >= 0
            if size == 1 or is_free.all():
                continue
            roots = [
                root for each in families.roots[path][axis] for root in distinct(each[~is_free]).tolist()
            ]
            reasons = [families.refused[root] for root in roots if root in families.refused]
            stays = int((~is_free).sum())
            part = "" if stays == size else f" ({stays} of {size} indices)"
            reason = "; ".join(dict.fromkeys(reasons)) or "a single channel, unlike all others"
            result[f"{dotted(path)}[{axis}]"] = reason + part
    return result


def _factored(
    families: ChannelFamilies, names: Sequence[str], cost: ContractionMacs, batch: int
) -> tuple[int, list[tuple[tuple[Field, ...], int]]]:
    factors: list[tuple[tuple[Field, ...], int]] = []
    constant = cost.constant
    for cluster in cost.clusters:
        fields: list[Field] = []
        for flat in cluster:
            members, channels = families.locate(families.trace.labels.find(flat))
            fields += [
                Field(names[family], np.where(members == family, channels, -1).astype(np.int32))
                for family in distinct(members[members >= 0]).tolist()
            ]
        length = len(cluster[0])
        if fields:
            factors.append((tuple(fields), length))
        else:
            constant *= length
    return constant // batch, factors


def _pattern(channels: np.ndarray) -> str:
    """How channels sit along an axis, where it is not one after the other.

    Example:
      >>> _pattern(np.array([0, 1, 2])), _pattern(np.array([0, 1, 0, 1])), _pattern(np.array([-1, 0, 1]))
      ('', ' as 2 x channel x 1', ' at 1-2')
    """
    count = int(channels.max()) + 1
    if np.array_equal(channels, np.arange(count)):
        return ""
    changes = np.flatnonzero(channels != channels[0])
    block = int(changes[0]) if changes.size else len(channels)
    repeats = max(1, len(channels) // (block * count))
    if np.array_equal(channels, np.tile(np.repeat(np.arange(count), block), repeats)):
        return f" as {repeats} x channel x {block}"
    places = np.flatnonzero(channels >= 0)
    if np.array_equal(channels[places], np.arange(count)) and places[-1] - places[0] == count - 1:
        return f" at {places[0]}-{places[-1]}"
    return f" at {len(places)} indices"
