"""The settings of a search, checked once and stored in `config.json`, and named presets of tasks and settings."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxprune.text import closest

MIN_PLANS = 10
"""Plans per base in a bank, at least; fewer do not tell how well the landscape predicts others."""

STOPS = ("generations", "max_evaluations", "time_limit_seconds", "force")
"""The settings that only say when to stop. A resumed run may change them, because no result depends on them."""


@dataclass(frozen=True)
class EvolveConfig:
    """How to search: everything that a run's result depends on, apart from its tasks and guesses.

    Args:
      generations: number of generations after generation 0 (library, own seeds, guesses), >= 0.
      population: number of new functions tried in each generation, and largest number of parents, >= 2.
      fitness: "landscape" fine-tunes a bank of plans of each base network first, predicts from it what every function
        reaches, and fine-tunes only the leaders, at the end; "finetune" fine-tunes every function.
      joint: the way to combine tasks, "paired" for differences to l2 in standard deviations of the library's functions,
        averaged over tasks; "geometric" (the paper's) or "arithmetic" for a weighted mean of accuracies.
      plans: number of plans in the bank of each base network, >= 10 (landscape only).
      leaders: number of leading functions that are verified by fine-tuning, >= 1 (landscape only).
      parsimony: what each unit of complexity takes off the fitness, >= 0 (landscape only).
      force: search also on tasks whose landscapes can hardly tell plans apart (landscape only).
      proposals_per_slot: number of expressions scored for each one that is fine-tuned, >= 1 (finetune only).
      promote_fraction: share of a generation, best first, that is tried on all bases, in [0, 1] (finetune only).
      elites: number of leading candidates that are tried on one further base or repeat per task and generation, >= 0
        (finetune only).
      max_evaluations: stop before the number of fine-tunings exceeds this; generation 0 always runs completely
        (finetune only).
      time_limit_seconds: stop the search at this time, counted from the start of this call, after the fine-tuning that
        is running then. Not limited are the bank of plans, generation 0, the verification of leaders, and the final
        comparison of `jaxprune evolve`.
      seed: determines every random choice, in [0, 2**31).
      max_size: largest number of nodes of a new expression, >= 1.
      max_depth: largest depth of a new expression, >= 1.
      vocabulary: what new expressions read, "default" for everything that the networks of all tasks offer, "paper" for
        what the paper's functions read, "paper+WO" for this and the consuming weights. With fitness "landscape" no new
        expression computes with whole samples or matrices.
      strategy: "evolution"; or "random", the control of equal budget, which proposes random expressions and never
        variations.
      seeds: generation 0 is the library and our own seeds ("all"), these without what our own searches found
        ("handmade"), or the paper's seven metrics ("paper").
      variation: "default" is the typed mix of mutations and crossovers; "paper" is the paper's.
      tournament: number of candidates drawn for each parent, of which the best becomes the parent, >= 1.
      max_age: number of generations without re-evaluation after which a candidate is no longer a parent, >= 1
        (finetune only).
      min_plan_distance: share of kept channels in which plans must differ, in [0, 1]. With fitness "landscape" this
        holds for parents and for leaders; with "finetune", proposals that are nearer to a known plan are picked last.
      guided_fraction: share of a generation that is picked by the fitness that a Gaussian process over plans expects,
        in [0, 1]; the others are picked in order of proposal, in the random control all (finetune only).

    Raises:
      ValueError: if any setting is out of range; the message names all of them.

    Example:
      >>> EvolveConfig(generations=20).population
      80
      >>> EvolveConfig(population=0, elites=-1)
      Traceback (most recent call last):
      ValueError: EvolveConfig needs population >= 2 (got 0); elites >= 0 (got -1).
    """

    generations: int = 25
    population: int = 80
    fitness: Literal["landscape", "finetune"] = "landscape"
    joint: Literal["paired", "geometric", "arithmetic"] = "paired"
    plans: int = 50
    leaders: int = 24
    parsimony: float = 0.008
    force: bool = False
    proposals_per_slot: int = 10
    promote_fraction: float = 1 / 3
    elites: int = 2
    max_evaluations: int | None = None
    time_limit_seconds: float | None = None
    seed: int = 0
    max_size: int = 40
    max_depth: int = 8
    vocabulary: Literal["default", "paper", "paper+WO"] = "default"
    strategy: Literal["evolution", "random"] = "evolution"
    seeds: Literal["all", "handmade", "paper"] = "all"
    variation: Literal["default", "paper"] = "default"
    tournament: int = 3
    max_age: int = 5
    min_plan_distance: float = 0.02
    guided_fraction: float = 0.5

    def __post_init__(self) -> None:
        minima = {"population": 2, "plans": MIN_PLANS} | dict.fromkeys(
            ("generations", "elites", "seed", "parsimony"), 0
        )
        ones = ("leaders", "proposals_per_slot", "max_size", "max_depth", "tournament", "max_age")
        minima |= dict.fromkeys(ones, 1)
        problems = [
            f"{name} >= {minimum} (got {getattr(self, name)})"
            for name, minimum in minima.items()
            if getattr(self, name) < minimum
        ]
        if not self.parsimony < math.inf:
            problems.append(f"a finite parsimony (got {self.parsimony})")
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
        if self.fitness == "landscape" and self.max_evaluations is not None:
            problems.append(
                f'fitness "finetune" with max_evaluations (got {self.max_evaluations}): a landscape costs the same '
                "fine-tunings however many functions are tried, so use generations or population"
            )
        for name, hint in get_type_hints(EvolveConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                problems.append(f"{name} one of {', '.join(get_args(hint))} (got {getattr(self, name)!r})")
        if problems:
            raise ValueError(f"EvolveConfig needs {'; '.join(problems)}.")

    def replace(self, **changes: object) -> EvolveConfig:
        """Returns a copy with some settings changed, checked again.

        Args:
          changes: setting name -> new value.

        Raises:
          ValueError: if a setting does not exist or a value is out of range.
          TypeError: if a value is of the wrong type.

        Example:
          >>> EvolveConfig().replace(seed=3).seed
          3
        """
        return EvolveConfig.from_json({**self.to_json(), **changes})

    def to_json(self) -> dict[str, object]:
        """Returns the settings as a flat dictionary of plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(plain: Mapping[str, object]) -> EvolveConfig:
        """Reads the settings from a flat dictionary.

        Args:
          plain: setting name -> value; missing settings take their defaults.

        Raises:
          ValueError: if a setting does not exist or a value is out of range.
          TypeError: if a value is of the wrong type.

        Example:
          >>> EvolveConfig.from_json({"generations": 3}) == EvolveConfig(generations=3)
          True
        """
        hints = get_type_hints(EvolveConfig)
        plain = in_todays_words(plain)
        unknown = sorted(set(plain) - set(hints))
        if unknown:
            raise ValueError(
                f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
                f"EvolveConfig has {', '.join(hints)}."
            )
        return EvolveConfig(**{name: _checked(name, value, hints[name]) for name, value in plain.items()})


def in_todays_words(plain: Mapping[str, object]) -> dict[str, object]:
    """Returns settings of any version by their names of today.

    Versions before landscapes fine-tuned every function, and called the way to combine tasks the fitness.

    Args:
      plain: setting name -> value.

    Example:
      >>> in_todays_words({"fitness": "geometric", "seed": 3})["joint"]
      'geometric'
    """
    if plain.get("fitness") not in get_args(get_type_hints(EvolveConfig)["joint"]):
        return dict(plain)
    new = {name: getattr(EvolveConfig, name) for name in ("plans", "leaders", "parsimony", "force")}
    return {**new, **plain, "fitness": "finetune", "joint": plain["fitness"]}


@dataclass(frozen=True)
class Preset:
    """The names of tasks, the settings of a search on them, settings of all tasks, and tasks to report on."""

    name: str
    tasks: tuple[str, ...]
    config: EvolveConfig
    about: str
    task_options: Mapping[str, int] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


_UNSEEN = ("fashion", "digits-res")
"""Tasks that no preset searches on: another network and other images, and another network."""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "quick",
                ("digits", "digits-deep", "digits-dw"),
                EvolveConfig(),
                "2,000 functions on three small tasks, about 13 minutes on two CPU cores",
                unseen=_UNSEEN,
            ),
            Preset(
                "thorough",
                ("digits", "digits-deep", "digits-dw"),
                EvolveConfig(generations=31),
                "2,500 functions on 64 networks a task, several times the work of quick",
                {"bases": 64},
                _UNSEEN,
            ),
            Preset(
                "paper",
                ("mnist-lenet5", "cifar10-vgg16"),
                EvolveConfig(
                    generations=10,
                    population=40,
                    fitness="finetune",
                    joint="geometric",
                    proposals_per_slot=1,
                    promote_fraction=1.0,
                    elites=6,
                    min_plan_distance=0.0,
                    guided_fraction=0.0,
                    vocabulary="paper",
                    variation="paper",
                    seeds="paper",
                ),
                "the loop of arXiv 2110.10876 on MNIST and CIFAR-10; tells its cost before it starts",
            ),
        )
    }
)
"""Preset name -> preset."""


def find_preset(name: str, *, tasks: Sequence[str] = ()) -> Preset:
    """Returns the preset of that name.

    Args:
      name: a key of `PRESETS`.
      tasks: names of tasks to use instead of the preset's own.

    Raises:
      ValueError: if there is no such preset.

    Example:
      >>> find_preset("paper", tasks=["digits"]).tasks
      ('digits',)
    """
    if name not in PRESETS:
        raise ValueError(
            f"a preset needs to be one of {', '.join(PRESETS)}, got {name!r}.{closest(name, PRESETS)}"
        )
    return PRESETS[name] if not tasks else dataclasses.replace(PRESETS[name], tasks=tuple(tasks))


def _checked(name: str, value: object, hint: object) -> Any:  # noqa: ANN401 - as the setting is annotated
    """Returns the value as the type that the setting is annotated with; refuses values of other types."""
    types = get_args(hint) or (hint,)
    if hint is bool and not isinstance(value, bool):
        raise TypeError(f"{name} needs true or false, got {value!r}.")
    if hint is bool or get_origin(hint) is Literal or (value is None and type(None) in types):
        return value  # __post_init__ checks the choices
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError as error:
            raise ValueError(
                f"EvolveConfig needs {name} < 2**31 (got a number of more than 300 digits)."
            ) from error
        if float in types:
            return number
        if number.is_integer():
            if name != "seed" and number >= 2**31:
                raise ValueError(f"EvolveConfig needs {name} < 2**31 (got {value}).")
            return int(value)
    raise TypeError(f"{name} needs {'a number' if float in types else 'a whole number'}, got {value!r}.")


def setting_help() -> dict[str, str]:
    """Returns the sentence about each setting of a search in the docstring of `EvolveConfig`.

    Returns:
      Name of the setting -> sentence.

    Example:
      >>> setting_help()["max_depth"]
      'largest depth of a new expression, >= 1'
    """
    hints = get_type_hints(EvolveConfig)
    text = " ".join((EvolveConfig.__doc__ or "").partition("Args:")[2].partition("Raises:")[0].split())
    parts = re.split(rf"\b({'|'.join(hints)}): ", text)
    sentences = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: sentences.get(name, "").strip().rstrip(".") for name in hints}
