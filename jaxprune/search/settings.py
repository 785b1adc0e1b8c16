"""The frozen settings of a search: flat, plain values, checked once, kept in `config.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from jaxprune.text import closest

STOPS = ("generations", "max_evaluations", "time_limit_seconds")
"""The settings that only say when to stop: a resume may change them, because no result depends on them."""


@dataclass(frozen=True)
class EvolveConfig:
    """How to search. Everything a run's result depends on, apart from its tasks and guesses.

    Args:
      generations: generations of new functions after generation 0 (library, own seeds, guesses), >= 0.
      population: new functions evaluated per generation, and survivors that may become parents, >= 2.
      proposals_per_slot: expressions scored and planned for each one evaluated, >= 1.
      promote_fraction: share of a generation, best first, that is tried on all bases, in [0, 1].
      elites: number of leading candidates that get one further base or key per task and generation, >= 0.
      max_evaluations: stop before this many fine-tunings are exceeded (generation 0 always runs whole).
      time_limit_seconds: stop after the fine-tuning under way at this time, counted from this call (generation 0
        always runs whole).
      seed: every random choice follows from it, in [0, 2**31).
      max_size, max_depth: limits of every new expression.
      vocabulary: "default" has everything the tasks offer; "paper" only what the paper's functions read.
      fitness: "paired" differences to l2, standardised per task; or the paper's "geometric" or
        "arithmetic" weighted mean of accuracies over tasks.
      strategy: "evolution", or "random", the control of equal budget whose proposals are fresh random
        expressions and never variations.
      seeds: generation 0 is the library and our own seeds ("all"), or the paper's seven metrics ("paper").
      variation: "default" is the typed mix of operators; "paper" the paper's mutation and crossover.
      tournament: number of candidates a parent is the best of, >= 1.
      max_age: generations without re-evaluation after which a candidate stops being a parent, >= 1.
      min_plan_distance: proposals nearer than this share of kept channels to a known plan come last.
      guided_fraction: share of a generation picked by what their plans let expect (see `guidance.py`), in
        [0, 1]; the rest are picked in order of proposal. The random control is never guided.

    Raises:
      ValueError: if any setting is out of range, naming all that are.

    Example:
      >>> EvolveConfig(generations=20, fitness="geometric").population
      16
      >>> EvolveConfig(population=0, elites=-1)
      Traceback (most recent call last):
      ValueError: EvolveConfig needs population >= 2 (got 0); elites >= 0 (got -1).
    """

    generations: int = 10
    population: int = 16
    proposals_per_slot: int = 10
    promote_fraction: float = 1 / 3
    elites: int = 2
    max_evaluations: int | None = None
    time_limit_seconds: float | None = None
    seed: int = 0
    max_size: int = 40
    max_depth: int = 8
    vocabulary: Literal["default", "paper"] = "default"
    fitness: Literal["paired", "geometric", "arithmetic"] = "paired"
    strategy: Literal["evolution", "random"] = "evolution"
    seeds: Literal["all", "paper"] = "all"
    variation: Literal["default", "paper"] = "default"
    tournament: int = 3
    max_age: int = 5
    min_plan_distance: float = 0.02
    guided_fraction: float = 0.5

    def __post_init__(self) -> None:
        lowest = {
            "generations": 0,
            "population": 2,
            "proposals_per_slot": 1,
            "elites": 0,
            "max_size": 1,
            "max_depth": 1,
            "tournament": 1,
            "max_age": 1,
            "seed": 0,
        }
        problems = [
            f"{name} >= {low} (got {getattr(self, name)})"
            for name, low in lowest.items()
            if getattr(self, name) < low
        ]
        if self.seed >= 2**31:
            problems.append(f"seed < 2**31 (got {self.seed})")
        problems += [
            f"{name} from 0 to 1 (got {getattr(self, name)})"
            for name in ("promote_fraction", "min_plan_distance", "guided_fraction")
            if not 0.0 <= getattr(self, name) <= 1.0
        ]
        for name in ("max_evaluations", "time_limit_seconds"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                problems.append(f"{name} above 0 or None (got {limit})")
        for name, hint in get_type_hints(EvolveConfig).items():
            choices = get_args(hint)
            if (
                choices
                and all(isinstance(choice, str) for choice in choices)
                and getattr(self, name) not in choices
            ):
                problems.append(f"{name} one of {', '.join(choices)} (got {getattr(self, name)!r})")
        if problems:
            raise ValueError(f"EvolveConfig needs {'; '.join(problems)}.")

    def replace(self, **changes: object) -> EvolveConfig:
        """A copy with some settings changed, checked again.

        Example:
          >>> EvolveConfig().replace(seed=3).seed
          3
        """
        return EvolveConfig.from_json({**self.to_json(), **changes})

    def to_json(self) -> dict[str, object]:
        """The settings as a flat dictionary of plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(plain: Mapping[str, object]) -> EvolveConfig:
        """The settings from a flat dictionary; what it lacks keeps its default.

        Raises:
          ValueError: if it holds a setting that does not exist, or one out of range.
          TypeError: if a value is of the wrong kind.

        Example:
          >>> EvolveConfig.from_json({"generations": 3}) == EvolveConfig(generations=3)
          True
        """
        hints = get_type_hints(EvolveConfig)
        unknown = sorted(set(plain) - set(hints))
        if unknown:
            raise ValueError(
                f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
                f"EvolveConfig has {', '.join(hints)}."
            )
        return EvolveConfig(**{name: _checked(name, value, hints[name]) for name, value in plain.items()})


def _checked(name: str, value: object, hint: object) -> Any:  # noqa: ANN401 - as the setting is annotated
    """`value`, if it is of the kind that the annotation says; a whole number passes for a float."""
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if all(isinstance(kind, str) for kind in kinds):
        return value  # a choice: __post_init__ names the allowed ones
    if isinstance(value, int | float) and not isinstance(value, bool):
        if float in kinds:
            return float(value)
        if float(value).is_integer():
            return int(value)
    raise TypeError(f"{name} needs {'a number' if float in kinds else 'a whole number'}, got {value!r}.")


# === merged: """Named tasks on the images in the package, and presets that combine them with search set


class PresetUnavailableError(ValueError):
    """A preset whose data this version cannot read."""


@dataclass(frozen=True)
class Preset:
    """Tasks by name, and how to search on them."""

    name: str
    tasks: tuple[str, ...]
    config: EvolveConfig
    about: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "quick",
                ("digits", "digits-deep", "fashion"),
                EvolveConfig(generations=10, population=14),
                "three small tasks, about ten minutes on two CPU cores",
            ),
            Preset(
                "paper",
                ("mnist-lenet5", "cifar10-vgg16"),
                EvolveConfig(
                    generations=10,
                    population=40,
                    proposals_per_slot=1,
                    promote_fraction=1.0,
                    elites=6,
                    min_plan_distance=0.0,
                    guided_fraction=0.0,
                    vocabulary="paper",
                    fitness="geometric",
                    variation="paper",
                    seeds="paper",
                ),
                "the loop of arXiv 2110.10876; docs/paper.md says what differs",
            ),
        )
    }
)
"""Preset name -> preset."""


def find_preset(name: str, *, tasks: Sequence[str] = ()) -> Preset:
    """The preset of that name, with other tasks if any are given.

    Raises:
      ValueError: if there is no such preset.
      PresetUnavailableError: if its own tasks need data that this version cannot read.

    Example:
      >>> find_preset("paper", tasks=["digits"]).tasks
      ('digits',)
    """
    if name not in PRESETS:
        raise ValueError(
            f"a preset needs to be one of {', '.join(PRESETS)}, got {name!r}.{closest(name, PRESETS)}"
        )
    preset = PRESETS[name]
    chosen = tuple(tasks) or preset.tasks
    missing = [task for task in chosen if task in ("mnist-lenet5", "cifar10-vgg16")]
    if missing:
        raise PresetUnavailableError(
            f"preset {name!r} needs the tasks {', '.join(missing)}, and with them the full MNIST and CIFAR-10, "
            f"which this version has no reader for yet. Its loop runs on other tasks: --preset {name} --task digits "
            "--task fashion (or --task module:factory for your own)."
        )
    return Preset(preset.name, chosen, preset.config, preset.about)
