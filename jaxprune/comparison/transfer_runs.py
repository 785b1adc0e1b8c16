"""The trainings of a transfer, each of which is done once: base networks with their plans, and pruned networks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace

from flax import nnx

from jaxprune.comparison.network_trainings import NetworkTrainings
from jaxprune.comparison.transfer_folder import TransferFolder
from jaxprune.comparison.transfer_networks import TransferNetworks, weights_digest
from jaxprune.comparison.transfer_plans import Planned, first_channels_plan, plan_functions, random_plan
from jaxprune.comparison.transfer_records import DENSE, Kind, TransferRow
from jaxprune.comparison.transfer_setup import TransferSetup
from jaxprune.datasets.guarded_split import Split
from jaxprune.keys import derive
from jaxprune.structure.model_state import split_model
from jaxprune.training.recipes import Recipe
from jaxprune.types import Invalid


class TransferRun:
    """A transfer under way.

    Args:
      setup: what is done.
      folder: where results are.
      on_message: is told how it goes.

    Attributes:
      test_record: the file that notes when test images were opened.
    """

    def __init__(
        self, setup: TransferSetup, folder: TransferFolder, on_message: Callable[[str], None]
    ) -> None:
        self.setup, self.folder, self.on_message = setup, folder, on_message
        self.networks = TransferNetworks(setup, folder)
        self.trainings = NetworkTrainings(setup.data, on_message)
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

    def plan_base(self, base: int) -> None:
        """Trains or loads a base network and plans all rows on it, as far as that was not done before.

        Args:
          base: its number.

        Raises:
          ValueError: if the function that is transferred has no finite scores there.
        """
        if (base, DENSE) not in self.folder.rows:
            self._train_base(base)
        names = [*self.setup.settings.functions, *self.setup.settings.controls]
        planned = self.folder.planned
        if all((base, name) in planned or name in self.folder.refused for name in names):
            return
        model = self.networks.base(base)
        settings = self.setup.settings
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
                self.networks.save_plan(base, name, plan)

    def finetune(self, base: int, name: str) -> None:
        """Prunes, fine-tunes and stores one network, unless that was done before.

        Args:
          base: number of the base network.
          name: of the row.
        """
        if (base, name) in self.folder.rows:
            return
        kind: Kind = "random" if name == "random" else "scratch" if name == "scratch" else "function"
        record = self.folder.planned[base, name]
        self.networks.plan(base, name)  # has to be there, and unchanged
        if kind != "scratch" and (twin := self._twin(base, name)) is not None:
            self.on_message(f"base {base}, {name}: keeps the channels of {twin.name}, and has its result")
            self.networks.save(base, name, split_model(self.networks.finetuned(base, twin.name))[1])
            row = replace(twin, name=name, kind=kind, fallback_groups=record.fallback_groups)
            self.folder.add("row", row.to_json())
            return
        self._train(
            base, name, kind, self.networks.pruned(base, name), self.setup.settings.recipe,
            kept_digest=record.kept_digest, fallback_groups=record.fallback_groups,
        )  # fmt: skip

    def _twin(self, base: int, name: str) -> TransferRow | None:
        """The row of a function that keeps the same channels and was fine-tuned already."""
        digest = self.folder.planned[base, name].kept_digest
        rows = self.folder.rows.values()
        same = (row for row in rows if row.base == base and row.kept_digest == digest)
        return next((row for row in same if row.kind != "scratch"), None)

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

    def _train_base(self, base: int) -> None:
        """Trains a base network, or reads and evaluates one that was given."""
        settings = self.setup.settings
        if settings.base_recipe is not None:
            self._train(base, DENSE, "base", self.networks.fresh(base, "init"), settings.base_recipe)
            return
        model = self.networks.given_base(base)
        start = time.perf_counter()
        trainings = self.trainings
        found = trainings.accuracy(trainings.evaluate(model, settings.recipe.batch_size))
        seconds = time.perf_counter() - start
        digest = weights_digest(split_model(model)[1])
        row = TransferRow(base, DENSE, "base", None, found, (), 0, seconds, trainings.num_devices, digest)
        self.folder.add("row", row.to_json())
        self.on_message(f"base {base}: {found.top1:.2f} % on validation images")

    def _train(
        self,
        base: int,
        name: str,
        kind: Kind,
        model: nnx.Module,
        recipe: Recipe,
        *,
        kept_digest: str = "",
        fallback_groups: tuple[str, ...] = (),
    ) -> None:
        """Trains a network from its last checkpoint on, stores it, and notes the row."""
        # Equal for all rows of a base, so that these see the same images in the same order.
        key = derive(self.networks.key(base), "base" if name == DENSE else "finetune")
        trained = self.trainings.train(
            model,
            recipe,
            title=f"base {base}, {name}",
            key=key,
            checkpoint_dir=self.folder.training(base, name),
        )
        weights = split_model(trained.model)[1]
        self.networks.save(base, name, weights)
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
            kept_digest=kept_digest,
            fallback_groups=fallback_groups,
        )
        self.folder.add("row", row.to_json())
        shutil.rmtree(self.folder.training(base, name), ignore_errors=True)
        before = "" if row.before is None else f"{row.before.top1:.2f} % before, "
        self.on_message(f"base {base}, {name}: {before}{row.after.top1:.2f} % on validation images")
