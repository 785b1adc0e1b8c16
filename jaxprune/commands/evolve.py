"""`jaxprune evolve`: runs a search, and writes its report."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import time
from collections.abc import Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from jaxprune.commands.network_options import add_task_options, flag, whole_number
from jaxprune.commands.output import note
from jaxprune.commands.process_options import add_process_options, announced, with_processes
from jaxprune.config import (
    TASK_OPTIONS,
    Controls,
    RunConfig,
    read_config,
)
from jaxprune.files import RunDirectoryError
from jaxprune.search.settings import PRESETS, EvolveConfig, setting_help
from jaxprune.tasks.named_tasks import TASKS
from jaxprune.text import parse_seconds
from jaxprune.training.batching import Convolution, Strategy

if TYPE_CHECKING:
    from jaxprune.hosts.sharing import Hosts
    from jaxprune.search.problem import Problem
    from jaxprune.search.search import SearchResult
    from jaxprune.search.task_problem import TaskProblem
    from jaxprune.tasks.task_programs import TaskPrograms

_SHORT_FLAGS = {"max_evaluations": "--evaluations", "time_limit_seconds": "--time"}
"""Settings that have a shorter flag as well."""


def add_evolve(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune evolve`: those of the run and one for each setting of the search."""
    parser.epilog = (
        "A flag wins over --config, and --config over the preset; defaults are those of the preset quick.\n"
        "Ctrl-C saves everything and says how to go on; a second one stops at once."
    )
    run = parser.add_argument_group("run")
    _add_names(run)
    run.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings from a TOML file, or config.json of an earlier run",
    )
    run.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where to write (default: runs/PRESET-seedN-TIME)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on with the run in --run-dir, with its settings"
    )
    run.add_argument(
        "--guess",
        dest="guesses",
        action="append",
        default=argparse.SUPPRESS,
        metavar="FORMULA",
        help="a formula of yours that joins generation 0; may be repeated",
    )
    run.add_argument(
        "--controls",
        choices=get_args(Controls),
        default=argparse.SUPPRESS,
        help="rows of the final comparison; full adds every known function and an oracle (default: standard)",
    )
    _add_batching(run)
    run.add_argument(
        "--yes", action="store_true", help="start also a run that is estimated to take more than a week"
    )
    run.add_argument("--no-report", action="store_true", help="skip the final comparison and report")
    run.add_argument("--quiet", action="store_true", help="show no table")
    add_task_options(parser)
    _add_search_options(parser)
    add_process_options(parser)


def _add_batching(run: argparse._ArgumentGroup) -> None:
    """Adds how networks share a compiled program."""
    run.add_argument(
        "--batching",
        choices=get_args(Strategy),
        default=argparse.SUPPRESS,
        help="how networks share a compiled program (default: auto, by backend and network)",
    )
    run.add_argument(
        "--chunk",
        type=whole_number,
        default=argparse.SUPPRESS,
        metavar="N",
        help="networks on each device with --batching vmap (default: with --batching auto on an accelerator the best, "
        "which is measured when the run starts, else 16)",
    )
    run.add_argument(
        "--convolution",
        choices=get_args(Convolution),
        default=argparse.SUPPRESS,
        help="the library's convolution, or patches and one matrix product (default: auto, as for --chunk)",
    )


def run_evolve(arguments: argparse.Namespace) -> int:
    """Evolves pruning functions, then writes the report.

    Raises:
      ImportError: if the report needs matplotlib and it is missing, before anything is trained.
      ValueError: for settings that do not fit, or processes that differ.
      SearchInterrupted: if a signal stopped the search or the report.
    """
    return with_processes(arguments, partial(_evolve, arguments))


def _evolve(arguments: argparse.Namespace, hosts: Hosts | None) -> int:
    """Does what `run_evolve` says, on process 0 or alone; other processes only work for it."""
    from jaxprune.interrupts import SearchInterrupted
    from jaxprune.report.live_table import LiveTable
    from jaxprune.search.run_files import log_event
    from jaxprune.search.search import evolve_problem, make_problem

    if not arguments.no_report and util.find_spec("matplotlib") is None:
        raise ImportError(
            "the report needs matplotlib, got none installed. "
            'Run pip install "jaxprune[report]", or skip the report with --no-report.'
        )
    config = evolve_config(arguments)
    run_dir = arguments.run_dir or default_run_dir(config)
    if hosts is not None:
        run_dir = _agreed(hosts, config, arguments, run_dir)
    resume = _how_to_resume(run_dir, arguments.data_dir)
    tasks = config.make_tasks(arguments.data_dir)
    unseen = [] if arguments.no_report else _unseen(config, arguments.data_dir)
    make = partial(
        make_problem, tasks, config.search, run_dir, hosts=hosts,
        strategy=config.batching, chunk=config.chunk, convolution=config.convolution,
    )  # fmt: skip
    if hosts is not None and not hosts.is_leader:
        _work(hosts, make(), unseen)

    def on_lost(message: str) -> None:
        with contextlib.suppress(OSError, RunDirectoryError):
            run_dir.mkdir(parents=True, exist_ok=True)
            log_event(run_dir, "output lost", message)

    with LiveTable(on_lost=on_lost) as table:
        callbacks = [_Messages()] if arguments.quiet else [table]
        try:
            table.on_message(f"Run directory: {run_dir}")
            problem = make(callbacks=callbacks)
            if not (arguments.resume and (run_dir / "config.json").exists()):
                _announce_cost(problem, unseen, config, arguments, callbacks)
            result = evolve_problem(
                problem,
                config.search,
                run_dir,
                callbacks=callbacks,
                resume=arguments.resume,
                guesses=config.guesses,
                settings=config.settings(),
            )
        except SearchInterrupted as stop:
            raise SearchInterrupted(f"{stop}\n{resume}", stop.signal_number) from stop
        table.on_message(f"Best function: {result.best}")
        if arguments.no_report:
            return 0
        path = _reported(problem, result, unseen, config, callbacks, resume)
    table.on_message(f"Report: {path}")
    return 0


def _agreed(hosts: Hosts, config: RunConfig, arguments: argparse.Namespace, run_dir: Path) -> Path:
    """Compares the settings of all processes; returns the run directory, which all of them see."""
    from jaxprune.hosts.agreement import check_one_folder, facts_of

    has_report = {"report": str(not arguments.no_report), "resume": str(arguments.resume)}
    hosts.agree("settings", facts_of(config.to_json()) | has_report)
    chosen = hosts.exchange("run directory", {"path": str(run_dir)})[0]["path"]  # its name may hold the time
    run_dir = arguments.run_dir or Path(chosen)
    check_one_folder(hosts, run_dir)
    return run_dir


def _work(hosts: Hosts, problem: TaskProblem, unseen: Sequence[TaskPrograms]) -> NoReturn:
    """Works for process 0 until everything is done, the report too."""
    from jaxprune.comparison.final_comparison import machines_of

    for programs in machines_of(problem, [programs.task for programs in unseen]).values():
        problem.final_pool(programs, lambda task, base: None)
    with announced(hosts):
        hosts.serve()


def _unseen(config: RunConfig, data_dir: Path | None) -> list[TaskPrograms]:
    """Makes the tasks that are only reported on, and says before anything is trained what is wrong with one."""
    from jaxprune.tasks.task_programs import TaskPrograms

    return [TaskPrograms(task) for task in config.make_unseen(data_dir)]


def _how_to_resume(run_dir: Path, data_dir: Path | None) -> str:
    """Says how to go on with a run that was stopped. Where images lie is not stored in it."""
    data = "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"Go on with: jaxprune evolve --run-dir {shlex.quote(str(run_dir))}{data} --resume"


def _announce_cost(
    problem: Problem,
    unseen: Sequence[TaskPrograms],
    config: RunConfig,
    arguments: argparse.Namespace,
    callbacks: Sequence[object],
) -> None:
    """Shows what the run will cost; refuses one of more than a week unless it is confirmed."""
    from jaxprune.comparison.cost_estimate import estimate_cost, refusal
    from jaxprune.search.callbacks import notify
    from jaxprune.search.task_problem import TaskProblem

    if not isinstance(problem, TaskProblem):
        return
    estimate = estimate_cost(
        problem.programs,
        config.search,
        num_guesses=len(config.guesses),
        unseen=unseen,
        has_report=not arguments.no_report,
        controls=config.controls,
    )
    notify(callbacks, "on_message", str(estimate))
    if (reason := refusal(estimate)) and not arguments.yes:
        raise ValueError(reason)


def _reported(
    problem: TaskProblem,
    result: SearchResult,
    unseen: Sequence[TaskPrograms],
    config: RunConfig,
    callbacks: Sequence[object],
    resume: str,
) -> Path:
    """Writes the report of a search; returns its path. `resume` says how to go on if a signal stops it."""
    from jaxprune.interrupts import Interrupts, SearchInterrupted
    from jaxprune.report.writing import write_report

    interrupts = Interrupts()
    try:
        with interrupts, interrupts.at_once():
            return write_report(
                result.journal.parent,
                problem,
                result,
                unseen=[programs.task for programs in unseen],
                controls=config.controls,
                callbacks=callbacks,
            )
    except KeyboardInterrupt as stop:
        # the random search of full controls stops by a SearchInterrupted of its own
        number = stop.signal_number if isinstance(stop, SearchInterrupted) else interrupts.received
        message = f"stopped in the final comparison. {resume}"
        raise SearchInterrupted(message, number or signal.SIGINT) from stop


class _Messages:
    """Shows the messages of a run, and nothing of its progress, on the standard error."""

    def on_message(self, message: str) -> None:
        """Prints a message as a line."""
        note(message)


def evolve_config(arguments: argparse.Namespace) -> RunConfig:
    """Returns the settings of a run: flags win over the file or the resumed run, and these over the preset.

    Args:
      arguments: the command line.

    Raises:
      ValueError: for unknown or wrong settings, or `--resume` without a run directory.
    """
    names = {*RunConfig.__dataclass_fields__, *get_type_hints(EvolveConfig), *TASK_OPTIONS}
    layers = [{name: value for name, value in vars(arguments).items() if name in names}]
    if arguments.resume and arguments.run_dir is None:
        raise ValueError(
            "--resume needs the directory of the run to go on with, got none. Add --run-dir DIR."
        )
    if arguments.config is not None:
        layers.append(read_config(arguments.config))
    elif arguments.resume and (arguments.run_dir / "config.json").exists():
        layers.append(read_config(arguments.run_dir))
    return RunConfig.of(*layers)


def default_run_dir(config: RunConfig) -> Path:
    """Returns a new directory below `runs`, named by preset (or by tasks that differ from its own), seed and time."""
    is_preset = config.tasks == PRESETS[config.preset].tasks
    name = config.preset if is_preset else "-".join(task.replace(":", ".") for task in config.tasks)
    return Path("runs") / f"{name}-seed{config.search.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _add_names(run: argparse._ArgumentGroup) -> None:
    """Adds the options that name the preset and the tasks."""
    quick = PRESETS["quick"]
    run.add_argument(
        "--preset",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"{' or '.join(PRESETS)} (default: quick: {quick.about})",
    )
    run.add_argument(
        "--task",
        dest="tasks",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"{', '.join(TASKS)}, or module:factory of your own; may be repeated (default: {', '.join(quick.tasks)})",
    )
    run.add_argument(
        "--unseen",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="a task that is not searched on, for the report; may be repeated, and none is for none "
        f"(default: those of {', '.join(quick.unseen)} that are not searched on)",
    )


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    """Adds one option for each setting of a search."""
    group, sentences = parser.add_argument_group("search"), setting_help()
    for name, hint in get_type_hints(EvolveConfig).items():
        default = getattr(PRESETS["quick"].config, name)
        shown = f"{default:.3g}" if isinstance(default, float) else "no limit" if default is None else default
        group.add_argument(
            *([_SHORT_FLAGS[name]] if name in _SHORT_FLAGS else []),
            flag(name),
            dest=name,
            default=argparse.SUPPRESS,
            help=(sentences[name] + ("" if hint is bool else f" (default: {shown})")).replace("%", "%%"),
            **_reading(name, hint),
        )


def _reading(name: str, hint: object) -> dict[str, Any]:
    """Returns how argparse reads a setting of the search."""
    kinds = get_args(hint) or (hint,)
    if all(isinstance(kind, str) for kind in kinds):
        return {"choices": kinds}
    if hint is bool:
        return {"action": "store_true"}
    if name == "time_limit_seconds":
        return {"type": _duration, "metavar": "TIME"}
    if type(None) in kinds:
        return {"type": _count_or_none, "metavar": "N"}
    return {"type": hint, "metavar": "N" if hint is int else "X"}


def _duration(text: str) -> float | None:
    """Reads a time for argparse."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count_or_none(text: str) -> int | None:
    """Reads a count, or no limit, for argparse."""
    try:
        return None if text == "none" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'needs a whole number, or "none", got {text!r}') from error
