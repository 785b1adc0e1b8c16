"""`jaxprune compare`, `calibrate` and `transfer`: functions on equal networks, as tables and figures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.common import (
    SEARCH_ONLY,
    add_place_options,
    add_task_options,
    note,
    on_base,
    say,
    split_formulas,
    tasks_of,
    write_file,
    write_text,
)
from jaxprune.language.expression import Expression

if TYPE_CHECKING:
    from jaxprune.comparison.measurements import Measurement
    from jaxprune.comparison.results import Comparison
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.tasks.tasks import Task

ALL = "all"
"""What `--metrics` calls the whole library and our own seeds."""


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune compare`."""
    _add_task(parser, "digits")
    parser.add_argument(
        "--metrics",
        default=ALL,
        metavar="NAMES",
        help="names and formulas separated by commas, l1,l2,\"mean(X)\" for instance; all is the library and our own "
        "seeds (default: all). l2, random plans and training from scratch always have a row",
    )  # fmt: skip
    _add_measuring(parser, bases=8)
    _add_out(parser, "comparison.csv, comparison.md and ranks.png", "runs/compare")
    _add_rest(parser)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compares, prints the table, and writes table, measurements and rank diagram."""
    names = split_formulas(arguments.metrics)
    if not names:
        raise ValueError(
            f"--metrics needs names or formulas separated by commas, got {arguments.metrics!r}. "
            "Try --metrics l1,l2,random."
        )
    return _compare(arguments, functions_named(names), _tasks(arguments))


def add_transfer(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune transfer`."""
    parser.epilog = (
        "Tasks are the packaged ones and your own (module:factory). Transfer to ImageNet and other sets of TensorFlow "
        "Datasets\nis not in this version."
    )
    frozen = parser.add_mutually_exclusive_group(required=True)
    frozen.add_argument("--formula", metavar="FORMULA", help="the frozen formula, or the name of one")
    frozen.add_argument(
        "--from-run", type=Path, metavar="RUN_DIR", help="a run, whose winner is the frozen formula"
    )
    _add_task(parser, None)
    parser.add_argument(
        "--against",
        default="l1,l2",
        metavar="NAMES",
        help="names and formulas to compare with, separated by commas (default: l1,l2)",
    )
    _add_measuring(parser, bases=8)
    _add_out(parser, "comparison.csv, comparison.md and ranks.png", "runs/transfer")
    _add_rest(parser)


def run_transfer(arguments: argparse.Namespace) -> int:
    """Compares a frozen formula with others on tasks that it was not evolved on."""
    from jaxprune.comparison.functions import find_function
    from jaxprune.scoring.metrics import name_of

    formula: PruningFunction
    if arguments.from_run is not None:
        formula, tasks = winner_of(arguments.from_run)
        again = [name for name in arguments.task if name in tasks]
        if again:
            note(f"note: the formula was evolved on {', '.join(again)}: there this is no transfer.")
    else:
        formula = find_function(arguments.formula)
    note(f"frozen formula: {name_of(formula)}")
    functions = {**functions_named(split_formulas(arguments.against)), "frozen": formula}
    return _compare(arguments, functions, _tasks(arguments))


def winner_of(run_dir: Path) -> tuple[Expression, tuple[str, ...]]:
    """The winner of a run, and the names of the tasks it was evolved on.

    Raises:
      RunDirectoryError: if there is no complete generation, or the state is damaged or of a newer format.
    """
    from typing import cast

    from jaxprune.search.problem import Problem
    from jaxprune.search.run_directory import load_run

    state = load_run(run_dir, cast(Problem, None))  # a state that is only read asks its problem nothing
    return state.ranked()[0].expression, tuple(task.name for task in state.tasks)


def functions_named(names: Sequence[str]) -> dict[str, PruningFunction]:
    """Row name -> function of names and formulas; "all" stands for the library and our own seeds.

    Raises:
      ValueError: for an unknown name or a text that is no formula.

    Example:
      >>> list(functions_named(["l1", "mean(X) + 1"]))
      ['l2', 'l1', 'mean(X) + 1']
    """
    from jaxprune.comparison.functions import known_functions, named_functions

    given: list[str] = []
    for name in names:
        given += known_functions() if name == ALL else [name]
    return named_functions(given)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune calibrate`."""
    _add_task(parser, "digits")
    _add_measuring(parser, bases=3, repeats=2)
    parser.add_argument(
        "--oracle",
        type=int,
        default=200,
        metavar="N",
        help="fine-tunings per base network for the hill-climbed oracle plan, 0 for none (default: 200)",
    )
    _add_out(parser, "calibration-TASK.json, .md and .png", "runs/calibrate")
    _add_rest(parser)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Calibrates each task, prints the tables, and writes tables, measurements and figures."""
    from jaxprune.comparison.calibration import calibrate, task_rank_correlations

    tasks, found = _tasks(arguments), []
    for task in tasks:
        calibration = calibrate(
            task,
            bases=arguments.bases,
            repeats=arguments.repeats,
            draws=arguments.draws,
            oracle_evaluations=arguments.oracle,
            seed=arguments.seed,
            folder=arguments.bases_dir,
            on_message=note,
            on_base=on_base,
        )
        found.append(calibration)
        say(calibration.to_markdown())
        stem = arguments.out / f"calibration-{task.name}"
        write_text(stem.with_suffix(".json"), calibration.to_json() + "\n")
        write_text(stem.with_suffix(".md"), calibration.to_markdown() + "\n")
        if _has_matplotlib():
            from jaxprune.figures.comparison_figures import calibration_figure
            from jaxprune.figures.style import save_figure

            write_file(stem.with_suffix(".png"), partial(save_figure, calibration_figure(calibration)))
    for (first, second), correlation in task_rank_correlations(found).items():
        say(f"Rank correlation of functions between {first} and {second}: {correlation:.2f}")
    return 0


def _compare(
    arguments: argparse.Namespace, functions: Mapping[str, PruningFunction], tasks: list[Task]
) -> int:
    from jaxprune.comparison.protocol import compare

    found = compare(
        functions,
        tasks,
        arguments.bases,
        seed=arguments.seed,
        draws=arguments.draws,
        repeats=arguments.repeats,
        with_scratch=not arguments.no_scratch,
        pool=arguments.pool,
        folder=arguments.bases_dir,
        on_row=_Progress(),
        on_base=on_base,
    )
    say(found.to_markdown())
    _write_comparison(found, arguments.out)
    return 0


def _write_comparison(found: Comparison, folder: Path) -> None:
    write_text(folder / "comparison.csv", found.to_csv())
    write_text(folder / "comparison.md", found.to_markdown() + "\n")
    if _has_matplotlib():
        from jaxprune.figures.comparison_figures import ranks_figure
        from jaxprune.figures.style import save_figure

        write_file(folder / "ranks.png", partial(save_figure, ranks_figure(found)))


class _Progress:
    """Counts measurements on the standard error, now and then."""

    def __init__(self, every: int = 25) -> None:
        self.count, self.every = 0, every

    def __call__(self, row: Measurement) -> None:
        self.count += 1
        if self.count % self.every == 0:
            note(f"{self.count} measurements, the last {row.name} on {row.task}: {row.validation:.1f} %")


def _has_matplotlib() -> bool:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is not None:
        return True
    note('no figure: matplotlib is not installed. Run pip install "jaxprune[report]" for it.')
    return False


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    return tasks_of(arguments, arguments.task or ["digits"], SEARCH_ONLY)


def _add_task(parser: argparse.ArgumentParser, default: str | None) -> None:
    from jaxprune.tasks.named_tasks import TASKS

    parser.add_argument(
        "--task",
        action="append",
        required=default is None,
        metavar="NAME",
        help=f"{', '.join(TASKS)}, or module:factory of your own; may be repeated"
        + ("" if default is None else f" (default: {default})"),
    )


def _add_measuring(parser: argparse.ArgumentParser, *, bases: int, repeats: int = 1) -> None:
    parser.add_argument(
        "--bases", type=int, default=bases, metavar="N", help=f"base networks per task (default: {bases})"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=repeats,
        metavar="N",
        help=f"fine-tunings per function and base (default: {repeats})",
    )
    parser.add_argument(
        "--draws", type=int, default=3, metavar="N", help="random plans per base (default: 3)"
    )


def _add_out(parser: argparse.ArgumentParser, files: str, folder: str) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        metavar="DIR",
        help=f"folder for {files} (default: {folder})",
    )
    if "comparison" in files:
        parser.add_argument(
            "--no-scratch", action="store_true", help="no row for the slim network trained from scratch"
        )
        parser.add_argument(
            "--pool",
            choices=("final", "search"),
            default="final",
            help="base networks that no search has seen, or those that searches see (default: final)",
        )


def _add_rest(parser: argparse.ArgumentParser) -> None:
    from jaxprune.config import TASK_OPTIONS

    add_place_options(parser)
    add_task_options(parser, [name for name in TASK_OPTIONS if name not in SEARCH_ONLY])
