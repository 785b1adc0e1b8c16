"""A task gives pruning functions a fitness: it is data, a network, a pruning schedule and recipes.

A `Task` is a frozen description; making one trains nothing. `base_networks.py` trains its base networks, and prunes
and fine-tunes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.datasets.dataset import Dataset, dataset_of
from jaxprune.datasets.guarded_split import GuardedSplit, Split
from jaxprune.datasets.scaling import Scaling
from jaxprune.datasets.small_sets import RawSet
from jaxprune.pruning.plan_checks import is_sequence
from jaxprune.training.loop import augment, split_network
from jaxprune.training.recipes import Recipe, find_recipe
from jaxprune.types import Array, is_whole

ModelFactory = Callable[[nnx.Rngs], nnx.Module]
"""A function that builds a freshly initialised network from random streams."""


@dataclass(frozen=True)
class Schedule:
    """How many channels of each group are kept, in one or several rounds of pruning and fine-tuning.

    Give either `kept_fraction`, the share of channels left at the end (round r of R keeps
    `kept_fraction ** (r / R)` of the original width), or `kept_counts`, explicit numbers.

    Args:
      kept_fraction: share of each group's channels left after the last round, in (0, 1].
      rounds: number of rounds, >= 1.
      kept_counts: one sequence per round with the number of kept channels of each group, in program order.
      scoring: "joint" scores all groups on the network as it is before the round; "sequential" scores group after group
        on activations of the network whose earlier groups have lost their channels, as the paper does with VGG-16. It
        takes an observation for each function, base network and group.

    Raises:
      ValueError: if both or neither is given, a value is out of range, or counts grow from round to round.

    Example:
      >>> Schedule(kept_fraction=0.375).counts({"conv1.kernel": 16, "conv2.kernel": 32})
      ({'conv1.kernel': 6, 'conv2.kernel': 12},)
      >>> Schedule(kept_counts=((10, 20), (8, 10))).counts({"a": 16, "b": 32})
      ({'a': 10, 'b': 20}, {'a': 8, 'b': 10})
    """

    kept_fraction: float | None = None
    rounds: int = 1
    kept_counts: tuple[tuple[int, ...], ...] | None = None
    scoring: Literal["joint", "sequential"] = "joint"

    def __post_init__(self) -> None:
        if self.scoring not in ("joint", "sequential"):
            raise ValueError(f'scoring must be "joint" or "sequential", got {self.scoring!r}.')
        if (self.kept_fraction is None) == (self.kept_counts is None):
            raise ValueError(
                "Schedule needs exactly one of kept_fraction= and kept_counts=, "
                f"got kept_fraction={self.kept_fraction} and kept_counts={self.kept_counts}."
            )
        if self.kept_fraction is not None and not 0 < self.kept_fraction <= 1:
            raise ValueError(f"kept_fraction must be above 0 and at most 1, got {self.kept_fraction}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}.")
        if self.kept_counts is not None:
            if not all(is_sequence(row) and all(map(is_whole, row)) for row in self.kept_counts):
                raise ValueError(
                    f"kept_counts needs whole numbers, one sequence of them per round, got {self.kept_counts}."
                )
            counts = tuple(tuple(int(count) for count in round_counts) for round_counts in self.kept_counts)
            object.__setattr__(self, "kept_counts", counts)
            object.__setattr__(self, "rounds", len(counts))
            if not counts or len({len(round_counts) for round_counts in counts}) != 1:
                raise ValueError(f"kept_counts needs one sequence of equal length per round, got {counts}.")
            if any(
                list(by_round) != sorted(by_round, reverse=True) for by_round in zip(*counts, strict=True)
            ):
                raise ValueError(f"kept_counts must not grow from round to round, got {counts}.")

    @property
    def settings(self) -> dict[str, object]:
        """What is fingerprinted; "joint" is left out, as schedules had no other scoring once."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if (name, value) != ("scoring", "joint")}

    def counts(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], ...]:
        """Computes how many channels each group keeps in each round.

        Args:
          sizes: group name -> number of channels before pruning, in program order.

        Returns:
          For each round, group name -> number of kept channels.

        Raises:
          ValueError: if explicit counts do not fit the groups; names all that do not.
        """
        if self.kept_counts is None:
            assert self.kept_fraction is not None
            fractions = [self.kept_fraction ** ((r + 1) / self.rounds) for r in range(self.rounds)]
            return tuple(
                {name: max(1, round(fraction * size)) for name, size in sizes.items()}
                for fraction in fractions
            )
        if len(self.kept_counts[0]) != len(sizes):
            raise ValueError(
                f"kept_counts needs {len(sizes)} numbers a round, one each for {', '.join(sizes)}, "
                f"got {len(self.kept_counts[0])}."
            )
        bad = [
            f"{name}: {count} of {size}"
            for round_counts in self.kept_counts
            for (name, size), count in zip(sizes.items(), round_counts, strict=True)
            if not 1 <= count <= size
        ]
        if bad:
            raise ValueError(f"kept counts must be from 1 to the group's width, got {'; '.join(bad)}.")
        return tuple(dict(zip(sizes, round_counts, strict=True)) for round_counts in self.kept_counts)


@dataclass(frozen=True, eq=False)
class Task:
    """A pruning problem: data, a network, a pruning schedule, recipes, and numbers of base networks.

    Args:
      name: short and unique; part of keys and file names.
      model: builds the network from random streams, `lambda rngs: MyNet(rngs=rngs)`; any chain-like NNX network.
      train: (images [N, ...], labels [N]).
      validation: (images, labels) held out of the training set; fitness is the accuracy on them.
      schedule: how many channels are kept, in how many rounds.
      recipe: how a pruned network is fine-tuned, a `Recipe` or the name of one.
      base_recipe: how base networks are trained; by default `recipe` with 8 times the epochs.
      bases: number of independently trained base networks that the search uses, >= 1.
      extra_bases: number of further base networks, for leading candidates only.
      final_bases: number of base networks trained after the search, for the report only.
      weight: weight in a joint fitness, > 0.
      test: guarded test images that only the final report opens, or None.
      calibration: number of training images that activations are observed on, at most all of them.
      num_samples: number of these images in the sample, which functions of whole sample matrices read.
      max_positions: most positions of an activation map in the sample; larger maps are average-pooled.
      finetune: "slim" trains physically smaller networks, "masked" full-shape ones with pruned weights held at zero.
      data_identity: what the images are, told without reading them (`Dataset.identity`), such as builder, version and
        checksums of a prepared set; "" takes the digest of the images themselves.
      num_classes: number of classes, read from the training labels; not an argument.
      scaling: standardises uint8 images, which stay uint8 on the host; None for other images; not an argument.
      data_fingerprint: a digest of the images and labels, or of what they are; not an argument.

    Raises:
      ValueError: if a setting is out of range, or the data does not fit (see `Dataset.from_arrays`), the test images
        included. Whether the network fits is checked when a problem, a comparison or a calibration is made of the task.

    Example:
      >>> import numpy as np
      >>> from jaxprune.nets import PlainConvNet
      >>> rng = np.random.default_rng(0)
      >>> x, y = rng.normal(size=(40, 8, 8, 1)), np.arange(40) % 4
      >>> make = lambda rngs: PlainConvNet(rngs, widths=(4, 4, 8), num_classes=4)
      >>> Task("mine", model=make, train=(x, y), validation=(x, y)).num_classes
      4
    """

    name: str
    model: ModelFactory
    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    schedule: Schedule = field(default_factory=lambda: Schedule(kept_fraction=0.375))
    recipe: Recipe | str = "adam_short"
    base_recipe: Recipe | str | None = None
    bases: int = 4
    extra_bases: int = 2
    final_bases: int = 8
    weight: float = 1.0
    test: GuardedSplit | None = None
    calibration: int = 1000
    num_samples: int = 100
    max_positions: int = 16
    finetune: Literal["slim", "masked"] = "slim"
    data_identity: str = ""
    num_classes: int = field(init=False)
    scaling: Scaling | None = field(init=False)
    data_fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        if not self.name or not all(letter.isalnum() or letter in "-_." for letter in self.name):
            raise ValueError(f"a task's name needs letters, digits, '-', '_' or '.', got {self.name!r}.")
        if isinstance(self.model, nnx.Module) or not callable(self.model):
            raise ValueError(
                f"task {self.name!r} needs model= a function of nnx.Rngs that builds the network, "
                f"got {type(self.model).__name__}. Write model=lambda rngs: MyNet(rngs=rngs)."
            )
        recipe = find_recipe(self.recipe)
        set_field(self, "recipe", recipe)
        default = recipe.replace(epochs=8 * recipe.epochs, compensate=False)
        base = find_recipe(default if self.base_recipe is None else self.base_recipe)
        set_field(self, "base_recipe", base)
        smallest = {
            "bases": 1, "extra_bases": 0, "final_bases": 1, "calibration": 2, "num_samples": 2, "max_positions": 1,
        }  # fmt: skip
        problems = [
            f"{name} >= {low} (got {getattr(self, name)})"
            for name, low in smallest.items()
            if getattr(self, name) < low
        ]
        if not (math.isfinite(self.weight) and self.weight > 0):
            problems.append(f"weight above 0 (got {self.weight})")
        if self.finetune not in ("slim", "masked"):
            problems.append(f'finetune "slim" or "masked" (got {self.finetune!r})')
        if base.compensate:
            problems.append(
                "base_recipe without compensate (got compensate=True), as nothing is pruned before"
            )
        if problems:
            raise ValueError(f"task {self.name!r} needs {'; '.join(problems)}.")
        standardised = np.issubdtype(np.asarray(self.train[0]).dtype, np.integer)
        data = self._dataset
        for name in ("train", "validation", "num_classes", "scaling"):
            set_field(self, name, getattr(data, name))
        set_field(self, "data_fingerprint", data.fingerprint)
        if self.test is not None:
            if standardised and self.scaling is None:
                raise ValueError(
                    f"task {self.name!r} needs floating-point training images beside test=, got whole numbers, which "
                    "would be standardised without the test images. Make a Dataset.from_arrays(train=..., "
                    "validation=..., test=...) and pass its splits."
                )
            self.test.check_fits(data.image_shape, data.num_classes, has_pixels=self.scaling is not None)

    @property
    def _dataset(self) -> Dataset:
        """Training and validation images, checked."""
        given = {"train": self.train, "validation": self.validation}
        splits = {part: Split(*map(np.asarray, arrays)) for part, arrays in given.items()}
        return dataset_of(RawSet(self.name, splits, identity=self.data_identity))

    @property
    def recipes(self) -> tuple[Recipe, Recipe]:
        """How a pruned network is fine-tuned, and how base networks are trained."""
        assert isinstance(self.recipe, Recipe) and isinstance(self.base_recipe, Recipe)
        return self.recipe, self.base_recipe

    @property
    def settings(self) -> dict[str, object]:
        """All settings that are plain data, for `config.json` and fingerprints."""
        skipped = {"model", "train", "validation", "test", "num_classes", "scaling", "data_identity"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skipped}
        schedule, recipes = self.schedule.settings, (recipe.settings for recipe in self.recipes)
        return {**values, "schedule": schedule, **dict(zip(("recipe", "base_recipe"), recipes, strict=True))}

    def replace(self, **changes: object) -> Task:
        """Returns a copy with some fields changed, checked again.

        Args:
          changes: field name -> new value. Other images are told by their pixels, unless `data_identity` comes along.

        Raises:
          TypeError: if there is no such field.
          ValueError: if a value is out of range.
        """
        copy: Callable[..., Task] = dataclasses.replace
        if "train" in changes or "validation" in changes:
            changes = {"data_identity": "", **changes}
        return copy(self, **changes)

    def scaled(self, scale: float) -> Task:
        """Returns the same problem on a share of its images and epochs, to rehearse what takes days.

        The numbers of training, validation and calibration images and of epochs of both recipes are multiplied by
        `scale`. At least one epoch is left, one batch of training images, an image of each class for validation and two
        for calibration. Network, schedule, batches, test images and numbers of base networks stay as they are.

        Args:
          scale: in (0, 1].

        Raises:
          ValueError: if the scale is out of range.

        Example:
          >>> import numpy as np
          >>> from jaxprune.nets import PlainConvNet
          >>> x, y = np.ones((200, 8, 8, 1), np.float32), np.arange(200) % 4
          >>> make = lambda rngs: PlainConvNet(rngs, num_classes=4)
          >>> task = Task("mine", model=make, train=(x, y), validation=(x, y)).scaled(0.1)
          >>> len(task.train[1]), len(task.validation[1]), task.recipe.batch_size, task.base_recipe.epochs
          (50, 20, 50, 2)
        """
        if not 0 < scale <= 1:
            raise ValueError(f"scale needs to be a share above 0 and at most 1, such as 0.05, got {scale}.")
        recipes = [_shortened(recipe, scale) for recipe in self.recipes]
        smallest = max(self.num_classes, *(recipe.batch_size for recipe in recipes))
        whole = self._dataset
        num_train, num_validation = (len(split.labels) for split in (whole.train, whole.validation))
        some = whole.limited(
            num_train=min(num_train, max(smallest, round(num_train * scale))),
            num_validation=min(num_validation, max(self.num_classes, round(num_validation * scale))),
        )
        return self.replace(
            train=some.train,
            validation=some.validation,
            data_identity=some.identity,
            recipe=recipes[0],
            base_recipe=recipes[1],
            calibration=min(self.calibration, max(2 * self.num_classes, round(self.calibration * scale))),
        )


def _shortened(recipe: Recipe, scale: float) -> Recipe:
    """Returns a recipe of fewer epochs, at least one, with as much less of a warm-up."""
    epochs = max(1, round(recipe.epochs * scale))
    return recipe.replace(epochs=epochs, warmup=recipe.warmup * epochs / recipe.epochs)


def check_network(task: Task, model: nnx.Module) -> None:
    """Checks, on shapes alone, that a network can be trained on a task with its recipes.

    Args:
      task: the task.
      model: its network.

    Raises:
      ValueError: if the network has no output for some class, or returns something other than [N, K] logits; if a
        recipe needs more training images than there are, or images where there are features.
    """
    images = task.train[0]
    network, weights = split_network(model)
    whole = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    example = jax.ShapeDtypeStruct((2, *images.shape[1:]), jnp.float32)
    outputs = jax.eval_shape(network.logits, weights, example)
    is_logits = (
        isinstance(outputs, jax.ShapeDtypeStruct) and len(outputs.shape) == 2 and outputs.shape[0] == 2
    )
    if not is_logits or not jnp.issubdtype(outputs.dtype, jnp.floating):
        shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(outputs)]
        raise ValueError(
            f"task {task.name!r} needs a network that returns [N, K] floating-point logits, one row an image, got "
            f"{', '.join(shapes) or 'nothing'} for 2 images of shape {tuple(images.shape[1:])}."
        )
    if outputs.shape[1] < task.num_classes:
        raise ValueError(
            f"task {task.name!r} needs a network with an output for each of the {task.num_classes} classes of its "
            f"training labels, got {outputs.shape[1]} outputs. Build it with num_classes={task.num_classes}, or "
            "number the classes from 0 without gaps."
        )
    for recipe in task.recipes:
        try:
            recipe.num_steps(len(images))
            jax.eval_shape(partial(augment, kind=recipe.augment), jax.random.key(0), whole)
        except ValueError as error:
            raise ValueError(f"task {task.name!r}: {error}") from error


def check_unique(tasks: Sequence[Task]) -> None:
    """Checks that there are tasks and that their names differ.

    Raises:
      ValueError: if there are none, or two share a name.
    """
    names = [task.name for task in tasks]
    if not names:
        raise ValueError(
            'at least one task is needed, got none. Use tasks=[Task(...)] or the preset "quick".'
        )
    if len(set(names)) < len(names):
        raise ValueError(f"tasks need different names, got {', '.join(names)}.")
