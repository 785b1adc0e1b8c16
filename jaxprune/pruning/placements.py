"""Which channels lie in which part of an axis that is split or taken apart, in the full network and in the slim one.

Operations entry by entry do not tell: an activation that is applied to the first half alone brings no channels
together, whichever these are. So the parts themselves are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from jaxprune.pruning.groups import Structure
from jaxprune.pruning.program import Step
from jaxprune.pruning.records import Trace


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
    if not slim.placements and not families.trace.placements:
        return None
    stays = families.family_of >= 0
    for name, own in kept.items():
        members = families.members[names.index(name)]
        stays[np.delete(members, own)] = False
    # The sum of a random number for each channel tells sets of channels apart (64 bits).
    numbers = np.random.default_rng(0).integers(1, 1 << 63, len(stays), dtype=np.uint64)
    expected, found = (_in_order(trace) for trace in (structure.settled, slim))
    for key in (own for own in expected if own not in found):  # there are no parts any more
        lost = _channels(expected[key][1], stays, len(stays))
        if (lost >= 0).any():
            mixed = np.unique(families.family_of[lost[lost >= 0]])
            return expected[key][0].where, frozenset(names[family] for family in mixed.tolist())
    for key, (step, labels) in found.items():
        if key not in expected:
            continue  # the slim network takes another way through its code
        before = _channels(expected[key][1], stays, len(stays))  # without copies: behind is fill
        after = _channels(slim.labels.find(labels), stays, most)
        pairs = zip(_parts(before, numbers), _parts(after, numbers), strict=False)
        is_same = before.ndim == after.ndim and all(np.array_equal(left, right) for left, right in pairs)
        if not is_same:
            mixed = np.unique(families.family_of[np.concatenate([before[before >= 0], after[after >= 0]])])
            return step.where, frozenset(names[family] for family in mixed.tolist())
    return None


def _in_order(trace: Trace) -> dict[tuple[str, int], tuple[Step, np.ndarray]]:
    """By operation and source line, numbered where one line does several."""
    found: dict[tuple[str, int], tuple[Step, np.ndarray]] = {}
    times: dict[str, int] = {}
    for step, labels in trace.placements.values():
        times[step.where] = times.get(step.where, -1) + 1
        found[step.where, times[step.where]] = (step, labels)
    return found


def _channels(labels: np.ndarray, stays: np.ndarray, most: int) -> np.ndarray:
    """The channel at each place, -1 where there is none that stays."""
    known = (labels >= 0) & (labels < most)
    own = np.where(known, labels % len(stays), 0)
    return np.where(known & stays[own], own, -1)


def _parts(channels: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """For each way to read the axes as rows, numbers for the sets of channels in the rows.

    Rows without any are left out, and so are those equal to the one before: copies are one.
    """
    found = []
    for axis in range(channels.ndim):
        rows = np.sort(channels.reshape(math.prod(channels.shape[:axis]), -1), axis=1)
        is_first = np.diff(rows, axis=1, prepend=-1) != 0
        sums = np.where(is_first & (rows >= 0), numbers[np.maximum(rows, 0)], 0).sum(axis=1)
        sums = sums[sums != 0]
        found.append(sums[np.diff(sums, prepend=np.uint64(0)) != 0])
    return found
