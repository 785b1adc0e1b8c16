"""What was observed on a network: the operands of its producers and the groups that their channels form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import jax

from jaxprune.observation.gradients import Gradients, GradientSource
from jaxprune.observation.operands import Operands
from jaxprune.types import stack_pytrees

_Record = TypeVar("_Record")
_ObservedStatic = tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Observed(Mapping[str, Operands]):
    """The operands of every producer of a network, and the groups its channels form.

    A mapping from producer path to `Operands`; `groups` says which producers carry a group's channels.
    """

    operands: dict[str, Operands]
    """Producer path -> operands, in program order."""
    groups: dict[str, tuple[str, ...]]
    """Group name -> paths of its producers."""
    gradient_source: GradientSource[Gradients] | None = None
    """Where gradients come from when a function asks for them; no part of the pytree, so mapping over it drops it."""
    squared_gradient_source: GradientSource[jax.Array] | None = None
    """Where `GW2` comes from, [C, F] by producer; likewise."""
    _remembered: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)
    """What `remembered` made: no part of the pytree, nor of copies."""

    def __getitem__(self, producer: str) -> Operands:
        return self.operands[producer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.operands)

    def __len__(self) -> int:
        return len(self.operands)

    @property
    def is_stacked(self) -> bool:
        """Whether the arrays have a leading member axis."""
        return any(operands.is_stacked for operands in self.operands.values())

    @property
    def num_members(self) -> int:
        """Number of stacked members, 1 when not stacked."""
        return next((operands.num_members for operands in self.operands.values()), 1)

    @property
    def has_gradients(self) -> bool:
        """Whether the gradients of every producer are there."""
        return all(operands.gradients is not None for operands in self.operands.values())

    @property
    def has_squared_gradients(self) -> bool:
        """Whether `GW2` of every producer is there."""
        return all("GW2" in operands.extras for operands in self.operands.values())

    def remembered(self, key: Hashable, make: Callable[[], _Record]) -> _Record:
        """What `make` returned at the first call; it lives as long as these operands do."""
        if key not in self._remembered:
            self._remembered.setdefault(key, make())  # of two threads, the first to be done counts
        return cast(_Record, self._remembered[key])

    def __reduce__(self) -> tuple[type[Observed], tuple[object, ...]]:
        """Copies and pickles hold what was observed alone."""
        given = (self.operands, self.groups, self.gradient_source, self.squared_gradient_source)
        return Observed, given

    def member(self, index: int) -> Observed:
        """One stacked member."""
        members = {path: operands.member(index) for path, operands in self.operands.items()}
        gradients, squares = self.gradient_source, self.squared_gradient_source
        return Observed(
            members,
            self.groups,
            None if gradients is None else gradients.member(index),
            None if squares is None else squares.member(index),
        )

    def with_gradients(self) -> Observed:
        """The same with the gradients of the loss at every producer, `GW` and `GX`, computed at the first call.

        `score` and `rank_population` ask by themselves when a function reads one of them.

        Raises:
          ValueError: if there is no way to compute them, because the operands do not come straight from `observe`.
        """
        if self.has_gradients:
            return self
        return self.remembered("with_gradients", self._fill_gradients)

    def _fill_gradients(self) -> Observed:
        if self.gradient_source is None:
            raise ValueError(_no_source("with_gradients", "weight_gradient= and feature_gradient="))
        found = self.gradient_source()
        filled = {
            path: dataclasses.replace(one, gradients=found[path]) for path, one in self.operands.items()
        }
        return dataclasses.replace(self, operands=filled)

    def with_squared_gradients(self) -> Observed:
        """The same with `GW2` at every producer, computed at the first call: a backward pass for each image.

        `score` and `rank_population` ask by themselves when a function reads it, as the metric `obd` does.

        Raises:
          ValueError: as `with_gradients`.
        """
        if self.has_squared_gradients:
            return self
        return self.remembered("with_squared_gradients", self._fill_squared_gradients)

    def _fill_squared_gradients(self) -> Observed:
        if self.squared_gradient_source is None:
            raise ValueError(_no_source("with_squared_gradients", "squared_weight_gradient="))
        found = self.squared_gradient_source()
        filled = {
            path: dataclasses.replace(one, extras=one.extras | {"GW2": found[path]})
            for path, one in self.operands.items()
        }
        return dataclasses.replace(self, operands=filled)

    @staticmethod
    def stack(members: Sequence[Observed]) -> Observed:
        """Joins observations of networks of one shape along a new leading member axis.

        What only some members have computed yet, the others compute now.

        Raises:
          ValueError: if there are none, or if two differ in producers, groups, shapes or class counts.
        """
        gradients = _all_of([member.gradient_source for member in members])
        squares = _all_of([member.squared_gradient_source for member in members])
        if gradients and any(member.has_gradients for member in members):
            members = [member.with_gradients() for member in members]
        if squares and any(member.has_squared_gradients for member in members):
            members = [member.with_squared_gradients() for member in members]
        return dataclasses.replace(
            stack_pytrees(members, "Observed.stack"),
            gradient_source=GradientSource.stack(gradients) if gradients else None,
            squared_gradient_source=GradientSource.stack(squares) if squares else None,
        )

    def tree_flatten(self) -> tuple[tuple[Operands, ...], _ObservedStatic]:
        """The arrays, and what is static: paths and groups."""
        return tuple(self.operands.values()), (tuple(self.operands), tuple(self.groups.items()))

    @classmethod
    def tree_unflatten(cls, static: _ObservedStatic, children: Sequence[Operands]) -> Observed:
        """The inverse of `tree_flatten`."""
        paths, groups = static
        return cls(dict(zip(paths, children, strict=True)), dict(groups))


def _all_of(sources: Sequence[GradientSource[_Record] | None]) -> list[GradientSource[_Record]]:
    """The sources, none if one is missing."""
    given = [source for source in sources if source is not None]
    return given if len(given) == len(sources) else []


def _no_source(method: str, arguments: str) -> str:
    return (
        f"{method} needs what observe returned, got operands that do not know their network. "
        f"Call observe again, or give {arguments} to Operands.from_arrays."
    )
