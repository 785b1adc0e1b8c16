"""An overview of a structure: groups and frozen axes as rows that a person reads; alike blocks share one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from jaxprune.structure.groups import Group, Structure
from jaxprune.structure.model_state import dotted

_PART = re.compile(r" \(\d+ of \d+ indices\)$")


@dataclass(frozen=True)
class GroupRow:
    """One group, or several groups that differ only in the numbers of their blocks."""

    name: str
    groups: tuple[str, ...]
    channels: int
    """Number of channels of each group."""
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    """Layers with weights; empty where the channels only meet other activations, as queries meet keys."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FrozenRow:
    """Axes that are never cut, for one reason."""

    reason: str
    axes: tuple[str, ...]
    """Such as `"head.kernel[1]"`; alike axes are one entry."""
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
    """How many channels go if each group keeps one; groups that stay whole by default are not counted."""
    macs: int
    parameters: int
    least_macs: int
    least_parameters: int


def overview_of(structure: Structure, *, is_folded: bool = True) -> Overview:
    """Returns the overview of a network.

    Args:
      structure: of the network.
      is_folded: whether groups that differ only in numbers in their names share a row.
    """
    whole_groups = structure.shared_groups("inner")
    free_widths = {name: width for name, width in structure.widths.items() if name not in whole_groups}
    least_widths = dict.fromkeys(free_widths, 1)
    by_reason: dict[str, list[str]] = {}
    for axis, reason in structure.frozen.items():
        part = _PART.search(reason)
        by_reason.setdefault(_PART.sub("", reason), []).append(axis + (part[0] if part else ""))
    frozen = [FrozenRow(reason, tuple(folded(axes)), len(axes)) for reason, axes in by_reason.items()]
    frozen.sort(key=lambda row: (" at " not in row.reason, "image axis" in row.reason))
    return Overview(
        rows=tuple(_group_row(structure, groups) for groups in _alike_groups(structure, is_folded)),
        frozen=tuple(frozen),
        attributes=structure.attributes,
        num_groups=len(structure.groups),
        num_channels=sum(structure.widths.values()),
        num_removable=sum(free_widths.values()) - len(free_widths),
        macs=structure.count_macs(),
        parameters=structure.count_parameters(),
        least_macs=structure.count_macs(least_widths),
        least_parameters=structure.count_parameters(least_widths),
    )


def axes_of(structure: Structure, path: str) -> list[str]:
    """Describes every axis of some arrays: the groups that it belongs to, or why it stays.

    Args:
      structure: of the network.
      path: dotted path of an array, or of a module that holds arrays.

    Returns:
      One line for each axis.

    Raises:
      ValueError: if the network has nothing at the path.

    Example:
      >>> from jaxprune.nets import LeNet5, without_weights
      >>> from jaxprune.structure.tracing import trace_structure
      >>> import jax
      >>> structure = trace_structure(without_weights(LeNet5), jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))
      >>> axes_of(structure, "output.kernel")
      ['output.kernel[0] (500): group dense.kernel', 'output.kernel[1] (10): frozen, output of the network']
    """
    arrays = {dotted(array): array for array in structure.layouts}
    chosen = [name for name in arrays if name == path or name.startswith(f"{path}.")]
    if not chosen:
        structure.why_frozen(path)  # raises, and names the arrays that there are
    lines = []
    for name in chosen:
        for axis, size in enumerate(structure.shapes[arrays[name]]):
            fields = structure.layouts[arrays[name]][axis]
            notes = list(dict.fromkeys(f"group {field.group}" for field in fields))
            if reason := structure.frozen.get(f"{name}[{axis}]"):
                notes.append(f"frozen, {reason}")
            weights = [
                weight
                for field in fields
                for weight in structure.normalised.get(field.group, ())
                if weight.is_norm and (weight.path, weight.axis) == (arrays[name], axis)
            ]
            notes += dict.fromkeys(
                f"normalised over this axis by {weight.location}: without some of its channels, the weights of the "
                "others change too"
                for weight in weights
            )
            lines.append(f"{name}[{axis}] ({size}): {'; '.join(notes) or 'a single index, which stays'}")
    return lines


def folded(names: Iterable[str]) -> list[str]:
    """Joins dotted names that differ only in whole numbers.

    Example:
      >>> folded(["stem", "blocks.0.conv", "blocks.1.conv", "blocks.4.conv", "head"])
      ['stem', 'blocks.0-1,4.conv', 'head']
    """
    by_pattern: dict[str, list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        numbers = tuple(int(part) for part in name.split(".") if part.isdigit())
        by_pattern.setdefault(_pattern(name), []).append(numbers)
    return [_joined_name(pattern, numbers) for pattern, numbers in by_pattern.items()]


def first_names(names: Sequence[str], limit: int) -> str:
    """Returns the first names, and how many more there are.

    Args:
      names: all names.
      limit: how many to show; one more is shown too, since saying so would be as long.

    Example:
      >>> first_names(["a", "b", "c", "d"], 2), first_names(["a", "b", "c"], 2)
      ('a, b and 2 more', 'a, b, c')
    """
    if len(names) <= limit + 1:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"


def layer_of(path: str) -> str:
    """Returns the layer that an array belongs to, from the array's dotted path.

    Example:
      >>> layer_of("blocks.0.qkv.kernel"), layer_of("table")
      ('blocks.0.qkv', 'table')
    """
    return path.rpartition(".")[0] or path


def kernels_of(structure: Structure, group: Group) -> tuple[str, ...]:
    """Returns the dotted paths of the kernels that make a group's channels, in program order."""
    return tuple(dict.fromkeys(dotted(structure.sites[name].kernel) for name in group.producers))


def _pattern(name: str) -> str:
    """Returns a dotted name with a star for each whole number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _joined_name(pattern: str, numbers: Sequence[tuple[int, ...]]) -> str:
    """Fills the stars of a pattern with all numbers that stand there, if every combination of them occurs."""
    numbers_by_star = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    is_grid = prod(map(len, numbers_by_star)) == len(numbers)
    spans = iter([_spans(column) if is_grid or len(column) == 1 else "*" for column in numbers_by_star])
    name = ".".join(next(spans) if part == "*" else part for part in pattern.split("."))
    return name if is_grid else f"{name} ({len(numbers)})"


def _spans(numbers: Sequence[int]) -> str:
    """Writes rising numbers in short.

    Example:
      >>> _spans([0, 1, 2, 5])
      '0-2,5'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def _alike_groups(structure: Structure, is_folded: bool) -> list[list[Group]]:
    """Collects groups that share a row: alike but for the numbers in their names and in their layers' names."""
    alike: dict[object, list[Group]] = {}
    for name, group in structure.groups.items():
        layers = [
            tuple(sorted({_pattern(layer_of(path)) for path in paths}))
            for paths in (kernels_of(structure, group), group.consumers)
        ]
        repeats = tuple(sorted({member.indices_per_channel for member in group.members}))
        key: object = (_pattern(name), group.size, *layers, repeats) if is_folded else name
        alike.setdefault(key, []).append(group)
    return list(alike.values())


def _group_row(structure: Structure, groups: Sequence[Group]) -> GroupRow:
    """Returns the row of groups that are alike."""

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
    """Says in words what is special about groups that share a row."""
    notes = []
    whole_groups = structure.shared_groups("inner")
    inner = folded(name for group in groups if group.name in whole_groups for name in group.inner)
    if inner:
        notes.append(f'stays whole unless factor="outer": {", ".join(inner)} is pruned instead')
    layers_by_repeats: dict[int, list[str]] = {}
    for group in groups:
        for member in group.members:
            if member.indices_per_channel > 1:
                layers = layers_by_repeats.setdefault(member.indices_per_channel, [])
                layers.append(layer_of(dotted(member.path)))
    notes += [
        f"each channel is {repeats} indices of {first_names(folded(layers), 2)}"
        for repeats, layers in layers_by_repeats.items()
    ]
    normalised = folded(
        layer_of(dotted(weight.path))
        for group in groups
        for weight in structure.normalised.get(group.name, ())
        if weight.is_norm
    )
    if normalised:
        notes.append(f"weights of {first_names(normalised, 2)} are normalised over these channels")
    attributes = folded(path for group in groups for path in structure.attributes.get(group.name, ()))
    if attributes:
        notes.append(f"{', '.join(attributes)} must follow")
    return notes
