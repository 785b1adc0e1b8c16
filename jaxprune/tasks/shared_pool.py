"""Base networks that all processes of a job train together, and prune and fine-tune together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.hosts.encoding import pack_state, unpack_state
from jaxprune.hosts.sharing import Hosts
from jaxprune.language.expression import Expression
from jaxprune.language.parsing import parse
from jaxprune.scoring.lookup import FUNCTIONS, known_name
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.structure.model_state import FlatState
from jaxprune.tasks.base_networks import Base, BasePool, Entry
from jaxprune.training.trainer import Trained, default_workers


class SharedPool(BasePool):
    """A `BasePool` on several processes: the same on all of them, with equal results.

    Process 0 reads and stores base networks. Those that are missing are trained by share. All processes get all of
    them before they fine-tune.

    Args:
      arguments: see `BasePool`; a folder only on process 0.
      hosts: the processes.
      keywords: see `BasePool`.
    """

    def __init__(self, *arguments: Any, hosts: Hosts, **keywords: Any) -> None:  # noqa: ANN401 - those of BasePool
        super().__init__(*arguments, **keywords)
        self._hosts = hosts
        self._given: dict[int, Base] = {}
        name = f"{self.pool} bases of {self.task.name}"
        self._training, self._finetuning = f"training {name}", f"fine-tuning {name}"
        hosts.offer(self._training, self._train_share, listen=self._receive)
        hosts.offer(self._finetuning, self._finetune_share)

    @cached_property
    def bases(self) -> tuple[Base, ...]:
        """The trained base networks; on process 0, the others get them too."""
        if not self._hosts.is_leader:
            return tuple(self._given[index] for index in range(self.num_bases))
        bases = super().bases
        for base in bases:
            self._hosts.tell(self._training, pack_state([base.index, base.accuracy], base.weights))
        return bases

    def finetune(
        self, entries: Sequence[Entry], *, evaluations: int = 1, with_weights: bool = False
    ) -> Iterator[Trained]:
        """Prunes and fine-tunes entries on all processes, see `BasePool`.

        Args:
          entries: the networks to prune and fine-tune.
          evaluations: number of evaluations in the last round.
          with_weights: whether the weights are needed here; else only accuracies travel.
        """
        if not self._hosts.is_leader or not entries:
            yield from super().finetune(entries, evaluations=evaluations)
            return
        self.bases  # noqa: B018 - everybody needs them before
        items = [[evaluations, with_weights, _entry_to_plain(entry)] for entry in entries]
        for result in self._hosts.map(self._finetuning, items, self._capacity):
            yield _trained(result)

    def _train_missing(self, missing: Sequence[int]) -> Iterator[Trained]:
        """Trains base networks on all processes."""
        return map(_trained, self._hosts.map(self._training, list(missing), self._capacity))

    @property
    def _capacity(self) -> int:
        """Number of networks that one process trains well together."""
        return self.programs.row_size if self.programs.is_vmapped else 2 * default_workers()

    def _receive(self, content: bytes) -> None:
        """Takes a base network from process 0."""
        (index, accuracy), weights = _unpacked(content)
        self._given[index] = Base(index, weights, accuracy)

    def _train_share(self, missing: list[Any]) -> Iterator[bytes]:
        """Trains base networks of this process's share."""
        for trained in super()._train_missing(missing):
            yield _packed_trained(trained, True)

    def _finetune_share(self, items: list[Any]) -> Iterator[bytes]:
        """Prunes and fine-tunes this process's share."""
        if items:
            evaluations, with_weights, _ = items[0]
            entries = [_entry_from_plain(plain) for _, _, plain in items]
            for trained in super().finetune(entries, evaluations=evaluations):
                yield _packed_trained(trained, with_weights)


def _unpacked(content: bytes) -> tuple[Any, FlatState]:
    """What `pack_state` packed, with the weights on the default device."""
    plain, arrays = unpack_state(content)
    return plain, {path: jnp.array(array) for path, array in arrays.items()}


def _packed_trained(trained: Trained, with_weights: bool) -> bytes:
    """The result of a training as bytes."""
    return pack_state([trained.accuracies.tolist(), trained.seconds], trained.weights if with_weights else {})


def _trained(content: bytes) -> Trained:
    """The result of a training from bytes."""
    (accuracies, seconds), weights = _unpacked(content)
    return Trained(weights, np.array(accuracies, np.float64), seconds)


def _entry_to_plain(entry: Entry) -> list[Any]:
    """An entry as plain data."""
    return [entry.base, entry.repeat, _function_to_plain(entry.function), entry.kept, entry.draw]


def _entry_from_plain(plain: list[Any]) -> Entry:
    """An entry from plain data."""
    base, repeat, function, kept, draw = plain
    if kept is not None:
        kept = tuple((name, tuple(channels)) for name, channels in kept)
    return Entry(base, repeat, _function_from_plain(function), kept, draw)


def _function_to_plain(function: PruningFunction | None) -> list[str] | None:
    """A function as what stands for it on all processes."""
    if function is None:
        return None
    if isinstance(function, Expression):
        return ["formula", str(function)]
    if not (name := known_name(function)):
        raise ValueError(
            "several processes need functions that have a name or are formulas, got "
            f"{name_of(function)}. Register it on all of them, or use one process (--no-distributed)."
        )
    return ["name", name]


def _function_from_plain(plain: list[str] | None) -> PruningFunction | None:
    """A function from what stands for it."""
    if plain is None:
        return None
    kind, text = plain
    return parse(text) if kind == "formula" else FUNCTIONS[text]
