"""Finds the arrays of a network in trees that hold something for each of them: gradients, masks, moments, averages.

A path in such a tree may have keys before a parameter's path (the fields of an optimizer's state) and after it (the
`value` of an NNX variable), and may name positions in a list as a number or as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxprune.structure.model_state import Path

Names: TypeAlias = tuple[str, ...]
"""A path as text."""


class Place(NamedTuple):
    """Where a leaf of a tree belongs.

    Attributes:
      parameter: path of the network's array.
      before: the keys above that path.
      after: the keys below it, without the `value` of a variable.
    """

    parameter: Path
    before: Names
    after: Names


def names_of(keys: Iterable[Any]) -> Names:
    """Returns the keys of a leaf as text, those of a flat dictionary (path -> array) one by one.

    Args:
      keys: from `jax.tree_util.tree_flatten_with_path`.

    Example:
      >>> import jax
      >>> tree = {("conv", "kernel"): 1, "list": [2]}
      >>> sorted(names_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path({"a": [7]})[0])
      [('a', '0')]
    """
    names: list[str] = []
    for key in keys:
        name = getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))
        names += [str(part) for part in name] if isinstance(name, tuple) else [str(name)]
    return tuple(names)


def find_places(leaves: Sequence[Names], parameters: Iterable[Path]) -> list[Place | None]:
    """Finds which array of a network each leaf of a tree belongs to.

    Where several paths fit, it is the one below which most other leaves fit too, and of these the longest.

    Args:
      leaves: paths in the tree, from `names_of`.
      parameters: paths of the network.

    Returns:
      A place for each leaf; None where no path of the network occurs.

    Example:
      >>> moments = [("0", "mu", "conv", "kernel"), ("0", "mu", "kernel"), ("0", "count")]
      >>> [place and place.parameter for place in find_places(moments, [("conv", "kernel"), ("kernel",)])]
      [('conv', 'kernel'), ('kernel',), None]
    """
    known = {tuple(str(part) for part in path): path for path in parameters}
    for names, path in list(known.items()):
        if names[0] == "params":  # of Linen's variables, an optimizer sees the parameters alone
            known.setdefault(names[1:], path)
    longest = max(map(len, known), default=0)
    candidates = [_candidates(names, known, longest) for names in leaves]
    counts = Counter(place.before for places in candidates for place in places)
    return [
        max(places, key=lambda place: (counts[place.before], len(place.parameter))) if places else None
        for places in candidates
    ]


def _candidates(names: Names, known: dict[Names, Path], longest: int) -> list[Place]:
    """All places whose paths end nearest to the end of a leaf's path."""
    for end in range(len(names), 0, -1):
        found = [
            Place(known[names[start:end]], names[:start], _without_value(names[end:]))
            for start in range(max(0, end - longest), end)
            if names[start:end] in known
        ]
        if found:
            return found
    return []


def _without_value(names: Names) -> Names:
    """Leaves out the key that NNX variables add."""
    return names[:-1] if names[-1:] == ("value",) else names
