"""The settings of a run: from flags, a TOML file, an earlier run's `config.json` and a preset, the first one wins.

`RunConfig` is plain data; its content is written to `config.json`, which can be read again as a file of settings.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args, get_type_hints

from jaxprune.search.settings import EvolveConfig, Preset, find_preset
from jaxprune.text import closest, parse_seconds
from jaxprune.training.batching import Batching, Convolution, Strategy

if TYPE_CHECKING:
    from jaxprune.tasks.named_tasks import DataDir
    from jaxprune.tasks.tasks import Task

Controls = Literal["standard", "full"]
TaskValue = int | float | str

TASK_OPTIONS: Mapping[str, tuple[type, str]] = {
    "bases": (int, "trained networks per task that the search uses"),
    "extra_bases": (int, "further ones, for the leading candidates only, with --fitness finetune"),
    "final_bases": (int, "networks trained after the search, for the report"),
    "weight": (float, "weight of a task in the fitness"),
    "scale": (
        float,
        "share of the images and epochs that is used, above 0 and at most 1, to rehearse what takes days; --epochs and "
        "--base-epochs count after it, and --generations and --population are not scaled",
    ),
    "kept_fraction": (float, "share of each group's channels left at the end"),
    "rounds": (int, "rounds of pruning and fine-tuning, with --kept-fraction"),
    "recipe": (str, "name of the fine-tuning recipe"),
    "base_recipe": (str, "name of the recipe that trains base networks"),
    "epochs": (int, "epochs of fine-tuning"),
    "base_epochs": (int, "epochs of training a base network"),
    "compensate": (
        bool,
        "whether kept channels take over what least squares predicts of the removed ones (yes or no)",
    ),
    "finetune": (str, "slim (physically smaller networks) or masked (full shapes held at zero)"),
}
"""Settings of tasks that a run can change: name -> (type, help). A value may hold for all tasks or be given by task."""

OF_SEARCHES = ("bases", "extra_bases", "weight")
"""Those of `TASK_OPTIONS` that only a search reads."""

SHORT_NAMES: Mapping[str, str] = {
    "task": "tasks",
    "guess": "guesses",
    "evaluations": "max_evaluations",
    "time": "time_limit_seconds",
}
"""Short names that files and flags may use -> names of settings."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run of `jaxprune evolve`, as plain data.

    Args:
      preset: name of the preset that gives all settings not made otherwise.
      tasks: names of tasks or `module:factory`; empty for the preset's tasks.
      unseen: names of tasks that are not searched on, for the report: how far the winner carries.
      task_options: option of `TASK_OPTIONS` -> a value for all tasks, or task name -> value.
      search: settings of the search.
      guesses: formulas that join generation 0.
      controls: rows of the final comparison: "standard", or "full" with every known function and an oracle.
      batching: how members of one program are batched; "auto" chooses by backend and network.
      chunk: members on each device with batching "vmap"; None for the best, which is measured on an accelerator.
      convolution: "library", "patches" (matrix products), or "auto" for what suits backend and batching.

    Raises:
      ValueError: for an unknown preset, option or choice, or a value of the wrong type; names the closest match.

    Example:
      >>> config = RunConfig.of({"preset": "quick", "population": 8, "time": "20m"})
      >>> config.search.population, config.search.time_limit_seconds, config.search.generations
      (8, 1200.0, 25)
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
    batching: Strategy = "auto"
    unseen: tuple[str, ...] = ()
    chunk: int | None = None
    convolution: Convolution = "auto"

    def __post_init__(self) -> None:
        closed = {"controls": Controls, "batching": Strategy, "convolution": Convolution}
        for name, choices in ((name, get_args(kind)) for name, kind in closed.items()):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} needs to be one of {', '.join(choices)}, got {getattr(self, name)!r}."
                )
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise ValueError(f"chunk needs to be a whole number, 1 or more, got {self.chunk!r}.")
        Batching(self.batching, self.chunk, self.convolution).checked()

    @staticmethod
    def of(*layers: Mapping[str, object]) -> RunConfig:
        """Merges layers of settings; where several name an option the first wins, the preset gives all others.

        Args:
          layers: each option name -> value, as flags or a TOML file give them: fields of `EvolveConfig` and of
            `TASK_OPTIONS`, `preset`, `task` or `tasks`, `unseen` ("none" for none), `guess` or `guesses`, `controls`,
            `batching`, `chunk`, `convolution`, `time` ("20m"), `evaluations`. A preset's unseen tasks are those that
            are not searched on.

        Raises:
          ValueError: as the class says.
        """
        given: dict[str, object] = {}
        for layer in layers:
            given = {**_with_full_names(layer), **given}
        preset_name, tasks = str(given.pop("preset", "quick")), _texts(given.pop("tasks", ()), "tasks")
        preset = find_preset(preset_name, tasks=tasks)
        guesses = _texts(given.pop("guesses", ()), "guesses")
        own_options = {name: given.pop(name) for name in TASK_OPTIONS if name in given}
        options = task_options({**preset.task_options, **own_options})
        unseen = _unseen(given.pop("unseen", None), preset)
        controls = cast(Controls, given.pop("controls", "standard"))
        batching = cast(Strategy, given.pop("batching", "auto"))
        chunk = cast(int | None, given.pop("chunk", None))
        convolution = cast(Convolution, given.pop("convolution", "auto"))
        if "time_limit_seconds" in given:
            given["time_limit_seconds"] = parse_seconds(given["time_limit_seconds"])
        try:
            search = preset.config.replace(**given)
        except TypeError as error:
            raise ValueError(str(error)) from error
        names = preset_name, preset.tasks
        return RunConfig(*names, options, search, guesses, controls, batching, unseen, chunk, convolution)

    def settings(self) -> dict[str, object]:
        """Returns the settings in `config.json` other than guesses and the settings of the search."""
        return {
            "preset": self.preset,
            "tasks": list(self.tasks),
            "task_options": {
                name: dict(value) if isinstance(value, Mapping) else value
                for name, value in self.task_options.items()
            },
            "controls": self.controls,
            "batching": self.batching,
            # Runs of earlier versions have none of these.
            **({"unseen": list(self.unseen)} if self.unseen else {}),
            **({} if self.chunk is None else {"chunk": self.chunk}),
            **({} if self.convolution == "auto" else {"convolution": self.convolution}),
        }

    def to_json(self) -> str:
        """Returns the settings in the form of a run's `config.json`."""
        settings = self.settings()
        document = {"config": self.search.to_json(), "guesses": list(self.guesses), "settings": settings}
        return json.dumps(document, indent=2)

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Reads the settings that `to_json`, or a run, wrote."""
        return RunConfig.of(_flat_layer(json.loads(text)))

    def make_tasks(self, data_dir: DataDir = None) -> list[Task]:
        """Makes the tasks, with the changes in `task_options`.

        Args:
          data_dir: where prepared sets are. It belongs to the machine and not to the run, so no setting names it.

        Raises:
          ValueError: for an unknown task, images that are not prepared, or changes that do not fit.
        """
        made = make_tasks(self.tasks, self.task_options, unseen=self.unseen, data_dir=data_dir)
        return made[: len(self.tasks)]

    def make_unseen(self, data_dir: DataDir = None) -> list[Task]:
        """Makes the tasks for the report alone, with the changes in `task_options`.

        Args:
          data_dir: where prepared sets are.

        Raises:
          ValueError: as `make_tasks`.
        """
        if not self.unseen:
            return []
        made = make_tasks(self.tasks, self.task_options, unseen=self.unseen, data_dir=data_dir)
        return made[len(self.tasks) :]


def make_tasks(
    names: Iterable[str],
    options: Mapping[str, TaskValue | Mapping[str, TaskValue]] | None = None,
    *,
    unseen: Iterable[str] = (),
    data_dir: DataDir = None,
) -> list[Task]:
    """Makes tasks by name, with some of `TASK_OPTIONS` changed.

    Modules of `module:factory` are looked up on the Python path and in the working directory.

    Args:
      names: names of tasks, or `module:factory`.
      options: option -> a value for all tasks, or task name -> value.
      unseen: names of tasks that are only reported on. What `OF_SEARCHES` names holds there only if given by task.
      data_dir: where prepared sets are, by default `$TFDS_DATA_DIR` or TensorFlow Datasets' own folder.

    Returns:
      The tasks, in the order of the names, then the unseen ones.

    Raises:
      ValueError: for an unknown task, two of one name, images that are not prepared, or changes that do not fit.

    Example:
      >>> [task.bases for task in make_tasks(["digits", "fashion"], {"bases": {"digits": 3}})]
      [3, 6]
    """
    from jaxprune.nets.factories import look_in_working_directory
    from jaxprune.tasks.named_tasks import find_task
    from jaxprune.tasks.tasks import check_unique

    searched, options = list(names), options or {}
    names = [*searched, *unseen]
    if any(":" in name for name in names):
        look_in_working_directory()
    tasks = [find_task(name, data_dir) for name in names]
    check_unique(tasks)
    known = {*names, *(task.name for task in tasks)}
    for option, value in options.items():
        unknown = [name for name in value if name not in known] if isinstance(value, Mapping) else []
        if unknown:
            raise ValueError(
                f"{option} needs names of this run's tasks ({', '.join(names)}), got {', '.join(unknown)}."
                f"{closest(unknown[0], known)}"
            )
    changed_tasks = []
    for number, (name, task) in enumerate(zip(names, tasks, strict=True)):
        changes = {
            option: _value_of(option, value, name, task.name) if isinstance(value, Mapping) else value
            for option, value in options.items()
            if number < len(searched) or option not in OF_SEARCHES or isinstance(value, Mapping)
        }
        changed_tasks.append(_changed(task, {name: v for name, v in changes.items() if v is not None}))
    return changed_tasks


def _value_of(option: str, values: Mapping[str, TaskValue], name: str, task: str) -> TaskValue | None:
    """Returns the value for a task, under the name on the command line or its own, if there is one."""
    if name != task and {name, task} <= values.keys():
        raise ValueError(f"{option} needs each task once, got it as {name} and as {task}.")
    return values.get(name, values.get(task))


def task_options(given: Mapping[str, object]) -> dict[str, TaskValue | Mapping[str, TaskValue]]:
    """Reads and checks values of some `TASK_OPTIONS`.

    Args:
      given: option -> one value, task name -> value, or the text `task=value,task=value`.

    Returns:
      Option -> a value of the option's type for all tasks, or task name -> value.

    Raises:
      ValueError: for a value of the wrong type.

    Example:
      >>> task_options({"bases": "digits=3,fashion=2", "weight": 2})
      {'bases': {'digits': 3, 'fashion': 2}, 'weight': 2.0}
    """
    options: dict[str, TaskValue | Mapping[str, TaskValue]] = {}
    for name, value in given.items():
        if isinstance(value, str) and "=" in value:
            pairs = [part.strip().rpartition("=")[::2] for part in value.split(",")]
            value = dict(pairs)
            if len(value) < len(pairs):
                raise ValueError(f"{name} needs each task once, got {', '.join(task for task, _ in pairs)}.")
        if isinstance(value, Mapping):
            options[name] = {str(task): _task_value(name, task_value) for task, task_value in value.items()}
        else:
            options[name] = _task_value(name, value)
    return options


def read_config(path: str | Path) -> dict[str, object]:
    """Reads a layer of settings for `RunConfig.of`.

    Args:
      path: a TOML file, the `config.json` of a run, or the run's folder.

    Returns:
      Option name -> value.

    Raises:
      ValueError: if there is no such file, or it cannot be read as TOML or as the settings of a run.
      RunDirectoryError: if the run is of a newer format.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not a text file"
        raise ValueError(
            f"--config needs a TOML file, or config.json of a run, got {path}: {reason}."
        ) from error
    is_json = path.suffix == ".json"
    try:
        data = json.loads(text) if is_json else tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} needs settings by name, got brackets that are nested too deep.") from error
    except ValueError as error:
        raise ValueError(
            f"{path} needs to be {'JSON' if is_json else 'TOML'}, got an error at {error}."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} needs settings by name, got a {type(data).__name__}.")
    if is_json and "format" in data:
        from jaxprune.search.run_files import REMEDIES, checked_content

        # Otherwise a setting of a newer version would be reported as unknown.
        data = checked_content(data, path, REMEDIES["config.json"])
    return _flat_layer(data) if is_json and "config" in data else data


def _with_full_names(layer: Mapping[str, object]) -> dict[str, object]:
    """Checks option names, and writes them with underscores and in full."""
    known = [f.name for f in dataclasses.fields(RunConfig) if f.name not in ("task_options", "search")]
    known += [*TASK_OPTIONS, *get_type_hints(EvolveConfig), *SHORT_NAMES]
    full: dict[str, object] = {}
    for given, value in layer.items():
        name = given.replace("-", "_")
        if name not in known:
            raise ValueError(
                f"an option needs to be a setting of a run, got {given!r}.{closest(name, known)}"
            )
        name = SHORT_NAMES.get(name, name)
        if name in full:
            raise ValueError(f"Give {name!r} only once, got it again as {given!r}.")
        full[name] = value
    return full


def _flat_layer(document: Mapping[str, object]) -> dict[str, object]:
    """Turns a run's `config.json` into one layer of settings."""
    search, settings = document.get("config"), document.get("settings", {})
    if not isinstance(search, Mapping) or not isinstance(settings, Mapping):
        raise ValueError("settings of a run need the tables config and settings, got something else.")
    layer = {**search, "guesses": document.get("guesses", [])}
    tasks = document.get(
        "tasks", {}
    )  # a run started from Python has its tasks here, and no names of factories
    if isinstance(tasks, Mapping) and tasks:
        layer["tasks"] = list(tasks)
    layer |= {"unseen": "none", **settings}
    options = layer.pop("task_options", {})
    if not isinstance(options, Mapping):
        raise ValueError(f"task_options of a run need options by name, got {options!r}.")
    return {**layer, **options}


def _texts(value: object, name: str) -> tuple[str, ...]:
    """Checks that a value is a text or a list of texts."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} needs to be a text or a list of texts, got {value!r}.")
    return tuple(texts)


def _unseen(given: object, preset: Preset) -> tuple[str, ...]:
    """Returns the tasks to report on: those given, or those of the preset that are not searched on."""
    if given is None:
        return tuple(name for name in preset.unseen if name not in preset.tasks)
    names = _texts(given, "unseen")
    searched = [name for name in names if name in preset.tasks]
    if searched:
        raise ValueError(
            f"unseen needs tasks that are not searched on, got {', '.join(searched)}. Leave them out, or say "
            '"none" (--unseen none).'
        )
    return () if names == ("none",) else names


def _task_value(name: str, value: object) -> TaskValue:
    """Converts a value to the type of an option in `TASK_OPTIONS`."""
    kind = TASK_OPTIONS[name][0]
    try:
        if kind is bool:
            return {"yes": True, "no": False, True: True, False: False}[value]
        if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
            raise ValueError
        if kind is int and abs(float(value)) >= 2**31:  # type: ignore[arg-type]
            raise OverflowError
        converted: TaskValue = kind(value)
        if kind is int and not isinstance(value, str) and converted != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError, KeyError):
        words = {int: "a whole number below 2**31", float: "a number", str: "a name", bool: "yes or no"}
        wanted = words[kind]
        raise ValueError(
            f"{name} needs {wanted}, or one for each task as in task=value, got {value!r}."
        ) from None
    return converted


def _changed(task: Task, changes: Mapping[str, TaskValue]) -> Task:
    """A task with some `TASK_OPTIONS` changed."""
    from jaxprune.tasks.tasks import Schedule
    from jaxprune.training.recipes import Recipe

    of_parts = ("scale", "kept_fraction", "rounds", "epochs", "base_epochs", "compensate")
    fields: dict[str, object] = {name: value for name, value in changes.items() if name not in of_parts}
    if "kept_fraction" in changes or "rounds" in changes:
        fraction = changes.get("kept_fraction", task.schedule.kept_fraction)
        if fraction is None:
            raise ValueError(
                f"Give kept_fraction as well as rounds for task {task.name!r}, whose schedule gives counts."
            )
        rounds = int(changes.get("rounds", task.schedule.rounds))
        fields["schedule"] = Schedule(float(fraction), rounds, scoring=task.schedule.scoring)
    task = task.replace(**fields) if fields else task
    task = task.scaled(float(changes["scale"])) if "scale" in changes else task
    for name, option in (("recipe", "epochs"), ("base_recipe", "base_epochs")):
        recipe = getattr(task, name)
        if option in changes and isinstance(recipe, Recipe):
            task = task.replace(**{name: recipe.replace(epochs=changes[option])})
    if "compensate" in changes and isinstance(task.recipe, Recipe):
        task = task.replace(recipe=task.recipe.replace(compensate=changes["compensate"]))
    return task
