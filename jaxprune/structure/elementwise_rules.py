"""How labels of several values meet entry by entry, and how axes disappear from them.

Where two values lay their labels over the same axes in the same way, these are united place by place. Where one has
labels over [heads * size] and the other over [heads] alone, the first must be taken apart into a label for the head
and one for the place in it: that is requested, and the walk is begun again with such labels (see `factoring.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.structure.labels import FREE, distinct
from jaxprune.structure.program import Operation
from jaxprune.structure.trace import FactorRequest, LabelField, LabelledValue, Trace, stretched

Fields = tuple[LabelField, ...]


Span = tuple[int, int]
"""(b, e): the digit (i // b) % (e // b) of a flat index i."""


class _Part(NamedTuple):
    """A field, as the digits of the flat index of a cluster of axes that its labels follow."""

    field: LabelField
    spans: tuple[Span, ...]


def combine(
    trace: Trace, step: Operation, operands: Sequence[LabelledValue], shape: tuple[int, ...]
) -> tuple[Fields, tuple[int, ...]]:
    """Labels and fixed axes of what an operation makes of values of one shape, entry by entry; unites labels."""
    ranked = [_broadcast(value, shape) for value in operands if len(value.shape) == len(shape)]
    fixed = [FREE] * len(shape)
    for value in ranked:
        for axis, wall in enumerate(value.fixed):
            if wall != FREE and fixed[axis] == FREE:
                fixed[axis] = wall
    labelled = [value.fields for value in ranked if value.fields]
    if not labelled:
        return (), tuple(fixed)
    found: list[LabelField] = []
    if len(labelled) == 1 and all(fixed[axis] == FREE for own in labelled[0] for axis in own.axes):
        found = list(labelled[0])
    else:
        for axes, members in _clusters(labelled):
            found += _meet(trace, step, axes, members, fixed, shape)
    for own in found:
        for axis in own.axes:
            fixed[axis] = FREE
    return tuple(found), tuple(fixed)


def _broadcast(value: LabelledValue, shape: tuple[int, ...]) -> LabelledValue:
    """A value whose axes of length one are as long as those of the others."""
    if value.shape == shape:
        return value
    return dataclasses.replace(value, shape=shape, fields=stretched(value.fields, shape))


def _clusters(labelled: Sequence[Fields]) -> list[tuple[tuple[int, ...], list[list[LabelField]]]]:
    """Sets of axes that share fields, with the fields of each value on them."""
    sets: list[set[int]] = []
    for fields in labelled:
        for own in fields:
            touching = [known for known in sets if known & set(own.axes)]
            sets = [known for known in sets if not known & set(own.axes)]
            sets.append(set(own.axes).union(*touching))
    result = []
    for axes in sets:
        members = [[own for own in fields if own.axes[0] in axes] for fields in labelled]
        result.append((tuple(sorted(axes)), [own for own in members if own]))
    return result


def _meet(
    trace: Trace,
    step: Operation,
    axes: tuple[int, ...],
    members: Sequence[Sequence[LabelField]],
    fixed: Sequence[int],
    shape: tuple[int, ...],
) -> list[LabelField]:
    is_fixed = any(fixed[axis] != FREE for axis in axes)
    if not is_fixed and all(len(fields) == 1 and fields[0].axes == axes for fields in members):
        return [_united(trace, step, [fields[0] for fields in members])]
    if not is_fixed and len(members) == 1:
        return list(members[0])
    same = _matching(members)
    if not is_fixed and same is not None:
        return [_united(trace, step, own) for own in same]
    sizes = [shape[axis] for axis in axes]
    everything = [own for fields in members for own in fields]
    parts = [_part(own, axes, sizes) for own in everything]
    known = [part for part in parts if part is not None]
    walls = [(axis, _axis_span(axes, sizes, axis)) for axis in axes if fixed[axis] != FREE]
    spans = [*(span for part in known for span in part.spans), *(span for _, span in walls)]
    cuts = sorted({1, math.prod(sizes), *(edge for span in spans for edge in span)})
    if len(known) < len(parts) or any(b % a for a, b in zip(cuts, cuts[1:], strict=False)):
        return _refuse(trace, step, everything)
    for axis, (low, high) in walls:
        for part in known:
            if all(low <= span[0] and span[1] <= high for span in part.spans):
                trace.labels.unite(part.field.labels, np.full(part.field.labels.size, fixed[axis]))
    return _line_up(trace, step, known, axes, sizes, cuts)


def _matching(members: Sequence[Sequence[LabelField]]) -> list[list[LabelField]] | None:
    """The fields of all values side by side, where each value has the like in the same order."""
    columns = [list(column) for column in zip(*members, strict=False)]
    if any(len(fields) != len(columns) for fields in members):
        return None
    for column in columns:
        first = column[0]
        if not all(own.axes == first.axes and _is_alike(own.labels, first.labels) for own in column[1:]):
            return None
    return columns


def _is_alike(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays are equal but for the names of their labels."""
    known = (left >= 0) & (right >= 0)
    a, b = left[known], right[known]
    if np.array_equal(a, b):
        return True
    pairs = np.unique(np.stack([a, b]), axis=1).shape[1]
    return pairs == len(distinct(a)) == len(distinct(b))


def _line_up(
    trace: Trace,
    step: Operation,
    parts: Sequence[_Part],
    axes: tuple[int, ...],
    sizes: Sequence[int],
    cuts: Sequence[int],
) -> list[LabelField]:
    """Unites what follows the same digits; asks for what follows several to be taken apart."""
    by_spans: dict[tuple[Span, ...], list[_Part]] = {}
    for part in parts:
        by_spans.setdefault(part.spans, []).append(part)
    found: list[LabelField] = []
    wide: list[LabelField] = []
    for spans, own in by_spans.items():
        digits = [
            (low, high)
            for low, high in zip(cuts, cuts[1:], strict=False)
            if any(span[0] <= low and high <= span[1] for span in spans)
        ]
        if len(digits) > 1:
            for part in own:
                _request(trace, part.field, axes, sizes, digits)
            wide.append(own[0].field)
        else:
            same_axes = [part.field for part in own if part.field.axes == own[0].field.axes]
            for part in own[1:]:
                if part.field.axes != own[0].field.axes:
                    left, right = (_flat(each.field, axes, sizes) for each in (own[0], part))
                    _unite(trace, step, left, right)
            found.append(_united(trace, step, same_axes))
    return wide[:1] or found  # until they are taken apart, what they share with others cannot be told


def _request(
    trace: Trace, own: LabelField, axes: Sequence[int], sizes: Sequence[int], digits: Sequence[Span]
) -> None:
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    places = tuple(slice(None) if axis in own.axes else 0 for axis in axes)
    index = grid[places].reshape(-1)
    coordinates = tuple((index // low) % (high // low) for low, high in digits)
    trace.factor_requests.append(FactorRequest(np.ascontiguousarray(own.labels).reshape(-1), coordinates))


def _flat(own: LabelField, axes: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    shape = [size if axis in own.axes else 1 for axis, size in zip(axes, sizes, strict=True)]
    return np.broadcast_to(own.labels.reshape(shape), sizes).reshape(-1)


def known_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of two labels for each place the one that says more."""
    if (left >= 0).all():
        return left
    return np.where(left >= 0, left, np.where(right >= 0, right, np.minimum(left, right)))


def _united(trace: Trace, step: Operation, fields: Sequence[LabelField]) -> LabelField:
    labels = fields[0].labels
    for own in fields[1:]:
        _unite(trace, step, labels, own.labels)
        labels = known_of(labels, own.labels)
    return LabelField(fields[0].axes, labels)


def _unite(trace: Trace, step: Operation, left: np.ndarray, right: np.ndarray) -> None:
    if trace.labels.unite(left, right):
        trace.unions.append((step, left, right))


def _refuse(trace: Trace, step: Operation, fields: Sequence[LabelField]) -> list[LabelField]:
    trace.freeze(list(fields), f"axes regrouped in a way that does not line up: {step.location}")
    return list(fields[:1])


def _axis_span(axes: tuple[int, ...], sizes: Sequence[int], axis: int) -> Span:
    place = axes.index(axis)
    low = math.prod(sizes[place + 1 :])
    return low, low * sizes[place]


def _part(own: LabelField, axes: tuple[int, ...], sizes: Sequence[int]) -> _Part | None:
    """Which digits of the flat index a field follows; None where these are none."""
    inside = _digits(own.labels.reshape(-1))
    if inside is None:
        return None
    runs: list[Span] = []
    for low, high in (_axis_span(axes, sizes, axis) for axis in own.axes):
        if runs and runs[-1][0] == high:
            runs[-1] = (low, runs[-1][1])
        else:
            runs.append((low, high))
    if inside == (1, own.labels.size):
        return _Part(own, tuple(runs))
    if len(runs) > 1:
        return None
    return _Part(own, ((runs[0][0] * inside[0], runs[0][0] * inside[1]),))


def _digits(flat: np.ndarray) -> tuple[int, int] | None:
    """(b, e) such that the label at i follows from the digit (i // b) % (e // b), another one for each; or None.

    Example:
      >>> _digits(np.array([7, 7, 8, 8, 7, 7, 8, 8]))
      (2, 4)
    """
    known = flat[flat >= 0]
    if len(distinct(known)) == len(known):
        return 1, len(flat)
    changes = np.flatnonzero(flat != flat[0])
    block = int(changes[0]) if changes.size else len(flat)
    if len(flat) % block:
        return None
    digits = flat[::block]
    again = np.flatnonzero(digits[1:] == digits[0])
    period = int(again[0]) + 1 if again.size else len(digits)
    if len(digits) % period or len(distinct(digits[:period])) < period:
        return None
    if not np.array_equal(np.tile(np.repeat(digits[:period], block), len(digits) // period), flat):
        return None
    return block, block * period


def drop_axes(
    trace: Trace, fields: Fields, axes: Sequence[int], shape: tuple[int, ...]
) -> tuple[LabelField, ...]:
    """Fields, with their old axis numbers, after a sum or the like over some axes; asks to take apart what mixes."""
    gone = set(axes)
    result = []
    for own in fields:
        inside = [axis in gone for axis in own.axes]
        if all(inside):
            continue
        if any(inside):
            _request_axes(trace, own, inside)  # what remains has no labels yet
        else:
            result.append(own)
    return tuple(result)


def _request_axes(trace: Trace, own: LabelField, inside: Sequence[bool]) -> None:
    """Asks for labels of their own for each run of axes that go or stay together."""
    sizes = own.labels.shape
    cuts = [1]
    for place in reversed(range(len(sizes))):
        if place < len(sizes) - 1 and inside[place] == inside[place + 1]:
            cuts[-1] *= sizes[place]
        else:
            cuts.append(cuts[-1] * sizes[place])
    digits = list(zip(cuts, cuts[1:], strict=False))
    _request(trace, own, own.axes, sizes, digits)
