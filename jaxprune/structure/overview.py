"""What a structure comes to, as rows that a person reads: blocks that are alike share one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from jaxprune.structure.groups import Group, Member, Structure
from jaxprune.structure.model_state import dotted

_PART = re.compile(r" \(\d+ of \d+ indices\)$")


@dataclass(frozen=True)
class GroupRow:
    """One group, or several that are alike but for the numbers of their blocks."""

    name: str
    groups: tuple[str, ...]
    channels: int
    """Of each."""
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    """Layers with weights; empty where the channels only meet other activations, as queries meet keys."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FrozenRow:
    """Axes that are never cut, for one reason."""

    reason: str
    axes: tuple[str, ...]
    """Such as `"head.kernel[1]"`; alike ones are one entry."""
    count: int


@dataclass(frozen=True)
class Overview:
    """The groups of a network, what is frozen, and how far pruning could go."""

    rows: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    """Operations that the tracer could not follow come first."""
    attributes: Mapping[str, tuple[str, ...]]
    num_groups: int
    num_channels: int
    num_removable: int
    """When one channel of each group is left; groups that stay whole by default are not counted."""
    macs: int
    parameters: int
    least_macs: int
    least_parameters: int


def overview_of(structure: Structure, *, is_folded: bool = True) -> Overview:
    """The overview of a network.

    Args:
      structure: of the network.
      is_folded: whether groups that are alike but for numbers in their names share a row.
    """
    whole = structure.shared_groups("inner")
    free = {name: width for name, width in structure.widths.items() if name not in whole}
    least = dict.fromkeys(free, 1)
    return Overview(
        rows=tuple(_group_rows(structure, is_folded)),
        frozen=tuple(_frozen_rows(structure)),
        attributes=structure.attributes,
        num_groups=len(structure.groups),
        num_channels=sum(structure.widths.values()),
        num_removable=sum(free.values()) - len(free),
        macs=structure.count_macs(),
        parameters=structure.count_parameters(),
        least_macs=structure.count_macs(least),
        least_parameters=structure.count_parameters(least),
    )


def folded(names: Iterable[str]) -> list[str]:
    """Dotted names, those that differ in whole numbers alone as one.

    Example:
      >>> folded(["stem", "blocks.0.conv", "blocks.1.conv", "blocks.4.conv", "head"])
      ['stem', 'blocks.0-1,4.conv', 'head']
    """
    by_pattern: dict[str, list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        numbers = tuple(int(part) for part in name.split(".") if part.isdigit())
        by_pattern.setdefault(_pattern(name), []).append(numbers)
    return [_unfold(pattern, numbers) for pattern, numbers in by_pattern.items()]


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _unfold(pattern: str, numbers: Sequence[tuple[int, ...]]) -> str:
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    is_grid = prod(map(len, columns)) == len(numbers)
    spans = iter([_spans(column) if is_grid or len(column) == 1 else "*" for column in columns])
    name = ".".join(next(spans) if part == "*" else part for part in pattern.split("."))
    return name if is_grid else f"{name} ({len(numbers)})"


def _spans(numbers: Sequence[int]) -> str:
    """Rising numbers in short.

    Example:
      >>> _spans([0, 1, 2, 5])
      '0-2,5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def layer_of(path: str) -> str:
    """The layer that an array belongs to, from its dotted path.

    Example:
      >>> layer_of("blocks.0.qkv.kernel"), layer_of("table")
      ('blocks.0.qkv', 'table')
    """
    return path.rpartition(".")[0] or path


def kernels_of(structure: Structure, group: Group) -> tuple[str, ...]:
    """The dotted paths of the kernels that make a group's channels, in program order."""
    return tuple(dict.fromkeys(dotted(structure.sites[name].kernel) for name in group.producers))


def _group_rows(structure: Structure, is_folded: bool) -> list[GroupRow]:
    alike: dict[object, list[Group]] = {}
    for name, group in structure.groups.items():
        kinds = [
            tuple(sorted({_pattern(layer_of(path)) for path in paths}))
            for paths in (kernels_of(structure, group), group.consumers)
        ]
        times = tuple(sorted({_times(member, group) for member in group.members}))
        key: object = (_pattern(name), group.size, *kinds, times) if is_folded else name
        alike.setdefault(key, []).append(group)
    return [_group_row(structure, groups) for groups in alike.values()]


def _group_row(structure: Structure, groups: Sequence[Group]) -> GroupRow:
    def layers(paths_of: Callable[[Group], Iterable[str]]) -> tuple[str, ...]:
        return tuple(folded(layer_of(path) for group in groups for path in paths_of(group)))

    names = [group.name for group in groups]
    return GroupRow(
        name=folded(names)[0],
        groups=tuple(names),
        channels=groups[0].size,
        made_by=layers(lambda group: kernels_of(structure, group)),
        read_by=layers(lambda group: group.consumers),
        notes=tuple(_notes(structure, groups)),
    )


def _notes(structure: Structure, groups: Sequence[Group]) -> list[str]:
    found = []
    whole = structure.shared_groups("inner")
    inner = folded(dict.fromkeys(own for group in groups if group.name in whole for own in group.inner))
    if inner:
        found.append(f'stays whole unless factor="outer": {", ".join(inner)} is pruned instead')
    by_times: dict[int, list[str]] = {}
    for group in groups:
        for member in group.members:
            times = _times(member, group)
            if times > 1:
                by_times.setdefault(times, []).append(layer_of(dotted(member.path)))
    found += [
        f"each channel is {times} indices of {shortened(folded(layers), 2)}"
        for times, layers in by_times.items()
    ]
    followers = folded(path for group in groups for path in structure.attributes.get(group.name, ()))
    if followers:
        found.append(f"{', '.join(followers)} must follow")
    return found


def _times(member: Member, group: Group) -> int:
    """How many indices of an axis fall with each channel."""
    return int((member.channels >= 0).sum()) // group.size


def shortened(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are.

    Example:
      >>> shortened(["a", "b", "c", "d"], 2), shortened(["a", "b", "c"], 2)
      ('a, b and 2 more', 'a, b, c')
    """
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def _frozen_rows(structure: Structure) -> list[FrozenRow]:
    by_reason: dict[str, list[str]] = {}
    for axis, reason in structure.frozen.items():
        part = _PART.search(reason)
        by_reason.setdefault(_PART.sub("", reason), []).append(axis + (part[0] if part else ""))
    rows = [FrozenRow(reason, tuple(folded(axes)), len(axes)) for reason, axes in by_reason.items()]
    return sorted(rows, key=lambda row: (" at " not in row.reason, "image axis" in row.reason))


def axes_of(structure: Structure, path: str) -> list[str]:
    """One line for every axis of the arrays at a path (or under it): the groups it belongs to, or why it stays.

    Raises:
      ValueError: if the network has nothing there.

    Example:
      >>> from jaxprune.nets import LeNet5, without_weights
      >>> from jaxprune.structure.tracing import trace_structure
      >>> import jax
      >>> structure = trace_structure(without_weights(LeNet5), jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))
      >>> axes_of(structure, "output.kernel")
      ['output.kernel[0] (500): group dense.kernel', 'output.kernel[1] (10): frozen, output of the network']
    """
    found = {dotted(own): own for own in structure.layouts}
    chosen = [name for name in found if name == path or name.startswith(f"{path}.")]
    if not chosen:
        structure.why_frozen(path)  # which says what there is
    lines = []
    for name in chosen:
        for axis, size in enumerate(structure.shapes[found[name]]):
            groups = dict.fromkeys(f"group {field.group}" for field in structure.layouts[found[name]][axis])
            reason = structure.frozen.get(f"{name}[{axis}]")
            parts = [*groups, *([f"frozen, {reason}"] if reason else [])]
            lines.append(f"{name}[{axis}] ({size}): {'; '.join(parts) or 'a single index, which stays'}")
    return lines
