"""Tries out whether a network's code follows the sizes of its arrays, for every kind of group.

The code may hold a number that pruning would make wrong (two halves, eight heads, a padding), or need sizes that are
equal although no operation combines them. So all groups are cut at once on shapes, each kind by another share, and the
network is traced again. If that fails, the smallest sets of groups that fail on their own are looked for. Each is tied
to channels that must be cut alike, freed by numbers that the user's classes store, or else frozen, with the failure as
the reason. Where channels are split, padded or regrouped, more than one cut is tried, and the traces are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from jaxprune.structure.attribute_search import AttributeAxis, attribute_sets, unnumbered
from jaxprune.structure.culprits import smallest_failing
from jaxprune.structure.groups import Structure, structure_from
from jaxprune.structure.model_state import Parts, Path, dotted
from jaxprune.structure.own_sizes import stored_numbers
from jaxprune.structure.propagation import propagate_and_factor, with_ties
from jaxprune.structure.trace import Trace
from jaxprune.structure.verification import Misfit, find_misfit

KeptChannels = dict[str, np.ndarray]
"""Group -> channels to keep; groups left out stay whole."""
Ties = list[tuple[np.ndarray, np.ndarray]]
"""Pairs of arrays of labels that fall together, elementwise."""
Kind = list[str]
"""Alike groups."""

_MANY_ALIKE = 8
"""With at least this many alike groups, they are taken for repeated blocks and judged together."""
_MAX_PAIRINGS = 6
_MAX_STEPS = 4
"""How often ties of axes are looked for again, once those found before are in force."""


def try_groups(parts: Parts, structure: Structure) -> Structure:
    """Returns a structure without the groups that cannot be cut because code relies on fixed sizes.

    Args:
      parts: the network, taken apart; its weights are not read.
      structure: its groups according to its operations alone.

    Returns:
      The structure with ties, attributes and frozen groups from the trials.
    """
    trials = _Trials(parts, structure)
    while (failure := trials.first_failure()) is not None:
        trials.learn(*failure)
    return trials.structure


class _Trials:
    """What the trials so far have shown about a network's groups."""

    def __init__(self, parts: Parts, structure: Structure) -> None:
        self.parts, self.structure = parts, structure
        # Number in the user's classes -> the axis whose length it is.
        self._axes: dict[str, AttributeAxis] = {}
        self._never: dict[int, str] = {}  # label -> why it is frozen
        self._results: dict[object, Misfit | None] = {}
        self._tied_results: dict[object, Misfit | None] = {}
        self._offsets: dict[str, int] = {}
        # Width -> groups that wide, in the order in which they were met.
        self._turns: dict[int, list[str]] = {}

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return stored_numbers(self.parts.model)

    def first_failure(self) -> tuple[KeptChannels, bool] | None:
        """Returns the channels kept in the first trial that fails, and whether it was only to run.

        Without places where code splits channels, mixing them up takes another length, so running tells.
        """
        only_runs = not self._suspects()
        for kept in self._trials(is_short=only_runs):
            if kept and self._misfit(kept, only_runs=only_runs) is not None:
                return kept, only_runs
        return None

    def _trials(self, *, is_short: bool) -> Iterator[KeptChannels]:
        """Yields the channels to keep in each trial.

        The first cuts about half of every group. In two more, half of the groups keep a single channel, which cannot be
        divided, while the others stay whole: what is cut must not need that they are cut alike.
        """
        yield self._halves()
        kinds = () if is_short else _kinds(self.structure, self.structure.groups)
        for trial in range(2):
            kept: KeptChannels = {}
            for kind in kinds:
                offset = self._offsets.setdefault(_unmarked(kind[0]), len(self._offsets))
                for index, name in enumerate(kind if trial == 0 or len(kind) == 1 else (), offset + trial):
                    if index % 2 == 0:
                        kept[name] = np.zeros(1, np.int64)
            yield kept

    def _suspects(self) -> set[str]:
        """Returns the groups on axes that are split, padded or regrouped."""
        axes = self.structure.families.trace.suspect_axes
        return set().union(*(_groups_of_labels(self.structure, axis.labels) for axis in axes))

    def _halves(self, names: Collection[str] | None = None) -> KeptChannels:
        names = self.structure.groups if names is None else names
        return {name: self._uneven_half(name) for name in names}

    def _uneven_half(self, name: str, tied: Structure | None = None) -> np.ndarray:
        width = (tied or self.structure).widths[name]
        turns = self._turns.setdefault(width, [])
        if name not in turns:
            turns.append(name)
        return _uneven_part(width, turns.index(name))

    def _misfit(
        self,
        kept: KeptChannels,
        axes: Mapping[str, AttributeAxis] | None = None,
        *,
        tied: Structure | None = None,
        only_runs: bool = False,
    ) -> Misfit | None:
        """Says what is wrong with a slim network whose attributes follow, those along `axes` too.

        Results are kept: freezing other groups does not change them. Those for a structure with further ties are kept
        apart until it replaces the present one.
        """
        structure, results = (self.structure, self._results) if tied is None else (tied, self._tied_results)
        if axes:
            structure = _with_attributes(structure, {**self._axes, **axes})
        attributes = structure.attributes_for({name: len(channels) for name, channels in kept.items()})
        cut = frozenset((name, channels.tobytes()) for name, channels in kept.items())
        key = (cut, frozenset(attributes.items()))
        if (*key, only_runs) not in results:
            found = find_misfit(self.parts, structure, kept, attributes, only_runs=only_runs)
            results[*key, only_runs] = found
            if found is not None and not found.runs:
                results[*key, False] = results[*key, True] = found
            elif not only_runs:
                results[*key, True] = None
        return results[*key, only_runs]

    def learn(self, kept: KeptChannels, only_runs: bool) -> None:
        """Ties, frees or freezes groups after a trial has failed."""
        misfit = self._misfit(kept, only_runs=only_runs)
        stops = misfit is not None and not misfit.runs
        # What is nowhere split is least under suspicion, and acquitted together.
        suspects = self._suspects()
        kinds = sorted(
            _kinds(self.structure, self.structure.groups), key=lambda kind: suspects.isdisjoint(kind)
        )
        cut = [[name for name in kind if name in kept] for kind in kinds]
        cut = [names for names in cut if names]
        culprits = self._culprits(cut, kept, only_runs=only_runs or stops)
        if stops and not only_runs:  # of groups that stop the network together, one may mix channels up alone
            sets = [[kind for kind in cut if not set(kind).isdisjoint(culprit)] for culprit in culprits]
            culprits = [smaller for own in sets for smaller in self._culprits(own, kept, only_runs=False)]
        whole = [self._whole_kinds(culprit, kinds, kept) for culprit in culprits]
        freed = [self._follow(names, kept) for names in whole]
        if any(freed):
            return  # the other groups may be fine now
        are_halves = all(np.array_equal(own, self._uneven_half(name)) for name, own in kept.items())
        if self._tie(whole, self._equally_wide(whole), are_halves=are_halves):
            return
        failures: dict[str, Misfit] = {}
        for culprit, names in zip(culprits, whole, strict=True):
            misfit = self._misfit({name: kept[name] for name in culprit}, only_runs=only_runs)
            assert misfit is not None
            last = next(kind for kind in reversed(kinds) if not set(kind).isdisjoint(names))
            guilty = [name for name in names if name in last]  # others are fine while these stay whole
            failures.update(self._failures_of(guilty, misfit))
        self._freeze(failures)

    def _failures_of(self, names: Sequence[str], misfit: Misfit) -> dict[str, Misfit]:
        """Says what goes wrong for alike groups that fail together, or for those among them that fail alone."""
        if 1 < len(names) < _MANY_ALIKE:
            alone = {name: self._misfit({name: self._uneven_half(name)}) for name in names}
            if failing := {name: own for name, own in alone.items() if own is not None}:
                return failing
        return dict.fromkeys([name for name in names if name in misfit.groups] or names, misfit)

    def _culprits(self, kinds: Sequence[Kind], kept: KeptChannels, *, only_runs: bool) -> list[list[str]]:
        """Returns the smallest sets of groups that fail on their own, from kinds that fail together."""

        def fails(chosen: Sequence[Kind]) -> bool:
            cut = {name: kept[name] for names in chosen for name in names}
            return self._misfit(cut, only_runs=only_runs) is not None

        return [[name for names in found for name in names] for found in smallest_failing(kinds, fails)]

    def _equally_wide(self, culprits: Sequence[Sequence[str]]) -> list[str]:
        """Returns further groups that fail, as wide as culprits: whole in the trial, or mixed up and not stopped."""
        names = {name for culprit in culprits for name in culprit}
        widths = {self.structure.widths[name] for name in names}
        others = [
            name for name, width in self.structure.widths.items() if name not in names and width in widths
        ]
        return [
            name
            for kind in _kinds(self.structure, others)
            if self._misfit(self._halves(kind)) is not None
            for name in kind
        ]

    def _tie(self, culprits: Sequence[Sequence[str]], others: Sequence[str], *, are_halves: bool) -> bool:
        """Ties culprits to channels that must be cut alike, among each other or of other groups that fail.

        Args:
          culprits: sets of groups that fail.
          others: groups that fail, too.
          are_halves: whether they fail by half already, and not only where a single channel is left.

        Returns:
          Whether anything is tied now.
        """
        is_tied = False
        waiting = [*map(list, culprits), *_kinds(self.structure, others)]
        for _ in culprits:
            if not waiting:
                break
            names, *waiting = waiting
            rivals = {name for rival in waiting for name in rival}
            before = self.structure
            near = [name for name in before.groups if name in rivals]
            tied = self._tied_structure(names, near, are_halves=are_halves)
            if tied is None:
                waiting.append(names)
                continue
            is_tied, self.structure = True, tied
            self._never = {}  # labels are renumbered, and what was frozen may be fine now
            self._results, self._tied_results = self._tied_results, {}
            waiting = [_groups_in_place_of(rival, before, tied) for rival in waiting]
            waiting = [
                rival
                for rival in waiting
                if rival and self._numbers_that_help(rival, [self._halves(rival)]) is None
            ]
        return is_tied

    def _whole_kinds(self, culprit: Sequence[str], kinds: Sequence[Kind], kept: KeptChannels) -> list[str]:
        """Adds the groups that were left whole in a trial in which all others of their kind failed."""
        names = set(culprit)
        for kind in kinds:
            tried = {name for name in kind if name in kept}
            if tried and tried <= names:
                names.update(kind)
        return [name for name in self.structure.groups if name in names]

    def _follow(self, names: Sequence[str], kept: KeptChannels) -> bool:
        """Lets numbers in the user's classes follow groups from now on, if that makes these work."""
        failing = {name: kept[name] for name in names if name in kept}
        cuts = [failing, self._halves(names)]
        found = self._numbers_that_help(names, cuts)
        if found:
            self._axes.update(found)
            self.structure = _with_attributes(self.structure, self._axes)
        return bool(found)

    def _numbers_that_help(
        self,
        names: Sequence[str],
        cuts: Sequence[KeptChannels],
        tied: Structure | None = None,
    ) -> Mapping[str, AttributeAxis] | None:
        """Returns numbers that must follow groups to make some cuts of these work; None if nothing helps."""

        def works(axes: Mapping[str, AttributeAxis]) -> bool:
            return all(self._misfit(kept, axes, tied=tied) is None for kept in cuts)

        if works({}):
            return {}
        for axes in attribute_sets(self._numbers, tied or self.structure, names):
            if works(axes):
                patterns = dict.fromkeys(map(unnumbered, axes))
                for pattern in patterns if len(patterns) > 2 else ():
                    fewer = {path: axis for path, axis in axes.items() if unnumbered(path) != pattern}
                    axes = fewer if works(fewer) else axes
                return axes
        return None

    def _tied_structure(
        self, names: Sequence[str], rivals: Sequence[str], *, are_halves: bool
    ) -> Structure | None:
        """Returns the structure with ties that make groups work; None if there are none.

        Args:
          names: groups that fail.
          rivals: groups that fail, too, and may have to be cut as these are.
          are_halves: as for `_tie`.
        """
        order, roots = list(self.structure.groups), self.structure.families.channel_roots
        for pairs in [[], *itertools.islice(_pairings(self.structure, names, rivals), _MAX_PAIRINGS)]:
            ties = [(roots[order.index(left)], roots[order.index(right)]) for left, right in pairs]
            structure, cut = self.structure, list(names)
            for _ in range(_MAX_STEPS):
                ties = ties or _ties_of_axes(structure, cut)
                if not ties:
                    break
                trace = structure.families.trace
                trace = propagate_and_factor(structure.program, trace.trained, with_ties(trace, ties))
                structure, before, ties = structure_from(trace, structure.fingerprint), structure, []
                structure, self._tied_results = _with_attributes(structure, self._axes), {}
                cut = _groups_in_place_of(cut, before, structure)
                cuts = [{name: self._uneven_half(name, structure) for name in cut}]
                if not are_halves:
                    cuts.append({name: np.zeros(1, np.int64) for name in cut})
                if cut and self._numbers_that_help(cut, cuts, structure) is not None:
                    return structure
        return None

    def _freeze(self, failures: Mapping[str, Misfit]) -> None:
        """Freezes groups, with the way they failed as the reason."""
        order, families = list(self.structure.groups), self.structure.families
        for name, misfit in failures.items():
            reason = f"the network's code counts on their number: when some are gone, {misfit.reason}"
            roots = families.channel_roots[order.index(name)]
            self._never.update(dict.fromkeys(roots.tolist(), reason))
        self._regroup(families.trace)

    def _regroup(self, trace: Trace) -> None:
        structure = structure_from(trace, self.structure.fingerprint, self._never)
        self.structure = _with_attributes(structure, self._axes)


def _with_attributes(structure: Structure, axes: Mapping[str, AttributeAxis]) -> Structure:
    fields = {path: axis.fields(structure) for path, axis in axes.items()}
    return replace(structure, attribute_axes={path: own for path, own in fields.items() if own})


def _groups_in_place_of(names: Sequence[str], before: Structure, after: Structure) -> list[str]:
    """Returns the groups that groups became after some of their channels were tied."""
    found: dict[str, None] = {}
    for name in names:
        member = before.groups[name].members[0]
        indices = np.flatnonzero(member.channels >= 0)
        channels, first = np.unique(member.channels[indices], return_index=True)
        for group, new in after.layouts[member.path][member.axis]:
            of_channel = new[indices[first]]
            if (of_channel >= 0).all() and (
                new[indices] == of_channel[np.searchsorted(channels, member.channels[indices])]
            ).all():
                found[group] = None
    return list(found)


def _groups_of_labels(structure: Structure, labels: np.ndarray) -> set[str]:
    return {field.group for field in structure.fields_of([labels])}


def _ties_of_axes(structure: Structure, names: Collection[str]) -> Ties:
    """Returns labels that do not fall together yet, but must for axes with channels of some groups to be cut evenly.

    Other groups on these axes are cut evenly along with them, so their axes count too.
    """
    trace, reached = structure.families.trace, set(names)
    waiting = [
        (axis.ties, _groups_of_labels(structure, axis.labels))
        for axis in trace.suspect_axes
        if axis.ties is not None
        and not np.array_equal(trace.labels.find(axis.ties[0]), trace.labels.find(axis.ties[1]))
    ]
    ties: Ties = []
    while near := [(own, groups) for own, groups in waiting if groups & reached]:
        ties += [own for own, _ in near]
        waiting = [(own, groups) for own, groups in waiting if not groups & reached]
        reached = reached.union(*(groups for _, groups in near))
    return ties


def _pairings(
    structure: Structure, names: Sequence[str], rivals: Sequence[str]
) -> Iterator[list[tuple[str, str]]]:
    """Yields pairs of equally wide groups, of one module if possible, that may have to lose the same channels."""

    def module_of(name: str) -> Path:
        return structure.sites[structure.groups[name].producers[0]].kernel[:-2]

    def likeness(name: str) -> tuple[int, bool]:
        return structure.widths[name], structure.groups[name].is_of_blocks

    def chained(members: Sequence[str]) -> list[tuple[str, str]]:
        by_place: dict[object, list[str]] = {}
        for name in members:
            by_place.setdefault((module_of(name), likeness(name)), []).append(name)
        return [(first, other) for first, *others in by_place.values() for other in others]

    options = [chained(names), chained([*names, *(rival for rival in rivals if rival not in names)])]
    alike = [[rival for rival in kind if rival not in names] for kind in _kinds(structure, rivals)]
    for others in alike:
        if len(others) == len(names):
            options.append(list(zip(names, others, strict=True)))
    options.append([(names[0], name) for name in names[1:]])
    # One number of the whole network, such as the size of a head in encoder, decoder and cross attention.
    alike_rivals = [
        rival for rival in rivals if rival not in names and likeness(rival)[0] == likeness(names[0])[0]
    ]
    options.append([(names[0], name) for name in [*names[1:], *alike_rivals]])
    seen: list[list[tuple[str, str]]] = []
    for pairs in options:
        fits = all(structure.widths[left] == structure.widths[right] for left, right in pairs)
        if pairs and fits and pairs not in seen:
            seen.append(pairs)
            yield pairs


def _kinds(structure: Structure, names: Collection[str]) -> list[Kind]:
    """Collects groups that are on the same axes of the same arrays, apart from the numbers of their blocks."""
    kinds: dict[object, Kind] = {}
    for name in names:
        group = structure.groups[name]
        axes = frozenset((unnumbered(dotted(member.path)), member.axis) for member in group.members)
        kinds.setdefault((unnumbered(_unmarked(name)), group.is_of_blocks, axes), []).append(name)
    return list(kinds.values())


def _unmarked(name: str) -> str:
    """Returns a group's name without the mark that perhaps only the first of alike blocks needs."""
    return name.removesuffix(":outer").removesuffix(":inner")


def _uneven_part(width: int, turn: int) -> np.ndarray:
    """Chooses a quarter to three quarters of the channels at random, most of them in front.

    So equal parts become uneven, and groups that are equally wide lose different numbers.

    Args:
      width: number of channels.
      turn: how many equally wide groups come before.
    """
    numbers = range(max(1, -(-width // 4)), max(2, min(width - 1, 3 * width // 4) + 1))
    count = sorted(numbers, key=lambda number: abs(2 * number - width))[turn % len(numbers)]
    rng, middle = np.random.default_rng(turn), (width + 1) // 2
    num_front = min(middle, max(count - (width - middle), -(-7 * count // 10)))
    front, back = rng.permutation(middle), middle + rng.permutation(width - middle)
    return np.sort(np.concatenate([front[:num_front], back[: count - num_front]]))
