"""First labels of every array, and new ones for axes that a network takes apart.

An axis of heads * size first has one label for each index. Where the network sums over the size of each head, or
normalises groups of channels, index i gets two labels instead, those of its head and of its place in the head; it stays
as long as both do. So heads and places can each be removed, and what is left can be laid out the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune.pruning.labels import FREE, Labels
from jaxprune.pruning.program import Program
from jaxprune.pruning.records import Request, Seeds, State, Trace
from jaxprune.pruning.states import Path
from jaxprune.pruning.tracing import walk

_MOST_WALKS = 10


def first_seeds(shapes: Mapping[Path, tuple[int, ...]]) -> tuple[Seeds, int]:
    """One label for every index of every axis longer than one, and their number."""
    count = 0
    seeds: Seeds = {}
    for path, shape in shapes.items():
        axes: list[tuple[np.ndarray, ...]] = []
        for size in shape:
            axes.append((np.arange(count, count + size, dtype=np.int64),) if size > 1 else ())
            count += size if size > 1 else 0
        seeds[path] = tuple(axes)
    return seeds, count


def first_state(
    shapes: Mapping[Path, tuple[int, ...]], tied: Sequence[tuple[tuple[Path, int], tuple[Path, int]]] = ()
) -> State:
    """Labels before the first walk; `tied` are (path, axis) pairs whose indices fall together."""
    seeds, count = first_seeds(shapes)
    same = [(seeds[a][i][0], seeds[b][j][0]) for (a, i), (b, j) in tied if seeds[a][i] and seeds[b][j]]
    return State(seeds, count, tuple(same))


def settled_trace(program: Program, trained: frozenset[Path], state: State) -> Trace:
    """The trace of a network whose labels are taken apart as far as its operations need it.

    Args:
      program: of the network.
      trained: paths of its trained parameters.
      state: labels to begin with.
    """
    trace = _walked(program, trained, state)
    for _ in range(_MOST_WALKS - 1):
        if not trace.requests:
            break
        seeds, count, found = _taken_apart(trace, state.seeds, state.size)
        state = State(seeds, count, (*state.same, *found))
        trace = _walked(program, trained, state)
    for request in trace.requests:
        trace.labels.freeze(request.labels, "axes are taken apart in ways that do not go together")
    return trace


def _walked(program: Program, trained: frozenset[Path], state: State) -> Trace:
    labels = Labels(state.size)
    for left, right in state.same:
        labels.unite(left, right)
    trace = walk(program, trained, state.seeds, labels)
    trace.state = state
    return trace


def tied_state(trace: Trace, ties: Sequence[tuple[np.ndarray, np.ndarray]]) -> State:
    """The state of a walk with further labels that fall together."""
    assert trace.state is not None
    count = trace.state.size
    pairs = []
    for left, right in ties:
        a, b = trace.labels.find(left), trace.labels.find(right)
        known = (a >= 0) & (b >= 0) & (a < count) & (b < count)  # the walk's own labels are gone with it
        pairs.append((a[known], b[known]))
    return trace.state._replace(same=(*trace.state.same, *pairs))


def _taken_apart(
    trace: Trace, seeds: Seeds, count: int
) -> tuple[Seeds, int, list[tuple[np.ndarray, np.ndarray]]]:
    """Seeds with new labels for what was requested, their number, and which of the new ones are the same."""
    roots_of = {
        path: [[trace.labels.find(own) for own in axis] for axis in axes] for path, axes in seeds.items()
    }
    done: set[int] = set()
    same: list[tuple[np.ndarray, np.ndarray]] = []
    tables: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for request in trace.requests:
        roots, coordinates = _roots_and_coordinates(trace.labels, request)
        if roots.size == 0 or done.intersection(roots.tolist()):
            continue  # of what was taken apart before, the next walk knows more
        done.update(roots.tolist())
        unique, where = np.unique(roots, return_inverse=True)
        columns = []
        for coordinate in coordinates:
            values, own = np.unique(coordinate, return_inverse=True)
            first = np.full(len(unique), len(values), np.int64)
            np.minimum.at(first, where, own)
            same.append((count + own, count + first[where]))
            is_one = len(np.unique(first)) == 1  # of which nothing could be cut
            columns.append(np.full(len(unique), FREE) if is_one else count + first)
            count += len(values)
        tables.append((unique, columns))
    lookup = _Lookup(tables)
    result = {
        path: tuple(
            _side_by_side(
                [part for own, roots in zip(axis, found, strict=True) for part in lookup.parts(own, roots)]
            )
            for axis, found in zip(axes, roots_of[path], strict=True)
        )
        for path, axes in seeds.items()
    }
    return result, count, same


def _roots_and_coordinates(labels: Labels, request: Request) -> tuple[np.ndarray, list[np.ndarray]]:
    is_label = request.labels >= 0
    return labels.find(request.labels[is_label]), [own[is_label] for own in request.coordinates]


def _side_by_side(fields: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Fields of one axis, those in one that have labels at different indices.

    Of a fused projection, values are taken apart in a later walk than queries and keys, but heads are heads.

    Example:
      >>> _side_by_side([np.array([1, 1, -1]), np.array([3, 4, 5]), np.array([-1, -1, 2])])
      (array([1, 1, 2]), array([3, 4, 5]))
    """
    found: list[np.ndarray] = []
    for own in fields:
        for place, other in enumerate(found):
            if ((own == FREE) | (other == FREE)).all():
                found[place] = np.where(own == FREE, other, own)
                break
        else:
            found.append(own)
    return tuple(found)


class _Lookup:
    """New labels by old representative: a row for each, as many columns as the longest request has coordinates."""

    def __init__(self, tables: Sequence[tuple[np.ndarray, list[np.ndarray]]]) -> None:
        width = max((len(columns) for _, columns in tables), default=0)
        roots = [unique for unique, _ in tables]
        rows = [
            np.stack([*columns, *[np.full(len(unique), FREE)] * (width - len(columns))], axis=1)
            for unique, columns in tables
        ]
        self._roots = np.concatenate(roots) if roots else np.zeros(0, np.int64)
        self._rows = np.concatenate(rows) if rows else np.zeros((0, 0), np.int64)
        order = np.argsort(self._roots)
        self._roots, self._rows = self._roots[order], self._rows[order]

    def parts(self, own: np.ndarray, roots: np.ndarray) -> list[np.ndarray]:
        """The fields that take the place of one."""
        if not len(self._roots):
            return [own]
        place = np.minimum(np.searchsorted(self._roots, roots), len(self._roots) - 1)
        is_found = self._roots[place] == roots
        if not is_found.any():
            return [own]
        found = []
        for column in range(self._rows.shape[1]):
            other = own if column == 0 else np.full_like(own, FREE)
            part = np.where(is_found, self._rows[place, column], other)
            if (part != FREE).any():
                found.append(part)
        return found
