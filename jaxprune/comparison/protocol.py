"""The fair comparison of pruning functions: equal kept counts, equal fine-tuning, several base networks, controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import jax.numpy as jnp
import numpy as np

from jaxprune.comparison.functions import named_functions
from jaxprune.comparison.measurements import Kind, Measurement, Refused, TaskFacts
from jaxprune.comparison.results import Comparison
from jaxprune.language.expression import Expression
from jaxprune.scoring.lookup import Function
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.search.task_problem import kept_digest
from jaxprune.tasks.base_networks import Base, BasePool, Entry, Pool
from jaxprune.tasks.task_programs import TaskPrograms
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
    programs: Mapping[str, TaskPrograms] | None = None,
) -> Comparison:
    """Prunes and fine-tunes with every function on the same base networks, under the same keys.

    Rows for l2 (the reference of every difference), for random plans and for the slim network from scratch are
    there always, unless switched off. Functions that make one plan on a base are fine-tuned there once.

    Args:
      functions: names of the library, own seeds and metrics, formulas, expressions, metrics, functions from the
        `Operands` of one layer to [C] scores, or a mapping from row names to these.
      tasks: one or more, with different names.
      bases: number of base networks, >= 1; or task name -> number.
      seed: base networks, data orders and random plans follow from it.
      draws: number of random plans per base; 0 for no such row.
      repeats: number of fine-tunings per function and base, each with its own data order, >= 1.
      evaluations: number of points of the accuracy curves, >= 1.
      with_scratch: whether there is a row for the slim network trained from a fresh initialisation.
      pool: "final" bases, which no search has seen, or the "search" bases.
      folder: where trained bases are kept; None trains them anew.
      test_records: a run directory: there the test images are opened once (`test-NAME.json` records it) and every
        fine-tuned network is measured on them. None leaves them closed.
      reopen_test: whether an existing record of that is added to rather than refused.
      on_row: told about each measurement.
      on_base: told (task name, base) about each base that is ready.
      programs: task name -> compiled machinery to use instead of compiling it anew.

    Returns:
      The measurements; `.summary()`, `.to_markdown()` and `.to_csv()` show them.

    Raises:
      ValueError: for unknown functions, numbers out of range, or tasks that share a name.
      AlreadyOpenedError: if the test images were opened before under `test_records`.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> from jaxprune.training.recipes import RECIPES
      >>> rng = np.random.default_rng(0)
      >>> x, y = rng.normal(size=(40, 8, 8, 1)), np.arange(40) % 4
      >>> make = lambda rngs: PlainConvNet(rngs, widths=(4, 4, 8), num_classes=4)
      >>> recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=20)
      >>> task = Task("mine", model=make, train=(x, y), validation=(x, y), recipe=recipe, base_recipe=recipe)
      >>> found = compare(["l1"], task, bases=2, draws=1)
      >>> sorted(found.names("mine"))
      ['l1', 'l2', 'random', 'scratch']
    """
    given = [tasks] if isinstance(tasks, Task) else list(tasks)
    check_unique(given)
    rows = named_functions(functions)
    _check_counts(draws=(draws, 0), repeats=(repeats, 1), evaluations=(evaluations, 1))
    counts = {task.name: _bases_of(task, bases) for task in given}
    measurements: list[Measurement] = []
    refused: list[Refused] = []
    facts: list[TaskFacts] = []
    for task in given:
        machinery = (programs or {}).get(task.name) or TaskPrograms(task)
        base_pool = BasePool(
            machinery,
            seed,
            pool,
            counts[task.name],
            folder=folder,
            on_base=on_base or (lambda name, base: None),
        )
        jobs, invalid = planned_jobs(base_pool, rows, draws=draws, repeats=repeats, with_scratch=with_scratch)
        test = None
        if test_records is not None and task.test is not None:
            # The bases are trained by now, so a crash while training leaves the test images closed.
            records = FilePath(test_records)
            records.mkdir(parents=True, exist_ok=True)
            images, labels = task.test.open(records / f"test-{task.name}.json", reopen=reopen_test)
            test = Examples(jnp.asarray(images), jnp.asarray(labels))
        measurements += measure_jobs(base_pool, jobs, evaluations=evaluations, test=test, on_row=on_row)
        refused += invalid
        facts.append(task_facts(base_pool))
    return Comparison(tuple(measurements), tuple(facts), tuple(refused), complexities(rows), seed)


def complexities(rows: Mapping[str, PruningFunction]) -> dict[str, int]:
    """Row name -> complexity, of those rows that are formulas.

    Example:
      >>> complexities(named_functions(["l1", "fpgm"]))
      {'l2': 4, 'l1': 3}
    """
    return {name: f.complexity for name, f in rows.items() if isinstance(f, Expression)}


@dataclass(frozen=True)
class Planned:
    """A network to fine-tune for a row, before it is known which rows share it."""

    name: str
    kind: Kind
    formula: str
    entry: Entry
    kept: Kept | None
    """The first round's plan; None from scratch."""


def planned_jobs(
    pool: BasePool,
    rows: Mapping[str, PruningFunction],
    *,
    draws: int,
    repeats: int,
    with_scratch: bool,
) -> tuple[list[Planned], list[Refused]]:
    """What there is to fine-tune on a pool, row by row, and the functions that are invalid there."""
    jobs: list[Planned] = []
    refused: list[Refused] = []
    places = [(base, repeat) for base in range(pool.num_bases) for repeat in range(repeats)]
    plans = pool.plans(list(rows.values()))
    for (name, function), by_base in zip(rows.items(), plans, strict=True):
        invalid = [
            f"base {base}: {plan.reason}" for base, plan in enumerate(by_base) if isinstance(plan, Invalid)
        ]
        if invalid:
            refused.append(Refused(pool.task.name, name, name_of(function), invalid[0]))
            continue
        kept = [plan.kept for plan in by_base if not isinstance(plan, Invalid)]
        jobs += [
            Planned(name, "metric", name_of(function), Entry(base, repeat, function, kept[base]), kept[base])
            for base, repeat in places
        ]
    for draw in range(draws):
        jobs += [
            Planned("random", "random", "", Entry(base, repeat, draw=draw), pool.random_kept(base, draw))
            for base, repeat in places
        ]
    if with_scratch:
        jobs += [Planned("scratch", "scratch", "", Entry(base, repeat), None) for base, repeat in places]
    return jobs, refused


def measure_jobs(
    pool: BasePool,
    jobs: Sequence[Planned],
    *,
    evaluations: int = 1,
    test: Examples | None = None,
    on_row: OnRow | None = None,
) -> list[Measurement]:
    """Fine-tunes every job, those of one plan together, and returns the measurements in the order of the jobs."""
    shared: dict[tuple[object, ...], list[int]] = {}
    for number, job in enumerate(jobs):
        shared.setdefault(_identity(pool, job), []).append(number)
    found: dict[int, Measurement] = {}
    entries = [jobs[numbers[0]].entry for numbers in shared.values()]
    for numbers, trained in zip(
        shared.values(), pool.finetune(entries, evaluations=evaluations), strict=True
    ):
        tested = None if test is None else pool.programs.accuracy(trained.weights, test)
        curve = tuple(float(accuracy) for accuracy in trained.accuracies)
        for number in numbers:
            job = jobs[number]
            found[number] = Measurement(
                task=pool.task.name,
                name=job.name,
                kind=job.kind,
                formula=job.formula,
                base=job.entry.base,
                draw=job.entry.draw or 0,
                repeat=job.entry.repeat,
                validation=curve[-1],
                test=tested,
                curve=curve,
                seconds=trained.seconds,
                digest="" if job.kept is None else kept_digest(job.kept),
            )
            if on_row is not None:
                on_row(found[number])
    return [found[number] for number in range(len(jobs))]


def task_facts(pool: BasePool) -> TaskFacts:
    """What all rows measured on a pool have in common."""
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
    """What several functions make of one group of channels on one base, for figures.

    Args:
      group: the group's name.
      width: number of its channels.
      count: number of channels that the first round keeps.
      kept: row name -> sorted indices of the kept channels; random plans are "random 1", "random 2", ...
      scores: function name -> its scores of all channels, [width], highest first: the cut is after `count`.
        Only their order and shape mean something: units differ between functions.
    """

    group: str
    width: int
    count: int
    kept: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, tuple[float, ...]]


def layer_views(
    pool: BasePool, functions: Mapping[str, PruningFunction], draws: int = 0, *, base: int = 0
) -> list[LayerView]:
    """Per group, what each function keeps in the first round on one base, and its scores in order.

    Args:
      pool: the bases.
      functions: row name -> function; those that are invalid on the base are left out.
      draws: number of random plans to add.
      base: which base.

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
    at = pool.programs.rounds[0]
    return [
        LayerView(
            group=group,
            width=width,
            count=at.counts[group],
            kept={name: groups[group] for name, groups in kept.items()},
            scores={name: _falling(groups[group]) for name, groups in scores.items()},
        )
        for group, width in at.structure.widths.items()
        if group in at.counts
    ]


def _falling(scores: np.ndarray) -> tuple[float, ...]:
    return tuple(np.sort(np.asarray(scores, np.float64))[::-1].tolist())


def _identity(pool: BasePool, job: Planned) -> tuple[object, ...]:
    """Equal for jobs that are one fine-tuning: one plan, or with several rounds one function or draw as well."""
    later = (job.entry.function, job.entry.draw) if len(pool.programs.rounds) > 1 else ()
    return (job.entry.base, job.entry.repeat, job.kept, *later)


def _bases_of(task: Task, bases: int | Mapping[str, int]) -> int:
    if isinstance(bases, Mapping) and task.name not in bases:
        raise ValueError(f"bases needs a number for task {task.name!r}, got numbers for {', '.join(bases)}.")
    count = bases[task.name] if isinstance(bases, Mapping) else bases
    _check_counts(bases=(count, 1))
    return count


def _check_counts(**numbers: tuple[int, int]) -> None:
    """Raises where a number is below what it has to be at least."""
    bad = [f"{name} >= {low} (got {value})" for name, (value, low) in numbers.items() if value < low]
    if bad:
        raise ValueError(f"a comparison needs {', '.join(bad)}.")
