"""How much memory an observation takes, counted from shapes before anything runs, and what fits a budget.

Counted are the operands of all producers, a batch with its activations, and what adding the batch to the moments of
the largest producer takes. The images, the network itself, gradients and covariances are not.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import prod

import jax

from jaxprune.observation.activations import activation_sites, producer_activations
from jaxprune.observation.sample import pooled_space
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState
from jaxprune.structure.program import Program

_COPIES = 6
"""Arrays of the size of a producer's means of classes that adding a batch takes at once."""
_SIDES = range(16, 0, -1)
"""A budget pools maps to at most the square of one of these numbers of positions, the first that fits."""


@dataclass(frozen=True)
class Pass:
    """One run over all images: the producers that are observed in it, and what that takes."""

    producers: tuple[str, ...]
    working_bytes: int
    """Memory besides the operands of all producers."""


@dataclass(frozen=True)
class MemoryPlan:
    """How an observation fits its budget."""

    positions: int | None
    """Most positions of the moments' maps; None for all of them."""
    sample_positions: int
    """Most positions of the sample's maps."""
    passes: tuple[Pass, ...]
    batch_size: int
    """Images of a batch."""
    operand_bytes: int
    """Memory of the operands of all producers, which the caller keeps."""

    @property
    def peak_bytes(self) -> int:
        """The most memory that is needed at once."""
        return self.operand_bytes + max(each.working_bytes for each in self.passes)


@dataclass(frozen=True, eq=False)
class Sizes:
    """What the memory of an observation follows from.

    Args:
      structure: of the network, traced with a batch of images or with one.
      batch: images of a batch.
      spaces: producer -> spatial shape of its activations.
      channels: producer -> C.
      num_classes: K.
      num_samples: examples of the sample that are asked for; every class has at least one.
      max_positions: most positions of the sample's maps.
      itemsize: bytes of an activation.
    """

    structure: Structure
    batch: int
    spaces: Mapping[str, tuple[int, ...]]
    channels: Mapping[str, int]
    num_classes: int
    num_samples: int
    max_positions: int
    itemsize: int = 4
    _live: dict[tuple[str, ...], int] = field(default_factory=dict, init=False, repr=False)

    def operand_bytes(self, positions: int | None, num_classes: int | None = None) -> int:
        """Counts the memory of the operands of all producers.

        Args:
          positions: most positions of the moments' maps; None for all of them.
          num_classes: K, if not that of the record.
        """
        classes, shapes, entries = num_classes or self.num_classes, self.structure.shapes, 0
        rows = max(1, self.num_samples // classes) * classes
        for name, site in self.structure.sites.items():
            if name in self.spaces:
                full, sampled = self._entries(name, positions), self._sampled_entries(name, positions)
                entries += (2 * classes + 1) * (full + sampled) + rows * sampled
                # active shares, normalisation, counts
                entries += 2 * (classes + 1) * (self.channels[name] + 1)
            entries += prod(shapes[site.kernel])
            entries += 0 if site.consumer is None else prod(shapes[site.consumer])
        return entries * self.itemsize

    def working_bytes(
        self, producers: Sequence[str], positions: int | None, num_classes: int | None = None
    ) -> int:
        """Counts the memory that one pass takes besides the operands.

        Args:
          producers: that are observed in the pass.
          positions, num_classes: as for `operand_bytes`.
        """
        producers = [name for name in producers if name in self.spaces]
        full = [self._entries(name, positions) for name in producers]
        maps = self.batch * sum(full) + self.batch * sum(
            self._sampled_entries(n, positions) for n in producers
        )
        largest = max(full, default=0)
        adding = _COPIES * (num_classes or self.num_classes) * largest + 2 * self.batch * largest
        images = sum(prod(array.shape) for array in self.structure.example.with_batch_size(self.batch).arrays)
        return (maps + adding + images + self._live_entries(tuple(producers))) * self.itemsize

    def _entries(self, name: str, positions: int | None) -> int:
        """Entries of one example's map, D times C."""
        space = self.spaces[name]
        return prod(space if positions is None else pooled_space(space, positions)) * self.channels[name]

    def _sampled_entries(self, name: str, positions: int | None) -> int:
        """The same in the sample."""
        return self._entries(name, self.sample_positions(positions))

    def sample_positions(self, positions: int | None) -> int:
        """Most positions of the sample's maps, if those of the moments are bounded too."""
        return self.max_positions if positions is None else min(positions, self.max_positions)

    def _live_entries(self, producers: tuple[str, ...]) -> int:
        """Entries of the activations that a forward pass holds at once."""
        if producers not in self._live:
            program, sites = self.structure.program, activation_sites(self.structure, producers)
            values = {name: site.value for name, site in sites.items()}
            inside = sum(
                self.batch * prod(self.spaces[name]) * self.channels[name]
                for name, value in values.items()
                if value not in program.makers
            )
            num_runs = self.batch // program.example.batch_size
            self._live[producers] = inside + num_runs * live_entries(program, list(values.values()))
        return self._live[producers]


def measure(
    structure: Structure,
    arrays: FlatState,
    num_classes: int,
    num_samples: int,
    max_positions: int,
    batch_size: int | None = None,
) -> Sizes:
    """Finds what the memory of an observation follows from; nothing runs.

    Args:
      structure: of the network, traced with a batch of images or with one.
      arrays: of the network; only shapes and dtypes are read.
      num_classes, num_samples, max_positions: as for `Sizes`.
      batch_size: images of a batch; by default as many as the structure was traced with.
    """
    example = structure.example if batch_size is None else structure.example.with_batch_size(batch_size)
    maps = jax.eval_shape(partial(producer_activations, structure), arrays, example.arrays)
    spaces = {name: each.shape[1:-1] for name, each in maps.items()}
    channels = {name: each.shape[-1] for name, each in maps.items()}
    itemsize = max((each.dtype.itemsize for each in maps.values()), default=4)
    return Sizes(
        structure, example.batch_size, spaces, channels, num_classes, num_samples, max_positions, itemsize
    )


def live_entries(program: Program, wanted: Sequence[int]) -> int:
    """Counts the most entries of values that are alive at once until chosen values have been computed and read.

    Args:
      program: of the network; its parameters and constants are not counted.
      wanted: numbers of the values.
    """
    needed, chosen = set(wanted), []
    for operation in reversed(program.operations):
        inside = chain.from_iterable(body.value_numbers for body in operation.bodies)
        if needed.intersection(operation.outputs) or needed.intersection(inside):
            chosen.append(operation)
            needed.update(number for number in operation.inputs if isinstance(number, int))
    chosen.reverse()
    last = {n: i for i, each in enumerate(chosen) for n in each.inputs if isinstance(n, int)}
    alive, peak = 0, 0
    for index, operation in enumerate(chosen):
        alive += sum(prod(program.shapes[number]) for number in operation.outputs)
        peak = max(peak, alive)
        read = {number for number in operation.inputs if isinstance(number, int)}
        for number in read.union(operation.outputs) & program.makers.keys():
            if last.get(number, index) == index:
                alive -= prod(program.shapes[number])
    return peak


def fit(sizes: Sizes, positions: int | None, max_bytes: int | None) -> MemoryPlan:
    """Chooses the most positions and the fewest passes that fit a budget.

    Args:
      sizes: what the memory follows from.
      positions: most positions of the moments' maps; None for all of them, or as many as fit the budget.
      max_bytes: the budget; None for no limit.

    Raises:
      ValueError: if nothing fits, with what would.
    """
    candidates = [positions] if positions is not None else [None, *(side**2 for side in _SIDES)]
    for candidate in candidates:
        operand_bytes = sizes.operand_bytes(candidate)
        if passes := _passes(sizes, candidate, None if max_bytes is None else max_bytes - operand_bytes):
            return MemoryPlan(
                candidate, sizes.sample_positions(candidate), tuple(passes), sizes.batch, operand_bytes
            )
    assert max_bytes is not None
    raise ValueError(_explain(sizes, candidates[-1], max_bytes))


def _passes(sizes: Sizes, positions: int | None, working_bytes: int | None) -> list[Pass]:
    """Splits the producers, group by group, into the fewest passes that fit; empty if a group alone does not."""
    everything = tuple(sizes.structure.sites)
    if working_bytes is None:
        return [Pass(everything, sizes.working_bytes(everything, positions))]
    passes: list[Pass] = []
    for group in _groups(sizes.structure):
        joined = (*passes[-1].producers, *group) if passes else group
        size = sizes.working_bytes(joined, positions)
        if passes and size <= working_bytes:
            passes[-1] = Pass(joined, size)
            continue
        passes.append(Pass(group, sizes.working_bytes(group, positions)))
        if passes[-1].working_bytes > working_bytes:
            return []
    return passes


def _groups(structure: Structure) -> list[tuple[str, ...]]:
    """The producers of each group, in the order of their first ones; each producer once."""
    by_group: dict[str, list[str]] = {}
    for name, site in structure.sites.items():
        by_group.setdefault(site.group, []).append(name)
    return [tuple(names) for names in by_group.values()]


def _explain(sizes: Sizes, positions: int | None, max_bytes: int) -> str:
    """Says what the smallest observation takes, and what would fit."""

    def least(num_classes: int | None = None) -> int:
        largest = max(sizes.working_bytes(each, positions, num_classes) for each in _groups(sizes.structure))
        return sizes.operand_bytes(positions, num_classes) + largest

    fitting = 1 + bisect.bisect_right(range(2, sizes.num_classes), max_bytes, key=least)
    while fitting > 1 and least(fitting) > max_bytes:  # the sample's share of a class is rounded
        fitting -= 1
    if fitting > 1:
        remedy = f"At most {fitting} coarse classes fit: classes={fitting}."
    else:
        remedy = (
            f"Use smaller batches than batch_size={sizes.batch}, a smaller sample, or fewer coarse classes."
        )
    return (
        f"needs max_bytes of at least {least()} to observe {len(sizes.channels)} producers with {sizes.num_classes} "
        f"classes at {positions} position(s), one group at a time, got {max_bytes}. {remedy}"
    )
