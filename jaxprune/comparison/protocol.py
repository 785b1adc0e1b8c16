"""The fair comparison of pruning functions: equal kept counts, equal fine-tuning, several base networks, controls.

Example:
  >>> from jaxprune.nets import PlainConvNet
  >>> from jaxprune.training.recipes import RECIPES
  >>> rng = np.random.default_rng(0)
  >>> x, y = rng.normal(size=(40, 8, 8, 1)), np.arange(40) % 4
  >>> make = lambda rngs: PlainConvNet(rngs, widths=(4, 4, 8), num_classes=4)
  >>> recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=20)
  >>> task = Task("mine", model=make, train=(x, y), validation=(x, y), recipe=recipe, base_recipe=recipe)
  >>> comparison = compare(["l1"], task, bases=2, draws=1)
  >>> sorted(comparison.names("mine"))
  ['l1', 'l2', 'random', 'scratch']
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np

from jaxprune.comparison.functions import named_functions
from jaxprune.comparison.measurements import Kind, Measurement, Refused, TaskFacts
from jaxprune.comparison.results import Comparison
from jaxprune.comparison.training_checks import check_one_process
from jaxprune.language.expression import Expression
from jaxprune.scoring.lookup import Function
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.search.task_problem import kept_digest
from jaxprune.tasks.base_networks import Base, BasePool, Entry, Pool
from jaxprune.tasks.task_programs import TaskPrograms, examples_of
from jaxprune.tasks.tasks import Task, check_unique
from jaxprune.training.loop import Examples
from jaxprune.types import Invalid, Kept

OnRow = Callable[[Measurement], None]


def compare(
    functions: Sequence[Function] | Mapping[str, Function],
    tasks: Task | Sequence[Task],
    bases: int | Mapping[str, int] = 8,
    *,
    seed: int = 0,
    draws: int = 3,
    repeats: int = 1,
    evaluations: int = 1,
    with_scratch: bool = True,
    pool: Pool = "final",
    folder: str | os.PathLike[str] | None = None,
    test_records: str | os.PathLike[str] | None = None,
    reopen_test: bool = False,
    on_row: OnRow | None = None,
    on_base: Callable[[str, Base], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    programs: Mapping[str, TaskPrograms] | None = None,
) -> Comparison:
    """Prunes and fine-tunes with every function on the same base networks, under the same keys.

    Functions that make the same plan on a base are fine-tuned there once. l2 is always compared too.

    Args:
      functions: names, formulas, expressions, metrics, functions from the `Operands` of one layer to [C] scores, or a
        mapping from row names to these.
      tasks: one or more, with different names.
      bases: number of base networks, >= 1; or task name -> number.
      seed: determines base networks, data orders and random plans.
      draws: number of random plans per base; 0 for no such row.
      repeats: number of fine-tunings per function and base, each with its own data order, >= 1.
      evaluations: number of points of the accuracy curves, >= 1.
      with_scratch: whether there is a row for the slim network trained from a fresh initialisation.
      pool: "final" bases, which no search has seen, or the "search" bases.
      folder: where trained bases are stored; None trains them anew.
      test_records: a run directory, in which `test-NAME.json` records that the test images were opened to measure every
        fine-tuned network on them. None leaves them closed.
      reopen_test: whether test images that were opened before may be opened again.
      on_row: called with each measurement.
      on_base: called with (task name, base) for each base that is ready.
      on_message: called with a sentence about each stored base that is damaged; by default a warning.
      programs: task name -> compiled machinery to use instead of compiling it anew.

    Returns:
      The measurements; `.summary()`, `.to_markdown()` and `.to_csv()` show them.

    Raises:
      ValueError: for unknown functions, numbers out of range, tasks that share a name, or several processes.
      AlreadyOpenedError: if the test images were opened before under `test_records`.
    """
    check_one_process("a comparison")
    given = [tasks] if isinstance(tasks, Task) else list(tasks)
    check_unique(given)
    rows = named_functions(functions)
    check_counts("a comparison", draws=(draws, 0), repeats=(repeats, 1), evaluations=(evaluations, 1))
    counts = {task.name: _num_bases(task, bases) for task in given}
    # Every task is checked before anything is trained on the first.
    machines = {task.name: (programs or {}).get(task.name) or TaskPrograms(task) for task in given}
    _check_evaluations(machines.values(), evaluations)
    pools = [
        BasePool(
            machines[task.name],
            seed,
            pool,
            counts[task.name],
            folder=folder,
            on_base=on_base or (lambda name, base: None),
            on_message=on_message,
        )
        for task in given
    ]
    return compare_on(
        pools,
        rows,
        draws=draws,
        repeats=repeats,
        evaluations=evaluations,
        with_scratch=with_scratch,
        test_records=test_records,
        reopen_test=reopen_test,
        on_row=on_row,
    )


def compare_on(
    pools: Sequence[BasePool],
    rows: Mapping[str, PruningFunction],
    *,
    draws: int = 3,
    repeats: int = 1,
    evaluations: int = 1,
    with_scratch: bool = True,
    test_records: str | os.PathLike[str] | None = None,
    reopen_test: bool = False,
    on_row: OnRow | None = None,
) -> Comparison:
    """Compares functions as `compare` does, on the base networks of pools.

    Args:
      pools: one of each task, all of one seed.
      rows: row name -> function, l2 among them.
      draws, repeats, evaluations, with_scratch, test_records, reopen_test, on_row: as for `compare`.

    Returns:
      The measurements.

    Raises:
      AlreadyOpenedError: as `compare`.
    """
    measurements: list[Measurement] = []
    refused: list[Refused] = []
    facts: list[TaskFacts] = []
    for pool in pools:
        entries, invalid = row_entries(pool, rows, draws=draws, repeats=repeats, with_scratch=with_scratch)
        # The bases are trained by now, so a crash while training leaves the test images closed.
        test = None if test_records is None else _open_test(pool.task, FilePath(test_records), reopen_test)
        measurements += measure(pool, entries, evaluations=evaluations, test=test, on_row=on_row)
        refused += invalid
        facts.append(task_facts(pool))
    return Comparison(tuple(measurements), tuple(facts), tuple(refused), complexities(rows), pools[0].seed)


def complexities(rows: Mapping[str, PruningFunction]) -> dict[str, int]:
    """Returns row name -> complexity, of the rows that are formulas.

    Example:
      >>> complexities(named_functions(["l1", "fpgm"]))
      {'l2': 4, 'l1': 3}
    """
    return {name: f.complexity for name, f in rows.items() if isinstance(f, Expression)}


@dataclass(frozen=True)
class RowEntry:
    """A network to fine-tune for a row. Rows with the same plan share the fine-tuning."""

    name: str
    kind: Kind
    formula: str
    entry: Entry
    kept: Kept | None
    """The first round's plan; None for "scratch"."""


def row_entries(
    pool: BasePool,
    rows: Mapping[str, PruningFunction],
    *,
    draws: int,
    repeats: int,
    with_scratch: bool,
) -> tuple[list[RowEntry], list[Refused]]:
    """Lists the networks to fine-tune on a pool, row by row.

    Args:
      pool: the bases.
      rows: row name -> function.
      draws: number of random plans per base.
      repeats: number of fine-tunings per function and base.
      with_scratch: whether there is a row for training from scratch.

    Returns:
      The networks to fine-tune, and the functions that are invalid on a base.
    """
    entries: list[RowEntry] = []
    refused: list[Refused] = []
    conditions = [(base, repeat) for base in range(pool.num_bases) for repeat in range(repeats)]
    for (name, function), by_base in zip(rows.items(), pool.plans(list(rows.values())), strict=True):
        formula = name_of(function)
        kept = [plan.kept for plan in by_base if not isinstance(plan, Invalid)]
        invalid = [
            f"base {base}: {plan.reason}" for base, plan in enumerate(by_base) if isinstance(plan, Invalid)
        ]
        if invalid:
            refused.append(Refused(pool.task.name, name, formula, invalid[0]))
            continue
        entries += [
            RowEntry(name, "metric", formula, Entry(base, repeat, function, kept[base]), kept[base])
            for base, repeat in conditions
        ]
    for draw in range(draws):
        entries += [
            RowEntry("random", "random", "", Entry(base, repeat, draw=draw), pool.random_kept(base, draw))
            for base, repeat in conditions
        ]
    if with_scratch:
        entries += [
            RowEntry("scratch", "scratch", "", Entry(base, repeat), None) for base, repeat in conditions
        ]
    return entries, refused


def measure(
    pool: BasePool,
    entries: Sequence[RowEntry],
    *,
    evaluations: int = 1,
    test: Examples | None = None,
    on_row: OnRow | None = None,
) -> list[Measurement]:
    """Fine-tunes all networks, those with the same plan once.

    Args:
      pool: the bases.
      entries: the networks to fine-tune.
      evaluations: number of points of the accuracy curves.
      test: test images to measure every network on.
      on_row: called with each measurement.

    Returns:
      One measurement per entry, in order.
    """
    shared: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(entries):
        # With several rounds, a first plan is shared only by the same function or draw, which make the later plans.
        later = (row.entry.function, row.entry.draw) if len(pool.programs.rounds) > 1 else ()
        shared.setdefault((row.entry.base, row.entry.repeat, row.kept, *later), []).append(index)
    measurements: dict[int, Measurement] = {}
    to_train = [entries[indices[0]].entry for indices in shared.values()]
    results = pool.finetune(to_train, evaluations=evaluations, with_weights=test is not None)
    for indices, trained in zip(shared.values(), results, strict=True):
        on_test = None if test is None else pool.programs.accuracy(trained.weights, test)
        curve = tuple(float(accuracy) for accuracy in trained.accuracies)
        for index in indices:
            row = entries[index]
            measurements[index] = Measurement(
                task=pool.task.name,
                name=row.name,
                kind=row.kind,
                formula=row.formula,
                base=row.entry.base,
                draw=row.entry.draw or 0,
                repeat=row.entry.repeat,
                validation=curve[-1],
                test=on_test,
                curve=curve,
                seconds=trained.seconds,
                digest="" if row.kept is None else kept_digest(row.kept),
            )
            if on_row is not None:
                on_row(measurements[index])
    return [measurements[index] for index in range(len(entries))]


def task_facts(pool: BasePool) -> TaskFacts:
    """Returns what all rows measured on a pool have in common."""
    programs = pool.programs
    return TaskFacts(
        name=pool.task.name,
        pool=pool.pool,
        widths=dict(programs.structure.widths),
        kept=dict(programs.rounds[-1].counts),
        base_accuracies=tuple(base.accuracy for base in pool.bases),
        fingerprint=programs.fingerprint,
    )


@dataclass(frozen=True)
class LayerView:
    """What several functions keep of one group of channels on one base, for figures.

    Args:
      group: the group's name.
      width: number of its channels.
      count: number of channels that the first round keeps.
      kept: row name -> sorted indices of the kept channels; random plans are "random 1", "random 2", ...
      scores: function name -> its scores of all channels, [width], highest first: the cut is after `count`. Only their
        order and shape can be compared, because units differ between functions.
    """

    group: str
    width: int
    count: int
    kept: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, tuple[float, ...]]


def layer_views(
    pool: BasePool, functions: Mapping[str, PruningFunction], draws: int = 0, *, base: int = 0
) -> list[LayerView]:
    """Collects per group what each function keeps in the first round on one base, and its sorted scores.

    Args:
      pool: the bases.
      functions: row name -> function; those that are invalid on the base are left out.
      draws: number of random plans to add.
      base: index of the base.

    Returns:
      One view per group, in program order.
    """
    kept: dict[str, dict[str, tuple[int, ...]]] = {}
    scores: dict[str, Mapping[str, np.ndarray]] = {}
    for name, by_base in zip(functions, pool.plans(list(functions.values())), strict=True):
        plan = by_base[base]
        if not isinstance(plan, Invalid):
            kept[name], scores[name] = dict(plan.kept), plan.ranking.scores
    for draw in range(draws):
        kept[f"random {draw + 1}"] = dict(pool.random_kept(base, draw))
    first_round = pool.programs.rounds[0]
    return [
        LayerView(
            group=group,
            width=width,
            count=first_round.counts[group],
            kept={name: groups[group] for name, groups in kept.items()},
            scores={
                name: tuple(np.sort(np.asarray(groups[group], np.float64))[::-1].tolist())
                for name, groups in scores.items()
            },
        )
        for group, width in first_round.structure.widths.items()
        if group in first_round.counts
    ]


def check_counts(caller: str, **numbers: tuple[int, int]) -> None:
    """Checks that numbers are not too small.

    Args:
      caller: what needs them, for the message.
      numbers: name -> the number, and the smallest that is allowed.

    Raises:
      ValueError: if any is too small; the message names all of them.
    """
    wrong = [f"{name} >= {low} (got {number})" for name, (number, low) in numbers.items() if number < low]
    if wrong:
        raise ValueError(f"{caller} needs {', '.join(wrong)}.")


def _check_evaluations(machines: Iterable[TaskPrograms], evaluations: int) -> None:
    """Checks that every fine-tuning has as many steps as its curve is to have points."""
    for machinery in machines:
        steps = machinery.num_steps
        if evaluations > steps:
            raise ValueError(
                f"a comparison needs evaluations from 1 to the {steps} steps of a fine-tuning on task "
                f"{machinery.task.name!r}, got {evaluations}."
            )


def _num_bases(task: Task, bases: int | Mapping[str, int]) -> int:
    if isinstance(bases, Mapping) and task.name not in bases:
        raise ValueError(f"bases needs a number for task {task.name!r}, got numbers for {', '.join(bases)}.")
    count = bases[task.name] if isinstance(bases, Mapping) else bases
    check_counts("a comparison", bases=(count, 1))
    return count


def _open_test(task: Task, folder: FilePath, reopen: bool) -> Examples | None:
    """Opens the task's test images, if it has any, and records it in the folder."""
    if task.test is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return examples_of(task, task.test.open(folder / f"test-{task.name}.json", reopen=reopen))
