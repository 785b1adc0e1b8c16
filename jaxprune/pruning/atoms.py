"""Axes as products of atoms, with a union-find that says which atoms are one and the same.

An axis is a tuple of atoms, slowest first, whose sizes multiply to its length; an axis of length one is the empty
tuple. Flattening [h, w, c] gives the axis (h, w, c), and a dense kernel that meets it has its input axis *expanded*
to that product. Atoms that an operation ties together are united; atoms that may not be cut carry a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TypeAlias

Dim: TypeAlias = tuple[int, ...]
"""One axis: atom numbers, slowest first; `()` for length one."""


class Atoms:
    """All atoms of one trace: sizes, unions, expansions and the reasons why some are frozen.

    Example:
      >>> atoms = Atoms()
      >>> flat, image = atoms.new(12), (atoms.new(3), atoms.new(4))
      >>> atoms.unite((flat,), image, "dot")
      >>> atoms.leaves((flat,)) == atoms.leaves(image)
      True
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._expansion: dict[int, Dim] = {}
        self._reason: dict[int, str] = {}

    def new(self, size: int, reason: str | None = None) -> int:
        """A fresh atom of `size`, frozen from the start when a reason is given."""
        atom = len(self._parent)
        self._parent.append(atom)
        self._size.append(size)
        if reason is not None:
            self._reason[atom] = reason
        return atom

    def dim(self, size: int, reason: str | None = None) -> Dim:
        """A fresh axis of `size`."""
        return () if size == 1 else (self.new(size, reason),)

    def root(self, atom: int) -> int:
        """The representative of the atoms united with this one."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def leaves(self, dim: Iterable[int]) -> Dim:
        """The representatives that an axis consists of now, slowest first, expansions opened."""
        result: list[int] = []
        for atom in dim:
            root = self.root(atom)
            if root in self._expansion:
                result.extend(self.leaves(self._expansion[root]))
            else:
                result.append(root)
        return tuple(result)

    def size(self, atom: int) -> int:
        """How many indices the atom has."""
        return self._size[self.root(atom)]

    def reason(self, atom: int) -> str | None:
        """Why the atom may not be cut, or None."""
        return self._reason.get(self.root(atom))

    def freeze(self, dim: Iterable[int], reason: str) -> None:
        """Forbids cutting any atom of `dim`; the first reason given is kept."""
        for leaf in self.leaves(dim):
            self._reason.setdefault(leaf, reason)

    def unite(self, left: Dim, right: Dim, operation: str) -> None:
        """Says that index i of one axis is index i of the other, opening products where only one side has them.

        Where the two products do not line up (3 x 4 against 4 x 3) everything left is frozen.
        """
        while True:
            left, right = self.leaves(left), self.leaves(right)
            while left and right and left[-1] == right[-1]:
                left, right = left[:-1], right[:-1]
            if not left or not right:
                break
            x, y = left[-1], right[-1]
            size_x, size_y = self._size[x], self._size[y]
            if size_x == size_y:
                self._link(x, y)
            elif size_x % size_y == 0:
                self._split(x, size_y)
            elif size_y % size_x == 0:
                self._split(y, size_x)
            else:
                self.freeze(left + right, f"{operation}: axes regrouped in a way that does not line up")
                break

    def regroup(self, dims: Sequence[Dim], shape: Sequence[int], operation: str) -> list[Dim]:
        """The axes of a value of axes `dims` after a row-major reshape to `shape`."""
        pending = list(self.leaves(atom for dim in dims for atom in dim))
        result: list[Dim] = []
        for size in reversed(shape):
            taken: list[int] = []
            missing = size
            while missing > 1:
                atom = pending.pop()
                atom_size = self._size[atom]
                if missing % atom_size == 0:
                    taken.append(atom)
                    missing //= atom_size
                elif atom_size % missing == 0:
                    pending.extend(self._split(atom, missing))
                else:
                    reason = f"{operation}: channels are regrouped in a way that does not line up"
                    self.freeze([atom for dim in dims for atom in dim], reason)
                    return [self.dim(length, reason) for length in shape]
                # splitting may open other pending atoms that are united with this one
                pending = list(self.leaves(pending))
            result.append(tuple(reversed(taken)))
        return list(reversed(result))

    def total(self, dim: Iterable[int]) -> int:
        """The length of an axis."""
        return prod(self._size[leaf] for leaf in self.leaves(dim))

    def _split(self, atom: int, minor_size: int) -> Dim:
        reason = self._reason.get(atom)
        major = self.new(self._size[atom] // minor_size, reason)
        self._expansion[atom] = (major, self.new(minor_size, reason))
        return self._expansion[atom]

    def _link(self, x: int, y: int) -> None:
        keep, drop = min(x, y), max(x, y)
        self._parent[drop] = keep
        reasons = [reason for atom in (keep, drop) if (reason := self._reason.get(atom)) is not None]
        if reasons:
            self._reason[keep] = reasons[0]
