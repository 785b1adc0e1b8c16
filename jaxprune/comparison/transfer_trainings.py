"""The trainings of a transfer, one after the other or dealt out to processes: a base network or a pruned one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxprune.comparison.network_trainings import NetworkTrainings
from jaxprune.comparison.transfer_folder import PlanRecord
from jaxprune.comparison.transfer_networks import TransferNetworks, weights_digest
from jaxprune.comparison.transfer_records import DENSE, Kind, TransferRow
from jaxprune.hosts.agreement import comes_into_sight
from jaxprune.hosts.encoding import pack_state, unpack_state
from jaxprune.hosts.sharing import Hosts
from jaxprune.keys import derive
from jaxprune.structure.model_state import FlatState, split_model

_KIND = "trainings of a transfer"

Item = tuple[int, str]
"""(number of a base network, name of a row)."""


class TrainedRow(NamedTuple):
    """The row of a network that was trained, and its weights."""

    row: TransferRow
    weights: FlatState


class TransferTrainings:
    """Trains the networks of a transfer; all processes make one.

    Each training runs on the devices of one process, from its own checkpoints on. Process 0 gets the row and the
    weights, and keeps them.

    Args:
      networks: makes the networks.
      on_message: is told how trainings of this process go.
      hosts: the processes that share the trainings, or None.

    Attributes:
      trainings: trains and evaluates on the devices of this process.
    """

    def __init__(
        self, networks: TransferNetworks, on_message: Callable[[str], None], hosts: Hosts | None
    ) -> None:
        self.networks, self._hosts = networks, hosts
        look = (lambda: None) if hosts is None else hosts.look
        self.trainings = NetworkTrainings(networks.setup.data, on_message, look=look)
        if hosts is not None:
            hosts.offer(_KIND, self._train_share, saves_itself=True)

    def train(self, items: Sequence[Item]) -> Iterator[TrainedRow]:
        """Trains networks on all processes; for process 0.

        Args:
          items: the networks.

        Yields:
          Each, in order, as soon as it is trained.

        Raises:
          ValueError: if a loss diverges.
          TrainingInterrupted: after Ctrl-C or SIGTERM; the training was saved.
          HostsError: if another process failed.
        """
        if self._hosts is None:
            yield from (self._train(base, name) for base, name in items)
            return
        orders = [[base, name, self._records_of(base, name)] for base, name in items]
        for content in self._hosts.map(_KIND, orders, capacity=1):
            row, weights = unpack_state(content)
            yield TrainedRow(TransferRow.from_json(row), weights)

    def _records_of(self, base: int, name: str) -> list[dict[str, Any]]:
        """What another process has to know of a network and its base."""
        return [
            record
            for record in self.networks.folder.records
            if record["record"] in ("row", "plan")
            and record["base"] == base
            and record["name"] in (DENSE, name)
        ]

    def _train_share(self, orders: list[Any]) -> Iterator[bytes]:
        """Trains the networks of this process's share."""
        for base, name, records in orders:
            if self._hosts is not None and not self._hosts.is_leader:
                self._follow(base, name, records)
            row, weights = self._train(base, name)
            yield pack_state(row.to_json(), weights)

    def _follow(self, base: int, name: str, records: list[dict[str, Any]]) -> None:
        """Takes over what process 0 knows, and waits until its files are seen here; to miss them fails as usual."""
        folder = self.networks.folder
        folder.records = records
        if name != DENSE:
            comes_into_sight(folder.plan(base, name))
            if self.networks.setup.settings.base_recipe is not None:
                comes_into_sight(folder.base(base))

    def _train(self, base: int, name: str) -> TrainedRow:
        """Trains a network from its last checkpoint on."""
        networks, folder, settings = self.networks, self.networks.folder, self.networks.setup.settings
        recipe = settings.base_recipe if name == DENSE else settings.recipe
        assert recipe is not None, "given base networks are not trained"
        planned = PlanRecord("", ()) if name == DENSE else folder.planned[base, name]
        model = networks.fresh(base, "init") if name == DENSE else networks.pruned(base, name)
        kind = kind_of(name)
        trained = self.trainings.train(
            model,
            recipe,
            title=f"base {base}, {name}",
            # Equal for all rows of a base, so that these see the same images in the same order.
            key=derive(networks.key(base), "base" if name == DENSE else "finetune"),
            checkpoint_dir=folder.training(base, name),
        )
        weights = split_model(trained.model)[1]
        row = TransferRow(
            base=base,
            name=name,
            kind=kind,
            before=None if kind == "base" else trained.before,
            after=trained.after,
            curve=trained.curve,
            steps=trained.steps,
            seconds=trained.seconds,
            num_devices=self.trainings.num_devices,
            digest=weights_digest(weights),
            kept_digest=planned.kept_digest,
            fallback_groups=planned.fallback_groups,
        )
        return TrainedRow(row, weights)


def kind_of(name: str) -> Kind:
    """Returns what the network of a row is.

    Args:
      name: of the row.

    Example:
      >>> kind_of("l1")
      'function'
    """
    kinds: dict[str, Kind] = {DENSE: "base", "random": "random", "scratch": "scratch"}
    return kinds.get(name, "function")
