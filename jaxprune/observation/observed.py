"""What was observed on a network: the operands of its producers and the groups that their channels form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Generic, TypeVar, cast

import jax
import jax.numpy as jnp

from jaxprune.observation.covariances import Covariance
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.operands import Operands
from jaxprune.types import stack_pytrees

_Value = TypeVar("_Value")
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
    gradient_source: LazyValues[Gradients] | None = None
    """Computes `GW` and `GX` when a function reads them; not part of the pytree, so mapping over it drops it."""
    squared_gradient_source: LazyValues[jax.Array] | None = None
    """Computes `GW2` likewise, [C, F] for each producer."""
    covariance_source: LazyValues[Covariance] | None = None
    """Computes the covariances of what enters each consumer, when they are asked for."""
    _cache: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)
    """What `cached` made; neither part of the pytree nor of copies."""

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
    def has_classes(self) -> bool:
        """Whether the examples have labels, so that functions may read class operands."""
        return any(operands.has_classes for operands in self.operands.values())

    @property
    def has_gradients(self) -> bool:
        """Whether every producer has its gradients."""
        return all(operands.gradients is not None for operands in self.operands.values())

    @property
    def has_squared_gradients(self) -> bool:
        """Whether every producer has its `GW2`."""
        return all("GW2" in operands.extras for operands in self.operands.values())

    def cached(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Returns what `make` returned at the first call with this key; it lives as long as these operands do.

        Args:
          key: what the value is cached under.
          make: makes the value.
        """
        if key not in self._cache:
            self._cache.setdefault(key, make())  # if two threads make one, both return the first to be stored
        return cast(_Value, self._cache[key])

    def __reduce__(self) -> tuple[type[Observed], tuple[object, ...]]:
        """Leaves the cache out of copies and pickles."""
        sources = (self.gradient_source, self.squared_gradient_source, self.covariance_source)
        return Observed, (self.operands, self.groups, *sources)

    def group(self, name: str) -> Observed:
        """Returns what was observed at the producers of one group."""
        producers = self.groups[name]
        operands = {path: self.operands[path] for path in producers}
        return dataclasses.replace(self, operands=operands, groups={name: producers})

    def member(self, index: int) -> Observed:
        """Returns one stacked member."""
        gradients, squares = self.gradient_source, self.squared_gradient_source
        covariances = self.covariance_source
        return Observed(
            {path: operands.member(index) for path, operands in self.operands.items()},
            self.groups,
            None if gradients is None else gradients.member(index),
            None if squares is None else squares.member(index),
            None if covariances is None else covariances.member(index),
        )

    def with_gradients(self) -> Observed:
        """Returns the same with the gradients of the loss at every producer, `GW` and `GX`.

        They are computed at the first call. `score` and `rank_population` call this when a function reads one of them.

        Raises:
          ValueError: if they cannot be computed, because the operands do not come straight from `observe`.
        """
        if self.has_gradients:
            return self

        return self._filled(
            "with_gradients",
            self.gradient_source,
            lambda layer, gradients: dataclasses.replace(layer, gradients=gradients),
            "weight_gradient= and feature_gradient=",
        )

    def with_squared_gradients(self) -> Observed:
        """Returns the same with `GW2` at every producer.

        The first call computes it, with a backward pass for each image. `score` and `rank_population` call this when a
        function reads it, as the metric `obd` does.

        Raises:
          ValueError: as `with_gradients`.
        """
        if self.has_squared_gradients:
            return self

        return self._filled(
            "with_squared_gradients",
            self.squared_gradient_source,
            lambda layer, squares: dataclasses.replace(layer, extras=layer.extras | {"GW2": squares}),
            "squared_weight_gradient=",
        )

    def covariances(self) -> Mapping[str, Covariance]:
        """Returns mean and covariance of the activations that enter each consumer, over all images and positions.

        The first call computes them, with a pass over all images. `slim(..., compensate=observed)` calls this.

        Returns:
          "group -> kernel" -> covariance, for every layer that reads channels of a group with a kernel of its own.

        Raises:
          ValueError: for stacked members, or if these operands do not come straight from `observe`.
        """
        if self.is_stacked or self.covariance_source is None:
            got = "stacked members" if self.is_stacked else "operands that do not know their network"
            raise ValueError(
                f"covariances needs what observe returned for one network, got {got}. "
                "Take one with .member(i), or call observe again."
            )
        return self.covariance_source()

    def _filled(
        self,
        method: str,
        source: LazyValues[_Value] | None,
        fill: Callable[[Operands, _Value], Operands],
        arguments: str,
    ) -> Observed:
        """Fills every producer's operands with what a source computes; `arguments` are another way to give it."""

        def make() -> Observed:
            if source is None:
                raise ValueError(
                    f"{method} needs what observe returned, got operands that do not know their network. "
                    f"Call observe again, or give {arguments} to Operands.from_arrays."
                )
            values = source()
            operands = {path: fill(layer, values[path]) for path, layer in self.operands.items()}
            return dataclasses.replace(self, operands=operands)

        return self.cached(method, make)

    @staticmethod
    def stack(members: Sequence[Observed]) -> Observed:
        """Joins observations of networks of one shape along a new leading member axis.

        If some members have already computed their gradients, the others compute theirs now.

        Args:
          members: at least one observation, none of them stacked.

        Raises:
          ValueError: if there are none, or if two differ in producers, groups, shapes or class counts.
        """
        gradients = _all_or_none([member.gradient_source for member in members])
        squares = _all_or_none([member.squared_gradient_source for member in members])
        covariances = _all_or_none([member.covariance_source for member in members])
        if gradients and any(member.has_gradients for member in members):
            members = [member.with_gradients() for member in members]
        if squares and any(member.has_squared_gradients for member in members):
            members = [member.with_squared_gradients() for member in members]
        return dataclasses.replace(
            stack_pytrees(members, "Observed.stack"),
            gradient_source=LazyValues.stack(gradients) if gradients else None,
            squared_gradient_source=LazyValues.stack(squares) if squares else None,
            covariance_source=LazyValues.stack(covariances) if covariances else None,
        )

    def tree_flatten(self) -> tuple[tuple[Operands, ...], _ObservedStatic]:
        """Returns the arrays, and what is static: paths and groups."""
        return tuple(self.operands.values()), (tuple(self.operands), tuple(self.groups.items()))

    @classmethod
    def tree_unflatten(cls, static: _ObservedStatic, children: Sequence[Operands]) -> Observed:
        """Inverts `tree_flatten`."""
        paths, groups = static
        return cls(dict(zip(paths, children, strict=True)), dict(groups))


class LazyValues(Generic[_Value]):
    """Values of a network by name, such as the gradients at all producers, computed at the first call and cached.

    Several threads may call it; it is computed once.

    Args:
      compute: returns a record or array for each name; it is dropped after the first call, with what it holds.
      members: the sources of the stacked members, if `compute` stacks what these give.

    Example:
      >>> source = LazyValues(lambda: {"conv.kernel": Gradients(weights=jnp.ones((2, 3)))})
      >>> LazyValues.stack([source, source])()["conv.kernel"].weights.shape
      (2, 2, 3)
    """

    def __init__(
        self,
        compute: Callable[[], Mapping[str, _Value]],
        members: Sequence[LazyValues[_Value]] | None = None,
    ) -> None:
        self._compute: Callable[[], Mapping[str, _Value]] | None = compute
        self._members = members
        self._values: Mapping[str, _Value] | None = None
        self._lock = RLock()

    def __call__(self) -> Mapping[str, _Value]:
        """Returns name -> value."""
        with self._lock:
            if self._values is None:
                assert self._compute is not None  # it is dropped only once the values are there
                self._values, self._compute, self._members = self._compute(), None, None
            return self._values

    def member(self, index: int) -> LazyValues[_Value]:
        """Returns the source of one stacked member, which does not compute the values of the others."""

        def compute() -> Mapping[str, _Value]:
            with self._lock:
                if self._members is not None:
                    return self._members[index]()
                return {
                    path: jax.tree.map(lambda leaf: leaf[index], stacked) for path, stacked in self().items()
                }

        return LazyValues(compute)

    @staticmethod
    def stack(members: Sequence[LazyValues[_Value]]) -> LazyValues[_Value]:
        """Returns the source of stacked members, which are computed one after another."""

        def compute() -> Mapping[str, _Value]:
            by_member = [member() for member in members]
            return {
                path: jax.tree.map(lambda *leaves: jnp.stack(leaves), *[own[path] for own in by_member])
                for path in by_member[0]
            }

        return LazyValues(compute, members)


def _all_or_none(sources: Sequence[LazyValues[_Value] | None]) -> list[LazyValues[_Value]]:
    """Returns the sources, or an empty list if one is missing."""
    present = [source for source in sources if source is not None]
    return present if len(present) == len(sources) else []
