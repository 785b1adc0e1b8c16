"""Which groups a function scores, and by which of their producers: by those that have everything that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from jaxprune.language.expression import Expression
from jaxprune.language.vocabulary import OF_ACTIVATIONS
from jaxprune.observation.observed import Observed
from jaxprune.patterns import chosen_groups
from jaxprune.scoring.compiled import missing_operands
from jaxprune.scoring.metrics import Metric, PruningFunction, name_of
from jaxprune.scoring.scorer import PopulationScores
from jaxprune.scoring.status import ProducerScores, explain_absent, score_producers
from jaxprune.structure.groups import Structure

_Groups = tuple[tuple[str, tuple[str, ...]], ...]
"""(group, its producers, or operands that it lacks) for some groups, as a key."""


class Part(NamedTuple):
    """Functions that score the same producers of a network, and their scores there."""

    functions: tuple[PruningFunction, ...]
    scored: ProducerScores
    left_out: Mapping[str, tuple[str, ...]]
    """Group -> operands, for the groups in which no producer has all that the functions read."""


def choose_groups(observed: Observed, groups: Sequence[str] | None, ignore: Sequence[str]) -> Observed:
    """Returns what was observed at the producers of some groups.

    Args:
      observed: what `observe` returns.
      groups: names or patterns of the groups; None stands for all.
      ignore: names or patterns of groups among them that are left out.

    Raises:
      ValueError: for patterns that match nothing, and if no group is left.
    """
    names = chosen_groups(observed.groups, groups, ignore)
    if not names:
        raise ValueError(
            f"nothing is left to score: groups={groups} and ignore={ignore} leave out every group of "
            f"{', '.join(observed.groups)}."
        )
    return _restricted(observed, {name: observed.groups[name] for name in names})


def score_in_parts(functions: Sequence[PruningFunction], observed: Observed) -> list[Part]:
    """Scores functions, each on the producers that have everything that it reads.

    A function is scored on all producers, with a reason for each that cannot be, if no group has all that it reads.

    Args:
      functions: as `expression_or_callable` returns them, each once.
      observed: what `observe` returns; gradients are computed if a function reads them and they can be computed.

    Returns:
      Functions that score the same producers together; every function is in one part.
    """
    scored = score_producers(functions, observed)
    by_groups: dict[tuple[_Groups, _Groups], list[int]] = {}
    for row, f in enumerate(functions):
        refusing = [path for path, own in scored.by_producer.items() if own.reasons[row] is not None]
        absent = absent_operands(f, scored.observed, refusing)
        kept = {
            name: tuple(path for path in paths if path not in absent)
            for name, paths in observed.groups.items()
        }
        left_out = {
            name: tuple(dict.fromkeys(lacking for path in observed.groups[name] for lacking in absent[path]))
            for name, paths in kept.items()
            if not paths
        }
        if len(left_out) == len(kept):  # no group at all can be scored
            kept, left_out = observed.groups, {}
        present = tuple((name, paths) for name, paths in kept.items() if paths)
        by_groups.setdefault((present, tuple(left_out.items())), []).append(row)
    parts = []
    for (groups, names), rows in by_groups.items():
        own, part = tuple(functions[row] for row in rows), _restricted(scored.observed, dict(groups))
        is_whole = part is scored.observed
        parts.append(
            Part(own, _rows_of(scored, rows) if is_whole else score_producers(own, part), dict(names))
        )
    return parts


def absent_operands(
    f: PruningFunction, observed: Observed, producers: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns producer -> operands that a function reads and the producer lacks, for those that lack any.

    Args:
      f: the function.
      observed: with the gradients that it reads.
      producers: which ones to look at.
    """
    names = f.operands if isinstance(f, Expression | Metric) else ()
    absent = {path: missing_operands(names, observed[path]) for path in producers}
    return {path: lacking for path, lacking in absent.items() if lacking}


def absent_in_structure(f: PruningFunction, structure: Structure) -> dict[str, tuple[str, ...]]:
    """Returns producer -> operands that a function reads and that the producer lacks whatever the weights are.

    Args:
      f: the function.
      structure: of the network.
    """
    names = f.operands if isinstance(f, Expression | Metric) else frozenset()
    absent: dict[str, tuple[str, ...]] = {}
    for path, site in structure.sites.items():
        sources = {"gamma": site.gamma, "beta": site.beta, "WO": site.consumer}
        found = {**sources, **dict.fromkeys((*sorted(OF_ACTIVATIONS), "GX"), site.activations)}
        if lacking := tuple(name for name, source in found.items() if name in names and source is None):
            absent[path] = lacking
    return absent


def scorable_groups(
    f: PruningFunction,
    structure: Structure,
    *,
    groups: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> list[str]:
    """Returns the groups that a function can score, as far as the structure shows.

    Args:
      f: the function.
      structure: of the network.
      groups, ignore: as for `choose_groups`.

    Raises:
      ValueError: if there are none, or a pattern matches nothing.
    """
    absent = absent_in_structure(f, structure)
    chosen = chosen_groups(structure.groups, groups, ignore)
    found = [name for name in chosen if not absent.keys() >= set(structure.groups[name].producers)]
    if chosen and not found:
        raise ValueError(explain_absent(f, absent))
    return found


def describe_left_out(left_out: Mapping[str, tuple[str, ...]]) -> str:
    """Names the groups that a function cannot score, with what they lack.

    Example:
      >>> describe_left_out({"query": ("WO",), "key": ("WO",), "head": ("X", "gamma")})
      'no WO in query, key; no X and gamma in head'
    """
    by_names: dict[tuple[str, ...], list[str]] = {}
    for group, names in left_out.items():
        by_names.setdefault(names, []).append(group)
    return "; ".join(f"no {' and '.join(names)} in {', '.join(groups)}" for names, groups in by_names.items())


def explain_left_out(f: PruningFunction, left_out: Mapping[str, tuple[str, ...]]) -> str:
    """Says for a warning which groups a function cannot score, and what becomes of them."""
    return (
        f"{name_of(f)} cannot score every group: {describe_left_out(left_out)}. These groups have no scores, and "
        "plan leaves them whole; say ignore= if that is meant."
    )


def _restricted(observed: Observed, groups: Mapping[str, tuple[str, ...]]) -> Observed:
    """Returns the part of an observation that has some groups with some of their producers; cached."""
    if groups == observed.groups:
        return observed
    operands = {path: observed[path] for paths in groups.values() for path in paths}
    part = partial(dataclasses.replace, observed, operands=operands, groups=dict(groups))
    return observed.cached(("part", tuple(groups.items())), part)


def _rows_of(scored: ProducerScores, rows: Sequence[int]) -> ProducerScores:
    """Returns the scores of some of the functions."""
    by_producer = {
        path: PopulationScores(own.scores[rows], [own.reasons[row] for row in rows], own.is_sound[rows])
        for path, own in scored.by_producer.items()
    }
    return scored._replace(by_producer=by_producer)
