"""Training recipes: named, frozen settings of a training run, and the Optax transformation they describe."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from jaxprune.text import closest
from jaxprune.types import is_whole

Optimizer = Literal["adam", "sgd"]
LearningRateSchedule = Literal["constant", "cosine", "steps", "exponential"]
Augmentation = Literal["none", "crop_flip"]
DecayedArrays = Literal["kernels", "all"]
ComputeType = Literal["float32", "bfloat16"]

_LATER_SETTINGS = ("compensate", "warmup", "label_smoothing", "decay_on", "ema", "compute")
"""Settings that came later: records and fingerprints name them only where they differ from their defaults."""


@dataclass(frozen=True)
class Recipe:
    """How to train or fine-tune a network: optimiser, learning rate over time, length, batches, augmentation.

    Attributes:
      name: the recipe's name in records and tables.
      optimizer: "adam" or "sgd" (with momentum).
      learning_rate: learning rate of the first step (of the first one after the warm-up), > 0.
      epochs: passes over the training split, >= 1.
      batch_size: examples per step, >= 1; an incomplete last batch is left out.
      weight_decay: `weight_decay * w` is added to the gradient of the arrays w that `decay_on` names, >= 0.
      momentum: momentum of "sgd", in [0, 1); not read by "adam".
      nesterov: whether "sgd" uses Nesterov momentum.
      schedule: "constant"; "cosine" down to 0 at the last step; "steps" multiplies by `drop_factor` at each milestone;
        "exponential" multiplies by `drop_factor` after each epoch.
      milestones: fractions of the whole run in (0, 1), increasing; read by "steps".
      drop_factor: factor on the learning rate in (0, 1); read by "steps" and "exponential".
      augment: "none", or "crop_flip": random shifts by up to an eighth of the side and left-right flips.
      compensate: whether, before a pruned network is fine-tuned, its layers are corrected for the removed channels by
        least squares, as `slim(..., compensate=observed)` does. Only for recipes that fine-tune.
      warmup: epochs in which the learning rate rises in equal steps from 0, in [0, epochs). "cosine" falls over the
        epochs after it; milestones and the epochs of "exponential" count from the start of the run.
      label_smoothing: share of each label that is spread evenly over all classes in the loss, in [0, 1).
      decay_on: "kernels", arrays of two or more axes, as Flax's examples do; or "all", biases and scales too, as
        PyTorch's optimisers do.
      ema: if above 0, the result of a run is a moving average of the weights and running statistics, which starts at
        the initial ones; after each step it becomes `ema * average + (1 - ema) * weights`, in [0, 1).
      compute: "float32", or "bfloat16": the network runs on bfloat16 copies of the parameters and inputs, while the
        parameters that the optimiser changes, running statistics, the loss and all evaluations are of float32.

    Raises:
      ValueError: if settings are out of their range; names all of them.

    Example:
      >>> recipe = RECIPES["adam_short"].replace(epochs=5)
      >>> recipe.num_steps(num_examples=1097)
      105
    """

    name: str
    optimizer: Optimizer
    learning_rate: float
    epochs: int
    batch_size: int
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    schedule: LearningRateSchedule = "constant"
    milestones: tuple[float, ...] = ()
    drop_factor: float = 0.1
    augment: Augmentation = "none"
    compensate: bool = False
    warmup: float = 0.0
    label_smoothing: float = 0.0
    decay_on: DecayedArrays = "kernels"
    ema: float = 0.0
    compute: ComputeType = "float32"

    def __post_init__(self) -> None:
        # A recipe read back from JSON has a list here, which would not hash.
        object.__setattr__(self, "milestones", tuple(self.milestones))
        problems = [message for is_good, message in self._checks() if not is_good]
        if problems:
            raise ValueError(f"Recipe {self.name!r} needs {'; '.join(problems)}.")
        object.__setattr__(self, "epochs", int(self.epochs))  # NumPy's numbers are not written as JSON
        object.__setattr__(self, "batch_size", int(self.batch_size))

    def replace(self, **changes: object) -> Recipe:
        """Returns a copy with some settings changed, checked again.

        Args:
          changes: setting name -> new value.

        Raises:
          ValueError: if a setting is unknown or out of its range.

        Example:
          >>> RECIPES["adam_short"].replace(epochs=1).epochs
          1
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ValueError(
                f"Recipe has the settings {', '.join(known)}, got {', '.join(unknown)}. Check the spelling."
            )
        copy: Callable[..., Recipe] = dataclasses.replace
        return copy(self, **changes)

    @property
    def settings(self) -> dict[str, object]:
        """All settings by name, for records and fingerprints; later ones only where not the default."""
        later = {
            field.name: field.default for field in dataclasses.fields(self) if field.name in _LATER_SETTINGS
        }
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in later or v != later[k]}

    def scaled_to(self, batch_size: int) -> Recipe:
        """Returns the recipe for another batch size, with a learning rate changed in proportion.

        Args:
          batch_size: examples per step, >= 1.

        Raises:
          ValueError: if the batch size is not a whole number >= 1.

        Example:
          >>> RECIPES["imagenet_base"].scaled_to(256).learning_rate
          0.1

        Source:
          Goyal et al. 2017, Accurate, Large Minibatch SGD, sec. 2.1, for "sgd".
        """
        factor = batch_size / self.batch_size if is_whole(batch_size, smallest=1) else 1.0
        return self.replace(batch_size=batch_size, learning_rate=self.learning_rate * factor)

    def num_steps(self, num_examples: int) -> int:
        """Returns the number of steps of a whole run over `num_examples` training examples.

        Raises:
          ValueError: if there are fewer examples than one batch holds.
        """
        if num_examples < self.batch_size:
            raise ValueError(
                f"Recipe {self.name!r} needs at least one batch of {self.batch_size} examples, got {num_examples}. "
                f"Use recipe.replace(batch_size={max(num_examples, 1)}) or more examples."
            )
        return self.epochs * (num_examples // self.batch_size)

    def learning_rates(self, num_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step number.

        Args:
          num_steps: steps of the whole run.

        Example:
          >>> rates = RECIPES["paper_vgg"].learning_rates(1000)
          >>> [round(float(rates(step)), 6) for step in (0, 400, 800)]
          [0.006, 0.00168, 0.00047]
        """
        num_warmup = round(self.warmup * num_steps / self.epochs)
        if num_warmup == 0:
            return self._rates_after_warmup(num_steps)
        ramp = optax.linear_schedule(0.0, 1.0, num_warmup)
        if self.schedule == "cosine":
            falling = self._rates_after_warmup(num_steps - num_warmup)
            return lambda step: ramp(step) * falling(jnp.maximum(step - num_warmup, 0))
        rates = self._rates_after_warmup(num_steps)
        return lambda step: ramp(step) * rates(step)

    def _rates_after_warmup(self, num_steps: int) -> optax.Schedule:
        """Returns the schedule without the warm-up, over that many steps."""
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(self.learning_rate, max(num_steps, 1))
        if self.schedule == "exponential":
            steps_per_epoch = max(num_steps, 1) / self.epochs
            return optax.exponential_decay(
                self.learning_rate, steps_per_epoch, self.drop_factor, staircase=True
            )
        if self.schedule == "steps":
            # Milestones that round to the same step multiply.
            drops: dict[int, float] = {}
            for milestone in self.milestones:
                step = round(milestone * num_steps)
                drops[step] = drops.get(step, 1.0) * self.drop_factor
            return optax.piecewise_constant_schedule(self.learning_rate, drops)
        return optax.constant_schedule(self.learning_rate)

    def transformation(self, num_steps: int) -> optax.GradientTransformation:
        """Returns the Optax transformation of a run of `num_steps` steps.

        Weight decay depends on how many axes an array has, so stacked members must go through it under `jax.vmap`
        (or one by one), not as one tree with a leading member axis.

        Args:
          num_steps: steps of the whole run, from the method of that name; the schedule ends there.

        Returns:
          A transformation with `init(params)` and `update(gradients, state, params)`.

        Raises:
          ValueError: if `num_steps` is below 1.

        Example:
          >>> import jax.numpy as jnp
          >>> transformation = RECIPES["adam_short"].transformation(num_steps=63)
          >>> params = {"kernel": jnp.ones((2, 2))}
          >>> updates, _ = transformation.update(params, transformation.init(params), params)
          >>> round(float(updates["kernel"][0, 0]), 6)
          -0.001
        """
        if num_steps < 1:
            raise ValueError(
                f"Recipe.transformation needs num_steps >= 1, got {num_steps}. See Recipe.num_steps."
            )
        rates = self.learning_rates(num_steps)
        optimizer = (
            optax.adam(rates)
            if self.optimizer == "adam"
            else optax.sgd(rates, momentum=self.momentum or None, nesterov=self.nesterov)
        )
        if self.weight_decay == 0:
            return optimizer
        mask = None if self.decay_on == "all" else _are_kernels
        return optax.chain(optax.add_decayed_weights(self.weight_decay, mask), optimizer)

    def _checks(self) -> list[tuple[bool, str]]:
        """(whether a setting is in its range, the range and the value as text) of every setting with a range."""
        rising = all(low < high for low, high in itertools.pairwise((0.0, *self.milestones, 1.0)))
        return [
            (self.optimizer in get_args(Optimizer), f"optimizer adam or sgd, got {self.optimizer!r}"),
            (
                self.schedule in get_args(LearningRateSchedule),
                f"schedule constant, cosine, steps or exponential, got {self.schedule!r}",
            ),
            (self.augment in get_args(Augmentation), f"augment none or crop_flip, got {self.augment!r}"),
            (0 < self.learning_rate < float("inf"), f"learning_rate > 0, got {self.learning_rate}"),
            (is_whole(self.epochs, smallest=1), f"epochs a whole number >= 1, got {self.epochs}"),
            (is_whole(self.batch_size, smallest=1), f"batch_size a whole number >= 1, got {self.batch_size}"),
            (0 <= self.weight_decay < float("inf"), f"weight_decay >= 0, got {self.weight_decay}"),
            (0 <= self.momentum < 1, f"momentum in [0, 1), got {self.momentum}"),
            (
                self.schedule != "steps" or bool(self.milestones),
                "milestones for schedule='steps', fractions of the run such as (0.5, 0.75), got none",
            ),
            (not self.milestones or rising, f"milestones increasing in (0, 1), got {self.milestones}"),
            (0 < self.drop_factor < 1, f"drop_factor in (0, 1), got {self.drop_factor}"),
            (isinstance(self.compensate, bool), f"compensate True or False, got {self.compensate!r}"),
            (
                self.warmup == 0 or 0 < self.warmup < self.epochs,
                f"warmup in epochs, at least 0 and less than the {self.epochs} of the run, got {self.warmup}",
            ),
            (0 <= self.label_smoothing < 1, f"label_smoothing in [0, 1), got {self.label_smoothing}"),
            (self.decay_on in get_args(DecayedArrays), f"decay_on kernels or all, got {self.decay_on!r}"),
            (0 <= self.ema < 1, f"ema in [0, 1), such as 0.9999, got {self.ema}"),
            (self.compute in get_args(ComputeType), f"compute float32 or bfloat16, got {self.compute!r}"),
        ]


def _are_kernels(params: optax.Params) -> optax.Params:
    """Which arrays have two or more axes, as biases and scales of norms have not."""
    return jax.tree.map(lambda array: array.ndim >= 2, params)


def find_recipe(recipe: str | Recipe) -> Recipe:
    """Returns the recipe of that name; a `Recipe` is returned unchanged.

    Raises:
      ValueError: if there is no recipe of that name.

    Example:
      >>> find_recipe("adam_short").batch_size
      50
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        hint = closest(recipe, RECIPES) or " Pass a Recipe for settings of your own."
        raise ValueError(f"A recipe needs to be one of {', '.join(RECIPES)}, got {recipe!r}.{hint}")
    return RECIPES[recipe]


_PAPER_RESNET = Recipe(
    "paper_resnet", "sgd", 0.1, epochs=200, batch_size=128, weight_decay=1e-3, nesterov=True,
    schedule="steps", milestones=(0.4, 0.8), augment="crop_flip",
)  # fmt: skip
_CIFAR = Recipe(
    "cifar_base", "sgd", 0.1, epochs=200, batch_size=128, weight_decay=5e-4, decay_on="all",
    schedule="steps", milestones=(0.6, 0.75, 0.9), augment="crop_flip",
)  # fmt: skip
_IMAGENET = Recipe(
    "imagenet_base", "sgd", 0.4, epochs=100, batch_size=1024, weight_decay=1e-4, nesterov=True,
    schedule="cosine", warmup=5, compute="bfloat16",
)  # fmt: skip
_IMAGENET_FINETUNE = Recipe(
    "imagenet_finetune", "sgd", 0.08, epochs=90, batch_size=2048, weight_decay=1e-4, decay_on="all",
    schedule="steps", milestones=(1 / 3, 2 / 3), compute="bfloat16",
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            # To fine-tune on the quick tasks, and to train their base networks.
            Recipe("adam_short", "adam", 1e-3, epochs=3, batch_size=50),
            Recipe("adam_fashion", "adam", 1e-3, epochs=1, batch_size=100),
            Recipe("adam_base_digits", "adam", 2e-3, epochs=15, batch_size=50, schedule="cosine"),
            Recipe("adam_base_fashion", "adam", 1e-3, epochs=4, batch_size=100, schedule="cosine"),
            # The paper's: LeNet-5 and VGG-16; fine-tuning (ridge 1e-3) and training (8e-4) of ResNets on CIFAR.
            Recipe("paper_lenet", "adam", 5e-4, epochs=100, batch_size=200, weight_decay=7e-5),
            Recipe(
                "paper_vgg", "sgd", 6e-3, epochs=100, batch_size=128, weight_decay=1e-3, nesterov=True,
                schedule="steps", milestones=(0.4, 0.8), drop_factor=0.28, augment="crop_flip",
            ),
            _PAPER_RESNET,
            _PAPER_RESNET.replace(name="paper_resnet_base", weight_decay=8e-4),
            # ResNet-56 and VGG-19 on CIFAR as in Torch-Pruning's `reproduce` (Fang et al. 2023, DepGraph).
            _CIFAR,
            _CIFAR.replace(name="cifar_finetune", learning_rate=0.01, epochs=100, milestones=(0.6, 0.8)),
            # ResNet-50 on ILSVRC-2012 as in Flax's `examples/imagenet`, where the rate is 0.1 per 256 examples.
            _IMAGENET,
            # The same and MobileNetV2, pruned, as in Torch-Pruning's `reproduce`: batches of 8 x 256 and of 4 x 512.
            _IMAGENET_FINETUNE,
            # With a cosine and smoothed labels, as HRank+ and CHIP (Sui et al. 2021) do: 1.6 points in HRank+'s table.
            _IMAGENET_FINETUNE.replace(
                name="imagenet_finetune_cosine", schedule="cosine", milestones=(), label_smoothing=0.1
            ),
            Recipe(
                "imagenet_mobilenet", "sgd", 0.036, epochs=150, batch_size=2048, weight_decay=4e-5, decay_on="all",
                schedule="exponential", drop_factor=0.98, compute="bfloat16",
            ),
        )
    }
)  # fmt: skip
"""Every named recipe.

Those of published work keep its batch size; `Recipe.scaled_to` fits the learning rate to another one. PyTorch's recipes
normalise over the examples of each device, here all of a batch are normalised together. Random crops of ILSVRC's images
come from the input pipeline, so these recipes change no images.
"""
