"""The settings of a run, from flags, a TOML file, an earlier run's `config.json` and a preset, in this order.

`RunConfig` is plain data: what it holds goes to `config.json`, which is accepted back as a file of settings.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

from jaxprune.search.settings import EvolveConfig
from jaxprune.text import closest

if TYPE_CHECKING:
    from jaxprune.tasks.tasks import Task

Controls = Literal["standard", "full"]
Batching = Literal["auto", "scan", "loop", "vmap"]
TaskValue = int | float | str

TASK_OPTIONS: Mapping[str, tuple[type, str]] = {
    "bases": (int, "trained networks per task that the search uses"),
    "extra_bases": (int, "further ones, for the leading candidates only"),
    "final_bases": (int, "networks trained after the search, for the report"),
    "weight": (float, "weight of a task in the fitness"),
    "kept_fraction": (float, "share of each group's channels left at the end"),
    "rounds": (int, "rounds of pruning and fine-tuning, with --kept-fraction"),
    "recipe": (str, "name of the fine-tuning recipe"),
    "base_recipe": (str, "name of the recipe that trains base networks"),
    "epochs": (int, "epochs of fine-tuning"),
    "base_epochs": (int, "epochs of training a base network"),
    "finetune": (str, "slim (physically smaller networks) or masked (full shapes held at zero)"),
}
"""What can be changed of tasks: name -> (kind, help). One value for all, or values by task name."""

SHORT_NAMES: Mapping[str, str] = {
    "task": "tasks",
    "guess": "guesses",
    "evaluations": "max_evaluations",
    "time": "time_limit_seconds",
}
"""Other spellings that files and flags may use."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that says what a run of `jaxprune evolve` does, as plain data.

    Args:
      preset: what was not said otherwise comes from this preset.
      tasks: names or `module:factory`; empty for the preset's.
      task_options: option of `TASK_OPTIONS` -> a value for all tasks, or task name -> value.
      search: how to search.
      guesses: formulas that join generation 0.
      controls: rows of the final comparison: "standard", or "full" with the whole library and a random search.
      batching: how members of one program are batched; "auto" picks by backend and network.

    Raises:
      ValueError: for an unknown preset, option or choice, or a value of the wrong kind; names the closest match.

    Example:
      >>> config = RunConfig.of({"preset": "quick", "population": 8, "time": "20m"})
      >>> config.search.population, config.search.time_limit_seconds, config.search.generations
      (8, 1200.0, 10)
      >>> RunConfig.from_json(config.to_json()) == config
      True
      >>> RunConfig.of({"generatoins": 3})
      Traceback (most recent call last):
      ValueError: an option needs to be a setting of a run, got 'generatoins'. Did you mean 'generations'?
    """

    preset: str = "quick"
    tasks: tuple[str, ...] = ()
    task_options: Mapping[str, TaskValue | Mapping[str, TaskValue]] = field(default_factory=dict)
    search: EvolveConfig = field(default_factory=EvolveConfig)
    guesses: tuple[str, ...] = ()
    controls: Controls = "standard"
    batching: Batching = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("controls", Controls), ("batching", Batching)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} needs to be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}."
                )

    @staticmethod
    def of(*layers: Mapping[str, object]) -> RunConfig:
        """The settings of flat layers, the first that names an option wins; what none names is the preset's.

        Args:
          layers: option name -> value, as flags or a TOML file give them: fields of `EvolveConfig` and of
            `TASK_OPTIONS`, `preset`, `task` or `tasks`, `guess` or `guesses`, `controls`, `batching`, `time`
            ("20m"), `evaluations`.

        Raises:
          ValueError: as the class says.
        """
        from jaxprune.search.settings import find_preset

        given: dict[str, object] = {}
        for layer in layers:
            given |= {name: value for name, value in _plain_names(layer).items() if name not in given}
        preset, tasks = str(given.pop("preset", "quick")), _texts(given.pop("tasks", ()), "tasks")
        found = find_preset(preset, tasks=tasks)
        guesses = _texts(given.pop("guesses", ()), "guesses")
        options = task_options({name: given.pop(name) for name in TASK_OPTIONS if name in given})
        rest = {name: given.pop(name) for name in ("controls", "batching") if name in given}
        if "time_limit_seconds" in given:
            given["time_limit_seconds"] = parse_seconds(given["time_limit_seconds"])
        try:
            search = found.config.replace(**given)
        except TypeError as error:
            raise ValueError(str(error)) from error
        return RunConfig(preset, found.tasks, options, search, guesses, **rest)  # type: ignore[arg-type]

    def settings(self) -> dict[str, object]:
        """What `config.json` holds besides the search's own settings and guesses."""
        return {
            "preset": self.preset,
            "tasks": list(self.tasks),
            "task_options": _plain(self.task_options),
            "controls": self.controls,
            "batching": self.batching,
        }

    def to_json(self) -> str:
        """The settings in the form of a run's `config.json`."""
        plain = {
            "config": self.search.to_json(),
            "guesses": list(self.guesses),
            "settings": self.settings(),
        }
        return json.dumps(plain, indent=2)

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """The settings that `to_json`, or a run, wrote."""
        return RunConfig.of(_run_layer(json.loads(text)))

    def make_tasks(self) -> list[Task]:
        """The tasks, with this run's changes.

        Raises:
          ValueError: for an unknown task, or changes that do not fit it.
        """
        return make_tasks(self.tasks, self.task_options)


def make_tasks(
    names: Iterable[str], options: Mapping[str, TaskValue | Mapping[str, TaskValue]] | None = None
) -> list[Task]:
    """Tasks by name, with some of `TASK_OPTIONS` changed.

    Modules of `module:factory` are found on the Python path and in the working directory.

    Args:
      names: names of tasks, or `module:factory`.
      options: option -> a value for all tasks, or task name -> value.

    Raises:
      ValueError: for an unknown task, two of one name, or changes that do not fit.

    Example:
      >>> [task.bases for task in make_tasks(["digits", "fashion"], {"bases": {"digits": 3}})]
      [3, 2]
    """
    from jaxprune.nets.factories import look_in_working_directory
    from jaxprune.tasks.named_tasks import find_task
    from jaxprune.tasks.tasks import check_unique

    names, options = list(names), options or {}
    if any(":" in name for name in names):
        look_in_working_directory()
    found = [(name, find_task(name)) for name in names]
    check_unique([task for _, task in found])
    known = {*names, *(task.name for _, task in found)}
    for option, value in options.items():
        unknown = [name for name in value if name not in known] if isinstance(value, Mapping) else []
        if unknown:
            raise ValueError(
                f"{option} needs names of this run's tasks ({', '.join(names)}), got {', '.join(unknown)}."
                f"{closest(unknown[0], known)}"
            )
    tasks = []
    for name, task in found:
        changes = {
            option: value.get(name, value.get(task.name)) if isinstance(value, Mapping) else value
            for option, value in options.items()
        }
        tasks.append(_changed(task, {option: v for option, v in changes.items() if v is not None}))
    return tasks


def task_options(given: Mapping[str, object]) -> dict[str, TaskValue | Mapping[str, TaskValue]]:
    """Some of `TASK_OPTIONS`, read from texts and tables and checked.

    Args:
      given: option -> one value, task name -> value, or the text `task=value,task=value`.

    Raises:
      ValueError: for a value of the wrong kind.

    Example:
      >>> task_options({"bases": "digits=3,fashion=2", "weight": 2})
      {'bases': {'digits': 3, 'fashion': 2}, 'weight': 2.0}
    """
    options: dict[str, TaskValue | Mapping[str, TaskValue]] = {}
    for name, value in given.items():
        if isinstance(value, str) and "=" in value:
            value = dict(part.strip().rpartition("=")[::2] for part in value.split(","))
        if isinstance(value, Mapping):
            options[name] = {str(task): _of_kind(name, each) for task, each in value.items()}
        else:
            options[name] = _of_kind(name, value)
    return options


def read_config(path: str | Path) -> dict[str, object]:
    """A layer of settings for `RunConfig.of`, from a TOML file, or from `config.json` of a run or its folder.

    Raises:
      ValueError: if there is no such file, or it cannot be read as TOML or as a run's settings.
      RunDirectoryError: if the run is of a newer format.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--config needs a TOML file, or config.json of a run, got {path}: {_reason(error)}."
        ) from error
    try:
        plain = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ValueError(f"{path} needs to be {kind}, got an error at {error}.") from error
    if path.suffix != ".json":
        return dict(plain)
    if not isinstance(plain, dict):
        raise ValueError(f"{path} needs settings by name, got a {type(plain).__name__}.")
    if "format" in plain:
        from jaxprune.search.run_directory import of_known_format

        of_known_format(plain, path)  # before a setting that only a newer version knows is called a mistake
    return _run_layer(plain) if "config" in plain else plain


def parse_seconds(value: object) -> float | None:
    """A time as people write it, in seconds; "none" for no limit.

    Raises:
      ValueError: for anything else, or a time that is not above 0.

    Example:
      >>> [parse_seconds(text) for text in ("90", "90s", "20m", "1h30m", "none")]
      [90.0, 90.0, 1200.0, 5400.0, None]
    """
    if value is None or value == "none":
        return None
    text = str(value).strip().lower()
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text)
    try:
        hours, minutes, seconds = (float(part or 0) for part in (match.groups() if match else ()))
    except ValueError:
        hours = minutes = seconds = 0.0
    total = hours * 3600 + minutes * 60 + seconds
    if not total > 0:
        raise ValueError(f'a time needs to look like "90s", "20m" or "1h30m", and be above 0, got {value!r}.')
    return total


def setting_help() -> dict[str, str]:
    """Name -> what it does, for every setting of a search: the sentences of its docstring.

    Example:
      >>> setting_help()["population"]
      'new functions evaluated per generation, and survivors that may become parents, >= 2'
    """
    hints = get_type_hints(EvolveConfig)
    text = " ".join((EvolveConfig.__doc__ or "").partition("Args:")[2].partition("Raises:")[0].split())
    told = re.split(r"((?:\b\w+, )*\b\w+): ", text)
    sentences: dict[str, str] = {}
    for names, sentence in zip(told[1::2], told[2::2], strict=False):
        for name in names.split(", "):
            sentences[name] = sentence.strip().rstrip(".")
    return {name: sentences.get(name, "") for name in hints}


def _known_options() -> list[str]:
    own = [f.name for f in dataclasses.fields(RunConfig) if f.name not in ("task_options", "search")]
    return [*own, *TASK_OPTIONS, *get_type_hints(EvolveConfig), *SHORT_NAMES]


def _plain_names(layer: Mapping[str, object]) -> dict[str, object]:
    """The layer with dashes as underscores and the short names written out."""
    plain: dict[str, object] = {}
    for given, value in layer.items():
        name = given.replace("-", "_")
        if name not in _known_options():
            raise ValueError(
                f"an option needs to be a setting of a run, got {given!r}.{closest(name, _known_options())}"
            )
        name = SHORT_NAMES.get(name, name)
        if name in plain:
            raise ValueError(f"an option needs to be given once, got {given!r} besides {name!r}.")
        plain[name] = value
    return plain


def _run_layer(plain: Mapping[str, object]) -> dict[str, object]:
    """A run's `config.json` as a flat layer."""
    search, settings = plain.get("config"), plain.get("settings", {})
    if not isinstance(search, Mapping) or not isinstance(settings, Mapping):
        raise ValueError("settings of a run need the tables config and settings, got something else.")
    options = settings.get("task_options", {})
    top = {name: value for name, value in settings.items() if name != "task_options"}
    tasks = plain.get("tasks", {})  # of a run that was started from Python, which says no names of factories
    named = {"tasks": list(tasks)} if isinstance(tasks, Mapping) and tasks else {}
    return {**search, **named, **top, **options, "guesses": plain.get("guesses", [])}


def _texts(value: object, name: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} needs to be a text or a list of texts, got {value!r}.")
    return tuple(texts)


def _of_kind(name: str, value: object) -> TaskValue:
    kind = TASK_OPTIONS[name][0]
    wanted = {int: "a whole number", float: "a number", str: "a name"}[kind]
    try:
        if isinstance(value, bool) or (kind is str) != isinstance(value, str) and not isinstance(value, str):
            raise ValueError
        converted: TaskValue = kind(value)
        if kind is int and not isinstance(value, str) and converted != value:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} needs {wanted}, or {wanted} for each task as in task=value, got {value!r}."
        ) from None
    return converted


def _changed(task: Task, changes: dict[str, TaskValue]) -> Task:
    from jaxprune.tasks.tasks import Schedule
    from jaxprune.training.recipes import Recipe

    plain: dict[str, object] = dict(changes)
    fraction, rounds = plain.pop("kept_fraction", None), plain.pop("rounds", None)
    epochs, base_epochs = plain.pop("epochs", None), plain.pop("base_epochs", None)
    if fraction is not None or rounds is not None:
        fraction = task.schedule.kept_fraction if fraction is None else fraction
        if fraction is None:
            raise ValueError(
                f"rounds needs kept_fraction as well for task {task.name!r}, whose schedule gives counts, got none."
            )
        plain["schedule"] = Schedule(
            kept_fraction=float(str(fraction)), rounds=int(str(rounds or task.schedule.rounds))
        )
    task = task.replace(**plain) if plain else task
    for name, value in (("recipe", epochs), ("base_recipe", base_epochs)):
        recipe = getattr(task, name)
        if value is not None and isinstance(recipe, Recipe):
            task = task.replace(**{name: recipe.replace(epochs=value)})
    return task


def _plain(value: object) -> object:
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not a text file"
