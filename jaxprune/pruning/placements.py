"""Which channels lie in which part of an axis that is split or taken apart, in the full network and in the slim one.

Operations entry by entry do not tell: an activation that is applied to the first half alone brings no channels
together, whichever these are. So the parts themselves are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np

from jaxprune.pruning.groups import Structure
from jaxprune.pruning.program import Step
from jaxprune.pruning.records import Trace

Parts = list[list[frozenset[int]]]
"""For each way to read the axes as rows, the channels in each row, in order; rows without any are left out."""


def misplaced(
    structure: Structure, slim: Trace, kept: Mapping[str, np.ndarray], most: int
) -> tuple[str, frozenset[str]] | None:
    """Where the first part is that does not hold what is left of the same part of the full network, and whose channels.

    Args:
      structure: of the full network.
      slim: a walk of the slim one, with labels of the full one; numbers beyond these stand for copies of channels.
      kept: group -> kept channels.
      most: labels from here on belong to the slim network alone.
    """
    families, names = structure.families, list(structure.groups)
    stays = families.family_of >= 0
    for name, own in kept.items():
        members = families.members[names.index(name)]
        stays[np.delete(members, own)] = False
    expected, found = (_in_order(trace) for trace in (structure.settled, slim))
    for key, (step, labels) in found.items():
        if key not in expected:
            continue  # the slim network takes another way through its code
        before = _parts(families.trace.labels.find(expected[key][1]), stays, most)
        after = _parts(slim.labels.find(labels), stays, most)
        if before != after:
            mixed = {root for rows in (before, after) for row in rows[-1] for root in row}
            return step.where, frozenset(names[int(families.family_of[root])] for root in mixed)
    return None


def _in_order(trace: Trace) -> dict[tuple[str, int], tuple[Step, np.ndarray]]:
    """By operation and source line, numbered where one line does several."""
    found: dict[tuple[str, int], tuple[Step, np.ndarray]] = {}
    times: dict[str, int] = {}
    for step, labels in trace.placements.values():
        times[step.where] = times.get(step.where, -1) + 1
        found[step.where, times[step.where]] = (step, labels)
    return found


def _parts(labels: np.ndarray, stays: np.ndarray, most: int) -> Parts:
    known = (labels >= 0) & (labels < most)
    own = np.where(known, labels % len(stays), 0)
    known &= stays[own]
    found: Parts = []
    for axis in range(labels.ndim):
        rows = np.where(known, own, -1).reshape(int(np.prod(labels.shape[:axis])), -1)
        sets = [frozenset(np.unique(row[row >= 0]).tolist()) for row in rows]
        found.append([row for row, _ in groupby(row for row in sets if row)])  # copies are one
    return found
