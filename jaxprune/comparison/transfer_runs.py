"""The trainings of a transfer, each of which is done once: base networks with their plans, and pruned networks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.comparison.transfer_data import Part
from jaxprune.comparison.transfer_folder import TransferFolder
from jaxprune.comparison.transfer_networks import TransferNetworks, weights_digest, whole_number
from jaxprune.comparison.transfer_plans import Planned, first_channels_plan, plan_functions, random_plan
from jaxprune.comparison.transfer_records import DENSE, Accuracy, Kind, TransferRow
from jaxprune.comparison.transfer_setup import TransferSetup
from jaxprune.datasets.guarded_split import Split
from jaxprune.datasets.input_pipeline import Batch, Batches
from jaxprune.keys import derive
from jaxprune.structure.model_state import split_model
from jaxprune.training.data_parallel import BATCH_AXIS, TopCounts, data_mesh
from jaxprune.training.network_training import TrainedNetwork, evaluate_network, train_network
from jaxprune.training.recipes import Recipe
from jaxprune.training.training_run import Evaluation, TrainingDivergedError, TrainingProgress
from jaxprune.types import Invalid

_MOST_POINTS = 30
"""Evaluations along a training, at most one an epoch."""

_LEAST_STEPS, _CHECKPOINTS = 500, 100
"""Least number of steps between checkpoints, and how many there are in a long training."""

_SECONDS_BETWEEN_MESSAGES = 15.0

_TOP5_CLASSES = 5
"""With more classes than these, top-5 accuracy says something."""

_AGAIN = "give the same command again"


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
        self.test_record = folder.path / "test.json"
        self._mesh = data_mesh()
        self._sharding = NamedSharding(self._mesh, PartitionSpec(BATCH_AXIS))

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
        counts = self._evaluate(model, opened)
        found = self._accuracy(counts)
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
        found = self._accuracy(self._evaluate(model, None))
        seconds = time.perf_counter() - start
        digest = weights_digest(split_model(model)[1])
        row = TransferRow(base, DENSE, "base", None, found, (), 0, seconds, self._mesh.size, digest)
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
        clock = _Clock(f"base {base}, {name}", self.on_message)
        trained = self._trained(base, name, model, recipe, clock)
        self.networks.save(base, name, trained.weights)
        num_steps = recipe.num_steps(self.setup.data.num_train)
        row = TransferRow(
            base=base,
            name=name,
            kind=kind,
            before=None if kind == "base" else self._accuracy(trained.history[0].counts),
            after=self._accuracy(trained.history[-1].counts),
            curve=tuple(_curve(trained.history, num_steps // recipe.epochs)),
            steps=num_steps,
            seconds=clock.seconds(num_steps),
            num_devices=self._mesh.size,
            digest=weights_digest(trained.weights),
            kept_digest=kept_digest,
            fallback_groups=fallback_groups,
        )
        self.folder.add("row", row.to_json())
        shutil.rmtree(self.folder.training(base, name), ignore_errors=True)
        before = "" if row.before is None else f"{row.before.top1:.2f} % before, "
        self.on_message(f"base {base}, {name}: {before}{row.after.top1:.2f} % on validation images")

    def _trained(
        self, base: int, name: str, model: nnx.Module, recipe: Recipe, clock: _Clock
    ) -> TrainedNetwork:
        """Trains a network from its last checkpoint on."""
        data = self.setup.data
        num_steps = recipe.num_steps(data.num_train)
        # Equal for all rows of a base, so that these see the same images in the same order.
        key = derive(self.networks.key(base), "base" if name == DENSE else "finetune")

        def batches(start_step: int) -> Batches:
            clock.start(start_step)
            return data.train_batches(
                batch_size=recipe.batch_size,
                seed=whole_number(derive(key, "order"), 63),
                num_steps=num_steps,
                start_step=start_step,
                sharding=self._sharding,
            )

        try:
            return train_network(
                model,
                batches,
                recipe,
                num_steps=num_steps,
                mean=data.pixels.mean,
                std=data.pixels.std,
                seed=whole_number(derive(key, "train"), 31),
                data=data.fingerprint,
                evaluate=lambda: self._validation(recipe.batch_size),
                evaluate_every=num_steps // recipe.epochs * -(-recipe.epochs // _MOST_POINTS),
                checkpoint_dir=self.folder.training(base, name),
                save_every=max(_LEAST_STEPS, num_steps // _CHECKPOINTS),
                mesh=self._mesh,
                on_progress=clock.tell,
                report_every=max(1, min(50, num_steps // 10)),
            )
        except TrainingDivergedError as error:
            raise ValueError(f"base {base}, {name}: {error}") from error

    def _validation(self, batch_size: int) -> Iterator[Batch]:
        """The validation images in batches."""
        sharding = self._sharding
        with self.setup.data.part_batches(
            "validation", batch_size=batch_size, sharding=sharding, opened=None
        ) as batches:
            yield from batches

    def _evaluate(self, model: nnx.Module, opened: Split | None) -> TopCounts:
        """Counts right answers on validation images, or on test images that were opened."""
        data, size = self.setup.data, self.setup.settings.recipe.batch_size
        part: Part = "validation" if opened is None else "test"
        with data.part_batches(part, batch_size=size, sharding=self._sharding, opened=opened) as batches:
            return evaluate_network(
                model, batches, mean=data.pixels.mean, std=data.pixels.std, mesh=self._mesh
            )

    def _accuracy(self, counts: TopCounts) -> Accuracy:
        """Counts in percent."""
        has_top5 = self.setup.data.num_classes > _TOP5_CLASSES
        return Accuracy(counts.top1_percent, counts.top5_percent if has_top5 else None)


class _Clock:
    """Measures a training and tells how it goes, now and then."""

    def __init__(self, title: str, on_message: Callable[[str], None]) -> None:
        self.title, self.on_message = title, on_message
        self.first_step = 0
        self.began = self.told = time.perf_counter()

    def start(self, step: int) -> None:
        """Notes the step at which the training goes on."""
        self.first_step = step
        if step:
            self.on_message(f"{self.title}: goes on after {step:,} steps")

    def tell(self, progress: TrainingProgress) -> None:
        """Tells how it goes, if that was not done a moment ago."""
        now = time.perf_counter()
        if progress.loss is None or now - self.told < _SECONDS_BETWEEN_MESSAGES:
            return
        self.told = now
        found = progress.evaluation
        accuracy = "" if found is None else f", {found.counts.top1_percent:.2f} % on validation images"
        self.on_message(
            f"{self.title}: step {progress.num_done:,} of {progress.num_steps:,}, loss {progress.loss:.3f}{accuracy}; "
            f"{progress.speed}"
        )

    def seconds(self, num_steps: int) -> float:
        """Returns how long all steps take, from the part that was done since the last interruption."""
        done = num_steps - self.first_step
        return (time.perf_counter() - self.began) * num_steps / done if done else 0.0


def _curve(history: tuple[Evaluation, ...], per_epoch: int) -> Iterator[tuple[float, float]]:
    """(epochs, accuracy) of the evaluations after the first step."""
    for num_done, counts in history:
        if num_done:
            yield num_done / per_epoch, counts.top1_percent
