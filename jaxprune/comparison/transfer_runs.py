"""The trainings of a transfer, each of which is done once: base networks with their plans, and pruned networks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxprune.comparison.transfer_folder import TransferFolder
from jaxprune.comparison.transfer_networks import TransferNetworks, weights_digest
from jaxprune.comparison.transfer_plans import Planned, first_channels_plan, plan_functions, random_plan
from jaxprune.comparison.transfer_records import DENSE, TransferRow
from jaxprune.comparison.transfer_setup import TransferSetup
from jaxprune.comparison.transfer_trainings import TrainedRow, TransferTrainings, kind_of
from jaxprune.datasets.guarded_split import Split
from jaxprune.hosts.sharing import Hosts
from jaxprune.keys import derive
from jaxprune.structure.model_state import split_model
from jaxprune.types import Invalid


class TransferRun:
    """A transfer under way.

    Args:
      setup: what is done.
      folder: where results are.
      on_message: is told how it goes.
      hosts: the processes that share trainings, or None; this one is process 0.

    Attributes:
      test_record: the file that notes when test images were opened.
    """

    def __init__(
        self,
        setup: TransferSetup,
        folder: TransferFolder,
        on_message: Callable[[str], None],
        hosts: Hosts | None = None,
    ) -> None:
        self.setup, self.folder, self.on_message = setup, folder, on_message
        self.networks = TransferNetworks(setup, folder)
        shared = TransferTrainings(self.networks, on_message, hosts)
        self.trainings, self._trained = shared.trainings, shared.train
        self.test_record = folder.path / "test.json"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows to fine-tune, without refused functions."""
        settings, refused = self.setup.settings, self.folder.refused
        return tuple(name for name in (*settings.functions, *settings.controls) if name not in refused)

    @property
    def counts(self) -> dict[str, int]:
        """Group -> number of channels that stay; known once the first base network is planned."""
        counts = self.folder.kept_counts
        assert counts is not None, "the first base network is planned first"
        return counts

    def plan_bases(self) -> None:
        """Trains or loads base networks and plans all rows on each, as far as that was not done before.

        Raises:
          ValueError: if the function that is transferred has no finite scores on one.
        """
        settings, rows = self.setup.settings, self.folder.rows
        bases = range(settings.bases)
        missing = [base for base in bases if (base, DENSE) not in rows]
        trained = self._trained([(base, DENSE) for base in missing] if settings.base_recipe else [])
        for base in bases:
            if base in missing:
                if settings.base_recipe is None:
                    self._evaluate_given(base)
                else:
                    self._keep(next(trained))
            self._plan(base)

    def finetune(self, names: Sequence[str]) -> None:
        """Prunes, fine-tunes and stores the networks that were not yet; those with the same channels once.

        Args:
          names: of the rows.
        """
        rows = self.folder.rows
        missing = [(b, n) for b in range(self.setup.settings.bases) for n in names if (b, n) not in rows]
        for base, name in missing:
            self.networks.plan(base, name)  # has to be there, and unchanged
        first = {self._network(base, name): name for base, name in rows if name != DENSE}
        for base, name in missing:
            first.setdefault(self._network(base, name), name)
        to_train = [(b, n) for b, n in missing if first[self._network(b, n)] == n]
        trained = self._trained(to_train)
        for base, name in missing:
            if (base, name) in to_train:
                self._keep(next(trained))
            else:
                self._keep_twin(base, name, self.folder.rows[base, first[self._network(base, name)]])

    def _plan(self, base: int) -> None:
        """Plans all rows on a base network, as far as that was not done before."""
        settings = self.setup.settings
        names = [*settings.functions, *settings.controls]
        planned = self.folder.planned
        if all((base, name) in planned or name in self.folder.refused for name in names):
            return
        model = self.networks.base(base)
        self.on_message(f"base {base}: observing {settings.calibration_images:,} training images")
        found = plan_functions(self.setup, model, self.folder.kept_counts)
        if isinstance(found, Invalid):
            raise ValueError(
                f"{next(iter(settings.functions))} needs a score for every channel of {settings.network}, but on base "
                f"{base} it is {found}."
            )
        if self.folder.kept_counts is None:
            self.folder.add("counts", {"counts": found.counts})
        key = derive(self.networks.key(base), "random")
        plans: dict[str, Planned | Invalid] = dict(found.plans)
        if "random" in settings.controls:
            plans["random"] = Planned(random_plan(self.setup.structure, self.counts, key))
        if "scratch" in settings.controls:
            plans["scratch"] = Planned(first_channels_plan(self.setup.structure, self.counts))
        for name, plan in plans.items():
            if isinstance(plan, Invalid):
                if name not in self.folder.refused:
                    self.on_message(f"{name} is left out: on base {base} it is {plan}")
                    self.folder.add("refused", {"name": name, "reason": f"base {base}: {plan.reason}"})
            elif (base, name) not in planned:
                self.folder.add("plan", self.networks.save_plan(base, name, plan))

    def test(self, base: int, name: str, opened: Split) -> None:
        """Measures a network on the test images, and notes it.

        Args:
          base: number of the base network.
          name: of the row.
          opened: what the guard of the test split gave.
        """
        model = self.networks.base(base) if name == DENSE else self.networks.finetuned(base, name)
        counts = self.trainings.evaluate(model, self.setup.settings.recipe.batch_size, opened)
        found = self.trainings.accuracy(counts)
        self.on_message(f"base {base}, {name}: {found.top1:.2f} % on {counts.num_examples:,} test images")
        self.folder.add("test", {"base": base, "name": name, "test": list(found)})

    def _network(self, base: int, name: str) -> tuple[int, str, bool]:
        """What a network is before it is fine-tuned: base, kept channels, and whether it has fresh weights."""
        return base, self.folder.planned[base, name].kept_digest, name == "scratch"

    def _keep(self, trained: TrainedRow) -> None:
        """Stores a network that was trained, and notes its row; its checkpoints are needed no more."""
        row = trained.row
        self.networks.save(row.base, row.name, trained.weights)
        self.folder.add("row", row.to_json())
        shutil.rmtree(self.folder.training(row.base, row.name), ignore_errors=True)
        before = "" if row.before is None else f"{row.before.top1:.2f} % before, "
        self.on_message(f"base {row.base}, {row.name}: {before}{row.after.top1:.2f} % on validation images")

    def _keep_twin(self, base: int, name: str, twin: TransferRow) -> None:
        """Stores the network of a row that keeps the same channels, and its result, as those of another row."""
        self.on_message(f"base {base}, {name}: keeps the channels of {twin.name}, and has its result")
        self.networks.save(base, name, split_model(self.networks.finetuned(base, twin.name))[1])
        groups = self.folder.planned[base, name].fallback_groups
        row = replace(twin, name=name, kind=kind_of(name), fallback_groups=groups)
        self.folder.add("row", row.to_json())

    def _evaluate_given(self, base: int) -> None:
        """Reads and evaluates a base network that was given."""
        model = self.networks.given_base(base)
        start = time.perf_counter()
        trainings = self.trainings
        found = trainings.accuracy(trainings.evaluate(model, self.setup.settings.recipe.batch_size))
        seconds = time.perf_counter() - start
        digest = weights_digest(split_model(model)[1])
        row = TransferRow(base, DENSE, "base", None, found, (), 0, seconds, trainings.num_devices, digest)
        self.folder.add("row", row.to_json())
        self.on_message(f"base {base}: {found.top1:.2f} % on validation images")
