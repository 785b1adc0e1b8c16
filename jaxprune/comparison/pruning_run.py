"""Prunes one network of a user's own: trains or loads it, plans, cuts, fine-tunes with several seeds, and measures.

Every step that takes long ends with a line on the disk, so that the same call goes on where an interrupted one was.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import jax
from flax import nnx

from jaxprune.comparison.network_trainings import NetworkTrainings, Show, whole_number
from jaxprune.comparison.pruning_outputs import write_outputs
from jaxprune.comparison.pruning_records import PruningFolder, PruningResult, PruningRow, RowName, title_of
from jaxprune.comparison.pruning_setup import PruningSetup
from jaxprune.comparison.record_folder import REMEDY
from jaxprune.comparison.stored_networks import read_network, read_plan
from jaxprune.comparison.transfer_cost import TransferCost, check_resources, training_cost
from jaxprune.comparison.transfer_networks import rescaled, weights_digest
from jaxprune.comparison.transfer_plans import observer_of
from jaxprune.datasets.guarded_split import Split, read_openings
from jaxprune.files import RunDirectoryError, explained, to_text, write_atomically
from jaxprune.keys import derive
from jaxprune.nets.cost import count_parameters
from jaxprune.pruning.budgets import PlanOptions, budget_counts
from jaxprune.pruning.planning import Plan, plan
from jaxprune.pruning.slimming import slim
from jaxprune.scoring.ranking import Ranking, rank_groups
from jaxprune.search.task_problem import kept_digest
from jaxprune.structure.model_state import merge_model, split_model
from jaxprune.training.checkpoint import save_network
from jaxprune.training.recipes import Recipe

OnMessage = Callable[[str], None]
_AGAIN = "give the same command again"


def prune_network(
    setup: PruningSetup,
    out: str | os.PathLike[str],
    *,
    on_message: OnMessage = lambda message: None,
    show: Show | None = None,
) -> PruningResult:
    """Prunes, fine-tunes and measures the network of a setup, or goes on with it.

    The dense network is trained, or its weights are read; it is observed on training images, the function scores its
    channels, and the budget says how many of each group stay. The slim network is fine-tuned with every seed. At the
    end the test images, if there are any, are opened once, and the network of the seed that is best on validation
    images is saved, exported and timed against the dense one.

    Args:
      setup: what `set_up_pruning` returned.
      out: the folder; everything is kept there, see `pruning_records`.
      on_message: is told how it goes.
      show: shows each training in place of messages, as a progress bar does.

    Returns:
      The result, which is also in `result.json`.

    Raises:
      ValueError: for a function without finite scores, a budget that cannot be met, or a loss that diverges.
      RunDirectoryError: if the folder is in use, of other settings, damaged, or cannot be written.
      TrainingInterrupted: after Ctrl-C or SIGTERM in a training, which was saved.
    """
    path = Path(out)
    PruningFolder.check(path, setup.document())
    check_resources(pruning_cost(setup), path, what="the run")
    with PruningFolder(path, setup.document(), on_message) as folder:
        run = _Run(setup, folder, NetworkTrainings(setup.data, on_message, show), on_message)
        run.train_dense()
        run.make_plan()
        for seed in range(setup.settings.seeds):
            run.finetune(seed)
        if setup.settings.scratch_recipe is not None:
            for seed in range(setup.settings.seeds):
                run.train_from_scratch(seed, setup.settings.scratch_recipe)
        run.test()
        result = run.result()
        text = to_text(result.to_json(), indent=1)
        write_atomically(path / "result.json", f"{text}\n", again=_AGAIN)
        return result


def pruning_cost(setup: PruningSetup) -> TransferCost:
    """Counts what a run costs from shapes, without evaluations, observing and scoring.

    Args:
      setup: the run.
    """
    settings, structure = setup.settings, setup.structure
    budget = settings.budget | PlanOptions(scope="group")  # about as large as by a global ranking
    if budget.get("latency_fraction") is not None:  # fewer channels may do, so this is the most it costs
        budget = budget | PlanOptions(latency_fraction=None, kept_fraction=1.0)
    slim_recipes = [settings.recipe] * settings.seeds
    if settings.scratch_recipe is not None:
        slim_recipes += [settings.scratch_recipe] * settings.seeds
    return training_cost(
        structure,
        setup.data,
        budget_counts(structure, **budget),
        dense=[] if settings.base_recipe is None else [settings.base_recipe],
        slim=slim_recipes,
        calibration_images=settings.calibration_images,
    )


class _Run:
    """A run under way."""

    def __init__(
        self, setup: PruningSetup, folder: PruningFolder, trainings: NetworkTrainings, on_message: OnMessage
    ) -> None:
        self.setup, self.folder, self.trainings, self.on_message = setup, folder, trainings, on_message
        self.batch_size = setup.settings.recipe.batch_size
        self.key = derive(jax.random.key(setup.settings.seed), "prune")

    @cached_property
    def dense(self) -> nnx.Module:
        """The dense network, which has to be the one that was measured."""
        if self.setup.settings.weights is None:
            return self._load("dense", 0)
        graph, _, rest = split_model(self.setup.make_network(0))
        weights = self.setup.read_weights()
        row = self.folder.rows.get(("dense", 0))
        if row is not None and weights_digest(weights) != row.digest:
            raise RunDirectoryError(
                f"the dense network needs the weights that the run was started with, but {self.setup.settings.weights} "
                f"holds others now. {REMEDY}"
            )
        return merge_model(graph, weights, rest)

    @cached_property
    def plan(self) -> Plan:
        """The plan, which has to be the one that was made."""
        noted = self.folder.planned
        assert noted is not None, "the network is planned first"
        return read_plan(self.folder.plan_file, noted["kept_digest"])

    def train_dense(self) -> None:
        """Trains the dense network, or reads and evaluates the one that was given."""
        recipe = self.setup.settings.base_recipe
        if recipe is None:
            self._evaluate("dense", self.dense)
        else:
            fresh = self.setup.make_network(whole_number(derive(self.key, "init"), 31))
            self._train("dense", 0, recipe, lambda: fresh)

    def make_plan(self) -> None:
        """Scores the channels of the dense network, plans which stay, and stores plan and slim network."""
        if self.folder.planned is None:
            setup, settings = self.setup, self.setup.settings
            self.on_message(f"observing {settings.calibration_images:,} training images")
            observer = observer_of(
                self.dense, setup.data, num_images=settings.calibration_images, coarse_classes=settings.coarse_classes
            )  # fmt: skip
            observed = observer(split_model(self.dense)[1])
            ranking = rank_groups(
                setup.function,
                observed,
                groups=settings.budget.get("groups"),
                ignore=settings.budget.get("ignore", ()),
            )
            if not isinstance(ranking, Ranking):
                raise ValueError(
                    f"pruning needs finite scores that differ, got none from {settings.function}: {ranking}."
                )
            example = jax.ShapeDtypeStruct((1, *setup.data.image_shape), "float32")
            made = plan(self.dense, ranking.scores, example, metric=setup.function, **settings.budget)
            model = slim(self.dense, made, compensate=observed if settings.compensate else None)
            path = self.folder.plan_file
            with explained(f"write {path}", again=_AGAIN, place="folder"):
                made.save(path)
            self._save("pruned", 0, model)
            groups = list(ranking.fallback_groups)
            self.folder.add("plan", {"kept_digest": kept_digest(made.to_kept()), "fallback_groups": groups})
        if ("pruned", 0) not in self.folder.rows:
            self._evaluate("pruned", self._load("pruned", 0))

    def finetune(self, seed: int) -> None:
        """Fine-tunes the slim network.

        Args:
          seed: number of the fine-tuning.
        """
        recipe = self.setup.settings.recipe
        self._train("finetuned", seed, recipe, lambda: self._load("pruned", 0))

    def train_from_scratch(self, seed: int, recipe: Recipe) -> None:
        """Trains the slim network from new weights.

        Args:
          seed: number of the training.
          recipe: how.
        """
        key = derive(self.key, "scratch", seed)

        def fresh() -> nnx.Module:
            model = self.setup.make_network(whole_number(derive(key, "init"), 31))
            return rescaled(slim(model, self.plan), self.setup.structure.shapes)

        self._train("scratch", seed, recipe, fresh)

    def test(self) -> None:
        """Opens the test images, if there are any, and measures all networks that were not measured yet."""
        guarded, done = self.setup.data.test, self.folder.test
        missing = [place for place in self.folder.rows if place not in done]
        if guarded is None or not missing:
            return
        record = self.folder.path / "test.json"
        # An opening that an interruption cut short is added to, not hidden.
        opened: Split = guarded.open(record, reopen=record.exists())
        for name, seed in missing:
            model = self.dense if name == "dense" else self._load(name, seed)
            counts = self.trainings.evaluate(model, self.batch_size, opened)
            found = self.trainings.accuracy(counts)
            self.on_message(
                f"{title_of(name, seed)}: {found.top1:.2f} % on {counts.num_examples:,} test images"
            )
            self.folder.add("test", {"name": name, "seed": seed, "test": list(found)})

    def result(self) -> PruningResult:
        """Saves, exports and times the best network, unless that was done, and returns the result."""
        rows = self.folder.rows
        finetuned = [row for row in rows.values() if row.name == "finetuned"]
        best = max(finetuned, key=lambda row: (row.accuracy.top1, -row.seed)).seed
        model = self._load("finetuned", best)
        if self.folder.shipped is None:
            written = write_outputs(
                self.setup, self.folder.path, self.plan, self.dense, model, self.on_message
            )
            self.folder.add("shipped", written)
        noted, planned = self.folder.shipped, self.folder.planned
        assert noted is not None and planned is not None, "both were done before"
        structure, kept = self.setup.structure, self.plan.kept_counts
        record = self.folder.path / "test.json"
        return PruningResult(
            settings=self.setup.settings,
            plan=self.plan,
            macs=(structure.count_macs(), structure.count_macs(kept)),
            parameters=(count_parameters(self.dense), count_parameters(model)),
            rows=tuple(rows.values()),
            test=self.folder.test,
            opened=read_openings(record) if self.folder.test else (),
            best_seed=best,
            fallback_groups=planned["fallback_groups"],
            speed=noted["speed"],
            export_problem=noted["export_problem"],
        )

    def _train(self, name: RowName, seed: int, recipe: Recipe, start: Callable[[], nnx.Module]) -> None:
        """Trains a network from its last checkpoint on, stores it and notes the row, unless that was done."""
        if (name, seed) in self.folder.rows:
            return
        place = self.folder.training(name, seed)
        key = derive(self.key, name, seed)
        trained = self.trainings.train(
            start(), recipe, title=title_of(name, seed), key=key, checkpoint_dir=place
        )
        self._save(name, seed, trained.model)
        self._note(
            PruningRow(
                name, seed, trained.after, trained.curve, trained.steps, trained.seconds, self.trainings.num_devices,
                weights_digest(split_model(trained.model)[1]),
            )
        )  # fmt: skip
        shutil.rmtree(place, ignore_errors=True)

    def _evaluate(self, name: RowName, model: nnx.Module) -> None:
        """Measures a network on validation images and notes the row, unless that was done."""
        if (name, 0) in self.folder.rows:
            return
        start = time.perf_counter()
        found = self.trainings.accuracy(self.trainings.evaluate(model, self.batch_size))
        seconds, digest = time.perf_counter() - start, weights_digest(split_model(model)[1])
        self._note(PruningRow(name, 0, found, (), 0, seconds, self.trainings.num_devices, digest))

    def _note(self, row: PruningRow) -> None:
        """Writes a row, and tells of it."""
        self.folder.add("row", row.to_json())
        self.on_message(f"{title_of(row.name, row.seed)}: {row.accuracy.top1:.2f} % on validation images")

    def _save(self, name: RowName, seed: int, model: nnx.Module) -> None:
        """Stores a network's weights."""
        place = self.folder.weights(name, seed)
        with explained(f"store {place}", again=_AGAIN, place="folder"):
            save_network(place, split_model(model)[1], {}, self._identity(name, seed))

    def _load(self, name: RowName, seed: int) -> nnx.Module:
        """Reads a network that was stored."""
        dense = self.setup.make_network(0)
        like = dense if name == "dense" else slim(dense, self.plan)
        return read_network(self.folder.weights(name, seed), like, self._identity(name, seed))

    def _identity(self, name: RowName, seed: int) -> str:
        """What a network is, as it is written into its file."""
        settings = self.setup.settings
        return f"{settings.network} on {settings.data}, {name} {seed}, seed {settings.seed}"
