"""How well a landscape, the default fitness of `evolve`, predicts what fine-tuning measures of known functions.

The bases of a calibration are divided into two halves, at random and several times. A landscape of one half predicts
the functions' accuracies, and fine-tuning measures them on the other half, and the other way round. So what a search
selects by is compared with networks that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.comparison.variance import rank_correlation
from jaxprune.search.bank import check_bank_fits, measure_bank, reference_scores
from jaxprune.search.generations import BLIND
from jaxprune.search.landscape import (
    Bank,
    Booleans,
    Floats,
    channel_features,
    fit_landscape,
    held_out_correlation,
)
from jaxprune.search.problem import as_bits
from jaxprune.search.settings import MIN_PLANS
from jaxprune.tasks.base_networks import BasePool
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.types import Kept

LOW_RANK_CORRELATION = 0.8
"""Below this rank correlation with fine-tuning on other bases, a search on the landscape selects too much luck."""

MIN_BASES = 4
"""Bases, at least, to be divided into halves."""

MIN_FUNCTIONS = 4
"""Functions with different plans, at least, of which there is a best quarter."""

NUM_DIVISIONS = 10
"""How often the bases are divided; from one division of 8 bases to another, correlations differ by about 0.05."""


@dataclass(frozen=True)
class HalvesAgreement:
    """How what is known from one half of the bases agrees with fine-tuning on the other.

    Correlations and optimism are means over several divisions and both directions.

    Args:
      rank_correlation: Spearman's correlation, over functions, of the accuracies that a landscape of one half predicts
        and those that fine-tuning measures on the other half.
      finetuned_rank_correlation: the same if every function is fine-tuned on the one half, once per base.
      optimism: how much more, in points, the landscape promises of the quarter of functions that it predicts to be best
        than fine-tuning measures of them on the other half; both relative to the mean of all functions. With few plans
        it is negative, because penalties draw all predictions together. The known functions, from whose plans those of
        the bank are drawn, are among these functions; formulas that a search selects out of thousands promise more.
      function_sd: standard deviation of the functions' measured means over all bases, in points.
    """

    rank_correlation: float
    finetuned_rank_correlation: float
    optimism: float
    function_sd: float

    @property
    def optimism_sd(self) -> float | None:
        """The optimism in standard deviations of functions, the unit of a search's fitness; None if they are equal."""
        return self.optimism / self.function_sd if self.function_sd > 0 else None


@dataclass(frozen=True)
class LandscapeQuality:
    """How well a landscape predicts plans, and functions on other bases.

    Args:
      plans: number of fine-tuned plans per base.
      bases: number of bases.
      functions: number of functions with different plans.
      held_out_correlation: correlation of predicted and measured accuracies of plans held out, see
        `search/landscape.py`.
      halves: how the halves of the bases agree; None with too few bases or functions.
    """

    plans: int
    bases: int
    functions: int
    held_out_correlation: float
    halves: HalvesAgreement | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust a search on the landscape; empty if there are none."""
        advice = f"Use more bases (here {self.bases}), more plans (here {self.plans}) or a harsher schedule."
        warnings = []
        if not self.held_out_correlation >= BLIND:
            warnings.append(
                f"the landscape predicts plans it was not fitted to with a correlation of "
                f"{self.held_out_correlation:.2f}, below {BLIND}: it can hardly tell plans apart, and evolve refuses "
                f"such a task. {advice}"
            )
        halves = self.halves
        if halves is not None and halves.rank_correlation < LOW_RANK_CORRELATION:
            warnings.append(
                "the landscape of half of the bases ranks functions on the other half with a correlation of "
                f"{halves.rank_correlation:.2f}, below {LOW_RANK_CORRELATION} (fine-tuning every function: "
                f"{halves.finetuned_rank_correlation:.2f}): a search would select much luck. {advice}"
            )
        return tuple(warnings)

    @property
    def rows(self) -> list[list[str]]:
        """What was measured, for a table: name and value of each number."""
        rows = [
            [
                f"landscape of {self.plans} plans a base: correlation over plans held out",
                f"{self.held_out_correlation:.2f}",
            ]
        ]
        if self.halves is None:
            needed = f"needs {MIN_BASES} bases and {MIN_FUNCTIONS} functions with different plans"
            return [*rows, ["landscape and fine-tuning", f"{needed}, got {self.bases} and {self.functions}"]]
        halves, in_sd = self.halves, self.halves.optimism_sd
        half = f"on half of the {self.bases} bases"
        optimism = f"{halves.optimism:+z.1f} points" + (
            "" if in_sd is None else f", {in_sd:+z.2f} SD of functions"
        )
        return [
            *rows,
            [
                f"rank correlation: landscape {half}, fine-tuning on the others",
                f"{halves.rank_correlation:.2f}",
            ],
            [
                f"rank correlation: fine-tuning {half}, fine-tuning on the others",
                f"{halves.finetuned_rank_correlation:.2f}",
            ],
            ["optimism of the landscape about its best quarter", optimism],
        ]

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> LandscapeQuality:
        """Reads what `dataclasses.asdict` made of one.

        Raises:
          TypeError: for other fields.
        """
        halves = plain.get("halves")
        agreement = HalvesAgreement(**halves) if isinstance(halves, dict) else None
        return cls(**{**plain, "halves": agreement})  # type: ignore[arg-type]


def check_plans(programs: TaskPrograms, plans: int) -> None:
    """Checks that a landscape of a task can be measured, before anything is trained.

    Args:
      programs: the task's machinery.
      plans: number of plans per base; 0 for no landscape.

    Raises:
      ValueError: for too few plans, or as `check_bank_fits`.
    """
    if not plans:
        return
    if plans < MIN_PLANS:
        raise ValueError(
            f"calibrate needs plans >= {MIN_PLANS} to fit a landscape, or 0 to leave it out, got {plans}."
        )
    check_bank_fits(programs)


def measure_landscape_quality(
    pool: BasePool,
    plans: int,
    kept: Sequence[Sequence[Kept]],
    measured: Floats,
    on_plan: Callable[[int, int], None] = lambda done, total: None,
) -> LandscapeQuality:
    """Measures how well a landscape predicts, after fine-tuning what is missing in the bank of plans.

    Args:
      pool: B base networks; their folder has the bank.
      plans: number of plans per base, >= `MIN_PLANS`.
      kept: what F functions keep on each base.
      measured: [F, B, repeats] accuracies of these plans in percent.
      on_plan: called with (number of plans measured so far, number of all plans) after each.

    Returns:
      What was found.

    Raises:
      ValueError: as `check_plans`.
      RunDirectoryError: if the bank cannot be read or written.
    """
    check_plans(pool.programs, plans)
    bank = measure_bank(pool, plans, on_plan=on_plan)
    is_kept = np.array([[as_bits(plan, bank.widths) for plan in by_base] for by_base in kept])
    return landscape_quality(bank, channel_features(reference_scores(pool)), is_kept, measured)


def landscape_quality(
    bank: Bank, features: Mapping[str, Floats], is_kept: Booleans, measured: Floats
) -> LandscapeQuality:
    """Computes how well a landscape predicts.

    Args:
      bank: the fine-tuned plans of B bases.
      features: group name -> [B, C, features], see `channel_features`.
      is_kept: [F, B, sum C] channels that F functions keep, groups in the order of the bank.
      measured: [F, B, repeats] accuracies of these plans in percent.

    Returns:
      What was found.

    Raises:
      ValueError: if there are too few plans to hold some out.
    """
    num_functions, num_bases = measured.shape[:2]
    return LandscapeQuality(
        plans=bank.accuracies.shape[1],
        bases=num_bases,
        functions=num_functions,
        held_out_correlation=held_out_correlation(bank, features),
        halves=_agreement(bank, features, is_kept, measured)
        if num_bases >= MIN_BASES and num_functions >= MIN_FUNCTIONS
        else None,
    )


def _agreement(
    bank: Bank, features: Mapping[str, Floats], is_kept: Booleans, measured: Floats
) -> HalvesAgreement:
    """Computes how the halves of the bases agree, see `HalvesAgreement`."""
    num_bases, rng = measured.shape[1], np.random.default_rng(0)
    divisions = np.array([rng.permutation(num_bases) < num_bases // 2 for _ in range(NUM_DIVISIONS)])
    by_landscape, by_finetuning, optimism = [], [], []
    for half in (*divisions, *~divisions):
        on_half = {group: table[half] for group, table in features.items()}
        landscape = fit_landscape(bank.part(bases=half), on_half)
        predicted = landscape.predict(is_kept[:, half]).mean(axis=1)
        finetuned = measured[:, half, 0].mean(axis=1)
        actual = measured[:, ~half].mean(axis=(1, 2))
        by_landscape.append(rank_correlation(predicted, actual))
        by_finetuning.append(rank_correlation(finetuned, actual))
        excess = predicted - actual
        best = np.argsort(-predicted, kind="stable")[: len(excess) // 4]
        optimism.append(excess[best].mean() - excess.mean())
    return HalvesAgreement(
        rank_correlation=float(np.mean(by_landscape)),
        finetuned_rank_correlation=float(np.mean(by_finetuning)),
        optimism=float(np.mean(optimism)),
        function_sd=float(np.std(measured.mean(axis=(1, 2)), ddof=1)),
    )
