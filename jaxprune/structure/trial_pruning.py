"""Tries out groups for which a network's code may rely on fixed sizes.

Where channels are split, padded or regrouped, the code may hold a number that pruning would make wrong (two halves,
eight heads). Such groups are tried on shapes: they are cut, the network is traced again, and the traces are compared. A
group that fails the trial is tied to channels that must be cut alike, freed by an attribute of the user's class that
stores the number, or else frozen, with the failure as the reason.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice, takewhile

import numpy as np

from jaxprune.structure.groups import Structure, structure_from
from jaxprune.structure.labels import distinct
from jaxprune.structure.layer_sizes import stored_sizes
from jaxprune.structure.model_state import Parts, Path, dotted
from jaxprune.structure.propagation import propagate_and_factor, with_ties
from jaxprune.structure.trace import Trace
from jaxprune.structure.verification import Misfit, find_misfit

KeptChannels = dict[str, np.ndarray]
"""Group -> channels to keep; groups left out stay whole."""
Ties = list[tuple[np.ndarray, np.ndarray]]
"""Pairs of arrays of labels that fall together, elementwise."""

_MAX_ROUNDS = 6
_MAX_ATTRIBUTE_SETS = 6
_MANY_ALIKE = 8
"""With at least this many alike groups, they are taken for repeated blocks and judged together."""


def try_groups(parts: Parts, structure: Structure) -> Structure:
    """Returns a structure without the groups that cannot be cut because code relies on fixed sizes.

    Args:
      parts: the network, taken apart; its weights are not read.
      structure: its groups according to its operations alone.

    Returns:
      The structure with ties, attributes and frozen groups from the trials.
    """
    trials = _Trials(parts, structure)
    for _ in range(_MAX_ROUNDS):
        suspects = trials.suspects()
        failure = trials.first_failure(suspects)
        if failure is None:
            break
        trials.learn(suspects, *failure)
    else:
        reason = Misfit("it kept failing in other ways")
        trials.freeze(dict.fromkeys(_suspect_groups(trials.structure), reason))
    attributes = {name: paths for name, paths in trials.attributes.items() if name in trials.structure.groups}
    return replace(trials.structure, attributes=attributes)


class _Trials:
    """What the trials so far have shown about a network's groups."""

    def __init__(self, parts: Parts, structure: Structure) -> None:
        self.parts, self.structure = parts, structure
        self.attributes: dict[str, tuple[str, ...]] = {}
        self._never: dict[int, str] = {}  # label -> why it is frozen
        self._tied: set[str] = set()
        self._tied_by_module: set[str] = set()
        self._passed: set[tuple[frozenset[tuple[str, bytes]], bool]] = set()
        self._offsets: dict[str, int] = {}

    def suspects(self) -> list[str]:
        """Returns the groups on suspect axes that no attribute frees."""
        return [name for name in _suspect_groups(self.structure) if name not in self.attributes]

    def first_failure(self, names: Sequence[str]) -> tuple[KeptChannels, Misfit] | None:
        """Returns the channels kept in the first trial of some groups that fails, and what went wrong."""
        for kept in self._trials_of(names):
            misfit = self._find_misfit(kept)
            if misfit is not None:
                return kept, misfit
        return None

    def _trials_of(self, names: Sequence[str]) -> Iterator[KeptChannels]:
        """Yields the channels to keep in each trial, so that every kind of groups meets every choice of channels.

        Groups of alike blocks meet the choices in one trial.
        """
        choices = (*_CHOICES, None)  # None leaves a group whole: others must not need it to be cut alike
        kinds = _kinds(self.structure, names)
        for trial in range(len(choices)):
            kept: KeptChannels = {}
            for kind in kinds:
                offset = self._offsets.setdefault(_unmarked(kind[0]), len(self._offsets))
                num_tried = trial * len(kind)
                for index, name in enumerate(kind if num_tried < len(choices) else ()):
                    choose = choices[(offset + num_tried + index) % len(choices)]
                    if choose is not None:
                        kept[name] = choose(self.structure, name)
            if kept:
                yield kept

    def _find_misfit(self, kept: KeptChannels, *, only_runs: bool = False) -> Misfit | None:
        """Calls `find_misfit`, unless the same trial has passed before: freezing other groups does not change it."""
        key = frozenset((name, channels.tobytes()) for name, channels in kept.items())
        if {(key, False), (key, only_runs)} & self._passed:
            return None
        misfit = find_misfit(self.parts, self.structure, kept, only_runs=only_runs)
        if misfit is None:
            self._passed.add((key, only_runs))
        return misfit

    def learn(self, suspects: Sequence[str], kept: KeptChannels, misfit: Misfit) -> None:
        """Ties, frees or freezes groups after a trial has failed.

        If the network did not even run, the groups that alone stop it from running come first: an attribute may help.
        """
        failures: dict[str, Misfit] = {}
        for only_runs in (True, False) if not misfit.groups else (False,):
            for kind in _kinds(self.structure, suspects):
                if failures.keys() & set(kind):
                    continue
                own_misfit = self._misfit_of_kind(kind, kept, only_runs=only_runs)
                if own_misfit is None:
                    continue
                attributes = _attributes_that_help(self.parts, self.structure, kind)
                if attributes:
                    self.attributes.update((name, _nearest(attributes, name)) for name in kind)
                    return  # the other groups may be fine now
                mixed_up = [name for name in kind if name in own_misfit.groups]
                failures.update(dict.fromkeys(mixed_up or kind, own_misfit))
        if not failures:  # every kind is fine alone, but not together with others
            mixed_up = [name for name in suspects if name in misfit.groups]
            failures = dict.fromkeys(mixed_up or suspects, misfit)
        ties = self._new_ties(failures)
        if ties:
            self._never = {}  # labels are renumbered, and what was frozen may be fine now
            self._passed.clear()
            trace = self.structure.families.trace
            start = with_ties(trace, ties)
            self._regroup(propagate_and_factor(self.structure.program, trace.trained, start))
        else:
            self.freeze(failures)

    def freeze(self, failures: Mapping[str, Misfit]) -> None:
        """Freezes groups, with the way they failed as the reason."""
        order, families = list(self.structure.groups), self.structure.families
        for name, misfit in failures.items():
            reason = f"the network's code counts on their number: when some are gone, {misfit.reason}"
            roots = families.channel_roots[order.index(name)]
            self._never.update(dict.fromkeys(roots.tolist(), reason))
        self._regroup(families.trace)

    def _misfit_of_kind(self, kind: Sequence[str], kept: KeptChannels, *, only_runs: bool) -> Misfit | None:
        """Says what goes wrong when only groups of one kind lose channels, and when all of them lose them alike."""
        own_kept = {name: kept[name] for name in kind if name in kept}
        misfit = self._find_misfit(own_kept, only_runs=only_runs) if own_kept else None
        if misfit is None or len(kind) == 1:
            return misfit
        misfit = misfit._replace(groups=frozenset())
        if len(kind) < _MANY_ALIKE:
            for choose in _CHOICES:
                alike_misfit = self._find_misfit({name: choose(self.structure, name) for name in kind})
                if alike_misfit is not None:
                    return alike_misfit
        return misfit

    def _new_ties(self, failures: Mapping[str, Misfit]) -> Ties:
        """Returns labels that may have to fall together for groups that failed; each kind of ties is tried once."""
        ties: Ties = []
        if not set(failures) <= self._tied:
            ties = _ties_of_axes(self.structure, failures)
        self._tied.update(failures)
        if not ties and not set(failures) <= self._tied_by_module:
            ties = _ties_of_modules(self.structure, failures)
            self._tied_by_module.update(failures)
        return ties

    def _regroup(self, trace: Trace) -> None:
        old = self.structure
        self.structure = structure_from(trace, old.fingerprint, self._never)


def _suspect_groups(structure: Structure) -> list[str]:
    """Returns the groups with channels on an axis that is cut, padded or taken apart."""
    axes = structure.families.trace.suspect_axes
    suspects: set[str] = set().union(*(_groups_of_labels(structure, axis.labels) for axis in axes))
    return [name for name in structure.groups if name in suspects]


def _groups_of_labels(structure: Structure, labels: np.ndarray) -> set[str]:
    names, families = list(structure.groups), structure.families
    family_at, _ = families.locate(families.trace.labels.find(labels))
    return {names[family] for family in distinct(family_at[family_at >= 0]).tolist()}


def _ties_of_axes(structure: Structure, names: Iterable[str]) -> Ties:
    """Returns labels that do not fall together yet, but must for axes with channels of some groups to be cut evenly."""
    trace, wanted = structure.families.trace, set(names)
    return [
        axis.ties
        for axis in trace.suspect_axes
        if axis.ties is not None
        and _groups_of_labels(structure, axis.labels) & wanted
        and not np.array_equal(trace.labels.find(axis.ties[0]), trace.labels.find(axis.ties[1]))
    ]


def _ties_of_modules(structure: Structure, names: Iterable[str]) -> Ties:
    """Ties equally wide groups of one module channel by channel: one stored size may stand for all of them."""
    order, roots = list(structure.groups), structure.families.channel_roots
    alike: dict[tuple[Path, int], list[int]] = {}
    for name in names:
        kernel = structure.sites[structure.groups[name].producers[0]].kernel
        alike.setdefault((kernel[:-2], structure.widths[name]), []).append(order.index(name))
    return [(roots[first], roots[other]) for first, *others in alike.values() for other in others]


def _kinds(structure: Structure, names: Sequence[str]) -> list[list[str]]:
    """Collects groups that are on the same axes of the same arrays, apart from the numbers of their blocks."""
    kinds: dict[object, list[str]] = {}
    for name in names:
        group = structure.groups[name]
        axes = frozenset((_unnumbered(dotted(member.path)), member.axis) for member in group.members)
        kinds.setdefault((_unnumbered(_unmarked(name)), group.is_of_blocks, axes), []).append(name)
    return list(kinds.values())


def _unnumbered(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _unmarked(name: str) -> str:
    """Returns a group's name without the mark that perhaps only the first of alike blocks needs."""
    return name.removesuffix(":outer").removesuffix(":inner")


def _uneven_half(structure: Structure, name: str) -> np.ndarray:
    """Chooses about half of the channels at random, most of them in front, so that equal parts become uneven.

    The number is even if possible: together with the single channel of the other choice, odd and even numbers are
    tried.
    """
    width, seed = structure.widths[name], zlib.crc32(name.encode())
    count = width // 2 + (1 if seed % 2 or width < 4 else -1) * (width // 2 % 2)
    rng, count = np.random.default_rng(seed), min(max(1, count), max(1, width - 1))
    middle = (width + 1) // 2
    num_front = min(middle, -(-7 * count // 10))
    front, back = rng.permutation(middle), middle + rng.permutation(width - middle)
    return np.sort(np.concatenate([front[:num_front], back[: count - num_front]]))


def _first_channel(structure: Structure, name: str) -> np.ndarray:
    """Chooses a single channel, which cannot be divided into parts."""
    return np.zeros(1, np.int64)


_CHOICES: tuple[Callable[[Structure, str], np.ndarray], ...] = (_uneven_half, _first_channel)


def _attributes_that_help(parts: Parts, structure: Structure, names: Sequence[str]) -> tuple[str, ...]:
    """Returns attributes of the user's classes that store an old size and remove the misfit once set to the new one."""
    kept = {name: np.arange(max(1, structure.widths[name] // 2)) for name in names}
    sizes = stored_sizes(
        parts.model, {structure.widths[name]: len(channels) for name, channels in kept.items()}
    )
    paths_by_pattern: dict[str, list[str]] = {}
    for path in sizes:
        paths_by_pattern.setdefault(_unnumbered(path), []).append(path)
    attribute_sets = (
        chosen
        for number in range(1, len(paths_by_pattern) + 1)
        for chosen in combinations(paths_by_pattern.values(), number)
    )
    for chosen in islice(attribute_sets, _MAX_ATTRIBUTE_SETS):
        paths = [path for alike_paths in chosen for path in alike_paths]
        if find_misfit(parts, structure, kept, {path: sizes[path] for path in paths}) is None:
            return tuple(paths)
    return ()


def _nearest(attributes: Sequence[str], name: str) -> tuple[str, ...]:
    """Returns the attributes of the modules nearest to a group, by the number of parts that their paths share."""
    num_shared = {}
    for path in attributes:
        pairs = zip(path.split("."), name.split("."), strict=False)
        num_shared[path] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return tuple(path for path, shared in num_shared.items() if shared == max(num_shared.values()))
