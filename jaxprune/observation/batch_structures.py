"""The structures of a network that batches of examples are observed with.

Mostly, one axis of all activations counts the examples, and a network is run on a whole batch. Where an axis does not
count examples alone (windows or heads merged into the batch, a loop over examples, queries that all examples share),
it is run on each example by itself, side by side: then everything that it computes belongs to that example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property

from jaxprune.observation.activations import activation_sites
from jaxprune.structure.groups import Structure


class BatchStructures:
    """The structures of one network for batches of some sizes.

    Args:
      trace: (number of examples, a structure of the same network) -> its structure for so many, which is kept.
      known: its structure, traced with two.
      sizes: how many examples are observed at once, two or more.
    """

    def __init__(
        self, trace: Callable[[int, Structure], Structure], known: Structure, sizes: Iterable[int]
    ) -> None:
        self._trace, self._known, self._sizes = trace, known, frozenset(sizes)

    def of_batch(self, size: int) -> Structure:
        """Returns the structure of a network that runs on so many examples, at least two, at once."""
        return self._trace(size, self._known)

    def to_observe(self, size: int) -> Structure:
        """Returns the structure to observe so many examples with: of a batch of them, or of a single one.

        If the network does not run on a single example as it does on several, the activations that have no axis of
        examples are left out.

        Args:
          size: one of the sizes.
        """
        if self._have_batch_axes:
            return self.of_batch(size)
        if self._of_one is not None:
            return self._of_one
        return _without_other_activations(self.of_batch(size))

    @cached_property
    def _have_batch_axes(self) -> bool:
        """Whether one axis counts the examples in all activations; code may treat small batches in another way."""
        structures = (self._known, *map(self.of_batch, sorted(self._sizes)))
        sites = (site for structure in structures for site in activation_sites(structure).values())
        return all(site.batch_axis is not None for site in sites)

    @cached_property
    def _of_one(self) -> Structure | None:
        """The structure of a single example, if it has the same groups."""
        try:
            found = self._trace(1, self.of_batch(max(self._sizes)))
        except ValueError:  # the network does not run on one example
            return None
        is_alike = found.widths == self._known.widths and list(found.sites) == list(self._known.sites)
        return found if is_alike else None


def _without_other_activations(structure: Structure) -> Structure:
    """Returns a structure in which only activations with an axis of examples are observed."""
    sites = {
        name: dataclasses.replace(site, activations=None)
        if site.activations is not None and site.activations.batch_axis is None
        else site
        for name, site in structure.sites.items()
    }
    return dataclasses.replace(structure, sites=sites)
