"""How well a landscape predicts, by hand: made-up banks whose bases are all alike, or all unlike."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from jaxprune.comparison.landscape_quality import (
    HalvesAgreement,
    LandscapeQuality,
    check_plans,
    landscape_quality,
)
from jaxprune.search.landscape import Bank, fit_landscape
from jaxprune.tasks.tasks import Schedule

WIDTHS, COUNTS = {"conv": 8}, {"conv": 4}


def plans_of(rng, num_plans):
    """[plans, 8] different random plans that keep 4 channels each."""
    every = [np.isin(np.arange(8), kept) for kept in combinations(range(8), 4)]
    return rng.permutation(every)[:num_plans]


def no_features(num_bases):
    return {"conv": np.zeros((num_bases, 8, 0))}


def made_up(num_bases=4, *, num_functions=8, is_alike=True):
    """A bank whose accuracies are sums over kept channels, plans of functions, and what the bank's landscape predicts.

    Bases are the same, or have nothing in common.
    """
    rng = np.random.default_rng(3)
    plans, of_functions = plans_of(rng, 60), plans_of(rng, num_functions)
    values = np.stack([rng.normal(size=8)] * num_bases) if is_alike else rng.normal(size=(num_bases, 8))
    is_kept = np.stack([plans] * num_bases)
    bank = Bank(WIDTHS, COUNTS, is_kept, 60 + np.einsum("bmc,bc->bm", is_kept, values))
    by_base = np.stack([of_functions] * num_bases, axis=1)
    landscape = fit_landscape(bank, no_features(num_bases))
    return bank, by_base, landscape.predict(by_base)


def quality(bank, is_kept, measured):
    return landscape_quality(bank, no_features(measured.shape[1]), is_kept, measured)


def test_a_landscape_that_predicts_exactly_has_rank_correlation_one_and_no_optimism():
    bank, is_kept, predicted = made_up()
    found = quality(bank, is_kept, predicted[..., None])
    assert (found.plans, found.bases, found.functions) == (60, 4, 8)
    assert found.held_out_correlation > 0.9
    assert found.halves.rank_correlation == pytest.approx(1.0)
    assert found.halves.optimism == pytest.approx(0.0, abs=1e-9)
    assert found.halves.function_sd == pytest.approx(np.std(predicted[:, 0], ddof=1))
    assert found.warnings == ()


def test_optimism_is_what_the_best_quarter_loses_relative_to_all():
    bank, is_kept, predicted = made_up()
    measured = predicted.copy()
    measured[np.argsort(predicted[:, 0])[-2:]] -= 3.0
    # the best 2 of 8 lose 3 points, all of them 3 * 2 / 8 on average
    halves = quality(bank, is_kept, measured[..., None]).halves
    assert halves.optimism == pytest.approx(3.0 - 0.75)
    assert halves.optimism_sd == pytest.approx(2.25 / np.std(measured[:, 0], ddof=1))


def test_a_level_that_is_wrong_for_all_functions_is_no_optimism():
    bank, is_kept, predicted = made_up()
    halves = quality(bank, is_kept, predicted[..., None] - 5.0).halves
    assert halves.optimism == pytest.approx(0.0, abs=1e-9)


def test_fine_tuning_for_comparison_is_one_repeat_and_the_truth_all_of_them():
    bank, is_kept, predicted = made_up()
    # the first repeat says the opposite of the mean of both
    halves = quality(bank, is_kept, np.stack([-predicted, 3 * predicted], axis=2)).halves
    assert halves.rank_correlation == pytest.approx(1.0)
    assert halves.finetuned_rank_correlation == pytest.approx(-1.0)


def test_truth_is_measured_on_the_other_half_of_the_bases():
    bank, is_kept, predicted = made_up(num_functions=40, is_alike=False)
    found = quality(bank, is_kept, predicted[..., None])
    # on its own bases the landscape would be perfect, but these say nothing about others
    assert found.held_out_correlation > 0.9
    assert found.halves.rank_correlation < 0.6
    assert found.halves.finetuned_rank_correlation == pytest.approx(found.halves.rank_correlation)


def test_an_odd_number_of_bases_is_divided_too():
    bank, is_kept, predicted = made_up(5)
    assert quality(bank, is_kept, predicted[..., None]).halves.rank_correlation == pytest.approx(1.0)


@pytest.mark.parametrize(("num_bases", "num_functions"), [(3, 8), (4, 3)])
def test_too_few_bases_or_functions_are_told(num_bases, num_functions):
    bank, is_kept, predicted = made_up(num_bases, num_functions=num_functions)
    found = quality(bank, is_kept, predicted[..., None])
    assert found.halves is None and found.held_out_correlation > 0.9 and found.warnings == ()
    needs = "needs 4 bases and 4 functions with different plans"
    assert found.rows[-1] == ["landscape and fine-tuning", f"{needs}, got {num_bases} and {num_functions}"]


def test_a_landscape_that_ranks_badly_or_blindly_is_warned_of():
    quality = LandscapeQuality(50, 8, 20, 0.1, HalvesAgreement(0.61, 0.7, 1.5, 3.0))
    blind, luck = quality.warnings
    assert "a correlation of 0.10, below 0.2: it can hardly tell plans apart" in blind
    assert "a correlation of 0.61, below 0.8 (fine-tuning every function: 0.70)" in luck
    for warning in (blind, luck):
        assert warning.endswith("Use more bases (here 8), more plans (here 50) or a harsher schedule.")


def test_rows_have_one_number_each():
    quality = LandscapeQuality(50, 8, 20, 0.68, HalvesAgreement(0.86, 0.78, -0.01, 3.0))
    assert [value for _, value in quality.rows] == [
        "0.68",
        "0.86",
        "0.78",
        "+0.0 points, +0.00 SD of functions",
    ]


def test_functions_that_are_all_equal_have_no_optimism_in_sd():
    assert HalvesAgreement(0.0, 0.0, 1.5, 0.0).optimism_sd is None


def test_plans_are_checked_before_any_training():
    task = SimpleNamespace(name="toy", schedule=Schedule(kept_fraction=0.5))
    one, two = (SimpleNamespace(rounds=[None] * count, task=task) for count in (1, 2))
    check_plans(one, 10)
    check_plans(two, 0)
    with pytest.raises(ValueError, match="plans >= 10 to fit a landscape, or 0 to leave it out, got 9"):
        check_plans(one, 9)
    with pytest.raises(ValueError, match=r"one round of pruning, got 2 of task 'toy'.*plans=0 \(--plans 0\)"):
        check_plans(two, 10)


def test_a_task_that_scores_group_after_group_has_no_landscape():
    """What a plan loses in one group changes the scores of the next, so equal plans may come from other scores."""
    task = SimpleNamespace(name="toy", schedule=Schedule(kept_fraction=0.5, scoring="sequential"))
    with pytest.raises(ValueError, match=r'with scoring "joint", got "sequential" of task .toy.*--plans 0'):
        check_plans(SimpleNamespace(rounds=[None], task=task), 10)
