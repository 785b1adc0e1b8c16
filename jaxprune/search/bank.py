"""The bank of a task: fine-tuned plans of every base network, from which a landscape of channels is fitted.

Plans are those of known functions, with some channels exchanged, and random ones. Each follows from task, seed, pool,
base and number alone, so that a search with more plans or bases has those of a smaller one. Each result is a line of a
file beside the base networks, on the disk before the next one is waited for: an interrupted search goes on from there,
and searches with the same folder share it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxprune.files import CHECK, append_whole, checksum, explained, parse_json, repair_lines, to_text
from jaxprune.keys import derive, generator
from jaxprune.scoring.lookup import find_function
from jaxprune.search.landscape import Bank
from jaxprune.search.problem import as_bits, pack_kept, unpack_kept
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.round_plans import FirstRoundPlan
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.types import Kept

REFERENCES = (
    "l1",
    "l2",
    "geometric_median",
    "abs_snr",
    "fdr",
    "t_stat",
    "sym_div",
    "evolved_eq3",
    "inspired_1",
    "mean_shift",
    "mean_shift_outgoing",
    "spread_outgoing",
    "norm_in_out",
    "taylor",
    "fisher",
)
"""Known functions, unlike one another, from whose plans those of the bank are drawn."""

RANDOM_SHARE = 0.25
"""Probability that a group keeps channels that are drawn uniformly at random."""

EXCHANGED = (0.0, 0.15, 0.4)
"""Probabilities, one of which is drawn, that a channel which a known function keeps is exchanged."""


def draw_plan(
    rng: np.random.Generator,
    references: Sequence[Mapping[str, Sequence[int]]],
    widths: Mapping[str, int],
    counts: Mapping[str, int],
) -> Kept:
    """Draws which channels to keep, for each group on its own.

    Args:
      rng: where randomness comes from.
      references: the plans of known functions, group name -> kept channels, at least one.
      widths: group name -> C.
      counts: group name -> number of kept channels.

    Returns:
      The plan of a random known function with some channels exchanged, or (see `RANDOM_SHARE`) random channels.

    Example:
      >>> draw_plan(np.random.default_rng(0), [{"conv": (0, 1)}], {"conv": 2}, {"conv": 2})
      (('conv', (0, 1)),)
    """
    kept = []
    for group, count in counts.items():
        channels = np.arange(widths[group])
        if rng.random() < RANDOM_SHARE:
            chosen = rng.permutation(channels)[:count]
        else:
            reference = references[int(rng.integers(len(references)))][group]
            pruned = rng.permutation(np.setdiff1d(channels, reference))
            num_exchanged = min(rng.binomial(count, EXCHANGED[rng.integers(len(EXCHANGED))]), len(pruned))
            chosen = np.concatenate([rng.permutation(reference)[num_exchanged:], pruned[:num_exchanged]])
        kept.append((group, tuple(np.sort(chosen).tolist())))
    return tuple(kept)


def measure_bank(
    pool: BasePool, num_plans: int, *, on_plan: Callable[[int, int], None] = lambda done, total: None
) -> Bank:
    """Fine-tunes the plans of the bank that are not recorded in the folder of the base networks, and records them.

    A line of the file that is damaged, or of another task, seed or version, is moved to another file, told by
    `pool.on_message` and measured again. The recorded plan counts, even if another machine would draw another.

    Args:
      pool: the base networks.
      num_plans: number of plans per base.
      on_plan: called with (number of plans measured so far, number of all plans) after each.

    Returns:
      The plans of all base networks, and their accuracies.

    Raises:
      ValueError: if the task has several rounds of pruning, or no known function can rank the channels of a base.
      RunDirectoryError: if the file cannot be read or written; everything measured before is kept.
    """
    check_bank_fits(pool.programs)
    counts = pool.programs.rounds[0].counts
    widths = {group: pool.programs.rounds[0].structure.widths[group] for group in counts}
    file = None if pool.folder is None else _BankFile(pool, pool.folder)
    results: dict[_Number, _Result] = {}
    for result in [] if file is None else file.read():
        results.setdefault((result.base, result.number), result)
    numbers = [(base, number) for base in range(pool.num_bases) for number in range(num_plans)]
    missing = [number for number in numbers if number not in results]
    known = {(result.base, result.kept): result.accuracy for result in results.values()}
    for done, result in enumerate(
        _measured(pool, missing, known, widths), start=len(numbers) - len(missing) + 1
    ):
        if file is not None:
            file.append(result)
        results[result.base, result.number] = result
        on_plan(done, len(numbers))
    plans = [np.concatenate(unpack_kept(results[number].kept, list(widths.values()))) for number in numbers]
    accuracies = np.array([results[number].accuracy for number in numbers])
    shape = (pool.num_bases, num_plans)
    return Bank(widths, counts, np.reshape(plans, (*shape, -1)), accuracies.reshape(shape))


def check_bank_fits(programs: TaskPrograms) -> None:
    """Refuses a task of which a bank cannot be measured, before anything is trained.

    Args:
      programs: the task's machinery.

    Raises:
      ValueError: if the task has several rounds of pruning, or scores groups one after another.
    """
    name, num_rounds = programs.task.name, len(programs.rounds)
    advice = 'Use fitness="finetune" (--fitness finetune) to search, and plans=0 (--plans 0) to calibrate.'
    if programs.task.schedule.scoring == "sequential":
        raise ValueError(
            f'a bank of plans is for tasks with scoring "joint", got "sequential" of task {name!r}, where a group\'s '
            f"scores depend on what earlier groups lost, so that a plan has no scores of its own. {advice}"
        )
    if num_rounds > 1:
        raise ValueError(
            f"a bank of plans is for tasks of one round of pruning, got {num_rounds} of task {name!r}, where a plan of "
            f"the first round does not determine the result. {advice}"
        )


def reference_scores(pool: BasePool) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the scores of the known functions, from which features of channels are made.

    Args:
      pool: the base networks.

    Returns:
      Group name -> [F, B, C] in the order of `REFERENCES`; NaN where a function is invalid on a base.
    """
    first_round = pool.programs.rounds[0]
    scores = {
        group: np.full((len(REFERENCES), pool.num_bases, first_round.structure.widths[group]), np.nan)
        for group in first_round.counts
    }
    for row, plans in enumerate(pool.plans([find_function(name) for name in REFERENCES])):
        for base, plan in enumerate(plans):
            if isinstance(plan, FirstRoundPlan):
                for group, table in scores.items():
                    table[row, base] = plan.ranking.scores[group]
    return scores


_Number = tuple[int, int]
"""(base, number of the plan)."""


class _Result(NamedTuple):
    """One fine-tuned plan, as a line of the file holds it."""

    base: int
    number: int
    kept: str
    """The kept channels of all groups, as `pack_kept` packs them."""
    accuracy: float
    seconds: float
    """How long the fine-tuning took; 0 for a plan that equals an earlier one."""


def _measured(
    pool: BasePool, missing: Sequence[_Number], known: dict[tuple[int, str], float], widths: Mapping[str, int]
) -> Iterator[_Result]:
    """Yields the results of plans in their order, as soon as each is known; equal plans are fine-tuned once.

    Args:
      pool: the base networks.
      missing: the plans to measure.
      known: (base, packed plan) -> accuracy; what is measured is added.
      widths: group name -> C.
    """
    drawn = _draw(pool, missing, widths) if missing else {}
    packed = {number: pack_kept([as_bits(kept, widths)]) for number, kept in drawn.items()}
    entries = {(number[0], packed[number]): Entry(number[0], kept=kept) for number, kept in drawn.items()}
    trained = pool.finetune([entry for plan, entry in entries.items() if plan not in known])
    for base, number in missing:
        plan = (base, packed[base, number])
        seconds = 0.0
        if plan not in known:
            result = next(trained)
            known[plan], seconds = float(result.accuracies[-1]), result.seconds
        yield _Result(base, number, plan[1], known[plan], seconds)


def _draw(pool: BasePool, missing: Sequence[_Number], widths: Mapping[str, int]) -> dict[_Number, Kept]:
    """Draws the plans of these numbers; the known functions that are invalid on a base are left out there."""
    counts = pool.programs.rounds[0].counts
    by_function = pool.plans([find_function(name) for name in REFERENCES])
    references = [
        [dict(plan.kept) for plan in plans if isinstance(plan, FirstRoundPlan)]
        for plans in zip(*by_function, strict=True)
    ]
    for base, plans in enumerate(references):
        if not plans:
            raise ValueError(
                f"the bank needs a known function that can rank the channels of task {pool.task.name!r}, base {base}, "
                f"got none: l2 is {by_function[REFERENCES.index('l2')][base]}. Did its training diverge?"
            )
    return {
        (base, number): draw_plan(
            generator(derive(pool.key, "bank", base, number)), references[base], widths, counts
        )
        for base, number in missing
    }


class _BankFile:
    """The file of a bank: lines in any order, also of several processes, each with a checksum that says whose it is."""

    def __init__(self, pool: BasePool, folder: Path) -> None:
        self._path = folder / f"bank-{pool.pool}.jsonl"
        task = f"{pool.task.name}-{pool.programs.fingerprint}"
        self._identity = f"bank of {pool.pool} bases of task {task}, seed {pool.seed}"
        self._on_message = pool.on_message

    def read(self) -> list[_Result]:
        """Returns the results in the file, after moving other lines out of it."""
        beside = self._path.with_suffix(".damaged.jsonl")
        results, num_damaged = repair_lines(self._path, partial(_result_in, identity=self._identity), beside)
        if num_damaged:
            self._on_message(
                f"{self._path} had {num_damaged} line(s) that are damaged, cut short by an interruption, or of another "
                f"task or seed; they are now in {beside.name}, and their plans are fine-tuned again"
            )
        return results

    def append(self, result: _Result) -> None:
        """Appends a result and waits until it is on the disk."""
        content = result._asdict()
        line = to_text({CHECK: checksum(content, self._identity), **content}).encode() + b"\n"
        with explained(f"open {self._path}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened each time, because another process may have replaced the file by a repaired one.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            append_whole(descriptor, line, self._path)
        finally:
            os.close(descriptor)


def _result_in(line: bytes, identity: str) -> _Result | None:
    """Returns the result in a line; None if the line is damaged or of another bank."""
    try:
        plain = parse_json(line)
        if not isinstance(plain, dict) or plain.pop(CHECK, None) != checksum(plain, identity):
            return None
    except ValueError:
        return None
    return _Result(**plain)
