"""What `compare`, `transfer` and `calibrate` have in common: options, and how a comparison is run and written."""

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
    tasks_of,
    write_file,
    write_text,
)

if TYPE_CHECKING:
    from jaxprune.comparison.measurements import Measurement
    from jaxprune.comparison.results import Comparison
    from jaxprune.scoring.metrics import PruningFunction
    from jaxprune.tasks.tasks import Task


ALL = "all"
"""What `--metrics` calls the whole library and our own seeds."""


def functions_named(names: Sequence[str]) -> dict[str, PruningFunction]:
    """Row name -> function of names and formulas; "all" stands for the library and our own seeds.

    Raises:
      ValueError: for an unknown name or a text that is no formula.

    Example:
      >>> list(functions_named(["l1", "mean(X) + 1"]))
      ['l2', 'l1', 'mean(X) + 1']
    """
    from jaxprune.comparison.functions import named_functions
    from jaxprune.language.library import library, own_seeds

    given: list[str] = []
    for name in names:
        given += [*library, *own_seeds] if name == ALL else [name]
    return named_functions(given)


def compare_and_write(
    arguments: argparse.Namespace, functions: Mapping[str, PruningFunction], tasks: list[Task]
) -> int:
    """Compares the functions on the tasks, prints the table and writes table, measurements and rank diagram."""
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
    if has_matplotlib():
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


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is not None:
        return True
    note('no figure: matplotlib is not installed. Run pip install "jaxprune[report]" for it.')
    return False


def chosen_tasks(arguments: argparse.Namespace) -> list[Task]:
    """The tasks that the options name, with the changes that they ask for."""
    return tasks_of(arguments, arguments.task or ["digits"], SEARCH_ONLY)


def add_task_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Adds `--task`, which may be repeated."""
    from jaxprune.tasks.named_tasks import TASKS

    parser.add_argument(
        "--task",
        action="append",
        required=default is None,
        metavar="NAME",
        help=f"{', '.join(TASKS)}, or module:factory of your own; may be repeated"
        + ("" if default is None else f" (default: {default})"),
    )


def add_measuring_options(parser: argparse.ArgumentParser, *, bases: int, repeats: int = 1) -> None:
    """Adds how often each function is measured: `--bases`, `--repeats`, `--draws`."""
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


def add_out_option(parser: argparse.ArgumentParser, files: str, folder: str) -> None:
    """Adds `--out`, the folder that `files` are written to."""
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


def add_remaining_options(parser: argparse.ArgumentParser) -> None:
    """Adds the seed, the folder of base networks and the changes to tasks."""
    from jaxprune.config import TASK_OPTIONS

    add_place_options(parser)
    add_task_options(parser, [name for name in TASK_OPTIONS if name not in SEARCH_ONLY])
