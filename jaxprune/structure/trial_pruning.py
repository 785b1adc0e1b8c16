"""Trials of groups where a network's code may count on sizes.

Where channels are split, padded or regrouped, the code may hold a number that pruning would make wrong (two halves,
eight heads). Those groups are tried on shapes: cut, traced again and compared. What does not stand the trial is tied to
what must be cut alike, freed by an attribute of the user's class that holds the number, or else frozen, with what went
wrong as the reason.
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

Kept = dict[str, np.ndarray]
"""Which channels to keep of some groups; the others stay whole."""
_MOST_ROUNDS = 6
_MOST_SETS_OF_ATTRIBUTES = 6
_MANY = 8
"""So many groups of one kind are blocks of one class: what one of them does not stand, none does."""


def tried(parts: Parts, structure: Structure) -> Structure:
    """The structure without groups that code with fixed numbers does not let go.

    Args:
      parts: of the network; its weights are not read.
      structure: its groups as operations alone tell them.
    """
    trials = _Trials(parts, structure)
    for _ in range(_MOST_ROUNDS):
        suspects = trials.suspects()
        found = trials.first_misfit(suspects)
        if found is None:
            break
        trials.learn(suspects, *found)
    else:
        reason = Misfit("it kept failing in other ways")
        trials.freeze(dict.fromkeys(_suspects(trials.structure), reason))
    return trials.result()


class _Trials:
    """What is known of a network's groups so far."""

    def __init__(self, parts: Parts, structure: Structure) -> None:
        self.parts, self.structure = parts, structure
        self._never: dict[int, str] = {}
        self._attributes: dict[str, tuple[str, ...]] = {}
        self._tied: set[str] = set()
        self._tied_by_module: set[str] = set()
        self._passed: set[tuple[frozenset[tuple[str, bytes]], bool]] = set()
        self._offsets: dict[str, int] = {}

    def suspects(self) -> list[str]:
        """Groups at delicate places that no attribute frees."""
        return [name for name in _suspects(self.structure) if name not in self._attributes]

    def result(self) -> Structure:
        known = {name: own for name, own in self._attributes.items() if name in self.structure.groups}
        return replace(self.structure, attributes=known)

    def first_misfit(self, names: Sequence[str]) -> tuple[Kept, Misfit] | None:
        """What is kept of some groups when something goes wrong, and what it is."""
        for kept in self._trials_of(names):
            misfit = self._find(kept)
            if misfit is not None:
                return kept, misfit
        return None

    def _trials_of(self, names: Sequence[str]) -> Iterator[Kept]:
        """What to keep in each trial. Every kind of groups meets every choice: those of alike blocks in one trial."""
        kinds = _kinds(self.structure, names)
        choices = (*_CHOICES, None)  # what is cut alone must not need the others to be cut alike
        for turn in range(len(choices)):
            kept: Kept = {}
            for kind in kinds:
                offset = self._offsets.setdefault(_unmarked(kind[0]), len(self._offsets))
                done = turn * len(kind)
                for place, name in enumerate(kind if done < len(choices) else ()):
                    choose = choices[(offset + done + place) % len(choices)]
                    if choose is not None:
                        kept[name] = choose(self.structure, name)
            if kept:
                yield kept

    def _find(self, kept: Kept, *, only_runs: bool = False) -> Misfit | None:
        """`find_misfit`, once for what was fine before: freezing other groups changes nothing about it."""
        key = frozenset((name, own.tobytes()) for name, own in kept.items())
        if {(key, False), (key, only_runs)} & self._passed:
            return None
        misfit = find_misfit(self.parts, self.structure, kept, only_runs=only_runs)
        if misfit is None:
            self._passed.add((key, only_runs))
        return misfit

    def learn(self, suspects: Sequence[str], kept: Kept, misfit: Misfit) -> None:
        """Ties, frees or freezes groups of which some fail when so many channels are left.

        Where the network did not even run, first those are looked for with which alone it does not: an attribute may
        help.
        """
        failing: dict[str, Misfit] = {}
        for only_runs in (True, False) if not misfit.groups else (False,):
            for kind in _kinds(self.structure, suspects):
                if failing.keys() & set(kind):
                    continue
                found = self._misfit_of(kind, kept, only_runs=only_runs)
                helping = () if found is None else _attributes_that_help(self.parts, self.structure, kind)
                if helping:
                    self._attributes.update((name, _nearest(helping, name)) for name in kind)
                    return  # what is left may be fine
                if found is not None:
                    wrong = [name for name in kind if name in found.groups] or kind
                    failing.update(dict.fromkeys(wrong, found))
        if not failing:  # fine kind by kind, but not together
            wrong = [name for name in suspects if name in misfit.groups] or list(suspects)
            failing = dict.fromkeys(wrong, misfit)
        ties = self._new_ties(failing)
        if ties:
            self._tie(ties)
        else:
            self.freeze(failing)

    def freeze(self, failing: Mapping[str, Misfit]) -> None:
        """Nothing of these groups is cut any more."""
        self._never |= _refusals(self.structure, failing)
        self._regroup(self.structure.families.trace)

    def _misfit_of(self, kind: Sequence[str], kept: Kept, *, only_runs: bool) -> Misfit | None:
        """What goes wrong when only groups of one kind lose channels; all of them alike if that fails too."""
        own = {name: kept[name] for name in kind if name in kept}
        found = self._find(own, only_runs=only_runs) if own else None
        if found is None or len(kind) == 1:
            return found
        if len(kind) >= _MANY:
            return found._replace(groups=frozenset())
        alike = (self._find({name: choose(self.structure, name) for name in kind}) for choose in _CHOICES)
        return next((misfit for misfit in alike if misfit is not None), found._replace(groups=frozenset()))

    def _new_ties(self, failing: Mapping[str, Misfit]) -> list[tuple[np.ndarray, np.ndarray]]:
        families = {list(self.structure.groups).index(name) for name in failing}
        ties = [] if set(failing) <= self._tied else _ties(self.structure, families)
        self._tied.update(failing)
        if not ties and not set(failing) <= self._tied_by_module:
            ties = _ties_of_modules(self.structure, failing)
            self._tied_by_module.update(failing)
        return ties

    def _tie(self, ties: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        trace = self.structure.families.trace
        self._never = {}  # labels have new numbers, and what was frozen may be fine now
        self._passed.clear()
        self._regroup(propagate_and_factor(self.structure.program, trace.trained, with_ties(trace, ties)))

    def _regroup(self, trace: Trace) -> None:
        known = self.structure
        self.structure = structure_from(trace, known.fingerprint, known.example, self._never)


def _suspects(structure: Structure) -> list[str]:
    """Groups with channels on an axis that is cut, padded or taken apart."""
    names = list(structure.groups)
    found: set[int] = set()
    for delicate in structure.families.trace.suspect_axes:
        found |= _families_of(structure, delicate.labels)
    return [names[family] for family in sorted(found)]


def _families_of(structure: Structure, labels: np.ndarray) -> set[int]:
    families = structure.families
    members, _ = families.locate(families.trace.labels.find(labels))
    return set(distinct(members[members >= 0]).tolist())


def _ties(structure: Structure, families: set[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What would have to fall together, and does not yet, for axes with channels of these to be cut evenly."""
    trace = structure.families.trace
    return [
        delicate.ties
        for delicate in trace.suspect_axes
        if delicate.ties is not None
        and _families_of(structure, delicate.labels) & families
        and not np.array_equal(trace.labels.find(delicate.ties[0]), trace.labels.find(delicate.ties[1]))
    ]


def _ties_of_modules(structure: Structure, names: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Equally wide groups of one module channel by channel: one remembered size may stand for all of them."""
    order = list(structure.groups)
    alike: dict[tuple[Path, int], list[int]] = {}
    for name in names:
        kernel = structure.sites[structure.groups[name].producers[0]].kernel
        alike.setdefault((kernel[:-2], structure.widths[name]), []).append(order.index(name))
    members = structure.families.channel_roots
    return [(members[own[0]], members[other]) for own in alike.values() for other in own[1:]]


def _nearest(attributes: Sequence[str], name: str) -> tuple[str, ...]:
    """The attributes of the modules nearest to a group, by the length of the path they share."""
    parts = name.split(".")
    pairs = [zip(path.split("."), parts, strict=False) for path in attributes]
    shared = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], own)) for own in pairs]
    return tuple(path for path, own in zip(attributes, shared, strict=True) if own == max(shared))


def _kinds(structure: Structure, names: Sequence[str]) -> list[list[str]]:
    """Groups on the same axes of the same arrays, but for the numbers of their blocks."""
    kinds: dict[object, list[str]] = {}
    for name in names:
        axes = frozenset(
            (re.sub(r"\d+", "*", dotted(own.path)), own.axis) for own in structure.groups[name].members
        )
        of_blocks = structure.groups[name].is_of_blocks
        kinds.setdefault((re.sub(r"\d+", "*", _unmarked(name)), of_blocks, axes), []).append(name)
    return list(kinds.values())


def _unmarked(name: str) -> str:
    """A group's name without what only the first of alike blocks may need."""
    return name.removesuffix(":outer").removesuffix(":inner")


def _uneven_half(structure: Structure, name: str) -> np.ndarray:
    """About half of the channels, here and there, most of them in front: whatever is split in equal parts is uneven.

    An even number where that is possible: with the single channel of the other choice, odd and even numbers are gone.
    """
    width, seed = structure.widths[name], zlib.crc32(name.encode())
    count = width // 2 + (1 if seed % 2 or width < 4 else -1) * (width // 2 % 2)
    rng, count = np.random.default_rng(seed), min(max(1, count), max(1, width - 1))
    middle = (width + 1) // 2
    in_front = min(middle, -(-7 * count // 10))
    front, back = rng.permutation(middle), middle + rng.permutation(width - middle)
    return np.sort(np.concatenate([front[:in_front], back[: count - in_front]]))


def _first_one(structure: Structure, name: str) -> np.ndarray:
    """A single channel: it divides into no parts."""
    return np.zeros(1, np.int64)


_CHOICES: tuple[Callable[[Structure, str], np.ndarray], ...] = (_uneven_half, _first_one)


def _refusals(structure: Structure, failing: Mapping[str, Misfit]) -> dict[int, str]:
    order = list(structure.groups)
    return {
        int(root): f"the network's code counts on their number: when some are gone, {misfit.reason}"
        for name, misfit in failing.items()
        for root in structure.families.channel_roots[order.index(name)]
    }


def _attributes_that_help(parts: Parts, structure: Structure, names: Sequence[str]) -> tuple[str, ...]:
    """Attributes of the user's classes that hold an old size and, when set to the new one, make the network fit."""
    kept = {name: np.arange(max(1, structure.widths[name] // 2)) for name in names}
    sizes = {structure.widths[name]: len(own) for name, own in kept.items()}
    found = stored_sizes(parts.model, sizes)
    by_name: dict[str, list[str]] = {}
    for path in found:
        by_name.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    sets = (
        chosen for number in range(1, len(by_name) + 1) for chosen in combinations(by_name.values(), number)
    )
    for chosen in islice(sets, _MOST_SETS_OF_ATTRIBUTES):
        paths = [path for own in chosen for path in own]
        if find_misfit(parts, structure, kept, {path: found[path] for path in paths}) is None:
            return tuple(paths)
    return ()
